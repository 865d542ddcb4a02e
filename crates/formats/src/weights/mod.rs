//! Where a model's tensors are, and how they are read: the headers first, then the tensors that are wanted and no others.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::files::{Files, FilesError};
use crate::layout::TensorSpec;

mod error;
pub mod gguf;
mod number;
mod safetensors;
mod stream;
mod write;

pub use error::WeightsError;
pub use gguf::{Gguf, GgufValue, write_gguf};
pub use number::NumberFormat;
pub use stream::{FETCH_LIMIT, PIECE_LIMIT, Sink};
pub use write::{SafetensorsWriter, write_safetensors};

/// The weights of a model in one file.
const WEIGHTS_FILE: &str = "model.safetensors";
/// The list of the parts of a model in several files.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name, in Hugging Face's words.
    pub name: String,
    /// The name of the file that it is in.
    pub file: String,
    /// How its numbers are written.
    pub format: NumberFormat,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<u64>,
    /// What the program that wrote the file did to the numbers.
    pub(crate) undo: Undo,
}

/// What a converter did to a tensor, and a reader undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Nothing.
    Nothing,
    /// llama.cpp's order of the rows of q and k: within a head of `head` rows, the two halves are interleaved.
    Rotary {
        /// Rows of a head, an even number.
        head: usize,
    },
    /// One was added: Gemma's norms scale by `1 + weight`.
    PlusOne,
    /// A matrix is stored transposed.
    Transpose,
}

impl TensorEntry {
    /// How many bytes it takes in its file.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Numbers and bytes of a block.
    fn block(&self) -> Result<(usize, usize), WeightsError> {
        self.format.block().ok_or_else(|| WeightsError::UnsupportedFormat {
            tensor: self.name.clone(),
            format: self.format.name(),
        })
    }

    /// The shape is the one that the model needs, and the format one that is read here.
    fn check(&self, shape: &[usize]) -> Result<(), WeightsError> {
        if self.shape != shape {
            return Err(WeightsError::WrongShape {
                tensor: self.name.clone(),
                expected: shape.to_vec(),
                found: self.shape.clone(),
            });
        }
        self.block().map(|_| ())
    }

    /// Room for its numbers. Its file may lie about its size, or the tab may be full: that is an error, not the end.
    fn allocate(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = Vec::new();
        let count = elements(&self.shape);
        let room = count.is_some_and(|count| values.try_reserve_exact(count).is_ok());
        if room { Ok(values) } else { Err(self.out_of_memory()) }
    }

    fn out_of_memory(&self) -> WeightsError {
        let bytes = self.shape.iter().fold(4, |bytes: u64, dim| bytes.saturating_mul(*dim as u64));
        WeightsError::OutOfMemory { tensor: self.name.clone(), bytes }
    }
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSize {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

impl FileSize {
    /// The size of a file, and its first eight bytes.
    async fn open(files: &impl Files, name: &str) -> Result<(Self, [u8; 8]), WeightsError> {
        let size = files.size(name).await?;
        let file = Self { name: name.to_owned(), size };
        if size < safetensors::LENGTH_BYTES && name.ends_with(".gguf") {
            return Err(WeightsError::NotGguf { name: file.name });
        }
        if size < safetensors::LENGTH_BYTES {
            return Err(WeightsError::TooShort { name: file.name, size });
        }
        let start = files.read(name, 0..safetensors::LENGTH_BYTES).await?;
        let start: [u8; 8] = start.as_slice().try_into().map_err(|_| FilesError::Truncated {
            name: name.to_owned(),
            wanted: safetensors::LENGTH_BYTES,
            got: start.len() as u64,
        })?;
        Ok((file, start))
    }
}

/// All tensors of a model, over all of its files.
#[derive(Clone, Debug)]
pub struct TensorIndex {
    /// The file that the tensors were found by: it is named where one is missing.
    source: String,
    files: Vec<FileSize>,
    entries: BTreeMap<String, TensorEntry>,
    /// What a GGUF file says besides.
    gguf: Option<Arc<Gguf>>,
}

impl TensorIndex {
    /// Finds a model's weights and reads their headers, and nothing else of them.
    ///
    /// They are in the file that [`Files::weights_file`] names, or in `model.safetensors`, or in the parts that
    /// `model.safetensors.index.json` lists.
    pub async fn open_model(files: &impl Files) -> Result<Self, WeightsError> {
        if let Some(name) = files.weights_file() {
            return Self::open(files, &name).await;
        }
        match Self::open(files, WEIGHTS_FILE).await {
            Err(WeightsError::Files(FilesError::NotFound { .. })) => {}
            other => return other,
        }
        match safetensors::read_shards(files, INDEX_FILE).await {
            Ok((files, entries)) => Ok(Self { source: INDEX_FILE.to_owned(), files, entries, gguf: None }),
            Err(WeightsError::Files(FilesError::NotFound { .. })) => Err(WeightsError::NoWeights),
            Err(error) => Err(error),
        }
    }

    /// Reads the header of one file, safetensors or GGUF, and nothing else of it.
    ///
    /// The tensors of a GGUF file go by the names and shapes that they have on the Hugging Face hub, and what its
    /// converter did to their numbers is undone when they are read.
    pub async fn open(files: &impl Files, name: &str) -> Result<Self, WeightsError> {
        let (file, start) = FileSize::open(files, name).await?;
        let source = name.to_owned();
        if start.starts_with(&gguf::MAGIC) {
            let (gguf, entries) = Gguf::read(files, &file).await?;
            return Ok(Self { source, files: vec![file], entries, gguf: Some(Arc::new(gguf)) });
        }
        if name.ends_with(".gguf") {
            return Err(WeightsError::NotGguf { name: file.name });
        }
        let header = safetensors::Header::read_alone(files, file, start).await?;
        Ok(Self { source, files: vec![header.file], entries: header.entries, gguf: None })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = &TensorEntry> {
        self.entries.values()
    }

    /// The files that the tensors are in.
    pub fn files(&self) -> &[FileSize] {
        &self.files
    }

    /// What the file says of its model besides, if it is a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.get(name)
    }

    /// A tensor that goes by several names (`bert.embeddings…` or `embeddings…`): the first that exists.
    pub fn find(&self, names: &[impl AsRef<str>]) -> Option<&TensorEntry> {
        names.iter().find_map(|name| self.get(name.as_ref()))
    }

    /// Checks that every tensor of `specs` is there, has its shape, and is of a format that is read; nothing is fetched.
    ///
    /// # Errors
    ///
    /// The first that is not so, by its name.
    pub fn require<Part>(&self, specs: &[TensorSpec<Part>]) -> Result<(), WeightsError> {
        specs.iter().try_for_each(|spec| {
            let entry = self.find(&spec.names).ok_or_else(|| self.missing(spec.name()))?;
            entry.check(&spec.file_shape())
        })
    }

    /// The numbers of one tensor in row-major order, in pieces of at most [`PIECE_LIMIT`] bytes of f32.
    ///
    /// What is held at once is one fetch of at most [`FETCH_LIMIT`] bytes and one piece, never the tensor; only a matrix
    /// that its file stores transposed (GPT-2 as GGUF) is put together first. `on_bytes` hears how many bytes each fetch
    /// brought.
    ///
    /// # Errors
    ///
    /// When the shape is not `expected_shape`, when its numbers are of a format that is not read, when the bytes cannot
    /// be had, and what `sink` returns.
    pub async fn stream_f32<E: From<WeightsError>>(
        &self,
        files: &impl Files,
        entry: &TensorEntry,
        expected_shape: &[usize],
        on_bytes: &mut dyn FnMut(u64),
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        entry.check(expected_shape)?;
        stream::stream(files, vec![entry], on_bytes, &mut |_, values| sink(values)).await
    }

    /// [`Self::stream_f32`] for several tensors, which come one after another in the order of their places in the files.
    ///
    /// Neighbours are fetched together, and what lies between them is skipped unless it is less than 64 KiB.
    ///
    /// # Errors
    ///
    /// As [`Self::stream_f32`].
    pub async fn stream_many_f32<E: From<WeightsError>>(
        &self,
        files: &impl Files,
        wanted: &[(&TensorEntry, Vec<usize>)],
        on_bytes: &mut dyn FnMut(u64),
        sink: &mut Sink<'_, E>,
    ) -> Result<(), E> {
        for (entry, shape) in wanted {
            entry.check(shape)?;
        }
        stream::stream(files, wanted.iter().map(|(entry, _)| *entry).collect(), on_bytes, sink).await
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

    /// The numbers of several tensors, by name, as f32, fetched as [`Self::stream_many_f32`] does.
    pub async fn read_many_f32(
        &self,
        files: &impl Files,
        wanted: &[(String, Vec<usize>)],
        mut on_bytes: impl FnMut(u64),
    ) -> Result<BTreeMap<String, Vec<f32>>, WeightsError> {
        let mut entries = Vec::with_capacity(wanted.len());
        for (name, shape) in wanted {
            entries.push((self.get(name).ok_or_else(|| self.missing(name))?, shape.clone()));
        }
        let mut tensors = BTreeMap::new();
        for (entry, shape) in &entries {
            entry.check(shape)?;
            tensors.insert(entry.name.clone(), entry.allocate()?);
        }
        self.stream_many_f32::<WeightsError>(files, &entries, &mut on_bytes, &mut |entry, piece| {
            if let Some(values) = tensors.get_mut(&entry.name) {
                values.extend_from_slice(piece);
            }
            Ok(())
        })
        .await?;
        Ok(tensors)
    }

    fn missing(&self, tensor: &str) -> WeightsError {
        WeightsError::Missing { file: self.source.clone(), tensor: tensor.to_owned() }
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1, |product: usize, dim| product.checked_mul(*dim))
}
