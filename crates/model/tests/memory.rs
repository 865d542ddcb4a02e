//! No tensor is ever whole in f32 beside what is kept of it: the peak of the heap while a model is loaded.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_formats::{ModelConfig, TensorIndex};
use baton_model::{Blocks, Ends, Storage, cpu, end_bytes, frozen_bytes};
use common::made::Made;
use futures::executor::block_on;
use peak_alloc::PeakAlloc;
use serde_json::json;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const MIB: u64 = 1 << 20;

/// Loads a model; gives the bytes that it keeps, and those by which the heap grew at most beyond them.
fn load(config: &ModelConfig, storage: Storage) -> (u64, u64) {
    block_on(async {
        let files = Made::new(config);
        let index = TensorIndex::open_model(&files).await.unwrap();
        let blocks = 0..config.num_hidden_layers;
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let device = cpu();
        let ends = Ends::load(&files, &index, config, storage, &device, |_| ()).await.unwrap();
        let part =
            Blocks::load(&files, &index, config, blocks.clone(), storage, &device, |_| ()).await.unwrap();
        let peak = (HEAP.peak_usage() - before) as u64;
        let kept = ends.bytes() + part.bytes();
        assert_eq!(kept, end_bytes(config, storage) + frozen_bytes(config, blocks, storage));
        let held = (HEAP.current_usage() - before) as u64;
        assert!(held.abs_diff(kept) < MIB / 4, "{held} bytes are held for {kept}");
        (kept, peak.saturating_sub(kept))
    })
}

// One test: another at the same time would be measured with it.
#[test]
fn loading_holds_a_fetch_and_a_piece_beside_what_it_keeps() {
    // SmolLM2-135M with two of its thirty blocks: the embedding alone has 113 MB in f32.
    let smol = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true,
    });
    let smol = ModelConfig::parse(smol.to_string().as_bytes()).unwrap();
    for storage in [Storage::Bf16, Storage::Int8, Storage::Nf4] {
        let (kept, beside) = load(&smol, storage);
        println!("SmolLM2 in {}: {kept} bytes kept, {beside} beside them", storage.name());
        assert!(beside < 10 * MIB, "{} took {beside} bytes beside {kept}", storage.name());
    }
    let parameters = smol.parameters();
    assert!(load(&smol, Storage::Nf4).0 as f64 <= 0.6 * parameters as f64);

    // GPT-2's maps are turned: one of them, 768 x 3072, is whole in f32.
    let gpt2 = json!({"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "vocab_size": 5000});
    let gpt2 = ModelConfig::parse(gpt2.to_string().as_bytes()).unwrap();
    let (kept, beside) = load(&gpt2, Storage::Nf4);
    println!("GPT-2 in nf4: {kept} bytes kept, {beside} beside them");
    assert!(beside < 4 * 768 * 3072 + 10 * MIB, "{beside} bytes beside {kept}");
}
