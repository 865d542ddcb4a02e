//! A block's state, sent as bytes, lets another device go on as if nothing had happened; bad bytes are refused.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::{AdamW, BlockState, Lora, ModelError, Trainer};
use common::{Batch, Golden, Model, pass, spec};
use futures::executor::block_on;

async fn train(model: &Model, golden: &Golden, stage: &mut Trainer, steps: usize) {
    let (ends, batch) = (model.ends().await, Batch::of(golden));
    for _ in 0..steps {
        pass(&ends, std::slice::from_mut(stage), &batch, 0).await.unwrap();
        stage.apply(1e-2, 1.0);
    }
}

async fn trained(model: &Model, golden: &Golden, steps: usize) -> Trainer {
    let mut stage = model.trainer(0..2, &golden.pairs("lora"), AdamW::default(), true).await;
    train(model, golden, &mut stage, steps).await;
    stage
}

#[test]
fn a_restored_stage_goes_on_with_the_same_numbers() {
    block_on(async {
        let (model, golden) = (Model::tiny().await, Golden::read("tiny.safetensors"));
        let whole = trained(&model, &golden, 5).await.lora().to_pairs().await.unwrap();

        let half = trained(&model, &golden, 3).await.state().await.unwrap();
        let bytes: Vec<_> = half.iter().map(BlockState::to_bytes).collect();
        assert_eq!(bytes[0].len(), BlockState::length(&spec(), &model.config, 0));
        let states = bytes.iter().rev();
        let states: Vec<_> =
            states.map(|bytes| BlockState::from_bytes(&spec(), &model.config, bytes).unwrap()).collect();
        let lora = Lora::init(&model.config, &spec(), 0..2, 9, &model.device).unwrap();
        let mut other = Trainer::new(model.all_blocks().await, lora, AdamW::default(), true);
        other.restore(&states).unwrap();
        assert!(
            other
                .lora()
                .to_pairs()
                .await
                .unwrap()
                .iter()
                .all(|(at, pair)| { states.iter().any(|state| state.pairs().get(at) == Some(pair)) })
        );
        train(&model, &golden, &mut other, 2).await;
        assert_eq!(other.lora().to_pairs().await.unwrap(), whole);
    });
}

#[test]
fn an_abandoned_step_leaves_no_trace() {
    block_on(async {
        let (model, golden) = (Model::tiny().await, Golden::read("tiny.safetensors"));
        let (ends, batch) = (model.ends().await, Batch::of(&golden));
        let mut stage = trained(&model, &golden, 1).await;
        pass(&ends, std::slice::from_mut(&mut stage), &batch, 1).await.unwrap();
        stage.forward(2, ends.embed(&batch.ids, &[]).unwrap(), &[]);
        stage.discard();
        assert!(stage.gradients().await.unwrap().is_empty());
        let grad = ends.embed(&batch.ids, &[]).unwrap();
        assert!(matches!(stage.backward(2, grad, false), Err(ModelError::UnknownKey(2))));
        train(&model, &golden, &mut stage, 1).await;
        let expected = trained(&model, &golden, 2).await;
        let found = stage.lora().to_pairs().await.unwrap();
        assert_eq!(found, expected.lora().to_pairs().await.unwrap());
    });
}

#[test]
fn bytes_that_are_no_state_are_refused() {
    block_on(async {
        let (model, golden) = (Model::tiny().await, Golden::read("tiny.safetensors"));
        let mut stage = trained(&model, &golden, 1).await;
        let states = stage.state().await.unwrap();
        let good = states[1].to_bytes();
        let read = |bytes: &[u8]| BlockState::from_bytes(&spec(), &model.config, bytes);
        assert_eq!(read(&good).unwrap(), states[1]);
        let short = read(&good[..good.len() - 1]);
        assert!(matches!(short, Err(ModelError::StateLength { .. })));
        assert!(matches!(read(&[]), Err(ModelError::StateLength { found: 0, .. })));
        let mut other = good.clone();
        other[..4].copy_from_slice(&7u32.to_le_bytes());
        assert!(matches!(read(&other), Err(ModelError::NoSuchBlocks { start: 7, .. })));
        let mut nan = good;
        nan[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(read(&nan), Err(ModelError::StateNotFinite(1))));
        let missing = stage.restore(&states[..1]);
        assert!(matches!(missing, Err(ModelError::StateOfOtherBlocks { .. })));
    });
}

#[test]
fn ids_and_shapes_that_do_not_fit_are_errors() {
    block_on(async {
        let (model, golden) = (Model::tiny().await, Golden::read("tiny.safetensors"));
        let (ends, batch) = (model.ends().await, Batch::of(&golden));
        let outside = ends.embed(&[vec![1, 80]], &[]);
        assert!(matches!(outside, Err(ModelError::TokenOutOfRange { id: 80, vocab: 80 })));
        assert!(matches!(ends.embed(&[vec![]], &[]), Err(ModelError::Shape { .. })));
        let h = ends.embed(&batch.ids, &[]).unwrap();
        let short = ends.loss_and_grad(h.clone(), &batch.targets[1..], &batch.weights).await;
        assert!(matches!(short, Err(ModelError::Shape { .. })));
        let masked: Vec<_> = batch.weights.iter().map(|row| vec![0.0; row.len()]).collect();
        let (loss, grad) = ends.loss_and_grad(h.clone(), &batch.targets, &masked).await.unwrap();
        assert_eq!(loss, 0.0);
        assert!(common::values(grad).await.iter().all(|&g| g == 0.0));
        let mut stage = trained(&model, &golden, 0).await;
        stage.forward(0, h.clone(), &[]);
        let wrong = stage.backward(0, h.narrow(1, 0, 2), true);
        assert!(matches!(wrong, Err(ModelError::Shape { .. })));
    });
}
