//! `model.safetensors` by byte range: the header first, then the tensors that are wanted and no others.
//!
//! The format: eight bytes of length, that many bytes of JSON, then the tensors' bytes without holes
//! (<https://huggingface.co/docs/safetensors>).

use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
pub use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::files::{Files, FilesError};

/// The bytes that say how long the header is.
const LENGTH_BYTES: u64 = 8;
/// The largest header that the safetensors library itself reads.
const HEADER_LIMIT: u64 = 100_000_000;
/// The most bytes fetched at once: what a phone holds beside the tensors it keeps.
const READ_LIMIT: u64 = 8 << 20;
/// A hole up to this size is fetched along with its neighbours: a request costs more than the bytes do.
const GAP_LIMIT: u64 = 64 << 10;

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// How its numbers are written.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<u64>,
}

/// Why weights could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// The bytes could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Not even room for the header's length.
    #[error("{name} has only {size} bytes: it is not a safetensors file, or its download was cut short")]
    TooShort {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// More than this machine can address.
    #[error("{name} has {size} bytes, more than a browser can address; choose a smaller model")]
    TooLarge {
        /// The file's name.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The length of the header cannot be true.
    #[error(
        "{name} says that its header has {header} bytes, and at most {limit} are possible: \
         it is not a safetensors file, or it is damaged"
    )]
    HeaderLength {
        /// The file's name.
        name: String,
        /// The length that the file claims.
        header: u64,
        /// The largest length possible.
        limit: u64,
    },
    /// The header is not what the format says.
    #[error("the header of {name} is wrong: {reason}; the file is damaged, download it again")]
    Header {
        /// The file's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The file ends before its tensors do.
    #[error(
        "{name} is cut short: it has {found} bytes and its header promises {expected}; download it again"
    )]
    Truncated {
        /// The file's name.
        name: String,
        /// The size that the header promises.
        expected: u64,
        /// The size that the file has.
        found: u64,
    },
    /// The file goes on after its tensors end.
    #[error(
        "{name} has {found} bytes where its header promises {expected}; it is damaged, download it again"
    )]
    TooLong {
        /// The file's name.
        name: String,
        /// The size that the header promises.
        expected: u64,
        /// The size that the file has.
        found: u64,
    },
    /// A tensor that the model needs is not there.
    #[error("{file} has no tensor {tensor}; its config.json is that of another model")]
    Missing {
        /// The file's name.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has other dimensions than the config says.
    #[error(
        "the tensor {tensor} has shape {found:?} and the model needs {expected:?}; the files do not belong together"
    )]
    WrongShape {
        /// The tensor's name.
        tensor: String,
        /// What the model needs.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A tensor of numbers that are not read here.
    #[error(
        "the tensor {tensor} is {dtype}, and only F32, F16 and BF16 are read; choose an unquantised model"
    )]
    UnsupportedDtype {
        /// The tensor's name.
        tensor: String,
        /// How its numbers are written.
        dtype: Dtype,
    },
    /// The tensor does not fit.
    #[error("there is no memory for the {bytes} bytes of {tensor}; close other tabs, or take fewer blocks")]
    OutOfMemory {
        /// The tensor's name.
        tensor: String,
        /// How many bytes it would have taken.
        bytes: u64,
    },
    /// A tensor to write whose values do not fill its shape.
    #[error("the tensor {tensor} of shape {shape:?} was given {values} values")]
    WrongLength {
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many values there are.
        values: usize,
    },
}

/// The parsed header of a safetensors file: what is in it, and where.
#[derive(Clone, Debug)]
pub struct TensorIndex {
    file: String,
    entries: BTreeMap<String, TensorEntry>,
}

impl TensorIndex {
    /// Reads the header of `name`, and nothing else of it.
    ///
    /// The header's length is checked before it is read, its offsets must cover the rest of the file without holes or
    /// overlaps, and the sizes must agree with shapes and dtypes.
    pub async fn open(files: &impl Files, name: &str) -> Result<Self, WeightsError> {
        let file = || name.to_owned();
        let size = files.size(name).await?;
        if size < LENGTH_BYTES {
            return Err(WeightsError::TooShort { name: file(), size });
        }
        if usize::try_from(size).is_err() {
            return Err(WeightsError::TooLarge { name: file(), size });
        }
        let length = files.read(name, 0..LENGTH_BYTES).await?;
        let length: [u8; 8] = length.as_slice().try_into().map_err(|_| FilesError::Truncated {
            name: file(),
            wanted: LENGTH_BYTES,
            got: length.len() as u64,
        })?;
        let header = u64::from_le_bytes(length);
        let limit = HEADER_LIMIT.min(size - LENGTH_BYTES);
        if header > limit {
            return Err(WeightsError::HeaderLength { name: file(), header, limit });
        }
        let start = LENGTH_BYTES + header;
        let bytes = files.read(name, LENGTH_BYTES..start).await?;
        let metadata: Metadata = serde_json::from_slice(&bytes)
            .map_err(|error| WeightsError::Header { name: file(), reason: error.to_string() })?;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if size < expected {
            return Err(WeightsError::Truncated { name: file(), expected, found: size });
        }
        if size > expected {
            return Err(WeightsError::TooLong { name: file(), expected, found: size });
        }
        let entries = metadata.tensors().into_iter().map(|(name, info)| {
            let (first, end) = info.data_offsets;
            let range = start + first as u64..start + end as u64;
            let entry =
                TensorEntry { name: name.clone(), dtype: info.dtype, shape: info.shape.clone(), range };
            (name, entry)
        });
        Ok(Self { file: file(), entries: entries.collect() })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.get(name)
    }

    /// The numbers of one tensor, in row-major order, as f32.
    pub async fn read_f32(
        &self,
        files: &impl Files,
        name: &str,
        expected_shape: &[usize],
    ) -> Result<Vec<f32>, WeightsError> {
        let wanted = [(name.to_owned(), expected_shape.to_vec())];
        let mut tensors = self.read_many_f32(files, &wanted, |_| ()).await?;
        tensors.remove(name).ok_or_else(|| self.missing(name))
    }

    /// The numbers of several tensors, by name, as f32.
    ///
    /// Neighbours are fetched together, at most 8 MiB at once, and what lies between them is skipped unless it is less
    /// than 64 KiB. `on_bytes` hears how many bytes each fetch brought.
    pub async fn read_many_f32(
        &self,
        files: &impl Files,
        wanted: &[(String, Vec<usize>)],
        mut on_bytes: impl FnMut(u64),
    ) -> Result<BTreeMap<String, Vec<f32>>, WeightsError> {
        let mut entries = Vec::with_capacity(wanted.len());
        for (name, shape) in wanted {
            entries.push(self.checked(name, shape)?);
        }
        entries.sort_by_key(|entry| entry.range.start);
        entries.dedup_by_key(|entry| &entry.name);

        let mut tensors = BTreeMap::new();
        for entry in &entries {
            let values = allocate(entry)?;
            tensors.insert(entry.name.clone(), values);
        }
        for read in plan(&entries) {
            let bytes = files.read(&self.file, read.range.clone()).await?;
            on_bytes(bytes.len() as u64);
            for part in read.parts {
                let from = usize::try_from(part.range.start - read.range.start).ok();
                let to = usize::try_from(part.range.end - read.range.start).ok();
                let part_bytes =
                    from.zip(to).and_then(|(from, to)| bytes.get(from..to)).ok_or_else(|| {
                        FilesError::Truncated {
                            name: self.file.clone(),
                            wanted: read.range.end - read.range.start,
                            got: bytes.len() as u64,
                        }
                    })?;
                if let Some(values) = tensors.get_mut(&part.entry.name) {
                    decode(part.entry.dtype, part_bytes, values);
                }
            }
        }
        Ok(tensors)
    }

    /// The entry of a tensor that has the shape it should have, in a dtype that is read here.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry, WeightsError> {
        let entry = self.get(name).ok_or_else(|| self.missing(name))?;
        if entry.shape != shape {
            return Err(WeightsError::WrongShape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(WeightsError::UnsupportedDtype { tensor: name.to_owned(), dtype: entry.dtype });
        }
        Ok(entry)
    }

    fn missing(&self, tensor: &str) -> WeightsError {
        WeightsError::Missing { file: self.file.clone(), tensor: tensor.to_owned() }
    }
}

/// A safetensors file of f32 tensors `(name, shape, values)`, sorted by name as PyTorch's writer does.
///
/// The same tensors and metadata give the same bytes; the library's own writer shuffles the metadata.
pub fn write_safetensors<T: AsRef<[f32]>>(
    tensors: &[(String, Vec<usize>, T)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let json = |error: serde_json::Error| WeightsError::Header {
        name: "the file to write".to_owned(),
        reason: error.to_string(),
    };
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, ..)| name);

    let mut members = Vec::with_capacity(sorted.len() + 1);
    if !metadata.is_empty() {
        members.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata).map_err(json)?));
    }
    let mut end: usize = 0;
    for (name, shape, values) in &sorted {
        let values = values.as_ref();
        if elements(shape) != Some(values.len()) {
            return Err(WeightsError::WrongLength {
                tensor: name.clone(),
                shape: shape.clone(),
                values: values.len(),
            });
        }
        let start = end;
        end += size_of_val(values);
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) };
        let (key, info) =
            (serde_json::to_string(name).map_err(json)?, serde_json::to_string(&info).map_err(json)?);
        members.push(format!("{key}:{info}"));
    }
    let mut header = format!("{{{}}}", members.join(","));
    // The data begins at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut file = Vec::with_capacity(8 + header.len() + end);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    for (_, _, values) in sorted {
        file.extend(values.as_ref().iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(file)
}

/// One fetch, and the tensors' parts in it.
struct Read<'a> {
    range: Range<u64>,
    parts: Vec<Part<'a>>,
}

/// A run of whole elements of one tensor.
struct Part<'a> {
    entry: &'a TensorEntry,
    range: Range<u64>,
}

/// Covers the tensors, which are sorted by where they start, with as few fetches as the limits allow.
fn plan<'a>(entries: &[&'a TensorEntry]) -> Vec<Read<'a>> {
    let mut reads: Vec<Read<'a>> = Vec::new();
    for entry in entries {
        let mut start = entry.range.start;
        while start < entry.range.end {
            // Cut from the tensor's own start by a multiple of every element's size: no element is torn.
            let range = start..entry.range.end.min(start + READ_LIMIT);
            start = range.end;
            let part = Part { entry, range: range.clone() };
            match reads.last_mut() {
                Some(read)
                    if range.start - read.range.end <= GAP_LIMIT
                        && range.end - read.range.start <= READ_LIMIT =>
                {
                    read.range.end = range.end;
                    read.parts.push(part);
                }
                _ => reads.push(Read { range, parts: vec![part] }),
            }
        }
    }
    reads
}

/// Room for a tensor's numbers. Its file may lie about its size, or the tab may be full: that is an error, not the end.
fn allocate(entry: &TensorEntry) -> Result<Vec<f32>, WeightsError> {
    let mut values = Vec::new();
    let room =
        elements(&entry.shape).ok_or(()).and_then(|count| values.try_reserve_exact(count).map_err(|_| ()));
    let bytes = entry.shape.iter().fold(4, |bytes: u64, dim| bytes.saturating_mul(*dim as u64));
    room.map(|()| values).map_err(|()| WeightsError::OutOfMemory { tensor: entry.name.clone(), bytes })
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1, |product: usize, dim| product.checked_mul(*dim))
}

fn decode(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    let (pairs, quads) = (bytes.as_chunks().0, bytes.as_chunks().0);
    match dtype {
        Dtype::F16 => values.extend(pairs.iter().map(|pair| f16::from_le_bytes(*pair).to_f32())),
        Dtype::BF16 => values.extend(pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32())),
        // `checked` lets no other dtype through.
        _ => values.extend(quads.iter().map(|quad| f32::from_le_bytes(*quad))),
    }
}
