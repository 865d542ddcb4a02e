//! How much of this machine's memory its stages may take.

use crate::words::{grouped, plural};
use std::num::NonZeroU16;
use std::str::FromStr;
use sysinfo::{ProcessesToUpdate, System};

/// A number of bytes as a person writes it: `2GB`, `1.5 GiB`, `800M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// Why a text is no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no amount of memory: write it like 2GB, 1.5GiB or 800MB")]
pub(super) struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            "b" => 1,
            // A bare 2 would be two bytes, and was hardly meant so.
            _ => return Err(wrong()),
        };
        let bytes = number * unit as f64;
        // Above 2^53 nobody has said what they mean either.
        match bytes.is_finite() && (1.0..9e15).contains(&bytes) {
            true => Ok(Self(bytes as u64)),
            false => Err(wrong()),
        }
    }
}

/// For one stage: what passes through while any model's blocks are loaded (`baton_model::LOADING`), and a little to keep.
const LEAST: u64 = 16 << 20;
const _: () = assert!(LEAST > baton_model::LOADING);

/// What the stages of this process may take together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    /// As the person said, if they did.
    said: Option<Size>,
    /// Stages that share it.
    stages: NonZeroU16,
}

/// Memory in which no stage could load a block.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--memory of {} bytes is too little for {}: a stage needs 16 MiB to load anything; give {}MiB or more, or leave --memory out for three quarters of what is free",
    grouped(*.bytes), plural(usize::from(*.stages), "stage"), u64::from(*.stages) * (LEAST >> 20)
)]
pub(super) struct TooLittle {
    bytes: u64,
    stages: u16,
}

impl Lent {
    /// What so many stages share; by default three quarters of what is free.
    pub(super) fn new(said: Option<Size>, stages: NonZeroU16) -> Result<Self, TooLittle> {
        match said {
            Some(Size(bytes)) if bytes / u64::from(stages.get()) < LEAST => {
                Err(TooLittle { bytes, stages: stages.get() })
            }
            _ => Ok(Self { said, stages }),
        }
    }

    /// Bytes for one stage, which has taken `held` of them already; no more than `most`.
    pub(super) fn to_one(self, most: u64, held: u64) -> u64 {
        let stages = u64::from(self.stages.get());
        let own = match self.said {
            Some(Size(bytes)) => bytes / stages,
            // A quarter is left to everything else that runs here.
            None => (available() / 4 * 3 / stages).saturating_add(held),
        };
        own.min(most)
    }
}

/// Bytes that are free, or can be made so without swapping, under the limits that this process was started with.
fn available() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let own = sysinfo::get_current_pid().ok();
    if let Some(pid) = own {
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), false);
    }
    // A container has its limit at the root of what it sees, a service in a group of its own. What files have left in
    // memory is not in the way.
    let limits = [system.cgroup_limits(), own.and_then(|pid| system.process(pid)?.cgroup_limits())];
    let free = limits.into_iter().flatten().map(|limit| limit.total_memory.saturating_sub(limit.rss));
    free.fold(system.available_memory(), u64::min)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the verdict")]

    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("2GB", 2_000_000_000),
            ("1.5 GiB", 3 << 29),
            (" 800m ", 800_000_000),
            ("512mib", 512 << 20),
            ("0.5t", 500_000_000_000),
            ("4096 B", 4096),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in
            ["", "2", "GB", "2 G B", "-2GB", "1e3GB", "0GB", "1..5GB", "2GB!", "99999999TB", "infGB", "٣GB"]
        {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("1.5GiB"), "{text}: {error}");
        }
    }

    #[test]
    fn stages_share_what_is_lent() {
        let two = NonZeroU16::new(2).unwrap();
        let said = Lent::new(Some(Size(40 << 20)), two).unwrap();
        assert_eq!(
            (said.to_one(u64::MAX, 0), said.to_one(u64::MAX, 300), said.to_one(20, 0)),
            (20 << 20, 20 << 20, 20)
        );
        // Whatever this machine has, there is some of it.
        let all = Lent::new(None, NonZeroU16::MIN).unwrap();
        let found = all.to_one(u64::MAX, 0);
        assert!(found > 0 && found < 1 << 50, "{found}");
        assert_eq!(all.to_one(1, 1 << 60), 1);
    }

    #[test]
    fn memory_in_which_nothing_can_be_loaded_is_refused_with_what_can() {
        let two = NonZeroU16::new(2).unwrap();
        assert!(Lent::new(Some(Size(32 << 20)), two).is_ok());
        let error = Lent::new(Some(Size((32 << 20) - 1)), two).unwrap_err().to_string();
        assert!(error.contains("2 stages") && error.contains("give 32MiB or more"), "{error}");
    }
}
