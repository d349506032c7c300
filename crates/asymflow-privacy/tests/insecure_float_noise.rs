//! Floating-point Gaussian noise: its loss against the closed formula, its noise against the normal distribution.
//!
//! The noise comes from fixed seeds, and every statistic must lie within 4.9 standard errors: a correct sampler
//! leaves that range with probability 1e-6, so a failure means a wrong sampler, not bad luck.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Loss,
    accountants::{Relation, Sensitivity},
    mechanisms::{InsecureFloatNoise, Mechanism, MechanismError},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const SAMPLES: usize = 400_000;
const STANDARD_ERRORS: f64 = 4.9;

/// Noise that is added to zeros, divided by `sigma`.
fn standardised_noise(sigma: f64, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let noise = InsecureFloatNoise::new(sigma).unwrap().apply(vec![0.0; SAMPLES], &mut rng).unwrap();
    noise.into_iter().map(|v| f64::from(v) / sigma).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    values.sum::<f64>() / SAMPLES as f64
}

#[track_caller]
fn assert_close(what: &str, value: f64, expected: f64, standard_error: f64) {
    let off = (value - expected) / standard_error;
    assert!(off.abs() < STANDARD_ERRORS, "{what} is {value}, expected {expected}: {off:.1} standard errors off");
}

#[test]
fn moments_are_those_of_the_normal_distribution() {
    let n = SAMPLES as f64;
    for (sigma, seed) in [(0.01, 1), (1.0, 2), (250.0, 3)] {
        let noise = standardised_noise(sigma, seed);
        // E z = 0, 1, 0, 3 for the powers 1 to 4; their variances are 1, 2, 15, 96.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0_f64)] {
            let moment = mean(noise.iter().map(|z| z.powi(power)));
            assert_close(&format!("moment {power} at sigma {sigma}"), moment, expected, (variance / n).sqrt());
        }
    }
}

#[test]
fn tails_are_those_of_the_normal_distribution() {
    let noise = standardised_noise(3.0, 4);
    let within = [
        (0.5, 0.382_924_922_548_026),
        (1.0, 0.682_689_492_137_086),
        (2.0, 0.954_499_736_103_642),
        (3.0, 0.997_300_203_936_740),
    ];
    for (bound, p) in within {
        let share = mean(noise.iter().map(|z| f64::from(u8::from(z.abs() < bound))));
        assert_close(&format!("share within {bound} sigma"), share, p, (p * (1.0 - p) / SAMPLES as f64).sqrt());
    }
}

#[test]
fn neighbouring_values_get_independent_noise() {
    let noise = standardised_noise(1.0, 5);
    let n = SAMPLES as f64;
    for lag in [1, 2, 64] {
        let product = noise.iter().zip(&noise[lag..]).map(|(a, b)| a * b).sum::<f64>() / n;
        assert_close(&format!("correlation at lag {lag}"), product, 0.0, n.sqrt().recip());
    }
}

#[test]
fn noise_is_added_to_the_value() {
    let noise_of = |value: f32| {
        let mut rng = ChaCha20Rng::seed_from_u64(6);
        InsecureFloatNoise::new(0.5).unwrap().apply(vec![value; 100], &mut rng).unwrap()
    };
    for (from_zero, from_eight) in noise_of(0.0).iter().zip(noise_of(8.0)) {
        // The sum is rounded to the spacing of f32 around 8, which is below 2e-6.
        assert!((from_zero + 8.0 - from_eight).abs() < 2e-6, "{from_zero} {from_eight}");
    }
}

#[test]
fn sigma_must_be_positive_and_finite() {
    for sigma in [0.0, -1.0, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(InsecureFloatNoise::new(sigma).unwrap_err(), MechanismError::Sigma { sigma });
    }
    assert!(matches!(InsecureFloatNoise::new(f64::NAN), Err(MechanismError::Sigma { .. })));
}

#[test]
fn an_unbounded_sensitivity_costs_everything() {
    let loss = InsecureFloatNoise::new(1e9).unwrap().loss(Sensitivity::unbounded(Relation::Remove));
    assert_eq!(loss, Ok(Loss::Infinite));
}

proptest! {
    #[test]
    fn loss_is_the_closed_formula(clip in 1e-3..1e3_f64, sigma in 1e-3..1e3_f64) {
        let noise = InsecureFloatNoise::new(sigma).unwrap();
        let mu = clip / sigma;
        prop_assert_eq!(noise.loss(Sensitivity::of_clipped(clip, Relation::Remove)), Ok(Loss::Gaussian { mu }));
        let replaced = noise.loss(Sensitivity::of_clipped(clip, Relation::Replace)).unwrap();
        prop_assert!((replaced.rho() / (2.0 * mu * mu) - 1.0).abs() < 1e-12);
    }
}
