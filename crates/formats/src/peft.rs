//! LoRA adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{ConfigError, ModelConfig};
use crate::files::{Files, FilesError, read_all};
use crate::layout::path;
use crate::projection::Projection;
use crate::weights::{TensorIndex, WeightsError, write_safetensors};

/// The file of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// No real `adapter_config.json` is near this size.
const CONFIG_LIMIT: u64 = 1 << 20;
/// Of the ranks in use (1 to 256) far the largest; one beyond it is a damaged file.
const MAX_RANK: usize = 4096;

/// The settings of a LoRA adapter: `y = xW + (lora_alpha / r) · (xAᵀ)Bᵀ` on each of `target_modules`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The rank.
    pub r: usize,
    /// The scale, before it is divided by the rank.
    pub lora_alpha: f64,
    /// The names of the projections that it is on.
    pub target_modules: Vec<String>,
    /// The model that it belongs to, as PEFT looks for it.
    pub base_model_name_or_path: Option<String>,
}

/// The two factors on one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// `lora_A`, `[r, in]`, row by row.
    pub a: Vec<f32>,
    /// `lora_B`, `[out, r]`, row by row.
    pub b: Vec<f32>,
}

/// A LoRA adapter: a pair for every target of every block.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// The factors by block and projection.
    pub weights: BTreeMap<(usize, Projection), LoraPair>,
}

/// Why an adapter could not be read or written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PeftError {
    /// The bytes could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The weights could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Not a LoRA adapter's settings.
    #[error(
        "adapter_config.json cannot be read: {reason}; is it the adapter_config.json of a PEFT LoRA adapter?"
    )]
    Json {
        /// What is wrong.
        reason: String,
    },
    /// A kind of adapter that is not done here.
    #[error("this adapter has \"{field}\": {value}, which Baton cannot do; use a plain LoRA adapter")]
    Unsupported {
        /// The field of `adapter_config.json`.
        field: String,
        /// Its value, as JSON.
        value: String,
    },
    /// A module that LoRA is not put on here.
    #[error(
        "this adapter is on {found}, which the model's blocks do not have; does it belong to this model?"
    )]
    UnknownTarget {
        /// The module's name.
        found: String,
    },
    /// A rank out of range.
    #[error("this adapter has rank {r}; it must be between 1 and {limit}")]
    Rank {
        /// The rank.
        r: usize,
        /// The largest rank allowed.
        limit: usize,
    },
    /// A scale out of range.
    #[error("this adapter has lora_alpha {alpha}; it must be a positive number")]
    Alpha {
        /// `lora_alpha`.
        alpha: f64,
    },
    /// A pair where the settings or the model have no place for one.
    #[error("this adapter has weights for {found}, which its settings or the model have no place for")]
    Unexpected {
        /// The tensor's, or the projection's, name.
        found: String,
    },
    /// No pair where there should be one.
    #[error("this adapter has no weights for {path}, which its settings name")]
    Missing {
        /// The projection's path in the model.
        path: String,
    },
    /// A factor of another length than its shape has.
    #[error("this adapter has {found} values where {path} needs {expected}; it belongs to another model")]
    WrongLength {
        /// The factor's name.
        path: String,
        /// How many values its shape has.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A factor that is not made of numbers.
    #[error("this adapter's {path} holds {value}, which is no number; the training that made it went wrong")]
    NotFinite {
        /// The factor's name.
        path: String,
        /// The first such value.
        value: f32,
    },
}

impl AdapterConfig {
    /// Reads an `adapter_config.json`, refusing what plain LoRA is not.
    pub fn parse(json: &[u8]) -> Result<Self, PeftError> {
        let invalid = |reason: String| PeftError::Json { reason };
        let fields: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        refuse_unsupported(&fields)?;
        let number = |name: &str| {
            fields
                .get(name)
                .and_then(Value::as_f64)
                .ok_or_else(|| invalid(format!("{name} is missing or no number")))
        };
        let r = fields
            .get("r")
            .and_then(Value::as_u64)
            .ok_or_else(|| invalid("r is missing or no number".to_owned()))?;
        let targets = fields.get("target_modules").unwrap_or(&Value::Null);
        let targets = targets.as_array().ok_or_else(|| unsupported("target_modules", targets))?;
        let names = targets.iter().map(|name| name.as_str().map(str::to_owned));
        let config = Self {
            r: usize::try_from(r).unwrap_or(usize::MAX),
            lora_alpha: number("lora_alpha")?,
            target_modules: names
                .collect::<Option<_>>()
                .ok_or_else(|| invalid("target_modules is no list of names".to_owned()))?,
            base_model_name_or_path: fields
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_owned),
        };
        config.check()?;
        Ok(config)
    }

    /// The `adapter_config.json` that PEFT reads: the fields that every version of it knows.
    pub fn to_json(&self) -> Result<String, PeftError> {
        self.check()?;
        // PEFT declares it an integer.
        let alpha = if self.lora_alpha.fract() == 0.0 && self.lora_alpha < 1e15 {
            json!(self.lora_alpha as u64)
        } else {
            json!(self.lora_alpha)
        };
        let written = Written {
            alpha_pattern: json!({}),
            auto_mapping: None,
            base_model_name_or_path: self.base_model_name_or_path.as_deref(),
            bias: "none",
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true,
            layers_pattern: None,
            layers_to_transform: None,
            lora_alpha: alpha,
            lora_dropout: 0.0,
            modules_to_save: None,
            peft_type: "LORA",
            r: self.r,
            rank_pattern: json!({}),
            revision: None,
            target_modules: &self.target_modules,
            task_type: "CAUSAL_LM",
            use_dora: false,
            use_rslora: false,
        };
        serde_json::to_string_pretty(&written).map_err(|error| PeftError::Json { reason: error.to_string() })
    }

    /// Refuses numbers that make no adapter.
    fn check(&self) -> Result<(), PeftError> {
        if !(1..=MAX_RANK).contains(&self.r) {
            return Err(PeftError::Rank { r: self.r, limit: MAX_RANK });
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return Err(PeftError::Alpha { alpha: self.lora_alpha });
        }
        if self.target_modules.is_empty() {
            return Err(PeftError::UnknownTarget { found: "no module at all".to_owned() });
        }
        Ok(())
    }

    /// The projections of `model` that it is on, sorted; refuses settings that make no adapter.
    pub fn projections(&self, model: &ModelConfig) -> Result<Vec<Projection>, PeftError> {
        self.check()?;
        let unknown = |error| match error {
            ConfigError::UnknownTarget { found, .. } => PeftError::UnknownTarget { found },
            other => PeftError::UnknownTarget { found: other.to_string() },
        };
        model.targets(&self.target_modules).map_err(unknown)
    }
}

impl Adapter {
    /// `adapter_config.json` and `adapter_model.safetensors`, as PEFT's `save_pretrained` writes them.
    pub fn to_files(&self, model: &ModelConfig) -> Result<(String, Vec<u8>), PeftError> {
        let places = places(&self.config, model)?;
        let mut tensors = Vec::with_capacity(2 * places.len());
        for place in &places {
            let pair = self
                .weights
                .get(&place.key)
                .ok_or_else(|| PeftError::Missing { path: place.path.clone() })?;
            for (factor, values) in place.factors().into_iter().zip([&pair.a, &pair.b]) {
                let expected = factor.shape.iter().product();
                if values.len() != expected {
                    return Err(PeftError::WrongLength { path: factor.name, expected, found: values.len() });
                }
                check_finite(&factor.name, values)?;
                tensors.push((factor.name, factor.shape.to_vec(), values.as_slice()));
            }
        }
        let stray = self.weights.keys().find(|key| !places.iter().any(|place| place.key == **key));
        if let Some((block, projection)) = stray {
            return Err(PeftError::Unexpected { found: path(model, *block, *projection) });
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok((self.config.to_json()?, write_safetensors(&tensors, &metadata)?))
    }

    /// Reads an adapter for `model`; one that does not fit it is refused.
    pub async fn read(files: &impl Files, model: &ModelConfig) -> Result<Self, PeftError> {
        let config = AdapterConfig::parse(&read_all(files, CONFIG_FILE, CONFIG_LIMIT).await?)?;
        let places = places(&config, model)?;
        let index = TensorIndex::open(files, WEIGHTS_FILE).await?;
        let wanted: Vec<(String, Vec<usize>)> = places
            .iter()
            .flat_map(Place::factors)
            .map(|factor| (factor.name, factor.shape.to_vec()))
            .collect();
        let expected: BTreeMap<&str, ()> = wanted.iter().map(|(name, _)| (name.as_str(), ())).collect();
        if let Some(stray) = index.names().find(|name| !expected.contains_key(name)) {
            return Err(PeftError::Unexpected { found: stray.chars().take(200).collect() });
        }
        let mut tensors = index.read_many_f32(files, &wanted, |_| ()).await?;
        let mut weights = BTreeMap::new();
        for place in places {
            let [a, b] = place.factors().map(|factor| {
                let values = tensors.remove(&factor.name).unwrap_or_default();
                check_finite(&factor.name, &values).map(|()| values)
            });
            weights.insert(place.key, LoraPair { a: a?, b: b? });
        }
        Ok(Self { config, weights })
    }
}

/// A projection of a block that a pair belongs to.
struct Place {
    key: (usize, Projection),
    path: String,
    r: usize,
    out: usize,
    input: usize,
}

/// A factor as PEFT stores it.
struct Factor {
    name: String,
    shape: [usize; 2],
}

impl Place {
    /// `lora_A` and `lora_B`.
    fn factors(&self) -> [Factor; 2] {
        let name = |factor: &str| format!("base_model.model.{}.{factor}.weight", self.path);
        [
            Factor { name: name("lora_A"), shape: [self.r, self.input] },
            Factor { name: name("lora_B"), shape: [self.out, self.r] },
        ]
    }
}

/// Every place of an adapter with these settings on that model.
fn places(config: &AdapterConfig, model: &ModelConfig) -> Result<Vec<Place>, PeftError> {
    let projections = config.projections(model)?;
    let places = (0..model.num_hidden_layers).flat_map(|block| {
        projections.iter().map(move |projection| {
            let (out, input) = projection.shape(model);
            Place {
                key: (block, *projection),
                path: path(model, block, *projection),
                r: config.r,
                out,
                input,
            }
        })
    });
    Ok(places.collect())
}

fn check_finite(path: &str, values: &[f32]) -> Result<(), PeftError> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(PeftError::NotFinite { path: path.to_owned(), value: *value }),
        None => Ok(()),
    }
}

/// Refuses every setting that changes what the weights mean.
fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), PeftError> {
    let get = |field: &str| fields.get(field).unwrap_or(&Value::Null);
    for (field, plain) in [("peft_type", "LORA"), ("bias", "none"), ("task_type", "CAUSAL_LM")] {
        let value = get(field);
        let left_out = value.is_null() && field != "peft_type";
        if value != plain && !left_out {
            return Err(unsupported(field, value));
        }
    }
    // Fields that are off when null, false or empty, from PEFT 0.4 to 0.21.
    for field in [
        "use_dora",
        "use_rslora",
        "use_qalora",
        "use_bdlora",
        "lora_bias",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "exclude_modules",
        "layers_to_transform",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ] {
        let value = get(field);
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            _ => false,
        };
        if !off {
            return Err(unsupported(field, value));
        }
    }
    // These ways to begin change the base model's weights, so the adapter alone does not say what the model is.
    let init = get("init_lora_weights");
    let changes_base = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    if init.as_str().is_some_and(|init| changes_base.iter().any(|prefix| init.starts_with(prefix))) {
        return Err(unsupported("init_lora_weights", init));
    }
    Ok(())
}

fn unsupported(field: &str, value: &Value) -> PeftError {
    PeftError::Unsupported { field: field.to_owned(), value: value.to_string().chars().take(200).collect() }
}

/// `adapter_config.json` as it is written.
#[derive(Serialize)]
struct Written<'a> {
    alpha_pattern: Value,
    auto_mapping: Option<()>,
    base_model_name_or_path: Option<&'a str>,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    layers_pattern: Option<()>,
    layers_to_transform: Option<()>,
    lora_alpha: Value,
    lora_dropout: f64,
    modules_to_save: Option<()>,
    peft_type: &'static str,
    r: usize,
    rank_pattern: Value,
    revision: Option<()>,
    target_modules: &'a [String],
    task_type: &'static str,
    use_dora: bool,
    use_rslora: bool,
}
