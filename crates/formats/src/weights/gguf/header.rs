//! The header of a GGUF file, fetched step by step: every length is checked against what a header may have before
//! anything of that length is fetched or held.

use std::collections::BTreeMap;

use super::super::{FileSize, NumberFormat, WeightsError, elements};
use super::{GgufValue, Strings};
use crate::files::Files;

/// Llama 3's header, with 128 thousand tokens and 280 thousand merges, has 8 MB; Gemma 3's has 7 MB.
const HEADER_LIMIT: u64 = 64 << 20;
/// Real files have 20 to 60 keys.
const KEYS_LIMIT: u64 = 1 << 12;
/// The largest open models have a few thousand tensors.
const TENSORS_LIMIT: u64 = 1 << 16;
/// In all lists together. The largest vocabularies have a quarter of a million tokens, each with a score and a kind, and
/// half a million merges.
const VALUES_LIMIT: u64 = 1 << 22;
/// Four times what ggml itself has room for.
const NAME_LIMIT: u64 = 256;
/// ggml's `GGML_MAX_DIMS`.
const DIMENSIONS_LIMIT: u32 = 4;
/// The first step of the fetches: enough for a header without a vocabulary. Each step doubles what has been fetched.
const FIRST_FETCH: u64 = 64 << 10;
/// The largest step.
const FETCH_LIMIT: u64 = 4 << 20;

/// What a header says.
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, GgufValue>,
    pub(super) tensors: Vec<Tensor>,
    /// Its length in bytes.
    pub(super) end: u64,
}

/// A tensor as the header describes it.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) format: NumberFormat,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    /// From the beginning of the data.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Header {
    pub(super) async fn read(files: &impl Files, file: &FileSize) -> Result<Self, WeightsError> {
        let mut reader = Reader { files, file, bytes: Vec::new(), at: 0, fetched: 0, values: 0 };
        reader.take(4).await?;
        let version = reader.u32().await?;
        if !(2..=3).contains(&version) {
            let reason = match version.swap_bytes() {
                2 | 3 => "its numbers are big-endian, and only little-endian files are read".to_owned(),
                _ => format!("it is of GGUF version {version}, and 2 and 3 are read"),
            };
            return Err(reader.wrong(reason));
        }
        let tensors = reader.count("tensors", TENSORS_LIMIT).await?;
        let keys = reader.count("keys", KEYS_LIMIT).await?;

        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.string(NAME_LIMIT).await?;
            let kind = reader.u32().await?;
            let value = reader.value(kind).await?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.wrong(format!("it says {key} twice")));
            }
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(reader.tensor().await?);
        }
        Ok(Self { metadata, tensors: found, end: reader.position() })
    }
}

/// A header as it comes.
struct Reader<'a, F> {
    files: &'a F,
    file: &'a FileSize,
    /// What was fetched and not dropped yet.
    bytes: Vec<u8>,
    /// How much of `bytes` has been read.
    at: usize,
    /// How much of the file was fetched.
    fetched: u64,
    /// How many values the lists so far have.
    values: u64,
}

impl<F: Files> Reader<'_, F> {
    fn position(&self) -> u64 {
        self.fetched - (self.bytes.len() - self.at) as u64
    }

    /// The next `length` bytes.
    async fn take(&mut self, length: usize) -> Result<&[u8], WeightsError> {
        if self.bytes.len() - self.at < length {
            self.fetch(length).await?;
        }
        let start = self.at;
        self.at += length;
        self.bytes.get(start..self.at).ok_or_else(|| self.wrong("it ends too early".to_owned()))
    }

    async fn fetch(&mut self, length: usize) -> Result<(), WeightsError> {
        let limit = self.file.size.min(HEADER_LIMIT);
        let needed = self.position().saturating_add(length as u64);
        if needed > limit {
            return Err(self.too_long(needed));
        }
        let step = self.fetched.clamp(FIRST_FETCH, FETCH_LIMIT);
        let end = (self.fetched + step).max(needed).min(limit);
        let more = self.files.read(&self.file.name, self.fetched..end).await?;
        self.bytes.drain(..self.at);
        self.at = 0;
        self.fetched += more.len() as u64;
        if self.bytes.is_empty() {
            self.bytes = more;
        } else {
            self.bytes.extend(more);
        }
        Ok(())
    }

    /// The header would reach past the file's end, or past every limit.
    fn too_long(&self, needed: u64) -> WeightsError {
        let name = self.file.name.clone();
        if needed > self.file.size {
            return WeightsError::Truncated { name, expected: needed, found: self.file.size };
        }
        WeightsError::HeaderLength { name, header: needed, limit: HEADER_LIMIT }
    }

    fn wrong(&self, reason: String) -> WeightsError {
        WeightsError::Header { name: self.file.name.clone(), reason }
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let mut array = [0; N];
        // `take` gives as many bytes as it was asked for.
        array.copy_from_slice(self.take(N).await?);
        Ok(array)
    }

    async fn u32(&mut self) -> Result<u32, WeightsError> {
        self.array().await.map(u32::from_le_bytes)
    }

    async fn u64(&mut self) -> Result<u64, WeightsError> {
        self.array().await.map(u64::from_le_bytes)
    }

    /// A number of things, each of which takes at least a byte of what is left of the header.
    async fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, WeightsError> {
        let found = self.u64().await?;
        if found > limit {
            return Err(WeightsError::TooMany { name: self.file.name.clone(), what, found, limit });
        }
        self.room(found)?;
        Ok(found)
    }

    /// There are `length` more bytes that may belong to the header.
    fn room(&self, length: u64) -> Result<usize, WeightsError> {
        let needed = self.position().saturating_add(length);
        match usize::try_from(length) {
            Ok(length) if needed <= self.file.size.min(HEADER_LIMIT) => Ok(length),
            _ => Err(self.too_long(needed)),
        }
    }

    async fn text(&mut self, limit: u64) -> Result<&str, WeightsError> {
        let length = self.u64().await?;
        if length > limit {
            let name = self.file.name.clone();
            let what = "bytes in one name or text";
            return Err(WeightsError::TooMany { name, what, found: length, limit });
        }
        let length = self.room(length)?;
        let name = &self.file.name;
        std::str::from_utf8(self.take(length).await?)
            .map_err(|error| WeightsError::Header { name: name.clone(), reason: error.to_string() })
    }

    async fn string(&mut self, limit: u64) -> Result<String, WeightsError> {
        self.text(limit).await.map(str::to_owned)
    }

    /// A value of a kind (`enum gguf_metadata_value_type`).
    async fn value(&mut self, kind: u32) -> Result<GgufValue, WeightsError> {
        match kind {
            8 => self.string(HEADER_LIMIT).await.map(GgufValue::String),
            9 => {
                let kind = self.u32().await?;
                self.list(kind).await
            }
            _ => self.scalar(kind).await,
        }
    }

    /// A number, or yes or no.
    async fn scalar(&mut self, kind: u32) -> Result<GgufValue, WeightsError> {
        Ok(match kind {
            0 => GgufValue::U32(self.array().await.map(u8::from_le_bytes)?.into()),
            1 => GgufValue::I32(self.array().await.map(i8::from_le_bytes)?.into()),
            2 => GgufValue::U32(self.array().await.map(u16::from_le_bytes)?.into()),
            3 => GgufValue::I32(self.array().await.map(i16::from_le_bytes)?.into()),
            4 => GgufValue::U32(self.u32().await?),
            5 => GgufValue::I32(self.array().await.map(i32::from_le_bytes)?),
            6 => GgufValue::F32(self.array().await.map(f32::from_le_bytes)?),
            7 => match self.array::<1>().await? {
                [0] => GgufValue::Bool(false),
                [1] => GgufValue::Bool(true),
                [other] => return Err(self.wrong(format!("a truth value is {other}"))),
            },
            10 => GgufValue::U64(self.u64().await?),
            11 => GgufValue::I64(self.array().await.map(i64::from_le_bytes)?),
            12 => GgufValue::F64(self.array().await.map(f64::from_le_bytes)?),
            _ => return Err(self.wrong(format!("a value is of the unknown kind {kind}"))),
        })
    }

    /// A list of values of one kind. What is held grows with what has come, whatever length the file claims.
    async fn list(&mut self, kind: u32) -> Result<GgufValue, WeightsError> {
        if kind == 9 {
            return Err(self.wrong("a list is of lists, which no model needs".to_owned()));
        }
        let length = self.count("values in lists", VALUES_LIMIT - self.values).await?;
        self.values += length;
        if kind == 8 {
            let mut strings = Strings::default();
            for _ in 0..length {
                strings.push(self.text(HEADER_LIMIT).await?);
            }
            return Ok(GgufValue::Strings(strings));
        }
        let (mut integers, mut floats) = (Vec::new(), Vec::new());
        for _ in 0..length {
            let value = self.scalar(kind).await?;
            match value {
                GgufValue::F32(number) => floats.push(number),
                GgufValue::F64(number) => floats.push(number as f32),
                GgufValue::Bool(flag) => integers.push(flag.into()),
                GgufValue::I32(number) => integers.push(number),
                GgufValue::I64(number) if i32::try_from(number).is_err() => {
                    return Err(self.wrong(format!("the number {number} is in a list")));
                }
                value => match value.as_u64().and_then(|number| i32::try_from(number).ok()) {
                    Some(number) => integers.push(number),
                    None => return Err(self.wrong(format!("the value {value:?} is in a list"))),
                },
            }
        }
        Ok(if matches!(kind, 6 | 12) { GgufValue::Floats(floats) } else { GgufValue::Integers(integers) })
    }

    async fn tensor(&mut self) -> Result<Tensor, WeightsError> {
        let name = self.string(NAME_LIMIT).await?;
        let dimensions = self.u32().await?;
        if dimensions > DIMENSIONS_LIMIT {
            return Err(self.wrong(format!("the tensor {name} has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let dimension = self.u64().await?;
            match usize::try_from(dimension) {
                Ok(dimension) => shape.push(dimension),
                Err(_) => return Err(self.wrong(format!("a dimension of the tensor {name} is {dimension}"))),
            }
        }
        let kind = self.u32().await?;
        let Some((format, numbers, width)) = of_ggml(kind) else {
            return Err(self.wrong(format!("the tensor {name} is of the unknown kind {kind}")));
        };
        // ggml writes the innermost dimension first, and cuts it into blocks.
        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let bytes = elements(&shape).filter(|count| *count > 0 && row % numbers == 0);
        let bytes = bytes.and_then(|count| (count / numbers).checked_mul(width));
        let Some(bytes) = bytes else {
            return Err(self.wrong(format!("the tensor {name} has the shape {shape:?} in {format}")));
        };
        let offset = self.u64().await?;
        Ok(Tensor { name, format, shape, offset, bytes: bytes as u64 })
    }
}

/// ggml's `enum ggml_type`: the format, the numbers in a block, and its bytes.
fn of_ggml(kind: u32) -> Option<(NumberFormat, usize, usize)> {
    let known = |format: NumberFormat| format.block().map(|(numbers, width)| (format, numbers, width));
    let other = |name, numbers, width| Some((NumberFormat::Other(name), numbers, width));
    match kind {
        0 => known(NumberFormat::F32),
        1 => known(NumberFormat::F16),
        2 => known(NumberFormat::Q4_0),
        3 => known(NumberFormat::Q4_1),
        6 => known(NumberFormat::Q5_0),
        7 => known(NumberFormat::Q5_1),
        8 => known(NumberFormat::Q8_0),
        12 => known(NumberFormat::Q4K),
        13 => known(NumberFormat::Q5K),
        14 => known(NumberFormat::Q6K),
        28 => known(NumberFormat::F64),
        30 => known(NumberFormat::Bf16),
        9 => other("Q8_1", 32, 40),
        10 => other("Q2_K", 256, 84),
        11 => other("Q3_K", 256, 110),
        15 => other("Q8_K", 256, 292),
        16 => other("IQ2_XXS", 256, 66),
        17 => other("IQ2_XS", 256, 74),
        18 => other("IQ3_XXS", 256, 98),
        19 => other("IQ1_S", 256, 50),
        20 => other("IQ4_NL", 32, 18),
        21 => other("IQ3_S", 256, 110),
        22 => other("IQ2_S", 256, 82),
        23 => other("IQ4_XS", 256, 136),
        24 => other("I8", 1, 1),
        25 => other("I16", 1, 2),
        26 => other("I32", 1, 4),
        27 => other("I64", 1, 8),
        29 => other("IQ1_M", 256, 56),
        34 => other("TQ1_0", 256, 54),
        35 => other("TQ2_0", 256, 66),
        39 => other("MXFP4", 32, 17),
        _ => None,
    }
}
