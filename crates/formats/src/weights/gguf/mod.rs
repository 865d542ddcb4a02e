//! GGUF files (versions 2 and 3): metadata, then where the tensors are.
//!
//! The format is described in ggml's `docs/gguf.md`. The header has no length of its own, so it is fetched in growing
//! steps until its end is reached.

use std::collections::{BTreeMap, btree_map};

use super::{FileSize, NumberFormat, TensorEntry, Undo, WeightsError, elements};
use crate::files::Files;

mod config;
mod header;
mod names;
mod tokenizer;
mod value;
mod write;

pub use names::{InGguf, in_gguf, interleave_heads};
pub use value::{GgufValue, Strings};
pub use write::write_gguf;

/// The first bytes of a GGUF file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin at multiples of, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// The factors of Llama 3's rotary frequencies: a tensor that says what other formats say in the configuration.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Half of the widest head that a configuration may have.
const ROPE_FACTORS_LIMIT: usize = 512;

/// What a GGUF file says of its model: the metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    file: String,
    metadata: BTreeMap<String, GgufValue>,
    /// The names that the file itself uses, with their tensors' shapes, outermost first.
    shapes: BTreeMap<String, Vec<usize>>,
    /// The numbers of `rope_freqs.weight`.
    rope_factors: Option<Vec<f32>>,
}

impl Gguf {
    /// Reads metadata and the places of the tensors, which are called by their names in Hugging Face's words where the
    /// architecture is one of those that Baton knows.
    pub(super) async fn read(
        files: &impl Files,
        file: &FileSize,
    ) -> Result<(Self, BTreeMap<String, TensorEntry>), WeightsError> {
        let header = header::Header::read(files, file).await?;
        let mut gguf = Self {
            file: file.name.clone(),
            metadata: header.metadata,
            shapes: BTreeMap::new(),
            rope_factors: None,
        };
        if let Some(parts) = gguf.number("split.count").filter(|parts| *parts > 1) {
            return Err(gguf.wrong(format!(
                "it is one of {parts} parts of a model, and a GGUF file has to be whole here: \
                 join them with llama-gguf-split --merge"
            )));
        }
        let start = gguf.data_start(header.end)?;
        let mut found: Vec<TensorEntry> = Vec::with_capacity(header.tensors.len());
        for tensor in header.tensors {
            let begin = start.checked_add(tensor.offset).filter(|_| tensor.offset % gguf.alignment() == 0);
            let range = begin.and_then(|begin| Some(begin..begin.checked_add(tensor.bytes)?));
            let Some(range) = range else {
                return Err(gguf.wrong(format!("the tensor {} begins at {}", tensor.name, tensor.offset)));
            };
            if range.end > file.size {
                return Err(WeightsError::Truncated {
                    name: file.name.clone(),
                    expected: range.end,
                    found: file.size,
                });
            }
            if gguf.shapes.insert(tensor.name.clone(), tensor.shape.clone()).is_some() {
                let file = || file.name.clone();
                return Err(WeightsError::Twice { tensor: tensor.name, first: file(), second: file() });
            }
            found.push(TensorEntry {
                name: tensor.name,
                file: file.name.clone(),
                format: tensor.format,
                shape: tensor.shape,
                range,
                undo: Undo::Nothing,
            });
        }
        found.sort_by_key(|entry| entry.range.start);
        if let Some([first, second]) = found.array_windows().find(|[a, b]| a.range.end > b.range.start) {
            return Err(gguf.wrong(format!("the tensors {} and {} overlap", first.name, second.name)));
        }
        if let Some(factors) = found.iter().find(|entry| entry.name == ROPE_FACTORS) {
            gguf.rope_factors = Some(gguf.read_rope_factors(files, factors).await?);
        }
        let entries = gguf.rename(found)?;
        Ok((gguf, entries))
    }

    /// The architecture in llama.cpp's words, as in `llama` or `qwen2`.
    pub fn architecture(&self) -> Option<&str> {
        self.text("general.architecture")
    }

    /// A value of the metadata by its key.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The chat template, in Jinja, where the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(GgufValue::String(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(GgufValue::as_u64)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(GgufValue::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// The header is wrong.
    fn wrong(&self, reason: String) -> WeightsError {
        WeightsError::Header { name: self.file.clone(), reason }
    }

    /// The metadata lacks something that is needed, or has it in another type.
    fn lacks(&self, key: &str) -> WeightsError {
        WeightsError::Metadata { name: self.file.clone(), key: key.to_owned() }
    }

    fn unknown(&self, what: &'static str, found: &str, known: &'static str) -> WeightsError {
        let found = found.chars().take(200).collect();
        WeightsError::Unknown { name: self.file.clone(), what, found, known }
    }

    fn alignment(&self) -> u64 {
        self.number("general.alignment").unwrap_or(ALIGNMENT)
    }

    /// Where the tensors' bytes begin, after the header's `end`.
    fn data_start(&self, end: u64) -> Result<u64, WeightsError> {
        let alignment = self.alignment();
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(self.wrong(format!("general.alignment is {alignment}")));
        }
        Ok(end.next_multiple_of(alignment))
    }

    async fn read_rope_factors(
        &self,
        files: &impl Files,
        entry: &TensorEntry,
    ) -> Result<Vec<f32>, WeightsError> {
        let mut factors = Vec::new();
        if entry.format != NumberFormat::F32
            || elements(&entry.shape).is_none_or(|count| count > ROPE_FACTORS_LIMIT)
        {
            return Err(self.wrong(format!("{ROPE_FACTORS} is {} {:?}", entry.format, entry.shape)));
        }
        let bytes = files.read(&entry.file, entry.range.clone()).await?;
        entry.format.decode(&bytes, &mut factors);
        Ok(factors)
    }

    /// Names in Hugging Face's words, and what the converter did to each tensor.
    fn rename(&self, found: Vec<TensorEntry>) -> Result<BTreeMap<String, TensorEntry>, WeightsError> {
        let mut entries = BTreeMap::new();
        for mut entry in found {
            if let Some(place) = self.architecture().and_then(|name| names::place(name, &entry.name)) {
                entry.undo = match place.change {
                    names::Change::Nothing => Undo::Nothing,
                    names::Change::PlusOne => Undo::PlusOne,
                    names::Change::Transpose => {
                        entry.shape.reverse();
                        Undo::Transpose
                    }
                    names::Change::RotaryQuery | names::Change::RotaryKey => {
                        self.rotary(&entry, place.change == names::Change::RotaryKey)?
                    }
                };
                entry.name = place.name;
            }
            match entries.entry(entry.name.clone()) {
                btree_map::Entry::Vacant(place) => place.insert(entry),
                btree_map::Entry::Occupied(_) => {
                    let file = || self.file.clone();
                    return Err(WeightsError::Twice { tensor: entry.name, first: file(), second: file() });
                }
            };
        }
        Ok(entries)
    }

    /// The rows of a head of q or k, and that they can be told apart.
    fn rotary(&self, entry: &TensorEntry, key: bool) -> Result<Undo, WeightsError> {
        let heads = self.required_u64("attention.head_count")?;
        let heads =
            if key { self.architecture_u64("attention.head_count_kv").unwrap_or(heads) } else { heads };
        let rows = entry.shape.first().copied().unwrap_or(0);
        let head = usize::try_from(heads).ok().filter(|heads| *heads > 0 && rows % heads == 0);
        let head = head.map(|heads| rows / heads).filter(|head| *head > 0 && head % 2 == 0);
        let columns = entry.shape.get(1..).and_then(elements).unwrap_or(0);
        let whole_rows = entry.format.block().is_none_or(|(numbers, _)| columns % numbers == 0);
        match head {
            Some(head) if whole_rows => Ok(Undo::Rotary { head }),
            _ => Err(self.wrong(format!(
                "{} of shape {:?} in {} does not make {heads} heads",
                entry.name, entry.shape, entry.format
            ))),
        }
    }

    /// A key of the architecture's own, as in `llama.block_count`.
    fn architecture_key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture().unwrap_or_default())
    }

    fn architecture_u64(&self, key: &str) -> Option<u64> {
        self.number(&self.architecture_key(key))
    }

    fn architecture_f64(&self, key: &str) -> Option<f64> {
        self.get(&self.architecture_key(key)).and_then(GgufValue::as_f64)
    }

    fn required_u64(&self, key: &str) -> Result<u64, WeightsError> {
        self.architecture_u64(key).ok_or_else(|| self.lacks(&self.architecture_key(key)))
    }

    fn required_f64(&self, key: &str) -> Result<f64, WeightsError> {
        self.architecture_f64(key).ok_or_else(|| self.lacks(&self.architecture_key(key)))
    }
}
