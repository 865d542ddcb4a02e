//! The model as the planner sees it: bytes and relative work of its blocks and ends under a run's settings.

use crate::error::EngineError;
use crate::source::lora_spec;
use baton_formats::ModelConfig;
use baton_model::{InFlight, LOADING, LoraSpec, Storage, end_bytes, frozen_bytes, head_memory, stage_memory};
use baton_plan::{BlockProfile, EndsProfile, Growth, ModelProfile};
use baton_protocol::run::Settings;

/// WebAssembly's memory of a tab whose engine has started on the CPU, before it has anything to do: measured.
pub const STAGE_PROGRAM: u64 = 2 << 20;
/// That of a host's tab with the page's own model and text opened, measured: what reading them took stays.
pub const HOST_PROGRAM: u64 = 18 << 20;

/// The profile of a model that is trained with these settings. Every block counts for the same work: a windowed layer is
/// not cheaper at the lengths that phones train.
///
/// # Errors
///
/// When the settings name maps that the model has not.
pub fn model_profile(config: &ModelConfig, settings: &Settings) -> Result<ModelProfile, EngineError> {
    let lora = lora_spec(settings, config)?;
    let hidden = config.hidden_size as u64;
    let tokens = u64::from(settings.seq_len).min(config.max_position_embeddings as u64);
    let blocks = (0..config.num_hidden_layers).map(|number| block(config, &lora, number, tokens));
    // Of the loss, what grows with the samples for ever, and what stops growing: logits are taken a few rows at a time.
    let open = 16 * hidden;
    let logits = |samples, time| head_memory(config, samples, time).saturating_sub(samples * time * open);
    Ok(ModelProfile {
        blocks: blocks.collect(),
        ends: EndsProfile {
            frozen: Storage::ALL.map(|storage| end_bytes(config, storage)),
            // Weights, gradients and two moments, f32.
            trained: config.classifier().map_or(0, |head| 16 * hidden * head.outputs as u64),
            open: Growth { linear: open, quadratic: 0 },
            logits: Growth { linear: logits(1, 1), quadratic: 0 },
            most_logits: logits(1, u64::from(u32::MAX)),
        },
        tokens,
        hidden,
        // Hidden states in and out, as they travel and as f32.
        buffers: Growth { linear: 16 * hidden, quadratic: 0 },
        loading: LOADING,
    })
}

fn block(config: &ModelConfig, lora: &LoraSpec, number: usize, tokens: u64) -> BlockProfile {
    let range = number..number + 1;
    let memory = |micro_batches, time, recompute| {
        let work = InFlight { micro_batches, samples: 1, time, recompute };
        stage_memory(config, range.clone(), Storage::F32, lora, work)
    };
    // A line and a parabola through what is said of three lengths about the one that is trained: what is constant in it
    // is small, and which of two terms is the larger does not change there.
    let growth = |of: &dyn Fn(u64) -> u64| {
        let [one, two, three] = [tokens, tokens + 1, tokens + 2].map(of);
        let quadratic = (three + one).saturating_sub(2 * two) / 2;
        let square = quadratic.saturating_mul(tokens).saturating_mul(tokens);
        Growth { linear: one.saturating_sub(square).div_ceil(tokens.max(1)), quadratic }
    };
    let output =
        |time: u64, recompute: bool| if recompute { 0 } else { 4 * time * config.hidden_size as u64 };
    let kept = |recompute| {
        growth(&|time| memory(1, time, recompute).activations.saturating_sub(output(time, recompute)))
    };
    let open = |recompute| growth(&|time| memory(0, time, recompute).working);
    let adapters = memory(0, 1, false).adapters;
    BlockProfile {
        work: 1.0,
        frozen: Storage::ALL.map(|storage| frozen_bytes(config, range.clone(), storage)),
        adapters,
        // Without the gradients.
        state: adapters / 4 * 3,
        kept: kept(false),
        input: kept(true),
        open: open(false),
        open_recompute: open(true),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_profile_adds_up_to_the_memory_of_a_stage() {
        let json = include_bytes!("../../model/tests/golden/families/llama2/config.json");
        let config = ModelConfig::parse(json).unwrap();
        let settings = Settings { seq_len: 24, ..Settings::default() };
        let profile = model_profile(&config, &settings).unwrap();
        let lora = lora_spec(&settings, &config).unwrap();
        assert_eq!(profile.blocks.len(), config.num_hidden_layers);
        for (recompute, storage) in [(false, Storage::F32), (true, Storage::Nf4)] {
            let work = InFlight { micro_batches: 3, samples: 2, time: 24, recompute };
            let want = stage_memory(&config, 0..2, storage, &lora, work);
            let at = Storage::ALL.iter().position(|s| *s == storage).unwrap();
            let own = &profile.blocks[..2];
            let kept = |b: &BlockProfile| if recompute { b.input } else { b.kept }.bytes(24);
            let open = |b: &BlockProfile| if recompute { b.open_recompute } else { b.open }.bytes(24);
            let output = if recompute { 0 } else { 4 * 24 * profile.hidden };
            let activations = own.iter().map(|b| 3 * 2 * kept(b)).sum::<u64>() + 3 * 2 * output;
            assert_eq!(own.iter().map(|b| b.frozen[at]).sum::<u64>(), want.frozen);
            assert_eq!(own.iter().map(|b| b.adapters).sum::<u64>(), want.adapters);
            assert_eq!(own.iter().map(|b| 3 * b.state).sum::<u64>(), want.handover);
            // The records of the graph are counted by samples in the one, and by micro-batches in the other.
            let alike = |found: u64, want: u64| found >= want && found <= want + 2 * 3 * 2 * (65 << 10);
            assert!(alike(activations, want.activations), "{activations} {want:?}");
            let working = 2 * open(&own[0]) + if storage == Storage::F32 { 0 } else { 2 << 20 };
            assert!(alike(working, want.working), "{working} {want:?}");
        }
    }
}
