//! The search: dynamic programming for good first plans, local moves to better them, and a complete search with bounds.
//!
//! What is minimised is the exact step time of [`Timeline`], under every device's memory. Three parts share the best plan
//! found so far:
//! 1. For several orders of the devices, dynamic programming from the end of the pipeline over (device, blocks behind it):
//!    the shortest way of one micro-batch among the partitions whose slowest stage stays under a cap, for falling caps. This
//!    is the partition of PipeDream (Narayanan et al. 2019, § 3.1) for the unequal devices of limited memory that Confidant
//!    (<https://arxiv.org/abs/2311.13381>) and PAC (Ouyang et al. 2024) plan for; a device may be left out.
//! 2. Moves of blocks, devices and order: as long as they help, then at a falling heat, then from disturbed copies.
//! 3. Depth first from the end of the pipeline over every group of devices and every length, leaving out what
//!    [`Suffix::least`] shows to be no better. If it ends within its effort, the plan is optimal.
//!
//! Nothing here depends on time or chance: the same room gives the same plan.

use crate::costs::{Costs, Fit, Hop, LaneCost, Layout, Shape, Suffix, bits};
use crate::timeline::Timeline;

/// Work, positions laid out and jobs run, to find the roomiest plan.
const WORK: u64 = 100_000;
/// Work for the plans of dynamic programming.
const FIRST: u64 = 100_000;
/// Work for annealing from the best of them.
const ANNEALED: u64 = 100_000;
/// Work for disturbed copies of the best.
const DISTURBED: u64 = 100_000;
/// Plans of dynamic programming that are gone on with, for each way to cut the batch.
const STARTS: usize = 6;
/// Heat of annealing at first, a share of the time.
const HOT: f64 = 0.05;
/// Nodes of the complete search, over all ways to cut the batch, and jobs run by it.
const NODES: u32 = 100_000;
/// Nodes of a first try, which is enough for small rooms.
const SOON: u32 = 20_000;
const JOBS: u64 = 100_000;
/// With more devices the complete search would not end within that: it is left out.
const COMPLETE: usize = 10;

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
    let mut search = Search::new(FIRST);
    let mut starts: Vec<(Badness, usize, Shape)> = Vec::new();
    for (index, costs) in ways.iter().enumerate() {
        starts.extend(search.starts(costs).into_iter().map(|(badness, shape)| (badness, index, shape)));
    }
    starts.sort_by_key(|start| (start.0, start.1));
    search.work = FIRST;
    for (_, index, shape) in starts {
        search.index = index;
        search.better(&ways[index], shape);
    }
    let few = ways.iter().all(|costs| costs.devices <= COMPLETE);
    let mut proven = few && search.prove(ways, SOON);
    if !proven {
        search.work = ANNEALED;
        search.anneal(ways);
        search.work = DISTURBED;
        search.disturb(ways);
        proven = few && search.prove(ways, NODES);
    }
    search.best.map(|(time, index, shape)| Found { index, shape, time, proven })
}

/// The plan that lacks the fewest bytes of those looked at, and how many; 0 if one fits.
pub(crate) fn roomiest(costs: &Costs) -> (u64, Shape) {
    let mut search = Search::new(WORK);
    let (over, shape) = search.starts(costs).into_iter().next().unwrap_or_default();
    if over.0 == 0 && costs.blocks == shape.host + shape.stages.iter().map(|row| row.1).sum::<usize>() {
        return (0, shape);
    }
    search.work = WORK;
    let (over, shape) = search.climb(costs, shape, Judge::Guess);
    if over.0 == 0 {
        return (0, shape);
    }
    let mut effort = Effort { nodes: NODES / 4, jobs: 1 };
    search.complete(costs, &mut effort);
    search.best.map_or((over.0, shape), |(_, _, shape)| (0, shape))
}

/// Bytes that are lacking, then time.
type Badness = (u64, u64);

/// By what plans are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judge {
    /// In constant time a position.
    Guess,
    /// By running a step.
    Run,
}

#[derive(Debug)]
struct Search {
    best: Option<(u64, usize, Shape)>,
    /// Which way to cut the batch is being looked at.
    index: usize,
    layout: Layout,
    timeline: Timeline,
    /// Work left.
    work: u64,
    /// Numbers that look random, the same every time (xorshift, Marsaglia 2003).
    state: u64,
}

#[derive(Debug)]
struct Effort {
    nodes: u32,
    jobs: u64,
}

impl Effort {
    fn is_spent(&self) -> bool {
        self.nodes == 0 || self.jobs == 0
    }
}

impl Search {
    fn new(work: u64) -> Self {
        let (layout, timeline) = (Layout::default(), Timeline::default());
        Self { best: None, index: 0, layout, timeline, work, state: 0x9e37_79b9_7f4a_7c15 }
    }

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

    /// How bad a shape is; no more exactly than to tell that it is no better than `than`.
    fn judge(&mut self, costs: &Costs, shape: &Shape, judge: Judge, than: Badness) -> Badness {
        self.layout.lay(costs, shape, None);
        let over = self.layout.over;
        let (bound, guess) = self.layout.bound_and_guess(costs);
        self.work = self.work.saturating_sub(self.layout.lanes.len() as u64);
        match judge {
            // The bound is often what it takes, where the guess is far above.
            Judge::Guess => (over, bound + guess),
            Judge::Run if over > 0 || bound >= than.1 => (over, u64::MAX),
            Judge::Run => {
                self.work = self.work.saturating_sub(jobs(costs, &self.layout));
                (0, self.time(costs, shape))
            }
        }
    }

    /// The partitions of several orders, the best by guess first.
    fn starts(&mut self, costs: &Costs) -> Vec<(Badness, Shape)> {
        let mut starts = Vec::new();
        let mut table = Table::default();
        for order in orders(costs) {
            let (mut cap, mut best, mut misses) = (u64::MAX, (u64::MAX, u64::MAX), 0);
            while let Some((shape, slowest)) = table.partition(costs, &order, cap) {
                let badness = self.judge(costs, &shape, Judge::Guess, best);
                misses = if badness < best { 0 } else { misses + 1 };
                best = best.min(badness);
                starts.push((badness, shape));
                if misses > 3 || slowest == 0 {
                    break;
                }
                cap = slowest - slowest / 10 - 1;
            }
        }
        if costs.host_blocks >= costs.blocks {
            let shape = Shape { host: costs.blocks, stages: Vec::new() };
            starts.push((self.judge(costs, &shape, Judge::Guess, (0, 0)), shape));
        }
        if starts.iter().all(|start| start.0.0 > 0) && costs.devices > 0 {
            // Nothing fits: as even as it goes over all, for the moves to start from.
            let stages = crate::even_split(u16::try_from(costs.blocks).unwrap_or(u16::MAX), costs.devices);
            let stages = (0..).zip(stages).map(|(device, blocks)| (1u64 << device, blocks.len())).collect();
            let shape = Shape { host: 0, stages };
            starts.push((self.judge(costs, &shape, Judge::Guess, (0, 0)), shape));
        }
        starts.sort_by_key(|start| start.0);
        starts.dedup_by(|a, b| a.1 == b.1);
        starts.truncate(STARTS);
        starts
    }

    /// Betters a shape by moves, first by guess, then by running steps.
    fn better(&mut self, costs: &Costs, shape: Shape) {
        let (_, shape) = self.climb(costs, shape, Judge::Guess);
        self.climb(costs, shape, Judge::Run);
    }

    /// Simulated annealing (Kirkpatrick et al. 1983) from the best plan, by guess; what it finds on its way is offered.
    fn anneal(&mut self, ways: &[Costs]) {
        let Some((_, mut index, mut shape)) = self.best.clone() else { return };
        let all = self.work;
        let mut current = self.judge(&ways[index], &shape, Judge::Guess, (0, 0)).1;
        let (start, mut lowest) = (current as f64, current);
        let mut trial = Shape::default();
        while self.work > 0 && all > 0 {
            let share = self.work as f64 / all as f64;
            let heat = start * HOT * share * share * share;
            let mut way = index;
            trial.host = shape.host;
            trial.stages.clone_from(&shape.stages);
            if self.random(32) == 0 {
                way = self.random(ways.len());
            } else {
                let (places, devices) = (shape.stages.len() + 1, ways[index].devices);
                let kind = u8::try_from(self.random(MOVES.into())).unwrap_or(0);
                let (a, b) = (self.random(places), self.random(places.max(devices)));
                if !apply(kind, a, b, &mut trial, &ways[index]) {
                    self.work = self.work.saturating_sub(1);
                    continue;
                }
            }
            self.index = way;
            let (over, found) = self.judge(&ways[way], &trial, Judge::Guess, (0, 0));
            if over > 0 {
                continue;
            }
            // About the probability exp(−x) of the textbook, in numbers that are the same on every machine.
            let x = found.saturating_sub(current) as f64 / heat.max(1.0);
            let chance = 1.0 / (1.0 + x + x * x / 2.0 + x * x * x / 6.0);
            if found <= current || (self.random(1 << 20) as f64) < chance * f64::from(1 << 20) {
                (index, current) = (way, found);
                std::mem::swap(&mut shape, &mut trial);
                if current < lowest {
                    lowest = current;
                    self.judge(&ways[index], &shape, Judge::Run, (0, self.limit()));
                }
            }
        }
    }

    /// Betters disturbed copies of the best plan.
    fn disturb(&mut self, ways: &[Costs]) {
        while let Some((_, index, mut shape)) = self.best.clone().filter(|_| self.work > 0) {
            let costs = &ways[index];
            self.index = index;
            let mut trial = Shape::default();
            let mut left = 2 + self.random(3);
            for _ in 0..100 {
                let places = shape.stages.len() + 1;
                let kind = u8::try_from(self.random(MOVES.into())).unwrap_or(0);
                let (a, b) = (self.random(places), self.random(places.max(costs.devices)));
                trial.clone_from(&shape);
                if apply(kind, a, b, &mut trial, costs) {
                    std::mem::swap(&mut shape, &mut trial);
                    left -= 1;
                    if left == 0 {
                        break;
                    }
                }
            }
            self.work = self.work.saturating_sub(100);
            self.better(costs, shape);
        }
    }

    /// A number under `below`.
    fn random(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).unwrap_or(0) % below.max(1)
    }

    /// Takes moves as long as they help and the work lasts.
    fn climb(&mut self, costs: &Costs, mut shape: Shape, judge: Judge) -> (Badness, Shape) {
        let mut badness = self.judge(costs, &shape, judge, (0, u64::MAX));
        let mut trial = Shape::default();
        loop {
            let mut moved = false;
            for kind in 0..MOVES {
                let (mut a, mut b) = (0, 0);
                // Over the shape as it is by then: a move that helped is not undone to look at the others.
                while a <= shape.stages.len().max(costs.devices) {
                    trial.host = shape.host;
                    trial.stages.clone_from(&shape.stages);
                    if apply(kind, a, b, &mut trial, costs) {
                        if self.work == 0 {
                            return (badness, shape);
                        }
                        let found = self.judge(costs, &trial, judge, badness);
                        if found < badness {
                            badness = found;
                            std::mem::swap(&mut shape, &mut trial);
                            moved = true;
                            continue;
                        }
                    }
                    b += 1;
                    if b > shape.stages.len().max(costs.devices) {
                        (a, b) = (a + 1, 0);
                    }
                }
            }
            if !moved {
                return (badness, shape);
            }
        }
    }

    /// Looks at every plan that may be better than the best, if `nodes` suffice for that.
    fn prove(&mut self, ways: &[Costs], nodes: u32) -> bool {
        let mut effort = Effort { nodes, jobs: JOBS };
        for (index, costs) in ways.iter().enumerate() {
            self.index = index;
            self.complete(costs, &mut effort);
        }
        !effort.is_spent()
    }

    fn complete(&mut self, costs: &Costs, effort: &mut Effort) {
        let twins = (0..costs.devices)
            .map(|a| (0..a).filter(|b| costs.twins(a + 1, b + 1)).fold(0u64, |mask, b| mask | 1 << b))
            .collect();
        let mut walk = Walk { costs, twins, rows: Vec::new(), effort };
        walk.from(self, costs.blocks, 0, 1, Suffix::new(costs), &[]);
    }
}

/// Jobs of a step.
fn jobs(costs: &Costs, layout: &Layout) -> u64 {
    costs.micro_batches() * (2 * layout.positions.len() as u64 + 1)
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
        if left <= costs.host_blocks && costs.least_of_host(left) < search.limit() {
            let stages = self.rows.iter().rev().copied().collect();
            let shape = Shape { host: left, stages };
            search.layout.lay(costs, &shape, None);
            if search.layout.over == 0 && search.layout.bound_and_guess(costs).0 < search.limit() {
                let jobs = jobs(costs, &search.layout);
                self.effort.jobs = self.effort.jobs.saturating_sub(jobs);
                search.time(costs, &shape);
            }
        }
        if left == 0 {
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
            if self.effort.is_spent() {
                return;
            }
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
        if self.effort.is_spent() {
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
