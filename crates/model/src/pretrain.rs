//! Training of every weight from random initialisation: how the small default model is made, natively.

use baton_formats::config::{Architecture, Head, NormKind};
use baton_formats::{Files, ModelConfig, TensorIndex};
use baton_kernels::{FrozenMatrix, Storage};
use burn::tensor::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::blocks::Blocks;
use crate::device::{indices, matrix, to_f32};
use crate::ends::embed;
use crate::loss::Targets;
use crate::norm::rms_norm;
use crate::{AdamW, Ends, ModelError, Moments};

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Gradients are scaled to at most this global norm.
const CLIP: f64 = 1.0;

/// A whole Llama in training: embedding, blocks, norm, and the head where it is not tied to the embedding.
pub struct Pretrainer {
    config: ModelConfig,
    adamw: AdamW,
    device: Device,
    weights: Weights,
    /// One a tensor, in the order of [`Weights::tensors_mut`].
    moments: Vec<Moments>,
}

#[derive(Clone)]
struct Weights {
    /// [vocab, hidden]
    embedding: Tensor<2>,
    blocks: Blocks,
    /// [1, hidden]
    norm: Tensor<2>,
    /// [vocab, hidden]; None where it is the embedding.
    head: Option<Tensor<2>>,
}

impl Pretrainer {
    /// Random weights: normal with a deviation of 1/√inputs (half of it for embedding and head, so that the first guess
    /// is about uniform), and those that write to the residual stream divided by √(2 · blocks), as in GPT-2. Hugging
    /// Face's 0.02, whatever the width, costs a narrow model much of a short training: docs/default-model.md has figures.
    /// The norms start at 1.
    ///
    /// # Errors
    ///
    /// When `config` is of another family.
    pub fn new(config: &ModelConfig, seed: u64, adamw: AdamW, device: &Device) -> Result<Self, ModelError> {
        check(config)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = 1.0 / ((2 * config.num_hidden_layers) as f64).sqrt();
        let mut values = |name: &str, shape: &[usize]| {
            let length = shape.iter().product();
            if name.contains("norm") {
                return vec![1.0; length];
            }
            let writes = name.contains("o_proj") || name.contains("down_proj");
            let scale = match name {
                EMBEDDING | HEAD => 0.5,
                _ if writes => residual,
                _ => 1.0,
            };
            let deviation = scale / (shape.last().copied().unwrap_or(1) as f64).sqrt();
            (0..length).map(|_| (normal(&mut rng) * deviation) as f32).collect()
        };
        let words = [config.vocab_size, config.hidden_size];
        let embedding = matrix(values(EMBEDDING, &words), words, device);
        let head = (!config.tie_word_embeddings).then(|| matrix(values(HEAD, &words), words, device));
        let weights = Weights {
            embedding,
            norm: Tensor::ones([1, config.hidden_size], device),
            head,
            blocks: Blocks::from_fn(config, device, values)?,
        };
        Ok(Self::with_weights(config, weights, adamw, device))
    }

    /// Goes on from a model that is there.
    ///
    /// # Errors
    ///
    /// When its files cannot be read, or it is of another family.
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        adamw: AdamW,
        device: &Device,
    ) -> Result<Self, ModelError> {
        check(config)?;
        let blocks = 0..config.num_hidden_layers;
        let blocks = Blocks::load(files, index, config, blocks, Storage::F32, device, |_| ()).await?;
        let ends = Ends::load(files, index, config, Storage::F32, device, |_| ()).await?;
        let missing = |name: &str| ModelError::MissingTensor(name.to_owned());
        let weights = Weights {
            embedding: ends.embedding.tensor().ok_or_else(|| missing(EMBEDDING))?,
            blocks: blocks.into_trained(),
            norm: ends.final_norm.ok_or_else(|| missing(NORM))?.gain,
            head: ends.head.and_then(|head| head.tensor()),
        };
        Ok(Self::with_weights(config, weights, adamw, device))
    }

    fn with_weights(config: &ModelConfig, mut weights: Weights, adamw: AdamW, device: &Device) -> Self {
        let moments = weights.tensors_mut().map(|(_, tensor)| Moments::zeros(tensor)).collect();
        Self { config: config.clone(), adamw, device: device.clone(), weights, moments }
    }

    /// One step on a batch of token ids; a shorter row is padded and the padding masked. Gives the mean loss of the
    /// next tokens, in nats. Norms are not decayed, and gradients are clipped to a global norm of 1.
    ///
    /// # Errors
    ///
    /// When an id is outside the vocabulary, no row has two tokens, or the device fails.
    pub async fn step(&mut self, batch_ids: &[Vec<u32>], lr: f64) -> Result<f64, ModelError> {
        let inputs = batch_ids.iter().map(|row| row[..row.len().saturating_sub(1)].to_vec());
        let inputs: Vec<Vec<u32>> = inputs.collect();
        let time = inputs.iter().map(Vec::len).max().unwrap_or(0);
        let count: usize = inputs.iter().map(Vec::len).sum();
        let padded = |row: &Vec<u32>| {
            let mut targets = row.get(1..).unwrap_or_default().to_vec();
            targets.resize(time, 0);
            targets
        };
        let targets: Vec<_> = batch_ids.iter().map(padded).collect();
        let weight = |row: &Vec<u32>| {
            let mut weights = vec![1.0 / count as f32; row.len()];
            weights.resize(time, 0.0);
            weights
        };
        let weights: Vec<_> = inputs.iter().map(weight).collect();

        let mut leaves = self.weights.clone();
        for (_, tensor) in leaves.tensors_mut() {
            *tensor = tensor.clone().autodiff().require_grad();
        }
        let h = embed(&leaves.embedding, &inputs, &self.device)?;
        let [batch, time, hidden] = h.dims();
        let targets = Targets::new(&self.config, [batch, time], &targets, &weights)?;
        let targets = targets.ok_or(ModelError::Shape {
            what: "a batch to train on",
            found: vec![batch, time],
            expected: vec![batch, 2],
        })?;
        let h = leaves.blocks.forward(None, h, &[]).reshape([batch * time, hidden]);
        let h = h.select(0, indices(targets.rows.clone(), &self.device));
        let normed = rms_norm(h, &leaves.norm, self.config.norm_eps);

        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        let mut head_gradient = head.zeros_like();
        let head = FrozenMatrix::from_tensor(head.clone());
        let (nll, gradient) = targets.loss(&normed.clone().inner(), &head, Some(&mut head_gradient));
        let mut gradients = (normed * gradient).sum().backward();
        let head = leaves.head.as_ref().map_or(EMBEDDING, |_| HEAD);
        let gradient_of = |(name, tensor): (String, &mut Tensor<2>)| {
            let found = tensor.grad_remove(&mut gradients);
            match (found, name == head) {
                (Some(gradient), true) => gradient + head_gradient.clone(),
                (None, true) => head_gradient.clone(),
                (Some(gradient), false) => gradient,
                (None, false) => tensor.zeros_like().inner(),
            }
        };
        let gradients: Vec<_> = leaves.tensors_mut().map(gradient_of).collect();
        self.apply(gradients, lr).await?;
        Ok(targets.total(&to_f32(nll).await?))
    }

    /// Every tensor with its name and shape, as `model.safetensors` holds them.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn to_tensors(&self) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>, ModelError> {
        let mut all = Vec::new();
        for (name, tensor) in self.weights.clone().tensors_mut() {
            let shape = if name.contains("norm") { vec![tensor.dims()[1]] } else { tensor.dims().to_vec() };
            all.push((name, shape, to_f32(tensor.clone()).await?));
        }
        Ok(all)
    }

    async fn apply(&mut self, gradients: Vec<Tensor<2>>, lr: f64) -> Result<(), ModelError> {
        let squares = gradients.iter().map(|g| g.clone().square().sum());
        let norm = to_f32(Tensor::cat(squares.collect(), 0)).await?;
        let norm = norm.into_iter().map(f64::from).sum::<f64>().sqrt();
        let scale = (CLIP / (norm + 1e-6)).min(1.0);
        let tensors = self.weights.tensors_mut();
        for (((name, tensor), gradient), moments) in tensors.zip(gradients).zip(&mut self.moments) {
            let mut adamw = self.adamw;
            if name.contains("norm") {
                adamw.weight_decay = 0.0;
            }
            *tensor = adamw.update(tensor.clone(), gradient.mul_scalar(scale), moments, lr);
        }
        Ok(())
    }
}

impl Weights {
    /// Every tensor with its name in the file.
    fn tensors_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor<2>)> {
        let Self { embedding, blocks, norm, head } = self;
        let ends = [(EMBEDDING, Some(embedding)), (NORM, Some(norm)), (HEAD, head.as_mut())];
        let ends = ends.into_iter().filter_map(|(name, tensor)| Some((name.to_owned(), tensor?)));
        ends.chain(blocks.tensors_mut())
    }
}

/// Refuses what [`Weights`] has no place for.
fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let plain = config.architecture == Architecture::Llama
        && config.block.norm == NormKind::Rms
        && config.ends.head == Head::Language
        && !(config.block.qkv_bias || config.block.o_bias || config.block.mlp_bias);
    if plain { Ok(()) } else { Err(ModelError::NotPretrained(config.architecture.name())) }
}

/// A standard normal number (Box & Muller, 1958).
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
