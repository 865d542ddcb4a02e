//! The plan under which the most loaded device holds the least: Confidant's aim, where [`plan`](crate::plan) looks for time.

use crate::costs::Costs;
use crate::plan::{MAX_DEVICES, Partition, PlanError, StagePlan, check, nothing_allowed};
use crate::profile::{DeviceIndex, ModelProfile, Options, Recompute, Room};

/// Where each position's blocks end, the host's first, and the most bytes that the host and any device hold.
struct Laid {
    ends: Vec<usize>,
    host: u64,
    devices: u64,
}

/// A position that lacks the memory for what it must take at least; the host's, 0, too where blocks are left over.
struct Stuck {
    position: usize,
}

/// The partition under which the host and these devices, in the order in which they stand, hold the least at the most, and of
/// such the one under which the devices do; each has a block at least, as long as there are enough, but for those that lack the
/// memory for one at their place. A step is cut into as many micro-batches as it may be, and
/// activations are computed again if they may be. Of no account: the times.
///
/// What a position holds grows with its blocks alone, so for a given limit the most that each can take, in order, is the best
/// that can be done; the limit is halved down to a byte.
///
/// Of storages and precisions the first is taken. None if nothing fits, or nobody but the host has memory, or more than 64
/// devices are there: [`plan`](crate::plan) knows what to do then, and says why.
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
        return Err(nothing_allowed());
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
    let mut nodes: Vec<usize> = (1..=room.devices.len()).filter(holds_one).take(blocks).collect();
    // The most that each of these positions can take in order, the host first, under a limit for the host and one for the others.
    let under = |nodes: &[usize], limits: [u64; 2]| -> Result<Laid, Stuck> {
        let mut laid = Laid { ends: Vec::new(), host: 0, devices: 0 };
        let mut from = 0;
        for (position, node) in std::iter::once(0).chain(nodes.iter().copied()).enumerate() {
            let behind = nodes.len() - position;
            // 1F1B: of P positions, the host's front and head among them, position p has P - p micro-batches in flight.
            let in_flight = (behind as u64 + 2).min(costs.micro_batches());
            let limit = limits[usize::from(position > 0)].min(costs.memory(node));
            let (least, most) =
                if position == 0 { (0, own.min(blocks - behind)) } else { (from + 1, blocks - behind) };
            let fitting = (least..=most).rev().find(|to| total(node, from, *to, in_flight) <= limit);
            let to = fitting.ok_or(Stuck { position })?;
            let held = if position == 0 { &mut laid.host } else { &mut laid.devices };
            *held = total(node, from, to, in_flight).max(*held);
            laid.ends.push(to);
            from = to;
        }
        // All have what they can take, and blocks are left.
        if from == blocks { Ok(laid) } else { Err(Stuck { position: 0 }) }
    };
    let mut laid = loop {
        if nodes.is_empty() {
            return Ok(None);
        }
        match under(&nodes, [u64::MAX; 2]) {
            Ok(laid) => break laid,
            Err(Stuck { position: 0 }) => return Ok(None),
            // At its place a device has more in flight than it has the memory for: it goes without.
            Err(Stuck { position }) => drop(nodes.remove(position - 1)),
        }
    };
    // First what anybody holds, then what the devices hold beside a host whose ends are more than that anyhow.
    for host_too in [true, false] {
        let all = laid.host;
        let limits = |limit: u64| if host_too { [limit; 2] } else { [all, limit] };
        let held = |laid: &Laid| if host_too { laid.host.max(laid.devices) } else { laid.devices };
        let (mut least, mut most) = (0, held(&laid));
        while most.saturating_sub(least) > 1 {
            let middle = least + (most - least) / 2;
            match under(&nodes, limits(middle)) {
                Ok(lighter) => (most, laid) = (held(&lighter), lighter),
                Err(_) => least = middle,
            }
        }
    }
    let ends = laid.ends;
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
