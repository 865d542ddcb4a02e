//! The ends of a model: what makes hidden states of tokens, and what makes logits and a loss of hidden states. Frozen.

use std::collections::BTreeMap;

use baton_formats::config::NormKind;
use baton_formats::{EndPart, Files, ModelConfig, TensorIndex, end_tensors};
use baton_kernels::{FrozenMatrix, Storage};
use burn::tensor::{Device, Tensor};

use crate::ModelError;
use crate::device::{indices, to_f32};
use crate::load::{self, Reader, plain};
use crate::loss::{Targets, token};
use crate::norm::{NormWeights, tensor_bytes};

/// The embeddings, the last norm, and the LM head or an encoder's pooler.
#[derive(Clone, Debug)]
pub struct Ends {
    config: ModelConfig,
    /// [vocab, hidden]
    pub(crate) embedding: FrozenMatrix,
    /// Learned positions. [positions, hidden]
    positions: Option<Tensor<2>>,
    /// [types, hidden]
    token_types: Option<Tensor<2>>,
    embedding_norm: Option<NormWeights>,
    pub(crate) final_norm: Option<NormWeights>,
    /// [vocab, hidden]; None where it is the embedding, or there is none.
    pub(crate) head: Option<FrozenMatrix>,
    /// Weight [hidden, hidden] and bias [1, hidden].
    pooler: Option<(FrozenMatrix, Tensor<2>)>,
    device: Device,
}

impl Ends {
    /// Reads the ends, and nothing else of the files. Not the head that is trained: that is [`crate::ClassifierHead`].
    ///
    /// The embedding and the LM head are kept in `storage`, the rest in f32. `on_bytes` hears the bytes as they come.
    ///
    /// # Errors
    ///
    /// When the files cannot be read or lack a tensor, or a weight does not fit `storage`.
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        storage: Storage,
        device: &Device,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, ModelError> {
        let mut reader = Reader { files, index, storage, device, on_bytes: &mut on_bytes };
        let parts = reader.read(&end_tensors(config)).await?;
        Self::new(config, parts, device)
    }

    /// The ends with numbers of no meaning, to measure a device on.
    ///
    /// # Errors
    ///
    /// When a weight is too large for the device.
    pub fn made_up(config: &ModelConfig, storage: Storage, device: &Device) -> Result<Self, ModelError> {
        Self::new(config, load::made_up(&end_tensors(config), storage, device)?, device)
    }

    fn new(
        config: &ModelConfig,
        mut parts: BTreeMap<EndPart, FrozenMatrix>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let embedding = parts.remove(&EndPart::Embedding);
        let embedding = embedding.ok_or_else(|| ModelError::MissingTensor("the embedding".to_owned()))?;
        let head = parts.remove(&EndPart::LanguageHead);
        let mut tensor = |part| parts.remove(&part).map(|matrix| plain(&matrix));
        // That of the embeddings is a layer norm in every family that has one.
        let embedding_norm =
            norm(NormKind::Layer, &mut tensor, EndPart::EmbeddingGain, EndPart::EmbeddingShift);
        let final_norm = norm(config.block.norm, &mut tensor, EndPart::FinalGain, EndPart::FinalShift);
        let (positions, token_types) = (tensor(EndPart::Positions), tensor(EndPart::TokenTypes));
        let bias = tensor(EndPart::PoolerBias);
        let pooler = parts.remove(&EndPart::Pooler).zip(bias);
        Ok(Self {
            config: config.clone(),
            embedding,
            positions,
            token_types,
            embedding_norm,
            final_norm,
            head,
            pooler,
            device: device.clone(),
        })
    }

    /// The bytes of their weights on the device.
    pub fn bytes(&self) -> u64 {
        let matrices = [Some(&self.embedding), self.head.as_ref(), self.pooler.as_ref().map(|(w, _)| w)];
        let tensors =
            [self.positions.as_ref(), self.token_types.as_ref(), self.pooler.as_ref().map(|(_, b)| b)];
        let norms = [self.embedding_norm.as_ref(), self.final_norm.as_ref()];
        let matrices: u64 = matrices.into_iter().flatten().map(FrozenMatrix::bytes).sum();
        let tensors: u64 = tensors.into_iter().flatten().map(tensor_bytes).sum();
        matrices + tensors + norms.into_iter().flatten().map(NormWeights::bytes).sum::<u64>()
    }

    /// The hidden states that enter block 0: `[batch, time, hidden]`. Shorter rows are padded on the right with token 0.
    ///
    /// `type_ids` are the tokens' types, rows as long as those of `ids`; empty is type 0 throughout.
    ///
    /// # Errors
    ///
    /// When an id is outside the vocabulary or a type outside its table, there is no token at all, or a row is longer
    /// than the positions that the model has learned.
    pub fn embed(&self, ids: &[Vec<u32>], type_ids: &[Vec<u32>]) -> Result<Tensor<3>, ModelError> {
        self.embed_after(0, ids, type_ids)
    }

    /// [`Self::embed`] for tokens that follow `past` others, as those in a [`crate::KvCache`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn embed_after(
        &self,
        past: usize,
        ids: &[Vec<u32>],
        type_ids: &[Vec<u32>],
    ) -> Result<Tensor<3>, ModelError> {
        let form = &self.config.ends;
        let hidden = self.config.hidden_size;
        let vocab = self.config.vocab_size;
        let (rows, time) = padded(ids, |id| token(id, vocab))?;
        let batch = ids.len();
        let mut h = self.embedding.select(indices(rows, &self.device));
        if form.embedding_scale != 1.0 {
            h = h.mul_scalar(form.embedding_scale);
        }
        if let Some(types) = self.types(ids, type_ids)? {
            h = h + types;
        }
        let mut h = h.reshape([batch, time, hidden]);
        if let Some(table) = &self.positions {
            let first = form.first_position.unwrap_or(0);
            let limit = table.dims()[0].saturating_sub(first);
            let length = past.saturating_add(time);
            if length > limit {
                return Err(ModelError::TooLong { length, limit });
            }
            h = h + table.clone().narrow(0, first + past, time).unsqueeze();
        }
        match &self.embedding_norm {
            None => Ok(h),
            Some(norm) => {
                let rows = norm.forward(h.reshape([batch * time, hidden]), self.config.norm_eps);
                Ok(rows.reshape([batch, time, hidden]))
            }
        }
    }

    /// The embeddings of the tokens' types, if the model has any. [batch · time, hidden]
    fn types(&self, ids: &[Vec<u32>], type_ids: &[Vec<u32>]) -> Result<Option<Tensor<2>>, ModelError> {
        let types = self.token_types.as_ref().map_or(1, |table| table.dims()[0]);
        let [expected, found] = [ids, type_ids].map(|rows| rows.iter().map(Vec::len).collect::<Vec<_>>());
        if !type_ids.is_empty() && found != expected {
            return Err(ModelError::Shape { what: "the rows of token types", found, expected });
        }
        let zeros;
        let type_ids = if type_ids.is_empty() {
            zeros = expected.iter().map(|&length| vec![0; length]).collect::<Vec<_>>();
            &zeros
        } else {
            type_ids
        };
        let index = |id: u32| match i32::try_from(id) {
            Ok(index) if (id as usize) < types => Ok(index),
            _ => Err(ModelError::TokenType { id, types }),
        };
        let (rows, _) = padded(type_ids, index)?;
        Ok(self.token_types.as_ref().map(|table| table.clone().select(0, indices(rows, &self.device))))
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
    /// When the sizes differ, a target is outside the vocabulary, the model has no LM head, or the device fails.
    pub async fn loss_and_grad(
        &self,
        h: Tensor<3>,
        targets: &[Vec<u32>],
        weights: &[Vec<f32>],
    ) -> Result<(f64, Tensor<3>), ModelError> {
        let [batch, time, hidden] = h.dims();
        let head = self.language_head()?;
        let Some(targets) = Targets::new(&self.config, [batch, time], targets, weights)? else {
            return Ok((0.0, h.zeros_like()));
        };
        let leaf = h.autodiff().require_grad();
        let rows = leaf.clone().reshape([batch * time, hidden]);
        let rows = rows.select(0, indices(targets.rows.clone(), &self.device));
        let normed = self.normed(rows);
        let (nll, gradient) = targets.loss(&normed.clone().inner(), head, None);
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
        let head = self.language_head()?;
        let Some(targets) = Targets::new(&self.config, [batch, time], targets, weights)? else {
            return Ok(0.0);
        };
        let rows = h.reshape([batch * time, hidden]);
        let rows = rows.select(0, indices(targets.rows.clone(), &self.device));
        Ok(targets.total(&to_f32(targets.nll(&self.normed(rows), head)).await?))
    }

    /// The logits `[vocab]` that follow the last position of row 0. h: `[batch, time, hidden]`
    ///
    /// # Errors
    ///
    /// When the model has no LM head, or the device fails to give them back.
    pub async fn logits_last(&self, h: Tensor<3>) -> Result<Vec<f32>, ModelError> {
        let [_, time, _] = h.dims();
        self.logits(h.narrow(0, 0, 1).narrow(1, time.saturating_sub(1), 1)).await
    }

    /// The logits `[batch, time, vocab]` of every position, in row-major order. h: `[batch, time, hidden]`
    ///
    /// # Errors
    ///
    /// When the model has no LM head, or the device fails to give them back.
    pub async fn logits(&self, h: Tensor<3>) -> Result<Vec<f32>, ModelError> {
        let [batch, time, hidden] = h.dims();
        let head = self.language_head()?;
        to_f32(head.apply(self.normed(h.reshape([batch * time, hidden])))).await
    }

    /// What an encoder's head sees of each sample. h: [batch, time, hidden] -> [batch, hidden]
    pub(crate) fn pooled(&self, h: Tensor<3>) -> Tensor<2> {
        let [batch, _, hidden] = h.dims();
        let first = h.narrow(1, 0, 1).reshape([batch, hidden]);
        match &self.pooler {
            None => first,
            Some((weight, bias)) => (weight.apply(first) + bias.clone()).tanh(),
        }
    }

    /// rows: [rows, hidden] -> [rows, hidden]
    fn normed(&self, rows: Tensor<2>) -> Tensor<2> {
        match &self.final_norm {
            Some(norm) => norm.forward(rows, self.config.norm_eps),
            None => rows,
        }
    }

    /// [vocab, hidden]
    fn language_head(&self) -> Result<&FrozenMatrix, ModelError> {
        match self.config.classifier() {
            None => Ok(self.head.as_ref().unwrap_or(&self.embedding)),
            Some(_) => Err(ModelError::NoLanguageHead(self.config.architecture.name())),
        }
    }
}

/// The bytes of the frozen ends, as [`Ends::bytes`] has them once they are loaded.
pub fn end_bytes(config: &ModelConfig, storage: Storage) -> u64 {
    load::bytes(&end_tensors(config), storage)
}

fn norm(
    kind: NormKind,
    tensor: &mut impl FnMut(EndPart) -> Option<Tensor<2>>,
    gain: EndPart,
    shift: EndPart,
) -> Option<NormWeights> {
    let (gain, shift) = (tensor(gain)?, tensor(shift));
    Some(NormWeights::new(kind, gain, shift))
}

/// Looks rows of `embedding` [vocab, hidden] up, padded to the longest with token 0 -> [batch, time, hidden]
pub(crate) fn embed(
    embedding: &Tensor<2>,
    ids: &[Vec<u32>],
    device: &Device,
) -> Result<Tensor<3>, ModelError> {
    let [vocab, hidden] = embedding.dims();
    let (rows, time) = padded(ids, |id| token(id, vocab))?;
    Ok(embedding.clone().select(0, indices(rows, device)).reshape([ids.len(), time, hidden]))
}

/// Rows one after another, padded with 0 to the longest, and its length.
fn padded(
    rows: &[Vec<u32>],
    index: impl Fn(u32) -> Result<i32, ModelError>,
) -> Result<(Vec<i32>, usize), ModelError> {
    let time = rows.iter().map(Vec::len).max().unwrap_or(0);
    if time == 0 {
        return Err(ModelError::Shape {
            what: "a batch of token ids",
            found: vec![rows.len(), time],
            expected: vec![rows.len().max(1), 1],
        });
    }
    let mut flat = Vec::with_capacity(rows.len() * time);
    for row in rows {
        for &id in row {
            flat.push(index(id)?);
        }
        flat.resize(flat.len() + time - row.len(), 0);
    }
    Ok((flat, time))
}
