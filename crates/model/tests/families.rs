//! A tiny random model of every family gives transformers' logits, and PEFT's losses and gradients, however it is cut.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use baton_formats::{AdapterConfig, MemoryFiles};
use baton_model::{AdamW, BlockState, Lora, LoraSpec, ModelError, Storage, Trainer, cpu};
use common::family::{Family, NAMES};
use common::{Golden, golden_path, relative};
use futures::executor::block_on;

/// The families whose files are other forms of another's.
fn golden_of(folder: &Path) -> String {
    let facts = std::fs::read(folder.join("golden.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
    let own = folder.file_name().unwrap().to_str().unwrap();
    facts["same_as"].as_str().unwrap_or(own).to_owned()
}

async fn family(name: &str) -> Family {
    let all = golden_path("families");
    let folder = all.join(name);
    let mut files = MemoryFiles::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.insert(path.file_name().unwrap().to_str().unwrap(), std::fs::read(&path).unwrap());
        }
    }
    let golden = all.join(golden_of(&folder));
    let adapter = std::fs::read(golden.join("adapter/adapter_model.safetensors")).ok();
    let golden = Golden::parse(&std::fs::read(golden.join("golden.safetensors")).unwrap());
    Family::open(name, files, golden, adapter.map(|bytes| Golden::parse(&bytes)), cpu()).await
}

async fn families() -> Vec<Family> {
    let mut names: Vec<_> = std::fs::read_dir(golden_path("families"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, NAMES, "tests/web_families.rs has to know them too");
    let mut families = Vec::new();
    for name in names {
        families.push(family(&name).await);
    }
    families
}

#[test]
fn base_logits_are_those_of_transformers() {
    block_on(async {
        for family in families().await {
            family.base_logits_match().await;
        }
    });
}

#[test]
fn losses_and_gradients_are_those_of_peft_in_any_number_of_stages() {
    block_on(async {
        for family in families().await {
            let last = family.config.num_hidden_layers;
            family.training_matches(&[&[0, last], &[0, 1, last], &[0, 2, last], &[0, 1, 2, last]]).await;
        }
    });
}

#[test]
fn a_row_gives_the_same_beside_longer_ones() {
    block_on(async {
        for family in families().await {
            family.padding_changes_nothing().await;
        }
    });
}

#[test]
fn decoding_with_a_cache_gives_what_a_whole_pass_gives() {
    block_on(async {
        for family in families().await {
            family.cache_changes_nothing().await;
        }
    });
}

#[test]
fn packed_weights_give_what_their_numbers_give() {
    block_on(async {
        for family in families().await {
            for (storage, bound) in
                [(Storage::F32, 1e-9), (Storage::Bf16, 0.015), (Storage::Int8, 0.04), (Storage::Nf4, 0.7)]
            {
                family.packed_weights_match(storage, bound).await;
            }
        }
    });
}

#[test]
fn ranks_of_their_own_are_those_of_peft() {
    block_on(async {
        let family = family("smollm2").await;
        let read = |name| std::fs::read(golden_path("families/smollm2/adapter_pattern").join(name)).unwrap();
        let pairs = family.pairs(&Golden::parse(&read("adapter_model.safetensors")), "");
        let (config, device) = (&family.config, &family.device);
        let settings = AdapterConfig::parse(&read("adapter_config.json")).unwrap();
        let spec = LoraSpec::of_places(config, &settings.places(config).unwrap());
        assert_eq!(pairs.len(), 6);
        let lora = Lora::from_pairs(config, &spec, 0..3, &pairs, device).unwrap();
        assert_eq!(lora.to_pairs().await.unwrap(), pairs);
        let ends = family.ends(Storage::F32).await;
        let blocks = family.blocks(0..3, Storage::F32).await;
        let h = blocks.forward(Some(&lora), ends.embed(&family.ids[..1], &[]).unwrap(), &[]);
        let expected = family.golden.f32("pattern_logits");
        let found = ends.logits(h).await.unwrap();
        assert!(relative(&found, &expected[..found.len()]) < 1e-4);

        let states = Trainer::new(blocks, lora, AdamW::default(), true).state().await.unwrap();
        assert_eq!(states, BlockState::fresh(&spec, config, &pairs).unwrap());
        for state in states {
            let bytes = state.to_bytes();
            assert_eq!(bytes.len(), BlockState::length(&spec, config, state.block));
            assert_eq!(BlockState::from_bytes(&spec, config, &bytes).unwrap(), state);
        }
    });
}

#[test]
fn an_adapter_of_one_rank_needs_no_ranks_of_their_own() {
    block_on(async {
        for name in ["gpt2", "bert", "gemma3"] {
            let family = family(name).await;
            let path = golden_path("families").join(name).join("adapter/adapter_config.json");
            let settings = AdapterConfig::parse(&std::fs::read(path).unwrap()).unwrap();
            let places = settings.places(&family.config).unwrap();
            assert_eq!(LoraSpec::of_places(&family.config, &places), family.spec());
        }
    });
}

#[test]
fn a_text_longer_than_the_learned_positions_is_an_error() {
    block_on(async {
        for (name, limit) in [("gpt2", 32), ("bert", 40), ("roberta", 32)] {
            let ends = family(name).await.ends(Storage::F32).await;
            assert!(ends.embed(&[vec![5; limit]], &[]).is_ok());
            for (past, length) in [(0, limit + 1), (limit, 1), (usize::MAX, 1)] {
                let found = ends.embed_after(past, &[vec![5; length]], &[]);
                assert!(matches!(found, Err(ModelError::TooLong { limit: l, .. }) if l == limit), "{name}");
            }
        }
    });
}

#[test]
fn token_types_that_do_not_fit_are_errors() {
    block_on(async {
        let ends = family("bert").await.ends(Storage::F32).await;
        let outside = ends.embed(&[vec![5, 6]], &[vec![0, 2]]);
        assert!(matches!(outside, Err(ModelError::TokenType { id: 2, types: 2 })));
        assert!(matches!(ends.embed(&[vec![5, 6]], &[vec![0]]), Err(ModelError::Shape { .. })));
        let ends = family("gpt2").await.ends(Storage::F32).await;
        assert!(matches!(ends.embed(&[vec![5]], &[vec![1]]), Err(ModelError::TokenType { id: 1, types: 1 })));
    });
}
