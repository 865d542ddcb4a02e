//! The members' side of a room: what their machines are told and want, and their engines' jobs.

use super::{Event, HOST, Node, Pace, World, peer};
use crate::act::{Act, JobName};
use crate::engine::{HostEngine, JobError, Model, StageEngine, Text};
use crate::violation::Violation;
use baton_protocol::PeerId;
use baton_protocol::coordinator::{self, RunPhase, StepReport};
use baton_protocol::link::Lane;
use baton_protocol::message::{BlockBytes, Device, Message};
use baton_protocol::stage::{self, Stage, View};
use std::time::Duration;

impl<M: Model> World<M> {
    pub(super) fn host(&mut self, event: coordinator::Event) {
        self.coordinator.handle(event, self.now);
        self.host_outputs();
    }

    pub(super) fn stage(&mut self, who: PeerId, event: stage::Event) {
        if let Some(node) = self.nodes.get_mut(&who) {
            node.stage.handle(event, self.now);
            self.stage_outputs(who);
        }
    }

    /// Hands a message to a member as if it came over its link.
    pub fn deliver(&mut self, from: PeerId, to: PeerId, message: Message) {
        if to == HOST {
            self.host(coordinator::Event::Message { from, message });
        } else {
            self.stage(to, stage::Event::Message { from, message });
        }
    }

    pub(super) fn lost(&mut self, who: PeerId, peer: PeerId, reason: &str) {
        let reason = reason.to_string();
        if who == HOST {
            self.host(coordinator::Event::Lost { peer, reason });
        } else {
            self.stage(who, stage::Event::Lost { peer, reason });
        }
    }

    pub(super) fn linked(&mut self, conn: usize, side: usize) {
        let ([me, peer], lane) = (self.seen_from(conn, side), self.conns[conn].lane);
        if me == HOST {
            self.host(coordinator::Event::Linked { peer, lane });
        } else {
            self.stage(me, stage::Event::Linked { peer, lane });
        }
    }

    pub(super) fn host_outputs(&mut self) {
        use coordinator::Output;
        while let Some(output) = self.coordinator.poll() {
            match output {
                Output::Send { to, message } => self.send(HOST, to, &message),
                Output::Disconnect { peer } => self.close(HOST, peer),
                Output::Job(job) => self.host_job(job),
                Output::Committed(report) => self.commit(report),
                Output::Evaluate { done } => {
                    if done != self.coordinator.committed() {
                        let (expected, found) = (self.coordinator.committed(), done);
                        self.violate(Violation::Count { expected, found });
                    }
                    self.judged.push(done.0);
                    self.judging = true;
                    self.schedule_within(2, Event::Act(Act::Evaluated));
                }
                Output::Loaded => {
                    if self.lets_go {
                        self.schedule_within(1, Event::Act(Act::Resume));
                    }
                }
                Output::Inferred { request, done: false } => {
                    self.host(coordinator::Event::Infer { request });
                }
                Output::Inferred { request, done: true } => {
                    if !self.host_engine.text(request).is_some_and(Text::is_written) {
                        self.failed_texts.push(request);
                    }
                }
                Output::Changed => {}
            }
        }
        self.rearm(HOST);
        if let RunPhase::Paused(Some(reason)) = self.coordinator.phase()
            && !std::mem::replace(&mut self.reacting, true)
        {
            self.pauses.push(reason);
            self.schedule_within(5, Event::Act(Act::React));
        }
    }

    fn host_job(&mut self, job: coordinator::Job) {
        let name = JobName::from(&job);
        if self.host_job.is_some() {
            self.violate(Violation::TwoJobs { who: HOST, job: name });
        }
        if self.judging && matches!(job, coordinator::Job::Front { .. }) {
            self.violate(Violation::JudgedWhileTraining);
        }
        let done = self.host_engine.run(job);
        if let Err(JobError::Nonsense(reason)) = &done {
            self.violate(Violation::Job { who: HOST, reason: reason.clone() });
        }
        self.host_job = Some((name, done));
        self.begin(HOST, name, 1);
    }

    fn commit(&mut self, report: StepReport) {
        let expected = baton_protocol::Step(u32::try_from(self.committed.len()).unwrap_or(u32::MAX));
        if report.step != expected {
            self.violate(Violation::Order { expected, found: report.step });
        }
        let found = self.coordinator.committed();
        if found != report.step.next() {
            self.violate(Violation::Count { expected: report.step.next(), found });
        }
        let states: Vec<&BlockBytes> = self.coordinator.states().collect();
        if let Err(violation) = self.model.check(&report, &states) {
            self.violate(violation);
        }
        self.committed.push((report, self.now));
    }

    pub(super) fn stage_outputs(&mut self, who: PeerId) {
        use stage::Output;
        while let Some(output) = self.nodes.get_mut(&who).and_then(|node| node.stage.poll()) {
            match output {
                Output::Send { to, message } => self.send(who, to, &message),
                Output::Connect { peer } => self.connect(who, peer),
                Output::Job(job) => self.stage_job(who, job),
                Output::Changed => {}
            }
        }
        if let Some(View::Ended(reason)) = self.nodes.get(&who).map(|node| node.stage.view()) {
            self.endings.insert(who, reason);
            let others: Vec<PeerId> = self.nodes.keys().copied().chain([HOST]).collect();
            others.into_iter().for_each(|other| self.close(who, other));
            self.nodes.remove(&who);
        }
        self.rearm(who);
    }

    fn stage_job(&mut self, who: PeerId, job: stage::Job) {
        let Some(node) = self.nodes.get_mut(&who) else { return };
        let (name, slow) = (JobName::from(&job), node.slow);
        let two = node.job.is_some();
        let done = node.engine.run(job);
        let nonsense = match &done {
            Err(JobError::Nonsense(reason)) => Some(reason.clone()),
            _ => None,
        };
        node.job = Some((name, done));
        if two {
            self.violate(Violation::TwoJobs { who, job: name });
        }
        if let Some(reason) = nonsense {
            self.violate(Violation::Job { who, reason });
        }
        self.begin(who, name, slow);
    }

    fn begin(&mut self, who: PeerId, name: JobName, slow: u32) {
        use rand::Rng;
        let time = match self.scenario.pace {
            Pace::Random => Duration::from_micros(self.rng.random_range(0..20_000)) * slow,
            Pace::Equal(time) if who != HOST && name.is_pass() => time,
            Pace::Equal(_) => Duration::ZERO,
        };
        if name.is_pass() {
            *self.busy.entry(who).or_default() += time;
        }
        if name == JobName::Load {
            self.schedule(self.now + time / 2, Event::Progress(who, 50));
        }
        self.schedule(self.now + time, Event::Done(who));
        self.moment(who, name, false);
    }

    pub(super) fn job_done(&mut self, who: PeerId) {
        let broke = |diverged| JobError::Failed { reason: "the toy broke".into(), diverged };
        if who == HOST {
            let Some((name, done)) = self.host_job.take() else { return };
            self.moment(HOST, name, true);
            let fails = std::mem::take(&mut self.host_fails_next);
            self.host(match if fails { Err(broke(false)) } else { done } {
                Ok(done) => coordinator::Event::Done(done),
                Err(error) => coordinator::Event::JobFailed { reason: error.to_string() },
            });
            return;
        }
        let Some((name, done)) = self.nodes.get_mut(&who).and_then(|node| node.job.take()) else { return };
        self.moment(who, name, true);
        let Some(node) = self.nodes.get_mut(&who) else { return };
        let fails = std::mem::take(&mut node.fail_next);
        let event = match if fails { Err(broke(false)) } else { done } {
            Ok(done) => stage::Event::Done(done),
            Err(error) => {
                let diverged = matches!(error, JobError::Failed { diverged: true, .. });
                stage::Event::JobFailed { reason: error.to_string(), diverged }
            }
        };
        self.stage(who, event);
    }

    pub(super) fn join(&mut self) {
        let id = peer(self.joined);
        self.joined += 1;
        let device = Device { name: format!("phone {id}"), backend: "toy".into() };
        let node = Node {
            stage: Stage::new(HOST, device, self.now),
            engine: self.model.stage(),
            slow: 1,
            job: None,
            fail_next: false,
        };
        self.nodes.insert(id, node);
        self.rearm(id);
        self.open(HOST, id, Lane::Control);
        self.open(HOST, id, Lane::Bulk);
    }

    pub(super) fn kill(&mut self, peer: PeerId, silent: bool) {
        self.nodes.remove(&peer);
        self.rearm(peer);
        for conn in 0..self.conns.len() {
            if self.conns[conn].is_of(peer) {
                if silent {
                    self.silence(conn);
                } else {
                    self.break_conn(conn, 5);
                }
            }
        }
    }

    pub(super) fn connect(&mut self, from: PeerId, to: PeerId) {
        let refused = |pair: &(PeerId, PeerId)| *pair == (from, to) || *pair == (to, from);
        let possible = self.nodes.contains_key(&to) && !self.unreachable.iter().any(refused);
        let conn = self.open(from, to, Lane::Bulk);
        if !possible {
            self.silence(conn);
            self.schedule_within(10, Event::Broken { conn, side: 0 });
        }
    }

    /// Makes what a device sends to the host on its bulk lane arrive late.
    pub fn delay_bulk(&mut self, peer: PeerId, delay: Duration) {
        if let Some(conn) = self.newest(HOST, peer, Lane::Bulk) {
            self.conns[conn].delay_towards(HOST, delay);
        }
    }
}
