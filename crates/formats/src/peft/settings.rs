//! `adapter_config.json`: what an adapter is on, with which ranks and scales, by PEFT's rules.

use std::collections::BTreeSet;

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{PeftError, cut};
use crate::config::{ALL_LINEAR, ModelConfig};
use crate::layout;
use crate::projection::Projection;

/// Of the ranks in use (1 to 256) far the largest; one beyond it is a damaged file.
const MAX_RANK: usize = 4096;
/// The longest regular expression compiled, in bytes; unsloth's, the longest in use, has about 300.
const PATTERN_LIMIT: usize = 4096;
/// The most names or patterns of a kind; PEFT names each module of a large model at the worst.
const NAMES_LIMIT: usize = 1 << 14;
/// The most memory that compiled patterns may take; those in use are a hundredth of it.
const COMPILED_LIMIT: usize = 8 << 20;
/// The heads that PEFT looks for in a classifier, which it writes whichever one the model has.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// The settings of a LoRA adapter: `y = xW + s · (xAᵀ)Bᵀ` on each map that it is on, `s` being `lora_alpha / r`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The rank, where `rank_pattern` has no other.
    pub r: usize,
    /// The scale before it is divided by the rank, where `alpha_pattern` has no other.
    pub lora_alpha: f64,
    /// The maps that it is on.
    pub target_modules: Targets,
    /// Ranks of some maps, by the end of the module's path or a regular expression for it; the first that fits counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the scale is divided by the rank's root instead (Kalajdzievski, 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// The model that it belongs to, as PEFT looks for it.
    pub base_model_name_or_path: Option<String>,
}

/// The maps that an adapter is on, in PEFT's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Ends of modules' paths, in whole words: `q_proj`, `attention.output.dense`.
    Names(Vec<String>),
    /// A regular expression that matches a module's whole path.
    Regex(String),
    /// Every linear map of the blocks.
    AllLinear,
}

impl From<Vec<String>> for Targets {
    fn from(names: Vec<String>) -> Self {
        if names.iter().any(|name| name == ALL_LINEAR) { Self::AllLinear } else { Self::Names(names) }
    }
}

/// A map of a block that an adapter is on.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The block, from 0.
    pub block: usize,
    /// The map.
    pub projection: Projection,
    /// Its path in the model.
    pub path: String,
    /// The rank of its pair.
    pub rank: usize,
    /// What the pair's product is multiplied by.
    pub scale: f64,
    /// The map's outputs.
    pub out: usize,
    /// The map's inputs.
    pub input: usize,
}

impl AdapterConfig {
    /// A plain adapter: one rank, one scale.
    pub fn new(r: usize, lora_alpha: f64, target_modules: impl Into<Targets>) -> Self {
        Self {
            r,
            lora_alpha,
            target_modules: target_modules.into(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            base_model_name_or_path: None,
        }
    }

    /// Reads an `adapter_config.json`, refusing what LoRA here is not.
    pub fn parse(json: &[u8]) -> Result<Self, PeftError> {
        let invalid = |error: serde_json::Error| PeftError::Json { reason: error.to_string() };
        let fields: Map<String, Value> = serde_json::from_slice(json).map_err(invalid)?;
        refuse_unsupported(&fields)?;
        let Read { r, lora_alpha, rank_pattern, alpha_pattern, use_rslora, base_model_name_or_path } =
            serde_json::from_slice(json).map_err(invalid)?;
        let targets = fields.get("target_modules").unwrap_or(&Value::Null);
        let target_modules = match targets {
            Value::String(all) if all.to_lowercase() == ALL_LINEAR => Targets::AllLinear,
            Value::String(pattern) => Targets::Regex(pattern.clone()),
            Value::Array(items) => {
                let names = items.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>();
                let reason = "target_modules is no list of names".to_owned();
                Targets::Names(names.ok_or(PeftError::Json { reason })?)
            }
            other => return Err(unsupported("target_modules", other)),
        };
        let patterns = rank_pattern.0.into_iter();
        let config = Self {
            r: size(r),
            lora_alpha,
            target_modules,
            rank_pattern: patterns.map(|(pattern, rank)| (pattern, size(rank))).collect(),
            alpha_pattern: alpha_pattern.0,
            use_rslora: use_rslora.unwrap_or(false),
            base_model_name_or_path,
        };
        config.rules()?;
        Ok(config)
    }

    /// The `adapter_config.json` that PEFT reads for this model: the fields that every version of it knows.
    pub fn to_json(&self, model: &ModelConfig) -> Result<String, PeftError> {
        self.rules()?;
        let classifier = model.classifier().is_some();
        let target_modules = match &self.target_modules {
            Targets::Names(given) => json!(given),
            Targets::Regex(pattern) => json!(pattern),
            // To PEFT the word means more than the blocks: BERT's pooler, for one.
            Targets::AllLinear => json!(model.target_names(&model.projections().collect::<Vec<_>>())),
        };
        let alphas = self.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.as_str(), number(*alpha)));
        let written = Written {
            alpha_pattern: Pairs(alphas.collect()),
            auto_mapping: None,
            base_model_name_or_path: self.base_model_name_or_path.as_deref(),
            bias: "none",
            fan_in_fan_out: model.block.transposed,
            inference_mode: true,
            init_lora_weights: true,
            layers_pattern: None,
            layers_to_transform: None,
            lora_alpha: number(self.lora_alpha),
            lora_dropout: 0.0,
            modules_to_save: classifier.then_some(CLASSIFIERS),
            peft_type: "LORA",
            r: self.r,
            rank_pattern: Pairs(
                self.rank_pattern.iter().map(|(pattern, r)| (pattern.as_str(), json!(r))).collect(),
            ),
            revision: None,
            target_modules,
            task_type: if classifier { "SEQ_CLS" } else { "CAUSAL_LM" },
            use_dora: false,
            use_rslora: self.use_rslora,
        };
        serde_json::to_string_pretty(&written).map_err(|error| PeftError::Json { reason: error.to_string() })
    }

    /// Every map of `model` that the adapter is on, block by block; refuses settings that make no adapter of it.
    pub fn places(&self, model: &ModelConfig) -> Result<Vec<Place>, PeftError> {
        let rules = self.rules()?;
        let mut places = Vec::new();
        for block in 0..model.num_hidden_layers {
            for projection in model.projections() {
                let path = layout::path(model, block, projection);
                if !rules.targets.covers(&path) {
                    continue;
                }
                let rank = rules.ranks.first(&path).unwrap_or(self.r);
                let alpha = rules.alphas.first(&path).unwrap_or(self.lora_alpha);
                let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
                let (out, input) = projection.shape(model);
                places.push(Place { block, projection, path, rank, scale: alpha / divisor, out, input });
            }
        }
        if places.is_empty() {
            return Err(PeftError::UnknownTarget {
                found: self.target_modules.to_string(),
                known: model.target_names(&model.projections().collect::<Vec<_>>()).join(", "),
            });
        }
        Ok(places)
    }

    /// The maps of `model` that the adapter is on in any block, sorted.
    pub fn projections(&self, model: &ModelConfig) -> Result<Vec<Projection>, PeftError> {
        let all: BTreeSet<_> = self.places(model)?.iter().map(|place| place.projection).collect();
        Ok(all.into_iter().collect())
    }

    /// The settings as they are applied; refuses numbers and patterns that make no adapter.
    fn rules(&self) -> Result<Rules<'_>, PeftError> {
        for r in self.rank_pattern.iter().map(|(_, r)| *r).chain([self.r]) {
            if !(1..=MAX_RANK).contains(&r) {
                return Err(PeftError::Rank { r, limit: MAX_RANK });
            }
        }
        for alpha in self.alpha_pattern.iter().map(|(_, alpha)| *alpha).chain([self.lora_alpha]) {
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(PeftError::Alpha { alpha });
            }
        }
        let targets = match &self.target_modules {
            Targets::Names(names) => {
                within("target_modules", names.len())?;
                Covers::Names(names)
            }
            Targets::Regex(pattern) => {
                check_pattern("target_modules", pattern)?;
                let whole =
                    RegexBuilder::new(&format!(r"\A(?:{pattern})\z")).size_limit(COMPILED_LIMIT).build();
                Covers::Regex(whole.map_err(|error| refused("target_modules", pattern, &error))?)
            }
            Targets::AllLinear => Covers::All,
        };
        Ok(Rules {
            targets,
            ranks: Patterns::new("rank_pattern", &self.rank_pattern)?,
            alphas: Patterns::new("alpha_pattern", &self.alpha_pattern)?,
        })
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Names(names) if names.is_empty() => "no module at all".to_owned(),
            Self::Names(names) => names.join(", "),
            Self::Regex(pattern) => pattern.clone(),
            Self::AllLinear => ALL_LINEAR.to_owned(),
        };
        out.write_str(&cut(&text))
    }
}

/// The settings, compiled.
struct Rules<'a> {
    targets: Covers<'a>,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
}

/// Values by pattern.
struct Patterns<T> {
    patterns: RegexSet,
    values: Vec<T>,
}

enum Covers<'a> {
    Names(&'a [String]),
    Regex(Regex),
    All,
}

impl Covers<'_> {
    /// PEFT's `check_target_module_exists`.
    fn covers(&self, path: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|start| start.is_empty() || start.ends_with('.'))
            }),
            Self::Regex(pattern) => pattern.is_match(path),
            Self::All => true,
        }
    }
}

impl<T: Copy> Patterns<T> {
    fn new(field: &'static str, entries: &[(String, T)]) -> Result<Self, PeftError> {
        within(field, entries.len())?;
        let mut wrapped = Vec::with_capacity(entries.len());
        for (pattern, _) in entries {
            check_pattern(field, pattern)?;
            wrapped.push(format!(r"\A(?:.*\.)?(?:{pattern})\z"));
        }
        let patterns = RegexSetBuilder::new(&wrapped).size_limit(COMPILED_LIMIT).build();
        let patterns = patterns.map_err(|error| refused(field, "all of them together", &error))?;
        Ok(Self { patterns, values: entries.iter().map(|(_, value)| *value).collect() })
    }

    /// PEFT's `get_pattern_key`: the first that matches the end of the path, from its start or from a dot.
    fn first(&self, path: &str) -> Option<T> {
        self.patterns.matches(path).iter().next().and_then(|at| self.values.get(at).copied())
    }
}

/// That it is a regular expression of its own: no bracket of it will close one that is put around it.
fn check_pattern(field: &'static str, pattern: &str) -> Result<(), PeftError> {
    if pattern.len() > PATTERN_LIMIT {
        let reason = format!("it has {} bytes, and at most {PATTERN_LIMIT} are read", pattern.len());
        return Err(PeftError::Pattern { field, pattern: cut(pattern), reason });
    }
    let compiled = RegexBuilder::new(pattern).size_limit(COMPILED_LIMIT).build();
    compiled.map(drop).map_err(|error| refused(field, pattern, &error))
}

fn refused(field: &'static str, pattern: &str, error: &regex::Error) -> PeftError {
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    PeftError::Pattern { field, pattern: cut(pattern), reason: cut(&reason) }
}

fn within(field: &'static str, count: usize) -> Result<(), PeftError> {
    if count <= NAMES_LIMIT {
        return Ok(());
    }
    let reason = format!("{field} has {count} entries, and at most {NAMES_LIMIT} are read");
    Err(PeftError::Json { reason })
}

/// A number too large for a 32-bit browser is too large for any rank.
fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// PEFT declares `lora_alpha` an integer.
fn number(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha < 1e15 { json!(alpha as u64) } else { json!(alpha) }
}

/// Refuses every setting that changes what the weights mean.
fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), PeftError> {
    let get = |field: &str| fields.get(field).unwrap_or(&Value::Null);
    for (field, plain) in
        [("peft_type", &["LORA"][..]), ("bias", &["none"]), ("task_type", &["CAUSAL_LM", "SEQ_CLS"])]
    {
        let value = get(field);
        let left_out = value.is_null() && field != "peft_type";
        if !left_out && !plain.iter().any(|plain| value == plain) {
            return Err(unsupported(field, value));
        }
    }
    // PEFT names both heads whichever one the model has; any other module is not trained here.
    let saved = get("modules_to_save");
    let heads = |names: &Vec<Value>| names.iter().all(|name| CLASSIFIERS.iter().any(|head| name == head));
    if !saved.is_null() && !saved.as_array().is_some_and(heads) {
        return Err(unsupported("modules_to_save", saved));
    }
    // Fields that are off when null, false or empty, from PEFT 0.4 to 0.21. `fan_in_fan_out` is not among them: PEFT
    // itself sets it by the model, and the factors are the same either way.
    for field in [
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "lora_bias",
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
    PeftError::Unsupported { field: field.to_owned(), value: cut(&value.to_string()) }
}

/// The fields of `adapter_config.json` that are read as they are.
#[derive(Deserialize)]
struct Read {
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: InOrder<u64>,
    #[serde(default)]
    alpha_pattern: InOrder<f64>,
    use_rslora: Option<bool>,
    base_model_name_or_path: Option<String>,
}

/// A JSON object in the order of its file: of two patterns that fit, the first counts.
struct InOrder<T>(Vec<(String, T)>);

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = InOrder<T>;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("numbers by pattern")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(InOrder::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }

        deserializer.deserialize_any(Entries(std::marker::PhantomData))
    }
}

/// `adapter_config.json` as it is written.
#[derive(Serialize)]
struct Written<'a> {
    alpha_pattern: Pairs<'a>,
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
    modules_to_save: Option<[&'static str; 2]>,
    peft_type: &'static str,
    r: usize,
    rank_pattern: Pairs<'a>,
    revision: Option<()>,
    target_modules: Value,
    task_type: &'static str,
    use_dora: bool,
    use_rslora: bool,
}

struct Pairs<'a>(Vec<(&'a str, Value)>);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}
