//! `config.json`: which model this is, checked to be one that Baton can run.
//!
//! A family is not code of its own but a filling of one description: [`BlockForm`] says what a transformer block of
//! the model consists of and [`EndsForm`] what stands before the first block and after the last. Whoever runs a model
//! reads these and never asks which family it is; where its tensors are called what is in [`crate::layout`].

mod families;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::layout;
use crate::projection::Projection;

/// No real `config.json` is near this size.
const SIZE_LIMIT: usize = 1 << 20;

/// The families that Baton can run.
const SUPPORTED: &str =
    "Llama, SmolLM, TinyLlama, Mistral, Qwen2, Qwen3, Gemma 3 (text), GPT-2, BERT, MiniLM and RoBERTa";

/// A family of transformers: how its files name things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, SmolLM2, TinyLlama.
    Llama,
    /// Mistral 7B and its kin.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Gemma 3, the text models.
    Gemma3,
    /// GPT-2.
    Gpt2,
    /// BERT, MiniLM.
    Bert,
    /// RoBERTa.
    Roberta,
}

impl Architecture {
    /// As a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::Gemma3 => "Gemma 3",
            Self::Gpt2 => "GPT-2",
            Self::Bert => "BERT",
            Self::Roberta => "RoBERTa",
        }
    }
}

/// The dimensions of a model, in the words of Hugging Face's `config.json`, and what it consists of.
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
    /// ε of every norm.
    pub norm_eps: f64,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// What a block consists of.
    pub block: BlockForm,
    /// What stands around the blocks.
    pub ends: EndsForm,
}

/// What a transformer block consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockForm {
    /// The kind of its norms.
    pub norm: NormKind,
    /// Where they stand.
    pub norm_place: NormPlace,
    /// Whether queries and keys are normed (RMS, over each head) before they are rotated.
    pub qk_norm: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub o_bias: bool,
    /// Whether the maps of the MLP have biases.
    pub mlp_bias: bool,
    /// Whether queries, keys and values are one map, [`Projection::Qkv`]: `[q; k; v]` along its outputs.
    pub fused_qkv: bool,
    /// Whether maps are stored as `[in, out]` (GPT-2's `Conv1D`).
    pub transposed: bool,
    /// Whether a position sees only itself and what precedes it. Otherwise it sees the whole sample.
    pub causal: bool,
    /// What the products of queries and keys are multiplied by.
    pub attention_scale: f64,
    /// The rotary embedding; none where positions are learned.
    pub rope: Option<Rope>,
    /// That of the windowed blocks, where it is another.
    pub local_rope: Option<Rope>,
    /// How many positions, itself included, a position of a windowed block sees.
    pub window: Option<usize>,
    /// Which blocks are windowed; empty is none. Otherwise one a block.
    pub windowed: Vec<bool>,
    /// Whether the MLP is gated: `down(act(gate(x)) · up(x))`. Otherwise it is `down(act(up(x)))`.
    pub gated: bool,
    /// The MLP's activation.
    pub activation: Activation,
}

/// A kind of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// `x / rms(x) · g` (Zhang & Sennrich, 2019, arXiv:1910.07467).
    Rms,
    /// `x / rms(x) · (1 + g)`: Gemma's.
    RmsPlusOne,
    /// `(x - mean(x)) / std(x) · g + b` (Ba et al., 2016, arXiv:1607.06450).
    Layer,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormPlace {
    /// `h + f(norm(h))`.
    Before,
    /// `h + norm'(f(norm(h)))`: Gemma 3.
    Around,
    /// `norm(h + f(h))`: the original transformer, BERT.
    After,
}

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// `x · Φ(x)` by the error function.
    Gelu,
    /// GELU by its tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A rotary embedding (Su et al., 2021, arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Its base.
    pub theta: f64,
    /// How it is stretched.
    pub scaling: RopeScaling,
}

/// How a rotary embedding is stretched to longer sequences than it was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// It is not.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies are divided by `factor`, high ones stay, those between are interpolated
    /// (transformers' `_compute_llama3_parameters`).
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// `original / low_freq_factor` is the wavelength above which a frequency is low.
        low_freq_factor: f64,
        /// `original / high_freq_factor` is the wavelength below which a frequency is high.
        high_freq_factor: f64,
        /// The length of the sequences of the first training.
        original_max_position_embeddings: usize,
    },
}

/// What stands before the first block and after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndsForm {
    /// What token embeddings are multiplied by.
    pub embedding_scale: f64,
    /// Learned positions: a table of `max_position_embeddings` rows, of which the first token takes the one of this
    /// number (0, but RoBERTa's begin after its padding token).
    pub first_position: Option<usize>,
    /// Rows of the table of token types; 0 is no table.
    pub token_types: usize,
    /// Whether the sum of the embeddings is normed.
    pub embedding_norm: bool,
    /// Whether the last block's output is normed.
    pub final_norm: bool,
    /// What is made of it.
    pub head: Head,
}

/// What a model makes of its hidden states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// The next token, at every position.
    Language,
    /// Numbers for the whole sample, from its first position.
    Classifier(Classifier),
}

/// A head on the first position's hidden state `x`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classifier {
    /// How it is made.
    pub form: ClassifierForm,
    /// How many numbers it gives: classes, or 1 for a value.
    pub outputs: usize,
    /// Whether its one number is a value (the loss is the mean square) and not a class's score (cross entropy).
    pub regression: bool,
    /// What the classes are called, as `id2label` has them; empty where the file names none.
    pub labels: Vec<String>,
}

/// How a classification head is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassifierForm {
    /// BERT: `classifier(tanh(pooler(x)))`. The pooler is part of the frozen model, the classifier is trained.
    Pooled,
    /// RoBERTa: `out_proj(tanh(dense(x)))`, both trained.
    Dense,
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
    #[error("this model is a {found}, which Baton cannot train yet; choose one of {SUPPORTED}")]
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
    /// A module that the model's blocks do not have.
    #[error("this model has no \"{found}\" to put an adapter on; it has {known}, or say all-linear")]
    UnknownTarget {
        /// The module's name.
        found: String,
        /// Those that there are.
        known: String,
    },
    /// A head that this family cannot have.
    #[error(
        "a {family} model has no classification head here; choose a BERT, MiniLM or RoBERTa for labelled text"
    )]
    NoClassifier {
        /// The family.
        family: &'static str,
    },
}

/// The name that stands for every linear map of the blocks, as in PEFT.
pub const ALL_LINEAR: &str = "all-linear";

impl ModelConfig {
    /// Reads a `config.json`, refusing what Baton cannot run.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > SIZE_LIMIT {
            return Err(ConfigError::TooLarge { size: json.len(), limit: SIZE_LIMIT });
        }
        let read = |error: serde_json::Error| ConfigError::Json { reason: error.to_string() };
        let value: Value = serde_json::from_slice(json).map_err(read)?;
        let config = families::read(&value)?;
        config.check()?;
        Ok(config)
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
            ("num_labels", self.classifier().map_or(1, |head| head.outputs), MOST_LABELS),
            ("sliding_window", self.block.window.unwrap_or(1), 1 << 24),
            ("type_vocab_size", self.ends.token_types.max(1), 1 << 10),
        ] {
            in_range(field, value as f64, 1.0, most as f64)?;
        }
        in_range("the norms' epsilon", self.norm_eps, f64::MIN_POSITIVE, 0.1)?;
        in_range("the attention's scale", self.block.attention_scale, 1e-6, 1e3)?;
        in_range("the embedding's scale", self.ends.embedding_scale, 1e-6, 1e6)?;
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        for rope in self.block.rope.iter().chain(&self.block.local_rope) {
            rope.check()?;
            // The rotary embedding turns pairs.
            multiple("head_dim", self.head_dim, "a rotated pair", 2)?;
        }
        if let Some(first) = self.ends.first_position {
            in_range("the first position", first as f64, 0.0, (self.max_position_embeddings - 1) as f64)?;
        }
        let windowed = self.block.windowed.len();
        if windowed > 0 && (windowed != self.num_hidden_layers || self.block.window.is_none()) {
            return Err(ConfigError::UnsupportedFeature {
                field: "layer_types",
                value: format!("{windowed} entries for {} layers", self.num_hidden_layers),
            });
        }
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        for (field, id) in bos.chain(eos) {
            if u64::from(id) >= self.vocab_size as u64 {
                return Err(ConfigError::TokenOutside { field, id, vocab_size: self.vocab_size });
            }
        }
        Ok(())
    }

    /// The same model with a fresh head for labelled samples: `outputs` classes, or a value.
    ///
    /// A head that the file has is kept if it gives as many numbers of the same kind.
    pub fn with_classifier(mut self, outputs: usize, regression: bool) -> Result<Self, ConfigError> {
        in_range("num_labels", outputs as f64, 1.0, MOST_LABELS as f64)?;
        let form = match self.architecture {
            Architecture::Bert => ClassifierForm::Pooled,
            Architecture::Roberta => ClassifierForm::Dense,
            other => return Err(ConfigError::NoClassifier { family: other.name() }),
        };
        let labels = match self.ends.head {
            Head::Classifier(old) if old.outputs == outputs && old.regression == regression => old.labels,
            _ => Vec::new(),
        };
        self.ends.head = Head::Classifier(Classifier { form, outputs, regression, labels });
        Ok(self)
    }

    /// Whether it is an encoder: it reads a whole sample at once and labels it, and writes nothing.
    pub fn is_encoder(&self) -> bool {
        !self.block.causal
    }

    /// The head for labelled samples, if it has one.
    pub fn classifier(&self) -> Option<&Classifier> {
        match &self.ends.head {
            Head::Classifier(classifier) => Some(classifier),
            Head::Language => None,
        }
    }

    /// How many positions a position of this block sees; `None` is all that it may.
    pub fn window(&self, block: usize) -> Option<usize> {
        self.block.window.filter(|_| self.block.windowed.get(block).copied().unwrap_or(false))
    }

    /// The rotary embedding of this block.
    pub fn rope(&self, block: usize) -> Option<&Rope> {
        let local = self.block.local_rope.as_ref().filter(|_| self.window(block).is_some());
        local.or(self.block.rope.as_ref())
    }

    /// The linear maps of a block, in the order of [`Projection::ALL`].
    pub fn projections(&self) -> impl Iterator<Item = Projection> + Clone + use<> {
        let (fused, gated) = (self.block.fused_qkv, self.block.gated);
        Projection::ALL.into_iter().filter(move |projection| match projection {
            Projection::Q | Projection::K | Projection::V => !fused,
            Projection::Qkv => fused,
            Projection::Gate => gated,
            Projection::O | Projection::Up | Projection::Down => true,
        })
    }

    /// The maps that `names` mean by PEFT's rule (a name is the end of a module's path, whole words), in the order of
    /// [`Projection::ALL`]; [`ALL_LINEAR`] is all of them.
    pub fn targets(&self, names: &[String]) -> Result<Vec<Projection>, ConfigError> {
        let module = |projection| layout::module(self, projection);
        let means = |name: &str, projection| {
            name == ALL_LINEAR
                || format!(".{}.0.{}", layout::LAYERS, module(projection)).ends_with(&format!(".{name}"))
        };
        if let Some(stray) = names.iter().find(|name| !self.projections().any(|p| means(name, p))) {
            let known: Vec<_> = self.projections().map(module).collect();
            let found = stray.chars().take(200).collect();
            return Err(ConfigError::UnknownTarget { found, known: known.join(", ") });
        }
        Ok(self.projections().filter(|p| names.iter().any(|name| means(name, *p))).collect())
    }

    /// The names by which [`Self::targets`] and PEFT find these maps: the shortest ends of paths that mean no others.
    ///
    /// BERT's `output.dense` is also the end of `attention.output.dense`: where only the first is meant, no list of
    /// names says so, and the name means both.
    pub fn target_names(&self, projections: &[Projection]) -> Vec<String> {
        let name = |projection: &Projection| {
            let module = layout::module(self, *projection);
            let starts = module.rmatch_indices('.').map(|(dot, _)| dot + 1);
            let mut ends = starts.map(|start| &module[start..]);
            let only = |end: &&str| {
                let means = self.targets(&[(*end).to_owned()]).unwrap_or_default();
                means.iter().all(|found| projections.contains(found))
            };
            ends.find(only).unwrap_or(module).to_owned()
        };
        let mut names: Vec<_> = projections.iter().map(name).collect();
        names.dedup();
        names
    }

    /// The parameters of the whole model, without a head that is trained; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        let ends = layout::end_tensors(self).iter().map(|tensor| tensor.elements()).sum::<u64>();
        ends + self.num_hidden_layers as u64 * self.block_parameters()
    }

    /// The parameters of one block.
    pub fn block_parameters(&self) -> u64 {
        layout::block_tensors(self, 0).iter().map(|tensor| tensor.elements()).sum()
    }
}

/// More classes than any data set of a room has.
const MOST_LABELS: usize = 1 << 12;

impl Rope {
    fn check(&self) -> Result<(), ConfigError> {
        in_range("rope_theta", self.theta, 1.0, 1e12)?;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => in_range("rope_scaling factor", factor, 1e-3, 1e6),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                in_range("rope_scaling factor", factor, 1e-3, 1e6)?;
                in_range("low_freq_factor", low, 1e-3, 1e6)?;
                // Equal ones would divide by zero.
                in_range("high_freq_factor", high, low * (1.0 + 1e-9), 1e6)?;
                in_range("original_max_position_embeddings", original as f64, 1.0, f64::from(1 << 24))
            }
        }
    }
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

    fn theta(config: &ModelConfig) -> f64 {
        config.rope(0).unwrap().theta
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
        assert_eq!(config.norm_eps, 1e-5);
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
        assert_eq!((theta(&config), config.eos_token_ids.as_slice()), (500_000.0, [2, 3].as_slice()));
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
        assert_eq!((config.norm_eps, theta(&config)), (1e-6, 10_000.0));
        assert!(!config.tie_word_embeddings && config.eos_token_ids.is_empty());
    }

    #[test]
    fn another_architecture_is_named_and_refused() {
        let error = ModelConfig::parse(br#"{"architectures": ["MambaForCausalLM"], "hidden_size": 384}"#)
            .unwrap_err();
        assert_eq!(error, ConfigError::UnsupportedArchitecture { found: "MambaForCausalLM".to_owned() });
        let text = error.to_string();
        assert!(text.contains("MambaForCausalLM") && text.contains("SmolLM"), "{text}");
        assert!(matches!(
            with(&json!({"architectures": ["LlamaForSequenceClassification"]})),
            Err(ConfigError::UnsupportedArchitecture { .. })
        ));
    }

    #[test]
    fn features_that_change_the_numbers_are_refused() {
        for (field, value) in [
            ("hidden_act", json!("quick_gelu")),
            ("quantization_config", json!({"bits": 4})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
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
            ("the norms' epsilon", json!(0.0)),
            ("the norms' epsilon", json!(-1e-5)),
            ("rope_theta", json!(0)),
        ] {
            let key = if field.starts_with("the") { "rms_norm_eps" } else { field };
            match with(&json!({ key: value })) {
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
