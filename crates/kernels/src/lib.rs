//! Frozen weight matrices that stay packed on the device and are unpacked inside the matmul (QLoRA), on the CPU and WebGPU.
//!
//! A frozen backbone needs its weights for two products: `y = x Wᵀ` forward and `dx = dy W` backward; a gradient of W
//! itself is never asked for. [`FrozenMatrix`] gives both, differentiable in x, and holds W in one of the [`Storage`]s:
//!
//! | storage | bytes a parameter | a number is |
//! | --- | --- | --- |
//! | f32 | 4 | itself |
//! | bf16 | 2 | its upper half |
//! | int8 | 1.06 | q · scale, q in -127..=127, a scale for 32 numbers of a row (GGUF's Q8_0) |
//! | nf4 | 0.53 | code\[q\] · scale, NF4's 16 codes, a scale for 64 numbers of a row (QLoRA, arXiv:2305.14314) |
//!
//! Burn 0.22's own quantisation does not do this. On the CPU it holds a byte for each number of any scheme, multiplies by
//! unpacking the whole matrix, and has no code books; under autodiff it unpacks on every backend, and the f32 matrix
//! then lives as long as the graph.

mod codec;
mod cpu;
mod error;
#[cfg(feature = "webgpu")]
mod gpu;
mod matrix;
mod ops;
mod storage;

pub use error::KernelError;
pub use matrix::{FrozenBuilder, FrozenMatrix};
pub use storage::Storage;
