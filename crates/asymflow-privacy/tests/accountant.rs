//! The accountant: composition, and ε against the definition and against exact values.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Loss,
    accountants::{Accountant, AccountantError, Relation, Sensitivity, ZcdpAccountant},
    mechanisms::{InsecureFloatNoise, InsecureNone, Mechanism},
};
use proptest::prelude::*;

fn loss(mechanism: &impl Mechanism) -> Loss {
    mechanism.loss(Sensitivity::of_clipped(1.0, Relation::Remove)).unwrap()
}

/// The accountant after `steps` releases at `sigma`.
fn after(steps: u32, sigma: f64) -> ZcdpAccountant {
    let mut accountant = ZcdpAccountant::default();
    for _ in 0..steps {
        accountant.absorb(loss(&InsecureFloatNoise::new(sigma).unwrap()));
    }
    accountant
}

#[test]
fn nothing_released_costs_nothing() {
    assert_eq!(ZcdpAccountant::default().epsilon(1e-5), Ok(0.0));
}

#[test]
fn epsilon_bounds_the_exact_value_from_above_and_not_by_much() {
    // (sigma, releases, exact ε at δ = 1e-5) by dp_accounting.get_epsilon_gaussian of Google's dp-accounting 0.6.0.
    let exact = [
        (0.6, 1, 8.003691055600607),
        (1.0, 1, 4.377178095681137),
        (1.0, 100, 91.81728962466373),
        (1.5, 1, 2.753381379529157),
        (1.5, 100, 49.88371241116723),
    ];
    for (sigma, steps, exact) in exact {
        let epsilon = after(steps, sigma).epsilon(1e-5).unwrap();
        assert!(epsilon > exact, "sigma {sigma}, {steps} releases: {epsilon} is below the exact {exact}");
        assert!(epsilon < 1.25 * exact, "sigma {sigma}, {steps} releases: {epsilon} is far above the exact {exact}");
    }
}

#[test]
fn every_loss_has_a_rho() {
    assert_eq!(Loss::Gaussian { mu: 0.5 }.rho(), 0.125);
    assert_eq!(Loss::Zcdp { rho: 0.5 }.rho(), 0.5);
    assert_eq!(Loss::Pure { epsilon: 0.5 }.rho(), 0.125);
    assert_eq!(Loss::Pure { epsilon: 4.0 }.rho(), 4.0); // not 8: no divergence exceeds ε
    for none in [Loss::Infinite, Loss::Gaussian { mu: f64::NAN }, Loss::Zcdp { rho: -1.0 }] {
        assert_eq!(none.rho(), f64::INFINITY);
    }
}

#[test]
fn one_release_without_noise_costs_everything_forever() {
    let mut accountant = after(3, 2.0);
    accountant.absorb(loss(&InsecureNone));
    accountant.absorb(loss(&InsecureFloatNoise::new(2.0).unwrap()));
    assert_eq!(accountant.rho(), f64::INFINITY);
    assert_eq!(accountant.epsilon(1e-5), Ok(f64::INFINITY));
}

#[test]
fn a_resumed_accountant_keeps_what_was_spent() {
    let whole = after(10, 1.5);
    let mut resumed = ZcdpAccountant::resume(after(4, 1.5).rho());
    for _ in 0..6 {
        resumed.absorb(loss(&InsecureFloatNoise::new(1.5).unwrap()));
    }
    assert_eq!(resumed.rho(), whole.rho());
}

#[test]
fn a_loss_that_is_none_counts_as_infinite() {
    for rho in [f64::NAN, -1e-9, f64::NEG_INFINITY, f64::INFINITY] {
        assert_eq!(ZcdpAccountant::resume(rho).epsilon(1e-5), Ok(f64::INFINITY), "{rho}");
    }
}

#[test]
fn delta_must_be_a_probability_between_0_and_1() {
    for delta in [0.0, 1.0, -0.1, 1.1, f64::INFINITY] {
        assert_eq!(after(1, 1.0).epsilon(delta), Err(AccountantError::Delta { delta }));
    }
    assert!(after(1, 1.0).epsilon(f64::NAN).is_err());
}

proptest! {
    /// ε by the definition that the closed formula solves: the smallest over all orders α > 1 of
    /// αρ + ln(1/δ)/(α − 1), searched by golden section on ln(α − 1).
    #[test]
    fn epsilon_is_the_best_over_all_orders(rho in 1e-6..1e3_f64, log_delta in -30.0..-0.5_f64) {
        let epsilon_at = |log_order: f64| (1.0 + log_order.exp()) * rho - log_delta / log_order.exp();
        let golden = 0.5 * (5.0_f64.sqrt() - 1.0);
        let (mut low, mut high) = (-30.0, 30.0);
        for _ in 0..200 {
            let (left, right) = (high - golden * (high - low), low + golden * (high - low));
            if epsilon_at(left) < epsilon_at(right) { high = right } else { low = left }
        }
        let best = epsilon_at(0.5 * (low + high));
        let epsilon = ZcdpAccountant::resume(rho).epsilon(log_delta.exp()).unwrap();
        prop_assert!((epsilon / best - 1.0).abs() < 1e-9, "{epsilon} {best}");
    }

    #[test]
    fn losses_add_up_in_any_order(sigmas in prop::collection::vec(0.1..10.0_f64, 1..20)) {
        let total = |sigmas: &mut dyn Iterator<Item = &f64>| {
            let mut accountant = ZcdpAccountant::default();
            sigmas.for_each(|&sigma| accountant.absorb(loss(&InsecureFloatNoise::new(sigma).unwrap())));
            accountant.rho()
        };
        let expected: f64 = sigmas.iter().map(|sigma| 0.5 / (sigma * sigma)).sum();
        prop_assert!((total(&mut sigmas.iter()) / expected - 1.0).abs() < 1e-12);
        prop_assert!((total(&mut sigmas.iter().rev()) / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_smaller_delta_costs_a_larger_epsilon(rho in 1e-6..1e3_f64, delta in 1e-12..0.5_f64) {
        let accountant = ZcdpAccountant::resume(rho);
        prop_assert!(accountant.epsilon(delta / 2.0).unwrap() > accountant.epsilon(delta).unwrap());
    }
}
