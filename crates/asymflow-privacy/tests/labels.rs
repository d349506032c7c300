//! Randomised response: frequencies, and the ratio that ε bounds.

use asymflow_privacy::{
    Door, Private,
    door::ReleaseError,
    mechanisms::{MechanismError, RandomisedResponse},
    records::RecordAccountant,
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const LABELS: usize = 300_000;

/// A door in front of so many records, one label each, and the numbers of these.
fn door(records: usize, seed: u64) -> (Door, Vec<usize>) {
    (Door::new(RecordAccountant::new(records), ChaCha20Rng::seed_from_u64(seed)), (0..records).collect())
}

#[test]
fn answers_come_with_their_probabilities() {
    for (classes, epsilon, label, seed) in
        [(2, 0.5, 0, 1), (2, 0.5, 1, 2), (10, 1.0, 3, 3), (10, 1.0, 9, 4), (100, 4.0, 99, 5)]
    {
        let mechanism = RandomisedResponse::new(classes, epsilon).unwrap();
        let labels = Private::new(vec![label; LABELS]);
        let (mut door, records) = door(LABELS, seed);
        let released = door.release_labels(&mechanism, &records, &labels).unwrap();
        assert_eq!(door.accountant().epsilon(1e-9), Ok(epsilon));
        let mut counts = vec![0.0; classes as usize];
        released.get().iter().for_each(|&answer| counts[answer as usize] += 1.0);
        let others = f64::from(classes - 1);
        let keep = epsilon.exp() / (epsilon.exp() + others);
        for (answer, count) in counts.into_iter().enumerate() {
            let p = if answer as u32 == label { keep } else { (1.0 - keep) / others };
            let deviation = (LABELS as f64 * p * (1.0 - p)).sqrt();
            assert!((count - LABELS as f64 * p).abs() < 4.9 * deviation, "{classes} classes, {answer}: {count}");
        }
    }
}

#[test]
fn a_label_that_names_no_class_is_refused_and_not_shown() {
    let mechanism = RandomisedResponse::new(10, 1.0).unwrap();
    let (mut door, records) = door(4, 6);
    let error = door.release_labels(&mechanism, &records, &Private::new(vec![0, 9, 10, 77])).unwrap_err();
    assert_eq!(error, ReleaseError::Label { index: 2, classes: 10 });
    assert_eq!(door.accountant(), &RecordAccountant::new(4));
    assert_eq!(error.to_string(), "label 2 is not below 10, the number of classes");
}

#[test]
fn no_labels_can_be_released() {
    let mechanism = RandomisedResponse::new(3, 1.0).unwrap();
    let (mut door, records) = door(0, 7);
    let released = door.release_labels(&mechanism, &records, &Private::new(Vec::new())).unwrap();
    assert!(released.get().is_empty());
}

#[test]
fn parameters_out_of_range_are_refused() {
    for classes in [0, 1] {
        assert_eq!(RandomisedResponse::new(classes, 1.0), Err(MechanismError::Classes { classes }));
    }
    for epsilon in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(RandomisedResponse::new(10, epsilon), Err(MechanismError::Epsilon { .. })));
    }
    assert!(RandomisedResponse::new(u32::MAX, 1.0).is_ok());
}

proptest! {
    /// ln(P(keep)/P(one other)) is the real ε: at most the stated one, and no less than f64 can tell.
    #[test]
    fn the_ratio_of_answers_is_within_epsilon(classes in 2_u32..2000, epsilon in 1e-3..25.0_f64) {
        let mechanism = RandomisedResponse::new(classes, epsilon).unwrap();
        let keep = mechanism.keep_probability();
        let real = (keep * f64::from(classes - 1) / (1.0 - keep)).ln();
        prop_assert!((real - epsilon).abs() < 1e-4, "{real} {epsilon}");
        let exact = epsilon.exp() / (epsilon.exp() + f64::from(classes - 1));
        prop_assert!(keep <= exact + 2e-16 && keep > exact - 1e-14);
    }
}
