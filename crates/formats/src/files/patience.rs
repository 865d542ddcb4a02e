//! How long a fetch is tried for: what passes is waited out, more and more slowly, and not for ever.

use std::time::Duration;

use super::FilesError;

/// How a [`UrlFiles`](super::UrlFiles) deals with a network that fails.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How often in a row a request may fail without bringing a byte worth counting.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with every further one.
    pub first_wait: Duration,
    /// The longest such wait.
    pub longest_wait: Duration,
    /// The longest wait that a server may ask for (`Retry-After`). The hub counts requests by five minutes.
    pub longest_asked: Duration,
    /// How long one answer may take. What came by then is kept, and the rest is asked for anew.
    pub answer: Duration,
    /// The seed of the waits' jitter, which keeps a room of devices from asking again all at once; `None` draws one.
    pub seed: Option<u64>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(16),
            longest_asked: Duration::from_secs(300),
            answer: Duration::from_secs(30),
            seed: None,
        }
    }
}

/// What went wrong with one request, and may go right with the next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No answer.
    #[error("the server cannot be reached ({reason})")]
    Unreachable {
        /// What the system says.
        reason: String,
    },
    /// An answer that says "later".
    #[error("the server answered {status}, which means that it has too much to do")]
    Busy {
        /// The HTTP status.
        status: u16,
    },
    /// A body that ended early.
    #[error("{got} of {wanted} bytes came ({reason})")]
    Cut {
        /// The bytes that came in all.
        got: u64,
        /// The bytes that were asked for.
        wanted: u64,
        /// What the system says.
        reason: String,
    },
}

/// An attempt that brought this much is no failure: the connection is slow or short-lived, and goes on.
const PROGRESS: u64 = 64 << 10;

/// A server that was never heard of is given up after so many attempts: its address may be wrong, and someone waits.
const FIRST_CONTACT: u32 = 3;

/// The failures of one read.
#[derive(Debug)]
pub(super) struct Failures<'a> {
    patience: &'a Patience,
    in_a_row: u32,
    random: u64,
}

impl<'a> Failures<'a> {
    pub(super) fn new(patience: &'a Patience) -> Self {
        Self { patience, in_a_row: 0, random: patience.seed.unwrap_or_else(draw) }
    }

    /// Bytes came before the failure that is told of next.
    pub(super) fn progress(&mut self, bytes: u64) {
        if bytes >= PROGRESS {
            self.in_a_row = 0;
        }
    }

    /// How long to wait before the next attempt; an error when there shall be none.
    ///
    /// `met`: the server has answered before. `asked`: its `Retry-After`.
    pub(super) fn wait(
        &mut self,
        name: &str,
        trouble: Trouble,
        met: bool,
        asked: Option<&str>,
    ) -> Result<Duration, FilesError> {
        self.in_a_row += 1;
        let attempts = if met { self.patience.attempts } else { self.patience.attempts.min(FIRST_CONTACT) };
        // A date instead of seconds is as good as nothing: clocks differ.
        let asked = asked.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        if self.in_a_row >= attempts || asked.is_some_and(|asked| asked > self.patience.longest_asked) {
            return Err(FilesError::GaveUp { name: name.to_owned(), attempts: self.in_a_row, trouble });
        }
        let doubled = self.patience.first_wait.saturating_mul(1 << (self.in_a_row - 1).min(20));
        let wait = doubled.min(self.patience.longest_wait);
        // Between half of it and all of it.
        let jittered = wait.mul_f64(0.5 + 0.5 * self.unit());
        Ok(asked.map_or(jittered, |asked| asked + jittered))
    }

    /// A number from 0 to 1 (splitmix64; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(((z ^ (z >> 31)) >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn draw() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(target_arch = "wasm32")]
fn draw() -> u64 {
    js_sys::Math::random().to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Trouble = Trouble::Busy { status: 503 };

    #[test]
    fn waits_double_within_their_jitter_and_end() {
        let patience = Patience { seed: Some(7), ..Patience::default() };
        let mut failures = Failures::new(&patience);
        let full = [0.5, 1.0, 2.0, 4.0, 8.0];
        for full in full {
            let wait = failures.wait("a", BUSY, true, None).unwrap().as_secs_f64();
            assert!((full / 2.0..=full).contains(&wait), "{wait} of {full}");
        }
        let error = failures.wait("a", BUSY, true, None).unwrap_err();
        assert_eq!(error, FilesError::GaveUp { name: "a".into(), attempts: 6, trouble: BUSY });
    }

    #[test]
    fn progress_starts_the_count_anew_and_a_trickle_does_not() {
        let patience = Patience { attempts: 2, seed: Some(7), ..Patience::default() };
        let mut failures = Failures::new(&patience);
        for _ in 0..10 {
            failures.progress(PROGRESS);
            assert!(failures.wait("a", BUSY, true, None).is_ok());
        }
        failures.progress(PROGRESS - 1);
        assert!(failures.wait("a", BUSY, true, None).is_err());
    }

    #[test]
    fn a_server_is_waited_for_as_it_asks_and_not_for_hours() {
        let patience = Patience { seed: Some(7), ..Patience::default() };
        let wait = Failures::new(&patience).wait("a", BUSY, true, Some("20")).unwrap();
        assert!(wait > Duration::from_secs(20) && wait <= Duration::from_millis(20_500));
        assert!(Failures::new(&patience).wait("a", BUSY, true, Some("301")).is_err());
        assert!(
            Failures::new(&patience).wait("a", BUSY, true, Some("Wed, 21 Oct 2026 07:28:00 GMT")).is_ok()
        );
    }

    #[test]
    fn a_server_that_was_never_met_is_given_up_sooner() {
        let patience = Patience { seed: Some(7), ..Patience::default() };
        let mut failures = Failures::new(&patience);
        assert!((0..2).all(|_| failures.wait("a", BUSY, false, None).is_ok()));
        assert!(failures.wait("a", BUSY, false, None).is_err());
    }
}
