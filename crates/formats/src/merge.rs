//! A model with an adapter worked into its weights, written tensor by tensor as full safetensors.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};

use crate::config::{Architecture, ConfigError, ModelConfig};
use crate::files::Files;
use crate::layout;
use crate::peft::{Adapter, LoraPair, PeftError, Place};
use crate::weights::{NumberFormat, SafetensorsWriter, TensorEntry, TensorIndex, WeightsError};

/// Writes the tensors of the model in `files` with `adapter` merged in, `W + s · BA` at each of its places, as one
/// safetensors file, and gives `sink` back.
///
/// The numbers are written in `format`, or each tensor in the base's own where it is one of f32, f16 and bf16 (and f32
/// where it is quantised); sums are made in f32. The tensors are called by their names in a model with its head, so that
/// an encoder saved alone and the adapter's head make one classifier. What the base has beyond the model is kept, unless
/// it is no matrix of numbers (old BERTs' `position_ids`). Beside the adapter no more is held than one piece of a tensor
/// ([`TensorIndex::stream_f32`]). `on_bytes` hears how many bytes each fetch brought.
///
/// # Errors
///
/// When the adapter or the weights do not fit `model`, when bytes cannot be had, and when the sink fails.
pub async fn merge<W: Write>(
    files: &impl Files,
    model: &ModelConfig,
    adapter: &Adapter,
    format: Option<NumberFormat>,
    sink: W,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<W, PeftError> {
    let index = TensorIndex::open_model(files).await?;
    let places = adapter.config.places(model)?;
    let places: BTreeMap<String, &Place> =
        places.iter().map(|place| (format!("{}.weight", place.path), place)).collect();
    let mut tensors = known(&index, model)?;
    let missing = places.keys().find(|name| !tensors.contains_key(*name));
    if let Some(tensor) = missing {
        let file = "the model".to_owned();
        return Err(WeightsError::Missing { file, tensor: tensor.clone() }.into());
    }
    let head = head(model, adapter);
    tensors.retain(|name, _| !head.contains_key(name));
    let own = |entry: &TensorEntry| match entry.format {
        NumberFormat::F16 | NumberFormat::Bf16 => entry.format,
        _ => NumberFormat::F32,
    };
    let mut header: Vec<_> = tensors
        .iter()
        .map(|(name, entry)| (name.clone(), format.unwrap_or_else(|| own(entry)), entry.shape.clone()))
        .collect();
    let wide = format.unwrap_or(NumberFormat::F32);
    header.extend(head.iter().map(|(name, tensor)| (name.clone(), wide, tensor.shape.clone())));
    header.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::new(sink, header, &metadata)?;
    let order: Vec<String> = writer.order().map(str::to_owned).collect();
    for name in order {
        if let Some(tensor) = head.get(&name) {
            writer.write(&name, tensor.values)?;
        } else if let Some(entry) = tensors.get(&name) {
            let mut update = match places.get(&name) {
                Some(place) => Some(Update::new(place, adapter.pair(place)?, model.block.transposed)),
                None => None,
            };
            let mut sum = Vec::new();
            let write = &mut |piece: &[f32]| match &mut update {
                None => writer.write(&name, piece),
                Some(update) => {
                    sum.clear();
                    sum.extend(piece.iter().map(|value| value + update.next()));
                    writer.write(&name, &sum)
                }
            };
            index.stream_f32::<WeightsError>(files, entry, &entry.shape, on_bytes, write).await?;
        }
    }
    Ok(writer.finish()?)
}

/// The `config.json` of the merged model: the base's, with what a head of the adapter's makes of it, and the numbers'
/// format where another one was asked for.
///
/// # Errors
///
/// When the base's is no JSON object.
pub fn merged_config(
    base: &[u8],
    model: &ModelConfig,
    adapter: &Adapter,
    format: Option<NumberFormat>,
) -> Result<String, ConfigError> {
    let unreadable = |error: serde_json::Error| ConfigError::Json { reason: error.to_string() };
    let mut config: BTreeMap<String, Value> = serde_json::from_slice(base).map_err(unreadable)?;
    if let (Some(classifier), false) = (model.classifier(), adapter.head.is_empty()) {
        let class = match model.architecture {
            Architecture::Roberta => "RobertaForSequenceClassification",
            _ => "BertForSequenceClassification",
        };
        let label = |at: usize| classifier.labels.get(at).cloned().unwrap_or_else(|| format!("LABEL_{at}"));
        let by_id: BTreeMap<String, String> =
            (0..classifier.outputs).map(|at| (at.to_string(), label(at))).collect();
        let by_label: BTreeMap<String, usize> = (0..classifier.outputs).map(|at| (label(at), at)).collect();
        let kind = if classifier.regression { "regression" } else { "single_label_classification" };
        config.insert("architectures".to_owned(), json!([class]));
        config.insert("id2label".to_owned(), json!(by_id));
        config.insert("label2id".to_owned(), json!(by_label));
        config.insert("problem_type".to_owned(), json!(kind));
        config.remove("num_labels");
    }
    let dtype = match format {
        Some(NumberFormat::F32) => Some("float32"),
        Some(NumberFormat::F16) => Some("float16"),
        Some(NumberFormat::Bf16) => Some("bfloat16"),
        _ => None,
    };
    if let Some(dtype) = dtype {
        // transformers 5 calls it the second.
        for field in ["torch_dtype", "dtype"] {
            config.entry(field.to_owned()).and_modify(|value| *value = json!(dtype));
        }
    }
    serde_json::to_string_pretty(&config).map_err(unreadable)
}

/// The base's tensors by their names in a model with its head.
fn known<'a>(
    index: &'a TensorIndex,
    model: &ModelConfig,
) -> Result<BTreeMap<String, &'a TensorEntry>, WeightsError> {
    let mut full = BTreeMap::new();
    let mut add = |names: &[String], shape: Vec<usize>| -> Result<(), WeightsError> {
        let Some(entry) = index.find(names) else { return Ok(()) };
        if entry.shape != shape {
            let (tensor, found) = (entry.name.clone(), entry.shape.clone());
            return Err(WeightsError::WrongShape { tensor, expected: shape, found });
        }
        if let Some(name) = names.first() {
            full.insert(entry.name.clone(), name.clone());
        }
        Ok(())
    };
    for block in 0..model.num_hidden_layers {
        for spec in layout::block_tensors(model, block) {
            add(&spec.names, spec.file_shape())?;
        }
    }
    for spec in layout::end_tensors(model) {
        add(&spec.names, spec.file_shape())?;
    }
    let mut tensors = BTreeMap::new();
    for entry in index.entries() {
        match full.get(&entry.name) {
            Some(name) => drop(tensors.insert(name.clone(), entry)),
            None if entry.format.block().is_some() => drop(tensors.insert(entry.name.clone(), entry)),
            None => {}
        }
    }
    Ok(tensors)
}

/// A tensor of the adapter's head.
struct HeadTensor<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

/// The adapter's head by the names of the model's file.
fn head<'a>(model: &ModelConfig, adapter: &'a Adapter) -> BTreeMap<String, HeadTensor<'a>> {
    let trained = layout::head_tensors(model).into_iter().filter_map(|spec| {
        let values = adapter.head.get(&spec.part)?;
        Some((spec.name().to_owned(), HeadTensor { shape: spec.file_shape(), values }))
    });
    trained.collect()
}

/// `s · BA` number by number in the order of a tensor's file; a row of it at a time.
struct Update {
    /// `[rows, rank]`: B, or A turned where the file has `[in, out]`. Scaled.
    left: Vec<f32>,
    /// `[rank, columns]`.
    right: Vec<f32>,
    rank: usize,
    columns: usize,
    /// The row that `row` holds next, and how much of `row` has been given out.
    next_row: usize,
    given: usize,
    row: Vec<f32>,
}

impl Update {
    fn new(place: &Place, pair: &LoraPair, transposed: bool) -> Self {
        let (mut left, right, columns) = if transposed {
            (turned(&pair.a, place.input), turned(&pair.b, place.rank), place.out)
        } else {
            (pair.b.clone(), pair.a.clone(), place.input)
        };
        left.iter_mut().for_each(|value| *value = (f64::from(*value) * place.scale) as f32);
        let rank = place.rank;
        Self { left, right, rank, columns, next_row: 0, given: columns, row: vec![0.0; columns] }
    }

    fn next(&mut self) -> f32 {
        if self.given == self.columns {
            self.row.fill(0.0);
            let factors = self.left.iter().skip(self.next_row * self.rank).take(self.rank);
            for (factor, right) in factors.zip(self.right.chunks_exact(self.columns)) {
                for (sum, value) in self.row.iter_mut().zip(right) {
                    *sum += factor * value;
                }
            }
            self.next_row += 1;
            self.given = 0;
        }
        self.given += 1;
        self.row.get(self.given - 1).copied().unwrap_or(0.0)
    }
}

/// A matrix of `columns` columns, transposed.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}
