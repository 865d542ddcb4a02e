//! The real engine behind the simulator's machines: whatever happens to a room's devices, its losses and its adapter are
//! those of one that was left in peace.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/clock.rs"]
mod clock;
#[path = "common/words.rs"]
mod words;

use baton_engine::EngineError;
use baton_engine::adapter;
use baton_engine::host;
use baton_engine::profile::model_profile;
use baton_engine::source::{AnyFiles, Model as Source, Prepared};
use baton_engine::stage;
use baton_formats::config::ALL_LINEAR;
use baton_formats::{MemoryFiles, dataset};
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::{self, Start, StepReport};
use baton_protocol::message::BlockBytes;
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::{Step, stage as machine};
use baton_sim::campaign::plan_faults;
use baton_sim::{
    DeviceSpec, HostEngine, JobError, Model, Network, Pace, Room, StageEngine, Text, Violation, World,
};
use clock::AtOnce;
use futures::executor::block_on;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const WORDS: [&str; 16] = [
    "red", "green", "blue", "old", "new", "big", "cat", "dog", "runs", "sleeps", "the", "a", "and", "but",
    "is", "was",
];

fn settings() -> Settings {
    Settings {
        steps: 12,
        batch_size: 4,
        micro_batches: 2,
        seq_len: 12,
        lora_rank: 2,
        targets: vec![ALL_LINEAR.into()],
        lr: 1e-2,
        warmup_steps: 0,
        boundary: Precision::F32,
        seed: 3,
        sample_tokens: 0,
        append_eos: false,
        validation: 0.0,
        evaluate_every: 0,
        ..Settings::default()
    }
}

/// The golden Llama with a tokenizer of a few words.
fn files() -> MemoryFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families/llama2");
    let mut files = MemoryFiles::new();
    for name in ["config.json", "model.safetensors"] {
        files.insert(name, std::fs::read(folder.join(name)).unwrap());
    }
    files.insert("tokenizer.json", words::tokenizer(&WORDS));
    files
}

fn job_error(error: &EngineError) -> JobError {
    JobError::Failed { reason: error.to_string(), failure: error.failure() }
}

struct RealStage {
    engine: stage::StageEngine,
    files: Rc<MemoryFiles>,
}

impl fmt::Debug for RealStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RealStage")
    }
}

impl StageEngine for RealStage {
    fn run(&mut self, job: machine::Job) -> Result<machine::Done, JobError> {
        let here = AtOnce::default();
        let done = self.engine.run(job, Some(&*self.files), &here, |_, _| ());
        block_on(done).map_err(|error| job_error(&error))
    }
}

struct RealHost(host::HostEngine);

impl fmt::Debug for RealHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RealHost")
    }
}

impl HostEngine for RealHost {
    fn run(&mut self, job: coordinator::Job) -> Result<coordinator::Done, JobError> {
        block_on(self.0.run(job, &AtOnce::default(), |_, _| ())).map_err(|error| job_error(&error))
    }

    /// No texts are asked for here.
    fn ask(&mut self, _: u32, _: usize) {}

    fn text(&self, _: u32) -> Option<&Text> {
        None
    }
}

/// The model, and what a room that is left in peace makes of it.
struct Real {
    source: Rc<Source>,
    files: Rc<MemoryFiles>,
    losses: Vec<f64>,
}

impl Real {
    fn new() -> Self {
        let source = block_on(Source::open(AnyFiles::Memory(files()))).unwrap();
        Self { source, files: Rc::new(files()), losses: Vec::new() }
    }

    fn prepared(&self) -> Prepared {
        let line = |i: usize| {
            let word = |k: usize| WORDS[(i * 7 + k * k + k) % WORDS.len()];
            (0..4 + i % 5).map(word).collect::<Vec<_>>().join(" ")
        };
        let text = (0..24).map(line).collect::<Vec<_>>().join("\n");
        let dataset = dataset::parse("lines.txt", text.as_bytes()).unwrap();
        self.source.prepare(&dataset, None, &settings()).unwrap()
    }

    fn adapter(&self, states: &[BlockBytes]) -> Vec<f32> {
        let adapter = adapter::from_states(states.iter(), &settings(), &self.source.config, None).unwrap();
        adapter.weights.into_values().flat_map(|pair| pair.a.into_iter().chain(pair.b)).collect()
    }
}

impl Model for Real {
    type Stage = RealStage;
    type Host = RealHost;

    fn stage(&self) -> RealStage {
        RealStage { engine: stage::StageEngine::new(baton_model::cpu()), files: self.files.clone() }
    }

    fn host(&self, settings: &Settings) -> RealHost {
        let requests = host::Requests::default();
        let device = baton_model::cpu();
        RealHost(host::HostEngine::new(
            device,
            self.source.clone(),
            self.prepared(),
            settings.clone(),
            requests,
        ))
    }

    fn start(&self, settings: &Settings) -> Start {
        Start {
            settings: settings.clone(),
            blocks: u16::try_from(self.source.config.num_hidden_layers).unwrap(),
            source: ModelSource::Host,
            config: self.source.config_text.clone(),
            manifest: Vec::new(),
            committed: Step(0),
            judged: false,
            secret: settings.seed,
            states: Vec::new(),
            profile: Some(model_profile(&self.source.config, settings).unwrap()),
            head: false,
        }
    }

    fn check(&self, report: &StepReport, _: &[&BlockBytes]) -> Result<(), Violation> {
        let Some(expected) = self.losses.get(report.step.0 as usize).copied() else { return Ok(()) };
        let (step, found) = (report.step, report.loss);
        if (found - expected).abs() <= 1e-5 * expected {
            return Ok(());
        }
        Err(Violation::Number { what: "loss", step, found, expected })
    }
}

fn world(model: Real, peers: u32, seed: u64) -> World<Real> {
    let room = Room {
        settings: settings(),
        peers,
        pace: Pace::Random,
        network: Network::Drawn(Duration::from_millis(30)),
        patience: if seed.is_multiple_of(2) { Duration::from_secs(60) } else { Duration::ZERO },
        host: DeviceSpec::default(),
        devices: Vec::new(),
    };
    World::with(model, room, seed)
}

#[test]
fn faults_change_neither_losses_nor_the_adapter() {
    let mut peace = world(Real::new(), 0, 0);
    peace.settle().unwrap();
    peace.assert_equals_reference();
    let losses: Vec<f64> = peace.committed.iter().map(|(report, _)| report.loss).collect();
    let states = |world: &World<Real>| world.coordinator.states().cloned().collect::<Vec<_>>();
    let want = peace.model.adapter(&states(&peace));
    assert!(losses[3] != losses[0] && want.iter().any(|number| *number != 0.0), "nothing is trained");
    let mut plans = 0;
    for seed in 0..120 {
        let peers = 1 + u32::try_from(seed % 4).unwrap();
        let mut world = world(Real { losses: losses.clone(), ..Real::new() }, peers, seed);
        plan_faults(&mut world, 10);
        world.settle().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        world.assert_equals_reference();
        let got = world.model.adapter(&states(&world));
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(
            got.len() == want.len() && worst <= 1e-5,
            "seed {seed}: an adapter number differs by {worst}"
        );
        plans += world.plans.len();
    }
    assert!(plans > 200, "hardly anything happened: {plans} plans");
}
