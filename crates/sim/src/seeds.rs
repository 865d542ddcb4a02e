//! The seeds that somebody asked for: at least one, and none beyond the last there is.

use std::iter;

/// Seeds one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

/// What cannot be counted through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedsError {
    /// Nothing would be run.
    #[error("0 runs show nothing: ask for at least 1")]
    NoRuns,
    /// There are no such seeds.
    #[error(
        "{runs} runs from seed {first} go beyond the last seed, {}: begin lower, or ask for fewer",
        u64::MAX
    )]
    BeyondTheLast {
        /// The first.
        first: u64,
        /// How many.
        runs: u64,
    },
}

impl Seeds {
    /// So many from the first on.
    ///
    /// # Errors
    ///
    /// When there are none, or not so many.
    pub fn new(first: u64, runs: u64) -> Result<Self, SeedsError> {
        let more = runs.checked_sub(1).ok_or(SeedsError::NoRuns)?;
        let last = first.checked_add(more).ok_or(SeedsError::BeyondTheLast { first, runs })?;
        Ok(Self { first, last })
    }

    /// The first one.
    pub fn first(self) -> u64 {
        self.first
    }

    /// How many, or as many as can be counted.
    pub fn runs(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// The one after a seed.
    pub(crate) fn after(self, seed: u64) -> Option<u64> {
        (seed < self.last).then(|| seed + 1)
    }

    /// All of them.
    pub fn each(self) -> impl Iterator<Item = u64> {
        iter::successors(Some(self.first), move |seed| self.after(*seed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn seeds_are_counted_to_the_last_there_is_and_no_further() {
        let all = |first, runs| Seeds::new(first, runs).map(|seeds| seeds.each().collect::<Vec<_>>());
        assert_eq!(all(4, 3).unwrap(), [4, 5, 6]);
        assert_eq!(all(u64::MAX, 1).unwrap(), [u64::MAX]);
        assert_eq!(Seeds::new(4, 3).unwrap().runs(), 3);
        assert_eq!(all(7, 0), Err(SeedsError::NoRuns));
        let beyond = all(u64::MAX, 3).unwrap_err();
        assert_eq!(beyond, SeedsError::BeyondTheLast { first: u64::MAX, runs: 3 });
        assert!(beyond.to_string().contains("18446744073709551615"), "{beyond}");
    }
}
