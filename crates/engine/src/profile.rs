//! The model as the planner sees it: bytes and relative work of its blocks and ends under a run's settings.

use crate::error::EngineError;
use crate::source::lora_spec;
use baton_formats::ModelConfig;
use baton_model::{InFlight, LoraSpec, Storage, end_bytes, frozen_bytes, stage_memory};
use baton_plan::{BlockProfile, EndsProfile, Growth, ModelProfile};
use baton_protocol::run::Settings;

/// The profile of a model that is trained with these settings. Every block counts for the same work: a windowed layer is
/// not cheaper at the lengths that phones train.
///
/// # Errors
///
/// When the settings name maps that the model has not.
pub fn model_profile(config: &ModelConfig, settings: &Settings) -> Result<ModelProfile, EngineError> {
    let lora = lora_spec(settings, config)?;
    let hidden = config.hidden_size as u64;
    let blocks = (0..config.num_hidden_layers).map(|number| block(config, &lora, number));
    Ok(ModelProfile {
        blocks: blocks.collect(),
        ends: EndsProfile {
            frozen: Storage::ALL.map(|storage| end_bytes(config, storage)),
            // Weights, gradients and two moments, f32.
            trained: config.classifier().map_or(0, |head| 16 * hidden * head.outputs as u64),
            open: match config.classifier() {
                Some(_) => Growth::default(),
                // Logits and their gradient, f32.
                None => Growth { linear: 8 * config.vocab_size as u64, quadratic: 0 },
            },
        },
        tokens: u64::from(settings.seq_len).min(config.max_position_embeddings as u64),
        hidden,
        // Hidden states in and out, as they travel and as f32.
        buffers: Growth { linear: 16 * hidden, quadratic: 0 },
    })
}

fn block(config: &ModelConfig, lora: &LoraSpec, number: usize) -> BlockProfile {
    let range = number..number + 1;
    let memory = |micro_batches, time, recompute| {
        let work = InFlight { micro_batches, samples: 1, time, recompute };
        stage_memory(config, range.clone(), Storage::F32, lora, work)
    };
    // What grows with the tokens of a sample and with their square, from two lengths.
    let growth = |of: &dyn Fn(u64) -> u64| {
        let (one, two) = (of(1), of(2));
        let quadratic = two.saturating_sub(2 * one) / 2;
        Growth { linear: one.saturating_sub(quadratic), quadratic }
    };
    let open = |recompute| growth(&|time| memory(0, time, recompute).activations);
    let kept = |recompute| {
        growth(&|time| memory(1, time, recompute).activations - memory(0, time, recompute).activations)
    };
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
            let activations = own.iter().map(|b| 3 * 2 * kept(b)).sum::<u64>() + 2 * open(&own[0]);
            assert_eq!(own.iter().map(|b| b.frozen[at]).sum::<u64>(), want.frozen);
            assert_eq!(own.iter().map(|b| b.adapters).sum::<u64>(), want.adapters);
            assert_eq!(activations, want.activations);
        }
    }
}
