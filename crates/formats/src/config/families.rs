//! What each family writes in its `config.json`, with the defaults of transformers' config classes, as one description.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Activation, Architecture, BlockForm, Classifier, ClassifierForm, ConfigError, EndsForm, Head,
    ModelConfig, NormKind, NormPlace, Rope, RopeScaling,
};

/// Reads a config of any family. The caller checks the numbers.
pub(super) fn read(json: &Value) -> Result<ModelConfig, ConfigError> {
    let architecture = architecture(json)?;
    let raw: Raw = Raw::deserialize(json).map_err(|error| ConfigError::Json { reason: error.to_string() })?;
    if !raw.quantization_config.is_null() {
        return Err(unsupported("quantization_config", &raw.quantization_config));
    }
    match architecture {
        Architecture::Gpt2 => gpt2(&raw),
        Architecture::Bert | Architecture::Roberta => encoder(&raw, architecture, json),
        _ => decoder(&raw, architecture),
    }
}

/// The family by the architecture's name, or by `model_type` where none is named.
fn architecture(config: &Value) -> Result<Architecture, ConfigError> {
    let named = config.get("architectures").and_then(Value::as_array).and_then(|names| names.first());
    let model_type = config.get("model_type").and_then(Value::as_str);
    let found = match named.and_then(Value::as_str) {
        Some(name) => match name {
            "LlamaForCausalLM" | "LlamaModel" => Some(Architecture::Llama),
            "MistralForCausalLM" | "MistralModel" => Some(Architecture::Mistral),
            "Qwen2ForCausalLM" | "Qwen2Model" => Some(Architecture::Qwen2),
            "Qwen3ForCausalLM" | "Qwen3Model" => Some(Architecture::Qwen3),
            "Gemma3ForCausalLM" | "Gemma3TextModel" => Some(Architecture::Gemma3),
            "GPT2LMHeadModel" | "GPT2Model" => Some(Architecture::Gpt2),
            "BertModel" | "BertForSequenceClassification" | "BertForMaskedLM" | "BertForPreTraining" => {
                Some(Architecture::Bert)
            }
            "RobertaModel" | "RobertaForSequenceClassification" | "RobertaForMaskedLM" => {
                Some(Architecture::Roberta)
            }
            _ => None,
        },
        None => match model_type {
            Some("llama") => Some(Architecture::Llama),
            Some("mistral") => Some(Architecture::Mistral),
            Some("qwen2") => Some(Architecture::Qwen2),
            Some("qwen3") => Some(Architecture::Qwen3),
            Some("gemma3_text") => Some(Architecture::Gemma3),
            Some("gpt2") => Some(Architecture::Gpt2),
            Some("bert") => Some(Architecture::Bert),
            Some("roberta") => Some(Architecture::Roberta),
            _ => None,
        },
    };
    found.ok_or_else(|| {
        let name = named.and_then(Value::as_str).or(model_type).unwrap_or("model of no named architecture");
        ConfigError::UnsupportedArchitecture { found: name.chars().take(100).collect() }
    })
}

/// The fields of `config.json` that matter, as they are written.
#[derive(Deserialize)]
struct Raw {
    // Most families.
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<i64>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Value,
    #[serde(default)]
    rope_parameters: Value,
    #[serde(default)]
    quantization_config: Value,
    // Windows.
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    sliding_window_pattern: Option<u64>,
    layer_types: Option<Vec<String>>,
    // Gemma 3.
    rope_local_base_freq: Option<f64>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default)]
    attn_logit_softcapping: Value,
    #[serde(default)]
    final_logit_softcapping: Value,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    // GPT-2.
    n_embd: Option<u64>,
    n_inner: Option<u64>,
    n_layer: Option<u64>,
    n_head: Option<u64>,
    n_positions: Option<u64>,
    activation_function: Option<String>,
    layer_norm_epsilon: Option<f64>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    add_cross_attention: Option<bool>,
    // BERT.
    layer_norm_eps: Option<f64>,
    type_vocab_size: Option<u64>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
    num_labels: Option<u64>,
    id2label: Option<std::collections::BTreeMap<String, String>>,
    problem_type: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "eos_token_id must be a token or a list of tokens")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// A number too large for a 32-bit browser is too large for `check`, which names it.
fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn needed(field: &'static str, value: Option<u64>) -> Result<usize, ConfigError> {
    value.map(size).ok_or_else(|| ConfigError::Json { reason: format!("missing field `{field}`") })
}

fn unsupported(field: &'static str, value: &dyn ToString) -> ConfigError {
    ConfigError::UnsupportedFeature { field, value: value.to_string().chars().take(200).collect() }
}

fn activation(
    field: &'static str,
    name: Option<&str>,
    default: Activation,
) -> Result<Activation, ConfigError> {
    match name {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => Err(unsupported(field, &format!("\"{other}\""))),
    }
}

impl Raw {
    fn eos(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![*id],
            Some(OneOrMany::Many(ids)) => ids.clone(),
        }
    }

    /// The rotary embedding of one kind of layers. Newer transformers (5.0) moved it into `rope_parameters`, which has
    /// an entry a kind where there are two.
    fn rope(&self, kind: &str, theta: f64, scaled: bool) -> Result<Rope, ConfigError> {
        let parameters = match self.rope_parameters.get(kind) {
            Some(own) => own,
            None => &self.rope_parameters,
        };
        let theta = parameters.get("rope_theta").and_then(Value::as_f64).unwrap_or(theta);
        let nested = rope_scaling("rope_parameters", parameters)?;
        let scaling = match nested {
            RopeScaling::None if scaled => rope_scaling("rope_scaling", &self.rope_scaling)?,
            nested => nested,
        };
        Ok(Rope { theta, scaling })
    }
}

fn rope_scaling(field: &'static str, value: &Value) -> Result<RopeScaling, ConfigError> {
    let refused = || unsupported(field, value);
    let number = |name: &str| value.get(name).and_then(Value::as_f64).ok_or_else(refused);
    if value.get("partial_rotary_factor").is_some_and(|factor| factor.as_f64() != Some(1.0)) {
        return Err(refused());
    }
    let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
    match kind {
        None | Some("default") if value.get("factor").is_none_or(Value::is_null) => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: value
                .get("original_max_position_embeddings")
                .and_then(Value::as_u64)
                .map(size)
                .ok_or_else(refused)?,
        }),
        _ => Err(refused()),
    }
}

/// Llama, Mistral, Qwen2, Qwen3, Gemma 3: RMS norms, rotary positions, a gated MLP.
fn decoder(raw: &Raw, architecture: Architecture) -> Result<ModelConfig, ConfigError> {
    let gemma = architecture == Architecture::Gemma3;
    let hidden_size = needed("hidden_size", raw.hidden_size)?;
    let num_hidden_layers = needed("num_hidden_layers", raw.num_hidden_layers)?;
    let heads = needed("num_attention_heads", raw.num_attention_heads)?;
    for (field, value) in [
        ("attn_logit_softcapping", &raw.attn_logit_softcapping),
        ("final_logit_softcapping", &raw.final_logit_softcapping),
    ] {
        if !value.is_null() {
            return Err(unsupported(field, value));
        }
    }
    if raw.use_bidirectional_attention == Some(true) {
        return Err(unsupported("use_bidirectional_attention", &true));
    }
    // What the config classes take where the file says nothing.
    let (kv_default, head_default, positions, theta) = match architecture {
        Architecture::Mistral => (8, None, 131_072, 1e4),
        Architecture::Qwen2 => (32, None, 32_768, 1e4),
        Architecture::Qwen3 => (32, Some(128), 32_768, 1e4),
        Architecture::Gemma3 => (4, Some(256), 131_072, 1e6),
        _ => (heads, None, 2048, 1e4),
    };
    let theta = raw.rope_theta.unwrap_or(theta);
    // Of no heads, `check` tells.
    let plain_head = hidden_size.checked_div(heads).unwrap_or(1);
    let head_dim = raw.head_dim.map_or(head_default.unwrap_or(plain_head), size);
    if raw.head_dim.is_none() && head_default.is_none() {
        super::multiple("hidden_size", hidden_size, "num_attention_heads", heads.max(1))?;
    }
    let (field, act, default) = if gemma {
        ("hidden_activation", raw.hidden_activation.as_deref(), Activation::GeluTanh)
    } else {
        ("hidden_act", raw.hidden_act.as_deref(), Activation::Silu)
    };
    let qwen2 = architecture == Architecture::Qwen2;
    let biased = raw.attention_bias.unwrap_or(false);
    let (window, windowed) = windows(raw, architecture, num_hidden_layers)?;
    let local_rope = gemma.then(|| {
        let theta = raw.rope_local_base_freq.unwrap_or(1e4);
        raw.rope("sliding_attention", theta, false)
    });
    let scale = match raw.query_pre_attn_scalar.filter(|_| gemma) {
        Some(scalar) => scalar,
        None if gemma => 256.0,
        None => head_dim as f64,
    };
    Ok(ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: needed("intermediate_size", raw.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: raw.num_key_value_heads.map_or(kv_default, size),
        head_dim,
        vocab_size: needed("vocab_size", raw.vocab_size)?,
        max_position_embeddings: raw.max_position_embeddings.map_or(positions, size),
        norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(gemma),
        bos_token_id: raw.bos_token_id,
        eos_token_ids: raw.eos(),
        block: BlockForm {
            norm: if gemma { NormKind::RmsPlusOne } else { NormKind::Rms },
            norm_place: if gemma { NormPlace::Around } else { NormPlace::Before },
            qk_norm: gemma || architecture == Architecture::Qwen3,
            qkv_bias: qwen2 || biased,
            o_bias: biased && !qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false) && architecture == Architecture::Llama,
            fused_qkv: false,
            transposed: false,
            causal: true,
            attention_scale: scale.powf(-0.5),
            rope: Some(raw.rope("full_attention", theta, true)?),
            local_rope: local_rope.transpose()?,
            window,
            windowed,
            gated: true,
            activation: activation(field, act, default)?,
        },
        ends: EndsForm {
            embedding_scale: if gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            first_position: None,
            token_types: 0,
            embedding_norm: false,
            final_norm: true,
            head: Head::Language,
        },
    })
}

/// Which blocks see only what is near. The explicit list (transformers 4.53) wins over each family's own rule.
fn windows(
    raw: &Raw,
    architecture: Architecture,
    layers: usize,
) -> Result<(Option<usize>, Vec<bool>), ConfigError> {
    let window = match architecture {
        Architecture::Mistral => raw.sliding_window,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            raw.sliding_window.filter(|_| raw.use_sliding_window == Some(true))
        }
        Architecture::Gemma3 => Some(raw.sliding_window.unwrap_or(4096)),
        _ => None,
    };
    // A list may have as many layers as the config claims: `check` has not seen the number yet.
    let layers = layers.min(1 << 10);
    let Some(window) = window.map(size) else {
        return Ok((None, Vec::new()));
    };
    let windowed = match (&raw.layer_types, architecture) {
        (Some(types), Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Gemma3) => {
            let kind = |kind: &String| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(unsupported("layer_types", &format!("\"{other}\""))),
            };
            types.iter().map(kind).collect::<Result<_, _>>()?
        }
        (_, Architecture::Mistral) => vec![true; layers],
        (_, Architecture::Gemma3) => {
            let pattern = size(raw.sliding_window_pattern.unwrap_or(6)).max(1);
            (0..layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()
        }
        _ => {
            let first = raw.max_window_layers.map_or(28, size);
            (0..layers).map(|layer| layer >= first).collect()
        }
    };
    Ok((Some(window), windowed))
}

/// GPT-2: learned positions, layer norms, one map for queries, keys and values.
fn gpt2(raw: &Raw) -> Result<ModelConfig, ConfigError> {
    for (field, value, right) in [
        ("scale_attn_weights", raw.scale_attn_weights, true),
        ("scale_attn_by_inverse_layer_idx", raw.scale_attn_by_inverse_layer_idx, false),
        ("add_cross_attention", raw.add_cross_attention, false),
    ] {
        if value.is_some_and(|value| value != right) {
            return Err(unsupported(field, &!right));
        }
    }
    let hidden_size = raw.n_embd.map_or(768, size);
    let heads = raw.n_head.map_or(12, size);
    super::multiple("n_embd", hidden_size, "n_head", heads.max(1))?;
    let head_dim = hidden_size.checked_div(heads).unwrap_or(1);
    let act = raw.activation_function.as_deref();
    Ok(ModelConfig {
        architecture: Architecture::Gpt2,
        hidden_size,
        intermediate_size: raw.n_inner.map_or(hidden_size.saturating_mul(4), size),
        num_hidden_layers: raw.n_layer.map_or(12, size),
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: raw.vocab_size.map_or(50_257, size),
        max_position_embeddings: raw.n_positions.map_or(1024, size),
        norm_eps: raw.layer_norm_epsilon.unwrap_or(1e-5),
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(true),
        bos_token_id: raw.bos_token_id,
        eos_token_ids: raw.eos(),
        block: BlockForm {
            norm: NormKind::Layer,
            norm_place: NormPlace::Before,
            qk_norm: false,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            fused_qkv: true,
            transposed: true,
            causal: true,
            attention_scale: (head_dim as f64).powf(-0.5),
            rope: None,
            local_rope: None,
            window: None,
            windowed: Vec::new(),
            gated: false,
            activation: activation("activation_function", act, Activation::GeluTanh)?,
        },
        ends: EndsForm {
            embedding_scale: 1.0,
            first_position: Some(0),
            token_types: 0,
            embedding_norm: false,
            final_norm: true,
            head: Head::Language,
        },
    })
}

/// BERT and RoBERTa: the norm after the sum, attention in both directions, a head on the first position.
fn encoder(raw: &Raw, architecture: Architecture, json: &Value) -> Result<ModelConfig, ConfigError> {
    if raw.is_decoder == Some(true) {
        return Err(unsupported("is_decoder", &true));
    }
    if let Some(kind) = raw.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(unsupported("position_embedding_type", &format!("\"{kind}\"")));
    }
    let roberta = architecture == Architecture::Roberta;
    let hidden_size = raw.hidden_size.map_or(768, size);
    let heads = raw.num_attention_heads.map_or(12, size);
    super::multiple("hidden_size", hidden_size, "num_attention_heads", heads.max(1))?;
    let head_dim = hidden_size.checked_div(heads).unwrap_or(1);
    let padding = raw.pad_token_id.unwrap_or(if roberta { 1 } else { 0 });
    let positions = raw.max_position_embeddings.map_or(512, size);
    let first = if roberta { usize::try_from(padding.saturating_add(1)).unwrap_or(0) } else { 0 };
    // As text, "10" comes before "2".
    let labels = raw.id2label.iter().flatten();
    let mut labels: Vec<(usize, &String)> =
        labels.filter_map(|(id, label)| Some((id.parse().ok()?, label))).collect();
    labels.sort_unstable();
    let outputs = raw.num_labels.map_or(if labels.is_empty() { 2 } else { labels.len() }, size);
    let named = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let has_head = named.is_some_and(|name| name.ends_with("ForSequenceClassification"));
    let regression = match raw.problem_type.as_deref() {
        Some("regression") => true,
        Some("multi_label_classification") => {
            return Err(unsupported("problem_type", &"\"multi_label_classification\""));
        }
        Some(_) => false,
        None => outputs == 1,
    };
    let form = if roberta { ClassifierForm::Dense } else { ClassifierForm::Pooled };
    Ok(ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: raw.intermediate_size.map_or(3072, size),
        num_hidden_layers: raw.num_hidden_layers.map_or(12, size),
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: raw.vocab_size.map_or(if roberta { 50_265 } else { 30_522 }, size),
        max_position_embeddings: positions,
        norm_eps: raw.layer_norm_eps.unwrap_or(1e-12),
        tie_word_embeddings: true,
        bos_token_id: raw.bos_token_id,
        eos_token_ids: raw.eos(),
        block: BlockForm {
            norm: NormKind::Layer,
            norm_place: NormPlace::After,
            qk_norm: false,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            fused_qkv: false,
            transposed: false,
            causal: false,
            attention_scale: (head_dim as f64).powf(-0.5),
            rope: None,
            local_rope: None,
            window: None,
            windowed: Vec::new(),
            gated: false,
            activation: activation("hidden_act", raw.hidden_act.as_deref(), Activation::Gelu)?,
        },
        ends: EndsForm {
            embedding_scale: 1.0,
            first_position: Some(first),
            token_types: raw.type_vocab_size.map_or(2, size),
            embedding_norm: true,
            final_norm: false,
            head: Head::Classifier(Classifier {
                form,
                outputs,
                regression,
                labels: labels
                    .into_iter()
                    .filter(|_| has_head)
                    .map(|(_, label)| label.chars().take(100).collect())
                    .collect(),
            }),
        },
    })
}
