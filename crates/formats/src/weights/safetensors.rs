//! Safetensors files: one, or the parts that an index lists.
//!
//! The format: eight bytes of length, that many bytes of JSON, then the tensors' bytes without holes
//! (<https://huggingface.co/docs/safetensors>). A large model is cut into parts, and `model.safetensors.index.json` says
//! which tensor is in which.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use safetensors::tensor::Metadata;
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
        let metadata: Metadata = serde_json::from_slice(&bytes)
            .map_err(|error| WeightsError::Header { name: name.clone(), reason: error.to_string() })?;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if size < expected {
            return Err(WeightsError::Truncated { name: name.clone(), expected, found: size });
        }
        if size > expected {
            return Err(WeightsError::TooLong { name: name.clone(), expected, found: size });
        }
        let entries = metadata.tensors().into_iter().map(|(tensor, info)| {
            let (first, end) = info.data_offsets;
            let entry = TensorEntry {
                name: tensor.clone(),
                file: name.clone(),
                format: NumberFormat::of_safetensors(info.dtype),
                shape: info.shape.clone(),
                range: start + first as u64..start + end as u64,
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
