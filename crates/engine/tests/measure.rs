//! A device measures itself on every family's shapes, and refuses what it cannot measure.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_engine::EngineError;
use baton_engine::measure;
use baton_engine::node::Environment;
use baton_engine::source::lora_spec;
use baton_engine::stage::StageEngine;
use baton_formats::config::ALL_LINEAR;
use baton_formats::{MemoryFiles, ModelConfig};
use baton_model::{InFlight, Storage, stage_memory};
use baton_plan::{Curve, DeviceProfile};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::ids::{Generation, StageIndex};
use baton_protocol::message::{Assign, Measure};
use baton_protocol::run::{Backbone, ModelSource, Settings};
use baton_protocol::stage::{Done, Job};
use baton_protocol::{PeerId, Step};
use futures::executor::block_on;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Whoever looks at the clock finds it so much later; memory is what there is.
#[derive(Clone)]
struct Still {
    looks: Rc<Cell<u32>>,
    step: Duration,
    memory: u64,
    asked: Rc<Cell<Option<(u64, u64)>>>,
    holding: Rc<Cell<u64>>,
}

impl Still {
    fn new(step: Duration) -> Self {
        Self { looks: Rc::default(), step, memory: 1 << 30, asked: Rc::default(), holding: Rc::default() }
    }
}

impl Environment for Still {
    fn now(&self) -> Duration {
        self.looks.set(self.looks.get() + 1);
        self.step * self.looks.get()
    }

    async fn breathe(&self) {}

    async fn memory(&self, most: u64, held: u64) -> u64 {
        self.asked.set(Some((most, held)));
        self.memory.min(most)
    }

    async fn holding(&self, bytes: u64) {
        self.holding.set(bytes);
    }
}

fn families() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families");
    let mut families: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path.join("config.json")).unwrap())
        })
        .collect();
    families.sort();
    families
}

fn llama() -> String {
    families().into_iter().find(|(name, _)| name == "llama2").unwrap().1
}

fn settings() -> Settings {
    Settings {
        batch_size: 5,
        micro_batches: 2,
        seq_len: 20,
        lora_rank: 2,
        targets: vec![ALL_LINEAR.into()],
        ..Settings::default()
    }
}

fn sound(curve: &Curve) -> bool {
    [1, 2, 3, 100].into_iter().all(|samples| curve.at(samples).is_finite() && curve.at(samples) > 0.0)
}

fn points(curve: &Curve) -> Vec<u32> {
    Vec::<(u32, f64)>::from(curve.clone()).into_iter().map(|(samples, _)| samples).collect()
}

fn check(profile: &DeviceProfile, name: &str) {
    assert!(sound(&profile.forward) && sound(&profile.backward), "{name}: {profile:?}");
    assert!(profile.update.is_finite() && profile.update > 0.0, "{name}: {profile:?}");
    assert_eq!(profile.slowness, 1.0);
}

#[test]
fn every_family_is_measured_whatever_its_weights_are_kept_as() {
    let families = families();
    assert!(families.len() > 5, "{families:?}");
    for ((name, config), backbone) in families.iter().zip(Backbone::ALL.into_iter().cycle()) {
        let config = ModelConfig::parse(config.as_bytes()).unwrap();
        let settings = Settings { backbone, recompute: true, ..settings() };
        let here = Still::new(Duration::from_millis(5));
        let cpu = baton_model::cpu();
        let host = block_on(measure::host(&config, &settings, &cpu, 123_456_789, &here)).unwrap();
        check(&host.device, name);
        assert!(sound(&host.front) && sound(&host.head), "{name}: {host:?}");
        assert_eq!(host.device.memory, 123_456_789);
        // A micro-batch of 5 samples in two is one of 3.
        assert_eq!(points(&host.device.forward), [1, 3], "{name}");
        assert_eq!((points(&host.front), points(&host.head)), (vec![1, 3], vec![1, 3]));
    }
}

#[test]
fn a_head_for_labels_is_measured_too() {
    for (name, regression) in [("bert", false), ("bert", true), ("roberta", false)] {
        let (_, config) = families().into_iter().find(|(family, _)| family.starts_with(name)).unwrap();
        let config = ModelConfig::parse(config.as_bytes()).unwrap();
        let outputs = if regression { 1 } else { 3 };
        let config = config.with_classifier(outputs, regression).unwrap();
        let here = Still::new(Duration::from_millis(5));
        let host =
            block_on(measure::host(&config, &settings(), &baton_model::cpu(), u64::MAX, &here)).unwrap();
        assert!(sound(&host.head), "{name}");
    }
}

#[test]
fn the_head_of_a_large_vocabulary_is_measured_on_a_slice_of_it() {
    let large = llama().replace("\"vocab_size\": 80", "\"vocab_size\": 4194304");
    let config = ModelConfig::parse(large.as_bytes()).unwrap();
    assert_eq!(config.vocab_size, 1 << 22);
    let here = Still::new(Duration::from_millis(5));
    let cpu = baton_model::cpu();
    // The whole head would take far more than the memory that there is said to be.
    let host = block_on(measure::host(&config, &settings(), &cpu, 8 << 20, &here)).unwrap();
    let small = ModelConfig { vocab_size: 4096, ..config };
    let slice = block_on(measure::host(&small, &settings(), &cpu, 8 << 20, &here)).unwrap();
    // By this clock every pass takes as long as every other.
    let ratio = host.head.at(1) / slice.head.at(1);
    assert!((ratio - 1024.0).abs() < 1e-6, "{ratio}");
}

#[test]
fn a_slow_device_is_measured_on_less_and_in_time() {
    let config = ModelConfig::parse(llama().as_bytes()).unwrap();
    let cpu = baton_model::cpu();
    let settings = Settings { seq_len: 64, ..settings() };
    let slow = Still::new(Duration::from_secs(1));
    let profile = block_on(measure::device(&config, &settings, &cpu, u64::MAX, &slow)).unwrap();
    check(&profile, "slow");
    // One size is enough, and no pass is repeated: twice on few tokens, once to warm up, once for good.
    assert_eq!(points(&profile.forward), [1]);
    assert!(slow.looks.get() < 50, "{}", slow.looks.get());
    // What was measured on 16 tokens counts for as many as there are.
    assert!(profile.forward.at(1) >= 3.0, "{profile:?}");
    // A clock that stands still ends too.
    let still = Still::new(Duration::ZERO);
    let settings = Settings { seq_len: 8, batch_size: 1, micro_batches: 1, ..settings };
    let profile = measure::device(&config, &settings, &cpu, u64::MAX, &still);
    check(&block_on(profile).unwrap(), "still");
}

#[test]
fn a_micro_batch_that_does_not_fit_is_not_tried() {
    let config = ModelConfig::parse(llama().as_bytes()).unwrap();
    let (cpu, here) = (baton_model::cpu(), Still::new(Duration::from_millis(5)));
    let settings = Settings { batch_size: 64, micro_batches: 1, ..settings() };
    let measured = |memory| block_on(measure::device(&config, &settings, &cpu, memory, &here));
    assert_eq!(points(&measured(u64::MAX).unwrap().forward), [1, 64]);
    let Err(EngineError::TooLittleMemory { needed, .. }) = measured(1000) else { panic!("it fitted") };
    assert_eq!(points(&measured(needed).unwrap().forward), [1]);
    assert!(matches!(measured(needed - 1), Err(EngineError::TooLittleMemory { .. })));
    // A host may leave all blocks to others, but not the ends.
    let host = |memory| block_on(measure::host(&config, &settings, &cpu, memory, &here));
    let weak = host(needed - 1).unwrap();
    assert!(sound(&weak.head) && weak.device.forward.at(1) > 1000.0);
    assert!(matches!(host(1000), Err(EngineError::TooLittleMemory { .. })));
}

/// What an engine of a stage answers to a question from the network.
fn asked(measure: Measure, here: &Still) -> Result<Done, String> {
    let mut engine = StageEngine::new(baton_model::cpu());
    let files: Option<&MemoryFiles> = None;
    let done = engine.run(Job::Measure(Box::new(measure)), files, here, |_, _| ());
    block_on(done).map_err(|error| error.to_string())
}

fn question() -> Measure {
    Measure { id: 7, config: llama(), settings: settings(), most: 1 << 20 }
}

#[test]
fn a_stage_that_has_loaded_nothing_measures_itself() {
    let here = Still::new(Duration::from_millis(5));
    let Ok(Done::Measure(profile)) = asked(question(), &here) else { panic!("no profile") };
    assert_eq!((profile.memory, here.asked.get()), (1 << 20, Some((1 << 20, 0))));
    check(&profile, "stage");
}

#[test]
fn a_stage_that_has_loaded_its_blocks_counts_them_and_keeps_them() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families/llama2");
    let mut files = MemoryFiles::new();
    files.insert("model.safetensors", std::fs::read(folder.join("model.safetensors")).unwrap());
    let assign = Assign {
        generation: Generation(1),
        stage: StageIndex(1),
        stages: 2,
        blocks: 1..3,
        prev: PeerId(2),
        next: PeerId::HOST,
        prev_trains: true,
        step: Step(0),
        settings: settings(),
        source: ModelSource::Host,
        config: llama(),
        manifest: Vec::new(),
        states: Vec::new(),
    };
    let config = ModelConfig::parse(llama().as_bytes()).unwrap();
    let lora = lora_spec(&settings(), &config).unwrap();
    let memory = |micro_batches, samples, time| {
        let work = InFlight { micro_batches, samples, time, recompute: false };
        stage_memory(&config, 1..3, Storage::F32, &lora, work)
    };
    let here = Still::new(Duration::from_millis(5));
    let mut engine = StageEngine::new(baton_model::cpu());
    let mut run = |job| block_on(engine.run(job, Some(&files), &here, |_, _| ())).unwrap();
    let infer = || Job::Infer {
        request: 0,
        tensor: Boundary::encode(&[0.5; 64], [1, 2, 32], Precision::F32).unwrap(),
    };
    run(Job::Load(Box::new(assign)));
    // The last of two stages has two micro-batches of three samples in flight, its own and the one at the host's head.
    assert_eq!(here.holding.get(), memory(2, 3, 20).total());
    let before = run(infer());
    assert!(matches!(run(Job::Measure(Box::new(question()))), Done::Measure(_)));
    let held = memory(0, 0, 0);
    assert_eq!(here.asked.get(), Some((1 << 20, held.frozen + held.adapters)));
    assert_eq!(run(infer()), before);
}

#[test]
fn what_makes_no_sense_is_refused_in_words_and_takes_no_memory() {
    let huge = llama()
        .replace("\"hidden_size\": 32", "\"hidden_size\": 65536")
        .replace("\"intermediate_size\": 40", "\"intermediate_size\": 262144");
    for (measure, said) in [
        (Measure { config: "{".into(), ..question() }, "config.json cannot be read"),
        (Measure { config: huge, most: u64::MAX, ..question() }, "training one block"),
        (Measure { most: 0, ..question() }, "0 MB can be spared"),
        (Measure { settings: Settings { micro_batches: 0, ..settings() }, ..question() }, "micro-batches"),
        (Measure { settings: Settings { seq_len: u32::MAX, ..settings() }, ..question() }, "sequence length"),
        (
            Measure { settings: Settings { seq_len: 131_071, ..settings() }, most: u64::MAX, ..question() },
            "shorter samples",
        ),
        (Measure { settings: Settings { targets: vec!["x".into()], ..settings() }, ..question() }, "\"x\""),
    ] {
        let error = asked(measure, &Still::new(Duration::from_millis(5))).map(|_| ()).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}
