//! Committed states as an adapter in PEFT's format, and an adapter as states to start from.

use crate::error::EngineError;
use crate::source::lora_spec;
use baton_formats::peft::{Adapter, AdapterConfig};
use baton_formats::{ModelConfig, Projection, zip};
use baton_model::BlockState;
use baton_protocol::message::BlockBytes;
use baton_protocol::run::Settings;
use std::collections::BTreeMap;

/// The adapter that the states of all blocks make.
///
/// # Errors
///
/// When a block is missing, which is so before the first step.
pub fn from_states<'a>(
    states: impl Iterator<Item = &'a BlockBytes>,
    settings: &Settings,
    config: &ModelConfig,
    base: Option<String>,
) -> Result<Adapter, EngineError> {
    let spec = lora_spec(settings, config)?;
    let mut weights = baton_model::Pairs::new();
    for state in states {
        weights.extend(BlockState::from_bytes(&spec, config, &state.bytes)?.pairs());
    }
    if weights.is_empty() {
        return Err(EngineError::NoStep);
    }
    let adapter = AdapterConfig {
        base_model_name_or_path: base,
        ..AdapterConfig::new(spec.rank, spec.alpha, config.target_names(&spec.targets))
    };
    Ok(Adapter { config: adapter, weights, head: BTreeMap::new() })
}

/// Checks states that came from another device.
///
/// # Errors
///
/// When they are not of this model and these settings, or hold numbers that are none.
pub fn check(states: &[BlockBytes], settings: &Settings, config: &ModelConfig) -> Result<(), EngineError> {
    let spec = lora_spec(settings, config)?;
    for state in states {
        BlockState::from_bytes(&spec, config, &state.bytes)?;
    }
    Ok(())
}

/// States to start a run from: the adapter's numbers with moments that have seen no step.
///
/// # Errors
///
/// When its rank, alpha or targets are not those of the run.
pub fn to_states(
    adapter: &Adapter,
    settings: &Settings,
    config: &ModelConfig,
) -> Result<Vec<BlockBytes>, EngineError> {
    let spec = lora_spec(settings, config)?;
    let adapter = adapter.clone().uniform(config)?;
    let differs = |what, found: String, wanted: String| {
        if found == wanted { Ok(()) } else { Err(EngineError::OtherAdapter { what, found, wanted }) }
    };
    differs("rank", adapter.config.r.to_string(), spec.rank.to_string())?;
    differs("alpha", adapter.config.lora_alpha.to_string(), spec.alpha.to_string())?;
    let targets = adapter.config.projections(config)?;
    let names = |targets: &[Projection]| config.target_names(targets).join(", ");
    differs("targets", names(&targets), names(&spec.targets))?;
    let states = BlockState::fresh(&spec, config, &adapter.weights)?;
    states
        .into_iter()
        .map(|state| {
            let block = u16::try_from(state.block).map_err(|_| EngineError::NotLoaded)?;
            Ok(BlockBytes { block, bytes: state.to_bytes() })
        })
        .collect()
}

/// The adapter as one archive with a folder in it.
///
/// # Errors
///
/// When it is incomplete.
pub fn to_zip(adapter: &Adapter, config: &ModelConfig) -> Result<Vec<u8>, EngineError> {
    let (settings, weights) = adapter.to_files(config)?;
    let files = [
        ("adapter/adapter_config.json", settings.as_bytes()),
        ("adapter/adapter_model.safetensors", weights.as_slice()),
    ];
    Ok(zip(&files)?)
}
