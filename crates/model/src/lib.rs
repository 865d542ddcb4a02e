//! The Llama family as a slice of blocks on burn: forward, backward, LoRA, losses and AdamW, on the CPU or on WebGPU.
//!
//! A model is cut in two kinds of parts. [`Blocks`] is a contiguous range of transformer blocks; [`Ends`] is the token
//! embedding and the LM head with the loss. What crosses between them is a *boundary*: hidden states
//! `[batch, time, hidden]` forward, their gradient backward. Whoever runs the parts, and however the blocks are split,
//! the numbers are those of one process:
//!
//! ```text
//! ids ─ Ends::embed ─ h ─▶ Trainer::forward ─ h ─▶ … ─ h ─▶ Ends::loss_and_grad ─▶ loss
//!                          Trainer::backward ◀─ dh ─ … ◀─ dh ─┘
//!                          Trainer::apply
//! ```
//!
//! Tensors are f32. Weights are frozen constants that no graph tracks, so backward never builds their gradient; only
//! the adapters ([`Lora`]) do. A burn [`Device`] picks the backend at run time; public functions take and return plain
//! tensors (outside any autodiff graph).

mod adamw;
mod blocks;
mod device;
mod ends;
mod error;
mod lora;
mod pretrain;
mod sample;
mod state;
mod trainer;

pub use adamw::{AdamW, Moments};
pub use blocks::{Blocks, KvCache};
pub use burn::tensor::{Device, Tensor};
#[cfg(feature = "webgpu")]
pub use device::webgpu;
pub use device::{boundary_to_f32, cpu, f32_to_boundary};
pub use ends::Ends;
pub use error::ModelError;
pub use lora::{Lora, LoraSpec, Pairs};
pub use pretrain::Pretrainer;
pub use sample::sample;
pub use state::BlockState;
pub use trainer::Trainer;
