//! One step in virtual time: every device takes its jobs as `baton_protocol`'s machines do, with nothing between them.
//!
//! This is the exact step time of 1F1B with a flush (PipeDream-Flush, Narayanan et al. 2021, § 2) on unequal devices, for
//! which no closed formula is known: a device that is free takes a backward pass before a forward one, and a forward pass
//! only within its limit of micro-batches in flight. A wire carries one tensor at a time in each direction while the
//! devices compute. The host's front and head share one device; the head goes first, then its own backward passes.

use crate::costs::{Costs, Layout};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a device or a wire is at the end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The lane's forward pass of a micro-batch is done.
    Forward(u32, u32),
    /// Its backward pass.
    Backward(u32, u32),
    /// The head's.
    Head(u32),
    /// Hidden states have arrived at a lane.
    Hidden(u32, u32),
    /// A gradient has.
    Gradient(u32, u32),
    /// Hidden states have arrived at the head.
    Last(u32),
}

#[derive(Clone, Debug, Default)]
struct Lane {
    position: usize,
    /// Its place among the position's devices, and their number.
    replica: usize,
    replicas: usize,
    /// Micro-batches that are its.
    total: usize,
    limit: usize,
    forwards: usize,
    backwards: usize,
    /// By its own count.
    hidden: Vec<bool>,
    gradients: Vec<bool>,
    idle: bool,
    touched: bool,
}

/// A run of a step; its vectors are used again by the next one.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    heap: BinaryHeap<Reverse<(u64, Event)>>,
    lanes: Vec<Lane>,
    busy: Vec<u64>,
    /// When a wire between two nodes is free, from × to.
    free: Vec<u64>,
    nodes: usize,
    heads: Vec<bool>,
    next_head: usize,
    flush: u64,
    closed: u64,
}

impl Timeline {
    /// Runs a step; gives when the host knows that the last gradient is added up.
    pub(crate) fn run(&mut self, costs: &Costs, layout: &Layout) -> u64 {
        self.reset(costs, layout);
        self.dispatch(costs, layout, 0);
        while let Some(Reverse((now, event))) = self.heap.pop() {
            self.happen(costs, layout, now, event);
            // All that happens at once is known before anybody chooses.
            while let Some(Reverse((_, event))) = self.heap.pop_if_now(now) {
                self.happen(costs, layout, now, event);
            }
            self.dispatch(costs, layout, now);
        }
        debug_assert!(self.lanes.iter().all(|lane| lane.backwards == lane.total), "a step ends");
        self.closed
    }

    /// Nanoseconds that a node computed.
    pub(crate) fn busy(&self, node: usize) -> u64 {
        self.busy.get(node).copied().unwrap_or(0)
    }

    /// When the last backward pass was done.
    pub(crate) fn flush(&self) -> u64 {
        self.flush
    }

    fn reset(&mut self, costs: &Costs, layout: &Layout) {
        let count = costs.large.len();
        self.heap.clear();
        self.lanes.resize_with(layout.lanes.len(), Lane::default);
        for (index, position) in layout.positions.iter().enumerate() {
            for replica in 0..position.count {
                let lane = &mut self.lanes[position.first + replica];
                lane.position = index;
                (lane.replica, lane.replicas) = (replica, position.count);
                lane.total = (count + position.count - 1 - replica) / position.count;
                lane.limit = usize::try_from(position.limit).unwrap_or(usize::MAX);
                (lane.forwards, lane.backwards) = (0, 0);
                for arrived in [&mut lane.hidden, &mut lane.gradients] {
                    arrived.clear();
                    arrived.resize(lane.total, false);
                }
                if index == 0 {
                    lane.hidden.fill(true);
                }
                (lane.idle, lane.touched) = (true, true);
            }
        }
        self.nodes = costs.devices + 1;
        self.busy.clear();
        self.busy.resize(self.nodes, 0);
        self.free.clear();
        self.free.resize(self.nodes * self.nodes, 0);
        self.heads.clear();
        self.heads.resize(count, false);
        self.next_head = 0;
        (self.flush, self.closed) = (0, 0);
    }

    fn happen(&mut self, costs: &Costs, layout: &Layout, now: u64, event: Event) {
        match event {
            Event::Forward(lane, micro_batch) => {
                self.free_lane(lane);
                self.send(costs, layout, now, lane as usize, micro_batch, true);
            }
            Event::Backward(lane, micro_batch) => {
                self.free_lane(lane);
                self.flush = self.flush.max(now);
                let position = self.lanes[lane as usize].position;
                if position > 0 {
                    self.send(costs, layout, now, lane as usize, micro_batch, false);
                }
                let lane_state = &self.lanes[lane as usize];
                if lane_state.backwards == lane_state.total {
                    // The host hears of it.
                    let node = layout.lanes[lane as usize].node;
                    let known = now + layout.positions[position].reduce + costs.latency(node, 0);
                    self.closed = self.closed.max(known);
                }
            }
            Event::Head(micro_batch) => {
                self.free_lane(0);
                self.send_gradient(costs, layout, now, None, micro_batch);
            }
            Event::Hidden(lane, micro_batch) => self.arrive(lane, micro_batch, true),
            Event::Gradient(lane, micro_batch) => self.arrive(lane, micro_batch, false),
            Event::Last(micro_batch) => {
                self.heads[micro_batch as usize] = true;
                self.lanes[0].touched = true;
            }
        }
    }

    fn free_lane(&mut self, lane: u32) {
        let lane = &mut self.lanes[lane as usize];
        (lane.idle, lane.touched) = (true, true);
    }

    fn arrive(&mut self, lane: u32, micro_batch: u32, forward: bool) {
        let lane = &mut self.lanes[lane as usize];
        let place = micro_batch as usize / lane.replicas;
        if forward {
            lane.hidden[place] = true;
        } else {
            lane.gradients[place] = true;
        }
        lane.touched = true;
    }

    fn lane_of(layout: &Layout, position: usize, micro_batch: u32) -> usize {
        let position = &layout.positions[position];
        position.first + micro_batch as usize % position.count
    }

    fn send(
        &mut self,
        costs: &Costs,
        layout: &Layout,
        now: u64,
        lane: usize,
        micro_batch: u32,
        forward: bool,
    ) {
        if !forward {
            self.send_gradient(costs, layout, now, Some(lane), micro_batch);
            return;
        }
        let (position, node) = (self.lanes[lane].position, layout.lanes[lane].node);
        if position + 1 == layout.positions.len() {
            let at = self.wire(costs, now, node, 0, Some(micro_batch));
            self.heap.push(Reverse((at, Event::Last(micro_batch))));
        } else {
            let to = Self::lane_of(layout, position + 1, micro_batch);
            let at = self.wire(costs, now, node, layout.lanes[to].node, Some(micro_batch));
            self.heap.push(Reverse((at, Event::Hidden(to as u32, micro_batch))));
        }
    }

    /// From a lane, or from the head.
    fn send_gradient(
        &mut self,
        costs: &Costs,
        layout: &Layout,
        now: u64,
        from: Option<usize>,
        micro_batch: u32,
    ) {
        let (position, node) = match from {
            Some(lane) => (self.lanes[lane].position, layout.lanes[lane].node),
            None => (layout.positions.len(), 0),
        };
        let to = Self::lane_of(layout, position - 1, micro_batch);
        // A host without blocks needs no gradient, only a word.
        let needed = position > 1 || layout.lanes[0].backward[0] > 0 || from.is_none();
        let at = self.wire(costs, now, node, layout.lanes[to].node, needed.then_some(micro_batch));
        self.heap.push(Reverse((at, Event::Gradient(to as u32, micro_batch))));
    }

    /// When something sent now arrives: a micro-batch, or a word.
    fn wire(&mut self, costs: &Costs, now: u64, from: usize, to: usize, micro_batch: Option<u32>) -> u64 {
        let latency = costs.latency(from, to);
        let Some(micro_batch) = micro_batch else { return now + latency };
        let size = usize::from(costs.large[micro_batch as usize]);
        let free = &mut self.free[from * self.nodes + to];
        *free = now.max(*free) + costs.transfer(from, to)[size];
        *free + latency
    }

    fn dispatch(&mut self, costs: &Costs, layout: &Layout, now: u64) {
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if !(lane.idle && lane.touched) {
                continue;
            }
            lane.touched = false;
            let cost = &layout.lanes[index];
            let size = |micro_batch: usize| usize::from(costs.large[micro_batch]);
            let (event, takes) = if index == 0 && self.heads.get(self.next_head) == Some(&true) {
                let micro_batch = self.next_head;
                self.next_head += 1;
                (Event::Head(micro_batch as u32), costs.head[size(micro_batch)])
            } else if lane.gradients.get(lane.backwards) == Some(&true) {
                let micro_batch = lane.backwards * lane.replicas + lane.replica;
                lane.backwards += 1;
                (Event::Backward(index as u32, micro_batch as u32), cost.backward[size(micro_batch)])
            } else if lane.forwards - lane.backwards < lane.limit
                && lane.hidden.get(lane.forwards) == Some(&true)
            {
                let micro_batch = lane.forwards * lane.replicas + lane.replica;
                lane.forwards += 1;
                (Event::Forward(index as u32, micro_batch as u32), cost.forward[size(micro_batch)])
            } else {
                continue;
            };
            lane.idle = false;
            self.busy[cost.node] += takes;
            self.heap.push(Reverse((now + takes, event)));
        }
    }
}

trait PopIfNow {
    fn pop_if_now(&mut self, now: u64) -> Option<Reverse<(u64, Event)>>;
}

impl PopIfNow for BinaryHeap<Reverse<(u64, Event)>> {
    fn pop_if_now(&mut self, now: u64) -> Option<Reverse<(u64, Event)>> {
        self.peek().filter(|next| next.0.0 == now)?;
        self.pop()
    }
}
