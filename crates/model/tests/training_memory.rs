//! What training holds is what the memory model says, within a tenth: the heap of a stage, term by term.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_formats::{ModelConfig, TensorIndex};
use baton_model::{
    AdamW, Blocks, Ends, InFlight, Lora, LoraSpec, StageMemory, Storage, Tensor, Trainer, cpu, end_bytes,
    f32_to_boundary, head_memory, stage_memory,
};
use common::made::Made;
use futures::executor::block_on;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BATCH: usize = 2;
const MICRO_BATCHES: u64 = 3;

/// The most that the heap grew by while `work` ran.
fn peak<T>(work: impl FnOnce() -> T) -> (u64, T) {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let done = work();
    ((HEAP.peak_usage() - before) as u64, done)
}

fn close(what: &str, measured: u64, said: u64) {
    let ratio = said as f64 / measured as f64;
    println!("{what}: {measured} bytes measured, {said} said ({ratio:.3})");
    assert!((0.9..=1.1).contains(&ratio), "{what}: {said} bytes are said, and {measured} were held");
}

struct Case {
    name: &'static str,
    config: Value,
    storage: Storage,
    time: usize,
    recompute: bool,
}

fn measure(case: &Case) {
    let Case { storage, time, recompute, .. } = *case;
    let name = format!(
        "{} in {} at {time} tokens{}",
        case.name,
        storage.name(),
        if recompute { ", recomputing" } else { "" }
    );
    let config = ModelConfig::parse(case.config.to_string().as_bytes()).unwrap();
    let (blocks, device) = (0..config.num_hidden_layers, cpu());
    let spec = LoraSpec::new(8, 16.0, config.projections().collect());
    let work = InFlight { micro_batches: MICRO_BATCHES, samples: BATCH as u64, time: time as u64, recompute };
    let said = stage_memory(&config, blocks.clone(), storage, &spec, work);
    let boundary = |seed: usize| -> Tensor<3> {
        let numbers = BATCH * time * config.hidden_size;
        let values = (0..numbers).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect();
        f32_to_boundary(values, [BATCH, time, config.hidden_size], &device)
    };
    let before = HEAP.current_usage() as u64;
    let (whole, ()) = peak(|| {
        let files = Made::new(&config);
        let index = block_on(TensorIndex::open_model(&files)).unwrap();
        let loading = Blocks::load(&files, &index, &config, blocks.clone(), storage, &device, |_| ());
        let part = block_on(loading).unwrap();
        let lora = Lora::init(&config, &spec, blocks.clone(), 1, &device).unwrap();
        let mut trainer = Trainer::new(part, lora, AdamW::default(), recompute);
        // Once through, so that gradients are there.
        trainer.forward(0, boundary(0), &[]);
        trainer.backward(0, boundary(1), true).unwrap();
        let held = HEAP.current_usage() as u64 - before;
        close(&format!("{name}, weights and adapters"), held, said.frozen + said.adapters);
        for key in 0..MICRO_BATCHES {
            trainer.forward(key, boundary(2), &[]);
        }
        let kept = HEAP.current_usage() as u64 - before - held;
        close(&format!("{name}, in flight"), kept, said.activations);
        for key in 0..MICRO_BATCHES {
            trainer.backward(key, boundary(3), true).unwrap();
        }
    });
    let StageMemory { handover, .. } = said;
    close(&name, whole, StageMemory { handover: 0, ..said }.total());
    assert!(handover < whole, "the memory of training is what is measured here");
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true,
    })
}

// One test: another at the same time would be measured with it.
#[test]
fn the_heap_of_a_stage_is_what_the_model_of_it_says() {
    let gpt2 = || json!({"architectures": ["GPT2LMHeadModel"], "n_layer": 2, "vocab_size": 5000});
    let bert = || {
        json!({
            "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 768,
            "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12, "vocab_size": 3000,
        })
    };
    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1000,
    });
    let gemma3 = json!({
        "architectures": ["Gemma3ForCausalLM"], "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 1000,
        "hidden_activation": "gelu_pytorch_tanh",
    });
    let case = |name, config, storage, time, recompute| Case { name, config, storage, time, recompute };
    for case in [
        case("SmolLM2", llama(), Storage::F32, 64, false),
        case("SmolLM2", llama(), Storage::Nf4, 128, false),
        case("SmolLM2", llama(), Storage::Nf4, 256, true),
        case("SmolLM2", llama(), Storage::Nf4, 512, false),
        case("GPT-2", gpt2(), Storage::F32, 64, false),
        case("GPT-2", gpt2(), Storage::Bf16, 128, true),
        case("BERT", bert(), Storage::F32, 64, false),
        case("BERT", bert(), Storage::Int8, 128, false),
        case("Qwen3", qwen3, Storage::F32, 128, false),
        case("Gemma 3", gemma3, Storage::F32, 128, false),
    ] {
        measure(&case);
    }
    head();
}

/// The loss of next tokens: logits a few rows at a time.
fn head() {
    let config = ModelConfig::parse(llama().to_string().as_bytes()).unwrap();
    let (files, device, time) = (Made::new(&config), cpu(), 128);
    let index = block_on(TensorIndex::open_model(&files)).unwrap();
    for storage in [Storage::Nf4, Storage::F32] {
        let ends = block_on(Ends::load(&files, &index, &config, storage, &device, |_| ())).unwrap();
        let numbers = BATCH * time * config.hidden_size;
        let h = f32_to_boundary(vec![0.5; numbers], [BATCH, time, config.hidden_size], &device);
        let (targets, weights) = (vec![vec![3; time]; BATCH], vec![vec![0.1; time]; BATCH]);
        let (measured, _) = peak(|| block_on(ends.loss_and_grad(h, &targets, &weights)).unwrap());
        close(
            &format!("the loss in {}", storage.name()),
            measured,
            head_memory(&config, BATCH as u64, time as u64),
        );
        assert_eq!(ends.bytes(), end_bytes(&config, storage));
    }
}
