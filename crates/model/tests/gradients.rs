//! Logits, loss and the gradients of all seven projections are PEFT's, on a padded and masked batch.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::AdamW;
use common::{Batch, Golden, Model, pairs_relative, pass, relative};
use futures::executor::block_on;

async fn matches_peft(model: &Model, golden: &Golden) {
    let batch = Batch::of(golden);
    let ends = model.ends().await;
    let blocks = 0..model.config.num_hidden_layers;
    let lora = golden.pairs("lora");
    let mut stage = model.trainer(blocks, &lora, AdamW::default(), true).await;

    let logits = ends.logits(stage.infer(ends.embed(&batch.ids, &[]).unwrap(), &[])).await.unwrap();
    let time = golden.shape("ids")[1];
    let rows = logits.chunks(time * model.config.vocab_size).zip(&batch.ids);
    let real = rows.flat_map(|(row, ids)| &row[..ids.len() * model.config.vocab_size]);
    let logits = relative(&real.copied().collect::<Vec<_>>(), &golden.f32("logits"));

    let loss = pass(&ends, std::slice::from_mut(&mut stage), &batch, 0).await.unwrap();
    let expected = golden.f64("loss")[0];
    let loss = (loss - expected).abs() / expected;
    let gradients = stage.gradients().await.unwrap();
    let gradients = pairs_relative(&gradients, &golden.pairs("grad"));

    println!("relative errors: logits {logits:.1e}, loss {loss:.1e}, gradients {gradients:.1e}");
    assert!(logits < 1e-4);
    assert!(loss < 1e-5);
    assert!(gradients < 1e-4);
}

#[test]
fn stories260k_matches_peft() {
    block_on(async {
        if let Some(model) = Model::stories().await {
            matches_peft(&model, &Golden::read("stories260k.safetensors")).await;
        }
    });
}

/// Untied embeddings, one key-value head for four query heads, head_dim ≠ hidden / heads.
#[test]
fn unusual_shapes_match_peft() {
    block_on(async {
        matches_peft(&Model::tiny().await, &Golden::read("tiny.safetensors")).await;
    });
}

#[test]
fn evaluation_gives_the_loss_of_training() {
    block_on(async {
        let golden = Golden::read("tiny.safetensors");
        let model = Model::tiny().await;
        let (ends, batch) = (model.ends().await, Batch::of(&golden));
        let h = model.all_blocks().await.forward(None, ends.embed(&batch.ids, &[]).unwrap(), &[]);
        let loss = ends.loss(h.clone(), &batch.targets, &batch.weights).await.unwrap();
        let (other, _) = ends.loss_and_grad(h, &batch.targets, &batch.weights).await.unwrap();
        assert_eq!(loss, other);
    });
}
