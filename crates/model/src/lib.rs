//! Transformers of any family as slices of blocks on burn: forward, backward, LoRA, losses and AdamW, on CPU or WebGPU.
//!
//! What a model consists of, its [`ModelConfig`](baton_formats::ModelConfig) says: one block of code runs them all, and
//! none asks for the family's name.
//!
//! A model is cut in two kinds of parts. [`Blocks`] is a contiguous range of transformer blocks; [`Ends`] is what
//! embeds tokens, and the LM head with the loss. An encoder has a [`ClassifierHead`] instead, which is trained with the
//! adapters. What crosses between them is a *boundary*: hidden states
//! `[batch, time, hidden]` forward, their gradient backward. Whoever runs the parts, and however the blocks are split,
//! the numbers are those of one process:
//!
//! ```text
//! ids ─ Ends::embed ─ h ─▶ Trainer::forward ─ h ─▶ … ─ h ─▶ Ends::loss_and_grad ─▶ loss    (or ClassifierHead's)
//!                          Trainer::backward ◀─ dh ─ … ◀─ dh ─┘
//!                          Trainer::apply
//! ```
//!
//! Tensors are f32. Weights are frozen constants that no graph tracks, so backward never builds their gradient; only
//! the adapters ([`Lora`]) and the trained head do. Frozen matrices may be kept smaller, in a [`Storage`]. A burn [`Device`] picks the backend at run time; public functions take and return plain
//! tensors (outside any autodiff graph).

mod adamw;
mod attention;
mod block;
mod blocks;
mod device;
mod ends;
mod error;
mod head;
mod load;
mod lora;
mod loss;
mod memory;
mod norm;
mod positions;
mod pretrain;
mod sample;
mod state;
mod trainer;

pub use adamw::{AdamW, Moments};
pub use baton_kernels::Storage;
pub use blocks::{Blocks, KvCache, frozen_bytes};
pub use burn::tensor::{Device, Tensor};
#[cfg(feature = "webgpu")]
pub use device::webgpu;
pub use device::{boundary_to_f32, cpu, f32_to_boundary};
pub use ends::{Ends, end_bytes};
pub use error::ModelError;
pub use head::{ClassifierHead, HeadState};
pub use lora::{Lora, LoraSpec, Pairs};
pub use memory::{InFlight, LOADING, StageMemory, head_memory, stage_memory};
pub use pretrain::Pretrainer;
pub use sample::sample;
pub use state::BlockState;
pub use trainer::Trainer;
