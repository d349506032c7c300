//! What crosses the boundary: released numbers in the precision of the wire.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use crate::bits::{PackedBits, PackedBitsError};
use crate::boundary::Released;

/// Precision of numbers on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE binary32.
    #[default]
    F32,
    /// IEEE binary16, rounded to nearest even; finite values beyond ±65504 saturate.
    F16,
}

impl Precision {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Form of the values of a [`Payload`]: a [`Precision`], or one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// One bit a value.
    Bit,
}

impl Format {
    /// Bytes that `len` values take.
    pub const fn bytes_of(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 => 2 * len,
            Self::Bit => len.div_ceil(8),
        }
    }
}

/// Index of the first value that is `bad`.
fn first<T: Copy + Sync>(values: &[T], bad: impl Fn(T) -> bool + Sync) -> Option<usize> {
    const PIECE: usize = 1 << 14;
    let any = |piece: &[T]| piece.iter().fold(0, |any, &value| any | u32::from(bad(value))) != 0;
    let piece = values.par_chunks(PIECE).position_first(any)?;
    let within = values.iter().skip(piece * PIECE).position(|&value| bad(value))?;
    Some(piece * PIECE + within)
}

impl From<Precision> for Format {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
        }
    }
}

/// Numbers in the form in which they travel.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// binary32 values.
    F32(Vec<f32>),
    /// binary16 values.
    F16(Vec<half::f16>),
    /// Bits: 0 or 1.
    Bits(PackedBits),
}

impl Payload {
    /// Encodes `values`; rounding is post-processing of what has been released.
    pub fn encode(values: Vec<f32>, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32(values),
            Precision::F16 => Self::narrow(&values),
        }
    }

    /// `values` in binary16 ([`Precision::F16`]), on all threads.
    pub fn narrow(values: &[f32]) -> Self {
        const PIECE: usize = 1 << 10;
        let mut narrow = vec![f16::ZERO; values.len()];
        narrow.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).with_min_len(16).for_each(|(to, from)| {
            // By the processor's own conversion, which is one of slices.
            let mut piece = [0.0; PIECE];
            piece.iter_mut().zip(from).for_each(|(piece, v)| *piece = v.clamp(-65504.0, 65504.0));
            to.convert_from_f32_slice(piece.get(..from.len()).unwrap_or_default());
        });
        Self::F16(narrow)
    }

    /// Index of the first value that is NaN or infinite. Whole pieces are looked at without a branch in them, so that it takes little more than
    /// reading them.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self {
            Self::F32(values) => Self::first_non_finite_of(values),
            Self::F16(values) => first(values, |value| value.to_bits() & 0x7c00 == 0x7c00),
            Self::Bits(_) => None,
        }
    }

    /// As [`Payload::first_non_finite`], of numbers that are in none.
    pub fn first_non_finite_of(values: &[f32]) -> Option<usize> {
        first(values, |value| !value.is_finite())
    }

    /// The values as f32; bits become 0.0 and 1.0.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::F16(values) => values.to_f32_vec(),
            Self::Bits(bits) => {
                let mut values = vec![0.0; bits.len()];
                bits.unpack_into(&mut values, 0.0, 1.0);
                values
            }
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bits(bits) => bits.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Form of the values.
    pub const fn format(&self) -> Format {
        match self {
            Self::F32(_) => Format::F32,
            Self::F16(_) => Format::F16,
            Self::Bits(_) => Format::Bit,
        }
    }

    /// Bytes of the values on the wire.
    pub fn bytes(&self) -> usize {
        self.format().bytes_of(self.len())
    }
}

impl Released<Vec<f32>> {
    /// Encodes released numbers for the wire. Rounding a released number releases nothing more.
    pub fn encode(self, precision: Precision) -> Released<Payload> {
        self.encode_with(precision, drop)
    }

    /// As [`Released::encode`]; `spent` takes the vector where it is not what travels, to be filled again.
    pub fn encode_with(self, precision: Precision, spent: impl FnOnce(Vec<f32>)) -> Released<Payload> {
        self.post_process(|values| match precision {
            Precision::F32 => Payload::F32(values),
            Precision::F16 => {
                let narrow = Payload::narrow(&values);
                spent(values);
                narrow
            }
        })
    }
}

impl Released<PackedBits> {
    /// Released bits for the wire, as they are.
    pub fn into_payload(self) -> Released<Payload> {
        self.post_process(Payload::Bits)
    }
}
