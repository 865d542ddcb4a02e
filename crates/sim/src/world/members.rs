//! The members' side of a room: what their machines are told and want, and their engines' jobs.

use super::{Body, Event, HOST, Node, Pace, PlanMade, World, peer};
use crate::act::{Act, JobName};
use crate::cost::{Costs, DeviceSpec, seconds};
use crate::engine::{HostEngine, JobError, Model, StageEngine, Text};
use crate::trace::{Doing, Life};
use crate::violation::Violation;
use baton_plan::{Curve, DeviceProfile, HostProfile};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{self, Coordinator, RunPhase, Start, StepReport};
use baton_protocol::link::Lane;
use baton_protocol::message::{Assign, BlockBytes, Device, Measure, Message};
use baton_protocol::stage::{self, Failure, Stage, View};
use baton_protocol::{MicroBatch, PeerId};
use rand::Rng;
use std::ops::Range;
use std::time::{Duration, Instant};

impl<M: Model> World<M> {
    /// The run as the person starts it. Where work is modelled the planner knows what blocks weigh; where every pass takes
    /// the same time, whatever its blocks, there is nothing to plan by.
    pub(super) fn start(&self) -> Start {
        let mut start = self.model.start(&self.room.settings);
        match self.room.pace {
            Pace::Modelled(costs) => start.profile = Some(costs.profile(start.blocks, &start.settings)),
            Pace::Equal(_) => start.profile = None,
            Pace::Random => {}
        }
        start
    }

    pub(super) fn host(&mut self, event: coordinator::Event) {
        let now = self.now;
        self.timed(|coordinator| coordinator.handle(event, now));
        self.host_outputs();
    }

    /// Lets the host's machine work, by the real clock if that is wanted.
    pub(super) fn timed<T>(&mut self, work: impl FnOnce(&mut Coordinator) -> T) -> T {
        let begun = self.host_calls.is_some().then(Instant::now);
        let done = work(&mut self.coordinator);
        if let (Some(calls), Some(begun)) = (&mut self.host_calls, begun) {
            calls.push(begun.elapsed());
        }
        done
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
        if let Some(monitor) = self.monitors.get_mut(&who) {
            monitor.forget(peer);
        }
        let reason = reason.to_string();
        if who == HOST {
            self.host(coordinator::Event::Lost { peer, reason });
        } else {
            self.stage(who, stage::Event::Lost { peer, reason });
        }
    }

    pub(super) fn linked(&mut self, conn: usize, side: usize) {
        let ([me, peer], lane) = (self.seen_from(conn, side), self.conns[conn].lane);
        if lane == Lane::Control
            && let Some(monitor) = self.monitors.get_mut(&me)
        {
            monitor.watch(peer, self.now);
        }
        if me == HOST {
            self.host(coordinator::Event::Linked { peer, lane });
        } else {
            self.stage(me, stage::Event::Linked { peer, lane });
        }
    }

    pub(super) fn host_outputs(&mut self) {
        use coordinator::Output;
        while let Some(output) = self.timed(Coordinator::poll) {
            match output {
                Output::Send { to, message } => {
                    if let Message::Assign(assign) = &message {
                        self.planned(to, assign);
                    }
                    self.send(HOST, to, &message);
                }
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
                    self.person_does(2, Act::Evaluated);
                }
                Output::Loaded => {
                    if self.lets_go {
                        self.person_does(1, Act::Resume);
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
                Output::Left { device, reason } => self.left.push((device, reason)),
                Output::Changed => {}
            }
        }
        self.rearm(HOST);
        if let RunPhase::Paused(Some(reason)) = self.coordinator.phase()
            && !std::mem::replace(&mut self.reacting, true)
        {
            self.pauses.push((self.now, reason));
            self.schedule_within(5, Event::Act(Act::React));
        }
    }

    fn planned(&mut self, to: PeerId, assign: &Assign) {
        let generation = Some(assign.generation);
        // Everybody is told before the host begins; a page that was loaded anew counts from the start again.
        let is_open = |plan: &PlanMade| plan.generation == generation && plan.host.is_none();
        if !self.plans.last().is_some_and(is_open) {
            self.replicating.clear();
            let plan = PlanMade {
                generation,
                at: self.now,
                went_on: None,
                host: None,
                stages: Vec::new(),
                micro_batches: assign.settings.micro_batches,
                ahead: assign.settings.ahead,
                recompute: (false, Vec::new()),
            };
            self.plans.push(plan);
        }
        if let Some(plan) = self.plans.last_mut() {
            plan.stages.push((to, assign.blocks.clone()));
            plan.recompute.1.push(assign.settings.recompute);
        }
        if let Some(life) = self.trace.as_mut().and_then(|trace| trace.lives.get_mut(&to)) {
            life.blocks = assign.blocks.clone();
        }
    }

    /// The plan in force is complete; one of which no device was told has the host go on alone.
    fn host_loads(&mut self, blocks: &Range<u16>, micro_batches: u16, recompute: bool) {
        if self.plans.last().is_none_or(|plan| plan.host.is_some()) {
            self.replicating.clear();
            let (at, stages) = (self.now, Vec::new());
            let recompute = (recompute, Vec::new());
            self.plans.push(PlanMade {
                generation: None,
                at,
                went_on: None,
                host: None,
                stages,
                micro_batches,
                ahead: 0,
                recompute,
            });
        }
        let Some(plan) = self.plans.last_mut() else { return };
        (plan.host, plan.recompute.0) = (Some(blocks.clone()), recompute);
        let Some(trace) = &mut self.trace else { return };
        for (who, life) in trace.lives.iter_mut().filter(|(_, life)| life.gone.is_none()) {
            let own = plan.stages.iter().find(|(stage, _)| stage == who).map(|(_, blocks)| blocks.clone());
            life.blocks = if *who == HOST { blocks.clone() } else { own.unwrap_or_default() };
        }
    }

    fn host_job(&mut self, job: coordinator::Job) {
        if let coordinator::Job::Measure(measure) = &job {
            let device = self.profile(HOST, measure);
            let done = device.and_then(|device| self.host_profile(device));
            let done = done.ok_or_else(|| unmeasured("the host"));
            self.host_job = Some((JobName::Measure, done.map(Box::new).map(coordinator::Done::Measure)));
            return self.begin(HOST, JobName::Measure, None);
        }
        let (name, slice) = (JobName::from(&job), micro_batch_of_host(&job));
        if let coordinator::Job::Check { blocks, .. } = &job {
            self.host_body.checks = blocks.len() as u16;
        }
        if let coordinator::Job::Load { blocks, micro_batches, recompute, .. } = &job {
            self.host_body.load(blocks, *recompute);
            if let Pace::Modelled(costs) = &mut self.room.pace {
                costs.cut(self.room.settings.batch_size, *micro_batches);
            }
            self.host_loads(blocks, *micro_batches, *recompute);
        }
        if let (coordinator::Job::Front { .. }, Some(plan)) = (&job, self.plans.last_mut()) {
            plan.went_on.get_or_insert(self.now);
        }
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
        self.begin(HOST, name, slice);
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
        if let Err(violation) = self.model.check(&report, &states)
            && !self.lied
        {
            self.violate(violation);
        }
        self.committed.push((report, self.now));
        self.replicating.clear();
        self.keep();
    }

    pub(super) fn stage_outputs(&mut self, who: PeerId) {
        use stage::Output;
        while let Some(output) = self.nodes.get_mut(&who).and_then(|node| node.stage.poll()) {
            match output {
                Output::Send { to, message } => self.send(who, to, &message),
                Output::Connect { peer } => self.connect(who, peer),
                Output::Job(job) => self.stage_job(who, job),
                Output::Fetch(assign) => self.fetch(who, &assign),
                Output::Changed => {}
            }
        }
        if let Some(View::Ended(reason)) = self.nodes.get(&who).map(|node| node.stage.view()) {
            self.endings.insert(who, reason);
            let others: Vec<PeerId> = self.nodes.keys().copied().chain([HOST]).collect();
            others.into_iter().for_each(|other| self.close(who, other));
            self.nodes.remove(&who);
            self.gone(who);
            self.monitors.remove(&who);
        }
        self.rearm(who);
    }

    /// There are no files here: only the time that it takes to fetch them.
    fn fetch(&mut self, who: PeerId, assign: &Assign) {
        let Pace::Modelled(costs) = self.room.pace else {
            return self.schedule_within(1, Event::Fetched(who, assign.blocks.clone()));
        };
        let Some(node) = self.nodes.get_mut(&who) else { return };
        let missing = assign.blocks.clone().filter(|block| node.body.cached.insert(*block)).count();
        let bytes = missing as f64 * costs.file;
        let there = self.fabric.arrival(&mut self.rng, [HOST, who], Lane::Bulk, bytes, self.now);
        if let Some(trace) = &mut self.trace {
            trace.add(who, Doing::Receives(HOST), self.now..there);
        }
        self.schedule(there, Event::Fetched(who, assign.blocks.clone()));
    }

    fn stage_job(&mut self, who: PeerId, job: stage::Job) {
        if let stage::Job::Measure(measure) = &job {
            let done = self.profile(who, measure).ok_or_else(|| unmeasured("it"));
            let done = done.map(Box::new).map(stage::Done::Measure);
            if let Some(node) = self.nodes.get_mut(&who) {
                node.job = Some((JobName::Measure, done));
            }
            return self.begin(who, JobName::Measure, None);
        }
        let Some(node) = self.nodes.get_mut(&who) else { return };
        if let stage::Job::Load(assign) = &job {
            node.body.load(&assign.blocks, assign.settings.recompute);
        }
        let (name, slice) = (JobName::from(&job), micro_batch_of_stage(&job));
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
        self.begin(who, name, slice);
    }

    /// What a device finds out about itself: no more memory than the question asks for.
    fn profile(&mut self, who: PeerId, measure: &Measure) -> Option<DeviceProfile> {
        let pace = self.room.pace;
        let noise = if matches!(pace, Pace::Random) { self.rng.random_range(0.9..1.1) } else { 1.0 };
        let body = self.body(who)?;
        let spec = &body.spec;
        let slow = f64::from(body.slow);
        let samples = measure.settings.batch_size.div_ceil(measure.settings.micro_batches.into()).max(1);
        let curve = |job: JobName| match pace {
            Pace::Modelled(costs) => {
                let flop = costs.work(job, 1, false, false) / costs.samples;
                let each = flop / spec.flops;
                Curve::affine(slow * spec.overhead.as_secs_f64(), slow * each)
            }
            // The mean of what its passes take, by and large.
            Pace::Random => Curve::new([(samples, 0.01 * slow * noise)]),
            Pace::Equal(time) => Curve::new([(samples, time.as_secs_f64())]),
        };
        Some(DeviceProfile {
            memory: spec.memory.map_or(measure.most, |memory| measure.most.min(memory as u64)),
            forward: curve(JobName::Forward).ok()?,
            backward: curve(JobName::Backward).ok()?,
            update: 0.0,
            slowness: 1.0,
        })
    }

    fn host_profile(&self, device: DeviceProfile) -> Option<HostProfile> {
        let spec = &self.host_body.spec;
        let curve = |flop: f64| Curve::affine(spec.overhead.as_secs_f64(), flop / spec.flops).ok();
        let (front, head) = match self.room.pace {
            Pace::Modelled(costs) => (curve(costs.front)?, curve(costs.head)?),
            Pace::Random | Pace::Equal(_) => {
                let nothing = Curve::new([(1, 0.0)]).ok()?;
                (nothing.clone(), nothing)
            }
        };
        Some(HostProfile { device, front, head })
    }

    pub(super) fn body(&mut self, who: PeerId) -> Option<&mut Body> {
        match self.nodes.get_mut(&who) {
            Some(node) => Some(&mut node.body),
            None => (who == HOST).then_some(&mut self.host_body),
        }
    }

    fn gone(&mut self, who: PeerId) {
        if let Some(life) = self.trace.as_mut().and_then(|trace| trace.lives.get_mut(&who)) {
            life.gone.get_or_insert(self.now);
        }
    }

    fn begin(&mut self, who: PeerId, name: JobName, slice: Option<MicroBatch>) {
        let time = match self.room.pace {
            _ if name == JobName::Measure => Duration::from_millis(self.rng.random_range(1..1000)),
            Pace::Random => {
                let own = if who == HOST {
                    self.host_body.blocks.len()
                } else {
                    let assign = self.nodes.get(&who).and_then(|node| node.stage.assign());
                    assign.map_or(1, |assign| assign.blocks.len())
                };
                let blocks = if name.is_pass() { own.max(1) } else { 1 };
                let block = Duration::from_micros(self.rng.random_range(0..20_000));
                let slow = self.body(who).map_or(1, |body| body.slow);
                block * slow * u32::try_from(blocks).unwrap_or(u32::MAX)
            }
            Pace::Equal(time) if who != HOST && name.is_pass() => time,
            Pace::Equal(_) => Duration::ZERO,
            Pace::Modelled(costs) => self.cost(who, name, &costs),
        };
        if name.is_pass() {
            *self.busy.entry(who).or_default() += time;
        }
        let (now, sequence) = (self.now, self.sequence);
        if let Some(body) = self.body(who) {
            body.doing = Some((Doing::Job(name, slice), now));
            body.job = sequence;
        }
        if name == JobName::Load {
            // A slow line brings something all the time.
            let tells = (time.as_secs() / 10).clamp(1, 99);
            for told in 1..=tells {
                let share = told * 100 / (tells + 1);
                self.schedule(self.now + time.mul_f64(share as f64 / 100.0), Event::Progress(who, share));
            }
        }
        if !(name.is_pass() && self.nodes.get(&who).is_some_and(|node| node.stalls)) {
            self.schedule(self.now + time, Event::Done(who, sequence));
        }
        self.moment(who, name, false);
    }

    /// How long a job takes; a device that it needs more memory for than it has dies of it.
    fn cost(&mut self, who: PeerId, name: JobName, costs: &Costs) -> Duration {
        let now = self.now;
        let Some(body) = self.body(who) else { return Duration::ZERO };
        match name {
            JobName::Load => body.in_flight = 0,
            JobName::Forward => body.in_flight += 1,
            _ => {}
        }
        let blocks = body.blocks.len() as u16;
        let recompute = body.recompute;
        let held =
            costs.memory(blocks, body.in_flight, recompute) + if who == HOST { costs.ends } else { 0.0 };
        if name == JobName::Backward {
            body.in_flight = body.in_flight.saturating_sub(1);
        }
        let too_much = who != HOST && body.spec.memory.is_some_and(|memory| held > memory);
        let missing = body.blocks.clone().filter(|block| !body.cached.contains(block)).count();
        let time = if name == JobName::Load {
            body.cached.extend(body.blocks.clone());
            seconds(f64::from(blocks) * costs.file / body.spec.disk)
        } else {
            let blocks = if name == JobName::Check { body.checks } else { blocks };
            let flop = costs.work(name, blocks, who == HOST, recompute);
            body.heat.work(&body.spec, flop, now) * body.slow
        };
        if let Some(life) = self.trace.as_mut().and_then(|trace| trace.lives.get_mut(&who)) {
            life.peak_memory = life.peak_memory.max(held);
        }
        if too_much {
            // The machine is being polled: it happens next.
            self.schedule(now, Event::Act(Act::Kill { peer: who, silent: false }));
        }
        if name == JobName::Load && who != HOST && missing > 0 {
            let bytes = missing as f64 * costs.file;
            let there = self.fabric.arrival(&mut self.rng, [HOST, who], Lane::Bulk, bytes, now);
            return time + (there - now);
        }
        time
    }

    pub(super) fn job_done(&mut self, who: PeerId, number: u64) {
        let now = self.now;
        let Some(body) = self.body(who).filter(|body| body.job == number) else { return };
        let Some((doing, since)) = body.doing.take() else { return };
        if let Some(trace) = &mut self.trace {
            trace.add(who, doing, since..now);
        }

        let broke = || JobError::Failed { reason: "its engine failed".into(), failure: Failure::Engine };
        let failure = |error: &JobError| match error {
            JobError::Failed { failure, .. } => *failure,
            JobError::Nonsense(_) => Failure::Engine,
        };
        if who == HOST {
            let Some((name, done)) = self.host_job.take() else { return };
            self.moment(HOST, name, true);
            let fails = std::mem::take(&mut self.host_fails_next);
            self.host(match if fails { Err(broke()) } else { done } {
                Ok(done) => coordinator::Event::Done(done),
                Err(error) => {
                    let failure = failure(&error);
                    coordinator::Event::JobFailed { reason: error.to_string(), failure }
                }
            });
            return;
        }
        let Some((name, done)) = self.nodes.get_mut(&who).and_then(|node| node.job.take()) else { return };
        self.moment(who, name, true);
        let Some(node) = self.nodes.get_mut(&who) else { return };
        let fails = std::mem::take(&mut node.fail_next);
        let done = match node.fail_passes.filter(|_| name.is_pass()) {
            Some(failure) => Err(JobError::Failed { reason: "the toy was made to fail".into(), failure }),
            None => done,
        };
        let lies = node.lies;
        let event = match if fails { Err(broke()) } else { done } {
            Ok(stage::Done::Forward(tensor)) if lies => stage::Event::Done(stage::Done::Forward(lie(tensor))),
            Ok(done) => stage::Event::Done(done),
            Err(error) => {
                let failure = failure(&error);
                stage::Event::JobFailed { reason: error.to_string(), failure }
            }
        };
        self.stage(who, event);
    }

    pub(super) fn join(&mut self) {
        let id = peer(self.joined);
        let fallback = || DeviceSpec { name: format!("phone {id}"), ..DeviceSpec::default() };
        let spec = match (self.returning.pop_front(), self.room.devices.get(self.strangers)) {
            (Some(spec), _) => spec,
            (None, None) if !self.is_public => return,
            (None, named) => {
                let spec = named.cloned().unwrap_or_else(fallback);
                self.strangers += 1;
                if self.now > Duration::ZERO {
                    let point = self.point(HOST);
                    self.struck.extend(point.map(|point| ("late join", point)));
                }
                spec
            }
        };
        self.joined += 1;
        let device = Device { name: spec.name.clone(), backend: "simulated".into() };
        if let Some(trace) = &mut self.trace {
            let life = Life { name: spec.name.clone(), joined: self.now, ..Life::default() };
            trace.lives.insert(id, life);
        }
        self.fabric.join(id, spec.access);
        self.specs.insert(id, spec.clone());
        let node = Node {
            stage: Stage::new(HOST, device, self.now).with_patience(self.room.patience),
            engine: self.model.stage(),
            body: Body::new(spec),
            job: None,
            fail_next: false,
            fail_passes: None,
            stalls: false,
            lies: false,
        };
        self.nodes.insert(id, node);
        self.rearm(id);
        self.watch(id);
        self.open(HOST, id, Lane::Control);
        self.open(HOST, id, Lane::Bulk);
    }

    pub(super) fn kill(&mut self, peer: PeerId, silent: bool) {
        if let Some(Node { body: Body { doing: Some((doing, since)), .. }, .. }) = self.nodes.remove(&peer)
            && let Some(trace) = &mut self.trace
        {
            trace.add(peer, doing, since..self.now);
        }
        self.gone(peer);
        self.monitors.remove(&peer);
        self.rearm(peer);
        // The signaling server tells the room of a tab that is gone; where time is drawn, only the browsers notice.
        let noticed = if matches!(self.room.pace, Pace::Modelled(_)) { 1 } else { 5 };
        for conn in 0..self.conns.len() {
            if self.conns[conn].is_of(peer) {
                if silent {
                    self.silence(conn);
                } else {
                    self.break_conn(conn, noticed);
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

impl Body {
    fn load(&mut self, blocks: &Range<u16>, recompute: bool) {
        (self.blocks, self.recompute) = (blocks.clone(), recompute);
    }
}

fn micro_batch_of_host(job: &coordinator::Job) -> Option<MicroBatch> {
    use coordinator::Job;
    match job {
        Job::Front { micro_batch, .. }
        | Job::Head { micro_batch, .. }
        | Job::BackFront { micro_batch, .. } => Some(*micro_batch),
        _ => None,
    }
}

fn micro_batch_of_stage(job: &stage::Job) -> Option<MicroBatch> {
    use stage::Job;
    match job {
        Job::Forward { micro_batch, .. } | Job::Backward { micro_batch, .. } => Some(*micro_batch),
        _ => None,
    }
}

/// Half of every number: of the right shape, and finite.
fn lie(tensor: Boundary) -> Boundary {
    let Ok(mut numbers) = tensor.decode() else { return tensor };
    numbers.iter_mut().for_each(|number| *number /= 2.0);
    let lie = Boundary::encode(&numbers, tensor.shape(), Precision::F32);
    lie.map_or(tensor, |lie| lie)
}

fn unmeasured(who: &str) -> JobError {
    JobError::Failed { reason: format!("{who} is too slow to measure itself"), failure: Failure::Engine }
}
