//! AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) with PyTorch's order of operations.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The constants of the optimizer. The learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: a parameter is multiplied by `1 - lr · weight_decay` at each step.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The moments of one parameter, and how many steps they have seen.
#[derive(Clone, Debug)]
pub struct Moments {
    /// First moment, shaped like the parameter.
    pub m: Tensor<2>,
    /// Second moment, shaped like the parameter.
    pub v: Tensor<2>,
    /// Steps taken.
    pub step: u64,
}

impl Moments {
    /// The moments of a parameter that was never updated.
    pub fn zeros(parameter: &Tensor<2>) -> Self {
        Self { m: parameter.zeros_like(), v: parameter.zeros_like(), step: 0 }
    }
}

impl AdamW {
    /// The parameter after one step, as `torch.optim.AdamW` computes it.
    pub fn update(
        &self,
        parameter: Tensor<2>,
        gradient: Tensor<2>,
        moments: &mut Moments,
        lr: f64,
    ) -> Tensor<2> {
        moments.step += 1;
        let correction = |beta: f64| 1.0 - beta.powf(moments.step as f64);
        let (correction1, correction2) = (correction(self.beta1), correction(self.beta2));
        let squared = gradient.clone().square();
        let m = moments.m.clone().mul_scalar(self.beta1) + gradient.mul_scalar(1.0 - self.beta1);
        let v = moments.v.clone().mul_scalar(self.beta2) + squared.mul_scalar(1.0 - self.beta2);
        let root = v.clone().sqrt().div_scalar(correction2.sqrt());
        let change = m.clone() / root.add_scalar(self.eps);
        moments.m = m;
        moments.v = v;
        parameter.mul_scalar(1.0 - lr * self.weight_decay) - change.mul_scalar(lr / correction1)
    }
}
