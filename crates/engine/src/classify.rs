//! Texts labelled on one device.

use crate::adapter::head_state;
use crate::error::EngineError;
use crate::generate::lora;
use crate::source::Model;
use baton_formats::peft::Adapter;
use baton_formats::{ModelConfig, head_tensors};
use baton_model::{AdamW, Blocks, ClassifierHead, Device, Ends, Storage};

/// A text to label, or two that are read beside each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifyRequest {
    /// The text.
    pub text: String,
    /// The second one.
    pub second: Option<String>,
}

/// What the head says of each text: the probability of every class, or the one value of a regression. Texts that are longer
/// than the model reads are cut.
///
/// `config` is the model's with the head that the adapter was trained with (`baton_formats::peft::fitted`).
///
/// # Errors
///
/// When the model labels nothing, nobody has trained its head, or it cannot be read; when the adapter is not one of it.
pub async fn classify(
    model: &Model,
    config: &ModelConfig,
    adapter: Option<&Adapter>,
    texts: &[ClassifyRequest],
    device: &Device,
) -> Result<Vec<Vec<f32>>, EngineError> {
    let Model { files, index, .. } = model;
    let classifier = config.classifier().ok_or(EngineError::NoClassifier)?;
    let state = adapter.map(|adapter| head_state(adapter, config)).transpose()?.flatten();
    let own = head_tensors(config);
    let own =
        own.iter().all(|spec| index.find(&spec.names).is_some_and(|entry| entry.shape == spec.file_shape()));
    if state.is_none() && !own {
        return Err(EngineError::NoTrainedHead);
    }
    let ends = Ends::load(files, index, config, Storage::F32, device, |_| {}).await?;
    let range = 0..config.num_hidden_layers;
    let blocks = Blocks::load(files, index, config, range, Storage::F32, device, |_| {}).await?;
    let lora = adapter.map(|adapter| lora(adapter, config, device)).transpose()?;
    let mut head = ClassifierHead::load_or_init(files, index, config, 0, AdamW::default(), device).await?;
    if let Some(state) = &state {
        head.restore(state)?;
    }
    let first = config.ends.first_position.unwrap_or(0);
    let longest = config.max_position_embeddings.saturating_sub(first);
    let mut answers = Vec::with_capacity(texts.len());
    for request in texts {
        let framed = model.tokenizer.encode_framed(&request.text, request.second.as_deref(), longest)?;
        // As in training: a text alone has no types.
        let paired = framed.type_ids.iter().any(|type_id| *type_id != 0);
        let type_ids = if paired { vec![framed.type_ids] } else { Vec::new() };
        let h = ends.embed(&[framed.ids], &type_ids)?;
        let h = blocks.forward(lora.as_ref(), h, &[]);
        let row = head.logits(h, &ends).await?.pop().unwrap_or_default();
        answers.push(if classifier.regression { row } else { softmax(&row) });
    }
    Ok(answers)
}

/// The probabilities that scores stand for.
fn softmax(scores: &[f32]) -> Vec<f32> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
