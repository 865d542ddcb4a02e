//! Safetensors files: one, or the parts that an index lists.
//!
//! The format: eight bytes of length, that many bytes of JSON, then the tensors' bytes without holes
//! (<https://huggingface.co/docs/safetensors>). A large model is cut into parts, and `model.safetensors.index.json` says
//! which tensor is in which.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{FileSize, NumberFormat, TensorEntry, Undo, WeightsError};
use crate::files::{Files, FilesError, read_all};

/// The bytes that say how long the header is.
pub(super) const LENGTH_BYTES: u64 = 8;
/// For all parts of a model together. The largest open models, of ninety thousand tensors, have 12 MB; a header takes
/// several times its size when it is read.
const HEADER_LIMIT: u64 = 32 << 20;
/// The index of the largest open models (a trillion numbers) has 13 MB.
const INDEX_LIMIT: u64 = 32 << 20;
/// The largest open models have under two hundred parts.
const SHARD_LIMIT: usize = 1024;

/// The tensors of one file, and how many bytes its header had.
pub(super) struct Header {
    pub(super) file: FileSize,
    pub(super) entries: BTreeMap<String, TensorEntry>,
    bytes: u64,
}

impl Header {
    /// Reads the header of `name`, and nothing else of it. `length` are the file's first eight bytes.
    ///
    /// The header's length is checked before it is read, its offsets must cover the rest of the file without holes or
    /// overlaps, and the sizes must agree with shapes and dtypes.
    pub(super) async fn read(
        files: &impl Files,
        file: FileSize,
        length: [u8; 8],
        limit: u64,
    ) -> Result<Self, WeightsError> {
        let FileSize { name, size } = &file;
        let size = *size;
        let header = u64::from_le_bytes(length);
        let limit = limit.min(size.saturating_sub(LENGTH_BYTES));
        if header > limit {
            return Err(WeightsError::HeaderLength { name: name.clone(), header, limit });
        }
        let start = LENGTH_BYTES + header;
        let bytes = files.read(name, LENGTH_BYTES..start).await?;
        let wrong = |reason| WeightsError::Header { name: name.clone(), reason };
        let Tensors(tensors) = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        drop(bytes);
        let expected = start.saturating_add(data_length(&tensors).map_err(wrong)?);
        if size < expected {
            return Err(WeightsError::Truncated { name: name.clone(), expected, found: size });
        }
        if size > expected {
            return Err(WeightsError::TooLong { name: name.clone(), expected, found: size });
        }
        let entries = tensors.into_iter().map(|(tensor, info)| {
            let (first, end) = info.data_offsets;
            let entry = TensorEntry {
                name: tensor.clone(),
                file: name.clone(),
                format: NumberFormat::of_safetensors(info.dtype),
                shape: info.shape,
                range: start + first..start + end,
                undo: Undo::Nothing,
            };
            (tensor, entry)
        });
        let entries = entries.collect();
        Ok(Self { file, entries, bytes: header })
    }

    /// [`Self::read`] of a file that stands alone.
    pub(super) async fn read_alone(
        files: &impl Files,
        file: FileSize,
        length: [u8; 8],
    ) -> Result<Self, WeightsError> {
        Self::read(files, file, length, HEADER_LIMIT).await
    }
}

/// All parts of a model, as `index` lists them.
///
/// Every tensor must be in the part that the index names and in no other; a tensor that the index does not know is left
/// out.
pub(super) async fn read_shards(
    files: &impl Files,
    index: &str,
) -> Result<(Vec<FileSize>, BTreeMap<String, TensorEntry>), WeightsError> {
    let bytes = read_all(files, index, INDEX_LIMIT).await?;
    let Index { weight_map: WeightMap(places) } = serde_json::from_slice(&bytes)
        .map_err(|error| WeightsError::Header { name: index.to_owned(), reason: error.to_string() })?;
    drop(bytes);
    let shards: BTreeSet<&str> = places.values().map(String::as_str).collect();
    if shards.len() > SHARD_LIMIT {
        return Err(WeightsError::TooMany {
            name: index.to_owned(),
            what: "parts",
            found: shards.len() as u64,
            limit: SHARD_LIMIT as u64,
        });
    }
    let bad = |name: &&&str| !name.ends_with(".safetensors") || crate::files::check_name(name).is_err();
    if let Some(shard) = shards.iter().find(bad) {
        let shard = shard.chars().take(255).collect();
        return Err(WeightsError::ShardName { index: index.to_owned(), shard });
    }

    let mut left = HEADER_LIMIT;
    let (mut sizes, mut entries) = (Vec::new(), BTreeMap::new());
    for shard in shards {
        let (file, start) = FileSize::open(files, shard).await.map_err(|error| match error {
            WeightsError::Files(FilesError::NotFound { .. }) => {
                WeightsError::MissingShard { index: index.to_owned(), shard: shard.to_owned() }
            }
            error => error,
        })?;
        let header = Header::read(files, file, start, left).await?;
        left = left.saturating_sub(header.bytes);
        for (tensor, entry) in header.entries {
            match places.get(&tensor) {
                Some(place) if place == shard => {
                    entries.insert(tensor, entry);
                }
                Some(place) => {
                    let (first, second) = (place.clone(), shard.to_owned());
                    return Err(WeightsError::Twice { tensor, first, second });
                }
                None => {}
            }
        }
        sizes.push(header.file);
    }
    match places.into_iter().find(|(tensor, _)| !entries.contains_key(tensor)) {
        Some((tensor, shard)) => Err(WeightsError::NotInShard { index: index.to_owned(), tensor, shard }),
        None => Ok((sizes, entries)),
    }
}

/// A tensor as a header describes it. The library's own type has offsets of 32 bits in a browser, where files of
/// 5 GB are read too: a device needs a few blocks of them.
#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the beginning of the data.
    data_offsets: (u64, u64),
}

/// How many bytes the tensors take. They must follow each other without holes and overlaps, and be as large as their
/// shapes say.
fn data_length(tensors: &BTreeMap<String, Info>) -> Result<u64, String> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(_, info)| info.data_offsets);
    let mut reached = 0;
    for (name, info) in sorted {
        let (first, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize() as u64, |bits: u64, dimension| {
            bits.checked_mul(*dimension as u64)
        });
        let bytes = bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
        if first != reached || end.checked_sub(first).is_none_or(|length| Some(length) != bytes) {
            return Err(format!(
                "the tensor {name} of shape {:?} in {} is at bytes {first} to {end}, and the one before ends at {reached}",
                info.shape, info.dtype
            ));
        }
        reached = end;
    }
    Ok(reached)
}

/// The header's members but `__metadata__`, which is checked and left out.
struct Tensors(BTreeMap<String, Info>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = BTreeMap<String, Info>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = members.next_key::<String>()? {
                    if name == "__metadata__" {
                        members.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    let info = members.next_value()?;
                    if tensors.insert(name, info).is_some() {
                        return Err(A::Error::custom("a tensor is listed twice"));
                    }
                }
                Ok(tensors)
            }
        }

        deserializer.deserialize_map(Members).map(Self)
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Which tensor is in which file; a tensor that is listed twice is an error, where a map would keep one of the two.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = BTreeMap<String, String>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, file)) = pairs.next_entry::<String, String>()? {
                    match map.entry(tensor) {
                        btree_map::Entry::Vacant(place) => place.insert(file),
                        btree_map::Entry::Occupied(place) => {
                            return Err(A::Error::custom(format!("{} is listed twice", place.key())));
                        }
                    };
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Pairs).map(Self)
    }
}
