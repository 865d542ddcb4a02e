//! The head for labels: fresh ones, training in micro-batches, its state as bytes, and what it refuses.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use baton_formats::{Label, MemoryFiles, ModelConfig, TensorIndex};
use baton_model::{AdamW, ClassifierHead, Ends, HeadState, ModelError, Storage, Tensor, cpu};
use common::golden_path;
use futures::executor::block_on;

struct Model {
    config: ModelConfig,
    files: MemoryFiles,
    index: TensorIndex,
    ends: Ends,
}

impl Model {
    async fn open(name: &str) -> Self {
        let folder = golden_path("families").join(name);
        let mut files = MemoryFiles::new();
        for name in ["config.json", "model.safetensors"] {
            files.insert(name, std::fs::read(folder.join(name)).unwrap());
        }
        let config = ModelConfig::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let index = TensorIndex::open_model(&files).await.unwrap();
        let ends = Ends::load(&files, &index, &config, Storage::F32, &cpu(), |_| ()).await.unwrap();
        Self { config, files, index, ends }
    }

    async fn head(&self, config: &ModelConfig, seed: u64) -> ClassifierHead {
        let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
        ClassifierHead::load_or_init(&self.files, &self.index, config, seed, adamw, &cpu()).await.unwrap()
    }

    /// Hidden states of four samples.
    fn h(&self) -> Tensor<3> {
        let row = |start: u32| (start..start + 5).collect::<Vec<u32>>();
        self.ends.embed(&[row(5), row(20), row(40), row(60)], &[]).unwrap()
    }
}

const LABELS: [Label; 4] = [Label::Class(0), Label::Class(2), Label::Class(1), Label::Class(2)];

async fn train(model: &Model, head: &mut ClassifierHead, steps: usize) -> f64 {
    let mut last = 0.0;
    for _ in 0..steps {
        (last, ..) = head.loss_and_grad(model.h(), &model.ends, &LABELS, 0.25).await.unwrap();
        head.apply(1e-2, 1.0);
    }
    last
}

#[test]
fn a_head_of_the_file_is_kept_and_another_is_drawn_from_the_seed() {
    block_on(async {
        let model = Model::open("bert").await;
        let own = model.head(&model.config, 1).await.to_tensors().await.unwrap();
        let file = model.index.read_f32(&model.files, "classifier.weight", &[3, 32]).await.unwrap();
        assert_eq!(own[0], ("classifier.weight".to_owned(), vec![3, 32], file));

        let other = model.config.clone().with_classifier(500, false).unwrap();
        let fresh = model.head(&other, 1).await.to_tensors().await.unwrap();
        assert_eq!(fresh, model.head(&other, 1).await.to_tensors().await.unwrap());
        assert_ne!(fresh, model.head(&other, 2).await.to_tensors().await.unwrap());
        let [weight, bias] = [&fresh[0].2, &fresh[1].2];
        assert!(bias.iter().all(|&bias| bias == 0.0) && bias.len() == 500);
        let deviation = (weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32).sqrt();
        assert!((deviation / 0.02 - 1.0).abs() < 0.05, "{deviation}");
    });
}

#[test]
fn micro_batches_add_up_to_the_step() {
    block_on(async {
        let model = Model::open("roberta").await;
        let config = model.config.clone().with_classifier(3, false).unwrap();
        let mut whole = model.head(&config, 3).await;
        let (loss, grad, _) = whole.loss_and_grad(model.h(), &model.ends, &LABELS, 0.25).await.unwrap();
        let mut parts = model.head(&config, 3).await;
        let (mut sum, mut grads) = (0.0, Vec::new());
        for row in 0..4 {
            let h = model.h().narrow(0, row, 1);
            let label = &LABELS[row..=row];
            let (loss, grad, _) = parts.loss_and_grad(h, &model.ends, label, 0.25).await.unwrap();
            sum += loss;
            grads.push(grad);
        }
        assert!((sum - loss).abs() < 1e-6);
        let grads = common::values(Tensor::cat(grads, 0)).await;
        assert!(common::relative(&grads, &common::values(grad).await) < 1e-5);
        let (found, expected) = (parts.gradients().await.unwrap(), whole.gradients().await.unwrap());
        assert_eq!(found.len(), 4);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.0, &found.1), (&expected.0, &expected.1));
            assert!(common::relative(&found.2, &expected.2) < 1e-5, "{}", found.0);
        }
        let squares: f64 = found.iter().flat_map(|(_, _, g)| g).map(|g| f64::from(g * g)).sum();
        assert!((parts.grad_sum_of_squares().await.unwrap() / squares - 1.0).abs() < 1e-4);
        parts.discard();
        assert!(parts.gradients().await.unwrap().is_empty());
    });
}

#[test]
fn a_head_learns_and_its_state_goes_on_elsewhere() {
    block_on(async {
        let model = Model::open("bert").await;
        let mut whole = model.head(&model.config, 1).await;
        let first = train(&model, &mut whole, 1).await;
        let last = train(&model, &mut whole, 199).await;
        assert!(last < first / 3.0, "{first} to {last}");
        let (_, said) = whole.loss(model.h(), &model.ends, &LABELS, 0.25).await.unwrap();
        assert_eq!(said, LABELS);

        let mut half = model.head(&model.config, 1).await;
        train(&model, &mut half, 120).await;
        let bytes = half.state().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), HeadState::length(&model.config));
        let state = HeadState::from_bytes(&model.config, &bytes).unwrap();
        assert_eq!(state.step, 120);
        assert_eq!(state.tensors(&model.config), half.to_tensors().await.unwrap());
        let mut other = model.head(&model.config, 9).await;
        other.restore(&state).unwrap();
        train(&model, &mut other, 80).await;
        assert_eq!(other.to_tensors().await.unwrap(), whole.to_tensors().await.unwrap());
    });
}

#[test]
fn bytes_that_are_no_state_are_refused() {
    block_on(async {
        let model = Model::open("bert").await;
        let mut head = model.head(&model.config, 1).await;
        let good = head.state().await.unwrap().to_bytes();
        let read = |bytes: &[u8]| HeadState::from_bytes(&model.config, bytes);
        for wrong in [&good[..good.len() - 1], &[], &[good.as_slice(), &[0]].concat()] {
            assert!(matches!(read(wrong), Err(ModelError::StateLength { .. })));
        }
        let mut nan = good.clone();
        nan[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(read(&nan), Err(ModelError::HeadNotFinite)));
        let wider = model.config.clone().with_classifier(7, false).unwrap();
        let other = model.head(&wider, 1).await.state().await.unwrap();
        assert!(matches!(head.restore(&other), Err(ModelError::Shape { .. })));
        assert_eq!(head.state().await.unwrap().to_bytes(), good);
        let missing = HeadState::fresh(&model.config, &BTreeMap::new());
        assert!(matches!(missing, Err(ModelError::MissingTensor(_))));
    });
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    block_on(async {
        let model = Model::open("bert").await;
        let mut head = model.head(&model.config, 1).await;
        let mut refused = async |labels: &[Label]| {
            head.loss_and_grad(model.h(), &model.ends, labels, 1.0).await.unwrap_err()
        };
        assert!(matches!(refused(&LABELS[..3]).await, ModelError::Shape { .. }));
        for wrong in [Label::Class(3), Label::Class(u32::MAX), Label::Value(0.5)] {
            let labels = [LABELS[0], wrong, LABELS[2], LABELS[3]];
            assert!(matches!(refused(&labels).await, ModelError::Label { .. }));
        }
        let values = model.config.clone().with_classifier(1, true).unwrap();
        let mut head = model.head(&values, 1).await;
        let labels = [1.0, 2.0, f32::NAN, 4.0].map(Label::Value);
        let found = head.loss_and_grad(model.h(), &model.ends, &labels, 1.0).await;
        assert!(matches!(found, Err(ModelError::Label { .. })));
        let model = Model::open("gpt2").await;
        let none = ClassifierHead::init(&model.config, 1, AdamW::default(), &cpu());
        assert!(matches!(none, Err(ModelError::NoClassifier("GPT-2"))));
    });
}

#[test]
fn an_encoder_has_no_next_token() {
    block_on(async {
        let model = Model::open("bert").await;
        assert!(matches!(model.ends.logits(model.h()).await, Err(ModelError::NoLanguageHead("BERT"))));
        let (targets, weights) = (vec![vec![5; 5]; 4], vec![vec![1.0; 5]; 4]);
        let found = model.ends.loss_and_grad(model.h(), &targets, &weights).await;
        assert!(matches!(found, Err(ModelError::NoLanguageHead(_))));
    });
}
