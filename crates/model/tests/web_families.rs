//! In the browser: every family gives transformers' logits and PEFT's gradients on the CPU, and some do on WebGPU.
//!
//! Run as `web.rs` is.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_formats::MemoryFiles;
use baton_model::{Device, Storage};
use common::Golden;
use common::family::{Family, NAMES};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

/// A folder of golden/families, in the module.
#[derive(Clone)]
struct Embedded {
    name: &'static str,
    files: Vec<(&'static str, &'static [u8])>,
    golden: &'static [u8],
    adapter: Option<&'static [u8]>,
}

macro_rules! bytes {
    ($($path:literal),+) => {
        include_bytes!(concat!("golden/families/", $($path),+)).as_slice()
    };
}

/// The folder of a family; `as` is the one with its golden, `without` says that no adapter is there.
macro_rules! family {
    ($name:literal) => {
        family!($name as $name)
    };
    ($name:literal as $golden:literal) => {
        family!($name as $golden, "model.safetensors")
    };
    ($name:literal as $golden:literal, $($file:literal),+) => {
        Embedded {
            adapter: Some(bytes!($golden, "/adapter/adapter_model.safetensors")),
            ..family!($name as $golden without $($file),+)
        }
    };
    ($name:literal as $golden:literal without $($file:literal),+) => {
        Embedded {
            name: $name,
            files: vec![("config.json", bytes!($name, "/config.json")), $(($file, bytes!($name, "/", $file))),+],
            golden: bytes!($golden, "/golden.safetensors"),
            adapter: None,
        }
    };
}

fn embedded() -> Vec<Embedded> {
    vec![
        family!("bert"),
        family!("bert_hub"),
        family!("bert_regression"),
        family!("gemma3"),
        family!("gpt2"),
        family!("gpt2_hub" as "gpt2"),
        family!("llama2"),
        family!("llama3"),
        family!("llama_bf16" as "llama_bf16" without "model.safetensors"),
        family!("llama_linear"),
        family!(
            "llama_sharded" as "tinyllama",
            "model.safetensors.index.json",
            "model-00001-of-00004.safetensors",
            "model-00002-of-00004.safetensors",
            "model-00003-of-00004.safetensors",
            "model-00004-of-00004.safetensors"
        ),
        family!("minilm"),
        family!("mistral"),
        family!("qwen2"),
        family!("qwen2_tied"),
        family!("qwen3"),
        family!("roberta"),
        family!("smollm2"),
        family!("tinyllama"),
    ]
}

async fn open(embedded: Embedded, device: Device) -> Family {
    let mut files = MemoryFiles::new();
    for (name, bytes) in embedded.files {
        files.insert(name, bytes);
    }
    let golden = Golden::parse(embedded.golden);
    Family::open(embedded.name, files, golden, embedded.adapter.map(Golden::parse), device).await
}

async fn families() -> Vec<Family> {
    let all = embedded();
    assert!(all.iter().map(|family| family.name).eq(NAMES));
    let mut families = Vec::new();
    for embedded in all {
        families.push(open(embedded, baton_model::cpu()).await);
    }
    families
}

#[wasm_bindgen_test]
async fn every_family_gives_the_logits_of_transformers() {
    for family in families().await {
        family.base_logits_match().await;
        family.padding_changes_nothing().await;
        family.cache_changes_nothing().await;
    }
}

#[wasm_bindgen_test]
async fn every_family_gives_the_gradients_of_peft_in_any_number_of_stages() {
    for family in families().await {
        let last = family.config.num_hidden_layers;
        family.training_matches(&[&[0, 1, last], &[0, 1, 2, last]]).await;
    }
}

#[wasm_bindgen_test]
async fn packed_weights_of_every_family_give_what_their_numbers_give() {
    for family in families().await {
        for (storage, bound) in [(Storage::Bf16, 0.015), (Storage::Int8, 0.04), (Storage::Nf4, 0.7)] {
            family.packed_weights_match(storage, bound).await;
        }
    }
}

#[cfg(feature = "webgpu")]
async fn on_webgpu(name: &str) -> Family {
    let embedded = embedded().into_iter().find(|family| family.name == name).unwrap();
    open(embedded, baton_model::webgpu().await.unwrap()).await
}

/// Gemma 3 has what the others have and more: four norms, q/k norms, windows, two angles, a scaled embedding.
#[cfg(feature = "webgpu")]
#[wasm_bindgen_test]
async fn webgpu_gives_the_gradients_of_peft_for_gemma_3() {
    let family = on_webgpu("gemma3").await;
    family.base_logits_match().await;
    family.training_matches(&[]).await;
    family.cache_changes_nothing().await;
}

/// BERT has what Gemma 3 has not: layer norms, biases, the error function, padding, a head.
#[cfg(feature = "webgpu")]
#[wasm_bindgen_test]
async fn webgpu_gives_the_gradients_of_peft_for_bert() {
    let family = on_webgpu("bert").await;
    family.base_logits_match().await;
    family.training_matches(&[]).await;
}

#[cfg(feature = "webgpu")]
#[wasm_bindgen_test]
async fn webgpu_trains_on_packed_weights() {
    on_webgpu("qwen3").await.packed_weights_match(Storage::Nf4, 0.7).await;
}
