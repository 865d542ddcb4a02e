//! Training of all weights, tied embedding included, follows torch; from random weights it learns.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use baton_model::{AdamW, Pretrainer};
use common::{Model, golden_path};
use futures::executor::block_on;
use serde_json::{Value, from_value};

#[test]
fn every_weight_follows_torch() {
    block_on(async {
        let Some(model) = Model::stories().await else {
            return;
        };
        let json = std::fs::read(golden_path("pretrain.json")).unwrap();
        let golden: Value = serde_json::from_slice(&json).unwrap();
        let rows: Vec<Vec<u32>> = from_value(golden["rows"].clone()).unwrap();
        let losses: Vec<f64> = from_value(golden["losses"].clone()).unwrap();
        let adamw =
            AdamW { weight_decay: from_value(golden["weight_decay"].clone()).unwrap(), ..AdamW::default() };
        let (files, index, config) = (&model.files, &model.index, &model.config);
        let mut trainer = Pretrainer::load(files, index, config, adamw, &model.device).await.unwrap();
        let peak: f64 = from_value(golden["lr"].clone()).unwrap();
        for (step, &expected) in (1..).zip(&losses) {
            let lr = peak * f64::from(step) / losses.len() as f64;
            let loss = trainer.step(&rows, lr).await.unwrap();
            println!("step {step}: {loss}, torch {expected}");
            assert!((loss - expected).abs() / expected < 1e-4);
        }
    });
}

#[test]
fn a_random_model_learns_and_gives_all_its_tensors() {
    block_on(async {
        let model = Model::tiny().await;
        let mut trainer = Pretrainer::new(&model.config, 1, AdamW::default(), &model.device).unwrap();
        let rows: Vec<Vec<u32>> = (0..4).map(|row| (row..row + 12).collect()).collect();
        let first = trainer.step(&rows, 1e-2).await.unwrap();
        assert!((first - f64::from(80).ln()).abs() < 0.1, "{first} is not that of a uniform guess");
        for _ in 0..60 {
            trainer.step(&rows, 1e-2).await.unwrap();
        }
        let last = trainer.step(&rows, 1e-2).await.unwrap();
        assert!(last < 0.3, "{last}");

        let tensors = trainer.to_tensors().await.unwrap();
        let shapes = tensors.iter().map(|(name, shape, values)| {
            assert_eq!(values.len(), shape.iter().product::<usize>());
            (name.clone(), shape.clone())
        });
        let ends = baton_formats::end_tensors(&model.config);
        let mut expected: Vec<_> = ends.into_iter().map(|t| (t.name().to_owned(), t.shape)).collect();
        for block in 0..model.config.num_hidden_layers {
            let tensors = baton_formats::block_tensors(&model.config, block);
            expected.extend(tensors.into_iter().map(|t| (t.name().to_owned(), t.shape)));
        }
        let mut shapes: Vec<_> = shapes.collect();
        shapes.sort();
        expected.sort();
        assert_eq!(shapes, expected);
    });
}
