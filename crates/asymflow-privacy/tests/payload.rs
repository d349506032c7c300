//! Payloads: rounding, saturation and size.

use asymflow_privacy::{
    Door, Private,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Format, Payload, Precision},
    records::{Flow, RecordAccountant},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// Largest finite binary16 number.
const F16_MAX: f32 = 65504.0;

fn through_f16(values: Vec<f32>) -> Vec<f32> {
    Payload::encode(values, Precision::F16).into_f32()
}

#[test]
fn large_numbers_saturate_instead_of_becoming_infinite() {
    let large = vec![F16_MAX, F16_MAX + 1.0, 65520.0, 1e30, f32::MAX];
    assert_eq!(through_f16(large.clone()), vec![F16_MAX; 5]);
    assert_eq!(through_f16(large.iter().map(|v| -v).collect()), vec![-F16_MAX; 5]);
}

#[test]
fn halves_round_to_even() {
    // Between 2048 and 4096 binary16 holds the even integers.
    assert_eq!(through_f16(vec![2049.0, 2051.0, 2053.0]), [2048.0, 2052.0, 2052.0]);
}

#[test]
fn released_numbers_are_encoded_without_another_change() {
    let values = vec![1.5_f32, -0.25, 70000.0];
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).unwrap();
    let mut door = Door::new(RecordAccountant::new(1), ChaCha20Rng::seed_from_u64(1));
    let source = Source { layer: "features", flow: Flow::Residual };
    let mut released = || door.release(&gate, source, &[0], Private::new(values.clone())).unwrap();
    assert_eq!(released().encode(Precision::F32).into_inner(), Payload::F32(values.clone()));
    assert_eq!(released().encode(Precision::F16).into_inner().into_f32(), [1.5, -0.25, F16_MAX]);
}

proptest! {
    #[test]
    fn f16_is_within_half_a_unit_in_the_last_place(value in -65504.0_f32..65504.0) {
        let rounded = through_f16(vec![value])[0];
        // 11 significant bits; below 2^-14 the spacing is 2^-24.
        let half_unit = (value.abs() * 2.0_f32.powi(-11)).max(2.0_f32.powi(-25));
        prop_assert!((rounded - value).abs() <= half_unit, "{value} became {rounded}");
    }

    #[test]
    fn f32_is_exact_and_sizes_are_those_of_the_wire(values in prop::collection::vec(-1e30_f32..1e30, 0..50)) {
        let single = Payload::encode(values.clone(), Precision::F32);
        let half = Payload::encode(values.clone(), Precision::F16);
        prop_assert_eq!((single.len(), single.bytes(), single.format()), (values.len(), 4 * values.len(), Format::F32));
        prop_assert_eq!((half.len(), half.bytes(), half.format()), (values.len(), 2 * values.len(), Format::F16));
        prop_assert_eq!(single.is_empty(), values.is_empty());
        prop_assert_eq!(single.into_f32(), values);
    }
}
