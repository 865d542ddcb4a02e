//! The products on burn's CPU backend: a tile of the matrix is unpacked into scratch, and multiplied by the backend's own gemm.

use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, ops::matmul::matmul};

use crate::codec;
use crate::ops::Side;
use crate::storage::Layout;

/// Rows of a tile, and its columns: whole blocks of every storage. 1 MiB of scratch, within a phone's L2 cache.
const TILE: [usize; 2] = [512, 512];

/// Up to so many rows of x, the matrix is unpacked row by row and used at once: gemm would copy more than it computes.
const FEW: usize = 4;

/// The product of x `[n, columns]` or `[n, rows]` with the packed matrix. -> [n, rows] or [n, columns]
pub(crate) fn product(x: &FlexTensor, packed: &FlexTensor, layout: Layout, side: Side) -> FlexTensor {
    let (x, packed) = (x.to_contiguous(), packed.to_contiguous());
    let n = x.layout().shape()[0];
    let matrix = Matrix { words: slice(&packed), layout };
    let outputs = match side {
        Side::Columns => matrix.rows(),
        Side::Rows => layout.columns,
    };
    let mut y = FlexTensor::zeros(Shape::new([n, outputs]), DType::F32);
    if n <= FEW {
        few(&x, matrix, side, y.storage_mut());
    } else {
        many(&x, matrix, side, y.storage_mut());
    }
    y
}

/// All rows as numbers. -> [rows, columns]
pub(crate) fn unpack(packed: &FlexTensor, layout: Layout) -> FlexTensor {
    let packed = packed.to_contiguous();
    let matrix = Matrix { words: slice(&packed), layout };
    let mut rows = FlexTensor::zeros(Shape::new([matrix.rows(), layout.columns]), DType::F32);
    let values: &mut [f32] = rows.storage_mut();
    for (row, values) in values.chunks_mut(layout.columns).enumerate() {
        codec::unpack(layout, matrix.row(row), 0, values);
    }
    rows
}

/// The packed rows.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    words: &'a [u32],
    layout: Layout,
}

impl<'a> Matrix<'a> {
    fn rows(self) -> usize {
        self.words.len() / self.layout.stride()
    }

    fn row(self, row: usize) -> &'a [u32] {
        let stride = self.layout.stride();
        &self.words[row * stride..][..stride]
    }
}

fn few(x: &FlexTensor, matrix: Matrix<'_>, side: Side, y: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.layout.columns);
    let mut weights = vec![0.0; columns];
    let x: &[f32] = slice(x);
    for row in 0..rows {
        codec::unpack(matrix.layout, matrix.row(row), 0, &mut weights);
        match side {
            Side::Columns => {
                for (x, y) in x.chunks(columns).zip(y.chunks_mut(rows)) {
                    y[row] = dot(x, &weights);
                }
            }
            Side::Rows => {
                for (x, y) in x.chunks(rows).zip(y.chunks_mut(columns)) {
                    let x = x[row];
                    for (y, weight) in y.iter_mut().zip(&weights) {
                        *y += x * weight;
                    }
                }
            }
        }
    }
}

fn many(x: &FlexTensor, matrix: Matrix<'_>, side: Side, y: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.layout.columns);
    let shape = [TILE[0].min(rows), TILE[1].min(columns)];
    let mut tile = FlexTensor::zeros(Shape::new(shape), DType::F32);
    for row in (0..rows).step_by(shape[0]) {
        let height = shape[0].min(rows - row);
        for column in (0..columns).step_by(shape[1]) {
            let width = shape[1].min(columns - column);
            if [height, width] != [tile.layout().shape()[0], tile.layout().shape()[1]] {
                tile = FlexTensor::zeros(Shape::new([height, width]), DType::F32);
            }
            let values: &mut [f32] = tile.storage_mut();
            for (i, values) in values.chunks_mut(width).enumerate() {
                codec::unpack(matrix.layout, matrix.row(row + i), column, values);
            }
            let (part, outputs, start) = match side {
                Side::Columns => (matmul(x.narrow(1, column, width), tile.transpose(0, 1)), rows, row),
                Side::Rows => (matmul(x.narrow(1, row, height), tile.clone()), columns, column),
            };
            add(slice(&part), part.layout().shape()[1], y, outputs, start);
        }
    }
}

/// Adds a part, `width` wide, to the columns of y from `start` on; y is `outputs` wide.
fn add(part: &[f32], width: usize, y: &mut [f32], outputs: usize, start: usize) {
    for (part, y) in part.chunks(width).zip(y.chunks_mut(outputs)) {
        for (part, y) in part.iter().zip(&mut y[start..]) {
            *y += part;
        }
    }
}

/// Sixteen sums side by side, which a compiler turns into vectors, and then those in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// The values of a contiguous tensor.
fn slice<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice().expect("a contiguous tensor of the type that FrozenMatrix made it of")
}
