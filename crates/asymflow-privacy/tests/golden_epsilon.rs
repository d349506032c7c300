//! ε against Opacus 1.6.0 and Google's dp-accounting 0.6.0 (`golden/dp_epsilon.json` says how they were called).
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    accountants::{Accountant, Event, PldAccountant, RdpAccountant},
    calibration::{gaussian_delta, gaussian_epsilon, gaussian_sigma},
};
use serde::Deserialize;

const DELTA: f64 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    grid: Vec<Point>,
    analytic_gaussian: Vec<Analytic>,
}

#[derive(Deserialize)]
struct Point {
    sigma: f64,
    q: f64,
    steps: u64,
    opacus_rdp: Rdp,
    opacus_prv: Prv,
    dp_accounting_rdp: Rdp,
    dp_accounting_pld: Pld,
    gaussian_exact: Option<f64>,
}

#[derive(Deserialize)]
struct Rdp {
    epsilon: f64,
    order: f64,
}

/// Opacus ran out of memory on some points.
#[derive(Deserialize)]
struct Prv {
    epsilon: Option<f64>,
    lower: Option<f64>,
}

#[derive(Deserialize)]
struct Pld {
    epsilon: f64,
}

#[derive(Deserialize)]
struct Analytic {
    epsilon: f64,
    sigma_mpmath: f64,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/dp_epsilon.json")).unwrap()
}

impl Point {
    fn event(&self) -> Event {
        Event::PoissonSampled { q: self.q, noise_multiplier: self.sigma }
    }

    fn name(&self) -> String {
        format!("sigma {}, q {}, {} steps", self.sigma, self.q, self.steps)
    }
}

#[test]
fn rdp_is_that_of_opacus_or_dp_accounting() {
    for point in golden().grid {
        let mut accountant = RdpAccountant::default();
        accountant.compose(point.event(), point.steps).unwrap();
        let (order, epsilon) = accountant.best_order(DELTA).unwrap();
        // The orders here are those of both together.
        let theirs = if point.opacus_rdp.epsilon <= point.dp_accounting_rdp.epsilon {
            &point.opacus_rdp
        } else {
            &point.dp_accounting_rdp
        };
        let name = point.name();
        assert!((epsilon / theirs.epsilon - 1.0).abs() < 1e-6, "{name}: {epsilon} is not {}", theirs.epsilon);
        assert!((order - theirs.order).abs() < 1e-9, "{name}: order {order} is not {}", theirs.order);
    }
}

#[test]
fn pld_is_that_of_dp_accounting_and_within_the_bounds_of_opacus() {
    for point in golden().grid {
        let mut accountant = PldAccountant::default();
        accountant.compose(point.event(), point.steps).unwrap();
        let (epsilon, theirs, name) =
            (accountant.epsilon(DELTA).unwrap(), point.dp_accounting_pld.epsilon, point.name());
        // Both are upper bounds. Theirs has a fixed grid, which is the coarser one wherever losses are small.
        assert!(epsilon <= theirs * (1.0 + 1e-5), "{name}: {epsilon} is above {theirs}");
        assert!(epsilon >= theirs * 0.99, "{name}: {epsilon} is far below {theirs}");
        if let (Some(lower), Some(upper)) = (point.opacus_prv.lower, point.opacus_prv.epsilon) {
            assert!(lower <= epsilon && epsilon <= upper, "{name}: {epsilon} is outside {lower} to {upper}");
        }
    }
}

#[test]
fn gaussian_noise_alone_costs_the_exact_epsilon() {
    for point in golden().grid {
        let Some(exact) = point.gaussian_exact else { continue };
        let sigma = point.sigma / (point.steps as f64).sqrt();
        let epsilon = gaussian_epsilon(sigma, 1.0, DELTA).unwrap();
        assert!((epsilon / exact - 1.0).abs() < 1e-9, "{}: {epsilon} is not {exact}", point.name());
    }
}

#[test]
fn analytic_sigma_is_that_of_50_digit_arithmetic() {
    for Analytic { epsilon, sigma_mpmath } in golden().analytic_gaussian {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        assert!((sigma / sigma_mpmath - 1.0).abs() < 1e-12, "epsilon {epsilon}: {sigma} is not {sigma_mpmath}");
        assert!(gaussian_delta(sigma, 1.0, epsilon).unwrap() <= DELTA);
    }
}
