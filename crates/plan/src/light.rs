//! The plan under which the most loaded device holds the least: Confidant's aim, where [`plan`](crate::plan) looks for time.

use crate::costs::Costs;
use crate::plan::{MAX_DEVICES, Partition, PlanError, StagePlan, check};
use crate::profile::{DeviceIndex, ModelProfile, Options, Recompute, Room};

/// The partition under which the host and these devices, in the order in which they stand, hold the least at the most; each has
/// a block at least, but for those that lack the memory for one. A step is cut into as many micro-batches as it may be, and
/// activations are computed again if they may be. Of no account: the times.
///
/// What a position holds grows with its blocks alone, so for a given limit the most that each can take, in order, is the best
/// that can be done; the limit is halved down to a byte.
///
/// None if nothing fits, or nobody but the host has memory, or more than 64 devices are there: [`plan`](crate::plan) knows
/// what to do then, and says why.
///
/// # Errors
/// A profile or an option cannot be.
pub fn lightest(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
) -> Result<Option<Partition>, PlanError> {
    check(room, model, options)?;
    let counts = options.counts();
    let (Some(&micro_batches), Some(&storage), Some(&boundary)) =
        (counts.last(), options.storages.first(), options.boundaries.first())
    else {
        let none = "no number of micro-batches, storage or precision is allowed";
        return Err(PlanError::Wrong(none.into()));
    };
    if room.devices.len() > MAX_DEVICES {
        return Ok(None);
    }
    let costs = Costs::new(room, model, options, micro_batches, storage, boundary);
    let recompute = options.recompute != Recompute::Never;
    let (blocks, own) = (model.blocks.len(), usize::from(options.host_blocks));
    let total = |node, from, to, in_flight| costs.parts(node, from, to, in_flight, recompute).total();
    let holds_one =
        |node: &usize| (0..blocks).any(|block| total(*node, block, block + 1, 1) <= costs.memory(*node));
    let nodes: Vec<usize> = (1..=room.devices.len()).filter(holds_one).take(blocks).collect();
    if nodes.is_empty() {
        return Ok(None);
    }
    // Where each position's blocks end, the host's first, and what the most loaded holds.
    let under = |limit: u64| -> Option<(Vec<usize>, u64)> {
        let (mut from, mut peak, mut ends) = (0, 0, Vec::new());
        for (position, node) in std::iter::once(0).chain(nodes.iter().copied()).enumerate() {
            let behind = nodes.len() - position;
            // 1F1B: of P positions, the host's front and head among them, position p has P - p micro-batches in flight.
            let in_flight = (behind as u64 + 2).min(costs.micro_batches());
            let limit = limit.min(costs.memory(node));
            let (least, most) =
                if position == 0 { (0, own.min(blocks - behind)) } else { (from + 1, blocks - behind) };
            let to = (least..=most).rev().find(|to| total(node, from, *to, in_flight) <= limit)?;
            peak = peak.max(total(node, from, to, in_flight));
            ends.push(to);
            from = to;
        }
        (from == blocks).then_some((ends, peak))
    };
    let Some((mut ends, mut most)) = under(u64::MAX) else { return Ok(None) };
    let mut least = 0;
    while most.saturating_sub(least) > 1 {
        let middle = least + (most - least) / 2;
        match under(middle) {
            Some(lighter) => (ends, most) = lighter,
            None => least = middle,
        }
    }
    let number = |index: usize| u16::try_from(index).unwrap_or(u16::MAX);
    let stages = nodes.iter().zip(ends.windows(2)).map(|(node, ends)| StagePlan {
        devices: vec![DeviceIndex(number(node - 1))],
        blocks: number(ends[0])..number(ends[1]),
        recompute,
    });
    let host = 0..number(ends[0]);
    Ok(Some(Partition {
        micro_batches,
        ahead: 0,
        storage,
        boundary,
        host_recompute: recompute && !host.is_empty(),
        stages: stages.collect(),
        host,
    }))
}
