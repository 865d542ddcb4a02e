//! GGUF metadata in the words of Hugging Face's `config.json`, so that a lone file is a model.

use serde_json::{Map, Value, json};

use super::super::WeightsError;
use super::{Gguf, names};

/// The scaling that all of Llama 3.1, 3.2 and 3.3 have, but for the factor: `(low, high, original)`.
const LLAMA3_SCALING: (f64, f64, u64) = (1.0, 4.0, 8192);
/// Layers of Gemma 3 27B, whose attention is scaled otherwise than that of the others.
const GEMMA3_27B_LAYERS: u64 = 62;

impl Gguf {
    /// The `config.json` that the model would have on the Hugging Face hub.
    ///
    /// # Errors
    ///
    /// When the architecture is not one that Baton knows, or the metadata lacks a number that it needs.
    pub fn config_json(&self) -> Result<String, WeightsError> {
        let architecture = self.architecture().ok_or_else(|| self.lacks("general.architecture"))?;
        let mut config = match architecture {
            "llama" | "qwen2" | "qwen3" | "gemma3" => self.decoder(architecture)?,
            "gpt2" => self.gpt2()?,
            "bert" => self.bert()?,
            other => return Err(self.unknown("architecture", other, names::KNOWN)),
        };
        for (field, key) in [
            ("bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("pad_token_id", "tokenizer.ggml.padding_token_id"),
        ] {
            config.insert(field.to_owned(), self.number(key).into());
        }
        config.insert("eos_token_id".to_owned(), self.ends_of_text());
        Ok(Value::Object(config).to_string())
    }

    /// Llama (Mistral too), Qwen 2, Qwen 3 and Gemma 3.
    fn decoder(&self, architecture: &str) -> Result<Map<String, Value>, WeightsError> {
        if let Some(experts) = self.architecture_u64("expert_count").filter(|experts| *experts > 0) {
            let found = format!("a mixture of {experts} experts");
            return Err(self.unknown("architecture", &found, names::KNOWN));
        }
        let hidden = self.required_u64("embedding_length")?;
        let heads = self.required_u64("attention.head_count")?;
        let kv_heads = self.architecture_u64("attention.head_count_kv").unwrap_or(heads);
        let head = self.architecture_u64("attention.key_length").or_else(|| hidden.checked_div(heads));
        let head = head.ok_or_else(|| self.lacks(&self.architecture_key("attention.key_length")))?;
        if self.architecture_u64("rope.dimension_count").is_some_and(|turned| turned != head) {
            return Err(self.wrong(format!("it turns a part of each head of {head} numbers only")));
        }
        let layers = self.required_u64("block_count")?;
        let has = |name: &str| self.shapes.contains_key(name);
        let names = match architecture {
            "llama" => ("LlamaForCausalLM", "llama"),
            "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
            "qwen3" => ("Qwen3ForCausalLM", "qwen3"),
            _ => ("Gemma3ForCausalLM", "gemma3_text"),
        };
        let mut config = json!({
            "architectures": [names.0],
            "model_type": names.1,
            "hidden_size": hidden,
            "intermediate_size": self.required_u64("feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head,
            "vocab_size": self.vocabulary()?,
            "max_position_embeddings": self.required_u64("context_length")?,
            "rms_norm_eps": self.required_f64("attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.architecture_f64("rope.freq_base").unwrap_or(1e4),
            "tie_word_embeddings": !has("output.weight"),
        });
        let scaling = self.rope_scaling(head)?;
        let fields: Value = if architecture == "gemma3" {
            // llama.cpp knows the 27B model by its layers too, and scales its attention by the width for each head.
            let scalar =
                if layers == GEMMA3_27B_LAYERS { hidden.checked_div(heads).unwrap_or(head) } else { head };
            json!({
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": scalar,
                "sliding_window": self.architecture_u64("attention.sliding_window").unwrap_or(1024),
                "sliding_window_pattern": 6,
                "rope_local_base_freq": self.architecture_f64("rope.freq_base_swa").unwrap_or(1e4),
                "final_logit_softcapping": self.architecture_f64("final_logit_softcapping"),
            })
        } else {
            json!({
                "hidden_act": "silu",
                // Hugging Face's Llama has all four biases of the attention, or none.
                "attention_bias": architecture == "llama" && has("blk.0.attn_output.bias"),
                "mlp_bias": has("blk.0.ffn_down.bias"),
            })
        };
        if let (Value::Object(config), Value::Object(fields)) = (&mut config, fields) {
            config.extend(fields);
            config.insert("rope_scaling".to_owned(), scaling);
        }
        Ok(object(config))
    }

    fn gpt2(&self) -> Result<Map<String, Value>, WeightsError> {
        Ok(object(json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": self.required_u64("embedding_length")?,
            "n_inner": self.required_u64("feed_forward_length")?,
            "n_layer": self.required_u64("block_count")?,
            "n_head": self.required_u64("attention.head_count")?,
            "n_positions": self.required_u64("context_length")?,
            "vocab_size": self.vocabulary()?,
            "layer_norm_epsilon": self.required_f64("attention.layer_norm_epsilon")?,
            "activation_function": "gelu_new",
            // Older converters wrote the embedding a second time as `output.weight`.
            "tie_word_embeddings": true,
        })))
    }

    fn bert(&self) -> Result<Map<String, Value>, WeightsError> {
        if self.text("tokenizer.ggml.model").is_some_and(|model| model != "bert") {
            // The converter cut the first rows off its positions.
            return Err(self.unknown("architecture", "a RoBERTa", names::KNOWN));
        }
        let types = self.shapes.get("token_types.weight").and_then(|shape| shape.first());
        Ok(object(json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": self.required_u64("embedding_length")?,
            "intermediate_size": self.required_u64("feed_forward_length")?,
            "num_hidden_layers": self.required_u64("block_count")?,
            "num_attention_heads": self.required_u64("attention.head_count")?,
            "max_position_embeddings": self.required_u64("context_length")?,
            "vocab_size": self.vocabulary()?,
            "type_vocab_size": types.ok_or_else(|| self.lacks("token_types.weight"))?,
            "layer_norm_eps": self.required_f64("attention.layer_norm_epsilon")?,
            "hidden_act": "gelu",
        })))
    }

    /// The rows of the embedding.
    fn vocabulary(&self) -> Result<usize, WeightsError> {
        let rows = self.shapes.get("token_embd.weight").and_then(|shape| shape.first());
        rows.copied().ok_or_else(|| self.lacks("token_embd.weight"))
    }

    /// The tokens that end a text or a turn.
    fn ends_of_text(&self) -> Value {
        let mut ids = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            ids.extend(self.number(key).filter(|id| !ids.contains(id)));
        }
        match ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        }
    }

    /// How far the rotary embedding is stretched, as Hugging Face's `rope_scaling`.
    fn rope_scaling(&self, head: u64) -> Result<Value, WeightsError> {
        if let Some(factors) = &self.rope_factors {
            return self.llama3_scaling(factors, head);
        }
        let factor = self.architecture_f64("rope.scaling.factor").or_else(|| {
            // The name before August 2023.
            self.architecture_f64("rope.scale_linear")
        });
        match (self.text(&self.architecture_key("rope.scaling.type")), factor) {
            (None | Some("none"), None) => Ok(Value::Null),
            (Some("none"), _) => Ok(Value::Null),
            (None | Some("linear"), Some(factor)) => Ok(if factor == 1.0 || factor == 0.0 {
                Value::Null
            } else {
                json!({"rope_type": "linear", "factor": factor})
            }),
            (Some(kind), factor) => Ok(json!({
                "rope_type": kind,
                "factor": factor,
                "original_max_position_embeddings":
                    self.architecture_u64("rope.scaling.original_context_length"),
            })),
        }
    }

    /// Llama 3's scaling from the factors that llama.cpp stores in its place: the numbers that they were computed from
    /// are those of all Llama 3 models, but for the largest factor, and that is checked.
    fn llama3_scaling(&self, factors: &[f32], head: u64) -> Result<Value, WeightsError> {
        let theta = self.architecture_f64("rope.freq_base").unwrap_or(1e4);
        let (low, high, original) = LLAMA3_SCALING;
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        let expected = |at: usize| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * at as f64 / head as f64);
            let original = original as f64;
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        let right = factors.len() as u64 == head / 2
            && factors.iter().enumerate().all(|(at, found)| {
                let expected = expected(at);
                (f64::from(*found) - expected).abs() <= 1e-3 * expected
            });
        if !right {
            return Err(self.wrong(format!(
                "its rotary frequencies are stretched by {factors:?}, which is not how Llama 3 does it"
            )));
        }
        if factor == 1.0 {
            return Ok(Value::Null);
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }))
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
