//! Llama's transformer blocks: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! The numbers follow Hugging Face's `modeling_llama.py`, its `rotate_half` convention included.

use std::collections::BTreeMap;
use std::ops::Range;

use baton_formats::layout::path;
use baton_formats::{Files, ModelConfig, Projection, TensorIndex, block_tensors};
use burn::tensor::{Device, Tensor, activation};

use crate::ModelError;
use crate::device::matrix;
use crate::lora::{BlockLora, Lora, checked_matrix};

/// A contiguous slice of transformer blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    config: ModelConfig,
    start: usize,
    blocks: Vec<Block>,
}

impl Blocks {
    /// Reads the blocks of `range`, one after another, and nothing else of the file.
    ///
    /// `on_bytes` hears the bytes as they come.
    ///
    /// # Errors
    ///
    /// When the model has no such blocks, or its files cannot be read.
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        range: Range<usize>,
        device: &Device,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, ModelError> {
        if range.start > range.end || range.end > config.num_hidden_layers {
            return Err(ModelError::NoSuchBlocks {
                start: range.start,
                end: range.end,
                blocks: config.num_hidden_layers,
            });
        }
        let mut blocks = Vec::new();
        for block in range.clone() {
            let wanted = block_tensors(config, block);
            let wanted: Vec<_> = wanted.iter().map(|t| (t.name().to_owned(), t.file_shape())).collect();
            let found = index.read_many_f32(files, &wanted, &mut on_bytes).await?;
            blocks.push(Block::from_values(config, block, found, device)?);
        }
        Ok(Self { config: config.clone(), start: range.start, blocks })
    }

    /// Which blocks of the model these are.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.blocks.len()
    }

    /// The model that they are of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// h: [batch, time, hidden] -> [batch, time, hidden].
    ///
    /// Attention is causal and positions start at 0, so right padding needs no mask: no real position sees it.
    pub fn forward(&self, lora: Option<&Lora>, h: Tensor<3>) -> Tensor<3> {
        let positions = Positions::new(&self.config, 0, h.dims()[1], &h.device());
        self.range().fold(h, |h, block| {
            self.block_forward(block, lora.and_then(|lora| lora.block(block)), h, &positions)
        })
    }

    /// [`Self::forward`] for positions that follow those in `cache`, which then holds them too.
    ///
    /// Takes a whole prompt or a single token. Inference only.
    pub fn forward_cached(&self, lora: Option<&Lora>, h: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        let time = h.dims()[1];
        let positions = Positions::new(&self.config, cache.time, time, &h.device());
        cache.time += time;
        cache.blocks.resize(self.blocks.len(), None);
        let blocks = self.range().zip(&self.blocks).zip(&mut cache.blocks);
        blocks.fold(h, |h, ((number, block), cached)| {
            let lora = lora.and_then(|lora| lora.block(number));
            block.forward(&self.config, lora, h, &positions, Some(cached))
        })
    }

    /// One block, by its number in the model, which is in [`Self::range`].
    pub(crate) fn block_forward(
        &self,
        block: usize,
        lora: Option<&BlockLora>,
        h: Tensor<3>,
        positions: &Positions,
    ) -> Tensor<3> {
        self.blocks[block - self.start].forward(&self.config, lora, h, positions, None)
    }

    /// All blocks of a model, their values given by name and shape.
    pub(crate) fn from_fn(
        config: &ModelConfig,
        device: &Device,
        mut values: impl FnMut(&str, &[usize]) -> Vec<f32>,
    ) -> Result<Self, ModelError> {
        let blocks = (0..config.num_hidden_layers).map(|block| {
            let tensors = block_tensors(config, block).into_iter();
            let found =
                tensors.map(|tensor| (tensor.name().to_owned(), tensor.shape)).map(|(name, shape)| {
                    let values = values(&name, &shape);
                    (name, values)
                });
            Block::from_values(config, block, found.collect(), device)
        });
        Ok(Self { config: config.clone(), start: 0, blocks: blocks.collect::<Result<_, _>>()? })
    }

    /// Every tensor with its name in the file.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor<2>)> {
        let (start, config) = (self.start, self.config.clone());
        let blocks = self.blocks.iter_mut().enumerate();
        blocks.flat_map(move |(i, block)| {
            let number = start + i;
            let Block { input_norm, post_norm, projections } = block;
            let norms = [(INPUT_NORM, input_norm), (POST_NORM, post_norm)];
            let norms = norms.into_iter().map(move |(norm, t)| (norm_path(number, norm), t));
            let config = config.clone();
            let weights = projections.iter_mut().map(move |(p, t)| (path(&config, number, *p), t));
            norms.chain(weights).map(|(path, t)| (format!("{path}.weight"), t))
        })
    }
}

/// Keys and values of the positions seen so far, for each block of a slice.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    time: usize,
    /// Keys and values, each `[batch · kv heads, time, head_dim]`.
    blocks: Vec<Option<[Tensor<3>; 2]>>,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many positions it holds.
    pub fn time(&self) -> usize {
        self.time
    }
}

/// What depends on positions alone, computed once a pass and shared by all blocks.
pub(crate) struct Positions {
    /// Cosines of the rotary angles. [1, time, 1, head_dim]
    cos: Tensor<4>,
    /// Their sines, negated in the first half of `head_dim`: what `rotate_half` negates. [1, time, 1, head_dim]
    sin: Tensor<4>,
    /// 0 where a position may look, and a number that no exponential survives where it may not. [1, 1, time, past + time]
    mask: Option<Tensor<4>>,
}

impl Positions {
    /// `time` positions after `past` ones.
    pub(crate) fn new(config: &ModelConfig, past: usize, time: usize, device: &Device) -> Self {
        let width = config.head_dim;
        let half = width / 2;
        // In f32 throughout, as transformers does: an exact angle would differ from the model's own at long range.
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / width as f32;
            1.0 / (config.rope(0).map_or(1e4, |rope| rope.theta) as f32).powf(exponent)
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let mut cos = Vec::with_capacity(time * width);
        let mut sin = Vec::with_capacity(time * width);
        for position in past..past + time {
            for (sign, frequency) in [-1.0, 1.0]
                .into_iter()
                .flat_map(|sign| frequencies.iter().map(move |frequency| (sign, frequency)))
            {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(sign * s);
            }
        }
        let table = |values| matrix(values, [time, width], device).reshape([1, time, 1, width]);
        Self { cos: table(cos), sin: table(sin), mask: (time > 1).then(|| causal_mask(past, time, device)) }
    }

    /// x: [batch, time, heads, head_dim], rotated by its positions
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, time, heads, width] = x.dims();
        let halves: Tensor<5> = x.clone().reshape([batch, time, heads, 2, width / 2]);
        let swapped = halves.flip([3]).reshape([batch, time, heads, width]);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

fn causal_mask(past: usize, time: usize, device: &Device) -> Tensor<4> {
    // Finite: WGSL lets a compiler assume that there are no infinities.
    const HIDDEN: f32 = -1e9;
    let all = past + time;
    let rows =
        (0..time).flat_map(|row| (0..all).map(move |column| if column > past + row { HIDDEN } else { 0.0 }));
    matrix(rows.collect(), [time, all], device).reshape([1, 1, time, all])
}

const INPUT_NORM: &str = "input_layernorm";
const POST_NORM: &str = "post_attention_layernorm";

#[derive(Clone, Debug)]
struct Block {
    /// Gains of the norm before attention. [1, hidden]
    input_norm: Tensor<2>,
    /// Gains of the norm before the MLP. [1, hidden]
    post_norm: Tensor<2>,
    /// All seven, as in the file: [out, in].
    projections: BTreeMap<Projection, Tensor<2>>,
}

impl Block {
    fn from_values(
        config: &ModelConfig,
        block: usize,
        mut values: BTreeMap<String, Vec<f32>>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut tensor = |path: String, shape: [usize; 2]| {
            let name = format!("{path}.weight");
            match values.remove(&name) {
                Some(values) => checked_matrix("a weight", values, shape, device),
                None => Err(ModelError::MissingTensor(name)),
            }
        };
        let input_norm = tensor(norm_path(block, INPUT_NORM), [1, config.hidden_size])?;
        let post_norm = tensor(norm_path(block, POST_NORM), [1, config.hidden_size])?;
        let projections = config.projections().map(|projection| {
            let (outputs, inputs) = projection.shape(config);
            let weight = tensor(path(config, block, projection), [outputs, inputs])?;
            Ok((projection, weight))
        });
        let projections = projections.collect::<Result<_, ModelError>>()?;
        Ok(Self { input_norm, post_norm, projections })
    }

    /// h: [batch, time, hidden] -> [batch, time, hidden]
    fn forward(
        &self,
        config: &ModelConfig,
        lora: Option<&BlockLora>,
        h: Tensor<3>,
        positions: &Positions,
        cached: Option<&mut Option<[Tensor<3>; 2]>>,
    ) -> Tensor<3> {
        let [batch, time, hidden] = h.dims();
        let h = h.reshape([batch * time, hidden]);
        let project = |projection: Projection, x: &Tensor<2>| self.project(projection, lora, x);

        let x = rms_norm(h.clone(), &self.input_norm, config.norm_eps);
        let heads = |projection: Projection, heads: usize| {
            project(projection, &x).reshape([batch, time, heads, config.head_dim])
        };
        let q = positions.rotate(heads(Projection::Q, config.num_attention_heads));
        let k = positions.rotate(heads(Projection::K, config.num_key_value_heads));
        let v = heads(Projection::V, config.num_key_value_heads);
        let attended = attention(q, k, v, positions, cached);
        let h = h + project(Projection::O, &attended);

        let x = rms_norm(h.clone(), &self.post_norm, config.norm_eps);
        let gate = activation::silu(project(Projection::Gate, &x));
        let x = gate * project(Projection::Up, &x);
        let h = h + project(Projection::Down, &x);
        h.reshape([batch, time, hidden])
    }

    /// x: [rows, in] -> [rows, out]
    fn project(&self, projection: Projection, lora: Option<&BlockLora>, x: &Tensor<2>) -> Tensor<2> {
        let weight = self.projections[&projection].clone();
        let y = x.clone().matmul(weight.transpose());
        match lora.and_then(|lora| lora.update(projection, x)) {
            Some(update) => y + update,
            None => y,
        }
    }
}

/// Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) over the positions so far.
///
/// q: [batch, time, heads, head_dim], k and v: [batch, time, kv heads, head_dim] -> [batch · time, heads · head_dim]
fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    positions: &Positions,
    cached: Option<&mut Option<[Tensor<3>; 2]>>,
) -> Tensor<2> {
    let [batch, time, heads, width] = q.dims();
    let kv_heads = k.dims()[2];
    let group = heads / kv_heads;
    // The query heads that share a key head follow one another: as rows of one matrix they need no copies of the keys.
    let rows = |x: Tensor<4>, rows: usize| {
        let x = x.swap_dims(1, 2);
        x.reshape([batch * kv_heads, rows, width])
    };
    let q = rows(q, group * time).mul_scalar(1.0 / (width as f64).sqrt());
    let [k, v] = match cached {
        None => [rows(k, time), rows(v, time)],
        Some(cached) => {
            let new = [rows(k, time), rows(v, time)];
            let all = match cached.take() {
                None => new,
                Some([old_k, old_v]) => {
                    let [k, v] = new;
                    [Tensor::cat(vec![old_k, k], 1), Tensor::cat(vec![old_v, v], 1)]
                }
            };
            cached.insert(all).clone()
        }
    };
    let all = k.dims()[1];
    let scores = q.matmul(k.transpose()); // [batch · kv heads, group · time, all]
    let mut scores: Tensor<4> = scores.reshape([batch * kv_heads, group, time, all]);
    if let Some(mask) = &positions.mask {
        scores = scores + mask.clone();
    }
    let weights = activation::softmax(scores, 3);
    let weights: Tensor<3> = weights.reshape([batch * kv_heads, group * time, all]);
    let mixed: Tensor<4> = weights.matmul(v).reshape([batch, heads, time, width]);
    mixed.swap_dims(1, 2).reshape([batch * time, heads * width])
}

/// Root mean square norm (Zhang & Sennrich, 2019, arXiv:1910.07467). x: [rows, hidden], gain: [1, hidden]
pub(crate) fn rms_norm(x: Tensor<2>, gain: &Tensor<2>, eps: f64) -> Tensor<2> {
    let mean_square = x.clone().square().mean_dim(1); // [rows, 1]
    x / mean_square.add_scalar(eps).sqrt() * gain.clone()
}

fn norm_path(block: usize, norm: &str) -> String {
    format!("model.layers.{block}.{norm}")
}
