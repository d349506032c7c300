//! What crosses the boundary: released numbers in the precision of the wire.

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
            Precision::F16 => {
                Self::F16(values.iter().map(|&v| half::f16::from_f32(v.clamp(-65504.0, 65504.0))).collect())
            }
        }
    }

    /// The values as f32; bits become 0.0 and 1.0.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::F16(values) => values.into_iter().map(half::f16::to_f32).collect(),
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
        self.post_process(|values| Payload::encode(values, precision))
    }
}

impl Released<PackedBits> {
    /// Released bits for the wire, as they are.
    pub fn into_payload(self) -> Released<Payload> {
        self.post_process(Payload::Bits)
    }
}
