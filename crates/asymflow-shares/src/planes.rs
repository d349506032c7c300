//! Bits of many values side by side: plane k holds bit k of value i in bit i mod 64 of its word i / 64.

/// Words of a plane of `count` values.
pub(crate) const fn words(count: usize) -> usize {
    count.div_ceil(64)
}

/// The lowest `bits` bits of `values`, plane after plane.
pub(crate) fn of_values(values: &[u64], bits: u32) -> Vec<u64> {
    let len = words(values.len());
    let mut planes = vec![0; len * bits as usize];
    for (word, values) in values.chunks(64).enumerate() {
        let mut block = [0; 64];
        block[..values.len()].copy_from_slice(values);
        transpose(&mut block);
        for (bit, &lanes) in block[..bits as usize].iter().enumerate() {
            planes[bit * len + word] = lanes;
        }
    }
    planes
}

/// Bit j of word i becomes bit i of word j (Warren, Hacker's Delight, 7-3).
fn transpose(block: &mut [u64; 64]) {
    let (mut width, mut mask) = (32, 0x0000_0000_ffff_ffff);
    while width != 0 {
        let mut row = 0;
        while row < 64 {
            let swap = ((block[row] >> width) ^ block[row + width]) & mask;
            block[row] ^= swap << width;
            block[row + width] ^= swap;
            row = (row + width + 1) & !width;
        }
        width >>= 1;
        mask ^= mask << width;
    }
}

/// Bytes of each plane of `count` values, without the words' rest.
pub(crate) fn to_bytes(planes: &[u64], count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(planes.len() * 8);
    for plane in planes.chunks_exact(words(count).max(1)) {
        let end = bytes.len() + count.div_ceil(8);
        bytes.extend(plane.iter().flat_map(|word| word.to_le_bytes()));
        bytes.truncate(end);
    }
    bytes
}

/// The inverse of [`to_bytes`].
pub(crate) fn from_bytes(bytes: &[u8], count: usize) -> Vec<u64> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    bytes.chunks_exact(count.div_ceil(8).max(1)).flat_map(|plane| plane.chunks(8).map(word)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn planes_hold_every_bit(values in prop::collection::vec(any::<u64>(), 1..200), bits in 1_u32..65) {
            let planes = of_values(&values, bits);
            let len = words(values.len());
            for (index, value) in values.iter().enumerate() {
                for bit in 0..bits as usize {
                    prop_assert_eq!(planes[bit * len + index / 64] >> (index % 64) & 1, value >> bit & 1);
                }
            }
            let bytes = to_bytes(&planes, values.len());
            prop_assert_eq!(bytes.len(), bits as usize * values.len().div_ceil(8));
            prop_assert_eq!(from_bytes(&bytes, values.len()), planes);
        }
    }
}
