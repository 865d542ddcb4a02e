//! An adapter as a GGUF file that llama.cpp loads (`--lora`), named and shaped as its `convert_lora_to_gguf.py` does.

use crate::config::{Architecture, ModelConfig};
use crate::peft::{Adapter, PeftError};
use crate::weights::gguf::{GgufValue, InGguf, in_gguf, interleave_heads, write_gguf};

/// The adapter as a GGUF file of f32: for every place `blk.N.<map>.weight.lora_a` `[rank, in]` and `.lora_b` `[out, rank]`.
///
/// llama.cpp knows one alpha, which it divides by each pair's own rank; a place with another scale has the difference in
/// its `lora_b`. Where llama.cpp keeps queries and keys in another order of their rows (the Llama architecture: the two
/// halves of a head interleaved), `lora_b` has that order too. GPT-2's factors are those of the matrix `[out, in]` that
/// llama.cpp holds; its own converter turns them with the matrix, which does not fit.
///
/// # Errors
///
/// For a classifier: llama.cpp has no place for a trained head. When the adapter does not fit the model.
pub fn to_gguf(adapter: &Adapter, model: &ModelConfig) -> Result<Vec<u8>, PeftError> {
    let architecture = match model.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma3 => "gemma3",
        Architecture::Gpt2 => "gpt2",
        Architecture::Bert | Architecture::Roberta => {
            return Err(PeftError::NoGguf { family: model.architecture.name() });
        }
    };
    let alpha = adapter.config.lora_alpha as f32;
    let mut owned = Vec::new();
    for place in adapter.config.places(model)? {
        let pair = adapter.pair(&place)?;
        let theirs = f64::from(alpha) / place.rank as f64;
        let weight = format!("{}.weight", place.path);
        let InGguf { name, interleaved } = in_gguf(architecture, &weight)
            .ok_or_else(|| PeftError::Unexpected { found: place.path.clone() })?;
        let mut b = if interleaved {
            interleave_heads(&pair.b, place.out, place.out / model.head_dim)
        } else {
            pair.b.clone()
        };
        if theirs != place.scale {
            b.iter_mut().for_each(|value| *value = (f64::from(*value) * place.scale / theirs) as f32);
        }
        owned.push((name, place, &pair.a, b));
    }
    let mut tensors = Vec::with_capacity(2 * owned.len());
    for (name, place, a, b) in &owned {
        tensors.push((format!("{name}.lora_a"), vec![place.rank, place.input], a.as_slice()));
        tensors.push((format!("{name}.lora_b"), vec![place.out, place.rank], b.as_slice()));
    }
    let text = |value: &str| GgufValue::String(value.to_owned());
    let metadata = [
        ("general.architecture", text(architecture)),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", GgufValue::F32(alpha)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    Ok(write_gguf(&metadata, &tensors)?)
}
