//! The host's page is loaded anew: what its browser kept, and who comes again.

use super::{Event, HOST, World};
use crate::act::Act;
use crate::engine::Model;
use baton_protocol::coordinator::{self, Coordinator, RunPhase};
use baton_protocol::link::Lane;
use baton_protocol::message::{BlockBytes, Device};
use baton_protocol::pulse::Monitor;
use baton_protocol::{PeerId, Step, stage};
use rand::Rng;
use std::time::Duration;

/// The browser writes a checkpoint to its disk within this time, in µs; a page that is gone before that finds the one
/// before.
const WRITES: u64 = 50_000;

/// A checkpoint on the host's disk.
#[derive(Debug)]
pub(super) struct Kept {
    from: Duration,
    committed: Step,
    states: Vec<BlockBytes>,
}

impl<M: Model> World<M> {
    /// Keeps what was committed last.
    pub(super) fn keep(&mut self) {
        let from = self.now + Duration::from_micros(self.rng.random_range(0..=WRITES));
        let states = self.coordinator.states().cloned().collect();
        self.kept.push_back(Kept { from, committed: self.coordinator.committed(), states });
        // What is on the disk is replaced by what is written after it.
        let written = self.kept.iter().filter(|kept| kept.from <= self.now).count();
        self.kept.drain(..written.saturating_sub(1));
    }

    /// Whether the host's page is there, with a run that is to be gone on with.
    pub(super) fn is_under_way(&self) -> bool {
        use RunPhase::{Loaded, Loading, Paused, Running};
        matches!(self.coordinator.phase(), Loading | Loaded | Running | Paused(_))
    }

    /// Drops the host's machine, engine and connections. A run that is not under way is not gone on with.
    pub(super) fn reload(&mut self) {
        if !self.is_under_way() {
            return;
        }
        let now = self.now;
        // Nobody is told of the plan any more that the page had begun to tell of.
        if let Some(plan) = self.plans.last_mut() {
            plan.host.get_or_insert_default();
        }
        self.kept.retain(|kept| kept.from <= now);
        self.reloaded = true;
        let device = Device { name: self.room.host.name.clone(), backend: "simulated".into() };
        self.coordinator = Coordinator::new(device, now);
        self.host_engine = self.model.host(&self.room.settings);
        if std::mem::take(&mut self.judging) {
            // What was being found out is not kept.
            self.judged.pop();
        }
        (self.host_job, self.host_fails_next) = (None, false);
        self.host_body.doing = None;
        self.replicating.clear();
        self.frozen.remove(&HOST);
        self.monitors.insert(HOST, Monitor::new(now));
        // Texts were asked for by the page that is gone.
        self.texts.clear();
        self.rearm(HOST);
        let members: Vec<PeerId> = self.nodes.keys().copied().collect();
        for who in members {
            if !self.room.patience.is_zero() {
                self.schedule_within(6, Event::Act(Act::Return(who)));
            } else if let Some(spec) = self.specs.get(&who) {
                self.returning.push_back(spec.clone());
                self.schedule_within(6, Event::Act(Act::Join));
            }
        }
        for conn in 0..self.conns.len() {
            if self.conns[conn].is_of(HOST) {
                self.break_conn(conn, 2);
            }
        }
        self.schedule_within(3, Event::Act(Act::Restore));
    }

    /// A device keeps its blocks, and makes its connections anew.
    pub(super) fn comes_again(&mut self, who: PeerId) {
        if self.nodes.contains_key(&who) {
            self.open(HOST, who, Lane::Control);
            self.open(HOST, who, Lane::Bulk);
            self.stage(who, stage::Event::HostReturned { host: HOST });
        }
    }

    /// Goes on with the run from its newest checkpoint.
    pub(super) fn restore(&mut self) {
        if self.coordinator.phase() != RunPhase::Lobby {
            return;
        }
        let mut start = self.start();
        if let Some(kept) = self.kept.back() {
            (start.committed, start.states) = (kept.committed, kept.states.clone());
        }
        self.committed.truncate(start.committed.0 as usize);
        self.judged.retain(|done| *done <= start.committed.0);
        start.judged = self.judged.last() == Some(&start.committed.0);
        self.host(coordinator::Event::Start(Box::new(start)));
    }
}
