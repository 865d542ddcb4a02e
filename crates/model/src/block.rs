//! One transformer block of any family: what it consists of, its config says.

use std::collections::BTreeMap;

use baton_formats::config::{Activation, NormPlace};
use baton_formats::{BlockPart, ModelConfig, Norm, Projection};
use baton_kernels::FrozenMatrix;
use burn::tensor::{Tensor, activation};

use crate::attention::{KeysValues, attention};
use crate::load::plain;
use crate::lora::BlockLora;
use crate::norm::{NormWeights, tensor_bytes};
use crate::positions::View;

/// The weights of a block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// All of [`ModelConfig::projections`]. [out, in]
    weights: BTreeMap<Projection, Weight>,
    /// [1, out]
    biases: BTreeMap<Projection, Tensor<2>>,
    /// All of [`baton_formats::layout::norms`].
    norms: BTreeMap<Norm, NormWeights>,
}

/// The matrix of a linear map. [out, in]
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// A constant, perhaps packed.
    Frozen(FrozenMatrix),
    /// One that a graph may track: the whole model is trained.
    Trained(Tensor<2>),
}

impl Weight {
    /// x: [rows, in] -> [rows, out]
    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Frozen(matrix) => matrix.apply(x),
            Self::Trained(tensor) => x.matmul(tensor.clone().transpose()),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Frozen(matrix) => matrix.bytes(),
            Self::Trained(tensor) => tensor_bytes(tensor),
        }
    }
}

impl Block {
    /// A block from all its parts; what is no matrix is kept as f32.
    pub(crate) fn new(config: &ModelConfig, parts: BTreeMap<BlockPart, Weight>) -> Self {
        let (mut weights, mut biases) = (BTreeMap::new(), BTreeMap::new());
        let (mut gains, mut shifts) = (BTreeMap::new(), BTreeMap::new());
        let tensor = |weight| match weight {
            Weight::Frozen(matrix) => plain(&matrix),
            Weight::Trained(tensor) => tensor,
        };
        for (part, weight) in parts {
            match part {
                BlockPart::Weight(projection) => {
                    weights.insert(projection, weight);
                }
                BlockPart::Bias(projection) => {
                    biases.insert(projection, tensor(weight));
                }
                BlockPart::Gain(norm) => {
                    gains.insert(norm, tensor(weight));
                }
                BlockPart::Shift(norm) => {
                    shifts.insert(norm, tensor(weight));
                }
            }
        }
        let kind = config.block.norm;
        let norm = |(norm, gain)| (norm, NormWeights::new(kind, gain, shifts.remove(&norm)));
        Self { weights, biases, norms: gains.into_iter().map(norm).collect() }
    }

    /// h: [batch, time, hidden] -> [batch, time, hidden]
    pub(crate) fn forward(
        &self,
        config: &ModelConfig,
        lora: Option<&BlockLora>,
        h: Tensor<3>,
        view: &View,
        cached: Option<&mut Option<KeysValues>>,
    ) -> Tensor<3> {
        let [batch, time, hidden] = h.dims();
        let pass = Pass { block: self, config, lora };
        let h = h.reshape([batch * time, hidden]);
        let h = pass.around(h, [Norm::Attention, Norm::AttentionOut], |x| {
            pass.attention(&x, [batch, time], view, cached)
        });
        let h = pass.around(h, [Norm::Mlp, Norm::MlpOut], |x| pass.mlp(&x));
        h.reshape([batch, time, hidden])
    }

    /// The bytes of its weights on the device.
    pub(crate) fn bytes(&self) -> u64 {
        let weights = self.weights.values().map(Weight::bytes);
        let biases = self.biases.values().map(tensor_bytes);
        weights.chain(biases).chain(self.norms.values().map(NormWeights::bytes)).sum()
    }

    /// Everything that is trained: norms, then maps.
    pub(crate) fn trained_mut(&mut self) -> impl Iterator<Item = (BlockPart, &mut Tensor<2>)> {
        let norms = self.norms.iter_mut().flat_map(|(&norm, weights)| {
            let shift = weights.shift.as_mut().map(|shift| (BlockPart::Shift(norm), shift));
            std::iter::once((BlockPart::Gain(norm), &mut weights.gain)).chain(shift)
        });
        let weights = self.weights.iter_mut().filter_map(|(&projection, weight)| match weight {
            Weight::Frozen(_) => None,
            Weight::Trained(tensor) => Some((BlockPart::Weight(projection), tensor)),
        });
        let biases = self.biases.iter_mut().map(|(&projection, bias)| (BlockPart::Bias(projection), bias));
        norms.chain(weights).chain(biases)
    }

    /// The same weights as tensors that a graph may track; packed ones stay as they are.
    pub(crate) fn into_trained(mut self) -> Self {
        for weight in self.weights.values_mut() {
            if let Weight::Frozen(matrix) = weight
                && let Some(tensor) = matrix.tensor()
            {
                *weight = Weight::Trained(tensor);
            }
        }
        self
    }
}

/// A pass through one block.
struct Pass<'a> {
    block: &'a Block,
    config: &'a ModelConfig,
    lora: Option<&'a BlockLora>,
}

impl Pass<'_> {
    /// A part of the block with its norms, and what goes around it. h: [rows, hidden] -> [rows, hidden]
    fn around(
        &self,
        h: Tensor<2>,
        [before, after]: [Norm; 2],
        part: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        match self.config.block.norm_place {
            NormPlace::Before => h.clone() + part(self.norm(before, h)),
            NormPlace::Around => h.clone() + self.norm(after, part(self.norm(before, h))),
            NormPlace::After => self.norm(after, h.clone() + part(h)),
        }
    }

    /// x: [batch · time, hidden] -> [batch · time, hidden]
    fn attention(
        &self,
        x: &Tensor<2>,
        [batch, time]: [usize; 2],
        view: &View,
        cached: Option<&mut Option<KeysValues>>,
    ) -> Tensor<2> {
        let config = self.config;
        let counts = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads];
        let [q, k, v] = if config.block.fused_qkv {
            let all = self.project(Projection::Qkv, x);
            let mut start = 0;
            counts.map(|heads| {
                let width = heads * config.head_dim;
                start += width;
                all.clone().narrow(1, start - width, width)
            })
        } else {
            [Projection::Q, Projection::K, Projection::V].map(|projection| self.project(projection, x))
        };
        let heads = |x: Tensor<2>, heads: usize| x.reshape([batch, time, heads, config.head_dim]);
        let [q, k] = [(q, counts[0], Norm::Query), (k, counts[1], Norm::Key)]
            .map(|(x, count, norm)| view.rotate(self.head_norm(norm, heads(x, count))));
        let v = heads(v, counts[2]);
        let attended = attention([q, k, v], config.block.attention_scale, view, cached);
        self.project(Projection::O, &attended)
    }

    /// x: [rows, hidden] -> [rows, hidden]
    fn mlp(&self, x: &Tensor<2>) -> Tensor<2> {
        let act = self.config.block.activation;
        let up = self.project(Projection::Up, x);
        let inner = if self.config.block.gated {
            activate(act, self.project(Projection::Gate, x)) * up
        } else {
            activate(act, up)
        };
        self.project(Projection::Down, &inner)
    }

    /// x: [rows, in] -> [rows, out]
    fn project(&self, projection: Projection, x: &Tensor<2>) -> Tensor<2> {
        let mut y = self.block.weights[&projection].apply(x.clone());
        if let Some(bias) = self.block.biases.get(&projection) {
            y = y + bias.clone();
        }
        match self.lora.and_then(|lora| lora.update(projection, x)) {
            Some(update) => y + update,
            None => y,
        }
    }

    /// x: [rows, hidden] -> [rows, hidden]
    fn norm(&self, norm: Norm, x: Tensor<2>) -> Tensor<2> {
        self.block.norms[&norm].forward(x, self.config.norm_eps)
    }

    /// Over each head, in a model that norms them. x: [batch, time, heads, head_dim]
    fn head_norm(&self, norm: Norm, x: Tensor<4>) -> Tensor<4> {
        let Some(weights) = self.block.norms.get(&norm) else {
            return x;
        };
        let [batch, time, heads, width] = x.dims();
        let rows = weights.forward(x.reshape([batch * time * heads, width]), self.config.norm_eps);
        rows.reshape([batch, time, heads, width])
    }
}

fn activate(kind: Activation, x: Tensor<2>) -> Tensor<2> {
    match kind {
        Activation::Silu => activation::silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Relu => activation::relu(x),
    }
}

/// GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415) by the error function: `x · (1 + erf(x / √2)) / 2`.
///
/// The gradient of burn's own is that of the tanh approximation, on every backend but the CPU's: BERT's gradients on
/// WebGPU were off by 2e-3.
fn gelu(x: Tensor<2>) -> Tensor<2> {
    let erf = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf();
    x * erf.add_scalar(1.0).mul_scalar(0.5)
}

/// GELU's tanh approximation as `x · σ(2u)`: (1 + tanh u) / 2 is σ(2u).
///
/// Burn's own takes the power of a negative number, which WGSL leaves open, and tanh, which some GPUs overflow in.
fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    const TWICE_SQRT_2_OVER_PI: f64 = 1.595_769_121_605_730_7;
    let inner = x.clone().square().mul_scalar(0.044_715).add_scalar(1.0) * x.clone();
    x * activation::sigmoid(inner.mul_scalar(TWICE_SQRT_2_OVER_PI))
}
