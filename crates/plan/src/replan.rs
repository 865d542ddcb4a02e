//! Whether a better plan is worth moving to while the run goes on.
//!
//! A move costs the bytes of the blocks that change hands and the work that runs again; a plan gains only over the steps that
//! are left. Measurements are noisy, so a candidate must win by a margin, must not come too soon after the last move, and
//! less often the more moves there were: a run of n steps sees on the order of log n moves, however noisy its times are.
//! A plan that has lost a device is not for this: it has to be left.

use crate::Partition;
use crate::profile::{DeviceIndex, ModelProfile, Node, Room};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a device fetches for another partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Who.
    pub node: Node,
    /// The blocks that it did not have.
    pub blocks: Vec<u16>,
    /// Bytes of their frozen weights as they are held.
    pub weights: u64,
    /// Bytes of their adapters and moments, from the host.
    pub state: u64,
}

/// What changes hands between two partitions: devices that gain nothing are not listed. With another storage every block is
/// fetched again.
pub fn fetches(model: &ModelProfile, from: &Partition, to: &Partition) -> Vec<Fetch> {
    let kept = from.storage == to.storage;
    let had = |node| owned(from, node).filter(|_| kept).collect::<BTreeSet<u16>>();
    let devices = to.stages.iter().flat_map(|stage| &stage.devices).map(|&device| Node::Device(device));
    let fetch = |node| {
        let had = had(node);
        let blocks: Vec<u16> = owned(to, node).filter(|block| !had.contains(block)).collect();
        let sum = |of: &dyn Fn(&crate::BlockProfile) -> u64| {
            let blocks = blocks.iter().filter_map(|block| model.blocks.get(usize::from(*block)));
            blocks.map(of).fold(0, u64::saturating_add)
        };
        let weights = sum(&|block| block.frozen[to.storage as usize]);
        // The host has every state already.
        let state = if node == Node::Host { 0 } else { sum(&|block| block.state) };
        Fetch { node, weights, state, blocks }
    };
    std::iter::once(Node::Host).chain(devices).map(fetch).filter(|fetch| !fetch.blocks.is_empty()).collect()
}

fn owned(partition: &Partition, node: Node) -> Box<dyn Iterator<Item = u16> + '_> {
    match node {
        Node::Host => Box::new(partition.host.clone()),
        Node::Device(device) => {
            let stages = partition.stages.iter().filter(move |stage| stage.devices.contains(&device));
            Box::new(stages.flat_map(|stage| stage.blocks.clone()))
        }
    }
}

/// Seconds until all have what they fetch, at the same time: weights come from one place that sends `source` bytes a second
/// in all (infinite if each device has them on its disk), states from the host.
pub fn fetch_time(room: &Room, fetches: &[Fetch], source: f64) -> f64 {
    let alone = fetches.iter().map(|fetch| {
        let wire = room.wire(Node::Host, fetch.node);
        let weights = if source.is_finite() { fetch.weights as f64 / wire.bandwidth } else { 0.0 };
        weights + fetch.state as f64 / wire.bandwidth + wire.round_trip
    });
    let weights: u64 = fetches.iter().map(|fetch| fetch.weights).fold(0, u64::saturating_add);
    let together = weights as f64 / source;
    alone.fold(together, f64::max)
}

/// When to move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hysteresis {
    /// The share of a step's time that a candidate must save.
    pub least_gain: f64,
    /// What is saved over the steps that are left must be so many times what the move costs.
    pub margin: f64,
    /// Steps after a move in which there is no other; twice as many after each move.
    pub dwell: u32,
}

impl Default for Hysteresis {
    fn default() -> Self {
        Self { least_gain: 0.1, margin: 1.5, dwell: 4 }
    }
}

/// Where a run stands when a candidate comes up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Situation {
    /// Seconds of a step with the plan in force, by the profiles as they are now ([`predict`](crate::predict)).
    pub current: f64,
    /// Seconds of a step with the candidate, by the same profiles.
    pub candidate: f64,
    /// Seconds that the move takes ([`fetch_time`], and loading).
    pub move_time: f64,
    /// Seconds of work that is thrown away.
    pub lost: f64,
    /// Steps left in the run.
    pub steps_left: u32,
    /// Steps since the last move of this kind, or since the start.
    pub steps_since: u32,
    /// Moves of this kind so far.
    pub moves: u32,
}

/// Whether to move, and why not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is worth it.
    Move {
        /// Seconds that the rest of the run is shorter by, the cost of moving taken off.
        gain: f64,
    },
    /// The last move is too recent.
    TooSoon {
        /// Steps to wait.
        steps: u32,
    },
    /// The candidate is hardly faster, or slower.
    TooLittle {
        /// The share of a step that it saves.
        share: f64,
    },
    /// What is left of the run does not pay for it.
    TooDear {
        /// Seconds saved over the steps that are left.
        saves: f64,
        /// Seconds that the move costs.
        costs: f64,
    },
}

impl Verdict {
    /// Whether to move.
    pub fn moves(self) -> bool {
        matches!(self, Self::Move { .. })
    }
}

impl Hysteresis {
    /// Judges a candidate. Numbers that are none are no reason to move.
    pub fn worth_moving(&self, now: &Situation) -> Verdict {
        let dwell = self.dwell.saturating_mul(1u32.checked_shl(now.moves).unwrap_or(u32::MAX));
        if now.moves > 0 && now.steps_since < dwell {
            return Verdict::TooSoon { steps: dwell - now.steps_since };
        }
        let share = (now.current - now.candidate) / now.current;
        // Also false of what is not a number.
        if !(now.current.is_finite() && share >= self.least_gain) {
            return Verdict::TooLittle { share };
        }
        let saves = (now.current - now.candidate) * f64::from(now.steps_left);
        let costs = now.move_time + now.lost;
        if saves >= self.margin * costs && saves > 0.0 {
            return Verdict::Move { gain: saves - costs };
        }
        Verdict::TooDear { saves, costs }
    }
}

/// A partition for a room whose devices are numbered otherwise: `place` says where each is now; none if one is gone.
pub fn renumbered(
    partition: &Partition,
    place: impl Fn(DeviceIndex) -> Option<DeviceIndex>,
) -> Option<Partition> {
    let mut partition = partition.clone();
    for device in partition.stages.iter_mut().flat_map(|stage| &mut stage.devices) {
        *device = place(*device)?;
    }
    Some(partition)
}
