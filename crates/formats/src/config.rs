//! `config.json`: which model this is, checked to be one that Baton can run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::projection::Projection;

/// No real `config.json` is near this size.
const SIZE_LIMIT: usize = 1 << 20;

/// The architectures that Baton can run, by Hugging Face's names.
const SUPPORTED: &str = "LlamaForCausalLM";

/// A family of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// RMSNorm, RoPE, grouped-query attention without biases, SwiGLU.
    #[serde(rename = "LlamaForCausalLM")]
    Llama,
}

/// The dimensions of a model, in the words of Hugging Face's `config.json`.
///
/// One that comes from [`ModelConfig::parse`] is sound; one that came over the network is made so by
/// [`ModelConfig::check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The width inside the MLP.
    pub intermediate_size: usize,
    /// How many blocks there are.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads: a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// How many tokens there are.
    pub vocab_size: usize,
    /// The longest sequence that the model was trained on.
    pub max_position_embeddings: usize,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
}

/// Why a `config.json` was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("config.json cannot be read: {reason}; is it the config.json of a Hugging Face model?")]
    Json {
        /// What the JSON reader said.
        reason: String,
    },
    /// Larger than any real one.
    #[error(
        "config.json has {size} bytes, more than the {limit} that one may have; it is not a model's config"
    )]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The largest size allowed.
        limit: usize,
    },
    /// Another architecture.
    #[error(
        "this model is a {found}, which Baton cannot train yet; choose a model of the architecture {SUPPORTED}"
    )]
    UnsupportedArchitecture {
        /// What `architectures` names.
        found: String,
    },
    /// The architecture is right, but it uses something that Baton does not have.
    #[error(
        "this model has \"{field}\": {value} in its config.json, which Baton cannot do yet; choose a model without it"
    )]
    UnsupportedFeature {
        /// The field.
        field: &'static str,
        /// Its value, as JSON.
        value: String,
    },
    /// A number that no real model has.
    #[error("config.json says {field} = {value}; it must be between {least} and {most}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The least value allowed.
        least: f64,
        /// The greatest value allowed.
        most: f64,
    },
    /// Two numbers that do not go together.
    #[error("config.json says {field} = {value}, which is not a multiple of {of} = {divisor}")]
    NotAMultiple {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The field that must divide it.
        of: &'static str,
        /// That field's value.
        divisor: usize,
    },
    /// A token outside of the vocabulary.
    #[error("config.json names token {id} as {field}, but the vocabulary has only {vocab_size} tokens")]
    TokenOutside {
        /// `bos_token_id` or `eos_token_id`.
        field: &'static str,
        /// The token.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
}

impl ModelConfig {
    /// Reads a `config.json`, refusing what Baton cannot run.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > SIZE_LIMIT {
            return Err(ConfigError::TooLarge { size: json.len(), limit: SIZE_LIMIT });
        }
        let read = |error: serde_json::Error| ConfigError::Json { reason: error.to_string() };
        // The architecture first: another one may lack the fields of ours, and its name is the better answer.
        let architecture = architecture(&serde_json::from_slice(json).map_err(read)?)?;
        let raw: RawConfig = serde_json::from_slice(json).map_err(read)?;
        raw.refuse_unsupported()?;
        raw.into_config(architecture)
    }

    /// Refuses dimensions that are absurd or do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (field, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 10),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ] {
            in_range(field, value as f64, 1.0, f64::from(most))?;
        }
        in_range("rms_norm_eps", self.rms_norm_eps, f64::MIN_POSITIVE, 0.1)?;
        in_range("rope_theta", self.rope_theta, 1.0, 1e12)?;
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)?;
        multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        // The rotary embedding turns pairs.
        multiple("head_dim", self.head_dim, "a rotated pair", 2)?;
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        for (field, id) in bos.chain(eos) {
            if u64::from(id) >= self.vocab_size as u64 {
                return Err(ConfigError::TokenOutside { field, id, vocab_size: self.vocab_size });
            }
        }
        Ok(())
    }

    /// The parameters of the whole model; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        let embedding = self.vocab_size as u64 * self.hidden_size as u64;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * embedding + self.num_hidden_layers as u64 * self.block_parameters() + self.hidden_size as u64
    }

    /// The parameters of one block.
    pub fn block_parameters(&self) -> u64 {
        let projections: u64 = Projection::ALL
            .iter()
            .map(|projection| {
                let (out, input) = projection.shape(self);
                out as u64 * input as u64
            })
            .sum();
        projections + 2 * self.hidden_size as u64
    }
}

/// The fields of `config.json` that matter, as they are written. Defaults are those of transformers' `LlamaConfig`.
#[derive(Deserialize)]
struct RawConfig {
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    #[serde(default)]
    hidden_act: Value,
    #[serde(default)]
    attention_bias: Value,
    #[serde(default)]
    mlp_bias: Value,
    #[serde(default)]
    quantization_config: Value,
    #[serde(default)]
    rope_scaling: Value,
    #[serde(default)]
    rope_parameters: Value,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id must be a token or a list of tokens")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl RawConfig {
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        let silu = self.hidden_act.is_null() || self.hidden_act == "silu";
        let plain = |value: &Value| value.is_null() || *value == false;
        for (field, value, supported) in [
            ("hidden_act", &self.hidden_act, silu),
            ("attention_bias", &self.attention_bias, plain(&self.attention_bias)),
            ("mlp_bias", &self.mlp_bias, plain(&self.mlp_bias)),
            ("quantization_config", &self.quantization_config, self.quantization_config.is_null()),
            ("rope_scaling", &self.rope_scaling, plain_rope(&self.rope_scaling)),
            ("rope_parameters", &self.rope_parameters, plain_rope(&self.rope_parameters)),
        ] {
            if !supported {
                let value = value.to_string().chars().take(200).collect();
                return Err(ConfigError::UnsupportedFeature { field, value });
            }
        }
        Ok(())
    }

    fn into_config(self, architecture: Architecture) -> Result<ModelConfig, ConfigError> {
        // A number too large for a 32-bit browser is too large for `check`, which names it.
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let heads = size(self.num_attention_heads);
        let hidden = size(self.hidden_size);
        // Newer transformers (5.0) moved it into `rope_parameters`.
        let nested_theta = self.rope_parameters.get("rope_theta").and_then(Value::as_f64);
        let config = ModelConfig {
            architecture,
            hidden_size: hidden,
            intermediate_size: size(self.intermediate_size),
            num_hidden_layers: size(self.num_hidden_layers),
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.map_or(heads, size),
            // Of no heads, `check` tells.
            head_dim: self.head_dim.map_or_else(|| hidden.checked_div(heads).unwrap_or(1), size),
            vocab_size: size(self.vocab_size),
            max_position_embeddings: self.max_position_embeddings.map_or(2048, size),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self.rope_theta.or(nested_theta).unwrap_or(10_000.0),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            bos_token_id: self.bos_token_id,
            eos_token_ids: match self.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
            },
        };
        config.check()?;
        Ok(config)
    }
}

/// The architecture by its name, or by `model_type` where none is named.
fn architecture(config: &Value) -> Result<Architecture, ConfigError> {
    let named = config.get("architectures").and_then(Value::as_array).and_then(|names| names.first());
    let model_type = config.get("model_type");
    match named.and_then(Value::as_str) {
        Some("LlamaForCausalLM") => Ok(Architecture::Llama),
        None if model_type.is_some_and(|name| name == "llama") => Ok(Architecture::Llama),
        found => {
            let found = found
                .or_else(|| model_type.and_then(Value::as_str))
                .unwrap_or("model of no named architecture");
            Err(ConfigError::UnsupportedArchitecture { found: found.chars().take(100).collect() })
        }
    }
}

/// Whether this is the plain rotary embedding: unscaled, over the whole head.
fn plain_rope(value: &Value) -> bool {
    let kind = value.get("rope_type").or_else(|| value.get("type"));
    let whole = value.get("partial_rotary_factor").is_none_or(|factor| factor.as_f64() == Some(1.0));
    value.is_null() || (whole && kind.is_none_or(|kind| kind == "default") && value.get("factor").is_none())
}

fn in_range(field: &'static str, value: f64, least: f64, most: f64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange { field, value, least, most })
}

fn multiple(field: &'static str, value: usize, of: &'static str, divisor: usize) -> Result<(), ConfigError> {
    if value.checked_rem(divisor) == Some(0) {
        return Ok(());
    }
    Err(ConfigError::NotAMultiple { field, value, of, divisor })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stories() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false,
            "bos_token_id": 1, "eos_token_id": 2
        })
    }

    /// `stories` with some fields replaced.
    fn with(changes: &Value) -> Result<ModelConfig, ConfigError> {
        let mut config = stories();
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        ModelConfig::parse(config.to_string().as_bytes())
    }

    #[test]
    fn a_llama_config_is_read() {
        let config = with(&json!({})).unwrap();
        assert_eq!((config.hidden_size, config.head_dim, config.num_key_value_heads), (64, 8, 4));
        assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
        assert_eq!(config.rms_norm_eps, 1e-5);
    }

    #[test]
    fn the_parameters_are_those_that_the_file_holds() {
        let config = with(&json!({})).unwrap();
        // transformers' `num_parameters()` of stories260k.
        assert_eq!(config.parameters(), 260_032);
        let untied = with(&json!({"tie_word_embeddings": false})).unwrap();
        assert_eq!(untied.parameters(), 260_032 + 512 * 64);
    }

    #[test]
    fn what_transformers_5_writes_is_read() {
        let config = with(&json!({
            "rope_theta": null, "rope_scaling": null, "head_dim": 8,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            "eos_token_id": [2, 3]
        }))
        .unwrap();
        assert_eq!((config.rope_theta, config.eos_token_ids.as_slice()), (500_000.0, [2, 3].as_slice()));
    }

    #[test]
    fn fields_left_out_have_the_defaults_of_transformers() {
        let config = ModelConfig::parse(
            br#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
                "num_attention_heads": 8, "vocab_size": 512, "eos_token_id": null}"#,
        )
        .unwrap();
        assert_eq!(
            (config.num_key_value_heads, config.head_dim, config.max_position_embeddings),
            (8, 8, 2048)
        );
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
        assert!(!config.tie_word_embeddings && config.eos_token_ids.is_empty());
    }

    #[test]
    fn another_architecture_is_named_and_refused() {
        let error =
            ModelConfig::parse(br#"{"architectures": ["BertModel"], "hidden_size": 384}"#).unwrap_err();
        assert_eq!(error, ConfigError::UnsupportedArchitecture { found: "BertModel".to_owned() });
        let text = error.to_string();
        assert!(text.contains("BertModel") && text.contains("LlamaForCausalLM"), "{text}");
        assert!(matches!(
            with(&json!({"architectures": ["LlamaForSequenceClassification"]})),
            Err(ConfigError::UnsupportedArchitecture { .. })
        ));
    }

    #[test]
    fn features_that_change_the_numbers_are_refused() {
        for (field, value) in [
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("hidden_act", json!("gelu")),
            ("quantization_config", json!({"bits": 4})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4})),
            ("rope_parameters", json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5})),
        ] {
            match with(&json!({ field: value })) {
                Err(ConfigError::UnsupportedFeature { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field} = {value}: {other:?}"),
            }
        }
    }

    #[test]
    fn absurd_dimensions_are_refused_with_their_value() {
        for (field, value) in [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(1u64 << 40)),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(0)),
            ("num_hidden_layers", json!(100_000)),
            ("vocab_size", json!(u64::MAX)),
            ("head_dim", json!(0)),
            ("rms_norm_eps", json!(0.0)),
            ("rms_norm_eps", json!(-1e-5)),
            ("rope_theta", json!(0)),
        ] {
            match with(&json!({ field: value })) {
                Err(ConfigError::OutOfRange { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field} = {value}: {other:?}"),
            }
        }
        for changes in
            [json!({"num_attention_heads": 7}), json!({"num_key_value_heads": 3}), json!({"head_dim": 7})]
        {
            assert!(matches!(with(&changes), Err(ConfigError::NotAMultiple { .. })));
        }
        assert_eq!(
            with(&json!({"eos_token_id": [2, 512]})),
            Err(ConfigError::TokenOutside { field: "eos_token_id", id: 512, vocab_size: 512 })
        );
        for changes in
            [json!({"hidden_size": -1}), json!({"hidden_size": "64"}), json!({"eos_token_id": "</s>"})]
        {
            assert!(matches!(with(&changes), Err(ConfigError::Json { .. })));
        }
    }

    #[test]
    fn what_is_not_a_config_is_refused() {
        for bytes in [&b""[..], b"null", b"[1]", b"{", b"\xff\xfe"] {
            assert!(ModelConfig::parse(bytes).is_err());
        }
        let huge = vec![b' '; SIZE_LIMIT + 1];
        assert_eq!(
            ModelConfig::parse(&huge),
            Err(ConfigError::TooLarge { size: SIZE_LIMIT + 1, limit: SIZE_LIMIT })
        );
    }
}
