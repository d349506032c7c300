//! Budgets: charged before a release, refused without a trace, kept across restarts.

#![expect(clippy::panic, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Door, Loss, Private,
    accountants::Relation,
    calibration::{gaussian_epsilon, gaussian_sigma},
    door::{ReleaseError, Source, SumGate},
    records::{Budget, BudgetError, Flow, RecordAccountant, RecordLedger},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const BUDGET: Budget = Budget { epsilon: 2.0, delta: 1e-5 };

/// One record that has lost `spent` and may lose `budget`.
fn one_record(spent: RecordLedger, budget: Budget) -> Door {
    let accountant = RecordAccountant::resume(vec![spent]).with_budget(Some(budget));
    Door::new(accountant, ChaCha20Rng::seed_from_u64(1))
}

fn fresh() -> Door {
    one_record(RecordLedger::default(), BUDGET)
}

fn charge(door: &mut Door, loss: Loss) -> Result<(), BudgetError> {
    match door.charge("test", Source { layer: "", flow: Flow::Weights }, &[0], loss) {
        Ok(()) => Ok(()),
        Err(ReleaseError::Budget(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_budget_calibrated_for_three_releases_allows_three() {
    let sigma = gaussian_sigma(BUDGET.epsilon, BUDGET.delta, 3.0_f64.sqrt()).unwrap() * (1.0 + 1e-9);
    let loss = Loss::Gaussian { mu: 1.0 / sigma };
    let mut door = fresh();
    for _ in 0..3 {
        charge(&mut door, loss).unwrap();
    }
    let before = door.accountant().clone();
    let refused = charge(&mut door, loss).unwrap_err();
    assert_eq!(door.accountant(), &before);
    let BudgetError::Exhausted { spent, asked, limit, delta } = refused else { panic!("{refused}") };
    assert!((spent - 2.0).abs() < 1e-6 && asked > 2.2 && asked < 2.5, "{spent} {asked}");
    assert_eq!((limit, delta), (BUDGET.epsilon, BUDGET.delta));
    // What does not fit does not block what does.
    assert_eq!(charge(&mut door, Loss::Pure { epsilon: 0.0 }), Ok(()));
}

#[test]
fn the_refusal_says_what_was_asked() {
    let mut door = fresh();
    charge(&mut door, Loss::Pure { epsilon: 0.5 }).unwrap();
    let said = charge(&mut door, Loss::Pure { epsilon: 1.75 }).unwrap_err().to_string();
    let expected = "epsilon 0.5 is spent and the release would make it 2.25, above the limit 2 at delta 0.00001";
    assert_eq!(said, expected);
}

#[test]
fn no_guarantee_fits_no_budget() {
    for loss in [
        Loss::Infinite,
        Loss::Gaussian { mu: f64::NAN },
        Loss::Gaussian { mu: -1.0 },
        Loss::Zcdp { rho: f64::INFINITY },
        Loss::Pure { epsilon: -0.5 },
    ] {
        let mut door = fresh();
        let refused = charge(&mut door, loss);
        assert!(matches!(refused, Err(BudgetError::Exhausted { asked: f64::INFINITY, .. })), "{refused:?}");
        assert_eq!(door.accountant(), fresh().accountant());
    }
}

#[test]
fn a_budget_that_is_none_admits_nothing() {
    for epsilon in [0.0, -1.0, f64::NEG_INFINITY, f64::NAN] {
        let mut door = one_record(RecordLedger::default(), Budget { epsilon, ..BUDGET });
        assert!(charge(&mut door, Loss::Zcdp { rho: 1e-6 }).is_err(), "{epsilon}");
    }
    for delta in [0.0, 1.0, 7.0, -1.0, f64::NAN] {
        let mut door = one_record(RecordLedger::default(), Budget { delta, ..BUDGET });
        let refused = charge(&mut door, Loss::Zcdp { rho: 1e-6 });
        assert!(matches!(refused, Err(BudgetError::Budget { .. })), "{refused:?}");
    }
}

#[test]
fn a_restart_keeps_what_was_spent_and_damage_counts_as_infinite() {
    let mut door = fresh();
    for loss in [Loss::Gaussian { mu: 0.1 }, Loss::Zcdp { rho: 0.01 }, Loss::Pure { epsilon: 0.2 }] {
        charge(&mut door, loss).unwrap();
    }
    let [spent] = door.accountant().spent() else { panic!("one record") };
    let stored = serde_json::to_string(spent).unwrap();
    assert_eq!(serde_json::from_str::<RecordLedger>(&stored).unwrap(), *spent);
    for (field, value) in [("mu_squared", "-1.0"), ("rho", "null"), ("pure_epsilon", "-1e-300"), ("pure_rho", "null")] {
        let mut state = serde_json::to_value(spent).unwrap();
        state[field] = serde_json::from_str(value).unwrap();
        let damaged: RecordLedger = serde_json::from_value(state).unwrap();
        assert_eq!(damaged.epsilon(1e-5), Ok(f64::INFINITY), "{field}");
        assert!(charge(&mut one_record(damaged, BUDGET), Loss::Pure { epsilon: 0.0 }).is_err(), "{field}");
    }
    let mut ledger = RecordLedger::default();
    ledger.add(Loss::Infinite);
    let stored = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<RecordLedger>(&stored).unwrap().epsilon(1e-5), Ok(f64::INFINITY));
}

#[test]
fn losses_are_stored_by_name_and_damaged_ones_read_as_infinite() {
    for (loss, stored) in [
        (Loss::Gaussian { mu: 0.5 }, r#"{"gaussian":{"mu":0.5}}"#),
        (Loss::Zcdp { rho: 0.5 }, r#"{"zcdp":{"rho":0.5}}"#),
        (Loss::Pure { epsilon: 0.5 }, r#"{"pure":{"epsilon":0.5}}"#),
        (Loss::Infinite, r#""infinite""#),
    ] {
        assert_eq!(serde_json::to_string(&loss).unwrap(), stored);
        assert_eq!(serde_json::from_str::<Loss>(stored).unwrap(), loss);
    }
    assert_eq!(serde_json::to_string(&Loss::Zcdp { rho: f64::INFINITY }).unwrap(), r#""infinite""#);
    assert_eq!(serde_json::from_str::<Loss>(r#"{"gaussian":{"mu":-0.5}}"#).unwrap(), Loss::Infinite);
}

#[test]
fn gaussian_losses_alone_cost_the_exact_epsilon() {
    let mut ledger = RecordLedger::default();
    (0..16).for_each(|_| ledger.add(Loss::Gaussian { mu: 0.25 }));
    assert_eq!(ledger.epsilon(1e-5).unwrap(), gaussian_epsilon(1.0, 1.0, 1e-5).unwrap());
}

fn any_loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        (0.0..0.5_f64).prop_map(|mu| Loss::Gaussian { mu }),
        (0.0..0.1_f64).prop_map(|rho| Loss::Zcdp { rho }),
        (0.0..0.3_f64).prop_map(|epsilon| Loss::Pure { epsilon }),
    ]
}

proptest! {
    #[test]
    fn what_is_charged_never_exceeds_the_budget(losses in prop::collection::vec(any_loss(), 0..60)) {
        let mut door = fresh();
        for loss in losses {
            let before = door.accountant().spent()[0];
            let charged = charge(&mut door, loss);
            let after = door.accountant().spent()[0];
            prop_assert!(after.epsilon(BUDGET.delta).unwrap() <= BUDGET.epsilon);
            if charged.is_err() {
                prop_assert_eq!(after, before);
            } else {
                prop_assert!(after.epsilon(1e-5).unwrap() >= before.epsilon(1e-5).unwrap() - 1e-9);
            }
        }
    }

    #[test]
    fn the_order_of_losses_does_not_matter(losses in prop::collection::vec(any_loss(), 0..20)) {
        let total = |losses: &mut dyn Iterator<Item = &Loss>| {
            let mut ledger = RecordLedger::default();
            losses.for_each(|&loss| ledger.add(loss));
            ledger.epsilon(1e-5).unwrap()
        };
        let (forward, backward) = (total(&mut losses.iter()), total(&mut losses.iter().rev()));
        prop_assert!((forward - backward).abs() <= 1e-9 * forward);
    }
}

const WEIGHTS: Source<'static> = Source { layer: "weights", flow: Flow::Weights };

/// A sum is charged to every record that might have taken part, and its noise has the stated deviation.
#[test]
fn a_sum_costs_all_records_and_has_the_noise_that_it_is_charged_for() {
    let gate = SumGate::new(2.0, 0.5, 0.25).unwrap();
    let mut door = Door::new(RecordAccountant::new(3), ChaCha20Rng::seed_from_u64(3));
    let sum = door.release_sum(&gate, WEIGHTS, &[0, 1, 2], Private::new(vec![7.0; 20_000])).unwrap().into_inner();
    let noise: Vec<f64> = sum.into_iter().map(|value| f64::from(value) - 7.0).collect();
    let variance = noise.iter().map(|v| v * v).sum::<f64>() / noise.len() as f64;
    // The estimate of a variance of 1 is off by √(2/n).
    assert!((variance - 1.0).abs() < 5.0 * 1e-2, "{variance}");
    let Loss::Sampled { q, noise_multiplier, relation } = gate.loss() else { panic!("{:?}", gate.loss()) };
    assert_eq!((q, relation), (gate.q(), Relation::Remove));
    assert!(noise_multiplier < 2.0 && noise_multiplier > 2.0 * (1.0 - 1e-10));
    let mut once = RecordLedger::default();
    once.add(gate.loss());
    assert_eq!(door.accountant().spent(), [once; 3]);
    // A record may add as much as is left of the clip after rounding to the grid, at most nothing.
    let limit = gate.norm_limit(1_000_000);
    assert!(limit < 0.5 && limit > 0.499, "{limit}");
    assert_eq!(gate.norm_limit(usize::MAX), 0.0);
    let refused = door.release_sum(&gate, WEIGHTS, &[0, 1, 2], Private::new(vec![1.0, f32::NAN]));
    assert_eq!(refused.unwrap_err(), ReleaseError::NonFinite { index: 1 });
    assert_eq!(door.accountant().spent(), [once; 3]);
}

#[test]
fn a_plan_is_kept_to_and_takes_no_budget_away() {
    let loss = SumGate::new(4.0, 1.0, 0.1).unwrap().loss();
    let mut plan = RecordLedger::default();
    plan.add_times(loss, 3);
    let door = |accountant: RecordAccountant| Door::new(accountant.with_plan(plan), ChaCha20Rng::seed_from_u64(1));
    for budget in [None, Some(BUDGET)] {
        let mut door = door(RecordAccountant::new(1).with_budget(budget));
        assert!((0..3).all(|_| charge(&mut door, loss).is_ok()));
        assert!(charge(&mut door, loss).is_err() && charge(&mut door, Loss::Pure { epsilon: 0.1 }).is_err());
    }
    // A plan beyond the budget leaves the budget in force.
    let small = Budget { epsilon: 1e-3, ..BUDGET };
    let mut door = door(RecordAccountant::new(1).with_budget(Some(small)));
    assert!(matches!(charge(&mut door, loss), Err(BudgetError::Exhausted { .. })));
}
