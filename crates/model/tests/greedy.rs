//! Greedy decoding of a real model gives transformers' tokens, with and without a cache.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::{KvCache, sample};
use common::{Model, golden_path};
use futures::executor::block_on;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn golden_ids() -> Vec<u32> {
    let json = std::fs::read_to_string(golden_path("greedy.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&json).unwrap();
    serde_json::from_value(golden["ids"].clone()).unwrap()
}

#[test]
fn decoding_with_a_cache_gives_the_tokens_of_transformers() {
    block_on(async {
        let Some(model) = Model::stories().await else {
            return;
        };
        let (ends, blocks) = (model.ends().await, model.all_blocks().await);
        let expected = golden_ids();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut cache = KvCache::new();
        let mut ids = vec![1];
        while ids.len() < expected.len() {
            let h = ends.embed(&[vec![ids[ids.len() - 1]]], &[]).unwrap();
            let h = blocks.forward_cached(None, h, &mut cache);
            ids.push(sample(&ends.logits_last(h).await.unwrap(), 0.0, &mut rng));
        }
        assert_eq!(ids, expected);
    });
}

#[test]
fn decoding_without_a_cache_gives_the_tokens_of_transformers() {
    block_on(async {
        let Some(model) = Model::stories().await else {
            return;
        };
        let (ends, blocks) = (model.ends().await, model.all_blocks().await);
        let expected = golden_ids();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut ids = vec![1];
        while ids.len() < expected.len() {
            let h = blocks.forward(None, ends.embed(&[ids.clone()], &[]).unwrap(), &[]);
            ids.push(sample(&ends.logits_last(h).await.unwrap(), 0.0, &mut rng));
        }
        assert_eq!(ids, expected);
    });
}

#[test]
fn a_prompt_may_enter_the_cache_in_pieces() {
    block_on(async {
        let model = Model::tiny().await;
        let blocks = model.all_blocks().await;
        let ends = model.ends().await;
        let ids = vec![1, 5, 9, 2, 60, 33, 7];
        let whole =
            common::values(blocks.forward(None, ends.embed(std::slice::from_ref(&ids), &[]).unwrap(), &[]))
                .await;
        let mut cache = KvCache::new();
        let mut pieces = Vec::new();
        for piece in [&ids[..3], &ids[3..4], &ids[4..]] {
            let h = ends.embed(&[piece.to_vec()], &[]).unwrap();
            pieces.extend(common::values(blocks.forward_cached(None, h, &mut cache)).await);
        }
        assert_eq!(cache.time(), ids.len());
        assert!(common::relative(&pieces, &whole) < 1e-5);
    });
}
