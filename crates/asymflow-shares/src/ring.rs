//! The rings Z₂³² and Z₂⁶⁴: what shares are made of.

use std::fmt::Debug;

/// Unsigned machine words with wrapping arithmetic; signed values are stored in two's complement.
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

mod sealed {
    /// Code that handles registers relies on a ring being one of two machine words.
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
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
