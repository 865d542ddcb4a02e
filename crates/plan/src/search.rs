//! The search: dynamic programming for good first plans, local moves to better them, and a complete search with bounds.
//!
//! What is minimised is the exact step time of [`Timeline`], under every device's memory. Three parts share the best plan
//! found so far:
//! 1. For several orders of the devices, dynamic programming from the end of the pipeline over (device, blocks behind it):
//!    the shortest way of one micro-batch among the partitions whose slowest stage stays under a cap, for falling caps. This
//!    is the partition of PipeDream (Narayanan et al. 2019, § 3.1) for unequal devices of limited memory, where a device may
//!    be left out, as in Confidant's (Chen et al. 2023) and PAC's (Ouyang et al. 2024).
//! 2. Moves of blocks, devices and order, as long as they help.
//! 3. Depth first from the end of the pipeline over every group of devices and every length, leaving out what
//!    [`Suffix::least`] shows to be no better. If it ends within its effort, the plan is optimal.
//!
//! Nothing here depends on time or chance: the same room gives the same plan.

use crate::costs::{Costs, Fit, Hop, LaneCost, Layout, Shape, Suffix, bits};
use crate::timeline::Timeline;

/// Nodes of the complete search, over all ways to cut the batch.
const NODES: u32 = 150_000;
/// Steps run by it.
const STEPS: u32 = 2_000;
/// Plans that local moves look at, for each way to cut the batch that is tried, and steps that they run.
const LOOKS: u32 = 4_000;
const RUNS: u32 = 150;
/// Ways to cut the batch that local moves work on.
const REFINED: usize = 2;

/// The best plan of a search.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Which of the given costs.
    pub(crate) index: usize,
    pub(crate) shape: Shape,
    /// Nanoseconds of a step.
    pub(crate) time: u64,
    pub(crate) proven: bool,
}

/// The fastest plan that fits, over several ways to cut the batch.
pub(crate) fn fastest(ways: &[Costs]) -> Option<Found> {
    let mut search = Search::default();
    let mut starts: Vec<(u64, u64, usize, Shape)> = Vec::new();
    for (index, costs) in ways.iter().enumerate() {
        if let Some((over, guess, shape)) = search.first(costs) {
            starts.push((over, guess, index, shape));
        }
    }
    starts.sort_by_key(|start| (start.0, start.1, start.2));
    for (number, (_, _, index, shape)) in starts.into_iter().enumerate() {
        search.index = index;
        if number < REFINED {
            search.refine(&ways[index], shape);
        } else {
            search.offer(&ways[index], &shape);
        }
    }
    let mut effort = Effort { nodes: NODES, steps: STEPS };
    for (index, costs) in ways.iter().enumerate() {
        search.index = index;
        search.complete(costs, &mut effort);
    }
    let proven = effort.nodes > 0 && effort.steps > 0;
    search.best.map(|(time, index, shape)| Found { index, shape, time, proven })
}

/// Whether anything fits; the plan that lacks the fewest bytes that was found.
pub(crate) fn roomiest(costs: &Costs) -> (u64, Shape) {
    let mut search = Search::default();
    let start = search.first(costs).map(|(_, _, shape)| shape);
    let start = start.unwrap_or_else(|| Shape { host: costs.blocks, stages: Vec::new() });
    let (over, shape) = search.climb(costs, start, LOOKS, |search, shape| {
        search.layout.lay(costs, shape, None);
        Some((search.layout.over, 0))
    });
    if over.0 == 0 {
        return (0, shape);
    }
    let mut effort = Effort { nodes: NODES, steps: 1 };
    search.complete(costs, &mut effort);
    search.best.map_or((over.0, shape), |(_, _, shape)| (0, shape))
}

#[derive(Debug, Default)]
struct Search {
    best: Option<(u64, usize, Shape)>,
    /// Which way to cut the batch is being looked at.
    index: usize,
    layout: Layout,
    timeline: Timeline,
}

#[derive(Debug)]
struct Effort {
    nodes: u32,
    steps: u32,
}

/// Bytes that are lacking, then time.
type Badness = (u64, u64);

impl Search {
    fn limit(&self) -> u64 {
        self.best.as_ref().map_or(u64::MAX, |best| best.0)
    }

    /// Runs a step of the shape that is laid out, and keeps it if it is the best.
    fn time(&mut self, costs: &Costs, shape: &Shape) -> u64 {
        let closed = self.timeline.run(costs, &self.layout);
        let time = self.layout.step(costs, closed);
        if self.layout.over == 0 && time < self.limit() {
            self.best = Some((time, self.index, shape.clone()));
        }
        time
    }

    fn offer(&mut self, costs: &Costs, shape: &Shape) {
        self.layout.lay(costs, shape, None);
        if self.layout.over == 0 && self.layout.bound_and_guess(costs).0 < self.limit() {
            self.time(costs, shape);
        }
    }

    fn guess(&mut self, costs: &Costs, shape: &Shape) -> Badness {
        self.layout.lay(costs, shape, None);
        (self.layout.over, self.layout.bound_and_guess(costs).1)
    }

    /// The best by guess of the partitions of several orders.
    fn first(&mut self, costs: &Costs) -> Option<(u64, u64, Shape)> {
        let mut best = None;
        let mut table = Table::default();
        for order in orders(costs) {
            let mut cap = u64::MAX;
            let mut misses = 0;
            while let Some((shape, slowest)) = table.partition(costs, &order, cap) {
                misses = if self.consider(costs, shape, &mut best) { 0 } else { misses + 1 };
                if misses > 3 {
                    break;
                }
                cap = slowest - slowest / 10 - 1;
                if slowest == 0 {
                    break;
                }
            }
        }
        if costs.host_blocks >= costs.blocks {
            self.consider(costs, Shape { host: costs.blocks, stages: Vec::new() }, &mut best);
        }
        if best.is_none() {
            // Nothing fits: as even as it goes over all, for the moves to start from.
            let stages = crate::even_split(u16::try_from(costs.blocks).unwrap_or(u16::MAX), costs.devices);
            let stages = (0..).zip(stages).map(|(device, blocks)| (1u64 << device, blocks.len())).collect();
            if costs.devices > 0 {
                self.consider(costs, Shape { host: 0, stages }, &mut best);
            }
        }
        best
    }

    fn consider(&mut self, costs: &Costs, shape: Shape, best: &mut Option<(u64, u64, Shape)>) -> bool {
        let (over, guess) = self.guess(costs, &shape);
        let better = best.as_ref().is_none_or(|best| (over, guess) < (best.0, best.1));
        if better {
            *best = Some((over, guess, shape));
        }
        better
    }

    fn refine(&mut self, costs: &Costs, shape: Shape) {
        let (_, shape) = self.climb(costs, shape, LOOKS, |search, shape| Some(search.guess(costs, shape)));
        self.offer(costs, &shape);
        let mut runs = RUNS;
        self.climb(costs, shape, LOOKS / 2, |search, shape| {
            search.layout.lay(costs, shape, None);
            if search.layout.over > 0 {
                return Some((search.layout.over, 0));
            }
            if search.layout.bound_and_guess(costs).0 >= search.limit() && search.best.is_some() {
                // It cannot be better than the best; that it is at most as good is all there is to say.
                return Some((0, u64::MAX));
            }
            runs = runs.checked_sub(1)?;
            Some((0, search.time(costs, shape)))
        });
    }

    /// Takes moves as long as they help and `looks` last.
    fn climb(
        &mut self,
        costs: &Costs,
        mut shape: Shape,
        mut looks: u32,
        mut judge: impl FnMut(&mut Self, &Shape) -> Option<Badness>,
    ) -> (Badness, Shape) {
        let Some(mut badness) = judge(self, &shape) else { return ((u64::MAX, u64::MAX), shape) };
        let mut trial = Shape::default();
        loop {
            let mut moved = false;
            for kind in 0..MOVES {
                let (mut a, mut b) = (0, 0);
                // Over the shape as it is by then: a move that helped is not undone to look at the others.
                while a <= shape.stages.len() + costs.devices {
                    trial.host = shape.host;
                    trial.stages.clone_from(&shape.stages);
                    if apply(kind, a, b, &mut trial, costs) {
                        looks = match looks.checked_sub(1) {
                            Some(looks) => looks,
                            None => return (badness, shape),
                        };
                        let Some(found) = judge(self, &trial) else { return (badness, shape) };
                        if found < badness {
                            badness = found;
                            std::mem::swap(&mut shape, &mut trial);
                            moved = true;
                            continue;
                        }
                    }
                    b += 1;
                    if b > shape.stages.len() + costs.devices {
                        (a, b) = (a + 1, 0);
                    }
                }
            }
            if !moved {
                return (badness, shape);
            }
        }
    }

    fn complete(&mut self, costs: &Costs, effort: &mut Effort) {
        let twins = (0..costs.devices)
            .map(|a| (0..a).filter(|b| costs.twins(a + 1, b + 1)).fold(0u64, |mask, b| mask | 1 << b))
            .collect();
        let mut walk = Walk { costs, twins, rows: Vec::new(), effort };
        walk.from(self, costs.blocks, 0, 1, Suffix::new(costs), &[]);
    }
}

/// Kinds of moves.
const MOVES: u8 = 8;

/// Makes a move of `shape`; false if there is no such move. Places count the host as 0.
fn apply(kind: u8, a: usize, b: usize, shape: &mut Shape, costs: &Costs) -> bool {
    let places = shape.stages.len() + 1;
    let used = shape.stages.iter().fold(0, |mask, row| mask | row.0);
    let free = |device: usize| device < costs.devices && used >> device & 1 == 0;
    let len = |shape: &Shape, place: usize| match place.checked_sub(1) {
        None => Some(shape.host),
        Some(stage) => shape.stages.get(stage).map(|row| row.1),
    };
    let moved = match kind {
        // A block, or all of them, from one place to another; who has none left is out.
        0 | 1 => {
            let (Some(from), true) = (len(shape, a), a != b && b < places) else { return false };
            let count = if kind == 0 { 1 } else { from };
            if from < count || from == 0 || (kind == 1 && from == 1) {
                return false;
            }
            give(shape, b, count);
            take(shape, a, count)
        }
        // Two places exchange their devices.
        2 => {
            if !(a < b && b < shape.stages.len()) {
                return false;
            }
            let mask = shape.stages[a].0;
            shape.stages[a].0 = std::mem::replace(&mut shape.stages[b].0, mask);
            true
        }
        // A device that has nothing replaces those of a place.
        3 => {
            if !(a < shape.stages.len() && free(b)) {
                return false;
            }
            shape.stages[a].0 = 1 << b;
            true
        }
        // A place moves in the order with its blocks.
        4 => {
            if !(a < shape.stages.len() && b < shape.stages.len() && a != b) {
                return false;
            }
            let row = shape.stages.remove(a);
            shape.stages.insert(b, row);
            true
        }
        // A device that has nothing takes half of a place's blocks, behind it.
        5 => {
            let Some(from) = len(shape, a).filter(|len| *len > 0 && free(b)) else { return false };
            let count = from.div_ceil(2);
            shape.stages.insert(a, (1 << b, count));
            // The new one is at place a + 1; the giver is still at place a.
            take(shape, a, count)
        }
        // A device that has nothing shares a place.
        6 => {
            let Some(row) = shape.stages.get_mut(a).filter(|_| free(b)) else { return false };
            row.0 |= 1 << b;
            (row.0.count_ones() as usize) <= costs.max_replicas
        }
        // A place's devices join those of another, its blocks too.
        _ => {
            if costs.max_replicas < 2 || !(a < shape.stages.len() && b < shape.stages.len() && a != b) {
                return false;
            }
            let (mask, len) = shape.stages[a];
            shape.stages[b].0 |= mask;
            shape.stages[b].1 += len;
            let fits = (shape.stages[b].0.count_ones() as usize) <= costs.max_replicas;
            shape.stages.remove(a);
            fits
        }
    };
    moved && shape.host <= costs.host_blocks
}

fn give(shape: &mut Shape, place: usize, count: usize) {
    match place.checked_sub(1) {
        None => shape.host += count,
        Some(stage) => shape.stages[stage].1 += count,
    }
}

fn take(shape: &mut Shape, place: usize, count: usize) -> bool {
    match place.checked_sub(1) {
        None => shape.host -= count,
        Some(stage) => {
            shape.stages[stage].1 -= count;
            if shape.stages[stage].1 == 0 {
                shape.stages.remove(stage);
            }
        }
    }
    true
}

/// Orders worth a look: by speed, by memory (the last positions hold the fewest micro-batches, so the most memory is of
/// the most use there), and by the way to the host.
fn orders(costs: &Costs) -> Vec<Vec<usize>> {
    let by = |key: &dyn Fn(usize) -> f64| {
        let mut order: Vec<usize> = (0..costs.devices).collect();
        order.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        order
    };
    let mut orders = vec![
        by(&|device| costs.pace_of(device + 1)),
        by(&|device| -costs.pace_of(device + 1)),
        by(&|device| costs.memory(device + 1) as f64),
        by(&|device| -(costs.transfer(device + 1, 0)[0] as f64) - costs.transfer(0, device + 1)[0] as f64),
    ];
    orders.dedup();
    orders
}

/// A partition that ends with some device in front of some blocks.
#[derive(Clone, Copy, Debug)]
struct Cell {
    way: u64,
    slowest: u64,
    /// Stages, this one included.
    stages: u64,
    len: usize,
    /// The place of the device behind.
    next: usize,
}

/// The table of the dynamic programming, used again.
#[derive(Debug, Default)]
struct Table {
    cells: Vec<Option<Cell>>,
    behind: Vec<Option<(u64, usize)>>,
}

impl Table {
    /// The shortest way through a partition over devices in this order, none slower than `cap` (nanoseconds of a step);
    /// with the slowest it has.
    ///
    /// Of the partitions of the same blocks that begin with the same device, only the one with the shortest way is gone on
    /// with, though another might leave more memory.
    fn partition(&mut self, costs: &Costs, order: &[usize], cap: u64) -> Option<(Shape, u64)> {
        let (blocks, columns) = (costs.blocks, costs.blocks + 1);
        self.cells.clear();
        self.cells.resize(order.len() * columns, None);
        let hop = |a: usize, b: usize| {
            costs.transfer(a, b)[0] + costs.latency(a, b) + costs.transfer(b, a)[0] + costs.latency(b, a)
        };
        for (place, device) in order.iter().enumerate().rev() {
            let node = device + 1;
            // The best to follow, by how many blocks it and those behind it have.
            self.behind.clear();
            self.behind.resize(columns, None);
            self.behind[0] = Some((costs.head[0] + hop(node, 0), order.len()));
            for (next, other) in order.iter().enumerate().skip(place + 1) {
                let hop = hop(node, other + 1);
                for (behind, cell) in self.behind.iter_mut().zip(&self.cells[next * columns..]) {
                    let Some(cell) = cell else { continue };
                    let way = cell.way + hop;
                    if behind.is_none_or(|behind| way < behind.0) {
                        *behind = Some((way, next));
                    }
                }
            }
            for covered in 0..blocks {
                let Some((way, next)) = self.behind[covered] else { continue };
                let rest = self.cells.get(next * columns + covered).copied().flatten();
                let (stages, slowest) = rest.map_or((0, 0), |rest| (rest.stages, rest.slowest));
                let to = blocks - covered;
                for len in 1..=to {
                    let recompute = match costs.fit(node, to - len, to, stages + 2) {
                        Fit::Keeping => false,
                        Fit::Recomputing => true,
                        Fit::Over(_) => break,
                    };
                    let (forward, backward) = costs.jobs(node, to - len, to, recompute);
                    let load = costs.sum([0, 1].map(|size: usize| forward[size] + backward[size]));
                    if load > cap {
                        break;
                    }
                    let way = way + forward[0] + backward[0];
                    let cell = &mut self.cells[place * columns + covered + len];
                    if cell.is_none_or(|cell| way < cell.way) {
                        let slowest = slowest.max(load);
                        *cell = Some(Cell { way, slowest, stages: stages + 1, len, next });
                    }
                }
            }
        }
        self.with_host(costs, order, cap, &hop)
    }

    fn with_host(
        &self,
        costs: &Costs,
        order: &[usize],
        cap: u64,
        hop: &dyn Fn(usize, usize) -> u64,
    ) -> Option<(Shape, u64)> {
        let (blocks, columns) = (costs.blocks, costs.blocks + 1);
        let mut best: Option<(u64, u64, usize, usize)> = None;
        for host in 0..=costs.host_blocks.min(blocks - 1) {
            for (place, device) in order.iter().enumerate() {
                let Some(cell) = self.cells[place * columns + blocks - host] else { continue };
                let recompute = match costs.fit(0, 0, host, cell.stages + 2) {
                    Fit::Keeping => false,
                    Fit::Recomputing => true,
                    Fit::Over(_) => continue,
                };
                let (forward, backward) = costs.jobs(0, 0, host, recompute);
                let whole = [0, 1]
                    .map(|size: usize| forward[size] + backward[size] + costs.front[size] + costs.head[size]);
                let load = costs.sum(whole);
                // The ends cannot be moved: alone they are no reason to leave a partition out.
                if load > cap && host > 0 {
                    continue;
                }
                let way = cell.way + forward[0] + backward[0] + hop(0, device + 1);
                if best.is_none_or(|best| way < best.0) {
                    let slowest = if host > 0 { cell.slowest.max(load) } else { cell.slowest };
                    best = Some((way, slowest, host, place));
                }
            }
        }
        let (_, slowest, host, mut place) = best?;
        let mut shape = Shape { host, stages: Vec::new() };
        let mut left = blocks - host;
        while let Some(cell) = self.cells.get(place * columns + left).copied().flatten().filter(|_| left > 0)
        {
            shape.stages.push((1 << order[place], cell.len));
            left -= cell.len;
            place = cell.next;
        }
        Some((shape, slowest))
    }
}

/// The complete search.
struct Walk<'a> {
    costs: &'a Costs,
    /// For every device those before it that are the same.
    twins: Vec<u64>,
    /// From the end of the pipeline on.
    rows: Vec<(u64, usize)>,
    effort: &'a mut Effort,
}

impl Walk<'_> {
    /// Every way to go on in front of `suffix`: the first `left` blocks are nobody's yet, `used` devices are, `behind` are
    /// behind (the head is one), `next` are those of the position behind.
    fn from(
        &mut self,
        search: &mut Search,
        left: usize,
        used: u64,
        behind: u64,
        suffix: Suffix,
        next: &[LaneCost],
    ) {
        let costs = self.costs;
        if left <= costs.host_blocks {
            let stages = self.rows.iter().rev().copied().collect();
            let shape = Shape { host: left, stages };
            search.layout.lay(costs, &shape, None);
            if search.layout.over == 0 && search.layout.bound_and_guess(costs).0 < search.limit() {
                self.effort.steps -= 1;
                search.time(costs, &shape);
            }
        }
        if left == 0 || self.effort.steps == 0 {
            return;
        }
        self.groups(search, (left, used, behind, suffix, next), 0, 0);
    }

    /// Every group of free devices that begins with `group` and goes on with devices from `from` on.
    fn groups(
        &mut self,
        search: &mut Search,
        state: (usize, u64, u64, Suffix, &[LaneCost]),
        group: u64,
        from: usize,
    ) {
        for device in from..self.costs.devices {
            let bit = 1u64 << device;
            // Of two that are the same the first goes first.
            if (state.1 | group) & bit != 0 || self.twins[device] & !(state.1 | group) != 0 {
                continue;
            }
            self.lengths(search, state, group | bit);
            if ((group | bit).count_ones() as usize) < self.costs.max_replicas {
                self.groups(search, state, group | bit, device + 1);
            }
        }
    }

    fn lengths(&mut self, search: &mut Search, state: (usize, u64, u64, Suffix, &[LaneCost]), group: u64) {
        if self.effort.nodes == 0 || self.effort.steps == 0 {
            return;
        }
        self.effort.nodes -= 1;
        let costs = self.costs;
        let (left, used, behind, suffix, next) = state;
        let count = u64::from(group.count_ones());
        let limit = (behind + count).div_ceil(count);
        let in_flight = limit.min(costs.micro_batches().div_ceil(count));
        let mut lanes: Vec<LaneCost> = Vec::with_capacity(group.count_ones() as usize);
        // The least time of a unit of work that the others can do, and how much of it they can do at once.
        let free =
            (0..costs.devices).filter(|device| (used | group) >> device & 1 == 0).map(|device| device + 1);
        let paces =
            || free.clone().chain((costs.host_blocks > 0).then_some(0)).map(|node| costs.pace_of(node));
        let (least, together) =
            (paces().fold(f64::INFINITY, f64::min), paces().map(|pace| 1.0 / pace).sum::<f64>());
        for len in 1..=left {
            let mut recompute = false;
            let fits = bits(group).all(|device| match costs.fit(device + 1, left - len, left, in_flight) {
                Fit::Keeping => true,
                Fit::Recomputing => {
                    recompute = true;
                    true
                }
                Fit::Over(_) => false,
            });
            if !fits {
                break;
            }
            lanes.clear();
            lanes.extend(bits(group).map(|device| {
                let (forward, backward) = costs.jobs(device + 1, left - len, left, recompute);
                LaneCost { node: device + 1, forward, backward }
            }));
            let hop = Hop::between(costs, &lanes, (!next.is_empty()).then_some(next), true);
            let mut here = suffix;
            here.push(costs, &lanes, &hop, limit);
            let work = costs.work(0, left - len);
            // A nanosecond of each job may be rounding.
            let rounding = (costs.micro_batches() + 1) * (costs.devices as u64 + 1);
            let of_others = |time: f64| (time as u64).saturating_sub(rounding);
            let rest = if work > 0.0 { of_others(least * work) } else { 0 };
            let shared =
                if work > 0.0 { of_others(costs.micro_batches() as f64 * work / together) } else { 0 };
            if (here.least.saturating_add(rest)).max(shared) >= search.limit() {
                // With more blocks here this only grows.
                if here.least >= search.limit() {
                    break;
                }
                continue;
            }
            self.rows.push((group, len));
            self.from(search, left - len, used | group, behind + count, here, &lanes);
            self.rows.pop();
        }
    }
}
