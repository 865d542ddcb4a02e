//! Goldens, models and one training step: what the tests share.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

pub mod family;
pub mod made;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use baton_formats::peft::LoraPair;
use baton_formats::{MemoryFiles, ModelConfig, Projection, TensorIndex};
use baton_model::{
    AdamW, Blocks, Device, Ends, Lora, LoraSpec, ModelError, Storage, Tensor, Trainer, boundary_to_f32,
};
use safetensors::{Dtype, SafeTensors};

pub type Pairs = baton_model::Pairs;

/// The adapters in the goldens: see scripts/golden_lora.py.
pub fn spec() -> LoraSpec {
    LoraSpec::new(2, 6.0, Projection::ALL[..7].to_vec())
}

/// What the goldens call the projections, in the order of [`Projection::ALL`].
const NAMES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tensors of a golden file, all as f64.
#[derive(Clone)]
pub struct Golden(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Golden {
    pub fn read(name: &str) -> Self {
        Self::parse(&std::fs::read(golden_path(name)).unwrap())
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => each(data, |b| f64::from(f32::from_le_bytes(b))),
                Dtype::F64 => each(data, f64::from_le_bytes),
                Dtype::I32 => each(data, |b| f64::from(i32::from_le_bytes(b))),
                other => panic!("a golden of {other:?}"),
            };
            (name.to_owned(), (view.shape().to_vec(), values))
        });
        Self(tensors.collect())
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.0[name].1.clone()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.0[name].1.iter().map(|&value| value as f32).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }

    /// `<prefix>.<block>.<projection>.{A,B}` of every block and projection.
    pub fn pairs(&self, prefix: &str) -> Pairs {
        let mut pairs = Pairs::new();
        for block in 0.. {
            for (projection, named) in Projection::ALL.into_iter().zip(NAMES) {
                let name = |part| format!("{prefix}.{block}.{named}.{part}");
                if !self.0.contains_key(&name("A")) {
                    return pairs;
                }
                let [a, b] = ["A", "B"].map(|part| self.f32(&name(part)));
                pairs.insert((block, projection), LoraPair { a, b });
            }
        }
        pairs
    }
}

fn each<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.chunks_exact(N).map(|b| value(b.try_into().unwrap())).collect()
}

/// A model's directory, if it is there.
fn memory(directory: &Path) -> Option<MemoryFiles> {
    let mut files = MemoryFiles::new();
    for name in ["config.json", "model.safetensors"] {
        files.insert(name, std::fs::read(directory.join(name)).ok()?);
    }
    Some(files)
}

pub struct Model {
    pub files: MemoryFiles,
    pub index: TensorIndex,
    pub config: ModelConfig,
    pub device: Device,
}

impl Model {
    pub async fn open(files: MemoryFiles, device: Device) -> Self {
        let json = baton_formats::read_all(&files, "config.json", 1 << 20).await.unwrap();
        let config = ModelConfig::parse(&json).unwrap();
        let index = TensorIndex::open(&files, "model.safetensors").await.unwrap();
        Self { files, index, config, device }
    }

    /// The committed tiny model: untied, one key-value head, head_dim ≠ hidden / heads.
    pub async fn tiny() -> Self {
        let files = memory(&golden_path("tiny")).unwrap();
        Self::open(files, baton_model::cpu()).await
    }

    /// stories260k, or None with a notice where the shared models are absent.
    pub async fn stories() -> Option<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
        let files = memory(&directory);
        if files.is_none() {
            println!("SKIPPED: {} is absent", directory.display());
        }
        Some(Self::open(files?, baton_model::cpu()).await)
    }

    pub async fn ends(&self) -> Ends {
        self.ends_in(Storage::F32).await
    }

    pub async fn blocks(&self, range: Range<usize>) -> Blocks {
        self.blocks_in(range, Storage::F32).await
    }

    pub async fn ends_in(&self, storage: Storage) -> Ends {
        let (files, device) = (&self.files, &self.device);
        Ends::load(files, &self.index, &self.config, storage, device, |_| ()).await.unwrap()
    }

    pub async fn blocks_in(&self, range: Range<usize>, storage: Storage) -> Blocks {
        let (files, device) = (&self.files, &self.device);
        Blocks::load(files, &self.index, &self.config, range, storage, device, |_| ()).await.unwrap()
    }

    pub async fn all_blocks(&self) -> Blocks {
        self.blocks(0..self.config.num_hidden_layers).await
    }

    pub async fn trainer(
        &self,
        range: Range<usize>,
        pairs: &Pairs,
        adamw: AdamW,
        recompute: bool,
    ) -> Trainer {
        let (config, device) = (&self.config, &self.device);
        let lora = Lora::from_pairs(config, &spec(), range.clone(), pairs, device).unwrap();
        Trainer::new(self.blocks(range).await, lora, adamw, recompute)
    }
}

/// A batch as `Ends` takes it.
pub struct Batch {
    pub ids: Vec<Vec<u32>>,
    pub targets: Vec<Vec<u32>>,
    pub weights: Vec<Vec<f32>>,
}

impl Batch {
    /// The batch of a golden, with its rows cut to their lengths.
    pub fn of(golden: &Golden) -> Self {
        let time = golden.shape("ids")[1];
        let (ids, mask) = (golden.f32("ids"), golden.f32("mask"));
        let count: f32 = mask.iter().sum();
        let rows = ids.chunks(time).zip(golden.f32("lengths"));
        let shifted = |row: &[f32], scale: f32| -> Vec<f32> {
            let next = row[1..].iter().chain([&0.0]);
            next.map(|value| value * scale).collect()
        };
        Self {
            ids: rows
                .map(|(row, length)| row[..length as usize].iter().map(|&id| id as u32).collect())
                .collect(),
            targets: ids
                .chunks(time)
                .map(|row| shifted(row, 1.0).into_iter().map(|id| id as u32).collect())
                .collect(),
            weights: mask.chunks(time).map(|row| shifted(row, 1.0 / count)).collect(),
        }
    }

    /// The rows `range`, padded to the longest row of the whole batch.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let longest = self.ids.iter().map(Vec::len).max().unwrap();
        let mut ids = self.ids[range.clone()].to_vec();
        ids[0].resize(longest, 0);
        Self { ids, targets: self.targets[range.clone()].to_vec(), weights: self.weights[range].to_vec() }
    }
}

/// Forward and backward of one micro-batch through a pipeline of stages; gives the loss.
pub async fn pass(ends: &Ends, stages: &mut [Trainer], batch: &Batch, key: u64) -> Result<f64, ModelError> {
    let mut h = ends.embed(&batch.ids, &[])?;
    for stage in stages.iter_mut() {
        h = stage.forward(key, h, &[]);
    }
    let (loss, mut grad) = ends.loss_and_grad(h, &batch.targets, &batch.weights).await?;
    for (i, stage) in stages.iter_mut().enumerate().rev() {
        if let Some(next) = stage.backward(key, grad.clone(), i > 0)? {
            grad = next;
        }
    }
    Ok(loss)
}

/// What one stage after another holds.
pub async fn all_gradients(stages: &[Trainer]) -> Pairs {
    let mut all = Pairs::new();
    for stage in stages {
        all.extend(stage.gradients().await.unwrap());
    }
    all
}

/// The largest difference over the largest value.
pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(0.0, |max: f64, value| {
            assert!(value.is_finite());
            max.max(f64::from(value.abs()))
        })
    };
    let difference = largest(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    difference / largest(&mut expected.iter().copied()).max(1e-30)
}

/// The largest [`relative`] difference of any matrix.
pub fn pairs_relative(found: &Pairs, expected: &Pairs) -> f64 {
    assert!(found.keys().eq(expected.keys()), "not of the same projections");
    let each = found.values().zip(expected.values());
    each.map(|(f, e)| relative(&f.a, &e.a).max(relative(&f.b, &e.b))).fold(0.0, f64::max)
}

pub async fn values(h: Tensor<3>) -> Vec<f32> {
    boundary_to_f32(h).await.unwrap().0
}
