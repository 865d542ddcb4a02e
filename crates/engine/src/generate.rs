//! A text written on one device, with the keys and values of what is written kept.

use crate::error::EngineError;
use crate::source::Model;
use crate::texts::{Text, TextRequest};
use baton_formats::ModelConfig;
use baton_formats::peft::Adapter;
use baton_model::{Blocks, Device, Ends, KvCache, Lora, LoraSpec, Storage};

/// Writes a text; `on_token` hears it after each token.
///
/// # Errors
///
/// When the model cannot be read, or the adapter is not one of it.
pub async fn generate(
    model: &Model,
    adapter: Option<&Adapter>,
    request: &TextRequest,
    device: &Device,
    mut on_token: impl FnMut(&Text),
) -> Result<Text, EngineError> {
    let Model { files, config, index, .. } = model;
    let range = 0..config.num_hidden_layers;
    let ends = Ends::load(files, index, config, Storage::F32, device, |_| {}).await?;
    let blocks = Blocks::load(files, index, config, range, Storage::F32, device, |_| {}).await?;
    let lora = adapter.map(|adapter| lora(adapter, config, device)).transpose()?;
    let mut text = Text::begin(model, request)?;
    let mut cache = KvCache::new();
    let mut read = 0;
    while !text.is_done(model) {
        let h = ends.embed_after(cache.time(), &[text.ids()[read..].to_vec()], &[])?;
        read = text.ids().len();
        let h = blocks.forward_cached(lora.as_ref(), h, &mut cache);
        text.push(&ends.logits_last(h).await?);
        on_token(&text);
    }
    Ok(text)
}

/// The pairs of all blocks.
pub(crate) fn lora(adapter: &Adapter, config: &ModelConfig, device: &Device) -> Result<Lora, EngineError> {
    let adapter = adapter.clone().uniform(config)?;
    let (rank, alpha) = (adapter.config.r, adapter.config.lora_alpha);
    let spec = LoraSpec::new(rank, alpha, adapter.config.projections(config)?);
    Ok(Lora::from_pairs(config, &spec, 0..config.num_hidden_layers, &adapter.weights, device)?)
}
