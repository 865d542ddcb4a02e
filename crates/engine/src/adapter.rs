//! Committed states as an adapter in PEFT's format, and an adapter as states to start from.

use crate::error::EngineError;
use crate::host::head_block;
use crate::source::lora_spec;
use baton_formats::peft::{Adapter, AdapterConfig, labels_json};
use baton_formats::{HeadPart, ModelConfig, Projection, TensorSpec, head_tensors, zip};
use baton_model::{BlockState, HeadState};
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
    let mut head = BTreeMap::new();
    for state in states {
        if state.block == head_block(config) {
            let tensors = HeadState::from_bytes(config, &state.bytes)?.tensors(config);
            let parts = head_tensors(config).into_iter().map(|tensor| tensor.part);
            head = parts.zip(tensors.into_iter().map(|(.., values)| values)).collect();
            continue;
        }
        weights.extend(BlockState::from_bytes(&spec, config, &state.bytes)?.pairs());
    }
    if weights.is_empty() {
        return Err(EngineError::NoStep);
    }
    let adapter = AdapterConfig {
        base_model_name_or_path: base,
        ..AdapterConfig::new(spec.rank, spec.alpha, config.target_names(&spec.targets))
    };
    Ok(Adapter { config: adapter, weights, head })
}

/// Checks states that came from another device.
///
/// # Errors
///
/// When they are not of this model and these settings, or hold numbers that are none.
pub fn check(states: &[BlockBytes], settings: &Settings, config: &ModelConfig) -> Result<(), EngineError> {
    let spec = lora_spec(settings, config)?;
    for state in states {
        // A head is nobody's but the host's.
        let own = BlockState::from_bytes(&spec, config, &state.bytes)?;
        own.check_finite()?;
        let found = own.block;
        if found != usize::from(state.block) {
            return Err(EngineError::OtherBlock { found, expected: state.block });
        }
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
    let targets = adapter.config.projections(config)?;
    let names = |targets: &[Projection]| config.target_names(targets).join(", ");
    let pairs = [
        ("rank", adapter.config.r.to_string(), spec.rank.to_string()),
        ("alpha", adapter.config.lora_alpha.to_string(), spec.alpha.to_string()),
        ("targets", names(&targets), names(&spec.targets)),
    ];
    let other: Vec<_> = pairs.iter().filter(|(_, found, wanted)| found != wanted).collect();
    if !other.is_empty() {
        let said = |found: bool| {
            let said =
                other.iter().map(|(what, own, run)| format!("{what} {}", if found { own } else { run }));
            said.collect::<Vec<_>>().join(", ")
        };
        return Err(EngineError::OtherAdapter { found: said(true), wanted: said(false) });
    }
    let states = BlockState::fresh(&spec, config, &adapter.weights)?;
    let blocks = states.into_iter().map(|state| {
        let block = u16::try_from(state.block).map_err(|_| EngineError::NotLoaded)?;
        Ok(BlockBytes { block, bytes: state.to_bytes() })
    });
    let mut states = blocks.collect::<Result<Vec<_>, EngineError>>()?;
    if let Some(head) = head_state(&adapter, config)? {
        states.push(BlockBytes { block: head_block(config), bytes: head.to_bytes() });
    }
    Ok(states)
}

/// The adapter's head with moments that have seen no step; none where it has none.
pub(crate) fn head_state(adapter: &Adapter, config: &ModelConfig) -> Result<Option<HeadState>, EngineError> {
    if adapter.head.is_empty() {
        return Ok(None);
    }
    let named = |tensor: TensorSpec<HeadPart>| {
        Some((tensor.name().to_owned(), adapter.head.get(&tensor.part)?.clone()))
    };
    let values = head_tensors(config).into_iter().filter_map(named).collect();
    Ok(Some(HeadState::fresh(config, &values)?))
}

/// The adapter as one archive with a folder in it, and a README.md for whoever unpacks it.
///
/// # Errors
///
/// When it is incomplete.
pub fn to_zip(adapter: &Adapter, config: &ModelConfig) -> Result<Vec<u8>, EngineError> {
    let (settings, weights) = adapter.to_files(config)?;
    let (card, labels) = (adapter.card(config), labels_json(config));
    let mut files = vec![
        ("adapter/adapter_config.json", settings.as_bytes()),
        ("adapter/adapter_model.safetensors", weights.as_slice()),
        ("adapter/README.md", card.as_bytes()),
    ];
    files.extend(labels.as_ref().map(|labels| ("adapter/labels.json", labels.as_bytes())));
    Ok(zip(&files)?)
}
