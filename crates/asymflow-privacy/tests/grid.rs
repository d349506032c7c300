//! Noise on grids: its distribution against the exact one, and rounding that keeps the sensitivity.
//!
//! The noise comes from fixed seeds. Every statistic has a threshold that a correct sampler exceeds with probability
//! 1e-6.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Loss,
    accountants::{Relation, Sensitivity},
    mechanisms::{DiscreteGaussian, Laplace, Mechanism, MechanismError, clip_l2},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Deserialize;

const SAMPLES: usize = 400_000;

/// Noise in steps of the grid.
fn noise(mechanism: &impl Mechanism<Output = Vec<f32>>, step: f64, seed: u64) -> Vec<i64> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let released = mechanism.apply(vec![0.0; SAMPLES], &mut rng).unwrap();
    let steps = released.iter().map(|&value| f64::from(value) / step);
    steps.inspect(|steps| assert_eq!(steps.fract(), 0.0)).map(|steps| steps as i64).collect()
}

/// Pearson's statistic of `samples` against a symmetric distribution with weight `weight(|y|)`, where counts that are
/// expected to be small are pooled, must be below its quantile at 1 − 1e-6 (Wilson and Hilferty's approximation).
fn assert_distributed(what: &str, samples: &[i64], width: i64, weight: impl Fn(i64) -> f64) {
    let reach = samples.iter().map(|y| y.abs()).max().unwrap() + 40 * width;
    let total: f64 = (-reach..=reach).map(|y| weight(y.abs())).sum();
    let cells = 2 * reach / width + 2;
    let (mut expected, mut observed) = (vec![0.0; cells as usize], vec![0.0; cells as usize]);
    for y in -reach..=reach {
        expected[((y + reach) / width) as usize] += SAMPLES as f64 * weight(y.abs()) / total;
    }
    for y in samples {
        observed[((y + reach) / width) as usize] += 1.0;
    }
    let (mut statistic, mut pooled, mut degrees) = (0.0, (0.0, 0.0), -1.0);
    for (expected, observed) in expected.into_iter().zip(observed) {
        pooled = (pooled.0 + expected, pooled.1 + observed);
        if pooled.0 >= 25.0 {
            statistic += (pooled.1 - pooled.0).powi(2) / pooled.0;
            degrees += 1.0;
            pooled = (0.0, 0.0);
        }
    }
    let quantile = degrees * (1.0 - 2.0 / (9.0 * degrees) + 4.753 * (2.0_f64 / (9.0 * degrees)).sqrt()).powi(3);
    assert!(degrees > 1.0 && statistic < quantile, "{what}: chi-square {statistic} at {degrees}, limit {quantile}");
}

/// Probabilities of noise of 0, 1, 2, … steps by `golden/discrete_gaussian.py`, in 50-digit arithmetic.
#[derive(Deserialize)]
struct Golden {
    gaussian: Vec<Gaussian>,
    laplace: Vec<TwoSided>,
}

#[derive(Deserialize)]
struct Gaussian {
    sigma: f64,
    pmf: Vec<f64>,
}

#[derive(Deserialize)]
struct TwoSided {
    scale: f64,
    pmf: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/discrete_gaussian.json")).unwrap()
}

#[test]
fn discrete_gaussian_noise_has_its_exact_distribution() {
    for (Gaussian { sigma, pmf }, seed) in golden().gaussian.into_iter().zip(1..) {
        let samples = noise(&DiscreteGaussian::new(sigma, 1.0).unwrap(), 1.0, seed);
        assert_distributed(&format!("sigma {sigma}"), &samples, 1, |y| pmf.get(y as usize).copied().unwrap_or(0.0));
    }
    let narrow = noise(&DiscreteGaussian::new(0.0625, 1.0).unwrap(), 1.0, 9);
    assert!(narrow.iter().all(|&y| y == 0)); // P(1) = e^-128
}

#[test]
fn laplace_noise_has_its_exact_distribution() {
    for (TwoSided { scale, pmf }, seed) in golden().laplace.into_iter().zip(31..) {
        let samples = noise(&Laplace::new(scale, 1.0).unwrap(), 1.0, seed);
        assert_distributed(&format!("scale {scale}"), &samples, 1, |y| pmf.get(y as usize).copied().unwrap_or(0.0));
    }
    let samples = noise(&Laplace::new(70_000.7, 1.0).unwrap(), 1.0, 40);
    assert_distributed("scale 70000.7", &samples, 5_000, |y| (-y as f64 / 70_000.7).exp());
}

#[test]
fn wide_discrete_gaussian_noise_has_its_distribution_in_cells() {
    for (sigma, seed) in [(1024.0, 11), (100_000.3, 12)] {
        let samples = noise(&DiscreteGaussian::new(sigma, 1.0).unwrap(), 1.0, seed);
        let width = (sigma / 8.0) as i64;
        assert_distributed(&format!("sigma {sigma}"), &samples, width, |y| (-0.5 * (y as f64 / sigma).powi(2)).exp());
        let odd = samples.iter().filter(|&&y| y & 1 == 1).count() as f64 / SAMPLES as f64;
        assert!((odd - 0.5).abs() < 4.9 * 0.5 / (SAMPLES as f64).sqrt(), "share of odd noise {odd}");
    }
}

#[test]
fn the_widest_noise_has_the_moments_of_the_normal_distribution() {
    let n = SAMPLES as f64;
    for (sigma, seed) in [(1_048_576.0, 21), (16_777_216.0, 22)] {
        let samples = noise(&DiscreteGaussian::new(sigma, 1.0).unwrap(), 1.0, seed);
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0_f64)] {
            let moment = samples.iter().map(|&y| (y as f64 / sigma).powi(power)).sum::<f64>() / n;
            let off = (moment - expected) / (variance / n).sqrt();
            assert!(off.abs() < 4.9, "sigma {sigma}, moment {power}: {off} standard errors off");
        }
    }
}

#[test]
fn losses_are_the_closed_formulas() {
    let gaussian = DiscreteGaussian::fine(2.0).unwrap();
    for (relation, continuous) in [(Relation::Remove, 0.5), (Relation::Replace, 1.0)] {
        let Ok(Loss::Gaussian { mu }) = gaussian.loss(Sensitivity::of_clipped(1.0, relation)) else {
            panic!("{relation:?}")
        };
        assert!(mu > continuous && mu < continuous * (1.0 + 1e-11), "{mu}");
    }
    let coarse = DiscreteGaussian::new(2.0, 0.25).unwrap();
    assert_eq!(coarse.loss(Sensitivity::of_clipped(1.0, Relation::Remove)), Ok(Loss::Zcdp { rho: 0.125 }));
    assert_eq!(gaussian.loss(Sensitivity::unbounded(Relation::Remove)), Ok(Loss::Infinite));
    let laplace = Laplace::fine(4.0).unwrap();
    let by_coordinate = Sensitivity::of_clipped_coordinates(0.5, 16, Relation::Replace);
    assert_eq!((by_coordinate.l1(), by_coordinate.l2()), (Some(16.0), 4.0));
    assert_eq!(laplace.loss(by_coordinate), Ok(Loss::Pure { epsilon: 4.0 }));
    let missing = laplace.loss(Sensitivity::of_clipped(1.0, Relation::Remove));
    assert_eq!(missing, Err(MechanismError::SensitivityL1 { l1: None }));
    let infinite = Sensitivity::of_clipped(1.0, Relation::Remove).with_l1_clip(f64::INFINITY);
    assert_eq!(laplace.loss(infinite), Ok(Loss::Infinite));
}

#[test]
fn parameters_out_of_range_are_refused() {
    for sigma in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(DiscreteGaussian::new(sigma, 1.0), Err(MechanismError::Sigma { .. })));
        assert!(matches!(DiscreteGaussian::fine(sigma), Err(MechanismError::Sigma { .. })));
        assert!(matches!(Laplace::new(sigma, 1.0), Err(MechanismError::Scale { .. })));
        assert!(matches!(Laplace::fine(sigma), Err(MechanismError::Scale { .. })));
    }
    for step in [0.0, -1.0, 0.3, 3.0, f64::INFINITY, f64::NAN, 5e-324] {
        assert!(matches!(DiscreteGaussian::new(1.0, step), Err(MechanismError::Step { .. })), "{step}");
        assert!(matches!(Laplace::new(1.0, step), Err(MechanismError::Step { .. })), "{step}");
    }
    for (noise, step) in [(1.0, 32.0), (1.0, 2.0_f64.powi(-25))] {
        assert!(matches!(DiscreteGaussian::new(noise, step), Err(MechanismError::NoiseSteps { .. })));
        assert!(matches!(Laplace::new(noise, step), Err(MechanismError::NoiseSteps { .. })));
    }
    for sigma in [1e-20, 1e-3, 1.0, 7.7, 1e20] {
        let fine = DiscreteGaussian::fine(sigma).unwrap();
        assert!((1_048_576.0..2_097_152.0).contains(&(fine.sigma() / fine.step())), "{sigma}");
        assert_eq!(Laplace::fine(sigma).unwrap().step(), fine.step());
    }
}

#[test]
fn a_value_beyond_the_grid_is_refused_and_only_its_place_told() {
    let mechanism = DiscreteGaussian::new(1.0, 2.0_f64.powi(-20)).unwrap();
    let refused = mechanism.apply(vec![0.0, 1e30], &mut ChaCha20Rng::seed_from_u64(41)).unwrap_err();
    assert_eq!(refused, MechanismError::Range { index: 1, limit: 2.0_f64.powi(32) });
}

/// What a release adds to its noise: the number of random words drawn does not depend on the values, so the same seed
/// gives the same noise.
fn rounded(record: &[f32], step: f64) -> Vec<f64> {
    let mechanism = DiscreteGaussian::new(step, step).unwrap();
    let release = |values: Vec<f32>| mechanism.apply(values, &mut ChaCha20Rng::seed_from_u64(42)).unwrap();
    let (noisy, noise) = (release(record.to_vec()), release(vec![0.0; record.len()]));
    noisy.iter().zip(noise).map(|(a, b)| f64::from(*a) - f64::from(b)).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

proptest! {
    #[test]
    fn values_are_rounded_towards_zero(record in prop::collection::vec(-50.0_f32..50.0, 1..40), exponent in -8..3) {
        let step = 2.0_f64.powi(exponent);
        for (rounded, value) in rounded(&record, step).into_iter().zip(record) {
            prop_assert_eq!(rounded, (f64::from(value) / step).trunc() * step);
        }
    }

    /// However coarse the grid: what `Sensitivity::of_clipped` states holds for rounded records, for both relations.
    #[test]
    fn rounding_keeps_the_sensitivity(
        a in prop::collection::vec(-1.0_f32..1.0, 30), b in prop::collection::vec(-1.0_f32..1.0, 30), exponent in -8..1,
    ) {
        let step = 2.0_f64.powi(exponent);
        let prepare = |mut record: Vec<f32>| {
            clip_l2(&mut record, 1.0).unwrap();
            rounded(&record, step)
        };
        let (a, b) = (prepare(a), prepare(b));
        let zero = vec![0.0; 30];
        prop_assert!(distance(&a, &zero) <= Sensitivity::of_clipped(1.0, Relation::Remove).l2());
        prop_assert!(distance(&a, &b) <= Sensitivity::of_clipped(1.0, Relation::Replace).l2());
    }
}

/// Counts of noise that opendp drew, by `golden/opendp_discrete_gaussian.py`.
#[derive(Deserialize)]
struct OpenDp {
    samples: usize,
    drawn: Vec<Drawn>,
}

#[derive(Deserialize)]
struct Drawn {
    sigma: f64,
    counts: std::collections::BTreeMap<String, f64>,
}

/// Two samples, ours and opendp's, of one distribution: their chi-square statistic stays below its quantile at 1 − 1e-6.
#[test]
fn discrete_gaussian_noise_is_that_of_opendp() {
    let golden: OpenDp = serde_json::from_str(include_str!("golden/opendp_discrete_gaussian.json")).unwrap();
    for (seed, Drawn { sigma, counts }) in golden.drawn.into_iter().enumerate() {
        let ours = noise(&DiscreteGaussian::new(sigma, 1.0).unwrap(), 1.0, 900 + seed as u64);
        let theirs = |y: i64| counts.get(&y.to_string()).copied().unwrap_or(0.0);
        let reach = ours.iter().map(|y| y.abs()).chain(counts.keys().map(|y| y.parse::<i64>().unwrap().abs())).max();
        let reach = reach.unwrap();
        let mut own = vec![0.0; 2 * reach as usize + 1];
        ours.iter().for_each(|y| own[(y + reach) as usize] += 1.0);
        // Numerical Recipes, "Are two distributions different?", for samples of unequal size.
        let (up, down) =
            ((golden.samples as f64 / SAMPLES as f64).sqrt(), (SAMPLES as f64 / golden.samples as f64).sqrt());
        let (mut statistic, mut pooled, mut degrees) = (0.0, (0.0, 0.0), -1.0);
        for y in -reach..=reach {
            pooled = (pooled.0 + own[(y + reach) as usize], pooled.1 + theirs(y));
            if pooled.0 + pooled.1 >= 50.0 {
                statistic += (up * pooled.0 - down * pooled.1).powi(2) / (pooled.0 + pooled.1);
                degrees += 1.0;
                pooled = (0.0, 0.0);
            }
        }
        let quantile = degrees * (1.0 - 2.0 / (9.0 * degrees) + 4.753 * (2.0_f64 / (9.0 * degrees)).sqrt()).powi(3);
        assert!(
            degrees > 1.0 && statistic < quantile,
            "σ = {sigma}: chi-square {statistic} at {degrees}, limit {quantile}"
        );
    }
}
