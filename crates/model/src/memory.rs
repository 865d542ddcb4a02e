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
    /// the program itself are not in it. On the CPU it is 8 to 14 % above what was measured of a Llama
    /// (docs/measurements.md).
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
    // The exponentials, the weights and their gradient.
    let scores = 3 * config.num_attention_heads as u64 * time;
    // Gated: both maps, the sigmoid, the activation and the product.
    let mlp = if config.block.gated { 5 * inner } else { 2 * inner };
    norms + attention + scores + mlp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_blocks_and_the_work_in_flight() {
        let json = include_bytes!("../tests/golden/families/llama2/config.json");
        let config = ModelConfig::parse(json).unwrap();
        let lora = LoraSpec::new(4, 8.0, config.projections().collect());
        let work = InFlight { micro_batches: 3, samples: 2, time: 16, recompute: false };
        let of = |blocks, work| stage_memory(&config, blocks, Storage::Int8, &lora, work);
        let (one, three) = (of(0..1, work), of(0..3, work));
        assert_eq!((three.frozen, three.adapters), (3 * one.frozen, 3 * one.adapters));
        assert_eq!(three.total(), three.frozen + three.adapters + three.activations);
        // The block that is open is counted once more, whatever is in flight.
        assert_eq!(one.activations / 4, (three.activations - one.activations) / 6);
        let twice = of(0..3, InFlight { samples: 4, ..work });
        assert_eq!(twice.activations, 2 * three.activations);
        let longer = of(0..3, InFlight { time: 32, ..work });
        assert!(longer.activations > 2 * three.activations, "scores grow with the square of the time");
        let again = of(0..3, InFlight { recompute: true, ..work });
        assert!(again.activations < three.activations / 2);
        let none = of(1..1, InFlight { micro_batches: 0, ..work });
        assert_eq!((none.frozen, none.adapters), (0, 0));
    }
}
