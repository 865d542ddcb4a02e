//! Hidden states and their gradients as bytes: f32, or f16 with a power-of-two scale.

use half::f16;
use serde::{Deserialize, Serialize};

/// How a boundary's numbers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As computed.
    F32,
    /// IEEE half precision, after a scale by a power of two that brings the largest magnitude near 2¹⁴: the
    /// gradient of a mean over thousands of tokens would otherwise fall among f16's subnormals.
    F16,
}

/// A boundary on the wire: hidden states (forward) or their gradient (backward), `[batch, time, hidden]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    shape: [u32; 3],
    /// Tokens of each row, where attention looks both ways and must know the padding; empty where it looks back only.
    lengths: Vec<u32>,
    precision: Precision,
    /// The numbers were multiplied by 2 to this power before they were rounded.
    exponent: i16,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

impl std::fmt::Debug for Boundary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Boundary({:?} {:?})", self.shape, self.precision)
    }
}

/// A boundary that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not as many as the shape says.
    #[error("a boundary of shape {shape:?} came with {found} bytes")]
    WrongLength {
        /// `[batch, time, hidden]`.
        shape: [u32; 3],
        /// Bytes that came.
        found: usize,
    },
    /// The rows' lengths do not fit the shape.
    #[error("a boundary of shape {shape:?} came with the row lengths {lengths:?}")]
    WrongRows {
        /// `[batch, time, hidden]`.
        shape: [u32; 3],
        /// Tokens of each row, the first few.
        lengths: Vec<u32>,
    },
    /// A number is infinite or not a number.
    #[error("a boundary holds {count} numbers that are infinite or not a number")]
    NotFinite {
        /// How many.
        count: usize,
    },
}

impl Boundary {
    /// Encodes `values`, `[batch, time, hidden]` in row-major order.
    pub fn encode(values: &[f32], shape: [u32; 3], precision: Precision) -> Result<Self, CodecError> {
        if Some(values.len()) != elements(shape) {
            return Err(CodecError::WrongLength { shape, found: values.len().saturating_mul(4) });
        }
        refuse_not_finite(values)?;
        let (exponent, data) = match precision {
            Precision::F32 => (0, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Precision::F16 => {
                let exponent = scale_exponent(values);
                let scale = f32::from(exponent).exp2();
                (
                    exponent,
                    values.iter().flat_map(|value| f16::from_f32(value * scale).to_le_bytes()).collect(),
                )
            }
        };
        Ok(Self { shape, lengths: Vec::new(), precision, exponent, data })
    }

    /// The same with the tokens of each row.
    pub fn with_lengths(self, lengths: Vec<u32>) -> Self {
        Self { lengths, ..self }
    }

    /// Tokens of each row, checked: none are given, or as many as there are rows, each from 1 to the time.
    pub fn lengths(&self) -> Result<&[u32], CodecError> {
        let [batch, time, _] = self.shape;
        let whole = self.lengths.is_empty() || u32::try_from(self.lengths.len()) == Ok(batch);
        if whole && self.lengths.iter().all(|length| (1..=time).contains(length)) {
            return Ok(&self.lengths);
        }
        let lengths = self.lengths.iter().take(8).copied().collect();
        Err(CodecError::WrongRows { shape: self.shape, lengths })
    }

    /// The numbers, checked: as many as the shape says, and every one finite.
    pub fn decode(&self) -> Result<Vec<f32>, CodecError> {
        let width = match self.precision {
            Precision::F32 => 4,
            Precision::F16 => 2,
        };
        if elements(self.shape).and_then(|count| count.checked_mul(width)) != Some(self.data.len()) {
            return Err(CodecError::WrongLength { shape: self.shape, found: self.data.len() });
        }
        let values: Vec<f32> = match self.precision {
            Precision::F32 => {
                self.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            Precision::F16 => {
                let scale = (-f32::from(self.exponent)).exp2();
                let chunks = self.data.as_chunks::<2>().0.iter();
                chunks.map(|bytes| f16::from_le_bytes(*bytes).to_f32() * scale).collect()
            }
        };
        refuse_not_finite(&values)?;
        Ok(values)
    }

    /// `[batch, time, hidden]`.
    pub fn shape(&self) -> [u32; 3] {
        self.shape
    }

    /// Bytes of its numbers on the wire.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether it holds no number at all.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

fn elements(shape: [u32; 3]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
}

fn refuse_not_finite(values: &[f32]) -> Result<(), CodecError> {
    match values.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        count => Err(CodecError::NotFinite { count }),
    }
}

/// The power of two that brings the largest magnitude to [2¹⁴, 2¹⁵), a factor of two below f16's largest number.
/// Bounded, so that the scale and its inverse are both normal f32 numbers.
fn scale_exponent(values: &[f32]) -> i16 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 0;
    }
    let exponent = 14.0 - largest.log2().floor();
    #[expect(clippy::cast_possible_truncation, reason = "clamped to what fits")]
    let exponent = exponent.clamp(-120.0, 120.0) as i16;
    exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f32; 6] = [0.0, 1.0, -2.5e-7, 3.25e4, -1.5e-3, 0.333_333_34];

    #[test]
    fn f32_is_exact() {
        let boundary = Boundary::encode(&VALUES, [1, 2, 3], Precision::F32).unwrap();
        assert_eq!(boundary.decode().unwrap(), VALUES);
        assert_eq!(boundary.len(), 24);
    }

    #[test]
    fn f16_keeps_eleven_bits_of_tiny_gradients_and_huge_activations() {
        for magnitude in [1e-30_f32, 1e-9, 1e-4, 1.0, 1e6, 1e30] {
            let values: Vec<f32> = (1..=64_u8).map(|i| magnitude * f32::from(i) / 64.0).collect();
            let boundary = Boundary::encode(&values, [1, 1, 64], Precision::F16).unwrap();
            for (got, want) in boundary.decode().unwrap().into_iter().zip(values) {
                assert!((got - want).abs() <= want.abs() * 0.000_49, "{got} {want}");
            }
        }
    }

    #[test]
    fn lies_and_not_a_number_are_refused() {
        assert!(matches!(
            Boundary::encode(&[f32::NAN, 1.0], [1, 1, 2], Precision::F16),
            Err(CodecError::NotFinite { count: 1 })
        ));
        assert!(Boundary::encode(&[1.0], [1, 1, 2], Precision::F32).is_err());
        let lie = |shape, data: Vec<u8>| {
            let (lengths, precision) = (Vec::new(), Precision::F32);
            Boundary { shape, lengths, precision, exponent: 0, data }.decode()
        };
        assert!(matches!(lie([u32::MAX; 3], vec![0; 8]), Err(CodecError::WrongLength { found: 8, .. })));
        assert!(matches!(lie([1, 1, 1], vec![0; 8]), Err(CodecError::WrongLength { .. })));
        assert!(matches!(lie([1, 1, 1], vec![0xff; 4]), Err(CodecError::NotFinite { count: 1 })));
    }

    #[test]
    fn row_lengths_are_those_of_the_rows() {
        let boundary = Boundary::encode(&VALUES, [2, 3, 1], Precision::F32).unwrap();
        assert_eq!(boundary.lengths(), Ok(&[][..]));
        assert_eq!(boundary.clone().with_lengths(vec![3, 1]).lengths(), Ok(&[3, 1][..]));
        for lie in [vec![3], vec![3, 1, 1], vec![0, 1], vec![1, 4]] {
            let wrong = boundary.clone().with_lengths(lie.clone());
            assert_eq!(wrong.lengths(), Err(CodecError::WrongRows { shape: [2, 3, 1], lengths: lie }));
        }
    }
}
