//! How a hub fails.

use std::time::Duration;

/// What is to go wrong; nothing by default. `times` counts the answers that are still to fail.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A signature is good for so many requests.
    pub signature_uses: Option<u32>,
    /// A signature is good for so long.
    pub signature_age: Option<Duration>,
    /// Bodies that end early.
    pub cut: Option<Cut>,
    /// Bodies that come slowly.
    pub drip: Option<Drip>,
    /// Answers of 429 or 503, at every address.
    pub busy: Option<Busy>,
    /// So many answers hold the bytes behind those that were asked for, and say so.
    pub shifted_ranges: u32,
    /// So many answers hold more than was asked for.
    pub too_long: u32,
    /// The byte at this place of this file is another one.
    pub changed_byte: Option<(String, u64)>,
    /// `Range` is not known.
    pub whole_files: bool,
    /// A file's address redirects to itself.
    pub redirect_loop: bool,
    /// The first answer does not say the commit.
    pub hide_commit: bool,
}

/// Bodies that end early: the connection is closed.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes that still come.
    pub after: u64,
    /// Answers to cut.
    pub times: u32,
}

/// Bodies that come slowly.
#[derive(Clone, Copy, Debug)]
pub struct Drip {
    /// Bytes at a time.
    pub bytes: usize,
    /// The time between them.
    pub every: Duration,
    /// Answers to slow down.
    pub times: u32,
}

/// Answers that say "later".
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// 429 or 5xx.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Answers to refuse.
    pub times: u32,
}

/// One of `times`, if there is one left.
pub(crate) fn take(times: &mut u32) -> bool {
    let left = *times > 0;
    *times = times.saturating_sub(1);
    left
}
