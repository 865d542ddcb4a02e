//! How much memory a browser can spare, as it has shown: a note of what was tried and survived, kept beyond the tab's end.
//!
//! No browser says how much a tab may take before it is killed. So it is tried, in pieces, and the note is written to the
//! disk before each piece: a tab that comes back and finds that its last visit broke off while it tried or held so much
//! knows what killed it, and takes less. What was survived is not tried again. The shell does the reading, writing and
//! trying; what it all means is here.

use serde::{Deserialize, Serialize};

/// Memory is tried in pieces of so many bytes.
pub const PIECE: u64 = 64 << 20;
/// Whatever a device says, a page takes no more: near its 4 GiB, wasm's own memory tears.
pub const MOST: u64 = 2 << 30;
/// What is taken where nothing can be noted down, and so nothing may be tried.
pub const UNTRIED: u64 = 512 << 20;
/// No tab is killed for so little: one that held no more had another reason to break off.
const LITTLE: u64 = 128 << 20;
/// What killed a tab so long ago says little of a browser that has been updated since.
const FORGET_DAYS: u64 = 30;

/// What a browser has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Bytes that were taken and survived.
    proved: u64,
    /// The least that a visit broke off with, and the day.
    killed: Option<Killed>,
    /// What is being risked.
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Killed {
    bytes: u64,
    day: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    visit: u64,
    risk: Risk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Risk {
    /// The trial has come so far.
    Trying(u64),
    /// So much is taken by what is trained.
    Holding(u64),
}

impl Risk {
    fn bytes(self) -> u64 {
        match self {
            Self::Trying(bytes) | Self::Holding(bytes) => bytes,
        }
    }
}

impl Note {
    /// Bytes of a note, filled up with spaces: one that is written over another never leaves half of it.
    pub const LENGTH: usize = 256;

    /// The note that the last visit left. One that cannot be read is none.
    pub fn read(bytes: &[u8]) -> Self {
        bytes.get(..Self::LENGTH).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    /// As it goes to the disk; always of the same length.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.resize(Self::LENGTH, b' ');
        bytes
    }

    /// A visit begins, on this day since 1970. What is still open in the note was cut off; `left` says of a visit that a
    /// person ended it or had it out of sight then, so that nothing follows from it.
    pub fn begin(&mut self, day: u64, left: impl FnOnce(u64) -> bool) {
        self.killed = self.killed.filter(|killed| day.saturating_sub(killed.day) < FORGET_DAYS);
        let Some(Open { visit, risk }) = self.open.take() else { return };
        if risk.bytes() <= LITTLE || left(visit) {
            return;
        }
        let bytes = self.killed.map_or(u64::MAX, |killed| killed.bytes).min(risk.bytes());
        self.killed = Some(Killed { bytes, day });
        self.proved = self.proved.min(after(bytes));
    }

    /// Bytes that are worth trying: all of `most`, as far as nothing speaks against it.
    pub fn goal(&self, most: u64) -> u64 {
        most.min(MOST).min(self.killed.map_or(u64::MAX, |killed| after(killed.bytes)))
    }

    /// The bytes to try in all with the next piece, when `tried` are taken; none when what is known is enough.
    pub fn next(&self, most: u64, tried: u64) -> Option<u64> {
        let goal = self.goal(most);
        (self.proved.max(tried) < goal).then(|| tried.saturating_add(PIECE).min(goal))
    }

    /// So many bytes are about to be taken, to try.
    pub fn trying(&mut self, visit: u64, bytes: u64) {
        self.open = Some(Open { visit, risk: Risk::Trying(bytes) });
    }

    /// The trial is over: so many bytes were taken and all of them used, and more were refused or not wanted.
    pub fn tried(&mut self, bytes: u64, refused: bool) {
        // What was to be had on another day counts for no more than today.
        self.proved = if refused { bytes } else { self.proved.max(bytes) };
        self.open = None;
    }

    /// So many bytes are about to be taken for what is trained; 0 when they are let go.
    pub fn holding(&mut self, visit: u64, bytes: u64) {
        self.open = (bytes > 0).then_some(Open { visit, risk: Risk::Holding(bytes) });
    }

    /// Bytes that can be spared by all that is known, no more than `most`.
    pub fn usable(&self, most: u64) -> u64 {
        self.goal(most).min(self.proved)
    }
}

/// What is taken where so much was too much.
fn after(killed: u64) -> u64 {
    (killed / 4 * 3).max(LITTLE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TODAY: u64 = 20_000;

    /// A visit that tries memory on a device that kills it at `limit`, and says what it found; none if it was killed.
    fn visit(disk: &mut Vec<u8>, number: u64, day: u64, most: u64, limit: u64) -> Option<u64> {
        let mut note = Note::read(disk);
        note.begin(day, |_| false);
        let mut tried = 0;
        while let Some(bytes) = note.next(most, tried) {
            note.trying(number, bytes);
            *disk = note.write();
            if bytes > limit {
                return None;
            }
            tried = bytes;
        }
        note.tried(tried, false);
        *disk = note.write();
        Some(note.usable(most))
    }

    #[test]
    fn what_was_survived_is_not_tried_again() {
        let mut disk = Vec::new();
        assert_eq!(visit(&mut disk, 1, TODAY, 300 * MIB, u64::MAX), Some(300 * MIB));
        let mut note = Note::read(&disk);
        note.begin(TODAY, |_| false);
        assert_eq!((note.next(300 * MIB, 0), note.next(80 * MIB, 0)), (None, None));
        assert_eq!(note.usable(80 * MIB), 80 * MIB);
        // More than that is tried from the start: nothing of the last time is taken any more.
        assert_eq!(note.next(301 * MIB, 0), Some(64 * MIB));
        assert_eq!(note.next(301 * MIB, 256 * MIB), Some(301 * MIB));
        assert_eq!(note.goal(u64::MAX), MOST);
    }

    #[test]
    fn a_visit_that_was_killed_is_not_repeated() {
        let (mut disk, limit) = (Vec::new(), 1000 * MIB);
        let mut killed = 0;
        let mut found = Vec::new();
        for number in 0..20 {
            match visit(&mut disk, number, TODAY, 2000 * MIB, limit) {
                Some(bytes) => found.push(bytes),
                None => killed += 1,
            }
        }
        assert_eq!(killed, 1);
        // Three quarters of 1,024 MiB, the piece that was too much.
        assert!(found.iter().all(|bytes| *bytes == 768 * MIB), "{found:?}");
        // A phone gets better: a month later it is tried again.
        assert_eq!(visit(&mut disk, 30, TODAY + FORGET_DAYS, 2000 * MIB, u64::MAX), Some(2000 * MIB));
    }

    #[test]
    fn a_tab_that_dies_of_what_it_holds_holds_less_the_next_time() {
        let mut disk = Vec::new();
        visit(&mut disk, 1, TODAY, 800 * MIB, u64::MAX);
        let mut limits = Vec::new();
        for number in 2..5 {
            let mut note = Note::read(&disk);
            note.begin(TODAY, |_| false);
            limits.push(note.usable(800 * MIB) / MIB);
            note.holding(number, note.usable(800 * MIB));
            disk = note.write();
        }
        assert_eq!(limits, [800, 600, 450]);
        // The least that was too much counts, whatever broke off later.
        let mut note = Note::read(&disk);
        note.holding(5, 700 * MIB);
        note.begin(TODAY, |_| false);
        assert_eq!(note.goal(800 * MIB), 450 * MIB);
    }

    #[test]
    fn an_orderly_end_and_a_visit_that_a_person_ended_say_nothing() {
        let mut note = Note::default();
        note.tried(500 * MIB, false);
        note.holding(7, 500 * MIB);
        note.holding(7, 0);
        note.begin(TODAY, |_| false);
        assert_eq!(note.usable(500 * MIB), 500 * MIB);
        note.holding(8, 500 * MIB);
        let mut gone = Note::read(&note.write());
        gone.begin(TODAY, |visit| visit == 8);
        assert_eq!(gone.usable(500 * MIB), 500 * MIB);
        note.begin(TODAY, |visit| visit == 9);
        assert_eq!(note.usable(500 * MIB), 375 * MIB);
    }

    #[test]
    fn a_browser_that_ended_for_another_reason_is_not_ruined() {
        let mut note = Note::default();
        note.tried(100 * MIB, false);
        // A battery that ran out, again and again.
        for visit in 0..10 {
            note.holding(visit, 3 * MIB);
            note.begin(TODAY, |_| false);
        }
        assert_eq!(note.usable(100 * MIB), 100 * MIB);
        for visit in 0..10 {
            note.holding(visit, 150 * MIB);
            note.begin(TODAY, |_| false);
        }
        assert_eq!((note.usable(100 * MIB), note.goal(u64::MAX)), (100 * MIB, LITTLE));
    }

    #[test]
    fn memory_that_was_refused_today_is_not_promised() {
        let mut note = Note::default();
        note.tried(500 * MIB, false);
        note.tried(128 * MIB, true);
        assert_eq!(note.usable(500 * MIB), 128 * MIB);
        // It is tried again the next time.
        assert_eq!(note.next(500 * MIB, 0), Some(64 * MIB));
    }

    #[test]
    fn a_note_that_is_torn_or_of_something_else_is_none() {
        let mut note = Note::default();
        note.begin(TODAY, |_| false);
        note.tried(u64::MAX, false);
        note.killed = Some(Killed { bytes: u64::MAX, day: u64::MAX });
        note.trying(u64::MAX, u64::MAX);
        let whole = note.write();
        assert_eq!((whole.len(), Note::read(&whole)), (Note::LENGTH, note));
        for length in 0..Note::LENGTH {
            assert_eq!(Note::read(&whole[..length]), Note::default());
        }
        for bytes in [&[0; Note::LENGTH][..], &[b' '; Note::LENGTH], b"{}", &[b'9'; 300]] {
            assert_eq!(Note::read(bytes), Note::default());
        }
    }
}
