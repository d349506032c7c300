//! The rings Z₂³², Z₂⁴⁸ and Z₂⁶⁴: what shares are made of.

use std::fmt::{self, Debug, Formatter};

/// Integers modulo 2^ℓ; signed values are stored in two's complement.
pub trait Ring: sealed::Sealed + Copy + Debug + Default + Eq + Send + Sync + 'static {
    /// Width ℓ of the ring Z₂^ℓ.
    const BITS: u32;
    /// Bytes of one element.
    const BYTES: usize;
    /// 0.
    const ZERO: Self;

    /// a + b.
    fn plus(self, other: Self) -> Self;
    /// a − b.
    fn minus(self, other: Self) -> Self;
    /// a · b.
    fn times(self, other: Self) -> Self;
    /// a · 2^bits; zero where `bits` reaches the width.
    fn shifted_left(self, bits: u32) -> Self;
    /// ⌊a / 2^bits⌋ of the unsigned value, `bits` below the width.
    fn shifted_right(self, bits: u32) -> Self;
    /// ⌊a / 2^bits⌋ of the signed value, `bits` below the width.
    fn shifted_right_signed(self, bits: u32) -> Self;
    /// The residue of a signed integer.
    fn from_i64(value: i64) -> Self;
    /// The signed value.
    fn to_i64(self) -> i64;
    /// The residue of an unsigned integer.
    fn from_u64(value: u64) -> Self;
    /// The unsigned value.
    fn to_u64(self) -> u64;
    /// The top bit.
    fn sign_bit(self) -> bool {
        self.to_i64() < 0
    }
    /// Appends the little-endian bytes of `values`.
    fn write(values: &[Self], bytes: &mut Vec<u8>);
    /// The values whose little-endian bytes these are; a remainder shorter than one value is ignored.
    fn read(bytes: &[u8]) -> Vec<Self>;
}

/// `value` with `bits` fraction bits, where its magnitude stays below 2^(ℓ−2).
pub(crate) fn fixed_point<R: Ring>(value: f64, bits: u32) -> Option<i64> {
    let scaled = (value * 2_f64.powi(bits as i32)).round();
    (scaled.abs() < 2_f64.powi(R::BITS as i32 - 2)).then_some(scaled as i64)
}

mod sealed {
    /// Code that handles registers relies on a ring being one of two machine words.
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for super::Z48 {}
}

macro_rules! ring {
    ($unsigned:ty, $signed:ty) => {
        impl Ring for $unsigned {
            const BITS: u32 = <$unsigned>::BITS;
            const BYTES: usize = size_of::<$unsigned>();
            const ZERO: Self = 0;

            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn shifted_left(self, bits: u32) -> Self {
                self.checked_shl(bits).unwrap_or(0)
            }
            #[inline(always)]
            fn shifted_right(self, bits: u32) -> Self {
                self >> bits
            }
            #[inline(always)]
            fn shifted_right_signed(self, bits: u32) -> Self {
                ((self as $signed) >> bits) as $unsigned
            }
            #[inline(always)]
            fn from_i64(value: i64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                i64::from(self as $signed)
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            fn write(values: &[Self], bytes: &mut Vec<u8>) {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            fn read(bytes: &[u8]) -> Vec<Self> {
                let (whole, _) = bytes.as_chunks();
                whole.iter().map(|&word| Self::from_le_bytes(word)).collect()
            }
        }
    };
}

ring!(u32, i32);
ring!(u64, i64);

/// Integers modulo 2^48: as much room as networks need, in six bytes a message and keys a third
/// shorter than those of 64 bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct Z48(
    /// The top 16 bits mean nothing.
    u64,
);

impl Z48 {
    const SPARE: u32 = u64::BITS - 48;
}

impl PartialEq for Z48 {
    fn eq(&self, other: &Self) -> bool {
        self.to_u64() == other.to_u64()
    }
}

impl Eq for Z48 {}

impl Debug for Z48 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.to_u64().fmt(f)
    }
}

impl Ring for Z48 {
    const BITS: u32 = 48;
    const BYTES: usize = 6;
    const ZERO: Self = Self(0);

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        Self(self.0.wrapping_mul(other.0))
    }
    #[inline(always)]
    fn shifted_left(self, bits: u32) -> Self {
        Self(self.0.checked_shl(bits).unwrap_or(0))
    }
    #[inline(always)]
    fn shifted_right(self, bits: u32) -> Self {
        Self(self.to_u64() >> bits)
    }
    #[inline(always)]
    fn shifted_right_signed(self, bits: u32) -> Self {
        Self((self.to_i64() >> bits) as u64)
    }
    #[inline(always)]
    fn from_i64(value: i64) -> Self {
        Self(value as u64)
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        (self.0 << Self::SPARE) as i64 >> Self::SPARE
    }
    #[inline(always)]
    fn from_u64(value: u64) -> Self {
        Self(value)
    }
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.0 << Self::SPARE >> Self::SPARE
    }
    fn write(values: &[Self], bytes: &mut Vec<u8>) {
        for value in values {
            let [a, b, c, d, e, f, _, _] = value.0.to_le_bytes();
            bytes.extend([a, b, c, d, e, f]);
        }
    }
    fn read(bytes: &[u8]) -> Vec<Self> {
        let (whole, _) = bytes.as_chunks();
        whole.iter().map(|&[a, b, c, d, e, f]| Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))).collect()
    }
}

/// Element-wise a + b; the shorter length decides.
pub(crate) fn add<R: Ring>(a: &[R], b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(a, b)| a.plus(*b)).collect()
}

/// Element-wise a − b; the shorter length decides.
pub(crate) fn sub<R: Ring>(a: &[R], b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(a, b)| a.minus(*b)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn signed_values_survive(value: i32) {
            prop_assert_eq!(u32::from_i64(value.into()).to_i64(), i64::from(value));
            prop_assert_eq!(u64::from_i64(value.into()).to_i64(), i64::from(value));
        }

        #[test]
        fn forty_eight_bits_are_those_of_sixty_four(a: u64, b: u64, shift in 0u32..47) {
            let low = |value: u64| value & ((1 << 48) - 1);
            let (x, y) = (Z48::from_u64(a), Z48::from_u64(b));
            prop_assert_eq!(x.plus(y).to_u64(), low(a.plus(b)));
            prop_assert_eq!(x.minus(y).to_u64(), low(a.minus(b)));
            prop_assert_eq!(x.times(y).to_u64(), low(a.times(b)));
            prop_assert_eq!(x.shifted_left(shift).to_u64(), low(a << shift));
            prop_assert_eq!(x.shifted_right(shift).to_u64(), low(a) >> shift);
            prop_assert_eq!(x.shifted_right_signed(shift).to_i64(), x.to_i64() >> shift);
            prop_assert_eq!(x, Z48::from_u64(low(a)));
            prop_assert_eq!(x, Z48::from_i64(x.to_i64()));
            let mut bytes = Vec::new();
            Z48::write(&[x, y], &mut bytes);
            prop_assert_eq!(bytes.len(), 12);
            prop_assert_eq!(Z48::read(&bytes), vec![x, y]);
        }

        #[test]
        fn bytes_come_back(values: Vec<u64>) {
            let mut bytes = Vec::new();
            u64::write(&values, &mut bytes);
            prop_assert_eq!(bytes.len(), values.len() * 8);
            prop_assert_eq!(u64::read(&bytes), values);
        }

        #[test]
        fn signed_shifts_floor(value: i64, bits in 0u32..63) {
            let floor = i128::from(value).div_euclid(1 << bits);
            prop_assert_eq!(i128::from(u64::from_i64(value).shifted_right_signed(bits).to_i64()), floor);
        }
    }
}
