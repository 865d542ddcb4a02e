//! Safetensors files written: a small one at once, a large one tensor by tensor.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;

use half::{bf16, f16};
use safetensors::tensor::TensorInfo;

use super::{NumberFormat, WeightsError, elements};

/// A safetensors file of f32 tensors `(name, shape, values)`, sorted by name as PyTorch's writer does.
///
/// The same tensors and metadata give the same bytes; the library's own writer shuffles the metadata.
pub fn write_safetensors<T: AsRef<[f32]>>(
    tensors: &[(String, Vec<usize>, T)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, ..)| name);
    // Before anything as large as the shapes say is made.
    for (name, shape, values) in &sorted {
        let values = values.as_ref().len();
        if elements(shape) != Some(values) {
            return Err(WeightsError::WrongLength { tensor: name.clone(), shape: shape.clone(), values });
        }
    }
    let parts = sorted.iter().map(|(name, shape, _)| (name.clone(), NumberFormat::F32, shape.clone()));
    let mut writer = SafetensorsWriter::new(Vec::new(), parts.collect(), metadata)?;
    for (name, _, values) in sorted {
        writer.write(name, values.as_ref())?;
    }
    writer.finish()
}

/// A safetensors file that is written as its numbers come: what is held is never more than the caller's piece.
#[derive(Debug)]
pub struct SafetensorsWriter<W> {
    sink: W,
    /// The tensors that are not complete, in the file's order.
    waiting: VecDeque<Waiting>,
    /// A buffer for a few encoded numbers.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Waiting {
    name: String,
    format: NumberFormat,
    shape: Vec<usize>,
    left: usize,
}

impl<W: Write> SafetensorsWriter<W> {
    /// Begins a file of tensors `(name, format, shape)` by writing its header to `sink`.
    ///
    /// The tensors stand in the file in the order given, but wider formats first: PyTorch reads a tensor in place only
    /// where its numbers are aligned. [`Self::order`] says what comes when.
    ///
    /// # Errors
    ///
    /// When a name occurs twice, a format is none that safetensors has, a size overflows, or the sink fails.
    pub fn new(
        sink: W,
        tensors: Vec<(String, NumberFormat, Vec<usize>)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, WeightsError> {
        let json = |error: serde_json::Error| WeightsError::Write { reason: error.to_string() };
        let mut tensors = tensors;
        tensors.sort_by_key(|(_, format, _)| std::cmp::Reverse(format.block().map(|(_, bytes)| bytes)));
        let mut names: Vec<&str> = tensors.iter().map(|(name, ..)| name.as_str()).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.array_windows().find(|[first, second]| first == second) {
            let file = || "the file to write".to_owned();
            return Err(WeightsError::Twice { tensor: (*name).to_owned(), first: file(), second: file() });
        }

        let mut members = Vec::with_capacity(tensors.len() + 1);
        if !metadata.is_empty() {
            members.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata).map_err(json)?));
        }
        let mut waiting = VecDeque::with_capacity(tensors.len());
        let mut end: usize = 0;
        for (name, format, shape) in tensors {
            let (Some(dtype), Some((_, width))) = (format.to_safetensors(), format.block()) else {
                return Err(WeightsError::UnsupportedFormat { tensor: name, format: format.name() });
            };
            let left = elements(&shape);
            let stop = left.and_then(|left| left.checked_mul(width)).and_then(|bytes| end.checked_add(bytes));
            let (Some(left), Some(stop)) = (left, stop) else {
                return Err(WeightsError::OutOfMemory { tensor: name, bytes: u64::MAX });
            };
            let info = TensorInfo { dtype, shape: shape.clone(), data_offsets: (end, stop) };
            end = stop;
            let (key, info) =
                (serde_json::to_string(&name).map_err(json)?, serde_json::to_string(&info).map_err(json)?);
            members.push(format!("{key}:{info}"));
            waiting.push_back(Waiting { name, format, shape, left });
        }
        let mut header = format!("{{{}}}", members.join(","));
        // The data begins at a multiple of 8.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

        let mut writer = Self { sink, waiting, bytes: Vec::new() };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(header.as_bytes())?;
        writer.pass_complete();
        Ok(writer)
    }

    /// The names of the tensors that are not complete, in the order in which their numbers must come.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.waiting.iter().map(|tensor| tensor.name.as_str())
    }

    /// The next numbers of `name`: all of them, or a piece.
    ///
    /// # Errors
    ///
    /// When another tensor comes next, when there are more numbers than its shape has, or when the sink fails.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<(), WeightsError> {
        if values.is_empty() {
            return Ok(());
        }
        let Some(next) = self.waiting.front_mut().filter(|next| next.name == name) else {
            let expected = self.order().next().unwrap_or("the end of the file").to_owned();
            return Err(WeightsError::OutOfTurn { expected, found: name.to_owned() });
        };
        let format = next.format;
        next.left = match next.left.checked_sub(values.len()) {
            Some(left) => left,
            None => {
                let total = elements(&next.shape).unwrap_or(0);
                return Err(WeightsError::WrongLength {
                    tensor: name.to_owned(),
                    shape: next.shape.clone(),
                    values: total - next.left + values.len(),
                });
            }
        };
        let mut bytes = std::mem::take(&mut self.bytes);
        for values in values.chunks(4096) {
            bytes.clear();
            match format {
                NumberFormat::F16 => {
                    bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
                }
                NumberFormat::Bf16 => {
                    bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
                }
                NumberFormat::F64 => {
                    bytes.extend(values.iter().flat_map(|value| f64::from(*value).to_le_bytes()));
                }
                // `new` lets no other format through.
                _ => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            }
            self.put(&bytes)?;
        }
        self.bytes = bytes;
        self.pass_complete();
        Ok(())
    }

    /// Gives the sink back when every number has been written.
    ///
    /// # Errors
    ///
    /// When a tensor is not complete, or when the sink fails.
    pub fn finish(mut self) -> Result<W, WeightsError> {
        if let Some(next) = self.waiting.pop_front() {
            let values = elements(&next.shape).unwrap_or(0) - next.left;
            return Err(WeightsError::WrongLength { tensor: next.name, shape: next.shape, values });
        }
        self.sink.flush().map_err(|error| WeightsError::Write { reason: error.to_string() })?;
        Ok(self.sink)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.sink.write_all(bytes).map_err(|error| WeightsError::Write { reason: error.to_string() })
    }

    fn pass_complete(&mut self) {
        while self.waiting.front().is_some_and(|next| next.left == 0) {
            self.waiting.pop_front();
        }
    }
}
