//! Clipping: the bound holds for the numbers that are left, rounding included.

use asymflow_privacy::mechanisms::{ClipError, clip_coordinates, clip_l2};
use proptest::prelude::*;

/// Σ x² in units of 2^-298, exactly, for |x| below 2^-86: every f32 is a multiple of 2^-149.
fn exact_square(values: &[f32]) -> u128 {
    values.iter().map(|&v| (f64::from(v.abs()) * 2.0_f64.powi(149)) as u128).map(|v| v * v).sum()
}

#[test]
fn a_record_within_the_bound_stays_as_it_is() {
    for record in [vec![], vec![0.0, -0.0], vec![3.0, -4.0], vec![5.0], vec![1e-45; 4]] {
        let mut clipped = record.clone();
        let norm = clip_l2(&mut clipped, 5.0).unwrap();
        assert_eq!(clipped, record);
        let expected = record.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        assert_eq!(norm, expected as f32);
    }
}

#[test]
fn a_record_beyond_the_bound_keeps_its_direction() {
    let mut record = [30.0, -40.0];
    assert_eq!(clip_l2(&mut record, 5.0), Ok(50.0));
    assert!((record[0] - 3.0).abs() < 1e-6 && (record[1] + 4.0).abs() < 1e-6, "{record:?}");
}

#[test]
fn the_largest_numbers_neither_overflow_nor_escape() {
    let mut record = vec![f32::MAX; 1000];
    assert_eq!(clip_l2(&mut record, 1.0), Ok(f32::INFINITY));
    let norm = record.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    assert!(norm <= 1.0 && norm > 1.0 - 1e-6, "{norm}");
}

#[test]
fn coordinates_are_clipped_and_counted() {
    let mut record = [0.5, -0.5, 0.6, -7.0, 0.0];
    assert_eq!(clip_coordinates(&mut record, 0.5), Ok(2));
    assert_eq!(record, [0.5, -0.5, 0.5, -0.5, 0.0]);
}

#[test]
fn bounds_that_are_none_and_values_that_are_none_are_refused() {
    for limit in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        let mut record = [2.0_f32];
        assert!(matches!(clip_l2(&mut record, limit), Err(ClipError::Limit { .. })));
        assert!(matches!(clip_coordinates(&mut record, limit), Err(ClipError::Limit { .. })));
        assert_eq!(record, [2.0]);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut record = [9.0, bad];
        assert_eq!(clip_l2(&mut record, 1.0), Err(ClipError::NonFinite { index: 1 }));
        assert_eq!(clip_coordinates(&mut record, 1.0), Err(ClipError::NonFinite { index: 1 }));
        assert_eq!(record[0], 9.0);
    }
    assert_eq!(ClipError::Limit { limit: -1.0 }.to_string(), "clip bound must be positive and finite, got -1");
}

proptest! {
    /// Tiny numbers make the exact sum of squares an integer of 128 bits.
    #[test]
    fn the_norm_left_is_at_most_the_bound_exactly(
        record in prop::collection::vec(-1e-30_f32..1e-30, 1..60), clip in 1e-33_f32..1e-29,
    ) {
        let mut clipped = record.clone();
        let norm = clip_l2(&mut clipped, clip).unwrap();
        prop_assert!(exact_square(&clipped) <= exact_square(&[clip]));
        if exact_square(&record) <= exact_square(&[clip]) {
            prop_assert_eq!(clipped, record);
        } else {
            prop_assert!(norm >= clip * 0.999_999);
            for (after, before) in clipped.iter().zip(&record) {
                prop_assert!(after.abs() <= before.abs() && after * before >= 0.0);
            }
            let left = clipped.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            prop_assert!(left > f64::from(clip) * (1.0 - 1e-6));
        }
    }

    #[test]
    fn clipping_twice_is_clipping_once(record in prop::collection::vec(-1e3_f32..1e3, 1..300), clip in 1e-3_f32..1e3) {
        let mut once = record;
        clip_l2(&mut once, clip).unwrap();
        let mut twice = once.clone();
        clip_l2(&mut twice, clip).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn no_coordinate_exceeds_its_limit(record in prop::collection::vec(-1e3_f32..1e3, 0..50), limit in 1e-3_f32..1e3) {
        let mut clipped = record.clone();
        let count = clip_coordinates(&mut clipped, limit).unwrap();
        prop_assert_eq!(count, record.iter().filter(|v| v.abs() > limit).count());
        prop_assert!(clipped.iter().all(|v| v.abs() <= limit));
        prop_assert!(clipped.iter().zip(&record).all(|(c, r)| c == r || r.abs() > limit));
    }
}
