//! Whatever comes over the network, no machine panics and none keeps more than a few tensors.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of a generator")]

use baton_plan::{
    BlockProfile, Curve, DeviceProfile, EndsProfile, Growth, HostProfile, LinkProfile, ModelProfile,
};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{self, Coordinator, RunPhase, Start};
use baton_protocol::link::{Lane, Link, MAX_FRAME, WINDOW};
use baton_protocol::message::{
    Assign, BlockBytes, Counts, Device, Fault, FileAnswer, Measure, Message, RoomState, Side, Times,
};
use baton_protocol::pulse::Presence;
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::stage::{self, Stage, View};
use baton_protocol::{Generation, MicroBatch, PeerId, StageIndex, Step};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::time::Duration;

const ROUNDS: u32 = 150_000;

/// Runs a fuzzer with its seed, or with the one in `BATON_SEED`.
fn seeded(default: u64) -> ChaCha8Rng {
    let seed = std::env::var("BATON_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
    eprintln!("BATON_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Draws messages: of the plan in force more often than not, from then on anything.
struct Hostile {
    rng: ChaCha8Rng,
    generation: u32,
    step: u32,
    /// What devices were last asked to measure.
    question: u32,
}

impl Hostile {
    fn number(&mut self, near: u32) -> u32 {
        match self.rng.random_range(0..50) {
            0 => u32::MAX,
            1 => self.rng.random(),
            2 | 3 => near.wrapping_sub(1),
            4 | 5 => near.wrapping_add(1),
            _ => near,
        }
    }

    fn id(&mut self) -> PeerId {
        PeerId(self.rng.random_range(0..7))
    }

    fn micro_batch(&mut self) -> MicroBatch {
        MicroBatch(if self.rng.random_ratio(1, 20) { u16::MAX } else { self.rng.random_range(0..6) })
    }

    fn float(&mut self) -> f64 {
        *[0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, 1e-300].choose(&mut self.rng).expect("not empty")
    }

    fn tensor(&mut self) -> Boundary {
        Boundary::encode(&[1.0, -2.0], [1, 1, 2], Precision::F32).expect("two numbers")
    }

    fn failure(&mut self) -> stage::Failure {
        use stage::Failure::{Diverged, Engine, Input};
        *[Engine, Diverged, Input].choose(&mut self.rng).expect("not empty")
    }

    fn presence(&mut self) -> Presence {
        use Presence::{Drained, Hidden, Present, Silent};
        *[Present, Present, Hidden, Drained, Silent].choose(&mut self.rng).expect("not empty")
    }

    fn fault(&mut self) -> Fault {
        let id = self.id();
        *[Fault::Device, Fault::Diverged, Fault::Input(id)].choose(&mut self.rng).expect("not empty")
    }

    fn states(&mut self) -> Vec<BlockBytes> {
        let first = self.rng.random_range(0..5);
        let end = first + self.rng.random_range(0..5);
        (first..end).map(|block| BlockBytes { block, bytes: vec![0; 8] }).collect()
    }

    fn assign(&mut self) -> Assign {
        let step = self.step;
        let stages = self.rng.random_range(0..6);
        let micro_batches = *[1, 4, 8, 0].choose(&mut self.rng).expect("not empty");
        Assign {
            generation: Generation(self.generation + u32::from(self.rng.random_ratio(1, 60))),
            stage: StageIndex(self.rng.random_range(0..=stages)),
            stages: if self.rng.random_ratio(1, 20) { u16::MAX } else { stages },
            blocks: self.rng.random_range(0..3)..self.rng.random_range(0..5),
            prev: self.id(),
            next: self.id(),
            prev_trains: self.rng.random(),
            step: Step(self.number(step)),
            settings: Settings { micro_batches, ..Settings::default() },
            source: ModelSource::Host,
            config: "{}".into(),
            manifest: Vec::new(),
            states: self.states(),
        }
    }

    fn message(&mut self) -> Message {
        let (generation, step) = (self.generation, self.step);
        let (generation, step) = (Generation(self.number(generation)), Step(self.number(step)));
        let micro_batch = self.micro_batch();
        let reason = String::from("because");
        match self.rng.random_range(0..35) {
            0 => Message::Hello(Device { name: "\u{7}x".repeat(100), backend: String::new() }),
            1 => Message::Welcome(Device { name: String::new(), backend: String::new() }),
            2 => Message::Heartbeat,
            3 if self.rng.random_ratio(1, 4) => Message::Assign(Box::new(self.assign())),
            4 => Message::Progress { generation, loaded: self.rng.random(), total: self.rng.random() },
            5 => Message::Ready { generation },
            6..=8 => Message::Forward { generation, step, micro_batch, tensor: self.tensor() },
            9 | 10 => {
                let tensor = Some(self.tensor()).filter(|_| self.rng.random());
                Message::Backward { generation, step, micro_batch, tensor }
            }
            11 => {
                let forward = self.times();
                let times = Times { forward, backward: self.times() };
                Message::StepDone { generation, step, grad_sum_of_squares: self.float(), times }
            }
            12 => Message::Apply { generation, step, lr: self.float(), scale: self.float() },
            13 => Message::Applied { generation, step, states: self.states() },
            14 => {
                let request = self.number(3);
                Message::Infer { generation, request, tensor: self.tensor() }
            }
            15 => Message::Room(RoomState::Running),
            16 if self.rng.random_ratio(1, 50) => Message::Failed { generation, reason, fault: self.fault() },
            17 => Message::NeighbourLost { generation, peer: self.id() },
            18 | 19 => Message::ChunkRead { id: 1, hash: [7; 32] },
            20 => Message::File { id: 1, answer: FileAnswer::Bytes(vec![1; 10]) },
            21 if self.rng.random_ratio(1, 50) => Message::Goodbye { reason },
            22 if self.rng.random_ratio(1, 20) => Message::Warm(Box::new(self.assign())),
            23 => Message::Warmed { blocks: self.rng.random_range(0..3)..self.rng.random_range(0..5) },
            24 => Message::Ask { generation },
            25 => {
                let mut count = || self.rng.random_range(0..9);
                let counts = Counts {
                    forwards_in: count(),
                    forwards_out: count(),
                    backwards_in: count(),
                    backwards_out: count(),
                };
                Message::Status { generation, step, counts }
            }
            26 if self.rng.random_ratio(1, 20) => Message::Measure(Box::new(Measure {
                id: self.rng.random_range(0..3),
                config: "{}".into(),
                settings: Settings::default(),
                most: self.rng.random(),
            })),
            27 => {
                let profile = Box::new(self.profile());
                let profile = if self.rng.random_ratio(1, 50) { Err(reason) } else { Ok(profile) };
                Message::Measured { id: self.question, profile }
            }
            28 => Message::Probe { id: 1, want: self.rng.random(), padding: vec![0; 8] },
            31 => Message::Witness { generation, step, micro_batch, side: self.side() },
            32 => {
                let side = self.side();
                Message::Evidence { generation, step, micro_batch, side, tensor: self.tensor() }
            }
            29 => Message::Probed { id: self.rng.random_range(0..9), padding: vec![0; 8] },
            33 => Message::TimeLink { generation },
            34 => {
                let mut rate =
                    || [-1.0, 0.0, 1e-300, 1e6, f64::INFINITY, f64::NAN][self.rng.random_range(0..6)];
                let link = LinkProfile { up: rate(), down: rate(), round_trip: rate() };
                Message::Timed { generation, link }
            }
            _ => Message::Room(RoomState::Paused),
        }
    }

    fn side(&mut self) -> Side {
        if self.rng.random() { Side::Sent } else { Side::Received }
    }

    fn times(&mut self) -> Vec<Duration> {
        (0..self.rng.random_range(0..9)).map(|_| Duration::from_secs(self.rng.random())).collect()
    }

    /// A device as it may say that it is.
    fn profile(&mut self) -> DeviceProfile {
        let time = *[0.0, 1e-3, 1.0, 1e9].choose(&mut self.rng).expect("not empty");
        let curve = Curve::new([(1, time), (2, time)]).expect("times");
        let update = if self.rng.random_ratio(1, 20) { self.float() } else { 0.0 };
        let memory = *[0, 1000, u64::MAX].choose(&mut self.rng).expect("not empty");
        DeviceProfile { memory, forward: curve.clone(), backward: curve, update, slowness: self.float() }
    }

    /// A model whose blocks take a hundred bytes each.
    fn model(&mut self, blocks: u16) -> Option<ModelProfile> {
        let block = BlockProfile { work: 1.0, frozen: [100; 4], ..BlockProfile::default() };
        let model = ModelProfile {
            blocks: vec![block; blocks.into()],
            ends: EndsProfile::default(),
            tokens: 1,
            hidden: 1,
            buffers: Growth::default(),
            loading: 0,
        };
        self.rng.random::<bool>().then_some(model)
    }

    /// The bytes of a message, most of them spoilt.
    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = self.message().to_bytes();
        for _ in 0..self.rng.random_range(0..4) {
            let at = self.rng.random_range(0..bytes.len());
            match self.rng.random_range(0..4) {
                0 => bytes[at] = self.rng.random(),
                1 => bytes[at] ^= 1 << self.rng.random_range(0..8),
                2 => bytes.truncate(at + 1),
                _ => bytes.insert(at, 0xff),
            }
        }
        bytes
    }
}

#[test]
fn spoilt_bytes_are_errors() {
    let mut hostile = Hostile { rng: seeded(1), generation: 1, step: 1, question: 1 };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        match Message::from_bytes(&hostile.bytes()) {
            Ok(Message::Forward { tensor, .. } | Message::Infer { tensor, .. }) => {
                read += 1;
                if let Ok(values) = tensor.decode() {
                    assert!(values.iter().all(|value| value.is_finite()));
                }
            }
            Ok(Message::Assign(assign)) => refused += u32::from(assign.check().is_err()),
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > ROUNDS / 10 && refused > ROUNDS / 10, "{read} {refused}");
}

#[test]
fn spoilt_frames_are_errors() {
    let mut hostile = Hostile { rng: seeded(2), generation: 1, step: 1, question: 1 };
    let fresh = || {
        let (mut link, mut other) = (Link::new(), Link::new());
        link.receive(&other.poll_frame().expect("READY")).expect("READY");
        link
    };
    let (mut link, mut errors) = (fresh(), 0);
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let body = hostile.bytes();
        let mut frame = vec![hostile.rng.random_range(0..5)];
        match (frame[0], hostile.rng.random_range(0..4)) {
            (1, 0..3) => frame.extend((body.len() as u32).to_le_bytes()),
            (1, _) => frame.extend(hostile.rng.random::<[u8; 4]>()),
            _ => {}
        }
        frame.extend(body);
        if hostile.rng.random_ratio(1, 10) {
            frame.resize(hostile.rng.random_range(0..=MAX_FRAME + 1), 0);
        }
        match link.receive(&frame) {
            Ok(_) => accepted += frame.len(),
            Err(_) => (link, errors, accepted) = (fresh(), errors + 1, 0),
        }
        if hostile.rng.random_ratio(1, 100) {
            while link.poll_frame().is_some() {
                accepted = 0;
            }
        }
        // What is taken in without a new grant.
        assert!(accepted <= WINDOW + 2 * MAX_FRAME);
        assert_eq!(link.queued(), 0);
    }
    assert!(errors > ROUNDS / 10);
}

#[test]
fn a_stage_survives_any_messages_and_keeps_little() {
    let mut hostile = Hostile { rng: seeded(3), generation: 1, step: 0, question: 1 };
    let device = Device { name: "phone".into(), backend: "toy".into() };
    let mut now = Duration::ZERO;
    // Half of them live in a shell that can find the host again.
    let stage_at = |now, lives: u32| {
        let patience = Duration::from_secs(if lives.is_multiple_of(2) { 5 } else { 0 });
        Stage::new(PeerId(1), device.clone(), now).with_patience(patience)
    };
    let mut stage = stage_at(now, 0);
    let mut job = None;
    let (mut jobs, mut lives) = (HashMap::new(), 0);
    for round in 0..ROUNDS {
        now += Duration::from_millis(hostile.rng.random_range(0..20));
        let known = stage.assign().map(|assign| [assign.prev, assign.next, PeerId(1)]);
        let from = match known {
            Some(known) if hostile.rng.random_ratio(2, 3) => known[hostile.rng.random_range(0..3)],
            _ => hostile.id(),
        };
        let reason = String::from("because");
        let event = match hostile.rng.random_range(0..40) {
            0 | 1 => stage::Event::Linked { peer: from, lane: Lane::Bulk },
            2 => stage::Event::Linked { peer: from, lane: Lane::Control },
            3 if hostile.rng.random_ratio(1, 30) => stage::Event::Lost { peer: from, reason },
            4 => stage::Event::Progress { loaded: hostile.rng.random(), total: hostile.rng.random() },
            5 if job.is_some() && hostile.rng.random_ratio(1, 20) => {
                job = None;
                let failure = hostile.failure();
                stage::Event::JobFailed { reason, failure }
            }
            17 => stage::Event::Presence(hostile.presence()),
            19 if hostile.rng.random_ratio(1, 300) => stage::Event::HostReturned { host: PeerId(1) },
            18 => stage::Event::Fetched { blocks: 0..2 },
            6..=15 if job.is_some() => {
                let tensor = hostile.tensor();
                let done = match job.take().expect("just seen") {
                    stage::Job::Load(assign) => {
                        (hostile.generation, hostile.step) = (assign.generation.0, assign.step.0);
                        stage::Done::Load
                    }
                    stage::Job::Forward { .. } => stage::Done::Forward(tensor),
                    stage::Job::Backward { want_input_grad, .. } => {
                        stage::Done::Backward(want_input_grad.then_some(tensor))
                    }
                    stage::Job::GradNorm => stage::Done::GradNorm(1.0),
                    stage::Job::Apply { .. } => {
                        hostile.step += 1;
                        stage::Done::Apply(Vec::new())
                    }
                    stage::Job::Infer { .. } => stage::Done::Infer(tensor),
                    stage::Job::Measure(_) => stage::Done::Measure(Box::new(hostile.profile())),
                };
                stage::Event::Done(done)
            }
            16 => {
                stage.handle_timeout(now);
                continue;
            }
            _ => stage::Event::Message { from, message: hostile.message() },
        };
        stage.handle(event, now);
        while let Some(output) = stage.poll() {
            if let stage::Output::Job(new) = output {
                *jobs.entry(std::mem::discriminant(&new)).or_insert(0) += 1;
                assert!(job.replace(new).is_none(), "two jobs at once");
            }
        }
        if matches!(stage.view(), View::Ended(_)) {
            lives += 1;
            stage = stage_at(now, lives);
            (hostile.generation, hostile.step, job) = (1, 0, None);
        }
        if round % 500 == 0 {
            // Tensors are short in Debug, so this counts what is held.
            let held = format!("{stage:?}").len();
            assert!(held < 10_000, "{held} {stage:?}");
        }
    }
    assert!(jobs.len() == 7 && jobs.values().all(|&count| count > 2) && lives > 10, "{jobs:?} {lives}");
}

#[test]
fn a_coordinator_survives_any_messages_and_keeps_little() {
    let mut hostile = Hostile { rng: seeded(4), generation: 0, step: 0, question: 1 };
    let device = Device { name: "host".into(), backend: "toy".into() };
    let mut now = Duration::ZERO;
    let mut coordinator = Coordinator::new(device, now);
    let mut job = None;
    let mut texts = 0_u32;
    let (mut jobs, mut ends) = (HashMap::new(), 0_u32);
    for round in 0..ROUNDS {
        now += Duration::from_millis(hostile.rng.random_range(0..20));
        let from = hostile.id();
        let reason = String::from("because");
        let event = match hostile.rng.random_range(0..60) {
            0..=4 => {
                let lane = if hostile.rng.random() { Lane::Control } else { Lane::Bulk };
                coordinator::Event::Linked { peer: from, lane }
            }
            5 if hostile.rng.random_ratio(1, 10) => coordinator::Event::Lost { peer: from, reason },
            6 if hostile.rng.random_ratio(1, 100) => coordinator::Event::Stop,
            7 => coordinator::Event::Pause,
            8 | 9 => coordinator::Event::Resume,
            27 | 28 => coordinator::Event::Evaluated,
            10 if hostile.rng.random_ratio(1, 20) => coordinator::Event::Remove { peer: from },
            11 if texts < 40 => {
                texts += 1;
                coordinator::Event::Infer { request: hostile.rng.random_range(0..5) }
            }
            12 => coordinator::Event::Start(Box::new({
                let blocks = hostile.rng.random_range(0..7);
                Start {
                    head: hostile.rng.random(),
                    settings: Settings {
                        steps: 8,
                        warmup_steps: 0,
                        micro_batches: hostile.rng.random_range(0..9),
                        ..Settings::default()
                    },
                    blocks,
                    source: ModelSource::Host,
                    config: "{}".into(),
                    manifest: Vec::new(),
                    committed: Step(hostile.rng.random_range(0..10)),
                    judged: hostile.rng.random(),
                    secret: hostile.rng.random(),
                    profile: hostile.model(blocks),
                    states: hostile.states(),
                }
            })),
            13 if job.is_some() && hostile.rng.random_ratio(1, 20) => {
                job = None;
                let failure = hostile.failure();
                coordinator::Event::JobFailed { reason, failure }
            }
            29 => coordinator::Event::Presence { peer: from, presence: hostile.presence() },
            14..=25 if job.is_some() => {
                use coordinator::{Done, Job};
                let tensor = hostile.tensor();
                let done = match job.take().expect("just seen") {
                    Job::Load { .. } => Done::Load,
                    Job::Front { .. } => Done::Front(tensor),
                    Job::Head { .. } => Done::Head { loss: 1.0, tokens: 1, grad: tensor },
                    Job::BackFront { .. } => Done::BackFront,
                    Job::GradNorm => Done::GradNorm(1.0),
                    Job::Apply { .. } => Done::Apply(Vec::new()),
                    Job::InferFront { .. } => Done::InferFront(tensor),
                    Job::InferHead { .. } => Done::InferHead { done: hostile.rng.random() },
                    Job::Check { .. } => Done::Check(tensor),
                    Job::Measure(_) => {
                        let device = hostile.profile();
                        let (front, head) = (device.forward.clone(), device.forward.clone());
                        Done::Measure(Box::new(HostProfile { device, front, head }))
                    }
                };
                coordinator::Event::Done(done)
            }
            26 => {
                coordinator.handle_timeout(now);
                continue;
            }
            _ => coordinator::Event::Message { from, message: hostile.message() },
        };
        coordinator.handle(event, now);
        while let Some(output) = coordinator.poll() {
            match output {
                coordinator::Output::Job(new) => {
                    if let coordinator::Job::Front { step, .. } = &new {
                        hostile.step = step.0;
                    }
                    *jobs.entry(std::mem::discriminant(&new)).or_insert(0) += 1;
                    assert!(job.replace(new).is_none(), "two jobs at once");
                }
                coordinator::Output::Send { message: Message::Assign(assign), .. } => {
                    hostile.generation = assign.generation.0;
                    assign.check().expect("the host's own plans make sense");
                }
                coordinator::Output::Send { message: Message::Measure(measure), .. } => {
                    hostile.question = measure.id;
                }
                coordinator::Output::Inferred { .. } => texts = texts.saturating_sub(1),
                _ => {}
            }
        }
        let phase = coordinator.phase();
        ends += u32::from(matches!(phase, RunPhase::Finished | RunPhase::Failed(_) | RunPhase::Stopped));
        if round % 500 == 0 {
            let held = format!("{coordinator:?}").len();
            assert!(held < 12_000, "{held} {coordinator:?}");
        }
    }
    assert!(jobs.len() >= 9 && jobs.values().all(|&count| count > 4) && ends > 10, "{jobs:?} {ends}");
}
