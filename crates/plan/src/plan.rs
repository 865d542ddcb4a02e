//! What the planner gives: who runs which blocks and how, and what it predicts of it.

use crate::costs::{Costs, Layout, Shape, bits, seconds};
use crate::profile::{
    BadProfile, BoundaryPrecision, DeviceIndex, DeviceProfile, ModelProfile, Node, Options, Room, Storage,
};
use crate::refusal::{self, Refusal};
use crate::search::{self, Found};
use crate::timeline::Timeline;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Samples of a step at most, and devices that are planned for at most.
pub(crate) const MAX_BATCH: u32 = 4096;
pub(crate) const MAX_DEVICES: usize = 64;
/// Micro-batches in flight cost memory: the fewest with which a step takes no longer than this share of the shortest.
const ENOUGH: f64 = 1.02;
/// So many in flight beyond 1F1B's own, if there is memory: a message may wait for a busy thread on its way.
const LEAST_AHEAD: u16 = 2;
/// Another number of micro-batches than the one in force has to take less than this share of its time.
const OTHER_COUNT: f64 = 0.9;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A profile holds a number that cannot be.
    #[error(transparent)]
    Profile(#[from] BadProfile),
    /// The model is too large for the room.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The options leave no choice, or the partition is none.
    #[error("{0}")]
    Wrong(String),
}

/// A contiguous range of blocks and the devices that run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagePlan {
    /// One; more where they share the stage, micro-batch m going to the one at m modulo their number.
    pub devices: Vec<DeviceIndex>,
    /// Its blocks.
    pub blocks: Range<u16>,
    /// Whether it keeps block inputs only and computes the rest again in backward.
    pub recompute: bool,
}

/// Who runs which blocks, and how: the decisions of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Into how many micro-batches a step is cut.
    pub micro_batches: u16,
    /// So many micro-batches more than 1F1B's P − p may be in flight at every position p of P: while one is on its way from
    /// a device to the next, both have another to work on.
    pub ahead: u16,
    /// How frozen weights are held.
    pub storage: Storage,
    /// How hidden states travel.
    pub boundary: BoundaryPrecision,
    /// The host's own blocks, the first ones; may be none.
    pub host: Range<u16>,
    /// Whether the host computes its blocks' activations again in backward.
    pub host_recompute: bool,
    /// In the order of the pipeline.
    pub stages: Vec<StagePlan>,
}

/// Bytes that a device holds at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryParts {
    /// Frozen weights of its blocks.
    pub frozen: u64,
    /// Adapters, their gradients and moments.
    pub adapters: u64,
    /// What backward needs of the micro-batches in flight.
    pub activations: u64,
    /// The block that runs, and messages in and out; more where loading, or what is handed over between steps, takes
    /// more than the activations and this.
    pub working: u64,
    /// On the host, embedding, LM head and loss, and every device's adapters and moments.
    pub ends: u64,
}

impl MemoryParts {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.adapters, self.activations, self.working, self.ends]
            .iter()
            .fold(self.frozen, |sum, part| sum.saturating_add(*part))
    }
}

/// What a plan asks of one device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Whose.
    pub node: Node,
    /// Seconds of a step in which it computes, the update not counted.
    pub busy: f64,
    /// Seconds of the forward jobs of a micro-batch of the larger size; with the embedding on the host.
    pub forward: f64,
    /// Seconds of the backward jobs of one.
    pub backward: f64,
    /// What it holds.
    pub memory: MemoryParts,
    /// What it has.
    pub usable: u64,
}

/// What is predicted of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds of a step: what it takes with these times exactly, nothing between the jobs.
    pub step: f64,
    /// Seconds of it until the last backward pass is done: without update and commit.
    pub flush: f64,
    /// No schedule of this partition takes fewer seconds.
    pub bound: f64,
    /// The share of `flush` in which the devices that compute are idle: (N − 1) / (M + N − 1) for N equal stages and M
    /// micro-batches.
    pub bubble: f64,
    /// The host first, then the pipeline's devices in its order.
    pub loads: Vec<Load>,
}

impl Prediction {
    /// Whether every device has the memory.
    pub fn fits(&self) -> bool {
        self.loads.iter().all(|load| load.memory.total() <= load.usable)
    }

    /// The most that any device holds.
    pub fn peak_memory(&self) -> u64 {
        self.loads.iter().map(|load| load.memory.total()).max().unwrap_or(0)
    }
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The decisions.
    pub partition: Partition,
    /// What they lead to.
    pub prediction: Prediction,
    /// Whether every other plan was shown not to be faster. The tests see it so in every room of up to four devices and six
    /// blocks; in larger ones the proof goes as far as the search's bounded effort.
    pub proven: bool,
}

/// The fastest plan for the room that fits its memory, in the most wanted storage in which one does.
///
/// # Errors
/// Nothing fits ([`PlanError::Refused`], with what would make it fit), or a profile or an option cannot be.
pub fn plan(room: &Room, model: &ModelProfile, options: &Options) -> Result<Plan, PlanError> {
    check(room, model, options)?;
    if room.devices.len() > MAX_DEVICES {
        return plan_for_some(room, model, options);
    }
    let counts = options.counts();
    if counts.is_empty() || options.storages.is_empty() || options.boundaries.is_empty() {
        return Err(nothing_allowed());
    }
    for &storage in &options.storages {
        let mut best: Option<(Found, Plan)> = None;
        for &boundary in &options.boundaries {
            let ways: Vec<Costs> = counts
                .iter()
                .map(|&count| Costs::new(room, model, options, count, storage, boundary))
                .collect();
            let Some(found) = search::fastest(&ways) else { break };
            let worth = |best: &Found| (found.time as f64) < best.time as f64 * (1.0 - Options::WORTH);
            if best.as_ref().is_none_or(|(best, _)| worth(best)) {
                let plan = finish(&ways[found.index], counts[found.index], storage, boundary, &found);
                best = Some((found, plan));
            }
        }
        if let Some((_, plan)) = best {
            return Ok(plan);
        }
    }
    Err(PlanError::Refused(Box::new(refusal::explain(room, model, options))))
}

/// What [`Options`] say that leave nothing to choose from.
pub(crate) fn nothing_allowed() -> PlanError {
    PlanError::Wrong("no number of micro-batches, storage or precision is allowed".into())
}

/// The fastest of many devices, planned for alone.
fn plan_for_some(room: &Room, model: &ModelProfile, options: &Options) -> Result<Plan, PlanError> {
    let mut order: Vec<usize> = (0..room.devices.len()).collect();
    // By blocks a second for each sample; a device without memory is of no use however fast.
    let least = model.blocks.iter().map(|block| block.frozen[Storage::Nf4 as usize]).min().unwrap_or(0);
    let key = |device: &DeviceProfile| {
        let pace = device.slowness * (device.forward.at(1) + device.backward.at(1));
        if device.memory < least { f64::INFINITY } else { pace }
    };
    order.sort_by(|&a, &b| {
        key(&room.devices[a].device).total_cmp(&key(&room.devices[b].device)).then(a.cmp(&b))
    });
    order.truncate(MAX_DEVICES);
    order.sort_unstable();
    let mut plan = plan(&part_of(room, &order), model, options)?;
    let old = |device: &mut DeviceIndex| {
        device.0 = u16::try_from(order[usize::from(device.0)]).unwrap_or(u16::MAX);
    };
    plan.partition.stages.iter_mut().flat_map(|stage| &mut stage.devices).for_each(old);
    for load in &mut plan.prediction.loads {
        if let Node::Device(device) = &mut load.node {
            old(device);
        }
    }
    plan.proven = false;
    Ok(plan)
}

/// The room with these devices alone, whose indices rise.
fn part_of(room: &Room, indices: &[usize]) -> Room {
    let place = |node| match node {
        Node::Host => Some(Node::Host),
        Node::Device(DeviceIndex(old)) => {
            let new = indices.binary_search(&usize::from(old)).ok()?;
            Some(Node::Device(DeviceIndex(u16::try_from(new).ok()?)))
        }
    };
    let wires = room.wires.iter().filter_map(|((a, b), wire)| Some(((place(*a)?, place(*b)?), *wire)));
    Room {
        host: room.host.clone(),
        devices: indices.iter().filter_map(|&index| room.devices.get(index).cloned()).collect(),
        wires: wires.collect(),
    }
}

fn finish(
    costs: &Costs,
    micro_batches: u16,
    storage: Storage,
    boundary: BoundaryPrecision,
    found: &Found,
) -> Plan {
    let mut layout = Layout::default();
    layout.lay(costs, &found.shape, None);
    let block = |block: usize| u16::try_from(block).unwrap_or(u16::MAX);
    let mut from = found.shape.host;
    let stages =
        found.shape.stages.iter().zip(layout.positions.iter().skip(1)).map(|((mask, len), position)| {
            let blocks = block(from)..block(from + len);
            from += len;
            let devices = bits(*mask).map(|bit| DeviceIndex(block(bit))).collect();
            StagePlan { devices, blocks, recompute: position.recompute }
        });
    let partition = Partition {
        micro_batches,
        ahead: 0,
        storage,
        boundary,
        host: 0..block(found.shape.host),
        host_recompute: layout.positions[0].recompute,
        stages: stages.collect(),
    };
    let prediction = prediction(costs, &layout, &found.shape);
    Plan { partition, prediction, proven: found.proven }
}

/// What a step takes with the given partition, whatever made it; it may need more memory than there is
/// ([`Prediction::fits`]).
///
/// # Errors
/// A profile cannot be, or the partition does not give every block to one stage of the room.
pub fn predict(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &Partition,
) -> Result<Prediction, PlanError> {
    let mut flags = vec![partition.host_recompute];
    flags.extend(partition.stages.iter().map(|stage| stage.recompute));
    let (_, prediction) = of_those_used(room, partition, |room, partition| {
        let shape = checked_shape(room, model, options, partition)?;
        Ok(lay(room, model, options, &shape, partition.clone(), Some(&flags)))
    })?;
    Ok(prediction)
}

/// The same devices with the same blocks, the rest as is best of what [`Options`] leave open: those compute activations again
/// whose memory demands it, whatever the partition's own flags say; a step is cut in another number of micro-batches if that
/// takes less than nine tenths of the time, or is what makes it fit; and no more of them are in flight than it takes to be
/// within a fiftieth of the fastest, and two more than 1F1B's own as long as they fit: nothing measures how long a message waits
/// for a busy thread. With what a step of it takes.
///
/// # Errors
/// As [`predict`]'s.
pub fn tune(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &Partition,
) -> Result<(Partition, Prediction), PlanError> {
    of_those_used(room, partition, |room, partition| {
        let shape = checked_shape(room, model, options, partition)?;
        let with = |count: u16, ahead: u16| {
            let partition = Partition { micro_batches: count, ahead, ..partition.clone() };
            lay(room, model, options, &shape, partition, None)
        };
        let at = LEAST_AHEAD.min(options.most_ahead);
        // What fits only with fewer in flight counts as well.
        let with_count = |count| {
            let usual = with(count, at);
            if at == 0 || usual.1.fits() { usual } else { with(count, 0) }
        };
        let usual = with_count(partition.micro_batches);
        let mut best = usual.clone();
        for count in options.counts().into_iter().filter(|count| *count != partition.micro_batches) {
            let other = with_count(count);
            let worth = !usual.1.fits() || other.1.step < OTHER_COUNT * usual.1.step;
            if other.1.fits() && worth && (!best.1.fits() || other.1.step < best.1.step) {
                best = other;
            }
        }
        let count = best.0.micro_batches;
        let mut ways: Vec<_> = (0..=options.most_ahead).map(|ahead| with(count, ahead)).collect();
        let fitting = ways.iter().filter(|way| way.1.fits()).map(|way| way.1.step);
        let enough = fitting.fold(f64::INFINITY, f64::min) * ENOUGH;
        let is_enough = |way: &(Partition, Prediction)| way.1.fits() && way.1.step <= enough;
        let least = ways.iter().rposition(|way| way.0.ahead <= LEAST_AHEAD && is_enough(way));
        let first = least.or_else(|| ways.iter().position(is_enough));
        Ok(ways.swap_remove(first.unwrap_or(0)))
    })
}

/// A partition in which those compute activations again whose memory demands it, as far as [`Options::recompute`] lets
/// them, whatever its own flags say; and what a step of it takes.
///
/// # Errors
/// As [`predict`]'s.
pub fn settle(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &Partition,
) -> Result<(Partition, Prediction), PlanError> {
    of_those_used(room, partition, |room, partition| {
        let shape = checked_shape(room, model, options, partition)?;
        Ok(lay(room, model, options, &shape, partition.clone(), None))
    })
}

fn checked_shape(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &Partition,
) -> Result<Shape, PlanError> {
    check(room, model, options)?;
    shape_of(room, model, options, partition)
}

/// What a partition takes whose `shape` was checked, with these flags of who computes again, or with those that memory demands.
fn lay(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    shape: &Shape,
    mut partition: Partition,
    recompute: Option<&[bool]>,
) -> (Partition, Prediction) {
    let Partition { micro_batches, ahead, storage, boundary, .. } = partition;
    let costs = Costs::new(room, model, options, micro_batches, storage, boundary).with_ahead(ahead);
    let mut layout = Layout::default();
    layout.lay(&costs, shape, recompute);
    let mut flags = layout.positions.iter().map(|position| position.recompute);
    partition.host_recompute = flags.next().unwrap_or(false);
    for (stage, recompute) in partition.stages.iter_mut().zip(flags) {
        stage.recompute = recompute;
    }
    (partition, prediction(&costs, &layout, shape))
}

/// Where the room has more devices than are planned for at once, those of the partition alone.
fn of_those_used(
    room: &Room,
    partition: &Partition,
    planner: impl Fn(&Room, &Partition) -> Result<(Partition, Prediction), PlanError>,
) -> Result<(Partition, Prediction), PlanError> {
    if room.devices.len() <= MAX_DEVICES {
        return planner(room, partition);
    }
    let devices = partition.stages.iter().flat_map(|stage| &stage.devices);
    let mut used: Vec<usize> = devices.map(|device| usize::from(device.0)).collect();
    used.sort_unstable();
    used.dedup();
    if used.len() > MAX_DEVICES || used.last().is_some_and(|last| *last >= room.devices.len()) {
        let text = format!(
            "the partition wants {} devices, or one that is not in the room; {MAX_DEVICES} can be planned for",
            used.len()
        );
        return Err(PlanError::Wrong(text));
    }
    let renumber = |partition: &mut Partition, number: &dyn Fn(usize) -> usize| {
        for device in partition.stages.iter_mut().flat_map(|stage| &mut stage.devices) {
            device.0 = u16::try_from(number(device.0.into())).unwrap_or(u16::MAX);
        }
    };
    let old = |new: usize| used.get(new).copied().unwrap_or(usize::MAX);
    let mut few = partition.clone();
    renumber(&mut few, &|device| used.binary_search(&device).unwrap_or_default());
    let (mut partition, mut prediction) = planner(&part_of(room, &used), &few)?;
    renumber(&mut partition, &old);
    for load in &mut prediction.loads {
        if let Node::Device(device) = &mut load.node {
            device.0 = u16::try_from(old(device.0.into())).unwrap_or(u16::MAX);
        }
    }
    Ok((partition, prediction))
}

/// Numbers that the search may rely on.
pub(crate) fn check(room: &Room, model: &ModelProfile, options: &Options) -> Result<(), PlanError> {
    room.check()?;
    model.check()?;
    if !(1..=MAX_BATCH).contains(&options.batch_size) {
        let size = options.batch_size;
        return Err(PlanError::Wrong(format!(
            "a batch of {size} samples cannot be planned for; choose 1 to {MAX_BATCH}"
        )));
    }
    if model.blocks.is_empty() || model.blocks.len() > 1024 {
        let blocks = model.blocks.len();
        return Err(PlanError::Wrong(format!(
            "a model of {blocks} blocks cannot be planned for; 1 to 1024 can"
        )));
    }
    Ok(())
}

fn shape_of(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &Partition,
) -> Result<Shape, PlanError> {
    let wrong = |text: String| Err(PlanError::Wrong(text));
    if !(1..=options.batch_size).contains(&partition.micro_batches.into()) {
        let (batch, count) = (options.batch_size, partition.micro_batches);
        return wrong(format!("a batch of {batch} samples cannot be cut in {count} micro-batches"));
    }
    let mut next = 0;
    let mut used = 0u64;
    let mut shape = Shape::default();
    let nobody = Vec::new();
    let rows = partition.stages.iter().map(|stage| (&stage.blocks, &stage.devices));
    for (index, (blocks, devices)) in std::iter::once((&partition.host, &nobody)).chain(rows).enumerate() {
        let empty = blocks.start >= blocks.end;
        if (!empty && blocks.start != next) || (index > 0 && empty) {
            return wrong(format!(
                "stage {index} of the partition has blocks {blocks:?} where those from {next} on are due"
            ));
        }
        if index > 0 && devices.is_empty() {
            return wrong(format!("stage {index} of the partition has no device"));
        }
        let mut mask = 0u64;
        for &DeviceIndex(device) in devices {
            let bit = 1u64.checked_shl(device.into()).filter(|bit| used & bit == 0);
            let Some(bit) = bit.filter(|_| usize::from(device) < room.devices.len()) else {
                return wrong(format!(
                    "stage {index} of the partition wants device {device}, which is not in the room or has a stage"
                ));
            };
            used |= bit;
            mask |= bit;
        }
        let len = usize::from(blocks.end.saturating_sub(blocks.start));
        next = if empty { next } else { blocks.end };
        if index == 0 { shape.host = len } else { shape.stages.push((mask, len)) }
    }
    if usize::from(next) != model.blocks.len() {
        return wrong(format!("the partition ends before block {next} of {}", model.blocks.len()));
    }
    Ok(shape)
}

pub(crate) fn prediction(costs: &Costs, layout: &Layout, shape: &Shape) -> Prediction {
    let mut timeline = Timeline::default();
    let closed = timeline.run(costs, layout);
    let mut loads = Vec::with_capacity(layout.lanes.len());
    let mut from = 0;
    let lens = std::iter::once(shape.host).chain(shape.stages.iter().map(|row| row.1));
    for (position, len) in layout.positions.iter().zip(lens) {
        let to = from + len;
        for lane in layout.of(position) {
            loads.push(Load {
                node: node(lane.node),
                busy: seconds(timeline.busy(lane.node)),
                forward: seconds(lane.forward[1]),
                backward: seconds(lane.backward[1]),
                memory: costs.parts(lane.node, from, to, position.in_flight, position.recompute),
                usable: costs.memory(lane.node),
            });
        }
        from = to;
    }
    let flush = seconds(timeline.flush());
    let working: Vec<f64> = loads.iter().map(|load| load.busy).filter(|busy| *busy > 0.0).collect();
    let possible = working.len() as f64 * flush;
    let bubble = if possible > 0.0 { 1.0 - working.iter().sum::<f64>() / possible } else { 0.0 };
    Prediction {
        step: seconds(layout.step(costs, closed)),
        flush,
        bound: seconds(layout.bound_and_guess(costs).0),
        bubble,
        loads,
    }
}

pub(crate) fn node(index: usize) -> Node {
    let device = |index| Node::Device(DeviceIndex(u16::try_from(index).unwrap_or(u16::MAX)));
    index.checked_sub(1).map_or(Node::Host, device)
}
