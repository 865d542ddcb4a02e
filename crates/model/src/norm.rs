//! The norms of a model: root mean square and layer norm.

use baton_formats::config::NormKind;
use burn::tensor::Tensor;

/// A norm over the last dimension of rows.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights {
    /// What the normed rows are multiplied by. [1, width]
    pub(crate) gain: Tensor<2>,
    /// What is added then, which makes it a layer norm. [1, width]
    pub(crate) shift: Option<Tensor<2>>,
}

impl NormWeights {
    /// The norm of a kind from what the file has.
    pub(crate) fn new(kind: NormKind, gain: Tensor<2>, shift: Option<Tensor<2>>) -> Self {
        let gain = if kind == NormKind::RmsPlusOne { gain.add_scalar(1.0) } else { gain };
        Self { gain, shift }
    }

    /// x: [rows, width] -> [rows, width]
    pub(crate) fn forward(&self, x: Tensor<2>, eps: f64) -> Tensor<2> {
        match &self.shift {
            None => rms_norm(x, &self.gain, eps),
            Some(shift) => {
                let x = x.clone() - x.mean_dim(1);
                rms_norm(x, &self.gain, eps) + shift.clone()
            }
        }
    }

    /// The bytes that it takes on the device.
    pub(crate) fn bytes(&self) -> u64 {
        let tensors = [Some(&self.gain), self.shift.as_ref()];
        tensors.into_iter().flatten().map(tensor_bytes).sum()
    }
}

/// Root mean square norm (Zhang & Sennrich, 2019, arXiv:1910.07467). x: [rows, width], gain: [1, width]
pub(crate) fn rms_norm(x: Tensor<2>, gain: &Tensor<2>, eps: f64) -> Tensor<2> {
    let mean_square = x.clone().square().mean_dim(1); // [rows, 1]
    x / mean_square.add_scalar(eps).sqrt() * gain.clone()
}

/// The bytes of a tensor of f32.
pub(crate) fn tensor_bytes(tensor: &Tensor<2>) -> u64 {
    4 * tensor.dims().iter().map(|&dim| dim as u64).product::<u64>()
}
