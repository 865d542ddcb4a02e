//! Profiles as numbers to search over: nanoseconds and bytes of every device, range of blocks and wire, for one way to cut
//! the batch.

use crate::plan::MemoryParts;
use crate::profile::{BoundaryPrecision, ModelProfile, Node, Options, Recompute, Room, Storage};

/// Almost an hour: longer jobs are cut to it, so that the sums of a step's do not overflow.
const LONGEST: f64 = 3.2e12;

/// Whole nanoseconds, so that jobs that end together end together in every order of adding up.
pub(crate) fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9 + 0.5).min(LONGEST) as u64
}

pub(crate) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 * 1e-9
}

/// A row of a shape: the devices (bit i: `Room::devices[i]`) that share a stage, and its blocks.
pub(crate) type Row = (u64, usize);

/// Who runs how many blocks, from the front on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    /// The host's own.
    pub(crate) host: usize,
    pub(crate) stages: Vec<Row>,
}

pub(crate) fn bits(mask: u64) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(bit)
    })
}

#[derive(Clone, Debug, Default)]
struct Unit {
    /// Seconds of a block of work 1, small and large micro-batches.
    forward: [f64; 2],
    backward: [f64; 2],
    update: f64,
    memory: u64,
}

/// The numbers. Node 0 is the host, node 1 + i is device i.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    pub(crate) blocks: usize,
    pub(crate) devices: usize,
    /// For every micro-batch whether it is one of the larger ones.
    pub(crate) large: Vec<bool>,
    /// How many micro-batches are small, and large.
    pub(crate) counts: [u64; 2],
    pub(crate) front: [u64; 2],
    pub(crate) head: [u64; 2],
    pub(crate) recompute: Recompute,
    pub(crate) host_blocks: usize,
    pub(crate) max_replicas: usize,
    pub(crate) commit_overlaps: bool,
    /// See [`crate::Partition::ahead`].
    ahead: u64,
    batch: u64,
    /// Samples of a large micro-batch.
    samples: u64,
    units: Vec<Unit>,
    nodes: usize,
    /// Sending a small and a large micro-batch, from × to.
    transfer: Vec<[u64; 2]>,
    latency: Vec<u64>,
    /// Nanoseconds a byte, from × to.
    pace: Vec<f64>,
    /// Sums over the blocks before.
    work: Vec<f64>,
    frozen: Vec<u64>,
    adapters: Vec<u64>,
    state: Vec<u64>,
    kept: Vec<u64>,
    input: Vec<u64>,
    open: RangeMax,
    open_recompute: RangeMax,
    buffers: u64,
    /// What a micro-batch in flight keeps of a stage's output, for every sample.
    output: u64,
    loading: u64,
    ends: MemoryParts,
}

/// The largest of any range, in constant time.
#[derive(Clone, Debug)]
struct RangeMax(Vec<Vec<u64>>);

impl RangeMax {
    fn new(values: Vec<u64>) -> Self {
        let mut levels = vec![values];
        let mut width = 1;
        while let Some(below) = levels.last().filter(|below| below.len() > width) {
            let pairs = below.iter().zip(&below[width..]).map(|(a, b)| *a.max(b));
            levels.push(pairs.collect());
            width *= 2;
        }
        Self(levels)
    }

    fn of(&self, from: usize, to: usize) -> u64 {
        let Some(level) = (to - from).checked_ilog2() else { return 0 };
        let values = &self.0[level as usize];
        values[from].max(values[to - (1 << level)])
    }
}

/// Whether a range of blocks fits, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Keeping,
    Recomputing,
    /// Bytes too much at the least.
    Over(u64),
}

impl Costs {
    pub(crate) fn new(
        room: &Room,
        model: &ModelProfile,
        options: &Options,
        micro_batches: u16,
        storage: Storage,
        boundary: BoundaryPrecision,
    ) -> Self {
        let (count, batch) = (u64::from(micro_batches.max(1)), u64::from(options.batch_size));
        // The engine cuts micro-batch m from m · batch / M on.
        let size = |m: u64| (m + 1) * batch / count - m * batch / count;
        let (small, samples) = (batch / count, batch.div_ceil(count));
        let large: Vec<bool> = (0..count).map(|m| size(m) > small).collect();
        let larger = large.iter().filter(|large| **large).count() as u64;
        let sizes = [small, samples].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        let nodes = room.devices.len() + 1;
        let node = |index: usize| match index.checked_sub(1) {
            None => Node::Host,
            Some(index) => Node::Device(crate::DeviceIndex(u16::try_from(index).unwrap_or(u16::MAX))),
        };
        let units = (0..nodes).map(|index| {
            let Some(device) = room.device(node(index)) else { return Unit::default() };
            Unit {
                forward: sizes.map(|size| device.slowness * device.forward.at(size)),
                backward: sizes.map(|size| device.slowness * device.backward.at(size)),
                update: device.slowness * device.update,
                memory: device.memory,
            }
        });
        let ends = |curve: &crate::Curve| sizes.map(|s| nanoseconds(room.host.device.slowness * curve.at(s)));
        let bytes = sizes.map(|size| {
            boundary.bytes(u64::from(size).saturating_mul(model.tokens).saturating_mul(model.hidden))
        });
        // The few that were measured are put in afterwards: a search for each pair would be most of the work.
        let mut wires: Vec<_> =
            (0..nodes * nodes).map(|pair| room.unmeasured(node(pair / nodes), node(pair % nodes))).collect();
        let place = |node| match node {
            Node::Host => Some(0),
            Node::Device(crate::DeviceIndex(index)) => Some(1 + usize::from(index)).filter(|at| *at < nodes),
        };
        for ((from, to), wire) in &room.wires {
            if let (Some(from), Some(to)) = (place(*from), place(*to))
                && from != to
            {
                wires[from * nodes + to] = *wire;
            }
        }
        let sums = |of: &dyn Fn(&crate::BlockProfile) -> u64| {
            let mut sum = 0u64;
            let rest = model.blocks.iter().map(|block| {
                sum = sum.saturating_add(of(block));
                sum
            });
            std::iter::once(0).chain(rest).collect::<Vec<u64>>()
        };
        let mut work = vec![0.0];
        work.extend(model.blocks.iter().scan(0.0, |sum, block| {
            *sum += block.work;
            Some(*sum)
        }));
        let tokens = model.tokens;
        let state = sums(&|block| block.state);
        let all_state = state.last().copied().unwrap_or(0);
        let logits = model.ends.logits.bytes(tokens).saturating_mul(samples).min(model.ends.most_logits);
        let range_max =
            |of: &dyn Fn(&crate::BlockProfile) -> u64| RangeMax::new(model.blocks.iter().map(of).collect());
        Self {
            blocks: model.blocks.len(),
            devices: room.devices.len(),
            large,
            counts: [count - larger, larger],
            front: ends(&room.host.front),
            head: ends(&room.host.head),
            recompute: options.recompute,
            host_blocks: options.host_blocks.into(),
            max_replicas: usize::from(options.max_replicas).max(1),
            commit_overlaps: options.commit_overlaps,
            ahead: 0,
            batch,
            samples,
            units: units.collect(),
            nodes,
            transfer: wires
                .iter()
                .map(|wire| bytes.map(|bytes| nanoseconds(bytes as f64 / wire.bandwidth)))
                .collect(),
            latency: wires.iter().map(|wire| nanoseconds(wire.round_trip / 2.0)).collect(),
            pace: wires.iter().map(|wire| 1e9 / wire.bandwidth).collect(),
            work,
            frozen: sums(&|block| block.frozen[storage as usize]),
            adapters: sums(&|block| block.adapters),
            state,
            kept: sums(&|block| block.kept.bytes(tokens)),
            input: sums(&|block| block.input.bytes(tokens)),
            open: range_max(&|block| block.open.bytes(tokens)),
            open_recompute: range_max(&|block| block.open_recompute.bytes(tokens)),
            buffers: model.buffers.bytes(tokens).saturating_mul(samples),
            output: model.hidden.saturating_mul(tokens).saturating_mul(4),
            loading: model.loading,
            ends: MemoryParts {
                ends: model.ends.frozen[storage as usize]
                    .saturating_add(model.ends.trained)
                    .saturating_add(model.ends.open.bytes(tokens).saturating_mul(samples))
                    .saturating_add(logits)
                    // The states that are complete, and the same on their way to the disk.
                    .saturating_add(all_state.saturating_mul(2)),
                ..MemoryParts::default()
            },
        }
    }

    /// The same with so many micro-batches more in flight.
    pub(crate) fn with_ahead(self, ahead: u16) -> Self {
        Self { ahead: ahead.into(), ..self }
    }

    /// How many micro-batches there are.
    pub(crate) fn micro_batches(&self) -> u64 {
        self.counts[0] + self.counts[1]
    }

    /// Over all micro-batches, of what a small and a large one take.
    pub(crate) fn sum(&self, times: [u64; 2]) -> u64 {
        times[0] * self.counts[0] + times[1] * self.counts[1]
    }

    pub(crate) fn memory(&self, node: usize) -> u64 {
        self.units[node].memory
    }

    /// A device with so much memory could hold all blocks by itself, every micro-batch in flight.
    pub(crate) fn memory_of_everything(&self) -> u64 {
        let recompute = self.recompute != Recompute::Never;
        self.parts(0, 0, self.blocks, self.micro_batches(), recompute).total()
    }

    /// What a node holds with these blocks and so many micro-batches in flight.
    pub(crate) fn parts(
        &self,
        node: usize,
        from: usize,
        to: usize,
        in_flight: u64,
        recompute: bool,
    ) -> MemoryParts {
        let own = if node == 0 { self.ends } else { MemoryParts::default() };
        if from == to {
            return own;
        }
        let of = |sums: &[u64]| sums[to] - sums[from];
        let samples = in_flight.min(self.micro_batches()).saturating_mul(self.samples).min(self.batch);
        let (kept, open) =
            if recompute { (&self.input, &self.open_recompute) } else { (&self.kept, &self.open) };
        let output = if recompute { 0 } else { self.output };
        let activations = of(kept).saturating_add(output).saturating_mul(samples);
        let working = open.of(from, to).saturating_mul(self.samples).saturating_add(self.buffers);
        // After a step there are no activations, but the states: read back, as bytes, and as a message; the host sends
        // none, and what it has already is among the ends. Before the first step there are neither, but what is being
        // loaded. What is free then is used again.
        let copies = if node == 0 { 1 } else { 3 };
        let between = of(&self.state).saturating_mul(copies).max(self.loading).saturating_sub(activations);
        MemoryParts {
            frozen: of(&self.frozen),
            adapters: of(&self.adapters),
            activations,
            working: working.max(between),
            ..own
        }
    }

    pub(crate) fn fit(&self, node: usize, from: usize, to: usize, in_flight: u64) -> Fit {
        let over = |recompute| {
            self.parts(node, from, to, in_flight, recompute).total().saturating_sub(self.units[node].memory)
        };
        let keeping = if self.recompute == Recompute::Always { u64::MAX } else { over(false) };
        if keeping == 0 {
            return Fit::Keeping;
        }
        let recomputing = if self.recompute == Recompute::Never { u64::MAX } else { over(true) };
        match recomputing {
            0 => Fit::Recomputing,
            _ => Fit::Over(keeping.min(recomputing)),
        }
    }

    /// Forward and backward time of a range of blocks, for small and for large micro-batches.
    pub(crate) fn jobs(&self, node: usize, from: usize, to: usize, recompute: bool) -> ([u64; 2], [u64; 2]) {
        let work = self.work[to] - self.work[from];
        let unit = &self.units[node];
        let again = if recompute { unit.forward } else { [0.0; 2] };
        let forward = unit.forward.map(|unit| nanoseconds(unit * work));
        let backward = [0, 1].map(|size: usize| nanoseconds((unit.backward[size] + again[size]) * work));
        (forward, backward)
    }

    /// The least time that a micro-batch spends in one block's worth of work of a node, there and back.
    pub(crate) fn pace_of(&self, node: usize) -> f64 {
        let unit = &self.units[node];
        (unit.forward[0] + unit.backward[0]) * 1e9
    }

    pub(crate) fn work(&self, from: usize, to: usize) -> f64 {
        self.work[to] - self.work[from]
    }

    /// The host's own work of a step with the first blocks.
    pub(crate) fn least_of_host(&self, blocks: usize) -> u64 {
        let (forward, backward) = self.jobs(0, 0, blocks, false);
        self.sum(
            [0, 1].map(|size: usize| forward[size] + backward[size] + self.front[size] + self.head[size]),
        )
    }

    /// Whether two devices are the same in everything that counts.
    pub(crate) fn twins(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.units[a], &self.units[b]);
        let same = one.memory == other.memory
            && one.forward == other.forward
            && one.backward == other.backward
            && one.update == other.update;
        let wires = |x: usize, y: usize, z: usize| {
            let (p, q) = (x * self.nodes + z, y * self.nodes + z);
            let (r, s) = (z * self.nodes + x, z * self.nodes + y);
            let equal = |p: usize, q: usize| {
                self.transfer[p] == self.transfer[q]
                    && self.latency[p] == self.latency[q]
                    && self.pace[p] == self.pace[q]
            };
            equal(p, q) && equal(r, s)
        };
        let there_and_back = {
            let (p, q) = (a * self.nodes + b, b * self.nodes + a);
            self.transfer[p] == self.transfer[q]
                && self.latency[p] == self.latency[q]
                && self.pace[p] == self.pace[q]
        };
        same && there_and_back && (0..self.nodes).all(|z| z == a || z == b || wires(a, b, z))
    }

    pub(crate) fn transfer(&self, from: usize, to: usize) -> [u64; 2] {
        self.transfer[from * self.nodes + to]
    }

    pub(crate) fn latency(&self, from: usize, to: usize) -> u64 {
        self.latency[from * self.nodes + to]
    }

    /// The update of a range of blocks.
    fn update(&self, node: usize, from: usize, to: usize) -> u64 {
        nanoseconds(self.units[node].update * self.work(from, to))
    }

    /// From the order to update until the node has updated, and until the host has its state: without and with sending.
    fn tail(&self, node: usize, from: usize, to: usize, sends: bool) -> (u64, u64) {
        let update = self.latency(0, node) + self.update(node, from, to);
        if node == 0 || !sends {
            return (update, update);
        }
        let bytes = (self.state[to] - self.state[from]) as f64;
        let sent = ((bytes * self.pace[node * self.nodes]).min(LONGEST)) as u64;
        (update, update + sent + self.latency(node, 0))
    }

    /// Adding up the gradients of a stage over its devices in a ring (Patarasuk and Yuan 2009): each sends
    /// 2 (r − 1) / r of them, over the slowest of the wires.
    fn reduce(&self, mask: u64, from: usize, to: usize) -> u64 {
        let count = u64::from(mask.count_ones());
        if count < 2 {
            return 0;
        }
        let pairs =
            || bits(mask).flat_map(|a| bits(mask).filter(move |b| *b != a).map(move |b| (a + 1, b + 1)));
        let pace = pairs().map(|(a, b)| self.pace[a * self.nodes + b]).fold(0.0, f64::max);
        let latency = pairs().map(|(a, b)| self.latency(a, b)).max().unwrap_or(0);
        // Of the state, adapters and two moments, a third.
        let bytes = (self.state[to] - self.state[from]) as f64 / 3.0;
        let rounds = 2 * (count - 1);
        let share = bytes * pace * rounds as f64 / count as f64;
        share.min(LONGEST) as u64 + rounds * latency
    }
}

/// One device's part of one position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneCost {
    pub(crate) node: usize,
    pub(crate) forward: [u64; 2],
    pub(crate) backward: [u64; 2],
}

/// A position of the pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// Its devices in [`Layout::lanes`]: micro-batch m is for the one at m modulo their number.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Micro-batches that each of them may hold.
    pub(crate) limit: u64,
    /// And those that each does hold: a share of a step's.
    pub(crate) in_flight: u64,
    pub(crate) recompute: bool,
    /// The time that its devices take to add up their gradients.
    pub(crate) reduce: u64,
}

/// A shape with its costs: position 0 is the front, the last one is the last stage; the head follows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) positions: Vec<Position>,
    pub(crate) lanes: Vec<LaneCost>,
    /// Bytes that the devices lack.
    pub(crate) over: u64,
    /// From the end of the last backward pass until all have updated, and until the host has their states.
    tail: (u64, u64),
}

impl Layout {
    /// Lays a shape out. Recomputation is as given, or where memory demands it.
    pub(crate) fn lay(&mut self, costs: &Costs, shape: &Shape, recompute: Option<&[bool]>) {
        self.positions.clear();
        self.lanes.clear();
        (self.over, self.tail) = (0, (0, 0));
        // The head and the front count as one device each.
        let mut behind: u64 = 2 + shape.stages.iter().map(|row| u64::from(row.0.count_ones())).sum::<u64>();
        let mut start = 0;
        for (index, (mask, len)) in
            std::iter::once((0, shape.host)).chain(shape.stages.iter().copied()).enumerate()
        {
            let (from, to) = (start, start + len);
            start = to;
            let count = u64::from(mask.count_ones()).max(1);
            let limit = (behind + costs.ahead).div_ceil(count).max(1);
            behind -= count;
            // A host that trains alone goes all the way with one before it takes the next.
            let alone = shape.stages.is_empty();
            let in_flight = if alone { 1 } else { limit.min(costs.micro_batches().div_ceil(count)) };
            let first = self.lanes.len();
            // The host's bit is not in the mask: its node is 0, the others' are one more than their bits.
            let nodes = || (index == 0).then_some(0).into_iter().chain(bits(mask).map(|bit| bit + 1));
            let mut again = recompute.and_then(|flags| flags.get(index).copied());
            if again.is_none() {
                let mut choice = false;
                for node in nodes() {
                    match costs.fit(node, from, to, in_flight) {
                        Fit::Keeping => {}
                        Fit::Recomputing => choice = true,
                        Fit::Over(bytes) => {
                            choice = true;
                            self.over = self.over.saturating_add(bytes);
                        }
                    }
                }
                again = Some(choice && from < to && costs.recompute != Recompute::Never);
            }
            let again = again.unwrap_or(false);
            for (replica, node) in nodes().enumerate() {
                let (mut forward, backward) = costs.jobs(node, from, to, again);
                if index == 0 {
                    forward = [forward[0] + costs.front[0], forward[1] + costs.front[1]];
                }
                self.lanes.push(LaneCost { node, forward, backward });
                let (updated, sent) = costs.tail(node, from, to, replica == 0);
                self.tail = (self.tail.0.max(updated), self.tail.1.max(sent));
            }
            let reduce = costs.reduce(mask, from, to);
            let count = self.lanes.len() - first;
            self.positions.push(Position { first, count, limit, in_flight, recompute: again, reduce });
        }
    }

    /// The whole step, given when the host knows that every gradient is added up.
    pub(crate) fn step(&self, costs: &Costs, closed: u64) -> u64 {
        if costs.commit_overlaps { (closed + self.tail.0).max(self.tail.1) } else { closed + self.tail.1 }
    }

    pub(crate) fn of(&self, position: &Position) -> &[LaneCost] {
        &self.lanes[position.first..position.first + position.count]
    }

    /// `(no step is shorter, about how long it is)`.
    ///
    /// The bound is [`Suffix::least`] of all positions, the host's own work, and the sending of every wire. The guess is
    /// the way of the first micro-batch and the slowest rate for each of the others, as in PipeDream (Narayanan et al.
    /// 2019, § 3.1), with a rate for the limit on micro-batches in flight.
    pub(crate) fn bound_and_guess(&self, costs: &Costs) -> (u64, u64) {
        let count = costs.micro_batches();
        let mut suffix = Suffix::new(costs);
        let mut slow_way = costs.head[0];
        let (mut rate, mut serial) = (0, 0);
        for index in (0..self.positions.len()).rev() {
            let position = &self.positions[index];
            let lanes = self.of(position);
            let next = self.positions.get(index + 1).map(|next| self.of(next));
            let hop = Hop::between(costs, lanes, next, index > 0 || lanes[0].backward[0] > 0);
            suffix.push(costs, lanes, &hop, position.limit);
            let slowest = lanes.iter().map(|lane| lane.forward[0] + lane.backward[0]).max().unwrap_or(0);
            slow_way += slowest + hop.longest;
            serial = serial.max(hop.sending);
            let replicas = position.count as u64;
            rate = rate.max(slowest.div_ceil(replicas));
            if count > position.limit * replicas {
                rate = rate.max(slow_way.div_ceil(position.limit * replicas));
            }
        }
        let host = self.lanes[0];
        let ends = [0, 1].map(|size: usize| host.forward[size] + costs.head[size]);
        // When the last head is done, so are all fronts; then the last gradient goes all the way back.
        let whole = [0, 1].map(|size: usize| ends[size] + host.backward[size]);
        let host_work = (costs.sum(ends) + suffix.back).max(costs.sum(whole));
        // Replicas share the wires' work.
        let has_replicas = self.lanes.len() > self.positions.len();
        let sent = if has_replicas { suffix.way } else { suffix.way + (count - 1) * serial };
        let bound = suffix.least.max(host_work).max(sent);
        rate = rate.max(costs.sum(whole) / count).max(serial);
        let guess = (slow_way + (count - 1) * rate).max(bound);
        (self.step(costs, bound), self.step(costs, guess))
    }
}

/// The wires from one position to the next, there and back, for a small micro-batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hop {
    /// There at the least, and back.
    least: [u64; 2],
    /// There and back at the most.
    longest: u64,
    /// The most that one wire works on it.
    sending: u64,
}

impl Hop {
    /// From these lanes to the next ones, or to the head; back with a gradient, or only with a word.
    pub(crate) fn between(costs: &Costs, from: &[LaneCost], to: Option<&[LaneCost]>, gradient: bool) -> Self {
        let head = [LaneCost { node: 0, forward: [0; 2], backward: [0; 2] }];
        let mut hop = Self { least: [u64::MAX; 2], ..Self::default() };
        for a in from {
            for b in to.unwrap_or(&head) {
                let there = costs.transfer(a.node, b.node)[0];
                let here = if gradient { costs.transfer(b.node, a.node)[0] } else { 0 };
                let ways = [there + costs.latency(a.node, b.node), here + costs.latency(b.node, a.node)];
                hop.least = [hop.least[0].min(ways[0]), hop.least[1].min(ways[1])];
                hop.longest = hop.longest.max(ways[0] + ways[1]);
                hop.sending = hop.sending.max(there).max(here);
            }
        }
        hop
    }
}

/// What is known of the last positions of a pipeline, whatever comes before them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suffix {
    /// The way of a small micro-batch through them, there and back.
    pub(crate) way: u64,
    /// The part of it that goes back.
    back: u64,
    /// They take no less than this: the longest of what must be done one after the other, which is for each position
    ///
    /// * its own work on all micro-batches, after the first one's way there and before the last one's way back;
    /// * the chain that its limit makes: a micro-batch enters it when the one `limit` before has come back.
    pub(crate) least: u64,
}

impl Suffix {
    /// The head alone.
    pub(crate) fn new(costs: &Costs) -> Self {
        Self { way: costs.head[0], back: 0, least: costs.sum(costs.head) }
    }

    /// With the position before.
    pub(crate) fn push(&mut self, costs: &Costs, lanes: &[LaneCost], hop: &Hop, limit: u64) {
        let (count, replicas) = (costs.micro_batches(), lanes.len() as u64);
        let forward = lanes.iter().map(|lane| lane.forward[0]).min().unwrap_or(0);
        let backward = lanes.iter().map(|lane| lane.backward[0]).min().unwrap_or(0);
        let own = match lanes {
            [lane] => costs.sum([0, 1].map(|size: usize| lane.forward[size] + lane.backward[size])),
            lanes => {
                let share = |i: u64| (count + replicas - 1 - i) / replicas;
                let works = (0..).zip(lanes).map(|(i, lane)| (lane.forward[0] + lane.backward[0]) * share(i));
                works.max().unwrap_or(0)
            }
        };
        let trip = forward + backward + hop.least[0] + hop.least[1];
        self.way += trip;
        self.back += backward + hop.least[1];
        // The most loaded of its devices has at least so many rounds.
        let rounds = count.div_ceil(replicas).div_ceil(limit);
        self.least = (self.least + trip).max(own).max(rounds * self.way);
    }
}
