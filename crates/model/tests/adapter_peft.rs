//! An adapter that we wrote means to PEFT what it means to us: the golden logits are PEFT's.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../examples/write_adapter.rs"]
mod write_adapter;

use baton_formats::{Adapter, MemoryFiles, peft};
use baton_model::{Lora, LoraSpec};
use common::{Golden, Model, relative};
use futures::executor::block_on;

#[test]
fn a_written_adapter_gives_the_logits_that_peft_gives_with_it() {
    block_on(async {
        let Some(model) = Model::stories().await else {
            return;
        };
        let golden = Golden::read("adapter.safetensors");
        let ids = golden.f32("ids").into_iter().map(|id| id as u32).collect();

        let written = write_adapter::adapter(&model.config).await.unwrap();
        let (json, weights) = written.to_files(&model.config).unwrap();
        let mut files = MemoryFiles::new();
        files.insert(peft::CONFIG_FILE, json);
        files.insert(peft::WEIGHTS_FILE, weights);
        let adapter = Adapter::read(&files, &model.config).await.unwrap();

        let targets = adapter.config.projections(&model.config).unwrap();
        let spec = LoraSpec::new(adapter.config.r, adapter.config.lora_alpha, targets);
        let (blocks, pairs) = (0..model.config.num_hidden_layers, &adapter.weights);
        let lora = Lora::from_pairs(&model.config, &spec, blocks, pairs, &model.device).unwrap();
        let ends = model.ends().await;
        let h = model.all_blocks().await.forward(Some(&lora), ends.embed(&[ids], &[]).unwrap(), &[]);
        let error = relative(&ends.logits(h).await.unwrap(), &golden.f32("logits"));
        println!("relative error of the logits: {error:.1e}");
        assert!(error < 1e-4);
    });
}
