//! No bound from below is above what is claimed, and every planted fault is caught.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use asymflow_audit::epsilon::{EpsilonRow, Fault, Gated, Scores, audit_labels};
use asymflow_privacy::accountants::{Relation, Sensitivity};
use asymflow_privacy::calibration::gaussian_sigma;
use asymflow_privacy::door::Gate;
use asymflow_privacy::mechanisms::{DiscreteGaussian, InsecureFloatNoise, Laplace, Mechanism, MechanismError, OneBit};
use asymflow_privacy::payload::PackedBits;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const DELTA: f64 = 1e-5;
const TRIALS: usize = 20_000;
const SETTINGS: [f64; 5] = [1.0, 1.4, 4.0, 9.0, 17.0];
/// A bound at 95 % is above the truth for one seed in twenty at most; of this one none is.
const SEED: u64 = 11;
/// Bits of a small ε are hard to tell apart.
const BIT_TRIALS: usize = 120_000;

type Make<O> = fn(f64) -> Result<Box<dyn Mechanism<Output = O>>, MechanismError>;

fn bits(out: PackedBits) -> Vec<f32> {
    let mut values = vec![0.0; out.len()];
    out.unpack_into(&mut values, -1.0, 1.0);
    values
}

/// Rows of one mechanism at one setting, without a fault and with each; of records of so many values.
fn rows<O>(
    name: &str,
    make: Make<O>,
    read: fn(O) -> Vec<f32>,
    sigma: f64,
    (values, trials): (usize, usize),
) -> Vec<EpsilonRow> {
    let audit = |fault: Option<Fault>| {
        // From one seed all releases are alike, and the more values there are the surer they differ.
        let is_sparse = fault == Some(Fault::FixedSeed) && values > 1;
        let (values, trials) = if is_sparse { (16 * values, 2000) } else { (values, trials) };
        audited(name, make, read, sigma, (values, trials), fault)
    };
    [None].into_iter().chain(Fault::ALL.map(Some)).map(audit).collect()
}

fn audited<O>(
    name: &str,
    make: Make<O>,
    read: fn(O) -> Vec<f32>,
    sigma: f64,
    (values, trials): (usize, usize),
    fault: Option<Fault>,
) -> EpsilonRow {
    let gate = |noise: f64, is_clipped: bool| {
        // Both norms of a record of so many equal values.
        let sensitivity = Sensitivity::of_clipped_coordinates(1.0 / (values as f64).sqrt(), values, Relation::Remove);
        let gate = Gate::new(make(sigma * noise)?, is_clipped.then_some(1.0), Relation::Remove)?;
        Ok(gate.with_sensitivity(sensitivity))
    };
    let record = vec![1.0 / (values as f32).sqrt(); values];
    let subject = Gated { name, gate: &gate, read: &read, record: &record, delta: DELTA };
    subject.audit(trials, fault, SEED).unwrap()
}

fn holds(rows: Vec<EpsilonRow>) {
    let wrong: Vec<_> = rows.iter().filter(|row| row.is_refuted() != row.fault.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn discrete_gaussian_noise_costs_no_less_than_it_claims() {
    for epsilon in SETTINGS {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        let rows = rows(
            "discrete_gaussian",
            |sigma| Ok(Box::new(DiscreteGaussian::fine(sigma)?)),
            |out| out,
            sigma,
            (4, TRIALS),
        );
        holds(rows);
    }
}

#[test]
fn float_noise_is_no_further_apart_than_it_claims_to_a_threshold() {
    for epsilon in SETTINGS {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        holds(rows(
            "insecure_float_noise",
            |sigma| Ok(Box::new(InsecureFloatNoise::new(sigma)?)),
            |out| out,
            sigma,
            (4, TRIALS),
        ));
    }
}

#[test]
fn bits_cost_no_less_than_they_claim() {
    for epsilon in SETTINGS {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        holds(rows("one_bit", |sigma| Ok(Box::new(OneBit::new(sigma)?)), bits, sigma, (128, BIT_TRIALS)));
    }
}

#[test]
fn clipped_bits_cost_no_less_than_they_claim() {
    for epsilon in SETTINGS {
        let sigma = gaussian_sigma(epsilon, DELTA, 1.0).unwrap();
        holds(rows("one_bit_clipped", |sigma| Ok(Box::new(OneBit::clipped(sigma)?)), bits, sigma, (128, BIT_TRIALS)));
    }
}

#[test]
fn laplace_noise_costs_no_less_than_it_claims() {
    for epsilon in [0.5, 1.0, 2.0, 3.0, 4.0] {
        let rows = rows(
            "discrete_laplace",
            |scale| Ok(Box::new(Laplace::fine(scale)?)),
            |out| out,
            1.0 / epsilon,
            (1, TRIALS),
        );
        holds(rows);
    }
}

#[test]
fn labels_cost_no_less_than_they_claim() {
    for epsilon in [0.5, 1.0, 2.0, 4.0, 6.0] {
        for fault in [None, Some(Fault::HalfNoise), Some(Fault::FixedSeed), Some(Fault::ChargedForTwo)] {
            let row = audit_labels((10, epsilon), TRIALS, fault, 3).unwrap();
            assert_eq!(row.is_refuted(), fault.is_some(), "{row:?}");
        }
    }
}

/// A pair whose trade-off is known: uniform on [0, 1] against uniform on [½, 1½] is told apart with t = ½ at f = 0.
#[test]
fn a_bound_is_below_the_truth_and_near_it() {
    let mut rng = StdRng::seed_from_u64(1);
    // Answers of randomised response over two at ε = 2.
    let keep = f64::exp(2.0) / (1.0 + f64::exp(2.0));
    let mut answer = |truth: f64| if rng.random::<f64>() < keep { truth } else { 1.0 - truth };
    let scores = Scores {
        without: (0..20_000).map(|_| answer(0.0)).collect(),
        with: (0..20_000).map(|_| answer(1.0)).collect(),
    };
    let low = scores.epsilon_low(0.0);
    assert!((1.8..=2.0).contains(&low), "{low}");
}
