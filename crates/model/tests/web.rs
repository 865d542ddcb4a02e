//! In the browser: the tiny model's loss, gradients and training run are PEFT's, on the CPU and on WebGPU.
//!
//! ```text
//! CHROMEDRIVER=/usr/bin/chromedriver cargo test --release --target wasm32-unknown-unknown -p baton-model --test web
//! ```
//!
//! and `--features webgpu` for the second half, in a Chromium started with `--enable-unsafe-webgpu`.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_formats::MemoryFiles;
use baton_model::{AdamW, Device, KvCache};
use common::{Batch, Golden, Model, pairs_relative, pass, relative, values};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

async fn tiny(device: Device) -> (Model, Golden) {
    let mut files = MemoryFiles::new();
    files.insert("config.json", *include_bytes!("golden/tiny/config.json"));
    files.insert("model.safetensors", *include_bytes!("golden/tiny/model.safetensors"));
    let golden = Golden::parse(include_bytes!("golden/tiny.safetensors"));
    (Model::open(files, device).await, golden)
}

/// The loss, gradients, two optimizer steps and cached decoding against torch's numbers.
async fn matches_torch(device: Device) {
    let (model, golden) = tiny(device).await;
    let (ends, batch) = (model.ends().await, Batch::of(&golden));
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let lora = golden.pairs("lora");
    let mut stages =
        [model.trainer(0..1, &lora, adamw, true).await, model.trainer(1..2, &lora, adamw, false).await];
    let (losses, norms) = (golden.f64("losses"), golden.f64("norms"));
    for (step, lr) in golden.f64("lrs").into_iter().take(2).enumerate() {
        let loss = pass(&ends, &mut stages, &batch, 0).await.unwrap();
        assert!((loss - losses[step]).abs() / losses[step] < 1e-4, "step {step}: {loss}");
        if step == 0 {
            let found = common::all_gradients(&stages).await;
            let error = pairs_relative(&found, &golden.pairs("grad"));
            assert!(error < 1e-3, "gradients differ by {error:e}");
        }
        let mut squares = 0.0;
        for stage in &stages {
            squares += stage.grad_sum_of_squares().await.unwrap();
        }
        let norm = squares.sqrt();
        assert!((norm - norms[step]).abs() / norms[step] < 1e-3, "step {step}: norm {norm}");
        for stage in &mut stages {
            stage.apply(lr, (0.5 / (norm + 1e-6)).min(1.0));
        }
    }
    let blocks = model.all_blocks().await;
    let ids = &batch.ids[2];
    let whole = blocks.forward(None, ends.embed(&[ids.clone()], &[]).unwrap(), &[]);
    let mut cache = KvCache::new();
    let mut pieces = Vec::new();
    for piece in [&ids[..5], &ids[5..6], &ids[6..]] {
        let h = ends.embed(&[piece.to_vec()], &[]).unwrap();
        pieces.extend(values(blocks.forward_cached(None, h, &mut cache)).await);
    }
    assert!(relative(&pieces, &values(whole).await) < 1e-4);
}

#[wasm_bindgen_test]
async fn the_cpu_in_wasm_matches_torch() {
    matches_torch(baton_model::cpu()).await;
}

#[cfg(feature = "webgpu")]
#[wasm_bindgen_test]
async fn webgpu_matches_torch() {
    matches_torch(baton_model::webgpu().await.unwrap()).await;
}
