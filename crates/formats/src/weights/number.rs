//! How a tensor's numbers are written in a file, and what they are as f32.
//!
//! The blocks of the quantised formats are those of ggml (`ggml-common.h`, `ggml-quants.c`), little-endian, and the
//! order of the operations is ggml's too: the same bytes give the same floats.

use half::{bf16, f16};
use safetensors::Dtype;

/// The formats that are read, for error messages.
pub(super) const KNOWN: &str = "F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";

/// How a tensor's numbers are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberFormat {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary64.
    F64,
    /// 32 numbers of 8 bits and an f16 scale: 34 bytes.
    Q8_0,
    /// 32 numbers of 4 bits and an f16 scale: 18 bytes.
    Q4_0,
    /// 32 numbers of 4 bits, an f16 scale and an f16 minimum: 20 bytes.
    Q4_1,
    /// 32 numbers of 5 bits and an f16 scale: 22 bytes.
    Q5_0,
    /// 32 numbers of 5 bits, an f16 scale and an f16 minimum: 24 bytes.
    Q5_1,
    /// 256 numbers of 4 bits in 8 groups, each with a scale and a minimum of 6 bits: 144 bytes.
    Q4K,
    /// 256 numbers of 5 bits in 8 groups, each with a scale and a minimum of 6 bits: 176 bytes.
    Q5K,
    /// 256 numbers of 6 bits in 16 groups, each with a scale of 8 bits: 210 bytes.
    Q6K,
    /// Something else, by its name: it can be listed and not read.
    Other(&'static str),
}

impl NumberFormat {
    /// Its name, as safetensors and GGUF write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Other(name) => name,
        }
    }

    /// How many numbers one block holds, and how many bytes it takes; `None` for a format that is not read.
    pub fn block(self) -> Option<(usize, usize)> {
        Some(match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::F64 => (1, 8),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Other(_) => return None,
        })
    }

    pub(super) fn of_safetensors(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F64 => Self::F64,
            Dtype::BOOL => Self::Other("BOOL"),
            Dtype::U8 => Self::Other("U8"),
            Dtype::I8 => Self::Other("I8"),
            Dtype::U16 => Self::Other("U16"),
            Dtype::I16 => Self::Other("I16"),
            Dtype::U32 => Self::Other("U32"),
            Dtype::I32 => Self::Other("I32"),
            Dtype::U64 => Self::Other("U64"),
            Dtype::I64 => Self::Other("I64"),
            Dtype::F8_E4M3 => Self::Other("F8_E4M3"),
            Dtype::F8_E5M2 => Self::Other("F8_E5M2"),
            _ => Self::Other("of a newer kind"),
        }
    }

    /// The dtype of a safetensors file, for the formats that one can hold.
    pub(super) fn to_safetensors(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F64 => Some(Dtype::F64),
            _ => None,
        }
    }

    /// Appends the numbers of whole blocks; bytes that make no whole block are left out.
    pub(super) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|quad| f32::from_le_bytes(*quad))),
            Self::F16 => {
                out.extend(bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()));
            }
            Self::Bf16 => {
                out.extend(bytes.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()));
            }
            Self::F64 => {
                out.extend(bytes.as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight) as f32));
            }
            Self::Q8_0 => bytes.as_chunks::<34>().0.iter().for_each(|block| q8_0(block, out)),
            Self::Q4_0 => bytes.as_chunks::<18>().0.iter().for_each(|block| q4_0(block, out)),
            Self::Q4_1 => bytes.as_chunks::<20>().0.iter().for_each(|block| q4_1(block, out)),
            Self::Q5_0 => bytes.as_chunks::<22>().0.iter().for_each(|block| q5_0(block, out)),
            Self::Q5_1 => bytes.as_chunks::<24>().0.iter().for_each(|block| q5_1(block, out)),
            Self::Q4K => bytes.as_chunks::<144>().0.iter().for_each(|block| q4_k(block, out)),
            Self::Q5K => bytes.as_chunks::<176>().0.iter().for_each(|block| q5_k(block, out)),
            Self::Q6K => bytes.as_chunks::<210>().0.iter().for_each(|block| q6_k(block, out)),
            Self::Other(_) => {}
        }
    }
}

impl std::fmt::Display for NumberFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(block[2..].iter().map(|byte| f32::from(byte.cast_signed()) * scale));
}

/// The lower halves of the bytes are the first numbers of a block, the upper halves the others.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|number| (f32::from(number) - 8.0) * scale));
}

fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..]).map(|number| f32::from(number) * scale + least));
}

/// Numbers of 5 bits: the fifth bits of all 32 stand in four bytes before the nibbles.
fn fives(fifth: [u8; 4], bytes: &[u8]) -> impl Iterator<Item = f32> {
    let fifth = u32::from_le_bytes(fifth);
    nibbles(bytes)
        .enumerate()
        .map(move |(at, number)| f32::from(number) + if fifth >> at & 1 == 1 { 16.0 } else { 0.0 })
}

fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    let fifth = [block[2], block[3], block[4], block[5]];
    out.extend(fives(fifth, &block[6..]).map(|number| (number - 16.0) * scale));
}

fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let fifth = [block[4], block[5], block[6], block[7]];
    out.extend(fives(fifth, &block[8..]).map(|number| number * scale + least));
}

/// The scale and the minimum of each of the 8 groups, 6 bits each in 12 bytes.
fn six_bit_pairs(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|group| {
        let (scale, least) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let low = packed[group + 4];
            (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
        };
        (f32::from(scale), f32::from(least))
    })
}

fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let groups = six_bit_pairs(&block[4..16]);
    for (bytes, pair) in block[16..].chunks_exact(32).zip(groups.as_chunks::<2>().0) {
        let [low, high] = pair.map(|(group_scale, group_least)| (scale * group_scale, least * group_least));
        out.extend(bytes.iter().map(|byte| low.0 * f32::from(byte & 15) - low.1));
        out.extend(bytes.iter().map(|byte| high.0 * f32::from(byte >> 4) - high.1));
    }
}

fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let groups = six_bit_pairs(&block[4..16]);
    let fifth = &block[16..48];
    for (at, (bytes, pair)) in block[48..].chunks_exact(32).zip(groups.as_chunks::<2>().0).enumerate() {
        let [low, high] = pair.map(|(group_scale, group_least)| (scale * group_scale, least * group_least));
        let number = |nibble: u8, fifth: u8, bit: usize| {
            f32::from(nibble) + if fifth >> bit & 1 == 1 { 16.0 } else { 0.0 }
        };
        let both = || bytes.iter().zip(fifth);
        out.extend(both().map(|(byte, fifth)| low.0 * number(byte & 15, *fifth, 2 * at) - low.1));
        out.extend(both().map(|(byte, fifth)| high.0 * number(byte >> 4, *fifth, 2 * at + 1) - high.1));
    }
}

fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let scale = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        // Four runs of 32 numbers: the low nibbles of both halves of `low`, then the high ones.
        for run in 0..4 {
            out.extend((0..32).map(|at| {
                let byte = low[32 * (run % 2) + at];
                let nibble = if run < 2 { byte & 15 } else { byte >> 4 };
                let number = nibble | (high[at] >> (2 * run) & 3) << 4;
                let group = scales[at / 16 + 2 * run].cast_signed();
                scale * f32::from(group) * (f32::from(number) - 32.0)
            }));
        }
    }
}
