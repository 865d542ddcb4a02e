//! Plans: which device runs which blocks, from measured profiles.
//!
//! A [`Room`] (devices and links as measured), a [`ModelProfile`] (bytes and relative work of its blocks) and [`Options`]
//! go into [`plan`]; a [`Plan`] comes out: a [`Partition`] (the decisions) and a [`Prediction`] (seconds and bytes of every
//! device), or a [`Refusal`] that says what would make the model fit. [`predict`] gives the same numbers for any other
//! partition. Seconds and bytes throughout; no I/O, no clock, no chance: the same room gives the same plan.
//!
//! The pipeline is a ring: the host's front (embedding, and its own first blocks if it has any), the stages, the host's
//! head (LM head and loss). Steps are synchronous 1F1B with a flush (PipeDream-Flush, Narayanan et al. 2021,
//! <https://arxiv.org/abs/2006.09503>); of P positions, position p holds at most P − p micro-batches. What is minimised is the
//! exact time of such a step under every device's memory; see the modules `timeline` and `search`.
//!
//! While a run goes on, a [`Tracker`] for each device turns its jobs' times into a [`DeviceProfile`] and tells a device that
//! slows from noise; with it, [`predict`] of the partition in force and [`plan`] of another, [`Hysteresis::worth_moving`] says
//! whether what changes hands ([`fetches`], [`fetch_time`]) is worth it.
//!
//! | call | from | gives |
//! | --- | --- | --- |
//! | [`plan`] | room, model, options | the fastest [`Plan`] that fits, or [`PlanError::Refused`] |
//! | [`lightest`] | the same | the [`Partition`] whose most loaded device holds the least |
//! | [`predict`] | the same and a [`Partition`] | its [`Prediction`]: step, bound, bubble; busy seconds and bytes of each device |
//! | [`settle`] | the same | the partition in which those compute again whose memory demands it |
//! | [`tune`] | the same | the best cut of its steps, micro-batches in flight and recomputation |
//! | [`fetches`], [`fetch_time`] | two partitions | which blocks each device fetches, in how many seconds |
//! | [`Hysteresis::worth_moving`] | [`Situation`] | [`Verdict`] |
//! | [`Tracker::observe`], [`Tracker::profile`] | the times of jobs | [`Change`], the profile as it is now |

mod bounded;
mod costs;
mod light;
mod plan;
mod profile;
mod refusal;
mod replan;
mod search;
mod timeline;
mod track;

pub use bounded::at_most;
pub use light::lightest;
pub use plan::{
    Load, MemoryParts, Partition, Plan, PlanError, Prediction, StagePlan, plan, predict, settle, tune,
};
pub use profile::{
    BadProfile, BlockProfile, BoundaryPrecision, Curve, DeviceIndex, DeviceProfile, EndsProfile, Growth,
    HostProfile, LinkProfile, ModelProfile, Node, Options, PeerProfile, Recompute, Room, Storage, Wire,
};
pub use refusal::{Bytes, Refusal, Remedy};
pub use replan::{Fetch, Hysteresis, Situation, Verdict, fetch_time, fetches, renumbered};
pub use track::{Change, JobKind, Tracker};

use std::ops::Range;

/// Cuts `blocks` blocks in at most `devices` contiguous stages whose lengths differ by at most one, the longer ones
/// last: the first stages hold the activations of more micro-batches. No stage is empty, so there may be fewer stages
/// than devices.
pub fn even_split(blocks: u16, devices: usize) -> Vec<Range<u16>> {
    let stages = u16::try_from(devices).unwrap_or(u16::MAX).min(blocks);
    let mut start = 0;
    (0..stages)
        .map(|stage| {
            let left = stages - stage;
            let len = (blocks - start) / left;
            let range = start..start + len;
            start = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_owner_and_stages_are_even() {
        for blocks in 0..40 {
            for devices in 0..45 {
                let plan = even_split(blocks, devices);
                assert_eq!(plan.len(), devices.min(blocks.into()));
                let covered: Vec<u16> = plan.iter().cloned().flatten().collect();
                if devices > 0 {
                    assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
                }
                let lens: Vec<usize> = plan.iter().map(ExactSizeIterator::len).collect();
                assert!(lens.is_sorted() && lens.last().unwrap_or(&0) - lens.first().unwrap_or(&0) <= 1);
            }
        }
    }
}
