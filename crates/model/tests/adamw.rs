//! The optimizer is torch.optim.AdamW: alone on given gradients, and in a training run with clipping and a schedule.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::{AdamW, Moments, Tensor, cpu};
use burn::tensor::TensorData;
use common::{Batch, Golden, Model, pairs_relative, pass, relative};
use futures::executor::block_on;

fn adamw() -> AdamW {
    AdamW { weight_decay: 0.1, ..AdamW::default() }
}

#[test]
fn parameters_follow_torch_on_given_gradients() {
    let golden = Golden::read("adamw.safetensors");
    let shape = [golden.shape("param")[0], golden.shape("param")[1]];
    let matrix = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &cpu());
    let length = shape[0] * shape[1];
    let (grads, after) = (golden.f32("grads"), golden.f32("after"));
    let steps = grads.chunks(length).zip(after.chunks(length));
    let settings = golden.f64("lrs").into_iter().zip(golden.f64("scales"));

    let mut parameter = matrix(&golden.f32("param"));
    let mut moments = Moments::zeros(&parameter);
    for ((gradient, expected), (lr, scale)) in steps.zip(settings) {
        let gradient = matrix(gradient).mul_scalar(scale);
        parameter = adamw().update(parameter, gradient, &mut moments, lr);
        let found: Vec<f32> = parameter.to_data().try_into_vec().unwrap();
        let error = relative(&found, expected);
        assert!(error < 1e-6, "step {}: {error:e}", moments.step);
    }
}

#[test]
fn a_training_run_follows_torch() {
    block_on(async {
        let golden = Golden::read("tiny.safetensors");
        let model = Model::tiny().await;
        let (ends, batch) = (model.ends().await, Batch::of(&golden));
        let blocks = 0..model.config.num_hidden_layers;
        let mut stage = model.trainer(blocks, &golden.pairs("lora"), adamw(), false).await;
        let expected = golden.f64("losses").into_iter().zip(golden.f64("norms"));
        for ((loss, norm), lr) in expected.zip(golden.f64("lrs")) {
            let found = pass(&ends, std::slice::from_mut(&mut stage), &batch, 0).await.unwrap();
            let found_norm = stage.grad_sum_of_squares().await.unwrap().sqrt();
            stage.apply(lr, (0.5 / (found_norm + 1e-6)).min(1.0));
            assert!((found - loss).abs() / loss < 1e-5, "{found} is not {loss}");
            assert!((found_norm - norm).abs() / norm < 1e-4, "{found_norm} is not {norm}");
        }
        let found = stage.lora().to_pairs().await.unwrap();
        let error = pairs_relative(&found, &golden.pairs("after"));
        assert!(error < 1e-4, "{error:e}");
    });
}
