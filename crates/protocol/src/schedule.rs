//! One forward, one backward (1F1B): what a position of the pipeline does next.
//!
//! With P positions, position p may hold the activations of at most P − p micro-batches; a backward pass that can run
//! goes first. Micro-batches come in order, forward and backward, so gradients are added up in the same order whatever
//! the number of stages, and the result does not depend on who was faster.
//! Source: PipeDream-Flush, Narayanan et al. 2021, <https://arxiv.org/abs/2006.09503>, § 2.

use crate::ids::MicroBatch;

/// The next work of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The forward pass of a micro-batch.
    Forward(MicroBatch),
    /// Its backward pass.
    Backward(MicroBatch),
}

/// Where one position of the pipeline stands within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    micro_batches: u16,
    limit: u16,
    forwards: u16,
    backwards: u16,
}

impl Schedule {
    /// Position `position` of `positions`, for a step of `micro_batches`.
    pub fn new(position: u16, positions: u16, micro_batches: u16) -> Self {
        Self { micro_batches, limit: positions.saturating_sub(position).max(1), forwards: 0, backwards: 0 }
    }

    /// The micro-batch whose forward pass is next, if the step has one left and memory for it.
    pub fn next_forward(&self) -> Option<MicroBatch> {
        let room = self.forwards - self.backwards < self.limit;
        (self.forwards < self.micro_batches && room).then_some(MicroBatch(self.forwards))
    }

    /// The micro-batch whose backward pass is next, if its forward pass is done.
    pub fn next_backward(&self) -> Option<MicroBatch> {
        (self.backwards < self.forwards).then_some(MicroBatch(self.backwards))
    }

    /// Whether the input of this forward pass may arrive now. The position before may be ahead by the one micro-batch
    /// more that it may hold; anything else is not of this protocol.
    pub fn expects_forward(&self, micro_batch: MicroBatch) -> bool {
        let ahead = self.backwards.saturating_add(self.limit).saturating_add(1);
        (self.forwards..self.micro_batches.min(ahead)).contains(&micro_batch.0)
    }

    /// Whether the gradient for this backward pass may arrive now: its forward pass was taken, and it was not.
    pub fn expects_backward(&self, micro_batch: MicroBatch) -> bool {
        (self.backwards..self.forwards).contains(&micro_batch.0)
    }

    /// Chooses by what has arrived, and counts it as done.
    pub fn take(
        &mut self,
        forward_arrived: impl FnOnce(MicroBatch) -> bool,
        backward_arrived: impl FnOnce(MicroBatch) -> bool,
    ) -> Option<Work> {
        if let Some(micro_batch) = self.next_backward().filter(|&m| backward_arrived(m)) {
            self.backwards += 1;
            return Some(Work::Backward(micro_batch));
        }
        let micro_batch = self.next_forward().filter(|&m| forward_arrived(m))?;
        self.forwards += 1;
        Some(Work::Forward(micro_batch))
    }

    /// Forward and backward passes that were taken.
    pub fn taken(&self) -> (u16, u16) {
        (self.forwards, self.backwards)
    }

    /// The micro-batches whose activations the position may hold at most.
    pub fn limit(&self) -> u16 {
        self.limit
    }

    /// Whether every backward pass of the step has been taken.
    pub fn is_flushed(&self) -> bool {
        self.backwards == self.micro_batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbook_order_of_four_positions() {
        // Everything arrives at once for the last position; the first has its warm-up of P forwards.
        let run = |position: u16, lag: u16| {
            let mut schedule = Schedule::new(position, 4, 6);
            let mut order = String::new();
            while !schedule.is_flushed() {
                let forwards = schedule.forwards;
                let back = |m: MicroBatch| forwards > m.0 + lag || forwards == 6;
                match schedule.take(|_| true, back) {
                    Some(Work::Forward(m)) => order += &format!("F{m}"),
                    Some(Work::Backward(m)) => order += &format!("B{m}"),
                    None => panic!("stuck after {order}"),
                }
            }
            order
        };
        assert_eq!(run(3, 0), "F0B0F1B1F2B2F3B3F4B4F5B5");
        assert_eq!(run(0, 3), "F0F1F2F3B0F4B1F5B2B3B4B5");
    }

    #[test]
    fn memory_is_bounded_while_gradients_are_late() {
        let mut schedule = Schedule::new(1, 4, 100);
        let mut taken = 0;
        while schedule.take(|_| true, |_| false).is_some() {
            taken += 1;
        }
        assert_eq!(taken, 3);
    }

    #[test]
    fn more_positions_than_micro_batches() {
        let mut schedule = Schedule::new(0, 10, 2);
        assert_eq!(schedule.take(|_| true, |_| false), Some(Work::Forward(MicroBatch(0))));
        assert_eq!(schedule.take(|_| true, |_| false), Some(Work::Forward(MicroBatch(1))));
        assert_eq!(schedule.take(|_| true, |_| false), None);
        assert!(!schedule.is_flushed());
    }
}
