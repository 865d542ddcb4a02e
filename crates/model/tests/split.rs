//! However the blocks are cut into stages and the batch into micro-batches, the numbers are those of one process.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::{AdamW, Lora, Trainer};
use common::{Batch, Golden, Model, Pairs, all_gradients, pairs_relative, pass, spec};
use futures::executor::block_on;

/// Loss, gradients, and adapters after a step, of `cuts` stages and micro-batches of `rows` rows.
async fn step(
    model: &Model,
    golden: &Golden,
    cuts: &[usize],
    rows: usize,
    recompute: bool,
) -> (f64, Pairs, Pairs) {
    let (ends, batch) = (model.ends().await, Batch::of(golden));
    let lora = golden.pairs("lora");
    let mut stages: Vec<Trainer> = Vec::new();
    for cut in cuts.windows(2) {
        stages.push(model.trainer(cut[0]..cut[1], &lora, AdamW::default(), recompute).await);
    }
    let mut loss = 0.0;
    for (key, start) in (0..).zip((0..batch.ids.len()).step_by(rows)) {
        let part = batch.rows(start..(start + rows).min(batch.ids.len()));
        loss += pass(&ends, &mut stages, &part, key).await.unwrap();
    }
    let gradients = all_gradients(&stages).await;
    let mut squares = 0.0;
    for stage in &stages {
        squares += stage.grad_sum_of_squares().await.unwrap();
    }
    let mut after = Pairs::new();
    for stage in &mut stages {
        stage.apply(1e-3, 1.0 / squares.sqrt());
        after.extend(stage.lora().to_pairs().await.unwrap());
    }
    (loss, gradients, after)
}

#[test]
fn any_number_of_stages_gives_the_same_step() {
    block_on(async {
        let Some(model) = Model::stories().await else {
            return;
        };
        let golden = Golden::read("stories260k.safetensors");
        let (loss, gradients, after) = step(&model, &golden, &[0, 5], 3, true).await;
        let cuts: [&[usize]; 5] =
            [&[0, 2, 5], &[0, 1, 2, 5], &[0, 1, 3, 4, 5], &[0, 1, 2, 3, 4, 5], &[0, 4, 5]];
        for cuts in cuts {
            let (l, g, a) = step(&model, &golden, cuts, 3, true).await;
            assert!((l - loss).abs() / loss < 1e-5, "{cuts:?}: {l} is not {loss}");
            assert!(pairs_relative(&g, &gradients) < 1e-5, "{cuts:?}");
            assert!(pairs_relative(&a, &after) < 1e-5, "{cuts:?}");
        }
    });
}

#[test]
fn any_number_of_micro_batches_gives_the_same_step() {
    block_on(async {
        let golden = Golden::read("tiny.safetensors");
        let model = Model::tiny().await;
        let (loss, gradients, _) = step(&model, &golden, &[0, 2], 3, true).await;
        for rows in [1, 2] {
            let (l, g, _) = step(&model, &golden, &[0, 1, 2], rows, true).await;
            assert!((l - loss).abs() / loss < 1e-5, "{rows}: {l} is not {loss}");
            assert!(pairs_relative(&g, &gradients) < 1e-5, "{rows}");
        }
    });
}

#[test]
fn recomputing_changes_nothing_but_rounding() {
    block_on(async {
        let golden = Golden::read("tiny.safetensors");
        let model = Model::tiny().await;
        for cuts in [&[0, 2][..], &[0, 1, 2]] {
            let kept = step(&model, &golden, cuts, 2, false).await;
            let recomputed = step(&model, &golden, cuts, 2, true).await;
            assert!((kept.0 - recomputed.0).abs() / kept.0 < 1e-6);
            let error = pairs_relative(&recomputed.1, &kept.1);
            println!("relative difference of the gradients: {error:.1e}");
            assert!(error < 1e-5);
        }
    });
}

#[test]
fn the_first_stage_gives_its_input_gradient_when_asked() {
    block_on(async {
        let golden = Golden::read("tiny.safetensors");
        let model = Model::tiny().await;
        let (ends, batch) = (model.ends().await, Batch::of(&golden));
        let mut gradients = Vec::new();
        for recompute in [false, true] {
            let lora = golden.pairs("lora");
            let mut stage = model.trainer(0..2, &lora, AdamW::default(), recompute).await;
            let h = stage.forward(7, ends.embed(&batch.ids, &[]).unwrap(), &[]);
            let (_, grad) = ends.loss_and_grad(h, &batch.targets, &batch.weights).await.unwrap();
            let grad = stage.backward(7, grad, true).unwrap().unwrap();
            gradients.push(common::values(grad).await);
        }
        assert!(gradients[0].iter().any(|&g| g != 0.0));
        assert!(common::relative(&gradients[0], &gradients[1]) < 1e-5);
    });
}

#[test]
fn initial_adapters_do_not_depend_on_the_split() {
    block_on(async {
        let model = Model::tiny().await;
        let init = |range| Lora::init(&model.config, &spec(), range, 42, &model.device).unwrap();
        let whole = init(0..2).to_pairs().await.unwrap();
        let mut parts = init(0..1).to_pairs().await.unwrap();
        parts.extend(init(1..2).to_pairs().await.unwrap());
        assert_eq!(whole, parts);
        let bound = 1.0 / (model.config.hidden_size as f32).sqrt();
        let q = &whole[&(1, baton_formats::Projection::Q)];
        assert!(q.a.iter().all(|a| a.abs() <= bound) && q.b.iter().all(|&b| b == 0.0));
        let mean_square = q.a.iter().map(|a| a * a).sum::<f32>() / q.a.len() as f32;
        assert!((mean_square / (bound * bound / 3.0) - 1.0).abs() < 0.3, "not uniform");
    });
}
