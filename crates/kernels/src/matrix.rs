//! A frozen matrix on a device, and its building from a stream of values.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::codec;
use crate::ops::{self, Side};
use crate::storage::Layout;
use crate::{KernelError, Storage};

/// So many values are unpacked at once where they leave the device (4 MiB).
const READ: usize = 1 << 20;

/// A frozen matrix W `[rows, columns]` (PyTorch's `Linear.weight`: `[out, in]`) on a device.
///
/// A clone shares the device's memory.
#[derive(Clone, Debug)]
pub struct FrozenMatrix {
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// [rows, columns]
    Plain(Tensor<2>),
    /// [rows, stride], as the layout says.
    Packed(Tensor<2, Int>, Layout),
}

impl FrozenMatrix {
    /// A matrix from all its values in row-major order.
    ///
    /// # Errors
    ///
    /// Those of [`FrozenBuilder`].
    pub fn from_f32(
        storage: Storage,
        values: Vec<f32>,
        shape: [usize; 2],
        device: &Device,
    ) -> Result<Self, KernelError> {
        let mut builder = FrozenBuilder::new(storage, shape, device)?;
        if storage == Storage::F32 && values.len() == shape[0] * shape[1] {
            builder.check(&values, 0)?;
            builder.found = values.len();
            builder.packed = bytemuck::cast_vec(values);
            return builder.finish();
        }
        builder.push(&values)?;
        builder.finish()
    }

    /// A matrix `[rows, columns]` that repeats the rows of `values`, which are in row-major order: cheap to make at any
    /// size, for where the numbers do not matter.
    ///
    /// # Errors
    ///
    /// Those of [`FrozenBuilder`].
    pub fn repeated(
        storage: Storage,
        values: &[f32],
        [rows, columns]: [usize; 2],
        device: &Device,
    ) -> Result<Self, KernelError> {
        let mut builder = FrozenBuilder::new(storage, [rows, columns], device)?;
        builder.push(values)?;
        if builder.packed.is_empty() || !builder.row.is_empty() {
            return Err(builder.count());
        }
        let words = rows * builder.layout.stride();
        while builder.packed.len() < words {
            // Whole rows: a copy begins where they begin.
            let copied = builder.packed.len().min(words - builder.packed.len());
            builder.packed.extend_from_within(..copied);
        }
        builder.found = rows * columns;
        builder.finish()
    }

    /// A matrix in [`Storage::F32`] from a tensor `[rows, columns]`, taken out of any graph.
    pub fn from_tensor(tensor: Tensor<2>) -> Self {
        Self { weights: Weights::Plain(tensor.without_autodiff()) }
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        match &self.weights {
            Weights::Plain(tensor) => tensor.dims(),
            Weights::Packed(packed, layout) => [packed.dims()[0], layout.columns],
        }
    }

    /// How its numbers are stored.
    pub fn storage(&self) -> Storage {
        match &self.weights {
            Weights::Plain(_) => Storage::F32,
            Weights::Packed(_, layout) => layout.storage,
        }
    }

    /// Its bytes on the device.
    pub fn bytes(&self) -> u64 {
        let [rows, columns] = self.dims();
        self.storage().bytes(rows, columns)
    }

    /// `x Wᵀ`. x: [n, columns] -> [n, rows]; differentiable in x.
    ///
    /// # Panics
    ///
    /// When x is not as wide as the matrix, is on another device or is not f32: as burn's own operations do.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        self.product(x, Side::Columns)
    }

    /// `x W`. x: [n, rows] -> [n, columns]; differentiable in x.
    ///
    /// # Panics
    ///
    /// When x is not as wide as the matrix is high, is on another device or is not f32.
    pub fn apply_transposed(&self, x: Tensor<2>) -> Tensor<2> {
        self.product(x, Side::Rows)
    }

    fn product(&self, x: Tensor<2>, side: Side) -> Tensor<2> {
        let [rows, columns] = self.dims();
        let inputs = match side {
            Side::Columns => columns,
            Side::Rows => rows,
        };
        assert_eq!(x.dims()[1], inputs, "a frozen matrix of {rows} x {columns} and an input {:?}", x.dims());
        match (&self.weights, side) {
            (Weights::Plain(tensor), Side::Columns) => x.matmul(tensor.clone().transpose()),
            (Weights::Plain(tensor), Side::Rows) => x.matmul(tensor.clone()),
            (Weights::Packed(packed, layout), side) => ops::product(x, packed.clone(), *layout, side),
        }
    }

    /// Rows looked up, as a token embedding does. ids: [n] -> [n, columns]
    ///
    /// # Panics
    ///
    /// On the CPU, when an id is not below the number of rows.
    pub fn select(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        match &self.weights {
            Weights::Plain(tensor) => tensor.clone().select(0, ids),
            Weights::Packed(packed, layout) => ops::unpack(packed.clone().select(0, ids), *layout),
        }
    }

    /// Some of the rows as a matrix of its own, stored as this one is.
    ///
    /// # Panics
    ///
    /// When the range is empty or beyond the rows.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let [rows, _] = self.dims();
        assert!(range.start < range.end && range.end <= rows, "rows {range:?} of {rows}");
        let weights = match &self.weights {
            Weights::Plain(tensor) => Weights::Plain(tensor.clone().slice([range])),
            Weights::Packed(packed, layout) => Weights::Packed(packed.clone().slice([range]), *layout),
        };
        Self { weights }
    }

    /// The tensor `[rows, columns]` of a matrix in [`Storage::F32`].
    pub fn tensor(&self) -> Option<Tensor<2>> {
        match &self.weights {
            Weights::Plain(tensor) => Some(tensor.clone()),
            Weights::Packed(..) => None,
        }
    }

    /// All values in row-major order, as the products see them. Unpacked in pieces: the device never holds them all.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn to_f32(&self) -> Result<Vec<f32>, KernelError> {
        let [rows, columns] = self.dims();
        let mut values = Vec::with_capacity(rows * columns);
        let step = (READ / columns).max(1);
        for start in (0..rows).step_by(step) {
            let piece = match self.rows(start..rows.min(start + step)).weights {
                Weights::Plain(tensor) => tensor,
                Weights::Packed(packed, layout) => ops::unpack(packed, layout),
            };
            let data = piece.into_data_async().await.map_err(readback)?;
            values.extend_from_slice(data.as_slice().map_err(readback)?);
        }
        Ok(values)
    }
}

/// Builds a [`FrozenMatrix`] from values as they come: each row is packed when it is complete.
///
/// What it holds is the packed matrix and one row.
#[derive(Debug)]
pub struct FrozenBuilder {
    layout: Layout,
    rows: usize,
    device: Device,
    /// The rows that are complete.
    packed: Vec<u32>,
    /// The values of the next row.
    row: Vec<f32>,
    /// Values pushed.
    found: usize,
}

impl FrozenBuilder {
    /// A matrix `[rows, columns]` to be filled.
    ///
    /// # Errors
    ///
    /// [`KernelError::Size`], when there is no such matrix or no memory for it.
    pub fn new(storage: Storage, shape: [usize; 2], device: &Device) -> Result<Self, KernelError> {
        let [rows, columns] = shape;
        let size = KernelError::Size { rows, columns };
        let layout = Layout::new(storage, columns);
        // A device's kernels index in 32 bits; values are counted in usize.
        let words = rows.checked_mul(layout.stride()).filter(|&words| u32::try_from(words).is_ok());
        let Some(words) = words.filter(|&words| words > 0 && rows.checked_mul(columns).is_some()) else {
            return Err(size);
        };
        let mut packed = Vec::new();
        packed.try_reserve_exact(words).map_err(|_| size)?;
        let device = device.clone().without_autodiff();
        Ok(Self { layout, rows, device, packed, row: Vec::new(), found: 0 })
    }

    /// The next values in row-major order, any number of them.
    ///
    /// # Errors
    ///
    /// When they are more than the matrix has, or one of them cannot be stored. The builder is then of no more use.
    pub fn push(&mut self, mut values: &[f32]) -> Result<(), KernelError> {
        let columns = self.layout.columns;
        let start = self.found;
        self.found = start.saturating_add(values.len());
        if self.found > self.rows * columns {
            return Err(self.count());
        }
        self.check(values, start)?;
        if !self.row.is_empty() {
            let (head, rest) = values.split_at(values.len().min(columns - self.row.len()));
            self.row.extend_from_slice(head);
            values = rest;
            if self.row.len() < columns {
                return Ok(());
            }
            let row = std::mem::take(&mut self.row);
            self.pack(&row)?;
        }
        let mut rows = values.chunks_exact(columns);
        rows.by_ref().try_for_each(|row| self.pack(row))?;
        self.row.extend_from_slice(rows.remainder());
        Ok(())
    }

    /// The matrix on its device.
    ///
    /// # Errors
    ///
    /// When values are missing, or a [`Self::push`] failed before.
    pub fn finish(self) -> Result<FrozenMatrix, KernelError> {
        let stride = self.layout.stride();
        if self.found != self.rows * self.layout.columns || self.packed.len() != self.rows * stride {
            return Err(self.count());
        }
        let shape = [self.rows, stride];
        let weights = match self.layout.storage {
            Storage::F32 => {
                let data = TensorData::new(bytemuck::cast_vec::<u32, f32>(self.packed), shape);
                Weights::Plain(Tensor::from_data(data, (&self.device, DType::F32)))
            }
            _ => {
                let data = TensorData::new(self.packed, shape);
                Weights::Packed(Tensor::from_data(data, (&self.device, DType::U32)), self.layout)
            }
        };
        Ok(FrozenMatrix { weights })
    }

    fn pack(&mut self, row: &[f32]) -> Result<(), KernelError> {
        let start = self.packed.len();
        self.packed.resize(start + self.layout.stride(), 0);
        codec::pack(self.layout, row, &mut self.packed[start..]).map_err(|magnitude| {
            // Half a row is none: `finish` sees that one is missing.
            self.packed.truncate(start);
            let row = start / self.layout.stride();
            KernelError::Magnitude { storage: self.layout.storage, row, magnitude }
        })
    }

    /// Refuses what is no number; `start` is the position of the first.
    fn check(&self, values: &[f32], start: usize) -> Result<(), KernelError> {
        let Some(at) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let columns = self.layout.columns;
        Err(KernelError::NotFinite {
            row: (start + at) / columns,
            column: (start + at) % columns,
            value: values[at],
        })
    }

    fn count(&self) -> KernelError {
        KernelError::Count { rows: self.rows, columns: self.layout.columns, found: self.found }
    }
}

fn readback(error: impl std::fmt::Debug) -> KernelError {
    KernelError::Readback(format!("{error:?}"))
}
