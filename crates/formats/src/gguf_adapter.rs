//! An adapter as a GGUF file that llama.cpp loads (`--lora`), named and shaped as its `convert_lora_to_gguf.py` does.

use crate::config::{Architecture, ModelConfig};
use crate::peft::{Adapter, PeftError};
use crate::projection::Projection;
use crate::weights::{GgufValue, write_gguf};

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
        let mut b = pair.b.clone();
        if architecture == "llama" && matches!(place.projection, Projection::Q | Projection::K) {
            b = interleaved(&b, place.rank, model.head_dim);
        }
        if theirs != place.scale {
            b.iter_mut().for_each(|value| *value = (f64::from(*value) * place.scale / theirs) as f32);
        }
        owned.push((place, &pair.a, b));
    }
    let mut tensors = Vec::with_capacity(2 * owned.len());
    for (place, a, b) in &owned {
        let name = format!("blk.{}.{}.weight", place.block, map_name(place.projection));
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

/// llama.cpp's name of a map (`gguf-py/gguf/constants.py`).
fn map_name(projection: Projection) -> &'static str {
    match projection {
        Projection::Q => "attn_q",
        Projection::K => "attn_k",
        Projection::V => "attn_v",
        Projection::Qkv => "attn_qkv",
        Projection::O => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    }
}

/// The rows of queries or keys, `[head][half][pair]` in Hugging Face's files, as `[head][pair][half]`.
fn interleaved(b: &[f32], rank: usize, head_dim: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = b.chunks_exact(rank).collect();
    let heads = rows.chunks_exact(head_dim).map(|head| head.split_at(head_dim / 2));
    let pairs = heads.flat_map(|(first, second)| first.iter().zip(second));
    pairs.flat_map(|(one, other)| one.iter().chain(*other)).copied().collect()
}
