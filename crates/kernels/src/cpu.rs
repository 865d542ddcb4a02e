//! The products on burn's CPU backend: a tile of the matrix is unpacked into scratch, and multiplied by the backend's own gemm.

use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, ops::matmul::matmul};

use crate::codec;
use crate::ops::Side;
use crate::storage::Layout;

/// Numbers of a tile at most: 1 MiB of scratch, which stays in a second-level cache until gemm has read it.
const TILE: usize = 1 << 18;

/// Columns of a tile at most. Wide tiles are summed in fewer parts, high ones copy x less often.
const WIDE: usize = 1024;

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
    #[inline(always)]
    fn rows(self) -> usize {
        self.words.len() / self.layout.stride()
    }

    #[inline(always)]
    fn row(self, row: usize) -> &'a [u32] {
        let stride = self.layout.stride();
        &self.words[row * stride..][..stride]
    }
}

fn few(x: &FlexTensor, matrix: Matrix<'_>, side: Side, y: &mut [f32]) {
    let x: &[f32] = slice(x);
    let mut weights = vec![0.0; matrix.layout.columns];
    vectorized(
        #[inline(always)]
        || few_rows(x, matrix, side, y, &mut weights),
    );
}

/// `weights` is room for a row.
#[inline(always)]
fn few_rows(x: &[f32], matrix: Matrix<'_>, side: Side, y: &mut [f32], weights: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.layout.columns);
    for row in 0..rows {
        codec::unpack(matrix.layout, matrix.row(row), 0, weights);
        match side {
            Side::Columns => {
                for (x, y) in x.chunks(columns).zip(y.chunks_mut(rows)) {
                    y[row] = dot(x, weights);
                }
            }
            Side::Rows => {
                for (x, y) in x.chunks(rows).zip(y.chunks_mut(columns)) {
                    let x = x[row];
                    for (y, weight) in y.iter_mut().zip(&*weights) {
                        *y += x * weight;
                    }
                }
            }
        }
    }
}

fn many(x: &FlexTensor, matrix: Matrix<'_>, side: Side, y: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.layout.columns);
    let wide = even(columns, WIDE);
    let high = even(rows, TILE / wide);
    let mut tile = FlexTensor::zeros(Shape::new([high, wide]), DType::F32);
    for row in (0..rows).step_by(high) {
        let height = high.min(rows - row);
        for column in (0..columns).step_by(wide) {
            let width = wide.min(columns - column);
            if [height, width] != [tile.layout().shape()[0], tile.layout().shape()[1]] {
                tile = FlexTensor::zeros(Shape::new([height, width]), DType::F32);
            }
            let values: &mut [f32] = tile.storage_mut();
            vectorized(
                #[inline(always)]
                || {
                    for (i, values) in values.chunks_mut(width).enumerate() {
                        codec::unpack(matrix.layout, matrix.row(row + i), column, values);
                    }
                },
            );
            match side {
                Side::Columns => {
                    let part = matmul(x.narrow(1, column, width), tile.transpose(0, 1));
                    put(slice(&part), height, y, rows, row, column == 0);
                }
                Side::Rows => {
                    let part = matmul(x.narrow(1, row, height), tile.clone());
                    put(slice(&part), width, y, columns, column, row == 0);
                }
            }
        }
    }
}

/// The size of pieces of `total`, none above `most`, and of equal size as far as whole blocks allow.
fn even(total: usize, most: usize) -> usize {
    let pieces = total.div_ceil(most);
    total.div_ceil(pieces).next_multiple_of(64).min(total)
}

/// Puts a part, `width` wide, into the columns of y from `start` on, or adds it to them; y is `outputs` wide.
fn put(part: &[f32], width: usize, y: &mut [f32], outputs: usize, start: usize, first: bool) {
    for (part, y) in part.chunks(width).zip(y.chunks_mut(outputs)) {
        let y = &mut y[start..][..width];
        if first {
            y.copy_from_slice(part);
        } else {
            for (part, y) in part.iter().zip(y) {
                *y += part;
            }
        }
    }
}

/// Does some work with AVX2 where the processor has it: the build is for any x86-64. In wasm, SIMD is in the build.
#[inline(always)]
fn vectorized(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(avx2, work);
    }
    work();
}

/// Sixteen sums side by side, which a compiler turns into vectors, and then those in order.
#[inline(always)]
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
