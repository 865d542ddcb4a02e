//! A whole room in memory and in virtual time: the host's machine, the stages' machines, the links between them, toy
//! engines, a person at the host, and faults; everything is drawn from one seed.
#![allow(unreachable_pub, reason = "shared between the files of this test")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "toy sizes")]

pub mod toy;

use baton_protocol::coordinator::{self, Coordinator, RunPhase, Start, StepReport};
use baton_protocol::link::{Lane, Link};
use baton_protocol::message::{Device, Message};
use baton_protocol::run::{LrSchedule, ModelSource, Settings};
use baton_protocol::stage::{self, Stage, View};
use baton_protocol::{Generation, PeerId, Step, codec::Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use toy::{HostEngine, Reference, StageEngine, Text, Toy};

/// The host's number in the room, as the signaling server gave it.
pub const HOST: PeerId = PeerId(1);

/// Longer than any run here may take, in virtual time.
const PATIENCE: Duration = Duration::from_secs(4000);

/// The n-th peer that joined.
pub fn peer(n: u32) -> PeerId {
    PeerId(HOST.0 + 1 + n)
}

/// Runs a test for many seeds, or for the one in `BATON_SEED`; a seed that fails is printed.
pub fn for_seeds(seeds: std::ops::Range<u64>, test: impl Fn(u64)) {
    struct Name(u64);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with BATON_SEED={}", self.0);
            }
        }
    }
    let run = |seed| {
        let name = Name(seed);
        test(seed);
        drop(name);
    };
    match std::env::var("BATON_SEED") {
        Ok(seed) => run(seed.parse().expect("BATON_SEED is a number")),
        Err(_) => seeds.for_each(run),
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub toy: Toy,
    pub settings: Settings,
    pub peers: u32,
    pub pace: Pace,
    /// Of a frame, in µs; each direction of each link draws its own.
    pub max_delay: u64,
}

/// How long jobs take.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Random,
    /// Forward and backward of a stage take this long, everything else no time.
    Equal(Duration),
}

impl Scenario {
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
}

/// What happens to the room from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Start,
    /// And resume some time later.
    Pause,
    Resume,
    Stop,
    Join,
    /// A device dies; its links break, or fall silent.
    Kill {
        peer: PeerId,
        silent: bool,
    },
    Leave(PeerId),
    Remove(PeerId),
    /// The connection between two devices breaks, and both live.
    Cut(PeerId, PeerId),
    /// The next job that ends at this device fails.
    FailJob(PeerId),
    Infer {
        request: u32,
        want: usize,
    },
    /// A device is frozen for so many seconds.
    Freeze(PeerId, u64),
    /// Everybody is, as when the lid of the one machine is shut.
    FreezeAll(Duration),
    /// A link says again that it is open.
    LinkedAgain,
    /// A message of the past arrives again.
    Replay,
    /// The model has been judged.
    Evaluated,
    /// The run waits for a person: let somebody join, or go on alone.
    React,
}

/// When.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    At(Duration),
    /// The n-th time (from 1) that a device begins or has done a job of this name.
    Job {
        who: PeerId,
        job: &'static str,
        nth: u32,
        done: bool,
    },
}

#[derive(Debug)]
enum Event {
    Attach { conn: usize, side: usize },
    Frame { conn: usize, side: usize, bytes: Vec<u8> },
    Broken { conn: usize, side: usize },
    Done(PeerId),
    Progress(PeerId, u64),
    Act(Act),
}

/// One channel between two members.
#[derive(Debug)]
struct Conn {
    members: [PeerId; 2],
    lane: Lane,
    ends: [End; 2],
    /// Frames on the way arrive.
    alive: bool,
    /// Nothing new is put on it.
    closed: bool,
}

#[derive(Debug)]
struct End {
    link: Link,
    attached: bool,
    /// When the last frame towards this end arrives.
    last: Duration,
    delay: u64,
}

#[derive(Debug)]
struct Node {
    stage: Stage,
    engine: StageEngine,
    slow: u32,
    job: Option<(&'static str, stage::Done)>,
    fail_next: bool,
}

/// The room.
pub struct World {
    pub scenario: Scenario,
    pub reference: Reference,
    pub coordinator: Coordinator,
    pub rng: ChaCha8Rng,
    pub now: Duration,
    /// Steps of the run in force that were committed, and when.
    pub committed: Vec<(StepReport, Duration)>,
    /// When the person last let the run go.
    pub resumed: Duration,
    /// Whether the person lets a loaded run go.
    pub lets_go: bool,
    /// Whether the person can find other devices when all are gone.
    pub has_spares: bool,
    /// Pairs of devices that can never connect.
    pub unreachable: Vec<(PeerId, PeerId)>,
    pub texts: BTreeMap<u32, usize>,
    pub failed_texts: Vec<u32>,
    /// Steps after which the model was judged.
    pub judged: Vec<u32>,
    judging: bool,
    pub pauses: Vec<String>,
    /// What devices that are gone last told their owners.
    pub endings: BTreeMap<PeerId, String>,
    frozen: BTreeMap<PeerId, Duration>,
    host_engine: HostEngine,
    host_job: Option<(&'static str, coordinator::Done)>,
    host_fails_next: bool,
    nodes: BTreeMap<PeerId, Node>,
    joined: u32,
    conns: Vec<Conn>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    moments: Vec<(Moment, Act)>,
    history: VecDeque<(PeerId, PeerId, Message)>,
    reacting: bool,
    busy: BTreeMap<PeerId, Duration>,
}

impl World {
    pub fn new(mut scenario: Scenario, seed: u64) -> Self {
        // Half of the rooms train a head too; judging takes time, which a scenario of exact times has not.
        scenario.toy.head |= seed % 2 == 1;
        if matches!(scenario.pace, Pace::Equal(_)) {
            scenario.settings.validation = 0.0;
        }
        let device = Device { name: "host".into(), backend: "toy".into() };
        let mut world = Self {
            reference: Reference::train(scenario.toy, &scenario.settings),
            coordinator: Coordinator::new(device, Duration::ZERO),
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Duration::ZERO,
            committed: Vec::new(),
            resumed: Duration::ZERO,
            lets_go: true,
            has_spares: true,
            unreachable: Vec::new(),
            texts: BTreeMap::new(),
            failed_texts: Vec::new(),
            judged: Vec::new(),
            judging: false,
            pauses: Vec::new(),
            endings: BTreeMap::new(),
            frozen: BTreeMap::new(),
            host_engine: HostEngine::new(scenario.toy, scenario.settings.micro_batches),
            host_job: None,
            host_fails_next: false,
            nodes: BTreeMap::new(),
            joined: 0,
            conns: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            moments: Vec::new(),
            history: VecDeque::new(),
            reacting: false,
            busy: BTreeMap::new(),
            scenario,
        };
        for _ in 0..world.scenario.peers {
            world.act(Act::Join);
        }
        world.plan(Moment::At(Duration::from_secs(1)), Act::Start);
        world
    }

    /// Has something happen later.
    pub fn plan(&mut self, moment: Moment, act: Act) {
        match moment {
            Moment::At(at) => self.schedule(at, Event::Act(act)),
            Moment::Job { .. } => self.moments.push((moment, act)),
        }
    }

    /// Makes a device slower than the others.
    pub fn slow_down(&mut self, peer: PeerId, factor: u32) {
        self.nodes.get_mut(&peer).expect("joined").slow = factor;
    }

    /// Makes what a device sends to the host on its bulk lane arrive late.
    pub fn delay_bulk(&mut self, peer: PeerId, delay: Duration) {
        let conn = self.newest(HOST, peer, Lane::Bulk).expect("joined");
        self.conns[conn].ends[0].delay = delay.as_micros() as u64;
    }

    /// Forgets what was planned for moments that did not come.
    pub fn forget_moments(&mut self) {
        self.moments.clear();
    }

    /// The plan in force as a device knows it.
    pub fn generation(&self, peer: PeerId) -> Generation {
        self.nodes[&peer].stage.assign().expect("employed").generation
    }

    /// How long a device worked on forward and backward passes.
    pub fn busy(&self, peer: PeerId) -> Duration {
        self.busy.get(&peer).copied().unwrap_or_default()
    }

    /// The most activations that devices held at once.
    pub fn most_kept(&self) -> Vec<usize> {
        self.nodes.values().map(|node| node.engine.slice.most_kept).collect()
    }

    pub fn text(&self, request: u32) -> &Text {
        &self.host_engine.texts[&request]
    }

    /// Goes on until the run is over, everything that was planned has happened, and every text is written.
    pub fn settle(&mut self) {
        self.run_until(|world| {
            let written = |(request, want): (&u32, &usize)| world.text(*request).tokens.len() == *want;
            world.is_over() && world.texts.iter().all(written)
        });
    }

    /// Whether the run is over and everything that was planned has happened.
    pub fn is_over(&self) -> bool {
        use RunPhase::{Failed, Finished, Stopped};
        matches!(self.coordinator.phase(), Finished | Stopped | Failed(_))
            && !self.queue.values().any(|event| matches!(event, Event::Act(_)))
    }

    pub fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.now < PATIENCE, "stuck: {:?}\n{:?}", self.coordinator, self.nodes);
            self.step();
        }
    }

    /// That the run went as one process would have gone.
    pub fn assert_equals_reference(&self) {
        assert_eq!(self.coordinator.phase(), RunPhase::Finished);
        assert_eq!(self.committed.len(), self.reference.losses.len());
        let settings = &self.scenario.settings;
        let due: Vec<u32> = (0..=settings.steps).filter(|done| settings.evaluates_after(*done)).collect();
        assert_eq!(self.judged, due);
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    fn schedule_within(&mut self, seconds: u64, event: Event) {
        let wait = self.rng.random_range(0..=seconds * 1_000_000);
        self.schedule(self.now + Duration::from_micros(wait), event);
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let timer = self.coordinator.poll_timeout();
        let wakes = |id| self.frozen.get(&id).copied().unwrap_or_default();
        let timer_of = |(&id, node): (&PeerId, &Node)| Some((node.stage.poll_timeout()?.max(wakes(id)), id));
        let stages = self.nodes.iter().filter_map(timer_of);
        let (timer, who) = stages.chain([(timer, HOST)]).min().expect("the host has a timer");
        if self.queue.first_key_value().is_none_or(|((at, _), _)| timer < *at) {
            self.now = self.now.max(timer);
            match self.nodes.get_mut(&who) {
                Some(node) => {
                    node.stage.handle_timeout(self.now);
                    self.stage_outputs(who);
                }
                None => {
                    self.coordinator.handle_timeout(self.now);
                    self.host_outputs();
                }
            }
            return;
        }
        let ((at, _), event) = self.queue.pop_first().expect("just seen");
        self.now = self.now.max(at);
        let member = match &event {
            Event::Attach { conn, side } | Event::Frame { conn, side, .. } | Event::Broken { conn, side } => {
                self.seen_from(*conn, *side)[0]
            }
            Event::Done(who) | Event::Progress(who, _) => *who,
            Event::Act(_) => HOST,
        };
        if let Some(wakes) = self.frozen.get(&member).filter(|wakes| **wakes > self.now) {
            return self.schedule(*wakes, event);
        }
        match event {
            Event::Attach { conn, side } => {
                self.conns[conn].ends[side].attached = true;
                self.pump(conn);
            }
            Event::Frame { conn, side, bytes } => self.frame(conn, side, &bytes),
            Event::Broken { conn, side } => {
                let [me, other] = self.seen_from(conn, side);
                if self.newest(me, other, self.conns[conn].lane) == Some(conn) {
                    self.lost(me, other, "the connection broke");
                }
            }
            Event::Done(who) => self.job_done(who),
            Event::Progress(who, loaded) => match self.nodes.get_mut(&who) {
                Some(node) => {
                    node.stage.handle(stage::Event::Progress { loaded, total: 100 }, self.now);
                    self.stage_outputs(who);
                }
                None => self.host(coordinator::Event::Progress { loaded, total: 100 }),
            },
            Event::Act(act) => self.act(act),
        }
    }

    pub fn act(&mut self, act: Act) {
        match act {
            Act::Start => {
                self.committed.clear();
                self.judged.clear();
                self.host(coordinator::Event::Start(Box::new(Start {
                    settings: self.scenario.settings.clone(),
                    blocks: self.scenario.toy.blocks,
                    source: ModelSource::Host,
                    config: "{}".into(),
                    manifest: Vec::new(),
                    states: Vec::new(),
                    head: self.scenario.toy.head,
                })));
            }
            Act::Pause => {
                self.host(coordinator::Event::Pause);
                self.schedule_within(20, Event::Act(Act::Resume));
            }
            Act::Resume => {
                self.resumed = self.now;
                self.host(coordinator::Event::Resume);
            }
            Act::Evaluated => {
                self.judging = false;
                self.host(coordinator::Event::Evaluated);
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
            Act::Infer { request, want } => {
                self.texts.insert(request, want);
                self.host_engine.texts.insert(request, Text { tokens: vec![request], want });
                self.host(coordinator::Event::Infer { request });
            }
            Act::Freeze(peer, seconds) => {
                // A nanosecond more than anything else that is scheduled, so that nothing overtakes what waits.
                let until = self.now + Duration::from_secs(seconds) + Duration::from_nanos(1);
                let wakes = self.frozen.entry(peer).or_default();
                // Not for longer if it is already: what waits would be overtaken.
                if *wakes <= self.now {
                    *wakes = until;
                }
            }
            Act::FreezeAll(time) => self.now += time,
            Act::LinkedAgain => {
                if let Some(conn) = self.random_index(self.conns.len()) {
                    let side = self.rng.random_range(0..2);
                    if self.conns[conn].alive && self.conns[conn].ends[side].link.is_open() {
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

    fn random_index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.rng.random_range(0..len))
    }

    fn react(&mut self) {
        self.reacting = false;
        if matches!(self.coordinator.phase(), RunPhase::Paused(Some(_))) {
            let act = if self.has_spares && self.rng.random() { Act::Join } else { Act::Resume };
            self.act(act);
            self.reacting = true;
            self.schedule(self.now + Duration::from_secs(60), Event::Act(Act::React));
        }
    }

    // The members.

    fn host(&mut self, event: coordinator::Event) {
        self.coordinator.handle(event, self.now);
        self.host_outputs();
    }

    fn stage(&mut self, who: PeerId, event: stage::Event) {
        if let Some(node) = self.nodes.get_mut(&who) {
            node.stage.handle(event, self.now);
            self.stage_outputs(who);
        }
    }

    pub fn deliver(&mut self, from: PeerId, to: PeerId, message: Message) {
        if to == HOST {
            self.host(coordinator::Event::Message { from, message });
        } else {
            self.stage(to, stage::Event::Message { from, message });
        }
    }

    fn lost(&mut self, who: PeerId, peer: PeerId, reason: &str) {
        let reason = reason.to_string();
        if who == HOST {
            self.host(coordinator::Event::Lost { peer, reason });
        } else {
            self.stage(who, stage::Event::Lost { peer, reason });
        }
    }

    fn linked(&mut self, conn: usize, side: usize) {
        let ([me, peer], lane) = (self.seen_from(conn, side), self.conns[conn].lane);
        if me == HOST {
            self.host(coordinator::Event::Linked { peer, lane });
        } else {
            self.stage(me, stage::Event::Linked { peer, lane });
        }
    }

    fn host_outputs(&mut self) {
        use coordinator::{Job, Output};
        while let Some(output) = self.coordinator.poll() {
            match output {
                Output::Send { to, message } => self.send(HOST, to, &message),
                Output::Disconnect { peer } => self.close(HOST, peer),
                Output::Job(job) => {
                    assert!(self.host_job.is_none(), "two jobs at once: {job:?}");
                    let name = match &job {
                        Job::Load { .. } => "load",
                        Job::Front { .. } => {
                            assert!(!self.judging, "a step began while the model was judged");
                            "forward"
                        }
                        Job::Head { .. } => "head",
                        Job::BackFront { .. } => "backward",
                        Job::GradNorm => "norm",
                        Job::Apply { .. } => "apply",
                        Job::InferFront { .. } | Job::InferHead { .. } => "infer",
                    };
                    self.host_job = Some((name, self.host_engine.run(&job)));
                    self.begin(HOST, name, 1);
                }
                Output::Committed(report) => self.check_committed(report),
                Output::Evaluate { done } => {
                    assert_eq!(done, self.coordinator.committed());
                    self.judged.push(done.0);
                    self.judging = true;
                    self.schedule_within(2, Event::Act(Act::Evaluated));
                }
                Output::Loaded => {
                    assert_eq!(self.coordinator.phase(), RunPhase::Loaded);
                    if self.lets_go {
                        self.schedule_within(1, Event::Act(Act::Resume));
                    }
                }
                Output::Inferred { request, done: false } => {
                    self.host(coordinator::Event::Infer { request });
                }
                Output::Inferred { request, done: true } => {
                    let text = self.text(request);
                    if text.tokens.len() < text.want {
                        self.failed_texts.push(request);
                    }
                }
                Output::Changed => {}
            }
        }
        if let RunPhase::Paused(Some(reason)) = self.coordinator.phase()
            && !std::mem::replace(&mut self.reacting, true)
        {
            self.pauses.push(reason);
            self.schedule_within(5, Event::Act(Act::React));
        }
    }

    fn check_committed(&mut self, report: StepReport) {
        let done = self.committed.len();
        assert_eq!(report.step, Step(done as u32), "steps are committed once and in order");
        assert_eq!(self.coordinator.committed(), report.step.next());
        if self.scenario.toy.precision == Precision::F32 {
            assert_eq!(report.loss, self.reference.losses[done], "step {done}");
            assert_eq!(report.grad_norm, self.reference.norms[done], "step {done}");
            assert!(self.coordinator.states().eq(&self.reference.states[done + 1]), "step {done}");
        }
        assert_eq!(report.tokens, self.scenario.toy.samples);
        self.committed.push((report, self.now));
    }

    fn stage_outputs(&mut self, who: PeerId) {
        use stage::{Job, Output};
        while let Some(output) = self.nodes.get_mut(&who).and_then(|node| node.stage.poll()) {
            match output {
                Output::Send { to, message } => self.send(who, to, &message),
                Output::Connect { peer } => self.connect(who, peer),
                Output::Job(job) => {
                    let name = match &job {
                        Job::Load { .. } => "load",
                        Job::Forward { .. } => "forward",
                        Job::Backward { .. } => "backward",
                        Job::GradNorm => "norm",
                        Job::Apply { .. } => "apply",
                        Job::Infer { .. } => "infer",
                    };
                    let node = self.nodes.get_mut(&who).expect("it spoke");
                    assert!(node.job.is_none(), "two jobs at once: {job:?}");
                    node.job = Some((name, node.engine.run(&job)));
                    let slow = node.slow;
                    self.begin(who, name, slow);
                }
                Output::Changed => {}
            }
        }
        if let Some(View::Ended(reason)) = self.nodes.get(&who).map(|node| node.stage.view()) {
            self.endings.insert(who, reason);
            let others: Vec<PeerId> = self.nodes.keys().copied().chain([HOST]).collect();
            others.into_iter().for_each(|other| self.close(who, other));
            self.nodes.remove(&who);
        }
    }

    // Jobs.

    fn begin(&mut self, who: PeerId, name: &'static str, slow: u32) {
        let time = match self.scenario.pace {
            Pace::Random => Duration::from_micros(self.rng.random_range(0..20_000)) * slow,
            Pace::Equal(time) if who != HOST && ["forward", "backward"].contains(&name) => time,
            Pace::Equal(_) => Duration::ZERO,
        };
        if ["forward", "backward"].contains(&name) {
            *self.busy.entry(who).or_default() += time;
        }
        if name == "load" {
            self.schedule(self.now + time / 2, Event::Progress(who, 50));
        }
        self.schedule(self.now + time, Event::Done(who));
        self.moment(who, name, false);
    }

    fn job_done(&mut self, who: PeerId) {
        let failed = || "the toy broke".to_string();
        if who == HOST {
            let (name, done) = self.host_job.take().expect("begun");
            self.moment(HOST, name, true);
            let fails = std::mem::take(&mut self.host_fails_next);
            self.host(if fails {
                coordinator::Event::JobFailed { reason: failed() }
            } else {
                coordinator::Event::Done(done)
            });
            return;
        }
        let Some((name, done)) = self.nodes.get_mut(&who).and_then(|node| node.job.take()) else { return };
        self.moment(who, name, true);
        if let Some(node) = self.nodes.get_mut(&who) {
            let fails = std::mem::take(&mut node.fail_next);
            let event = if fails {
                stage::Event::JobFailed { reason: failed(), diverged: false }
            } else {
                stage::Event::Done(done)
            };
            self.stage(who, event);
        }
    }

    fn moment(&mut self, device: PeerId, name: &str, ended: bool) {
        let mut now = Vec::new();
        self.moments.retain_mut(|(moment, act)| {
            let Moment::Job { who, job, nth, done } = moment else { return false };
            if (*who, *job, *done) == (device, name, ended) {
                *nth = nth.saturating_sub(1);
                if *nth == 0 {
                    now.push(*act);
                }
            }
            *nth > 0
        });
        for act in now {
            if ended {
                self.act(act);
            } else {
                // The machine is being polled: it happens next.
                self.schedule(self.now, Event::Act(act));
            }
        }
    }

    // The network.

    fn join(&mut self) {
        let id = peer(self.joined);
        self.joined += 1;
        let device = Device { name: format!("phone {id}"), backend: "toy".into() };
        let node = Node {
            stage: Stage::new(HOST, device, self.now),
            engine: StageEngine::new(self.scenario.toy),
            slow: 1,
            job: None,
            fail_next: false,
        };
        self.nodes.insert(id, node);
        self.open(HOST, id, Lane::Control);
        self.open(HOST, id, Lane::Bulk);
    }

    fn kill(&mut self, peer: PeerId, silent: bool) {
        self.nodes.remove(&peer);
        for conn in 0..self.conns.len() {
            if self.conns[conn].members.contains(&peer) {
                if silent {
                    self.conns[conn].alive = false;
                } else {
                    self.break_conn(conn, 5);
                }
            }
        }
    }

    fn connect(&mut self, from: PeerId, to: PeerId) {
        let refused = |pair: &(PeerId, PeerId)| *pair == (from, to) || *pair == (to, from);
        let possible = self.nodes.contains_key(&to) && !self.unreachable.iter().any(refused);
        let conn = self.open(from, to, Lane::Bulk);
        if !possible {
            self.conns[conn].alive = false;
            self.schedule_within(10, Event::Broken { conn, side: 0 });
        }
    }

    fn open(&mut self, a: PeerId, b: PeerId, lane: Lane) -> usize {
        let conn = self.conns.len();
        let max = self.scenario.max_delay;
        let mut end = || {
            let delay = self.rng.random_range(0..=max);
            End { link: Link::new(), attached: false, last: Duration::ZERO, delay }
        };
        let ends = [end(), end()];
        self.conns.push(Conn { members: [a, b], lane, ends, alive: true, closed: false });
        for side in 0..2 {
            let wait = Duration::from_micros(self.rng.random_range(0..=max * 4));
            self.schedule(self.now + wait, Event::Attach { conn, side });
        }
        conn
    }

    /// What a side's own end of a connection is called: (itself, the other).
    fn seen_from(&self, conn: usize, side: usize) -> [PeerId; 2] {
        let members = self.conns[conn].members;
        [members[side], members[1 - side]]
    }

    /// A shell uses the newest connection to a member, and forgets the ones before it.
    fn newest(&self, a: PeerId, b: PeerId, lane: Lane) -> Option<usize> {
        self.conns
            .iter()
            .rposition(|conn| conn.lane == lane && (conn.members == [a, b] || conn.members == [b, a]))
    }

    fn break_conn(&mut self, conn: usize, seconds: u64) {
        if std::mem::replace(&mut self.conns[conn].alive, false) {
            for side in 0..2 {
                self.schedule_within(seconds, Event::Broken { conn, side });
            }
        }
    }

    /// A shell closes when what was sent before is through, on both lanes.
    fn close(&mut self, me: PeerId, other: PeerId) {
        let lanes = [Lane::Control, Lane::Bulk];
        let mut closing: Vec<usize> = lanes.iter().filter_map(|lane| self.newest(me, other, *lane)).collect();
        closing.retain(|conn| !std::mem::replace(&mut self.conns[*conn].closed, true));
        let side = |conn: &Conn| usize::from(conn.members[1] == other);
        let through = closing.iter().map(|&conn| self.conns[conn].ends[side(&self.conns[conn])].last).max();
        for conn in closing {
            let event = Event::Broken { conn, side: side(&self.conns[conn]) };
            self.schedule(through.unwrap_or_default(), event);
        }
    }

    fn send(&mut self, from: PeerId, to: PeerId, message: &Message) {
        let lane = if from == HOST || to == HOST { message.lane() } else { Lane::Bulk };
        let Some(conn) = self.newest(from, to, lane) else { return };
        let side = usize::from(self.conns[conn].members[1] == from);
        self.conns[conn].ends[side].link.send(message);
        self.pump(conn);
    }

    fn pump(&mut self, conn: usize) {
        if self.conns[conn].closed {
            return;
        }
        for side in 0..2 {
            let Conn { ends, alive, .. } = &mut self.conns[conn];
            if !ends[side].attached {
                continue;
            }
            let mut frames = Vec::new();
            while let Some(bytes) = ends[side].link.poll_frame() {
                if *alive {
                    let far = &mut ends[1 - side];
                    let jitter = self.rng.random_range(0..=far.delay / 2);
                    far.last = far.last.max(self.now + Duration::from_micros(far.delay + jitter));
                    frames.push((far.last, bytes));
                }
            }
            for (at, bytes) in frames {
                self.schedule(at, Event::Frame { conn, side: 1 - side, bytes });
            }
        }
    }

    fn frame(&mut self, conn: usize, side: usize, bytes: &[u8]) {
        let [me, other] = self.seen_from(conn, side);
        let here = me == HOST || self.nodes.contains_key(&me);
        let Conn { ends, alive, lane, .. } = &mut self.conns[conn];
        if !*alive || !ends[side].attached || !here {
            return;
        }
        let lane = *lane;
        let link = &mut ends[side].link;
        let was_open = link.is_open();
        let message = link.receive(bytes).expect("an honest member");
        let opens = !was_open && link.is_open();
        self.pump(conn);
        if self.newest(me, other, lane) != Some(conn) {
            return;
        }
        if opens {
            self.linked(conn, side);
        }
        if let Some(message) = message {
            if is_of_a_plan(&message) {
                self.history.push_back((other, me, message.clone()));
                if self.history.len() > 300 {
                    self.history.pop_front();
                }
            }
            self.deliver(other, me, message);
        }
    }
}

/// What may come late from an older plan, or twice; the rest is said once in an ordered stream.
fn is_of_a_plan(message: &Message) -> bool {
    matches!(
        message,
        Message::Forward { .. }
            | Message::Backward { .. }
            | Message::StepDone { .. }
            | Message::Apply { .. }
            | Message::Applied { .. }
            | Message::Ready { .. }
            | Message::Assign(_)
    )
}
