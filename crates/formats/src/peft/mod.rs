//! LoRA adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

mod card;
mod labels;
mod settings;

use std::collections::BTreeMap;

pub use card::CARD_FILE;
pub use labels::{LABELS_FILE, labels_json};
pub use settings::{AdapterConfig, Place, Targets};

use crate::config::{ConfigError, ModelConfig};
use crate::files::{Files, FilesError, read_all};
use crate::layout::{self, HeadPart};
use crate::projection::Projection;
use crate::weights::{TensorIndex, WeightsError, write_safetensors};

/// The file of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// No real `adapter_config.json` is near this size.
const CONFIG_LIMIT: u64 = 1 << 20;
/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";

/// The two factors on one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// `lora_A`, `[r, in]`, row by row.
    pub a: Vec<f32>,
    /// `lora_B`, `[out, r]`, row by row.
    pub b: Vec<f32>,
}

/// A LoRA adapter: a pair for every place, and for a classifier the head that was trained along.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// The factors by block and projection.
    pub weights: BTreeMap<(usize, Projection), LoraPair>,
    /// The tensors of the trained head ([`layout::head_tensors`]), row by row; empty where none was trained.
    pub head: BTreeMap<HeadPart, Vec<f32>>,
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
    /// The model cannot have such a head.
    #[error(transparent)]
    Model(#[from] ConfigError),
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
    /// The classes' names cannot be used.
    #[error(
        "labels.json beside this adapter cannot be used: {reason}; without the file the classes have numbers"
    )]
    Labels {
        /// What is wrong.
        reason: String,
    },
    /// A regular expression that cannot be used.
    #[error(
        "{field} of this adapter holds the pattern {pattern}, which cannot be used: {reason}; name the modules instead"
    )]
    Pattern {
        /// The field of `adapter_config.json`.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing that the model's blocks have.
    #[error(
        "this adapter is on {found}, and the model's blocks have {known}; does it belong to another model?"
    )]
    UnknownTarget {
        /// `target_modules`.
        found: String,
        /// The maps that there are.
        known: String,
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
    /// llama.cpp has no such adapters.
    #[error(
        "llama.cpp takes no adapter of a {family} classifier; merge it into its model instead (baton merge)"
    )]
    NoGguf {
        /// The family.
        family: &'static str,
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

impl Adapter {
    /// `adapter_config.json` and `adapter_model.safetensors`, as PEFT's `save_pretrained` writes them.
    pub fn to_files(&self, model: &ModelConfig) -> Result<(String, Vec<u8>), PeftError> {
        let places = self.config.places(model)?;
        let mut tensors = Vec::with_capacity(2 * places.len() + self.head.len());
        for place in &places {
            let pair = self.pair(place)?;
            for (factor, values) in place.factors().into_iter().zip([&pair.a, &pair.b]) {
                tensors.push((factor.name, factor.shape, values.as_slice()));
            }
        }
        let stray = self
            .weights
            .keys()
            .find(|key| !places.iter().any(|place| (place.block, place.projection) == **key));
        if let Some((block, projection)) = stray {
            return Err(PeftError::Unexpected { found: layout::path(model, *block, *projection) });
        }
        tensors.extend(
            self.head_factors(model)?.into_iter().map(|(factor, values)| (factor.name, factor.shape, values)),
        );
        for (name, shape, values) in &tensors {
            check_values(name, shape, values)?;
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok((self.config.to_json(model)?, write_safetensors(&tensors, &metadata)?))
    }

    /// Reads an adapter for `model`; one that does not fit it is refused.
    ///
    /// A classifier's head may be there or not, but whole and of the model's shape: see [`fitted`].
    pub async fn read(files: &impl Files, model: &ModelConfig) -> Result<Self, PeftError> {
        let config = AdapterConfig::parse(&read_all(files, CONFIG_FILE, CONFIG_LIMIT).await?)?;
        let places = config.places(model)?;
        let index = TensorIndex::open(files, WEIGHTS_FILE).await?;
        let mut wanted: BTreeMap<String, Vec<usize>> =
            places.iter().flat_map(Place::factors).map(|factor| (factor.name, factor.shape)).collect();
        let mut parts = head_factors(model);
        if !parts.iter().any(|(_, factor)| index.get(&factor.name).is_some()) {
            parts.clear();
        }
        wanted.extend(parts.iter().map(|(_, factor)| (factor.name.clone(), factor.shape.clone())));
        if let Some(stray) = index.names().find(|name| !wanted.contains_key(*name)) {
            return Err(PeftError::Unexpected { found: cut(stray) });
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut tensors = index.read_many_f32(files, &wanted, |_| ()).await?;
        for (name, shape) in &wanted {
            check_values(name, shape, tensors.get(name).map_or(&[], Vec::as_slice))?;
        }
        let mut take = |factor: Factor| tensors.remove(&factor.name).unwrap_or_default();
        let pairs = places.into_iter().map(|place| {
            let [a, b] = place.factors().map(&mut take);
            ((place.block, place.projection), LoraPair { a, b })
        });
        let weights = pairs.collect();
        let head = parts.into_iter().map(|(part, factor)| (part, take(factor))).collect();
        Ok(Self { config, weights, head })
    }

    /// The same adapter with one rank and one scale for all of its maps, each of them in every block: what a run needs.
    ///
    /// Lower ranks are filled up with zeros, other scales go into `lora_B`, and blocks without a pair get one of zeros.
    /// The model's outputs stay what they were, and so does what training can reach: a row of A and a column of B that
    /// are both zero have no gradient.
    pub fn uniform(self, model: &ModelConfig) -> Result<Self, PeftError> {
        let places = self.config.places(model)?;
        let projections = self.config.projections(model)?;
        let plain = AdapterConfig {
            base_model_name_or_path: self.config.base_model_name_or_path.clone(),
            ..AdapterConfig::new(self.config.r, self.config.lora_alpha, self.config.target_modules.clone())
        };
        let named = !matches!(self.config.target_modules, Targets::Regex(_));
        if named && plain == self.config && places.len() == projections.len() * model.num_hidden_layers {
            return Ok(self);
        }
        let rank = places.iter().map(|place| place.rank).max().unwrap_or(self.config.r);
        let scale = self.config.lora_alpha / rank as f64;
        let mut weights = BTreeMap::new();
        for block in 0..model.num_hidden_layers {
            for &projection in &projections {
                let (out, input) = projection.shape(model);
                let pair = LoraPair { a: vec![0.0; rank * input], b: vec![0.0; out * rank] };
                weights.insert((block, projection), pair);
            }
        }
        for place in &places {
            let pair = self.pair(place)?;
            let Some(wide) = weights.get_mut(&(place.block, place.projection)) else { continue };
            for (wide, value) in wide.a.iter_mut().zip(&pair.a) {
                *wide = *value;
            }
            for (wide, row) in wide.b.chunks_exact_mut(rank).zip(pair.b.chunks_exact(place.rank)) {
                for (wide, value) in wide.iter_mut().zip(row) {
                    *wide = (f64::from(*value) * place.scale / scale) as f32;
                }
            }
        }
        let names = model.target_names(&projections);
        let config = AdapterConfig { r: rank, target_modules: Targets::Names(names), ..plain };
        Ok(Self { config, weights, head: self.head })
    }

    /// The factors of a place, of the lengths that it needs.
    pub(crate) fn pair(&self, place: &Place) -> Result<&LoraPair, PeftError> {
        let pair = self.weights.get(&(place.block, place.projection));
        let pair = pair.ok_or_else(|| PeftError::Missing { path: place.path.clone() })?;
        for (factor, values) in place.factors().iter().zip([&pair.a, &pair.b]) {
            check_values(&factor.name, &factor.shape, values)?;
        }
        Ok(pair)
    }

    /// The head's tensors as PEFT names them; all or none.
    fn head_factors(&self, model: &ModelConfig) -> Result<Vec<(Factor, &[f32])>, PeftError> {
        let parts = head_factors(model);
        if let Some(stray) = self.head.keys().find(|part| !parts.iter().any(|(known, _)| known == *part)) {
            return Err(PeftError::Unexpected { found: format!("the head's {stray:?}") });
        }
        if self.head.is_empty() {
            return Ok(Vec::new());
        }
        let found = parts.into_iter().map(|(part, factor)| match self.head.get(&part) {
            Some(values) => Ok((factor, values.as_slice())),
            None => Err(PeftError::Missing { path: factor.name }),
        });
        found.collect()
    }
}

/// The model with a head that gives as many numbers as the head among the adapter's weights, and with the classes' names
/// beside it ([`LABELS_FILE`]): a model's files do not say what an adapter was trained for. Unchanged where there is no
/// head, or the same.
pub async fn fitted(files: &impl Files, model: ModelConfig) -> Result<ModelConfig, PeftError> {
    let Some(classifier) = model.classifier() else { return Ok(model) };
    let index = TensorIndex::open(files, WEIGHTS_FILE).await?;
    let bias = head_factors(&model).into_iter().find(|(part, _)| *part == HeadPart::OutputBias);
    let found = bias.and_then(|(_, factor)| index.get(&factor.name)).and_then(|entry| entry.shape.first());
    let model = match found {
        Some(&outputs) if outputs != classifier.outputs => model.with_classifier(outputs, outputs == 1)?,
        Some(_) => model,
        None => return Ok(model),
    };
    labels::named(files, model).await
}

/// A tensor as PEFT stores it.
pub(crate) struct Factor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

impl Place {
    /// `lora_A` and `lora_B`.
    pub(crate) fn factors(&self) -> [Factor; 2] {
        let name = |factor: &str| format!("{PREFIX}{}.{factor}.weight", self.path);
        [
            Factor { name: name("lora_A"), shape: vec![self.rank, self.input] },
            Factor { name: name("lora_B"), shape: vec![self.out, self.rank] },
        ]
    }
}

/// The tensors of the model's trained head.
fn head_factors(model: &ModelConfig) -> Vec<(HeadPart, Factor)> {
    let tensors = layout::head_tensors(model).into_iter();
    tensors
        .map(|spec| {
            let factor = Factor { name: format!("{PREFIX}{}", spec.name()), shape: spec.file_shape() };
            (spec.part, factor)
        })
        .collect()
}

fn check_values(name: &str, shape: &[usize], values: &[f32]) -> Result<(), PeftError> {
    let expected = shape.iter().product();
    if values.len() != expected {
        return Err(PeftError::WrongLength { path: name.to_owned(), expected, found: values.len() });
    }
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(PeftError::NotFinite { path: name.to_owned(), value: *value }),
        None => Ok(()),
    }
}

/// What an error says of a text that a file holds: not more than a few lines of it.
fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}
