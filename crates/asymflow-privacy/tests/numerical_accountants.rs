//! RDP and PLD against exact values and against each other, and what they keep across a restart.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Loss,
    accountants::{
        Accountant, AccountantError, Event, PldAccountant, RdpAccountant, Relation, Sensitivity, ZcdpAccountant,
    },
    calibration::{calibrate_sigma, gaussian_epsilon, gaussian_sigma},
    mechanisms::{DiscreteGaussian, InsecureNone, Laplace, Mechanism, OneBit},
    records::RecordLedger,
};
use proptest::prelude::*;

const DELTA: f64 = 1e-5;

fn pld(events: &[(Event, u64)], delta: f64) -> Result<f64, AccountantError> {
    let mut accountant = PldAccountant::default();
    events.iter().for_each(|&(event, count)| accountant.compose(event, count).unwrap());
    accountant.epsilon(delta)
}

fn rdp(events: &[(Event, u64)], delta: f64) -> f64 {
    let mut accountant = RdpAccountant::default();
    events.iter().for_each(|&(event, count)| accountant.compose(event, count).unwrap());
    accountant.epsilon(delta).unwrap()
}

fn phi(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// δ(ε) of one subsampled Gaussian release, both directions, in closed form: the outputs with loss above ε are those
/// beyond one point.
fn sampled_delta(q: f64, sigma: f64, epsilon: f64) -> f64 {
    let point = |loss: f64| sigma * sigma * ((loss.exp() - 1.0 + q) / q).ln() + 0.5;
    let removed = point(epsilon);
    let with = (1.0 - q) * phi(-removed / sigma) + q * phi((1.0 - removed) / sigma);
    let removed = with - epsilon.exp() * phi(-removed / sigma);
    if (-epsilon).exp() <= 1.0 - q {
        return removed; // no output has so large a loss in the other direction
    }
    let added = point(-epsilon);
    let with = (1.0 - q) * phi(added / sigma) + q * phi((added - 1.0) / sigma);
    removed.max(phi(added / sigma) - epsilon.exp() * with)
}

/// Optimal composition of `count` pure ε₀-DP mechanisms (Kairouz, Oh and Viswanath 2015, theorem 3.3): the answers of
/// `count` randomised responses, i of which point the other way.
fn pure_delta(epsilon: f64, count: u32, at: f64) -> f64 {
    let (count_f, mut log_binomial, mut delta) = (f64::from(count), 0.0_f64, 0.0);
    for i in 0..=count {
        let loss = (count_f - 2.0 * f64::from(i)) * epsilon;
        let log_mass = log_binomial + (count_f - f64::from(i)) * epsilon - count_f * epsilon.exp().ln_1p();
        delta += log_mass.exp() * (-(at - loss).exp_m1()).max(0.0);
        log_binomial += ((count_f - f64::from(i)) / (f64::from(i) + 1.0)).ln();
    }
    delta
}

#[test]
fn many_pure_releases_cost_what_optimal_composition_says() {
    for (epsilon, count) in [(0.01, 1000), (0.1, 200), (0.5, 20), (1.0, 5), (2.0, 1)] {
        let found = pld(&[(Event::Pure { epsilon }, u64::from(count))], DELTA).unwrap();
        assert!(pure_delta(epsilon, count, found) <= DELTA, "epsilon {epsilon}, {count} times: {found} is too small");
        let below = found - 1e-3 * found - 1e-4;
        assert!(pure_delta(epsilon, count, below) > DELTA, "epsilon {epsilon}, {count} times: {found} is too large");
        assert!(found <= f64::from(count) * epsilon + 1e-5);
    }
}

/// `cdp_epsilon(1/32, 1e-3)` in the tests of opendp 0.14.2, after the code published with the paper.
#[test]
fn zcdp_is_converted_as_opendp_does() {
    let epsilon = pld(&[(Event::Zcdp { rho: 1.0 / 32.0 }, 1)], 1e-3).unwrap();
    assert!((epsilon / 0.6880024554878086 - 1.0).abs() < 1e-9, "{epsilon}");
    assert_eq!(pld(&[(Event::Zcdp { rho: 1.0 / 32.0 }, 1)], 0.151), Ok(0.0));
}

#[test]
fn sampling_nearly_everything_is_sampling_nothing() {
    for (sigma, steps) in [(1.0_f64, 1), (4.0, 100), (20.0, 5000)] {
        let sampled = pld(&[(Event::PoissonSampled { q: 1.0 - 1e-9, noise_multiplier: sigma }, steps)], DELTA).unwrap();
        let exact = gaussian_epsilon(sigma / (steps as f64).sqrt(), 1.0, DELTA).unwrap();
        assert!((sampled / exact - 1.0).abs() < 1e-4, "sigma {sigma}: {sampled} {exact}");
        assert!(sampled > exact * (1.0 - 1e-8));
    }
}

#[test]
fn mixtures_cost_at_least_their_parts_and_at_most_their_sum() {
    let sampled = (Event::PoissonSampled { q: 0.01, noise_multiplier: 0.8 }, 1000);
    let parts = [
        vec![sampled, (Event::Gaussian { noise_multiplier: 2.0 }, 3)],
        vec![sampled, (Event::Pure { epsilon: 0.2 }, 4)],
        vec![sampled, (Event::Zcdp { rho: 0.05 }, 2)],
        vec![(Event::Gaussian { noise_multiplier: 2.0 }, 3), (Event::Pure { epsilon: 0.2 }, 4)],
        vec![(Event::Gaussian { noise_multiplier: 2.0 }, 3), (Event::Zcdp { rho: 0.05 }, 2)],
    ];
    for events in parts {
        let whole = pld(&events, DELTA).unwrap();
        let (first, second) = (&events[..1], &events[1..]);
        assert!(whole >= pld(first, DELTA).unwrap().max(pld(second, DELTA).unwrap()), "{events:?}");
        let halves = pld(first, DELTA / 2.0).unwrap() + pld(second, DELTA / 2.0).unwrap();
        assert!(whole <= halves * (1.0 + 1e-6), "{events:?}: {whole} {halves}");
        let reversed: Vec<_> = events.iter().copied().rev().collect();
        let other = pld(&reversed, DELTA).unwrap();
        assert!((whole / other - 1.0).abs() < 1e-9, "{events:?}: {whole} {other}");
    }
}

#[test]
fn hardly_any_noise_costs_much_but_no_time() {
    let event = Event::PoissonSampled { q: 0.01, noise_multiplier: 0.001 };
    assert!(rdp(&[(event, 1)], DELTA) > 1e5);
    assert!(pld(&[(event, 1)], DELTA).unwrap() > 1e5);
}

#[test]
fn a_million_steps_fit() {
    let event = Event::PoissonSampled { q: 0.001, noise_multiplier: 1.0 };
    let (tight, loose) = (pld(&[(event, 1_000_000)], DELTA).unwrap(), rdp(&[(event, 1_000_000)], DELTA));
    assert!(tight < loose && tight > 0.8 * loose, "{tight} {loose}");
}

#[test]
fn what_does_not_fit_is_an_error_and_not_a_guess() {
    let event = Event::PoissonSampled { q: 0.5, noise_multiplier: 1.0 };
    let tiny = pld(&[(event, 1_000_000)], 1e-30);
    assert!(matches!(tiny, Err(AccountantError::Precision { .. })), "{tiny:?}");
    let mut many = PldAccountant::default();
    for i in 0..300 {
        many.compose(Event::Pure { epsilon: 0.01 + f64::from(i) * 1e-5 }, 1).unwrap();
    }
    assert!(matches!(many.epsilon(DELTA), Err(AccountantError::TooLarge { .. })));
}

#[test]
fn events_out_of_range_change_nothing() {
    let bad = [
        Event::Gaussian { noise_multiplier: 0.0 },
        Event::Gaussian { noise_multiplier: f64::NAN },
        Event::PoissonSampled { q: 0.0, noise_multiplier: 1.0 },
        Event::PoissonSampled { q: 1.1, noise_multiplier: 1.0 },
        Event::PoissonSampled { q: f64::NAN, noise_multiplier: 1.0 },
        Event::PoissonSampled { q: 0.5, noise_multiplier: -1.0 },
        Event::PoissonSampled { q: 0.5, noise_multiplier: f64::INFINITY },
        Event::Zcdp { rho: -1.0 },
        Event::Zcdp { rho: f64::INFINITY },
        Event::Pure { epsilon: f64::NAN },
        Event::Pure { epsilon: f64::INFINITY },
    ];
    for event in bad {
        let (mut rdp, mut pld) = (RdpAccountant::default(), PldAccountant::default());
        assert!(matches!(rdp.compose(event, 1), Err(AccountantError::Event { .. })), "{event:?}");
        assert!(matches!(pld.compose(event, 1), Err(AccountantError::Event { .. })), "{event:?}");
        assert_eq!((rdp.epsilon(DELTA), pld.epsilon(DELTA)), (Ok(0.0), Ok(0.0)));
    }
    for delta in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(matches!(RdpAccountant::default().epsilon(delta), Err(AccountantError::Delta { .. })));
        assert!(matches!(PldAccountant::default().epsilon(delta), Err(AccountantError::Delta { .. })));
    }
}

fn loss(mechanism: &impl Mechanism) -> Loss {
    mechanism.loss(Sensitivity::of_clipped(1.0, Relation::Remove).with_l1_clip(1.0)).unwrap()
}

fn absorb_all(accountant: &mut dyn Accountant) {
    accountant.absorb(loss(&OneBit::new(4.0).unwrap()));
    accountant.absorb(loss(&DiscreteGaussian::fine(5.0).unwrap()));
    accountant.absorb(loss(&Laplace::fine(10.0).unwrap()));
}

#[test]
fn losses_are_composed_as_the_events_that_they_are() {
    let events = [
        (Event::Gaussian { noise_multiplier: 4.0 }, 1),
        (Event::Gaussian { noise_multiplier: 5.0 }, 1),
        (Event::Pure { epsilon: 0.1 }, 1),
    ];
    let (mut by_rdp, mut by_pld, mut by_zcdp) =
        (RdpAccountant::default(), PldAccountant::default(), ZcdpAccountant::default());
    absorb_all(&mut by_rdp);
    absorb_all(&mut by_pld);
    absorb_all(&mut by_zcdp);
    assert!((by_rdp.epsilon(DELTA).unwrap() / rdp(&events, DELTA) - 1.0).abs() < 1e-9);
    assert!((by_pld.epsilon(DELTA).unwrap() / pld(&events, DELTA).unwrap() - 1.0).abs() < 1e-6);
    assert!(by_rdp.epsilon(DELTA).unwrap() < by_zcdp.epsilon(DELTA).unwrap());
    for accountant in [&mut by_rdp as &mut dyn Accountant, &mut by_pld, &mut by_zcdp] {
        accountant.absorb(loss(&InsecureNone));
        accountant.absorb(loss(&OneBit::new(4.0).unwrap()));
        assert_eq!(accountant.epsilon(DELTA), Ok(f64::INFINITY));
    }
}

#[test]
fn a_restart_keeps_what_was_spent() {
    let spend = |restart: bool| {
        let (mut rdp, mut pld) = (RdpAccountant::default(), PldAccountant::default());
        for _ in 0..2 {
            let event = Event::PoissonSampled { q: 0.01, noise_multiplier: 1.0 };
            rdp.compose(event, 10).unwrap();
            pld.compose(event, 10).unwrap();
            absorb_all(&mut rdp);
            absorb_all(&mut pld);
            if restart {
                rdp = serde_json::from_str(&serde_json::to_string(&rdp).unwrap()).unwrap();
                pld = serde_json::from_str(&serde_json::to_string(&pld).unwrap()).unwrap();
            }
        }
        (rdp.epsilon(DELTA).unwrap(), pld.epsilon(DELTA).unwrap())
    };
    let (restarted, whole) = (spend(true), spend(false));
    // JSON may lose the last bit of a number.
    assert!((restarted.0 / whole.0 - 1.0).abs() < 1e-14 && (restarted.1 / whole.1 - 1.0).abs() < 1e-9);
}

#[test]
fn a_damaged_state_counts_as_infinite() {
    for state in [
        r#"{"mu_squared": -1.0, "rho": 0.0, "events": [], "infinite": false}"#,
        r#"{"mu_squared": 0.0, "rho": -1e-9, "events": [], "infinite": false}"#,
        r#"{"mu_squared": 0.0, "rho": 0.0, "events": [[{"pure": {"epsilon": -1.0}}, 1]], "infinite": false}"#,
        r#"{"mu_squared": 0.0, "rho": 0.0, "events": [[{"pure": {"epsilon": 1.0}}, 0]], "infinite": false}"#,
        r#"{"mu_squared": 0.0, "rho": 0.0, "events": [[{"zcdp": {"rho": 1.0}}, 1]], "infinite": false}"#,
        r#"{"mu_squared": null, "rho": 0.0, "events": [], "infinite": false}"#,
        r#"{"mu_squared": 0.0, "rho": 0.0, "events": [], "infinite": true}"#,
    ] {
        let accountant: PldAccountant = serde_json::from_str(state).unwrap();
        assert_eq!(accountant.epsilon(DELTA), Ok(f64::INFINITY), "{state}");
        let again: PldAccountant = serde_json::from_str(&serde_json::to_string(&accountant).unwrap()).unwrap();
        assert_eq!(again.epsilon(DELTA), Ok(f64::INFINITY), "{state}");
    }
    for state in [r#"{"rdp": []}"#, r#"{"rdp": [0.1, 0.2]}"#, r#"{"rdp": [null]}"#] {
        let accountant: RdpAccountant = serde_json::from_str(state).unwrap();
        assert_eq!(accountant.epsilon(DELTA), Ok(f64::INFINITY), "{state}");
    }
    let one_negative = serde_json::to_string(&RdpAccountant::default()).unwrap().replacen("0.0", "-0.5", 1);
    let accountant: RdpAccountant = serde_json::from_str(&one_negative).unwrap();
    assert_ne!(accountant, RdpAccountant::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// One release has a closed form: the ε given must satisfy it, and barely.
    #[test]
    fn one_sampled_release_costs_the_exact_epsilon(
        q in 0.01..0.9_f64, sigma in 0.5..4.0_f64, log_delta in -18.0..-5.0_f64,
    ) {
        let delta = log_delta.exp();
        let found = pld(&[(Event::PoissonSampled { q, noise_multiplier: sigma }, 1)], delta).unwrap();
        prop_assert!(sampled_delta(q, sigma, found) <= delta * (1.0 + 1e-9), "{found} is too small");
        if found > 0.0 {
            prop_assert!(sampled_delta(q, sigma, found - 1e-5 - 1e-4 * found) > delta, "{found} is too large");
        }
    }

    /// Numerical composition, zCDP and RDP of the same noise, in the order in which they lose. The pure event is too
    /// small to count, but keeps the accountant from its closed form.
    #[test]
    fn tighter_accountants_give_less(sigma in 0.7..20.0_f64, steps in 1_u64..400) {
        let gaussian = (Event::Gaussian { noise_multiplier: sigma }, steps);
        let numerical = pld(&[gaussian, (Event::Pure { epsilon: 1e-9 }, 1)], DELTA).unwrap();
        let exact = gaussian_epsilon(sigma / (steps as f64).sqrt(), 1.0, DELTA).unwrap();
        let renyi = rdp(&[gaussian], DELTA);
        let mut zcdp = ZcdpAccountant::resume(0.5 * steps as f64 / (sigma * sigma)).epsilon(DELTA).unwrap();
        zcdp += 1e-12;
        prop_assert!(exact <= numerical && numerical <= exact + 1e-6 + 1e-5 * exact, "{exact} {numerical}");
        prop_assert!(numerical <= renyi && numerical <= zcdp, "{numerical} {renyi} {zcdp}");
        let tight = pld(&[(Event::Zcdp { rho: 0.5 / (sigma * sigma) }, steps)], DELTA).unwrap();
        prop_assert!(exact <= tight && tight <= zcdp, "{exact} {tight} {zcdp}");
    }

    #[test]
    fn more_is_never_cheaper(q in 0.001..0.5_f64, sigma in 0.6..3.0_f64, steps in 1_u64..2000) {
        let costs = |q: f64, sigma, steps| {
            let events = [(Event::PoissonSampled { q, noise_multiplier: sigma }, steps)];
            (pld(&events, DELTA).unwrap(), rdp(&events, DELTA))
        };
        let base = costs(q, sigma, steps);
        for more in [costs(q, sigma, 2 * steps), costs(1.1 * q, sigma, steps), costs(q, 0.9 * sigma, steps)] {
            prop_assert!(more.0 >= base.0 * (1.0 - 1e-6) && more.1 >= base.1, "{base:?} {more:?}");
        }
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    delta: f64,
    points: Vec<Point>,
}

#[derive(serde::Deserialize)]
struct Point {
    sigma: f64,
    sensitivity: u32,
    count: u64,
    epsilon: f64,
}

/// By `golden/discrete_gaussian_pld.py`.
#[test]
fn the_discrete_gaussian_costs_what_dp_accounting_says() {
    let golden: Golden = serde_json::from_str(include_str!("golden/discrete_gaussian_pld.json")).unwrap();
    for Point { sigma, sensitivity, count, epsilon: theirs } in golden.points {
        let name = format!("sigma {sigma}, sensitivity {sensitivity}, {count} times");
        let ours = pld(&[(Event::DiscreteGaussian { sigma, sensitivity }, count)], golden.delta).unwrap();
        assert!((ours - theirs).abs() < 1e-5, "{name}: {ours}, dp-accounting {theirs}");
        // The mechanism's own loss, whatever the number of values, is never below that of one integer.
        let mechanism = DiscreteGaussian::new(sigma, 1.0).unwrap();
        let loss = mechanism.loss(Sensitivity::of_clipped(f64::from(sensitivity), Relation::Remove)).unwrap();
        let mut ledger = RecordLedger::default();
        ledger.add_times(loss, count);
        let said = ledger.epsilon(golden.delta).unwrap();
        assert!(said > theirs - 1e-5, "{name}: {said}, dp-accounting {theirs}");
        if sigma >= 1024.0 {
            assert!((said / theirs - 1.0).abs() < 1e-5, "{name}: {said}, dp-accounting {theirs}");
        }
    }
}

/// H_α of records replaced, each sampled with `q`, in closed form: (1 − q)·N(0, σ²) + q·N(1/2, σ²) against the same with
/// −1/2, by quadrature.
fn replaced_delta(q: f64, sigma: f64, epsilon: f64) -> f64 {
    let density = |x: f64, centre: f64| {
        let normal = |c: f64| (-0.5 * ((x - c) / sigma).powi(2)).exp() / (sigma * std::f64::consts::TAU.sqrt());
        (1.0 - q) * normal(0.0) + q * normal(centre)
    };
    let step = sigma / 500.0;
    let at = |i: i32| {
        let x = f64::from(i) * step;
        (density(x, 0.5) - epsilon.exp() * density(x, -0.5)).max(0.0) * step
    };
    (-6000..=6000).map(at).sum()
}

#[test]
fn a_record_that_is_replaced_loses_at_most_what_is_said() {
    for (q, sigma) in [(0.01, 0.5), (0.2, 1.0), (0.5, 2.0), (0.9, 0.7)] {
        let once = pld(&[(Event::ReplacementSampled { q, noise_multiplier: sigma }, 1)], DELTA).unwrap();
        assert!(replaced_delta(q, sigma, once) <= DELTA, "q {q}, sigma {sigma}: {once}");
        // Between removing (whose distance is half) and not sampling at all.
        let removed = Event::PoissonSampled { q, noise_multiplier: 2.0 * sigma };
        for steps in [1, 100] {
            let replaced = pld(&[(Event::ReplacementSampled { q, noise_multiplier: sigma }, steps)], DELTA).unwrap();
            let least = pld(&[(removed, steps)], DELTA).unwrap();
            let most = pld(&[(Event::Gaussian { noise_multiplier: sigma }, steps)], DELTA).unwrap();
            assert!(least <= replaced && replaced <= most * (1.0 + 1e-6), "{least} {replaced} {most}");
        }
    }
}

#[test]
fn a_ledger_composes_every_kind_of_loss() {
    let sampled = Loss::Sampled { q: 0.01, noise_multiplier: 1.0, relation: Relation::Remove };
    let mut ledger = RecordLedger::default();
    ledger.add_times(sampled, 1000);
    let event = Event::PoissonSampled { q: 0.01, noise_multiplier: 1.0 };
    assert_eq!(ledger.epsilon(DELTA).unwrap(), pld(&[(event, 1000)], DELTA).unwrap());
    let alone = ledger.epsilon(DELTA).unwrap();
    ledger.add(Loss::Approximate { epsilon: 0.5, delta: 1e-6 });
    let with = ledger.epsilon(DELTA).unwrap();
    let events = [(event, 1000), (Event::Approximate { epsilon: 0.5, delta: 1e-6 }, 1)];
    assert!((with - pld(&events, DELTA).unwrap()).abs() < 1e-3, "{with}");
    assert!(with > alone && with < alone + 0.51);
    assert_eq!(ledger.epsilon(1e-6), Ok(f64::INFINITY));
    // Another sampled sum counts as one that is not sampled.
    ledger.add(Loss::Sampled { q: 0.5, noise_multiplier: 4.0, relation: Relation::Remove });
    let mut plain = RecordLedger::default();
    plain.add_times(sampled, 1000);
    plain.add(Loss::Approximate { epsilon: 0.5, delta: 1e-6 });
    plain.add(Loss::Gaussian { mu: 0.25 });
    assert_eq!(ledger.epsilon(DELTA), plain.epsilon(DELTA));
    let text = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<RecordLedger>(&text).unwrap(), ledger);
    let doubled = Loss::Sampled { q: 0.01, noise_multiplier: 0.5, relation: Relation::Replace };
    assert_eq!(sampled.doubled(), doubled);
    for none in [
        Loss::Sampled { q: 0.0, noise_multiplier: 1.0, relation: Relation::Remove },
        Loss::Sampled { q: 0.1, noise_multiplier: f64::NAN, relation: Relation::Remove },
        Loss::Approximate { epsilon: 1.0, delta: 1.0 },
    ] {
        assert_eq!(none.checked(), Loss::Infinite);
    }
}

/// The table of docs/privacy.md: a backbone by DP-SGD (50,000 records, batches of 500, 30 epochs), bits of its residual and a label,
/// for a record removed.
#[test]
fn what_an_unconditional_promise_costs_is_what_the_docs_say() {
    let docs = include_str!("../../../docs/privacy.md");
    let label = (Event::Pure { epsilon: 4.0 }, 1);
    let row = |name: &str, backbone: Option<(Event, u64)>| {
        let with = |residual: f64| {
            let bits = Event::Gaussian { noise_multiplier: gaussian_sigma(residual, DELTA, 1.0).unwrap() };
            let events: Vec<_> = backbone.into_iter().chain([(bits, 1), label]).collect();
            format!("{:.2}", pld(&events, DELTA).unwrap())
        };
        format!("| {name} | {} |", [1.4, 4.0, 9.0, 17.0].map(with).join(" | "))
    };
    let steps = |noise_multiplier| (Event::PoissonSampled { q: 0.01, noise_multiplier }, 3000);
    let trained = |epsilon| steps(calibrate_sigma(epsilon, |sigma| pld(&[steps(sigma)], DELTA)).unwrap());
    let rows = [row("given", None)].into_iter().chain([1.0, 2.0, 8.0].map(|e| row(&e.to_string(), Some(trained(e)))));
    let missing: Vec<String> = rows.filter(|row| !docs.contains(row)).collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
