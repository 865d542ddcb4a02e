//! What a device holds while it trains its part of a model: exact for what is stored, an estimate for what passes through.

use std::ops::Range;

use baton_formats::ModelConfig;
use serde::Serialize;

use crate::{LoraSpec, Storage, frozen_bytes};

/// The bytes that a stage holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageMemory {
    /// Its blocks' frozen weights, as [`frozen_bytes`] counts them: exact.
    pub frozen: u64,
    /// Its adapters, their gradients and their two moments: exact.
    pub adapters: u64,
    /// What backward needs of the micro-batches in flight, and the gradients on the way through one block: an estimate.
    ///
    /// It counts the tensors that burn's graph keeps of one block, f32; kernels' scratch space, the device's pools and
    /// the program itself are not in it.
    pub activations: u64,
}

impl StageMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.frozen.saturating_add(self.adapters).saturating_add(self.activations)
    }
}

/// What a stage works on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Micro-batches whose backward pass is still to come.
    pub micro_batches: u64,
    /// Samples in each.
    pub samples: u64,
    /// Tokens in each sample.
    pub time: u64,
    /// Whether only the blocks' inputs are kept, and the rest is computed again.
    pub recompute: bool,
}

/// What a stage of these blocks holds.
pub fn stage_memory(
    config: &ModelConfig,
    blocks: Range<usize>,
    storage: Storage,
    lora: &LoraSpec,
    work: InFlight,
) -> StageMemory {
    let count = blocks.len() as u64;
    let numbers = |block: usize| -> u64 {
        let shapes = lora.projections(block).flat_map(|map| lora.shapes(config, block, map));
        shapes.map(|[rows, columns]| (rows as u64).saturating_mul(columns as u64)).sum()
    };
    // Adapters, gradients and two moments, f32.
    let adapters = 16 * blocks.clone().map(numbers).fold(0, u64::saturating_add);
    let rows = work.samples.saturating_mul(work.time);
    let trace = 4 * rows.saturating_mul(kept(config, work.time));
    let input = 4 * rows.saturating_mul(config.hidden_size as u64);
    let (saved, open) = if work.recompute { (input, 2 * trace) } else { (trace, trace) };
    let activations = work.micro_batches.saturating_mul(count).saturating_mul(saved).saturating_add(open);
    StageMemory { frozen: frozen_bytes(config, blocks, storage), adapters, activations }
}

/// The numbers that the graph of one block keeps for each token of rows of `time` tokens.
fn kept(config: &ModelConfig, time: u64) -> u64 {
    let hidden = config.hidden_size as u64;
    let queries = (config.num_attention_heads * config.head_dim) as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    let inner = config.intermediate_size as u64;
    // Two norms, each with what it was given and what it gave.
    let norms = 4 * hidden;
    // The queries, the keys, the values, and what they gave.
    let attention = 2 * queries + 2 * keys;
    // The exponentials and the weights.
    let scores = 2 * config.num_attention_heads as u64 * time;
    // Gated: both maps, the sigmoid, the activation and the product.
    let mlp = if config.block.gated { 5 * inner } else { 2 * inner };
    norms + attention + scores + mlp
}
