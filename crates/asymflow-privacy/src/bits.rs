//! Bits packed eight to a byte.

use thiserror::Error;

/// Why bytes are not packed bits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackedBitsError {
    /// Bytes and length disagree.
    #[error("{bits} bits take {expected} bytes, got {got}")]
    Length {
        /// Number of bits announced.
        bits: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Bits behind the last one are set: two encodings of one value would differ.
    #[error("unused bits of the last byte must be zero, got {byte:#010b} for {bits} bits")]
    Trailing {
        /// Number of bits announced.
        bits: usize,
        /// The last byte.
        byte: u8,
    },
}

/// A sequence of bits, least significant bit of each byte first; unused bits of the last byte are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBits {
    bytes: Vec<u8>,
    len: usize,
}

impl PackedBits {
    /// Packs booleans.
    pub fn from_bools(bits: impl IntoIterator<Item = bool>) -> Self {
        let (mut bytes, mut len) = (Vec::new(), 0_usize);
        for bit in bits {
            if len.is_multiple_of(8) {
                bytes.push(0);
            }
            if let Some(last) = bytes.last_mut() {
                *last |= u8::from(bit) << (len % 8);
            }
            len += 1;
        }
        Self { bytes, len }
    }

    /// Packs the signs of `values`: 1 where the value is at least zero (so for −0.0 too), 0 elsewhere (so for NaN).
    pub fn pack(values: &[f32]) -> Self {
        Self::from_bools(values.iter().map(|&value| value >= 0.0))
    }

    /// The bits in `bytes`, `len` of them.
    ///
    /// # Errors
    /// `bytes` is not ⌈`len`/8⌉ long, or an unused bit of the last byte is set.
    pub fn from_bytes(bytes: Vec<u8>, len: usize) -> Result<Self, PackedBitsError> {
        let expected = len.div_ceil(8);
        if bytes.len() != expected {
            return Err(PackedBitsError::Length { bits: len, expected, got: bytes.len() });
        }
        match bytes.last() {
            Some(&byte) if !len.is_multiple_of(8) && byte >> (len % 8) != 0 => {
                Err(PackedBitsError::Trailing { bits: len, byte })
            }
            _ => Ok(Self { bytes, len }),
        }
    }

    /// The bits in `bytes`, which are as many as `len` needs and zero beyond.
    pub(crate) const fn from_zero_padded(bytes: Vec<u8>, len: usize) -> Self {
        Self { bytes, len }
    }

    /// Number of bits.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no bit.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes that they take: ⌈len/8⌉.
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bit `index`, or `None` beyond the last.
    pub fn get(&self, index: usize) -> Option<bool> {
        let byte = if index < self.len { self.bytes.get(index / 8) } else { None };
        byte.map(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Writes `high` for every 1 and `low` for every 0 into `out`, as many as fit; returns how many.
    pub fn unpack_into(&self, out: &mut [f32], low: f32, high: f32) -> usize {
        let written = out.len().min(self.len);
        for (values, &byte) in out[..written].chunks_mut(8).zip(&self.bytes) {
            for (bit, value) in values.iter_mut().enumerate() {
                *value = if byte >> bit & 1 == 1 { high } else { low };
            }
        }
        written
    }
}
