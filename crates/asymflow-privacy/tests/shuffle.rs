//! The bound on shuffled records against the exact loss, and against a Monte-Carlo audit.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Door, Loss, Private,
    accountants::{ShuffleError, shuffled},
    mechanisms::RandomisedResponse,
    records::RecordAccountant,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const RECORDS: usize = 400;
const EPSILON: f64 = 1.0;
const DELTA: f64 = 0.01;

fn bound() -> f64 {
    match shuffled(Loss::Pure { epsilon: EPSILON }, RECORDS as u64, DELTA).unwrap() {
        Loss::Approximate { epsilon, delta } => {
            assert_eq!(delta, DELTA);
            epsilon
        }
        other => panic!("{other:?}"),
    }
}

/// Probabilities of the number of ones among the shuffled answers of `RECORDS` zeros, of which the first is `first`.
fn exact(first: u32) -> Vec<f64> {
    let one = 1.0 / (1.0 + EPSILON.exp());
    let mut counts = vec![1.0];
    for record in 0..RECORDS {
        let p = if record == 0 && first == 1 { 1.0 - one } else { one };
        counts.push(0.0);
        for i in (0..counts.len()).rev() {
            counts[i] = counts[i] * (1.0 - p) + if i > 0 { counts[i - 1] * p } else { 0.0 };
        }
    }
    counts
}

fn hockey_stick(p: &[f64], q: &[f64], epsilon: f64) -> f64 {
    p.iter().zip(q).map(|(p, q)| (p - epsilon.exp() * q).max(0.0)).sum()
}

#[test]
fn the_bound_covers_the_exact_loss() {
    let (with, without) = (exact(1), exact(0));
    let most = |epsilon| hockey_stick(&with, &without, epsilon).max(hockey_stick(&without, &with, epsilon));
    assert!(most(bound()) <= DELTA);
    // It amplifies: without shuffling ε is 1. The exact one is above a thirtieth of the bound, and there is more than nothing.
    assert!(bound() < EPSILON && most(bound() / 30.0) > DELTA, "{} at δ {}", bound(), most(bound() / 30.0));
}

/// Answers are drawn by the mechanism itself, and only how many there are of each is kept.
#[test]
fn a_monte_carlo_audit_finds_no_more_than_the_bound() {
    const TRIALS: usize = 20_000;
    let response = RandomisedResponse::new(2, EPSILON).unwrap();
    let records: Vec<usize> = (0..RECORDS).collect();
    let mut door = Door::new(RecordAccountant::new(RECORDS), ChaCha20Rng::seed_from_u64(5));
    let mut counted = |first: u32| {
        let mut counts = vec![0.0; RECORDS + 1];
        for _ in 0..TRIALS {
            let labels = (0..RECORDS).map(|record| if record == 0 { first } else { 0 }).collect();
            let answers = door.release_labels(&response, &records, &Private::new(labels)).unwrap();
            counts[answers.get().iter().sum::<u32>() as usize] += 1.0;
        }
        counts
    };
    let [with, without, with_again, without_again] = [counted(1), counted(0), counted(1), counted(0)];
    // Events are "more than t ones"; t is chosen by one half of the trials and judged by the other.
    let beyond = |counts: &[f64], t: usize| counts[t..].iter().sum::<f64>() / TRIALS as f64;
    let excess = |p: &[f64], q: &[f64], t: usize| beyond(p, t) - bound().exp() * beyond(q, t);
    let t = (0..=RECORDS).max_by(|&a, &b| excess(&with, &without, a).total_cmp(&excess(&with, &without, b))).unwrap();
    let found = excess(&with_again, &without_again, t);
    assert!(found <= DELTA + 4.0 * (0.25 * (1.0 + bound().exp().powi(2)) / TRIALS as f64).sqrt(), "δ of {found}");
    // The audit has power: at an ε of a twentieth of the bound it finds more than δ.
    let small = |p: &[f64], q: &[f64], t: usize| beyond(p, t) - (0.05 * bound()).exp() * beyond(q, t);
    let t = (0..=RECORDS).max_by(|&a, &b| small(&with, &without, a).total_cmp(&small(&with, &without, b))).unwrap();
    assert!(small(&with_again, &without_again, t) > DELTA, "{}", small(&with_again, &without_again, t));
}

#[test]
fn what_is_not_amplified_is_an_error_that_says_why() {
    let error = shuffled(Loss::Pure { epsilon: 5.6 }, 50_000, 1e-5).unwrap_err();
    let ShuffleError::TooMuch { limit, .. } = error else { panic!("{error:?}") };
    assert!((limit - 5.545).abs() < 1e-3, "{limit}");
    let gaussian = Loss::Gaussian { mu: 0.1 };
    assert_eq!(shuffled(gaussian, 50_000, 1e-5), Err(ShuffleError::NotPure { loss: gaussian }));
    assert_eq!(shuffled(Loss::Pure { epsilon: 1.0 }, 50_000, 0.0), Err(ShuffleError::Delta { delta: 0.0 }));
    // Never more than unshuffled.
    for epsilon in [1e-3, 0.1, 0.5, 1.0, 1.5] {
        match shuffled(Loss::Pure { epsilon }, 400, 0.01).unwrap() {
            Loss::Approximate { epsilon: amplified, .. } => assert!(amplified < epsilon),
            unchanged => assert_eq!(unchanged, Loss::Pure { epsilon }),
        }
    }
}
