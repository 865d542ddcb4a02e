//! The ends of a model: the token embedding, and the LM head with the loss. Frozen.

use baton_formats::{Files, ModelConfig, TensorIndex, end_tensors};
use burn::tensor::{Device, Int, Tensor};

use crate::ModelError;
use crate::blocks::rms_norm;
use crate::device::{indices, matrix, to_f32};
use crate::lora::checked_matrix;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// The token embedding, the last norm, and the LM head.
#[derive(Clone, Debug)]
pub struct Ends {
    config: ModelConfig,
    /// [vocab, hidden]
    pub(crate) embedding: Tensor<2>,
    /// Gains. [1, hidden]
    pub(crate) norm: Tensor<2>,
    /// [vocab, hidden]; the embedding itself where they are tied.
    pub(crate) head: Tensor<2>,
    device: Device,
}

impl Ends {
    /// Reads the ends, and nothing else of the file.
    ///
    /// `on_bytes` hears the bytes as they come.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, or lack a tensor.
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        device: &Device,
        on_bytes: impl FnMut(u64),
    ) -> Result<Self, ModelError> {
        let wanted: Vec<_> =
            end_tensors(config).iter().map(|t| (t.name().to_owned(), t.file_shape())).collect();
        let mut found = index.read_many_f32(files, &wanted, on_bytes).await?;
        let mut tensor = |name: &str, shape: [usize; 2]| match found.remove(name) {
            Some(values) => checked_matrix("an end of the model", values, shape, device),
            None => Err(ModelError::MissingTensor(name.to_owned())),
        };
        let words = [config.vocab_size, config.hidden_size];
        let embedding = tensor(EMBEDDING, words)?;
        let norm = tensor(NORM, [1, config.hidden_size])?;
        let head = if config.tie_word_embeddings { embedding.clone() } else { tensor(HEAD, words)? };
        Ok(Self { config: config.clone(), embedding, norm, head, device: device.clone() })
    }

    /// The hidden states that enter block 0: `[batch, time, hidden]`. Shorter rows are padded on the right with token 0.
    ///
    /// # Errors
    ///
    /// When an id is outside the vocabulary, or there is no token at all.
    pub fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor<3>, ModelError> {
        embed(&self.embedding, ids, &self.device)
    }

    /// The loss and its gradient with respect to `h`.
    ///
    /// `h` is `[batch, time, hidden]`, what left the last block. `targets[b][t]` is the token that follows position t
    /// of row b and `weights[b][t]` its weight; both are as large as `h`. A position of weight 0 is masked: it costs
    /// nothing and its target is not looked at. The loss is `Σ weight · -ln p(target)`, summed in f64, so a caller that
    /// passes 1/n of a step's n targets adds the micro-batches' losses up to the step's mean.
    ///
    /// # Errors
    ///
    /// When the sizes differ, a target is outside the vocabulary, or the device fails.
    pub async fn loss_and_grad(
        &self,
        h: Tensor<3>,
        targets: &[Vec<u32>],
        weights: &[Vec<f32>],
    ) -> Result<(f64, Tensor<3>), ModelError> {
        let [batch, time, hidden] = h.dims();
        let Some(targets) = Targets::new(&self.config, [batch, time], targets, weights)? else {
            return Ok((0.0, h.zeros_like()));
        };
        let leaf = h.autodiff().require_grad();
        let rows = leaf.clone().reshape([batch * time, hidden]);
        let rows = rows.select(0, indices(targets.rows.clone(), &self.device));
        let normed = rms_norm(rows, &self.norm, self.config.norm_eps);
        let (nll, gradient) = targets.loss(&normed.clone().inner(), &self.head, None);
        let gradients = (normed * gradient).sum().backward();
        // The leaf reaches the sum through `select` whatever the numbers are.
        let gradient = leaf.grad(&gradients).unwrap_or_else(|| leaf.inner().zeros_like());
        Ok((targets.total(&to_f32(nll).await?), gradient))
    }

    /// The loss of [`Self::loss_and_grad`] without its gradient.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn loss(
        &self,
        h: Tensor<3>,
        targets: &[Vec<u32>],
        weights: &[Vec<f32>],
    ) -> Result<f64, ModelError> {
        let [batch, time, hidden] = h.dims();
        let Some(targets) = Targets::new(&self.config, [batch, time], targets, weights)? else {
            return Ok(0.0);
        };
        let rows = h.reshape([batch * time, hidden]);
        let rows = rows.select(0, indices(targets.rows.clone(), &self.device));
        let normed = rms_norm(rows, &self.norm, self.config.norm_eps);
        let nll = targets.chunks(normed.dims()[0], &self.device).map(|chunk| {
            let normed = normed.clone().narrow(0, chunk.start, chunk.length);
            chunk.scores(&normed, &self.head).nll
        });
        Ok(targets.total(&to_f32(Tensor::cat(nll.collect(), 0)).await?))
    }

    /// The logits `[vocab]` that follow the last position of row 0. h: `[batch, time, hidden]`
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn logits_last(&self, h: Tensor<3>) -> Result<Vec<f32>, ModelError> {
        let [_, time, _] = h.dims();
        self.logits(h.narrow(0, 0, 1).narrow(1, time.saturating_sub(1), 1)).await
    }

    /// The logits `[batch, time, vocab]` of every position, in row-major order. h: `[batch, time, hidden]`
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn logits(&self, h: Tensor<3>) -> Result<Vec<f32>, ModelError> {
        let [batch, time, hidden] = h.dims();
        let rows = h.reshape([batch * time, hidden]);
        let normed = rms_norm(rows, &self.norm, self.config.norm_eps);
        to_f32(normed.matmul(self.head.clone().transpose())).await
    }
}

/// Looks rows of `embedding` [vocab, hidden] up, padded to the longest with token 0 -> [batch, time, hidden]
pub(crate) fn embed(
    embedding: &Tensor<2>,
    ids: &[Vec<u32>],
    device: &Device,
) -> Result<Tensor<3>, ModelError> {
    let [vocab, hidden] = embedding.dims();
    let time = ids.iter().map(Vec::len).max().unwrap_or(0);
    if time == 0 {
        return Err(ModelError::Shape {
            what: "a batch of token ids",
            found: vec![ids.len(), time],
            expected: vec![ids.len().max(1), 1],
        });
    }
    let mut flat = Vec::with_capacity(ids.len() * time);
    for row in ids {
        for &id in row {
            flat.push(token(id, vocab)?);
        }
        flat.resize(flat.len() + time - row.len(), 0);
    }
    let rows = embedding.clone().select(0, indices(flat, device));
    Ok(rows.reshape([ids.len(), time, hidden]))
}

/// The positions that count, with their targets and weights.
pub(crate) struct Targets {
    /// Positions in [batch · time].
    pub(crate) rows: Vec<i32>,
    tokens: Vec<i32>,
    weights: Vec<f32>,
    vocab: usize,
}

impl Targets {
    /// None where every position is masked.
    pub(crate) fn new(
        config: &ModelConfig,
        [batch, time]: [usize; 2],
        targets: &[Vec<u32>],
        weights: &[Vec<f32>],
    ) -> Result<Option<Self>, ModelError> {
        let fits = |lengths: Vec<usize>, what| {
            let expected = vec![time; batch];
            if lengths == expected {
                return Ok(());
            }
            Err(ModelError::Shape { what, found: lengths, expected })
        };
        fits(targets.iter().map(Vec::len).collect(), "the rows of targets")?;
        fits(weights.iter().map(Vec::len).collect(), "the rows of weights")?;
        let mut all =
            Self { rows: Vec::new(), tokens: Vec::new(), weights: Vec::new(), vocab: config.vocab_size };
        let positions = targets.iter().flatten().zip(weights.iter().flatten());
        for (row, (&target, &weight)) in (0..).zip(positions) {
            if weight != 0.0 {
                all.rows.push(row);
                all.tokens.push(token(target, config.vocab_size)?);
                all.weights.push(weight);
            }
        }
        Ok((!all.rows.is_empty()).then_some(all))
    }

    /// The weighted sum of the positions' losses.
    pub(crate) fn total(&self, nll: &[f32]) -> f64 {
        let pairs = nll.iter().zip(&self.weights);
        pairs.map(|(&nll, &weight)| f64::from(nll) * f64::from(weight)).sum()
    }

    /// normed: [rows, hidden], head: [vocab, hidden] -> -ln p [rows, 1] and the weighted loss's gradient [rows, hidden].
    ///
    /// Its gradient with respect to the head is added to `head_gradient` [vocab, hidden], if there is one.
    pub(crate) fn loss(
        &self,
        normed: &Tensor<2>,
        head: &Tensor<2>,
        mut head_gradient: Option<&mut Tensor<2>>,
    ) -> (Tensor<2>, Tensor<2>) {
        let mut nll = Vec::new();
        let mut gradient = Vec::new();
        for chunk in self.chunks(normed.dims()[0], &normed.device()) {
            let normed = normed.clone().narrow(0, chunk.start, chunk.length);
            let scores = chunk.scores(&normed, head);
            if let Some(total) = head_gradient.as_deref_mut() {
                chunk.add_head_gradient(&scores, &normed, total);
            }
            let mean = scores.exp.matmul(head.clone()) / scores.sum; // Σ p · head
            nll.push(scores.nll);
            gradient.push((mean - scores.target) * chunk.weights);
        }
        (Tensor::cat(nll, 0), Tensor::cat(gradient, 0))
    }

    /// The positions a few at a time, so that no more than a few MiB of logits exist at once.
    fn chunks<'a>(&'a self, rows: usize, device: &'a Device) -> impl Iterator<Item = Chunk> + 'a {
        const LOGITS: usize = 1 << 22;
        let length = (LOGITS / self.vocab.max(1)).max(1);
        (0..rows).step_by(length).map(move |start| {
            let length = length.min(rows - start);
            let tokens = self.tokens[start..start + length].to_vec();
            let weights = self.weights[start..start + length].to_vec();
            Chunk {
                start,
                length,
                tokens: indices(tokens, device),
                weights: matrix(weights, [length, 1], device),
            }
        })
    }
}

/// A run of positions.
struct Chunk {
    start: usize,
    length: usize,
    /// [rows]
    tokens: Tensor<1, Int>,
    /// [rows, 1]
    weights: Tensor<2>,
}

/// The parts of a softmax that loss and gradient share.
struct Scores {
    /// exp(logits - their maximum). [rows, vocab]
    exp: Tensor<2>,
    /// Their sums. [rows, 1]
    sum: Tensor<2>,
    /// The head's rows of the targets. [rows, hidden]
    target: Tensor<2>,
    /// -ln p(target). [rows, 1]
    nll: Tensor<2>,
}

impl Chunk {
    fn scores(&self, normed: &Tensor<2>, head: &Tensor<2>) -> Scores {
        let logits = normed.clone().matmul(head.clone().transpose());
        let max = logits.clone().max_dim(1);
        let exp = (logits - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        let target = head.clone().select(0, self.tokens.clone());
        let logit = (normed.clone() * target.clone()).sum_dim(1);
        let nll = sum.clone().log() + max - logit;
        Scores { exp, sum, target, nll }
    }

    /// Adds (p - one-hot)ᵀ · weight · normed.
    fn add_head_gradient(&self, scores: &Scores, normed: &Tensor<2>, total: &mut Tensor<2>) {
        use burn::tensor::IndexingUpdateOp::Add;
        let weighted = normed.clone() * self.weights.clone();
        let p = scores.exp.clone() / scores.sum.clone();
        let dense = total.clone() + p.transpose().matmul(weighted.clone());
        *total = dense.select_assign(0, self.tokens.clone(), weighted.neg(), Add);
    }
}

fn token(id: u32, vocab: usize) -> Result<i32, ModelError> {
    match i32::try_from(id) {
        Ok(index) if (id as usize) < vocab => Ok(index),
        _ => Err(ModelError::TokenOutOfRange { id, vocab }),
    }
}
