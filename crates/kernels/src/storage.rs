//! How the numbers of a frozen matrix are stored, and where each lies.

use serde::{Deserialize, Serialize};

/// How the numbers of a frozen matrix are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// As they are.
    F32,
    /// Their upper halves, two a word.
    Bf16,
    /// Whole steps of a scale, four a word; a scale for 32 numbers of a row: GGUF's Q8_0.
    Int8,
    /// 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314), eight a word; a scale for 64 numbers of a row.
    Nf4,
}

impl Storage {
    /// All of them, from the most exact to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// The name that settings and messages use: that of its serde form.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }

    /// The storage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|storage| storage.name() == name)
    }

    /// The bytes of a matrix `[rows, columns]` on the device, scales and padding included.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        (rows as u64).saturating_mul(4 * Layout::new(self, columns).stride() as u64)
    }
}

/// Where the numbers of a row lie.
///
/// A row is `words` u32 with the numbers, the first in the lowest bits, and then `scale_words` u32 with the scales of its
/// blocks, two f16 in each. The last block of a row may be short. All of it is in one tensor, `[rows, stride]`: a row can
/// be looked up, sent or bound to a kernel as one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) storage: Storage,
    pub(crate) columns: usize,
}

impl Layout {
    pub(crate) fn new(storage: Storage, columns: usize) -> Self {
        Self { storage, columns }
    }

    /// Numbers in a word.
    pub(crate) fn per_word(self) -> usize {
        match self.storage {
            Storage::F32 => 1,
            Storage::Bf16 => 2,
            Storage::Int8 => 4,
            Storage::Nf4 => 8,
        }
    }

    /// Numbers that share a scale.
    pub(crate) fn block(self) -> Option<usize> {
        match self.storage {
            Storage::F32 | Storage::Bf16 => None,
            Storage::Int8 => Some(32),
            Storage::Nf4 => Some(64),
        }
    }

    /// Words of a row that hold numbers.
    pub(crate) fn words(self) -> usize {
        self.columns.div_ceil(self.per_word())
    }

    /// Words of a row that hold scales.
    pub(crate) fn scale_words(self) -> usize {
        self.block().map_or(0, |block| self.columns.div_ceil(block).div_ceil(2))
    }

    /// Words of a row.
    pub(crate) fn stride(self) -> usize {
        self.words() + self.scale_words()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_serde() {
        for storage in Storage::ALL {
            assert_eq!(serde_json::to_value(storage).unwrap(), storage.name());
            assert_eq!(Storage::from_name(storage.name()), Some(storage));
        }
        assert_eq!(Storage::from_name("int4"), None);
    }

    #[test]
    fn four_bits_stay_within_six_tenths_of_a_byte() {
        for [rows, columns] in [[576, 576], [1536, 576], [576, 1536], [49152, 576]] {
            let parameters = (rows * columns) as f64;
            assert!(Storage::Nf4.bytes(rows, columns) as f64 / parameters <= 0.54);
            assert!(Storage::Int8.bytes(rows, columns) as f64 / parameters <= 1.07);
        }
        assert_eq!(Storage::F32.bytes(3, 5), 60);
        assert_eq!(Storage::Bf16.bytes(3, 5), 36);
        assert_eq!(Storage::Nf4.bytes(1, 172), 4 * (22 + 2));
    }
}
