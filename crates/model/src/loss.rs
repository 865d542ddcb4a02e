//! The loss of next tokens and its gradients, without ever holding all logits.

use baton_formats::ModelConfig;
use baton_kernels::FrozenMatrix;
use burn::tensor::{Device, Int, Tensor};

use crate::ModelError;
use crate::device::{indices, matrix};

/// Logits that exist at once: a few positions' worth.
pub(crate) const LOGITS: usize = 1 << 22;

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
        head: &FrozenMatrix,
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
            let mean = head.apply_transposed(scores.exp) / scores.sum; // Σ p · head
            nll.push(scores.nll);
            gradient.push((mean - scores.target) * chunk.weights);
        }
        (Tensor::cat(nll, 0), Tensor::cat(gradient, 0))
    }

    /// -ln p of each position. normed: [rows, hidden], head: [vocab, hidden] -> [rows, 1]
    pub(crate) fn nll(&self, normed: &Tensor<2>, head: &FrozenMatrix) -> Tensor<2> {
        let device = normed.device();
        let nll = self.chunks(normed.dims()[0], &device).map(|chunk| {
            let normed = normed.clone().narrow(0, chunk.start, chunk.length);
            chunk.scores(&normed, head).nll
        });
        Tensor::cat(nll.collect(), 0)
    }

    /// The positions a few at a time, so that no more than a few MiB of logits exist at once.
    fn chunks<'a>(&'a self, rows: usize, device: &'a Device) -> impl Iterator<Item = Chunk> + 'a {
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
    fn scores(&self, normed: &Tensor<2>, head: &FrozenMatrix) -> Scores {
        let logits = head.apply(normed.clone());
        let max = logits.clone().max_dim(1);
        let exp = (logits - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        let target = head.select(self.tokens.clone());
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

/// A token as an index.
pub(crate) fn token(id: u32, vocab: usize) -> Result<i32, ModelError> {
    match i32::try_from(id) {
        Ok(index) if (id as usize) < vocab => Ok(index),
        _ => Err(ModelError::TokenOutOfRange { id, vocab }),
    }
}
