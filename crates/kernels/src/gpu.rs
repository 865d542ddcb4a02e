//! The products on burn's CubeCL backend (WebGPU): each tile of the matrix is unpacked on its way into shared memory.
//!
//! Only 32-bit words and f32 arithmetic are used: an adapter without `shader-f16` runs the same code.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, prelude::*};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{cubecl, kernel::into_contiguous};

use crate::codec::NF4;
use crate::ops::Side;
use crate::storage::{Layout, Storage};

/// Units of a cube along each axis: 256 in all, WebGPU's least limit.
const UNITS: usize = 16;

/// Outputs of a cube: 4 for each unit along the axis.
const OUTPUTS: usize = 64;

/// What is contracted between two barriers. With 64 rows of x, the two tiles take 8 KiB of WebGPU's 16.
const DEPTH: usize = 16;

/// Up to so many rows of x, a cube computes one output of each.
const FEW: usize = 4;

/// Units of a cube that computes one output.
const LINE: usize = 64;

/// WebGPU's least limit of cubes along an axis.
const CUBES: usize = 65535;

/// The product of x `[n, columns]` or `[n, rows]` with the packed matrix. -> [n, rows] or [n, columns]
pub(crate) fn product(x: CubeTensor, packed: CubeTensor, layout: Layout, side: Side) -> CubeTensor {
    let [n, inputs] = x.meta.shape().dims();
    let packed = into_contiguous(packed);
    let rows = packed.meta.shape()[0];
    let outputs = match side {
        Side::Columns => rows,
        Side::Rows => layout.columns,
    };
    let (client, shape) = (x.client.clone(), Shape::new([n, outputs]));
    let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, DType::F32);
    if n == 0 {
        return y;
    }
    let (words, stride) = (layout.words(), layout.stride());
    if side == Side::Columns && n <= FEW {
        let across = rows.min(CUBES);
        few_kernel::launch(
            &client,
            CubeCount::Static(across as u32, rows.div_ceil(across) as u32, 1),
            CubeDim::new_1d(LINE as u32),
            x.into_tensor_arg(),
            packed.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            rows,
            inputs,
            words,
            stride,
            n,
            layout.storage,
        );
    } else {
        // A short x would leave most of a high tile idle.
        let high = if n <= UNITS { 1 } else { 4 };
        many_kernel::launch(
            &client,
            CubeCount::Static(outputs.div_ceil(OUTPUTS) as u32, n.div_ceil(UNITS * high) as u32, 1),
            CubeDim::new_2d(UNITS as u32, UNITS as u32),
            x.into_tensor_arg(),
            packed.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            n,
            inputs,
            outputs,
            words,
            stride,
            high,
            side == Side::Columns,
            layout.storage,
        );
    }
    y
}

/// All rows as numbers. -> [rows, columns]
pub(crate) fn unpack(packed: CubeTensor, layout: Layout) -> CubeTensor {
    let packed = into_contiguous(packed);
    let shape = Shape::new([packed.shape()[0], layout.columns]);
    let (client, count) = (packed.client.clone(), shape.num_elements());
    let values = empty_device_contiguous_dtype(client.clone(), packed.device.clone(), shape, DType::F32);
    let units = CubeDim::new_1d((UNITS * UNITS) as u32);
    unpack_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, count, units),
        units,
        packed.into_tensor_arg(),
        values.clone().into_tensor_arg(),
        count,
        layout.columns,
        layout.words(),
        layout.stride(),
        layout.storage,
    );
    values
}

/// The code book in shared memory: a table that can be indexed by a number known only then.
#[cube]
fn code_book(#[comptime] storage: Storage) -> Shared<[f32]> {
    let mut codes = Shared::<[f32]>::new_slice(16usize);
    if comptime!(storage == Storage::Nf4) {
        #[unroll]
        for i in 0..16usize {
            if UNIT_POS as usize == i {
                codes[i] = comptime!(NF4[i]).runtime();
            }
        }
        sync_cube();
    }
    codes
}

/// The scale of the block of a column, in the row that starts at `start`.
#[cube]
fn scale_of(
    packed: &Tensor<u32>,
    start: usize,
    words: usize,
    column: usize,
    #[comptime] storage: Storage,
) -> f32 {
    let block = if comptime!(storage == Storage::Int8) { column / 32 } else { column / 64 };
    let pair = packed[start + words + block / 2];
    let bits = (pair >> (16 * (block % 2) as u32)) & 0xffff;
    // f16 by its bits; a scale has no sign. WGSL may flush f32's subnormal numbers, so f16's are built from an integer.
    let normal = f32::from_bits((bits << 13) + 0x3800_0000);
    let subnormal = f32::cast_from(bits) * 5.960_464_5e-8;
    if bits < 0x400 { subnormal } else { normal }
}

/// A number of a word, by its place in it.
#[cube]
fn decode(word: u32, place: u32, scale: f32, codes: &Shared<[f32]>, #[comptime] storage: Storage) -> f32 {
    if comptime!(storage == Storage::Bf16) {
        f32::from_bits((word >> (16 * place)) << 16)
    } else if comptime!(storage == Storage::Int8) {
        // Two's complement in 8 bits: the sign bit flipped is the number plus 128.
        let step = ((word >> (8 * place)) & 0xff) ^ 0x80;
        (f32::cast_from(step) - 128.0) * scale
    } else {
        codes[((word >> (4 * place)) & 0xf) as usize] * scale
    }
}

/// One unit for each number.
#[cube(launch)]
fn unpack_kernel(
    packed: &Tensor<u32>,
    values: &mut Tensor<f32>,
    count: usize,
    columns: usize,
    words: usize,
    stride: usize,
    #[comptime] storage: Storage,
) {
    let codes = code_book(storage);
    let position = ABSOLUTE_POS;
    if position < count {
        let per_word = comptime!(Layout::new(storage, 0).per_word());
        let (row, column) = (position / columns, position % columns);
        let start = row * stride;
        let mut scale = 1.0f32;
        if comptime!(storage != Storage::Bf16) {
            scale = scale_of(packed, start, words, column, storage);
        }
        let word = packed[start + column / per_word];
        values[position] = decode(word, (column % per_word) as u32, scale, &codes, storage);
    }
}

/// One cube for each row of the matrix, which multiplies all `n` rows of x: `n` is small.
///
/// Its units take the words of the row in turns, and add up what they have at the end.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "the arguments of a kernel are its bindings")]
fn few_kernel(
    x: &Tensor<f32>,
    packed: &Tensor<u32>,
    y: &mut Tensor<f32>,
    rows: usize,
    columns: usize,
    words: usize,
    stride: usize,
    #[comptime] n: usize,
    #[comptime] storage: Storage,
) {
    let codes = code_book(storage);
    let mut sums = Shared::<[f32]>::new_slice(comptime!(n * LINE));
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let per_word = comptime!(Layout::new(storage, 0).per_word());

    let mut sum = Array::<f32>::new(n);
    #[unroll]
    for i in 0..n {
        sum[i] = 0.0;
    }
    if row < rows {
        let start = row * stride;
        let mut at = unit;
        while at < words {
            let word = packed[start + at];
            let first = at * per_word;
            let mut scale = 1.0f32;
            if comptime!(storage != Storage::Bf16) {
                scale = scale_of(packed, start, words, first, storage);
            }
            #[unroll]
            for place in 0..per_word {
                let column = first + place;
                if column < columns {
                    let weight = decode(word, comptime!(place as u32).runtime(), scale, &codes, storage);
                    #[unroll]
                    for i in 0..n {
                        sum[i] += weight * x[i * x.stride(0) + column * x.stride(1)];
                    }
                }
            }
            at += LINE;
        }
    }
    #[unroll]
    for i in 0..n {
        sums[i * LINE + unit] = sum[i];
    }
    sync_cube();
    // One unit for each row of x adds up: a fixed order, so the same numbers every time.
    if row < rows && unit < n {
        let mut total = 0.0f32;
        for other in 0..LINE {
            total += sums[unit * LINE + other];
        }
        y[unit * rows + row] = total;
    }
}

/// One cube for a tile of y, `high * 16` by 64; each unit has `high` by 4 of its numbers.
///
/// `columns_in`: x Wᵀ, over the columns of the matrix; otherwise x W, over its rows.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "the arguments of a kernel are its bindings")]
fn many_kernel(
    x: &Tensor<f32>,
    packed: &Tensor<u32>,
    y: &mut Tensor<f32>,
    n: usize,
    inputs: usize,
    outputs: usize,
    words: usize,
    stride: usize,
    #[comptime] high: usize,
    #[comptime] columns_in: bool,
    #[comptime] storage: Storage,
) {
    let codes = code_book(storage);
    let per_word = comptime!(Layout::new(storage, 0).per_word());
    let height = comptime!(high * UNITS);
    // [depth, height] and [depth, outputs]
    let mut xs = Shared::<[f32]>::new_slice(comptime!(DEPTH * height));
    let mut ws = Shared::<[f32]>::new_slice(comptime!(DEPTH * OUTPUTS));
    let unit = UNIT_POS as usize;
    let (unit_x, unit_y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let first_output = CUBE_POS_X as usize * OUTPUTS;
    let first_row = CUBE_POS_Y as usize * height;

    let mut sums = Array::<f32>::new(comptime!(high * 4));
    #[unroll]
    for i in 0..high * 4 {
        sums[i] = 0.0;
    }

    let mut depth = 0usize.runtime();
    while depth < inputs {
        // 16 rows of x at a time, each unit one number: neighbours read neighbours.
        #[unroll]
        for i in 0..high {
            let row = first_row + i * UNITS + unit_y;
            let input = depth + unit_x;
            let mut value = 0.0f32;
            if row < n && input < inputs {
                value = x[row * x.stride(0) + input * x.stride(1)];
            }
            xs[unit_x * height + i * UNITS + unit_y] = value;
        }

        // The words of the tile in turns. Along a row of the matrix lie inputs, or outputs.
        let across = comptime!((if columns_in { DEPTH } else { OUTPUTS }) / per_word);
        let count = comptime!(DEPTH * OUTPUTS / per_word);
        #[unroll]
        for turn in 0..comptime!(count.div_ceil(UNITS * UNITS)) {
            let at = turn * UNITS * UNITS + unit;
            if at < count {
                let (row_in_tile, column_in_tile) = (at / across, (at % across) * per_word);
                let mut row = depth + row_in_tile;
                let mut column = first_output + column_in_tile;
                let mut rows = inputs;
                if comptime!(columns_in) {
                    row = first_output + row_in_tile;
                    column = depth + column_in_tile;
                    rows = outputs;
                }
                let mut word = 0u32;
                let mut scale = 0.0f32;
                // The last word of a row may have room left: it holds zeros there, and what they stand for is dropped.
                let here = row < rows && column / per_word < words;
                if here {
                    word = packed[row * stride + column / per_word];
                    if comptime!(storage != Storage::Bf16) {
                        scale = scale_of(packed, row * stride, words, column, storage);
                    }
                }
                #[unroll]
                for place in 0..per_word {
                    let mut weight = 0.0f32;
                    if here {
                        weight = decode(word, comptime!(place as u32).runtime(), scale, &codes, storage);
                    }
                    if comptime!(columns_in) {
                        ws[(column_in_tile + place) * OUTPUTS + row_in_tile] = weight;
                    } else {
                        ws[row_in_tile * OUTPUTS + column_in_tile + place] = weight;
                    }
                }
            }
        }
        sync_cube();

        for k in 0..DEPTH {
            #[unroll]
            for j in 0..4usize {
                let weight = ws[k * OUTPUTS + j * UNITS + unit_x];
                #[unroll]
                for i in 0..high {
                    sums[i * 4 + j] += weight * xs[k * height + i * UNITS + unit_y];
                }
            }
        }
        sync_cube();
        depth += DEPTH;
    }

    #[unroll]
    for i in 0..high {
        let row = first_row + i * UNITS + unit_y;
        #[unroll]
        for j in 0..4usize {
            let output = first_output + j * UNITS + unit_x;
            if row < n && output < outputs {
                y[row * outputs + output] = sums[i * 4 + j];
            }
        }
    }
}
