//! Calibration: the table that shows the printed formula to be too small, inverses, monotony, and refusals.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Loss,
    accountants::{Accountant, AccountantError, Event, PldAccountant, RdpAccountant, Relation, Sensitivity},
    calibration::{
        CalibrationError, calibrate_losses, calibrate_sigma, gaussian_delta, gaussian_epsilon, gaussian_sigma,
        thesis_amplified_epsilon, thesis_local_epsilon, thesis_sigma,
    },
    mechanisms::{Mechanism, MechanismError, OneBit},
    records::RecordLedger,
};
use proptest::prelude::*;

const DELTA: f64 = 1e-5;

/// (ε′, σ as printed, least σ, real ε at the printed σ) for C = 1, computed independently with scipy, to the digits
/// given.
#[test]
fn the_printed_sigma_is_too_small_below_one_half() {
    let table = [
        (0.1, 15.62, 30.75, 0.210),
        (0.25, 9.88, 13.29, 0.345),
        (0.5, 6.99, 7.03, 0.503),
        (1.0, 4.94, 3.73, 0.735),
        (8.0, 1.75, 0.60, 2.32),
        (20.0, 1.11, 0.29, 3.90),
    ];
    for (epsilon, printed, least, real) in table {
        let sigma = thesis_sigma(epsilon, DELTA, 1.0).unwrap();
        assert!((sigma - printed).abs() < 0.006, "{epsilon}: {sigma} is not {printed}");
        let exact = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        assert!((exact - least).abs() < 0.006, "{epsilon}: {exact} is not {least}");
        let costs = gaussian_epsilon(sigma, 1.0, DELTA).unwrap();
        assert!((costs / real - 1.0).abs() < 0.004, "{epsilon}: {costs} is not {real}");
        assert_eq!(costs > epsilon, epsilon <= 0.5);
    }
    assert_eq!(thesis_sigma(1.0, DELTA, 2.0).unwrap(), 2.0 * thesis_sigma(1.0, DELTA, 1.0).unwrap());
}

#[test]
fn published_epsilons_map_back_to_local_ones() {
    for (published, p, local) in [(1.4, 0.001, 8.02), (9.0, 0.001, 15.91), (17.0, 0.001, 23.91), (1.4, 0.0002, 9.6)] {
        let epsilon = thesis_local_epsilon(published, p).unwrap();
        assert!((epsilon - local).abs() < 0.06, "{published}: {epsilon} is not {local}");
        let back = thesis_amplified_epsilon(epsilon, p).unwrap();
        assert!((back / published - 1.0).abs() < 1e-12);
    }
    assert!(thesis_amplified_epsilon(2000.0, 0.5).unwrap().is_finite());
    assert!(thesis_local_epsilon(2000.0, 0.5).unwrap().is_finite());
}

#[test]
fn a_composition_is_calibrated_to_its_target() {
    let epsilon_at = |sigma: f64| {
        let mut accountant = RdpAccountant::default();
        accountant.compose(Event::PoissonSampled { q: 0.01, noise_multiplier: sigma }, 1000)?;
        accountant.epsilon(DELTA)
    };
    for target in [0.5, 2.0, 8.0] {
        let sigma = calibrate_sigma(target, epsilon_at).unwrap();
        assert!(epsilon_at(sigma).unwrap() <= target);
        assert!(epsilon_at(sigma * (1.0 - 2e-6)).unwrap() > target);
    }
}

#[test]
fn calibration_through_the_numerical_accountant_is_the_analytic_one() {
    let epsilon_at = |sigma| {
        let mut accountant = PldAccountant::default();
        accountant.compose(Event::Gaussian { noise_multiplier: sigma }, 4)?;
        accountant.epsilon(DELTA)
    };
    let (found, exact) = (calibrate_sigma(3.0, epsilon_at).unwrap(), 2.0 * gaussian_sigma(3.0, DELTA, 1.0).unwrap());
    assert!((found / exact - 1.0).abs() < 1e-5, "{found} {exact}");
}

#[test]
fn a_target_out_of_reach_and_a_failing_accountant_are_errors() {
    assert!(matches!(calibrate_sigma(1.0, |_| Ok(2.0)), Err(CalibrationError::Unreachable { .. })));
    let failing = calibrate_sigma(1.0, |_| Err(AccountantError::Delta { delta: 2.0 }));
    assert_eq!(failing, Err(CalibrationError::Accountant(AccountantError::Delta { delta: 2.0 })));
    assert!(calibrate_sigma(1.0, |_| Ok(0.5)).is_ok()); // reached everywhere
}

#[test]
fn numbers_out_of_range_are_refused() {
    for bad in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let refusals = [
            gaussian_sigma(bad, DELTA, 1.0),
            gaussian_sigma(1.0, DELTA, bad),
            gaussian_epsilon(bad, 1.0, DELTA),
            gaussian_epsilon(1.0, bad, DELTA),
            gaussian_delta(bad, 1.0, 1.0),
            gaussian_delta(1.0, bad, 1.0),
            thesis_sigma(bad, DELTA, 1.0),
            thesis_sigma(1.0, DELTA, bad),
            thesis_amplified_epsilon(bad, 0.5),
            thesis_local_epsilon(bad, 0.5),
            calibrate_sigma(bad, |_| Ok(0.0)),
        ];
        assert!(refusals.iter().all(|refusal| matches!(refusal, Err(CalibrationError::NotPositive { .. }))), "{bad}");
    }
    for bad in [0.0, 1.0, -0.1, 1.5, f64::NAN] {
        let refusals = [
            gaussian_sigma(1.0, bad, 1.0),
            gaussian_epsilon(1.0, 1.0, bad),
            thesis_sigma(1.0, bad, 1.0),
            thesis_amplified_epsilon(1.0, bad),
            thesis_local_epsilon(1.0, bad),
        ];
        assert!(
            refusals.iter().all(|refusal| matches!(refusal, Err(CalibrationError::NotProbability { .. }))),
            "{bad}"
        );
    }
    let said = gaussian_sigma(1.0, 2.0, 1.0).unwrap_err().to_string();
    assert_eq!(said, "delta must lie strictly between 0 and 1, got 2");
}

/// 40-digit values by mpmath 1.3 of Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ), where tails and cancellation are hard.
#[test]
fn delta_keeps_its_relative_precision() {
    let exact = [
        (1.0, 1.0, 0.12693673750664394),
        (0.01, 0.05, 5.481440200746872e-10),
        (0.001, 0.0001, 0.0003509528620156659),
        (0.0001, 0.001, 7.478298460019564e-29),
        (0.1, 1.0, 1.2308359836427112e-25),
        (0.25, 3.0, 1.623832873823962e-34),
        (3.0, 0.5, 0.8299958099476903),
        (10.0, 60.0, 0.13683538039646126),
        (10.0, 20.0, 0.9980291814654276),
        (100.0, 5000.0, 0.4960109760186432),
        (100.0, 6000.0, 6.920401854427357e-24),
        (166.0, 14598.0, 3.79363242381972e-07),
    ];
    for (mu, epsilon, delta) in exact {
        let computed = gaussian_delta(1.0, mu, epsilon).unwrap();
        assert!((computed / delta - 1.0_f64).abs() < 1e-9, "mu {mu}, epsilon {epsilon}: {computed} is not {delta}");
    }
}

proptest! {
    #[test]
    fn sigma_and_epsilon_are_inverse(
        log_epsilon in -3.0..3.0_f64, log_delta in -20.0..-1.0_f64, scale in 1e-3..1e3_f64,
    ) {
        let (epsilon, delta) = (log_epsilon.exp(), log_delta.exp());
        let sigma = gaussian_sigma(epsilon, delta, scale).unwrap();
        prop_assert!(gaussian_delta(sigma, scale, epsilon).unwrap() <= delta * (1.0 + 1e-9));
        let back = gaussian_epsilon(sigma, scale, delta).unwrap();
        prop_assert!((back / epsilon - 1.0).abs() < 1e-9, "{back} {epsilon}");
    }

    #[test]
    fn more_noise_costs_less(sigma in 0.05..50.0_f64, factor in 1.001..3.0_f64, log_delta in -20.0..-1.0_f64) {
        let epsilon = |sigma| gaussian_epsilon(sigma, 1.0, log_delta.exp()).unwrap();
        prop_assert!(epsilon(sigma * factor) <= epsilon(sigma));
    }
}

/// Losses of one record of Delta: bits and noised gradients, each with `factor` times the noise that its own ε takes.
fn bits_and_gradients(bits: f64, labels: f64, epochs: usize) -> impl Fn(f64) -> Result<Vec<Loss>, MechanismError> {
    let bits_sigma = gaussian_sigma(bits, DELTA, 1.0).unwrap();
    let gradient = |sigma: f64| Loss::Zcdp { rho: 0.5 / (sigma * sigma) };
    let labels_sigma = calibrate_losses(labels, DELTA, |sigma| Ok(vec![gradient(sigma); epochs])).unwrap();
    move |factor| {
        let mut losses = vec![gradient(factor * labels_sigma); epochs];
        losses.push(Loss::Gaussian { mu: 1.0 / (factor * bits_sigma) });
        Ok(losses)
    }
}

fn spent(losses: Vec<Loss>) -> f64 {
    let mut ledger = RecordLedger::default();
    losses.into_iter().for_each(|loss| ledger.add(loss));
    ledger.epsilon(DELTA).unwrap()
}

#[test]
fn bits_and_gradients_calibrated_together_spend_what_they_promise_together() {
    for (bits, labels) in [(9.0, 0.5), (17.0, 1.0), (9.0, 4.0), (1.4, 0.1), (9.0, 0.01)] {
        for epochs in [1, 30] {
            let losses = bits_and_gradients(bits, labels, epochs);
            let factor = calibrate_losses(bits + labels, DELTA, &losses).unwrap();
            let together = spent(losses(factor).unwrap());
            assert!(together <= bits + labels, "{bits} + {labels}: {together}");
            assert!(together > (bits + labels) * (1.0 - 1e-6), "{bits} + {labels}: only {together}");
        }
    }
}

/// What calibrating each alone comes to: refused after the bits have left, or less spent than was promised.
#[test]
fn calibrated_alone_they_exceed_or_waste_the_promise() {
    for (bits, labels) in [(9.0, 0.5), (17.0, 1.0)] {
        let alone = spent(bits_and_gradients(bits, labels, 30)(1.0).unwrap());
        assert!(alone > bits + labels, "{bits} + {labels}: {alone}");
    }
    let alone = spent(bits_and_gradients(9.0, 4.0, 30)(1.0).unwrap());
    assert!((10.0..12.0).contains(&alone), "{alone}");
}

#[test]
fn a_promise_that_no_noise_keeps_is_refused_before_anything_is_released() {
    let labels = Loss::Pure { epsilon: 2.0 };
    let losses = |sigma: f64| Ok(vec![labels, Loss::Gaussian { mu: 1.0 / sigma }]);
    let refused = calibrate_losses(1.9, DELTA, losses);
    assert!(matches!(refused, Err(CalibrationError::Unreachable { target: 1.9, .. })), "{refused:?}");
    let sigma = calibrate_losses(3.0, DELTA, losses).unwrap();
    assert!(spent(losses(sigma).unwrap()) <= 3.0);
    let infinite = calibrate_losses(1.0, DELTA, |_| Ok(vec![Loss::Infinite]));
    assert!(matches!(infinite, Err(CalibrationError::Unreachable { .. })));
    let mechanism = calibrate_losses(1.0, DELTA, |_| Err(MechanismError::Sigma { sigma: 0.0 }));
    assert_eq!(mechanism, Err(CalibrationError::Mechanism(MechanismError::Sigma { sigma: 0.0 })));
}

/// What the page on privacy says of neighbours and of clipped bits is computed here.
#[test]
fn the_figures_of_the_privacy_page_are_these() {
    let page = include_str!("../../../docs/privacy.md");
    for epsilon in [1.4, 9.0, 17.0] {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        let replace = gaussian_epsilon(sigma, 2.0, DELTA).unwrap();
        let clipped = calibrate_losses(epsilon, DELTA, |sigma| {
            Ok(vec![OneBit::clipped(sigma)?.loss(Sensitivity::of_clipped(1.0, Relation::Remove))?])
        });
        let clipped = clipped.unwrap();
        let row = format!("| {epsilon} | {replace:.2} | {sigma:.3} | {clipped:.3} |");
        assert!(page.lines().any(|line| line == row), "docs/privacy.md has no row {row}");
    }
}
