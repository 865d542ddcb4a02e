//! Rows of numbers to packed words and back, on the CPU.

use half::{bf16, f16};

use crate::storage::{Layout, Storage};

/// NF4's code book: the quantiles of a normal distribution, with an exact 0 (arXiv:2305.14314, appendix E).
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The two numbers of every byte of NF4 codes, the lower half first: one look-up in 2 KiB that stay in the cache.
static NF4_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NF4[byte & 15], NF4[byte >> 4]];
        byte += 1;
    }
    pairs
};

/// Halfway between each code and the next.
static NF4_MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = f32::midpoint(NF4[i], NF4[i + 1]);
        i += 1;
    }
    middles
};

// A word's first number is in its lowest bits, and so in its first byte.
const _: () = assert!(cfg!(target_endian = "little"), "the packed words are read as little-endian bytes");

/// Packs a row into `packed`, which is [`Layout::stride`] long. The values are finite.
///
/// # Errors
///
/// The largest magnitude of a block whose scale f16 cannot hold.
pub(crate) fn pack(layout: Layout, row: &[f32], packed: &mut [u32]) -> Result<(), f32> {
    let (words, scales) = packed.split_at_mut(layout.words());
    match layout.storage {
        Storage::F32 => words.copy_from_slice(bytemuck::cast_slice(row)),
        Storage::Bf16 => {
            // A finite number above bf16's largest rounds to infinity.
            if let Some(&huge) = row.iter().find(|&&x| bf16::from_f32(x).is_infinite()) {
                return Err(huge.abs());
            }
            fill(layout, words, row, |x| u32::from(bf16::from_f32(x).to_bits()));
        }
        Storage::Int8 => pack_blocks(layout, row, words, scales, 127.0, |x| {
            // Through i8: a negative step is its two's complement in 8 bits.
            u32::from((x.round_ties_even() as i8).cast_unsigned())
        })?,
        Storage::Nf4 => pack_blocks(layout, row, words, scales, 1.0, nf4_code)?,
    }
    Ok(())
}

/// Unpacks the columns that start with `start`, which begins a block, into `out`.
///
/// Inlined, so that it is compiled with the instructions that its caller may use.
#[inline(always)]
pub(crate) fn unpack(layout: Layout, packed: &[u32], start: usize, out: &mut [f32]) {
    let (words, scales) = packed.split_at(layout.words());
    let words = &words[start / layout.per_word()..];
    match layout.storage {
        Storage::F32 => out.copy_from_slice(bytemuck::cast_slice(&words[..out.len()])),
        Storage::Bf16 => {
            let halves: &[u16] = bytemuck::cast_slice(words);
            for (x, &bits) in out.iter_mut().zip(halves) {
                *x = f32::from_bits(u32::from(bits) << 16);
            }
        }
        Storage::Int8 => {
            let steps: &[i8] = bytemuck::cast_slice(words);
            for (i, (block, steps)) in out.chunks_mut(32).zip(steps.chunks(32)).enumerate() {
                let scale = scale(scales, start / 32 + i);
                for (x, &step) in block.iter_mut().zip(steps) {
                    *x = f32::from(step) * scale;
                }
            }
        }
        Storage::Nf4 => {
            let codes: &[u8] = bytemuck::cast_slice(words);
            for (i, (block, codes)) in out.chunks_mut(64).zip(codes.chunks(32)).enumerate() {
                let scale = scale(scales, start / 64 + i);
                let (pairs, last) = block.as_chunks_mut::<2>();
                for (pair, &code) in pairs.iter_mut().zip(codes) {
                    *pair = NF4_PAIRS[usize::from(code)].map(|code| code * scale);
                }
                if let [x] = last {
                    *x = NF4_PAIRS[usize::from(codes[pairs.len()])][0] * scale;
                }
            }
        }
    }
}

/// The scale of a block of a row.
#[inline(always)]
fn scale(scales: &[u32], block: usize) -> f32 {
    let bits = (scales[block / 2] >> (16 * (block % 2))) & 0xffff;
    // A finite f16 without a sign, moved into f32's exponent: subnormal ones come out right too.
    f32::from_bits(bits << 13) * 2f32.powi(112)
}

fn pack_blocks(
    layout: Layout,
    row: &[f32],
    words: &mut [u32],
    scales: &mut [u32],
    largest: f32,
    code: impl Fn(f32) -> u32,
) -> Result<(), f32> {
    let Some(size) = layout.block() else { return Ok(()) };
    scales.fill(0);
    let words = words.chunks_mut(size / layout.per_word());
    for (i, (block, words)) in row.chunks(size).zip(words).enumerate() {
        let magnitude = block.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        let scale = f16_above(magnitude / largest);
        if scale.is_infinite() {
            return Err(magnitude);
        }
        scales[i / 2] |= u32::from(scale.to_bits()) << (16 * (i % 2));
        let scale = scale.to_f32();
        // A block of zeros has no scale to divide by.
        fill(layout, words, block, |x| code(if scale == 0.0 { 0.0 } else { x / scale }));
    }
    Ok(())
}

/// Codes side by side in words, the first in the lowest bits. The last word may have room left: zeros.
fn fill(layout: Layout, words: &mut [u32], values: &[f32], code: impl Fn(f32) -> u32) {
    let bits = 32 / layout.per_word();
    for (word, values) in words.iter_mut().zip(values.chunks(layout.per_word())) {
        *word = values.iter().enumerate().fold(0, |word, (i, &x)| word | code(x) << (i * bits));
    }
}

/// The least f16 that is not below a number which is not negative: with a scale rounded up, no number of the block is
/// beyond the last step, so none is further than half a step from its own.
fn f16_above(x: f32) -> f16 {
    let nearest = f16::from_f32(x);
    if nearest.to_f32() < x { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

/// The nearest code of a number in -1..=1; the lower one of two as near.
fn nf4_code(x: f32) -> u32 {
    // A binary search without branches, which no processor could foresee.
    let code = [8, 4, 2, 1]
        .into_iter()
        .fold(0, |low, step| if x > NF4_MIDDLES[low + step - 1] { low + step } else { low });
    code as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(storage: Storage, row: &[f32]) -> Vec<f32> {
        let layout = Layout::new(storage, row.len());
        let mut packed = vec![u32::MAX; layout.stride()];
        pack(layout, row, &mut packed).unwrap();
        let mut out = vec![f32::NAN; row.len()];
        unpack(layout, &packed, 0, &mut out);
        out
    }

    #[test]
    fn a_code_of_nf4_is_the_nearest() {
        for i in -1000..=1000 {
            let x = i as f32 / 1000.0;
            let chosen = NF4[nf4_code(x) as usize];
            let nearest = NF4.iter().map(|code| (code - x).abs()).fold(f32::MAX, f32::min);
            assert_eq!((chosen - x).abs(), nearest, "{x}");
        }
    }

    #[test]
    fn what_is_on_the_grid_survives() {
        let nf4: Vec<f32> = (0..70).map(|i| NF4[(i * 7 + 15) % 16] * 0.5).collect();
        assert_eq!(round_trip(Storage::Nf4, &nf4[..64]), nf4[..64]);
        let scale = f16::from_f32(0.00321).to_f32();
        let int8: Vec<f32> = (0..40).map(|i| ((i * 37 + 127) % 255 - 127) as f32 * scale).collect();
        assert_eq!(round_trip(Storage::Int8, &int8[..32]), int8[..32]);
        let bf16: Vec<f32> = (0..7).map(|i| f32::from_bits(0x3f81_0000 + (i << 16))).collect();
        assert_eq!(round_trip(Storage::Bf16, &bf16), bf16);
    }

    #[test]
    fn the_pieces_of_a_row_are_those_of_the_whole() {
        let row: Vec<f32> = (0..172).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        for storage in Storage::ALL {
            let layout = Layout::new(storage, row.len());
            let mut packed = vec![0; layout.stride()];
            pack(layout, &row, &mut packed).unwrap();
            let whole = round_trip(storage, &row);
            for (start, end) in [(0, 64), (64, 172), (128, 172), (64, 65)] {
                let mut piece = vec![0.0; end - start];
                unpack(layout, &packed, start, &mut piece);
                assert_eq!(piece, whole[start..end], "{} {start}..{end}", storage.name());
            }
        }
    }

    #[test]
    fn a_short_row_is_packed_with_its_own_width() {
        for storage in Storage::ALL {
            for length in 1..10 {
                // Whole steps of 1 for int8, and a scale with nothing but 0 and ±1 for NF4.
                let row: Vec<f32> = (0..length).map(|i| [127.0, -127.0, 0.0][i % 3]).collect();
                assert_eq!(round_trip(storage, &row), row, "{} {length}", storage.name());
            }
        }
    }
}
