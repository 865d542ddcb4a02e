//! The engine in a browser's worker: a room over channels in memory trains as one device alone.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_engine::source::AnyFiles;
use baton_formats::MemoryFiles;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::RunPhase;
use baton_protocol::run::Settings;
use common::{adapter_numbers, run_room};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

const CONFIG: &[u8] = include_bytes!("../../../static/model/config.json");

/// The model that ships with the page.
fn model() -> AnyFiles {
    let mut files = MemoryFiles::new();
    files.insert("config.json", CONFIG);
    files.insert("model.safetensors", include_bytes!("../../../static/model/model.safetensors"));
    files.insert("tokenizer.json", include_bytes!("../../../static/model/tokenizer.json"));
    AnyFiles::Memory(files)
}

#[wasm_bindgen_test]
fn three_stages_train_as_one_device_and_the_model_writes() {
    let text = include_bytes!("../../../static/sample.txt").to_vec();
    let settings = Settings {
        steps: 2,
        batch_size: 4,
        micro_batches: 2,
        seq_len: 32,
        warmup_steps: 0,
        boundary: Precision::F32,
        sample_tokens: 8,
        ..Settings::default()
    };
    let room = |stages| run_room(model(), ("sample.txt", text.clone()), &settings, stages, None);
    let (alone, ring) = (room(0), room(3));
    for outcome in [&alone, &ring] {
        assert_eq!((&outcome.phase, &outcome.errors), (&Some(RunPhase::Finished), &Vec::new()));
        assert_eq!((outcome.losses.len(), outcome.samples.len()), (2, 2));
    }
    assert_eq!(alone.samples, ring.samples);
    for (alone, ring) in alone.losses.iter().zip(&ring.losses) {
        assert!((alone - ring).abs() <= 1e-5 * alone, "{ring} in a ring, {alone} alone");
    }
    let (alone, ring) = (adapter_numbers(&alone.zip, CONFIG), adapter_numbers(&ring.zip, CONFIG));
    let worst = alone.iter().zip(&ring).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(alone.len() == ring.len() && worst <= 1e-4, "an adapter number differs by {worst}");
}
