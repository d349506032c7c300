//! Packed bits: order, padding, and what is refused.

use asymflow_privacy::payload::{Format, PackedBits, PackedBitsError, Payload};
use proptest::prelude::*;

#[test]
fn the_first_bit_is_the_least_significant() {
    let bits = PackedBits::from_bools([true, false, false, true, false, false, false, false, true, true]);
    assert_eq!(bits.as_bytes(), [0b0000_1001, 0b0000_0011]);
    assert_eq!((bits.len(), bits.bytes()), (10, 2));
    assert_eq!((bits.get(3), bits.get(4), bits.get(9), bits.get(10)), (Some(true), Some(false), Some(true), None));
}

#[test]
fn no_bits_take_no_bytes() {
    let bits = PackedBits::from_bools([]);
    assert!(bits.is_empty() && bits.as_bytes().is_empty());
    assert_eq!(PackedBits::from_bytes(Vec::new(), 0), Ok(bits.clone()));
    assert_eq!(bits.get(0), None);
    assert_eq!(Payload::Bits(bits).into_f32(), [0.0; 0]);
}

#[test]
fn signs_are_packed_as_the_quantiser_of_the_thesis_has_them() {
    let bits = PackedBits::pack(&[1.0, -1.0, 0.0, -0.0, f32::NAN, f32::INFINITY]);
    assert_eq!(bits, PackedBits::from_bools([true, false, true, true, false, true]));
}

#[test]
fn bytes_that_are_no_packed_bits_are_refused() {
    let length = |bits, expected, got| Err(PackedBitsError::Length { bits, expected, got });
    assert_eq!(PackedBits::from_bytes(vec![0; 2], 17), length(17, 3, 2));
    assert_eq!(PackedBits::from_bytes(vec![0; 2], 8), length(8, 1, 2));
    assert_eq!(PackedBits::from_bytes(vec![0], 0), length(0, 0, 1));
    assert_eq!(PackedBits::from_bytes(vec![0], usize::MAX), length(usize::MAX, usize::MAX / 8 + 1, 1));
    let trailing = PackedBits::from_bytes(vec![0xff, 0b0000_1000], 11);
    assert_eq!(trailing, Err(PackedBitsError::Trailing { bits: 11, byte: 8 }));
    let said = trailing.unwrap_err().to_string();
    assert_eq!(said, "unused bits of the last byte must be zero, got 0b00001000 for 11 bits");
}

#[test]
fn unpacking_writes_as_many_as_fit() {
    let bits = PackedBits::from_bools([true, false, true]);
    let mut short = [9.0; 2];
    assert_eq!(bits.unpack_into(&mut short, -1.0, 1.0), 2);
    assert_eq!(short, [1.0, -1.0]);
    let mut long = [9.0; 5];
    assert_eq!(bits.unpack_into(&mut long, -1.0, 1.0), 3);
    assert_eq!(long, [1.0, -1.0, 1.0, 9.0, 9.0]);
}

proptest! {
    #[test]
    fn what_was_packed_comes_back(bools in prop::collection::vec(any::<bool>(), 0..200)) {
        let bits = PackedBits::from_bools(bools.iter().copied());
        let back = PackedBits::from_bytes(bits.as_bytes().to_vec(), bits.len()).unwrap();
        prop_assert_eq!(&back, &bits);
        prop_assert!(bools.iter().enumerate().all(|(i, &bit)| bits.get(i) == Some(bit)));
        let values: Vec<f32> = bools.iter().map(|&bit| f32::from(u8::from(bit))).collect();
        let payload = Payload::Bits(bits);
        prop_assert_eq!((payload.len(), payload.bytes(), payload.format()),
            (bools.len(), bools.len().div_ceil(8), Format::Bit));
        prop_assert_eq!(payload.into_f32(), values);
    }
}
