//! The room: its members' machines and engines, a person at the host, and what happens to them in virtual time.

mod members;
mod network;
mod pulses;
mod reload;

use crate::act::{Act, JobName, Moment, Word};
use crate::cost::{Costs, DeviceSpec, Heat};
use crate::engine::{HostEngine, JobError, Model, StageEngine, Text};
use crate::net::{Fabric, Network, Wire};
use crate::toy::{Toy, ToyModel};
use crate::trace::{Doing, Life, Trace};
use crate::violation::Violation;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::{self, Coordinator, RunPhase, StepReport};
use baton_protocol::link::Lane;
use baton_protocol::message::{Device, Message};
use baton_protocol::pulse::{Monitor, Pulse};
use baton_protocol::run::{LrSchedule, Settings};
use baton_protocol::stage::{self, Failure, Stage, View};
use baton_protocol::{Generation, PeerId};
use network::Conn;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reload::Kept;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// The host's number in the room, as the signaling server gave it.
pub const HOST: PeerId = PeerId(1);

/// Longer than any small run may take, in virtual time.
const PATIENCE: Duration = Duration::from_secs(4000);
/// A person waits so long for somebody who could go on, when nothing else is to come.
const GIVES_UP: Duration = Duration::from_secs(600);
/// After so long without an answer the browsers at both ends give a connection up.
const CONSENT: Duration = Duration::from_secs(16);

/// The n-th device that joined.
pub fn peer(n: u32) -> PeerId {
    PeerId(HOST.0 + 1 + n)
}

/// A room and how it behaves.
#[derive(Clone, Debug)]
pub struct Room {
    /// What the person set.
    pub settings: Settings,
    /// Devices that are there before the start.
    pub peers: u32,
    /// How long jobs take.
    pub pace: Pace,
    /// When what is sent arrives.
    pub network: Network,
    /// How long a device that loses the host waits for it; without patience its owner opens the link again.
    pub patience: Duration,
    /// The host's device.
    pub host: DeviceSpec,
    /// The others in the order in which they join; those beyond are as the default one.
    pub devices: Vec<DeviceSpec>,
}

/// A room that trains the toy, for tests.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The model.
    pub toy: Toy,
    /// What the person set.
    pub settings: Settings,
    /// Devices that are there before the start.
    pub peers: u32,
    /// How long jobs take.
    pub pace: Pace,
    /// Of a frame, in µs; each direction of each link draws its own.
    pub max_delay: u64,
}

/// How long jobs take.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each up to 20 ms, a pass so much for each block; drawn anew.
    Random,
    /// Forward and backward of a stage take this long, everything else no time.
    Equal(Duration),
    /// As their work and the devices' speeds say; messages are as long as the model's would be.
    Modelled(Costs),
}

impl Scenario {
    /// A small model, five steps.
    pub fn new(peers: u32, micro_batches: u16) -> Self {
        let toy = Toy { blocks: 6, samples: 8, width: 5, precision: Precision::F32, head: false };
        let settings = Settings {
            steps: 5,
            batch_size: toy.samples,
            micro_batches,
            lr: 0.05,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 1,
            grad_clip: 0.05,
            evaluate_every: 2,
            ..Settings::default()
        };
        Self { toy, settings, peers, pace: Pace::Random, max_delay: 30_000 }
    }

    fn room(self) -> Room {
        Room {
            settings: self.settings,
            peers: self.peers,
            pace: self.pace,
            network: Network::Drawn(Duration::from_micros(self.max_delay)),
            patience: Duration::ZERO,
            host: DeviceSpec { name: "host".into(), ..DeviceSpec::default() },
            devices: Vec::new(),
        }
    }
}

/// A plan, as the host told the devices of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanMade {
    /// Its number, if devices were told of it: a host that goes on alone tells nobody.
    pub generation: Option<Generation>,
    /// When the host told of it, or began alone.
    pub at: Duration,
    /// When the first job of a step was done under it.
    pub went_on: Option<Duration>,
    /// The host's own blocks, once it has been told to load them.
    pub host: Option<Range<u16>>,
    /// Who runs what, in pipeline order.
    pub stages: Vec<(PeerId, Range<u16>)>,
    /// Into how many micro-batches a step is cut.
    pub micro_batches: u16,
    /// How many more are in flight than 1F1B's own.
    pub ahead: u16,
    /// Who computes activations again: the host, and each stage.
    pub recompute: (bool, Vec<bool>),
}

/// A point of a run, as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// No run is under way.
    NoRun,
    /// The device is on its way into the room: a run may be under way among the others.
    Handshake(Entry),
    /// The first plan is put in force: the device works on this, or waits.
    Start(Option<JobName>),
    /// Steps are made, or a person lets them wait.
    Step(Option<JobName>),
    /// The device has updated, and its adapters and moments are on their way to the host (somebody's, at the host): the
    /// step is not committed. It may have begun the next one.
    Replication(Option<JobName>),
    /// A later plan is put in force.
    Recovery(Option<JobName>),
}

/// How far a device has come into the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Not both of its links to the host are open at both ends.
    Connecting,
    /// They are, and it was not welcomed.
    Greeting,
    /// Its link to the host is timed for the first time.
    Timing,
    /// It measures itself for the run, or is to.
    Measuring,
}

#[derive(Debug)]
enum Event {
    Attach {
        conn: usize,
        side: usize,
    },
    Frame {
        conn: usize,
        side: usize,
        bytes: Vec<u8>,
    },
    Broken {
        conn: usize,
        side: usize,
    },
    /// With the number of the job.
    Done(PeerId, u64),
    Progress(PeerId, u64),
    /// Both ends give a connection up.
    Sever(usize),
    Fetched(PeerId, Range<u16>),
    /// A device's idle thread sends its pulse and looks who is silent.
    Beat(PeerId),
    Pulse {
        from: PeerId,
        to: PeerId,
        pulse: Pulse,
    },
    Act(Act),
}

#[derive(Debug)]
struct Node<E> {
    stage: Stage,
    engine: E,
    body: Body,
    job: Option<(JobName, Result<stage::Done, JobError>)>,
    fail_next: bool,
    fail_passes: Option<Failure>,
    stalls: bool,
    lies: bool,
}

/// A device behind a machine.
#[derive(Debug, Default)]
struct Body {
    spec: DeviceSpec,
    slow: u32,
    heat: Heat,
    /// What its engine works on, and since when.
    doing: Option<(Doing, Duration)>,
    blocks: Range<u16>,
    /// Blocks of another device that it computes again, of a micro-batch.
    checks: u16,
    recompute: bool,
    /// Blocks on its disk.
    cached: BTreeSet<u16>,
    in_flight: u16,
    /// The number of the job that it works on.
    job: u64,
}

impl Body {
    fn new(spec: DeviceSpec) -> Self {
        Self { spec, slow: 1, ..Self::default() }
    }
}

/// The room.
#[derive(Debug)]
pub struct World<M: Model = ToyModel> {
    /// What is run.
    pub room: Room,
    /// What is trained.
    pub model: M,
    /// What everybody did, if that is wanted.
    pub trace: Option<Trace>,
    /// Plans in the order in which they were put in force.
    pub plans: Vec<PlanMade>,
    /// What happened from outside, and when.
    pub happened: Vec<(Duration, Act)>,
    /// Faults by name, and devices that joined late, and at which point of the run that was; a fault at a device that is not
    /// there strikes nobody.
    pub struck: Vec<(&'static str, Point)>,
    /// By the real clock, how long each call of the host's machine took since the run was let go; if it is measured.
    pub host_calls: Option<Vec<Duration>>,
    /// Longer than the run may take, in virtual time.
    pub patience: Duration,
    /// The host's machine.
    pub coordinator: Coordinator,
    /// Everything that is drawn is drawn from it.
    pub rng: ChaCha8Rng,
    /// Virtual time.
    pub now: Duration,
    /// Steps of the run in force that were committed, and when.
    pub committed: Vec<(StepReport, Duration)>,
    /// When the person first let the run go, if it came so far.
    pub let_go: Option<Duration>,
    /// Whether the person lets a loaded run go.
    pub lets_go: bool,
    /// Whether devices may join that nobody named.
    pub is_public: bool,
    /// Whether the person can find such devices when all are gone.
    pub has_spares: bool,
    /// Pairs of devices that can never connect.
    pub unreachable: Vec<(PeerId, PeerId)>,
    /// Texts that were asked for, and of how many tokens.
    pub texts: BTreeMap<u32, usize>,
    /// Those that the machine gave up.
    pub failed_texts: Vec<u32>,
    /// Steps after which the model was judged.
    pub judged: Vec<u32>,
    /// When and why the run waited for a person.
    pub pauses: Vec<(Duration, String)>,
    /// What the person waited for in vain, and then ended the run.
    pub gave_up: Option<String>,
    /// What devices that are gone last told their owners.
    pub endings: BTreeMap<PeerId, String>,
    /// Devices that the host was told are gone, and why.
    pub left: Vec<(String, String)>,
    monitors: BTreeMap<PeerId, Monitor>,
    /// Devices whose pages are hidden.
    hidden: BTreeSet<PeerId>,
    /// What the host's browser keeps of the run, and from when on.
    kept: VecDeque<Kept>,
    reloaded: bool,
    /// A job that has just ended, while what is planned for that moment happens.
    ended: Option<(PeerId, JobName)>,
    violation: Option<Violation>,
    judging: bool,
    /// Devices whose adapters and moments are on their way to the host: the step is not committed.
    replicating: BTreeSet<PeerId>,
    /// Somebody computes something else: the numbers are not those of one process.
    lied: bool,
    /// From when and until when.
    frozen: BTreeMap<PeerId, Range<Duration>>,
    fabric: Fabric,
    host_body: Body,
    host_engine: M::Host,
    host_job: Option<(JobName, Result<coordinator::Done, JobError>)>,
    host_fails_next: bool,
    nodes: BTreeMap<PeerId, Node<M::Stage>>,
    joined: u32,
    /// Of them, those who were not there before a reload.
    strangers: usize,
    /// Of who joins next, before those of the room.
    returning: VecDeque<DeviceSpec>,
    /// Of everybody who ever joined.
    specs: BTreeMap<PeerId, DeviceSpec>,
    conns: Vec<Conn>,
    /// The newest connection of a pair and lane: a shell forgets the ones before it.
    newest: HashMap<(PeerId, PeerId, Lane), usize>,
    queue: BTreeMap<(Duration, u64), Event>,
    /// Planned acts in the queue.
    acts: usize,
    /// When each machine wants to be woken.
    timers: BTreeSet<(Duration, PeerId)>,
    armed: BTreeMap<PeerId, Duration>,
    sequence: u64,
    moments: Vec<(Moment, Act)>,
    history: VecDeque<(PeerId, PeerId, Message)>,
    reacting: bool,
    busy: BTreeMap<PeerId, Duration>,
}

impl World<ToyModel> {
    /// A room that trains the toy.
    ///
    /// # Errors
    ///
    /// When the toy's numbers are none.
    pub fn new(mut scenario: Scenario, seed: u64) -> Result<Self, JobError> {
        // Half of the rooms train a head too; judging takes time, which a scenario of exact times has not.
        scenario.toy.head |= seed % 2 == 1;
        if matches!(scenario.pace, Pace::Equal(_)) {
            scenario.settings.validation = 0.0;
        }
        let model = ToyModel::new(scenario.toy, &scenario.settings)?;
        Ok(World::with(model, scenario.room(), seed))
    }
}

impl<M: Model> World<M> {
    /// A room that trains `model`; devices join at once, the person starts the run a second later.
    pub fn with(model: M, room: Room, seed: u64) -> Self {
        let device = Device { name: room.host.name.clone(), backend: "simulated".into() };
        let mut fabric = Fabric::new(&room.network);
        fabric.join(HOST, room.host.access);
        let mut world = Self {
            host_engine: model.host(&room.settings),
            fabric,
            host_body: Body::new(room.host.clone()),
            model,
            trace: None,
            plans: Vec::new(),
            happened: Vec::new(),
            struck: Vec::new(),
            host_calls: None,
            patience: PATIENCE,
            coordinator: Coordinator::new(device, Duration::ZERO),
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Duration::ZERO,
            committed: Vec::new(),
            let_go: None,
            lets_go: true,
            is_public: true,
            has_spares: true,
            unreachable: Vec::new(),
            texts: BTreeMap::new(),
            failed_texts: Vec::new(),
            judged: Vec::new(),
            pauses: Vec::new(),
            gave_up: None,
            endings: BTreeMap::new(),
            left: Vec::new(),
            monitors: BTreeMap::new(),
            hidden: BTreeSet::new(),
            violation: None,
            lied: false,
            judging: false,
            replicating: BTreeSet::new(),
            frozen: BTreeMap::new(),
            host_job: None,
            host_fails_next: false,
            nodes: BTreeMap::new(),
            joined: 0,
            strangers: 0,
            specs: BTreeMap::new(),
            returning: VecDeque::new(),
            kept: VecDeque::new(),
            reloaded: false,
            ended: None,
            conns: Vec::new(),
            newest: HashMap::new(),
            queue: BTreeMap::new(),
            acts: 0,
            timers: BTreeSet::new(),
            armed: BTreeMap::new(),
            sequence: 0,
            moments: Vec::new(),
            history: VecDeque::new(),
            reacting: false,
            busy: BTreeMap::new(),
            room,
        };
        world.rearm(HOST);
        world.watch(HOST);
        for _ in 0..world.room.peers {
            world.act(Act::Join);
        }
        world.plan(Moment::At(Duration::from_secs(1)), Act::Start);
        world
    }

    /// Keeps what everybody does from now on.
    pub fn record(&mut self) {
        let mut trace = Trace::default();
        let life = |name: &str, joined| Life { name: name.into(), joined, ..Life::default() };
        trace.lives.insert(HOST, life(&self.room.host.name, Duration::ZERO));
        for (id, node) in &self.nodes {
            trace.lives.insert(*id, life(&node.body.spec.name, self.now));
        }
        self.trace = Some(trace);
    }

    /// Notes what is still under way.
    pub fn end_record(&mut self) {
        let now = self.now;
        let members: Vec<PeerId> = self.nodes.keys().copied().chain([HOST]).collect();
        for who in members {
            let doing = self.body(who).and_then(|body| body.doing);
            if let (Some((doing, since)), Some(trace)) = (doing, &mut self.trace) {
                trace.add(who, doing, since..now);
            }
        }
    }

    /// Has something happen later.
    pub fn plan(&mut self, moment: Moment, act: Act) {
        match moment {
            Moment::At(at) => self.schedule(at, Event::Act(act)),
            Moment::Job { .. } | Moment::Said { .. } => self.moments.push((moment, act)),
        }
    }

    /// Forgets what was planned for moments that did not come.
    pub fn forget_moments(&mut self) {
        self.moments.clear();
    }

    /// Makes a device slower than the others by a factor.
    pub fn slow_down(&mut self, peer: PeerId, factor: u32) {
        if let Some(body) = self.body(peer) {
            body.slow = factor;
        }
    }

    /// A device by its numbers.
    pub fn spec(&self, who: PeerId) -> Option<&DeviceSpec> {
        if who == HOST {
            return Some(&self.room.host);
        }
        self.specs.get(&who)
    }

    /// The connection between two members, as modelled.
    pub fn wire(&self, from: PeerId, to: PeerId) -> Wire {
        self.fabric.wire(from, to)
    }

    /// The plan in force as a device knows it.
    pub fn generation(&self, peer: PeerId) -> Option<Generation> {
        Some(self.nodes.get(&peer)?.stage.assign()?.generation)
    }

    /// How long a device worked on forward and backward passes.
    pub fn busy(&self, peer: PeerId) -> Duration {
        self.busy.get(&peer).copied().unwrap_or_default()
    }

    /// The most activations that devices held at once.
    pub fn most_kept(&self) -> Vec<usize> {
        self.nodes.values().map(|node| node.engine.most_kept()).collect()
    }

    /// A text as it is so far; none if nobody asked for it.
    pub fn text(&self, request: u32) -> &[u32] {
        self.host_engine.text(request).map_or(&[], |text: &Text| &text.tokens)
    }

    /// Goes on until the run is over, everything that was planned has happened, and every text is written.
    ///
    /// # Errors
    ///
    /// With the first promise that is broken.
    pub fn settle(&mut self) -> Result<(), Violation> {
        self.run_until(|world| {
            let written = |(request, want): (&u32, &usize)| world.text(*request).len() == *want;
            world.is_over() && world.texts.iter().all(written)
        })
    }

    /// Whether the run is over and everything that was planned has happened.
    pub fn is_over(&self) -> bool {
        use RunPhase::{Failed, Finished, Stopped};
        self.acts == 0 && matches!(self.coordinator.phase(), Finished | Stopped | Failed(_))
    }

    /// Goes on until something is so.
    ///
    /// # Errors
    ///
    /// With the first promise that is broken; when it is never so.
    pub fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        loop {
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if done(self) {
                return Ok(());
            }
            if self.now >= self.patience {
                return Err(Violation::Stuck {
                    phase: format!("{:?}", self.coordinator.phase()),
                    after: self.now,
                    committed: self.committed.len(),
                    steps: self.room.settings.steps,
                    machines: format!("{:?}\n{:?}", self.coordinator, self.nodes),
                });
            }
            self.step();
        }
    }

    /// That the run came to its end with every step done once, and judged when it was to be. Numbers are compared with
    /// those of one process ([`Model::check`]) as each step is committed.
    ///
    /// # Errors
    ///
    /// When it did not.
    pub fn verify(&self) -> Result<(), Violation> {
        let settings = &self.room.settings;
        let (phase, committed) = (self.coordinator.phase(), self.committed.len());
        if phase != RunPhase::Finished || u32::try_from(committed) != Ok(settings.steps) {
            let (phase, steps) = (format!("{phase:?}"), settings.steps);
            return Err(Violation::Unfinished { phase, committed, steps });
        }
        let expected: Vec<u32> =
            (0..=settings.steps).filter(|done| settings.evaluates_after(*done)).collect();
        if self.judged != expected {
            return Err(Violation::Judged { expected, found: self.judged.clone() });
        }
        Ok(())
    }

    /// [`verify`](Self::verify) for tests.
    ///
    /// # Panics
    ///
    /// When the run did not go as one process would have gone.
    #[track_caller]
    pub fn assert_equals_reference(&self) {
        assert_eq!(self.verify(), Ok(()));
    }

    fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.acts += usize::from(matches!(event, Event::Act(_)));
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    fn schedule_within(&mut self, seconds: u64, event: Event) {
        let wait = self.rng.random_range(0..=seconds * 1_000_000);
        self.schedule(self.now + Duration::from_micros(wait), event);
    }

    /// Within so many seconds; at once where time is modelled.
    fn person_does(&mut self, seconds: u64, act: Act) {
        let seconds = if matches!(self.room.pace, Pace::Modelled(_)) { 0 } else { seconds };
        self.schedule_within(seconds, Event::Act(act));
    }

    /// Looks up when a machine wants to be woken; a frozen device is not before it thaws.
    fn rearm(&mut self, who: PeerId) {
        let wanted = if who == HOST {
            Some(self.coordinator.poll_timeout())
        } else {
            self.nodes.get(&who).and_then(|node| node.stage.poll_timeout())
        };
        let thaws = self.frozen.get(&who).map(|frozen| frozen.end).unwrap_or_default();
        let wanted = wanted.map(|at| at.max(thaws));
        if self.armed.get(&who).copied() == wanted {
            return;
        }
        if let Some(old) = self.armed.remove(&who) {
            self.timers.remove(&(old, who));
        }
        if let Some(at) = wanted {
            self.armed.insert(who, at);
            self.timers.insert((at, who));
        }
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let timer = self.timers.first().copied();
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        match (timer, event) {
            (Some((at, who)), event) if event.is_none_or(|event| at < event) => {
                self.now = self.now.max(at);
                self.wake(who);
            }
            (_, Some(_)) => self.next_event(),
            _ => self.violate(Violation::Dead),
        }
    }

    fn wake(&mut self, who: PeerId) {
        match self.nodes.get_mut(&who) {
            Some(node) => {
                node.stage.handle_timeout(self.now);
                self.stage_outputs(who);
            }
            None => {
                let now = self.now;
                self.timed(|coordinator| coordinator.handle_timeout(now));
                self.host_outputs();
            }
        }
    }

    fn next_event(&mut self) {
        let Some(((at, _), event)) = self.queue.pop_first() else { return };
        self.now = self.now.max(at);
        self.acts -= usize::from(matches!(event, Event::Act(_)));
        let member = match &event {
            Event::Attach { conn, side } | Event::Frame { conn, side, .. } | Event::Broken { conn, side } => {
                Some(self.seen_from(*conn, *side)[0])
            }
            Event::Done(who, _) | Event::Progress(who, _) | Event::Fetched(who, _) | Event::Beat(who) => {
                Some(*who)
            }
            Event::Pulse { to, .. } => Some(*to),
            Event::Act(act) => act.is_of_the_host().then_some(HOST),
            Event::Sever(_) => None,
        };
        let frozen = member.and_then(|member| self.frozen.get(&member)).filter(|frozen| frozen.end > at);
        if let Some(Range { start, end }) = frozen.cloned() {
            // The engine stood still as well: what was left to do then is left to do.
            let left = match event {
                Event::Done(..) => at.saturating_sub(start),
                _ => Duration::ZERO,
            };
            return self.schedule(end + left, event);
        }
        match event {
            Event::Attach { conn, side } => self.attach(conn, side),
            Event::Frame { conn, side, bytes } => self.frame(conn, side, &bytes),
            Event::Broken { conn, side } => self.broken(conn, side),
            Event::Done(who, job) => self.job_done(who, job),
            Event::Sever(conn) => self.sever(conn),
            Event::Progress(who, loaded) if who == HOST => {
                self.host(coordinator::Event::Progress { loaded, total: 100 });
            }
            Event::Progress(who, loaded) => self.stage(who, stage::Event::Progress { loaded, total: 100 }),
            Event::Fetched(who, blocks) => self.stage(who, stage::Event::Fetched { blocks }),
            Event::Beat(who) => self.beat(who),
            Event::Pulse { from, to, pulse } => self.pulse(from, to, pulse),
            Event::Act(act) => self.act(act),
        }
    }

    /// Has something happen now.
    pub fn act(&mut self, act: Act) {
        self.happened.push((self.now, act));
        if let Some((name, who)) = act.fault()
            // Of a fault that strikes nobody in particular, the host's work counts.
            && let Some(point) = self.point(who.unwrap_or(HOST))
            && (act != Act::ReloadHost || self.is_under_way())
        {
            self.struck.push((name, point));
        }
        match act {
            Act::Start => {
                self.kept.clear();
                self.let_go = None;
                self.committed.clear();
                self.judged.clear();
                let start = self.start();
                self.host(coordinator::Event::Start(Box::new(start)));
            }
            Act::Pause => {
                self.host(coordinator::Event::Pause);
                self.schedule_within(20, Event::Act(Act::Resume));
            }
            Act::Resume => {
                if self.let_go.is_none() {
                    self.let_go = Some(self.now);
                    self.host_calls.iter_mut().for_each(Vec::clear);
                }
                self.host(coordinator::Event::Resume);
            }
            Act::Evaluated => {
                // The page that asked may be gone.
                if std::mem::take(&mut self.judging) {
                    self.host(coordinator::Event::Evaluated);
                }
            }
            Act::Stop => self.host(coordinator::Event::Stop),
            Act::Join => self.join(),
            Act::Kill { peer, silent } => self.kill(peer, silent),
            Act::Leave(peer) => self.stage(peer, stage::Event::Leave),
            Act::Remove(peer) => self.host(coordinator::Event::Remove { peer }),
            Act::Cut(a, b) => {
                if let Some(conn) = self.newest(a, b, Lane::Bulk) {
                    self.break_conn(conn, 3);
                }
            }
            Act::FailJob(HOST) => self.host_fails_next = true,
            Act::FailJob(peer) => {
                if let Some(node) = self.nodes.get_mut(&peer) {
                    node.fail_next = true;
                }
            }
            Act::FailPasses(peer, failure) => {
                if let Some(node) = self.nodes.get_mut(&peer) {
                    node.fail_passes = Some(failure);
                }
            }
            Act::Lie(peer) => {
                self.lied = true;
                if let Some(node) = self.nodes.get_mut(&peer) {
                    node.lies = true;
                }
            }
            Act::Stall(peer) => {
                if let Some(node) = self.nodes.get_mut(&peer) {
                    node.stalls = true;
                }
            }
            // A page that is loading anew has nothing to ask with.
            Act::Infer { .. } if self.reloaded && self.coordinator.phase() == RunPhase::Lobby => {}
            Act::Infer { request, want } => {
                self.texts.insert(request, want);
                self.host_engine.ask(request, want);
                self.host(coordinator::Event::Infer { request });
            }
            Act::Freeze(peer, seconds) => {
                // A nanosecond more than anything else that is scheduled, so that nothing overtakes what waits.
                let until = self.now + Duration::from_secs(seconds) + Duration::from_nanos(1);
                let frozen = self.frozen.entry(peer).or_default();
                // Not for longer if it is already: what waits would be overtaken.
                if frozen.end <= self.now {
                    *frozen = self.now..until;
                    if let Some(trace) = &mut self.trace {
                        trace.add(peer, Doing::Asleep, self.now..until);
                    }
                }
                self.rearm(peer);
            }
            Act::Isolate(peer, seconds) => self.part(peer, None, Duration::from_secs(seconds)),
            Act::Part(a, b, seconds) => self.part(a, Some(b), Duration::from_secs(seconds)),
            Act::Lag(peer, millis) => self.fabric.lag(peer, Duration::from_millis(millis.into())),
            Act::SlowDown(peer, factor) => self.slow_down(peer, factor),
            Act::ReloadHost => self.reload(),
            Act::Restore => self.restore(),
            Act::Return(peer) => self.comes_again(peer),
            Act::FreezeAll(time) => self.now += time,
            Act::Hide(peer) => self.show(peer, true),
            Act::Show(peer) => self.show(peer, false),
            Act::LinkedAgain => {
                if let Some(conn) = self.random_index(self.conns.len()) {
                    let side = self.rng.random_range(0..2);
                    if self.is_open(conn, side) {
                        self.linked(conn, side);
                    }
                }
            }
            Act::Replay => {
                if let Some(index) = self.random_index(self.history.len()) {
                    let (from, to, message) = self.history[index].clone();
                    self.deliver(from, to, message);
                }
            }
            Act::React => self.react(),
        }
    }

    /// Where the run stands for a device; none for one that is not there.
    fn point(&mut self, who: PeerId) -> Option<Point> {
        if who != HOST && !self.nodes.contains_key(&who) {
            return None;
        }
        let entry = self.entry(who);
        let replicates =
            if who == HOST { !self.replicating.is_empty() } else { self.replicating.contains(&who) };
        let ended = self.ended.filter(|(device, _)| *device == who).map(|(_, job)| job);
        let doing = match self.body(who).and_then(|body| body.doing) {
            Some((Doing::Job(job, _), _)) => Some(job),
            _ => ended,
        };
        Some(match self.coordinator.phase() {
            RunPhase::Finished | RunPhase::Stopped | RunPhase::Failed(_) => Point::NoRun,
            _ if let Some(entry) = entry => Point::Handshake(entry),
            RunPhase::Lobby if !self.reloaded => Point::NoRun,
            RunPhase::Loaded | RunPhase::Running | RunPhase::Paused(_) if replicates => {
                Point::Replication(doing)
            }
            RunPhase::Loading if self.plans.len() <= 1 => Point::Start(doing),
            RunPhase::Loading | RunPhase::Lobby => Point::Recovery(doing),
            RunPhase::Loaded | RunPhase::Running | RunPhase::Paused(_) => Point::Step(doing),
        })
    }

    /// How far a device has come that is not yet all the way in the room; none for others.
    fn entry(&self, who: PeerId) -> Option<Entry> {
        let view = self.nodes.get(&who)?.stage.view();
        for lane in [Lane::Control, Lane::Bulk] {
            // While the host's page loads, or the host is out of reach for good, nobody connects.
            let conn = self.newest(HOST, who, lane).filter(|conn| self.is_alive(*conn))?;
            if !(self.is_open(conn, 0) && self.is_open(conn, 1)) {
                return Some(Entry::Connecting);
            }
        }
        if view == View::Greeting {
            return Some(Entry::Greeting);
        }
        if !matches!(view, View::Waiting | View::Measuring) {
            return None;
        }
        let device = self.coordinator.devices().into_iter().find(|device| device.peer == who)?;
        if device.link.is_none() {
            return Some(Entry::Timing);
        }
        (device.measuring || view == View::Measuring).then_some(Entry::Measuring)
    }

    fn random_index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.rng.random_range(0..len))
    }

    fn react(&mut self) {
        // What the person does may have the run wait again at once: that is no reason to react twice.
        self.reacting = true;
        if let RunPhase::Paused(Some(reason)) = self.coordinator.phase() {
            if !self.is_public && self.has_waited_in_vain() {
                self.gave_up = Some(reason);
                return self.act(Act::Stop);
            }
            let finds = self.is_public && self.has_spares;
            let act = if finds && self.rng.random() { Act::Join } else { Act::Resume };
            self.act(act);
            self.schedule(self.now + Duration::from_secs(60), Event::Act(Act::React));
        } else {
            self.reacting = false;
        }
    }

    /// Whether nothing is to come any more, and nothing has happened for long.
    fn has_waited_in_vain(&self) -> bool {
        let moved = |(_, act): &&(Duration, Act)| !matches!(act, Act::React | Act::Resume);
        let last = self.happened.iter().rfind(moved).map_or(Duration::ZERO, |(at, _)| *at);
        let thaws = self.frozen.values().map(|frozen| frozen.end).fold(last, Duration::max);
        self.acts == 0 && self.now >= thaws + GIVES_UP
    }

    /// Whether somebody works, or sleeps and will go on.
    pub fn is_at_work(&self) -> bool {
        let works = |body: &Body| matches!(body.doing, Some((Doing::Job(..), _)));
        let sleeps = self.frozen.values().any(|frozen| frozen.end > self.now);
        sleeps || works(&self.host_body) || self.nodes.values().any(|node| works(&node.body) && !node.stalls)
    }

    /// Faults that were planned for a device's job that did not come.
    pub fn missed(&self) -> &[(Moment, Act)] {
        &self.moments
    }

    /// Acts whose moment has come: those of a kind are counted down.
    fn due(&mut self, is_of_this_kind: impl Fn(&Moment) -> bool) -> Vec<Act> {
        let mut now = Vec::new();
        self.moments.retain_mut(|(moment, act)| {
            if !is_of_this_kind(moment) {
                return true;
            }
            let (Moment::Job { nth, .. } | Moment::Said { nth, .. }) = moment else { return true };
            *nth = nth.saturating_sub(1);
            if *nth == 0 {
                now.push(*act);
            }
            *nth > 0
        });
        now
    }

    /// What happens while a message between the host and a device sets out.
    fn said(&mut self, device: PeerId, message: &Message) {
        let Some(spoken) = Word::of(message) else { return };
        if let Message::Applied { generation, .. } = message
            && self.plans.last().is_some_and(|plan| plan.generation == Some(*generation))
        {
            self.replicating.insert(device);
        }
        for act in self.due(
            |moment| matches!(moment, Moment::Said { who, word, .. } if (*who, *word) == (device, spoken)),
        ) {
            // The machine is being polled: it happens next.
            self.schedule(self.now, Event::Act(act));
        }
    }

    /// Acts whose moment is now.
    fn moment(&mut self, device: PeerId, name: JobName, ended: bool) {
        let is_now = |moment: &Moment| match moment {
            Moment::Job { who, job, done, .. } => (*who, *job, *done) == (device, name, ended),
            _ => false,
        };
        for act in self.due(is_now) {
            if ended {
                self.ended = Some((device, name));
                self.act(act);
                self.ended = None;
            } else {
                // The machine is being polled: it happens next.
                self.schedule(self.now, Event::Act(act));
            }
        }
    }
}
