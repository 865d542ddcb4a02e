//! What a device holds while it trains its part of a model: the tensors that burn's graph keeps, counted one by one.
//!
//! Each term names who holds it; `tests/training_memory.rs` compares the sums with the heap.

use std::ops::Range;

use baton_formats::config::{Activation, NormKind, NormPlace};
use baton_formats::{ModelConfig, Projection};
use serde::Serialize;

use crate::loss::LOGITS;
use crate::{LoraSpec, Storage, frozen_bytes};

/// What passes through while weights are loaded: pieces of 1 MiB, in several hands at once. 8 to 12 MiB were measured in
/// tabs (tests/tests/memory.rs).
pub const LOADING: u64 = 12 << 20;

/// burn's records of the operations of one block in one micro-batch, tensors not counted. 70 to 93 kB were measured
/// natively; a pointer is half as long in wasm.
const GRAPH: u64 = 64 << 10;

/// The tile that a packed matrix is unpacked into, and the one that a product with it is added up in.
const TILES: u64 = 2 << 20;

/// The bytes that a stage holds, each part at its most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageMemory {
    /// Its blocks' frozen weights, as [`frozen_bytes`] counts them.
    pub frozen: u64,
    /// Its adapters, their gradients and their two moments.
    pub adapters: u64,
    /// What backward needs of the micro-batches in flight.
    pub activations: u64,
    /// What the block that is worked on takes on top of that.
    pub working: u64,
    /// What is held between two steps instead of activations: adapters and moments on their way to the host, read back,
    /// as bytes, and as a message.
    pub handover: u64,
}

impl StageMemory {
    /// The most that it holds at once. The program itself and the device's own pools are not in it.
    pub fn total(&self) -> u64 {
        let passing = self.activations.saturating_add(self.working).max(self.handover).max(LOADING);
        self.frozen.saturating_add(self.adapters).saturating_add(passing)
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
    let numbers = |block: usize| -> u64 {
        let shapes = lora.projections(block).flat_map(|map| lora.shapes(config, block, map));
        shapes.map(|[rows, columns]| (rows as u64).saturating_mul(columns as u64)).sum()
    };
    let parameters = blocks.clone().map(numbers).fold(0, u64::saturating_add);
    let rows = work.samples.saturating_mul(work.time);
    let bytes = |numbers: u64| rows.saturating_mul(4).saturating_mul(numbers);
    let hidden = config.hidden_size as u64;
    let (mut saved, mut working) = (0u64, 0u64);
    for block in blocks.clone() {
        let kept = Kept::of(config, lora, block, work.time);
        let trace = bytes(kept.all()).saturating_add(GRAPH);
        let open = bytes(kept.open(hidden)).saturating_add(mask(config, work.time));
        let (own, more) = if work.recompute {
            // Of the trace, the input is there already.
            (bytes(hidden), open.saturating_add(trace).saturating_sub(bytes(hidden)))
        } else {
            (trace, open)
        };
        saved = saved.saturating_add(own);
        working = working.max(more);
    }
    if !blocks.is_empty() && storage != Storage::F32 {
        working = working.saturating_add(TILES);
    }
    // The last block's output: backward begins with its product with the gradient.
    let output = if blocks.is_empty() || work.recompute { 0 } else { bytes(hidden) };
    StageMemory {
        frozen: frozen_bytes(config, blocks, storage),
        // Adapters, gradients and two moments, f32.
        adapters: parameters.saturating_mul(16),
        activations: work.micro_batches.saturating_mul(saved.saturating_add(output)),
        working,
        // Three times the adapters and their moments.
        handover: parameters.saturating_mul(3 * 12),
    }
}

/// What the loss of a micro-batch of so many samples and tokens takes beside the ends: logits a few rows at a time and
/// their exponentials, and four tensors like the hidden states. Of a head that labels samples, the latter.
pub fn head_memory(config: &ModelConfig, samples: u64, time: u64) -> u64 {
    let rows = samples.saturating_mul(time);
    let logits = match config.classifier() {
        None => 2 * rows.saturating_mul(config.vocab_size as u64).min(LOGITS as u64),
        Some(_) => 0,
    };
    logits.saturating_add(rows.saturating_mul(4 * config.hidden_size as u64)).saturating_mul(4)
}

/// The sight mask of a pass, which all its blocks share.
fn mask(config: &ModelConfig, time: u64) -> u64 {
    if config.block.causal { time.saturating_mul(time).saturating_mul(4) } else { 0 }
}

/// The numbers that the graph of one block keeps for each token of rows of `time` tokens.
struct Kept {
    /// Of its attention, and what leads to it.
    attention: u64,
    /// One tensor of scores.
    scores: u64,
    /// Of its MLP, and what leads to it.
    mlp: u64,
    /// One tensor as wide as the MLP.
    inner: u64,
}

impl Kept {
    fn of(config: &ModelConfig, lora: &LoraSpec, block: usize, time: u64) -> Self {
        use Projection::{Down, Gate, K, O, Q, Qkv, Up, V};
        let form = &config.block;
        let hidden = config.hidden_size as u64;
        let queries = (config.num_attention_heads * config.head_dim) as u64;
        let keys = (config.num_key_value_heads * config.head_dim) as u64;
        let inner = config.intermediate_size as u64;
        let scores = (config.num_attention_heads as u64).saturating_mul(time);
        let adapted: Vec<Projection> = lora.projections(block).collect();
        // An adapter's A needs the map's input for its gradient.
        let input = |maps: &[Projection], width| {
            if maps.iter().any(|map| adapted.contains(map)) { width } else { 0 }
        };
        // What A gives, for B's gradient.
        let low: u64 = adapted.iter().map(|map| lora.shapes(config, block, *map)[0][0] as u64).sum();
        let before = form.norm_place != NormPlace::After;
        let after = form.norm_place != NormPlace::Before;
        // A norm keeps what it divides by the root: its input, or in a layer norm the centred input.
        let norm = |there: bool| if there { hidden } else { 0 };
        let centred = before && form.norm == NormKind::Layer;
        // The block's input, which is the output of the one before; the norm of it where that is another tensor.
        let entry = hidden + norm(centred) + if before { input(&[Q, K, V, Qkv], hidden) } else { 0 };
        let head_norms = if form.qk_norm { queries + keys } else { 0 };
        // Queries, keys and values as they are multiplied, and what they gave.
        let attended = queries + 2 * keys + input(&[O], queries);
        // Three tensors of scores: what the exponential was given, what it gave, and the weights.
        let attention = entry + head_norms + attended + 3 * scores + norm(after);
        // What the activation's backward step needs; a gated one's product needs both factors.
        let activation = match form.activation {
            Activation::Silu => 2,
            Activation::Gelu => 3,
            Activation::GeluTanh => 4,
            Activation::Relu => 1,
        };
        let gated = if form.gated { 2 } else { 0 };
        let mlp = norm(before)
            + input(&[Gate, Up], hidden)
            + norm(after)
            + inner * (activation + gated)
            + input(&[Down], inner);
        Self { attention: attention + low, scores, mlp, inner }
    }

    fn all(&self) -> u64 {
        self.attention.saturating_add(self.mlp)
    }

    /// What backward takes on top, at its most: two gradients as wide as the MLP, or two as large as the scores after
    /// all that the MLP kept is free; a packed product has its result beside what is added to it.
    fn open(&self, hidden: u64) -> u64 {
        let scores = self.scores.saturating_mul(2).saturating_sub(self.mlp);
        self.inner.saturating_mul(3).max(scores).saturating_add(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_blocks_and_the_work_in_flight() {
        let json = include_bytes!("../tests/golden/families/llama2/config.json");
        let config = ModelConfig::parse(json).unwrap();
        let lora = LoraSpec::new(4, 8.0, config.projections().collect());
        let work = InFlight { micro_batches: 3, samples: 2, time: 256, recompute: false };
        let of = |blocks, work| stage_memory(&config, blocks, Storage::Int8, &lora, work);
        let (one, three) = (of(0..1, work), of(0..3, work));
        assert_eq!((three.frozen, three.adapters), (3 * one.frozen, 3 * one.adapters));
        assert_eq!(three.handover, 3 * one.handover);
        // The block that is worked on is one, whatever is in flight; so is the last one's output.
        assert_eq!(one.working, three.working);
        assert!(three.activations < 3 * one.activations && three.activations > 2 * one.activations);
        let flight = |micro_batches| of(0..3, InFlight { micro_batches, ..work }).activations;
        assert_eq!(flight(6), 2 * flight(3));
        let longer = of(0..3, InFlight { time: 512, ..work });
        assert!(longer.activations > 2 * three.activations, "scores grow with the square of the time");
        let again = of(0..3, InFlight { recompute: true, ..work });
        assert!(again.activations < three.activations / 2 && again.working > three.working);
        let none = of(1..1, InFlight { micro_batches: 0, ..work });
        assert_eq!((none.frozen, none.adapters, none.total()), (0, 0, LOADING));
        // Between steps nothing is in flight, but all adapters are on their way.
        let short = of(0..3, InFlight { micro_batches: 1, samples: 1, time: 1, recompute: true });
        assert_eq!(short.total(), short.frozen + short.adapters + LOADING.max(short.handover));
    }

    #[test]
    fn a_map_without_an_adapter_keeps_no_input() {
        let json = include_bytes!("../tests/golden/families/llama2/config.json");
        let config = ModelConfig::parse(json).unwrap();
        let work = InFlight { micro_batches: 1, samples: 1, time: 8, recompute: false };
        let of = |targets: &[Projection]| {
            let lora = LoraSpec::new(4, 8.0, targets.to_vec());
            stage_memory(&config, 0..1, Storage::F32, &lora, work).activations
        };
        use Projection::{Down, Q, V};
        let (inner, rank) = (config.intermediate_size as u64, 4);
        assert_eq!(of(&[Q, V, Down]) - of(&[Q, V]), 4 * 8 * (inner + rank));
        // Both read the same input.
        assert_eq!(of(&[Q, V]) - of(&[Q]), 4 * 8 * rank);
    }
}
