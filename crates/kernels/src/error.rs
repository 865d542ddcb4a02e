//! What can be wrong with the values of a frozen matrix.

use crate::Storage;

/// Why a frozen matrix cannot be built or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// More or fewer values than the shape has places for.
    #[error("a matrix of {rows} x {columns} needs {} values, {found} were given", rows * columns)]
    Count {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// The number of values that came.
        found: usize,
    },
    /// A NaN or an infinity.
    #[error("the weight at row {row}, column {column} is {value}: the file is damaged, or no plain weights")]
    NotFinite {
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A block's scale is beyond f16's range.
    #[error(
        "a weight of magnitude {magnitude:e} in row {row} is too large for {}: load the model as bf16 or f32",
        storage.name()
    )]
    Magnitude {
        /// The storage asked for.
        storage: Storage,
        /// Row of the weight.
        row: usize,
        /// The largest magnitude in its block.
        magnitude: f32,
    },
    /// The matrix has no rows or columns, is larger than can be addressed, or there is no memory for it.
    #[error("a matrix of {rows} x {columns} does not fit this device's memory")]
    Size {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
    },
    /// The device failed to give values back.
    #[error("the device did not give the weights back: {0}")]
    Readback(String),
}
