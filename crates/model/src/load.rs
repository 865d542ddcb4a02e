//! Tensors from a model's files onto a device, one after another: what is held beside them is a piece, never a tensor.

use std::collections::BTreeMap;

use baton_formats::{BlockPart, EndPart, Files, HeadPart, TensorEntry, TensorIndex, TensorSpec};
use baton_kernels::{FrozenBuilder, FrozenMatrix, KernelError, Storage};
use burn::tensor::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ModelError;

/// What a tensor of the model is, and so how it is kept.
pub(crate) trait Part: Copy + Ord {
    /// Whether it is a large matrix that may be packed; the rest is small and stays f32.
    fn is_packed(self) -> bool;

    /// How it is kept where matrices are kept in `storage`.
    fn storage(self, storage: Storage) -> Storage {
        if self.is_packed() { storage } else { Storage::F32 }
    }
}

impl Part for BlockPart {
    fn is_packed(self) -> bool {
        matches!(self, Self::Weight(_))
    }
}

impl Part for EndPart {
    fn is_packed(self) -> bool {
        matches!(self, Self::Embedding | Self::LanguageHead)
    }
}

impl Part for HeadPart {
    fn is_packed(self) -> bool {
        false
    }
}

/// The bytes that tensors take on the device.
pub(crate) fn bytes<P: Part>(specs: &[TensorSpec<P>], storage: Storage) -> u64 {
    let bytes = |spec: &TensorSpec<P>| {
        let [rows, columns] = dims(spec);
        spec.part.storage(storage).bytes(rows, columns)
    };
    specs.iter().map(bytes).fold(0, u64::saturating_add)
}

/// A tensor as a matrix: of gains and biases, a row.
pub(crate) fn dims<P>(spec: &TensorSpec<P>) -> [usize; 2] {
    match *spec.shape {
        [rows, columns] => [rows, columns],
        _ => [1, spec.shape.iter().product()],
    }
}

/// Where tensors come from, and where they go.
pub(crate) struct Reader<'a, F> {
    pub(crate) files: &'a F,
    pub(crate) index: &'a TensorIndex,
    /// How matrices are kept.
    pub(crate) storage: Storage,
    pub(crate) device: &'a Device,
    /// Hears the bytes as they come.
    pub(crate) on_bytes: &'a mut dyn FnMut(u64),
}

impl<F: Files> Reader<'_, F> {
    /// Every tensor of `specs`, by what it is.
    ///
    /// Neighbours in a file are fetched together; each is packed as its numbers come. A tensor that its file has the
    /// other way round is put together first.
    pub(crate) async fn read<P: Part>(
        &mut self,
        specs: &[TensorSpec<P>],
    ) -> Result<BTreeMap<P, FrozenMatrix>, ModelError> {
        let mut wanted = Vec::with_capacity(specs.len());
        let mut by_name = BTreeMap::new();
        for spec in specs {
            let missing = || ModelError::MissingTensor(spec.name().to_owned());
            let entry = self.index.find(&spec.names).ok_or_else(missing)?;
            wanted.push((entry, spec.file_shape()));
            by_name.insert(entry.name.as_str(), spec);
        }
        let mut read = BTreeMap::new();
        let mut current: Option<Filling<'_, P>> = None;
        let mut sink = |entry: &TensorEntry, values: &[f32]| -> Result<(), ModelError> {
            if current.as_ref().is_none_or(|filling| filling.name != entry.name) {
                if let Some(done) = current.take() {
                    read.insert(done.spec.part, done.finish()?);
                }
                let spec = by_name.get(entry.name.as_str()).copied();
                let spec = spec.ok_or_else(|| ModelError::MissingTensor(entry.name.clone()))?;
                current = Some(Filling::new(spec, &entry.name, self.storage, self.device)?);
            }
            current.as_mut().map_or(Ok(()), |filling| filling.push(values))
        };
        self.index.stream_many_f32(self.files, &wanted, self.on_bytes, &mut sink).await?;
        if let Some(done) = current.take() {
            read.insert(done.spec.part, done.finish()?);
        }
        match specs.iter().find(|spec| !read.contains_key(&spec.part)) {
            Some(spec) => Err(ModelError::MissingTensor(spec.name().to_owned())),
            None => Ok(read),
        }
    }
}

/// A tensor whose numbers are coming.
struct Filling<'a, P> {
    name: String,
    spec: &'a TensorSpec<P>,
    builder: FrozenBuilder,
    /// Of a tensor that the file has the other way round: its numbers so far.
    turned: Option<Vec<f32>>,
}

impl<'a, P: Part> Filling<'a, P> {
    fn new(
        spec: &'a TensorSpec<P>,
        name: &str,
        storage: Storage,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let [rows, columns] = dims(spec);
        let builder = FrozenBuilder::new(spec.part.storage(storage), [rows, columns], device);
        let builder = builder.map_err(|error| ModelError::of_tensor(name, error))?;
        let mut turned = spec.transposed.then(Vec::new);
        if let Some(values) = &mut turned {
            // The builder would not have been made of more than can be counted.
            let room = values.try_reserve_exact(rows.saturating_mul(columns));
            room.map_err(|_| ModelError::of_tensor(name, KernelError::Size { rows, columns }))?;
        }
        Ok(Self { name: name.to_owned(), spec, builder, turned })
    }

    fn push(&mut self, values: &[f32]) -> Result<(), ModelError> {
        match &mut self.turned {
            None => self.builder.push(values).map_err(|error| ModelError::of_tensor(&self.name, error)),
            Some(all) => {
                all.extend_from_slice(values);
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<FrozenMatrix, ModelError> {
        let [rows, columns] = dims(self.spec);
        let mut finish = || {
            if let Some(values) = &self.turned {
                let mut row = Vec::with_capacity(columns);
                for start in 0..rows {
                    row.clear();
                    row.extend(values.iter().skip(start).step_by(rows));
                    self.builder.push(&row)?;
                }
            }
            Ok(())
        };
        finish().map_err(|error| ModelError::of_tensor(&self.name, error))?;
        self.builder.finish().map_err(|error| ModelError::of_tensor(&self.name, error))
    }
}

/// Tensors of these shapes with numbers of no meaning, made without any file. They are of a size that keeps what passes
/// through them about as large as it is.
///
/// # Errors
///
/// When one is too large for the device.
pub(crate) fn made_up<P: Part>(
    specs: &[TensorSpec<P>],
    storage: Storage,
    device: &Device,
) -> Result<BTreeMap<P, FrozenMatrix>, ModelError> {
    /// So few rows are quick to pack, and enough that no two neighbours are the same.
    const DRAWN: usize = 61;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut matrix = |spec: &TensorSpec<P>| {
        let [rows, columns] = dims(spec);
        let (middle, spread) = match spec.shape.len() {
            1 => (1.0, 0.1),
            _ => (0.0, (3.0 / columns as f32).sqrt()),
        };
        let drawn = rows.min(DRAWN).saturating_mul(columns);
        let values: Vec<f32> =
            (0..drawn).map(|_| middle + spread * (2.0 * rng.random::<f32>() - 1.0)).collect();
        let made = FrozenMatrix::repeated(spec.part.storage(storage), &values, [rows, columns], device);
        Ok((spec.part, made.map_err(|error| ModelError::of_tensor(spec.name(), error))?))
    };
    specs.iter().map(&mut matrix).collect()
}

/// The tensor of a matrix that is kept as f32.
pub(crate) fn plain(matrix: &FrozenMatrix) -> Tensor<2> {
    matrix.tensor().expect("a part that is not packed is f32")
}
