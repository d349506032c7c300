//! The one door: for every way out, what it refuses, what it charges and what it notes.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use std::collections::BTreeSet;

use asymflow_privacy::{
    Door, Loss, Private, Released,
    accountants::{Relation, Sensitivity},
    door::{Gate, ReleaseError, Source},
    mechanisms::{
        Codewords, DiscreteGaussian, InsecureFloatNoise, InsecureLaplaceSign, InsecureNone, InsecureSign, Laplace,
        Mechanism, MechanismError, OneBit, RandomisedResponse, ResidualNoise,
    },
    payload::PackedBits,
    records::{Budget, BudgetError, Flow, LedgerEntry, RecordAccountant, RecordLedger},
};
use proptest::prelude::*;
use rand::CryptoRng;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const DELTA: f64 = 1e-5;
const RECORDS: usize = 3;
const FEATURES: Source<'static> = Source { layer: "features", flow: Flow::Residual };

type Release = Box<dyn Fn(&mut Door, &[usize], usize) -> Result<usize, ReleaseError>>;

/// A way out. `release` asks for that many values, or labels, of the records and says how many left.
struct Way {
    kind: &'static str,
    mechanism: &'static str,
    loss: Loss,
    release: Release,
}

/// A mechanism that makes one of so many values.
fn through_gate<O: 'static, M: Mechanism<Output = O> + 'static>(mechanism: M, len: fn(&O) -> usize, of: usize) -> Way {
    let sensitivity = Sensitivity::of_clipped(1.0, Relation::Replace).with_l1_clip(1.0);
    let gate = Gate::new(Box::new(mechanism), Some(1.0), Relation::Replace).unwrap().with_sensitivity(sensitivity);
    Way {
        kind: std::any::type_name::<M>().rsplit("::").next().unwrap(),
        mechanism: gate.name(),
        loss: gate.loss().unwrap(),
        release: Box::new(move |door, records, values| {
            let released = door.release(&gate, FEATURES, records, Private::new(vec![0.25; of * values]))?;
            Ok(len(released.get()))
        }),
    }
}

fn numbers(mechanism: impl Mechanism<Output = Vec<f32>> + 'static) -> Way {
    through_gate(mechanism, Vec::len, 1)
}

fn bits(mechanism: impl Mechanism<Output = PackedBits> + 'static) -> Way {
    through_gate(mechanism, PackedBits::len, 1)
}

fn mechanisms() -> Vec<Way> {
    vec![
        numbers(DiscreteGaussian::fine(4.0).unwrap()),
        numbers(Laplace::fine(4.0).unwrap()),
        numbers(InsecureFloatNoise::new(4.0).unwrap()),
        numbers(InsecureNone),
        numbers(ResidualNoise::new(4.0).unwrap()),
        bits(OneBit::new(4.0).unwrap()),
        bits(InsecureSign),
        bits(InsecureLaplaceSign::new(4.0).unwrap()),
        through_gate(Codewords::of_classes(8, Some(0.5)).unwrap(), |bits: &PackedBits| bits.len() / 8, 8),
    ]
}

fn labels() -> Vec<Way> {
    let len = |released: Released<Vec<u32>>| released.get().len();
    let response = RandomisedResponse::new(10, 0.5).unwrap();
    vec![
        Way {
            kind: "RandomisedResponse",
            mechanism: "randomised_response",
            loss: Loss::Pure { epsilon: 0.5 },
            release: Box::new(move |door, records, labels| {
                door.release_labels(&response, records, &Private::new(vec![9; labels])).map(len)
            }),
        },
        Way {
            kind: "disclosed",
            mechanism: "public_labels",
            loss: Loss::Pure { epsilon: 0.0 },
            release: Box::new(move |door, records, labels| door.disclose_labels(records, vec![9; labels]).map(len)),
        },
    ]
}

fn ways() -> Vec<Way> {
    mechanisms().into_iter().chain(labels()).collect()
}

/// What a record has lost after `count` releases.
fn after(loss: Loss, count: usize) -> RecordLedger {
    let mut ledger = RecordLedger::default();
    (0..count).for_each(|_| ledger.add(loss));
    ledger
}

/// Ways that cost something, each with the ε of `count` releases.
fn costly(count: usize) -> impl Iterator<Item = (Way, f64)> {
    let epsilon = move |way: &Way| after(way.loss, count).epsilon(DELTA).unwrap();
    ways()
        .into_iter()
        .map(move |way| (epsilon(&way), way))
        .filter(|(epsilon, _)| *epsilon > 0.0)
        .map(|(e, way)| (way, e))
}

fn door(accountant: RecordAccountant) -> Door {
    Door::new(accountant, ChaCha20Rng::seed_from_u64(7))
}

fn within(epsilon: f64) -> RecordAccountant {
    RecordAccountant::new(RECORDS).with_budget(Some(Budget { epsilon, delta: DELTA }))
}

/// Nothing was charged and nothing noted.
#[track_caller]
fn assert_untouched(door: &mut Door, what: &str) {
    assert_eq!(door.accountant().spent(), [RecordLedger::default(); RECORDS], "{what}");
    assert_eq!(door.take_ledger(), [], "{what}");
}

#[test]
fn every_mechanism_of_the_crate_is_in_the_table() {
    let mut written = BTreeSet::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let kinds = source.lines().filter_map(|line| line.strip_prefix("impl Mechanism for "));
        written.extend(kinds.map(|kind| kind.trim_end_matches(" {").to_owned()));
    }
    let table: BTreeSet<String> = mechanisms().iter().map(|way| way.kind.to_owned()).collect();
    assert_eq!(written, table);
}

#[test]
fn what_is_released_is_charged_to_its_records_and_noted() {
    for way in ways() {
        let mut door = door(RecordAccountant::new(RECORDS));
        assert_eq!((way.release)(&mut door, &[2, 0], 2), Ok(2), "{}", way.mechanism);
        let spent = after(way.loss, 1);
        assert_eq!(door.accountant().spent(), [spent, RecordLedger::default(), spent], "{}", way.mechanism);
        let [LedgerEntry { mechanism, loss, records, relation, .. }] = &door.take_ledger()[..] else {
            panic!("{} made no entry, or several", way.mechanism)
        };
        assert_eq!((mechanism.as_str(), *loss, *records, *relation), (way.mechanism, way.loss, 2, Relation::Replace));
        assert_eq!(door.take_ledger(), [], "an entry is taken once");
    }
}

#[test]
fn a_budget_below_one_release_lets_nothing_out() {
    for (way, epsilon) in costly(1) {
        let mut door = door(within(0.999 * epsilon.min(1e6)));
        let refused = (way.release)(&mut door, &[0, 1], 2);
        let is_exhausted = matches!(refused, Err(ReleaseError::Budget(BudgetError::Exhausted { spent: 0.0, .. })));
        assert!(is_exhausted, "{}: {refused:?}", way.mechanism);
        assert_untouched(&mut door, way.mechanism);
    }
}

#[test]
fn a_budget_of_one_release_lets_one_out_and_another_record_too() {
    for (way, epsilon) in costly(1).filter(|(_, epsilon)| epsilon.is_finite()) {
        let mut door = door(within(epsilon));
        (way.release)(&mut door, &[0], 1).unwrap();
        // One of the two has nothing left, so neither is charged.
        assert!(matches!((way.release)(&mut door, &[1, 0], 2), Err(ReleaseError::Budget(_))), "{}", way.mechanism);
        (way.release)(&mut door, &[1], 1).unwrap();
        let spent = after(way.loss, 1);
        assert_eq!(door.accountant().spent(), [spent, spent, RecordLedger::default()], "{}", way.mechanism);
        assert_eq!(door.take_ledger().len(), 2, "{}", way.mechanism);
    }
}

#[test]
fn a_record_that_occurs_twice_pays_twice_or_not_at_all() {
    for (way, epsilon) in costly(1).filter(|(_, epsilon)| epsilon.is_finite()) {
        let mut one = door(within(epsilon));
        assert!(matches!((way.release)(&mut one, &[1, 1], 2), Err(ReleaseError::Budget(_))), "{}", way.mechanism);
        assert_untouched(&mut one, way.mechanism);
        let mut two = door(within(after(way.loss, 2).epsilon(DELTA).unwrap()));
        (way.release)(&mut two, &[1, 1], 2).unwrap();
        assert_eq!(two.accountant().spent()[1], after(way.loss, 2), "{}", way.mechanism);
    }
}

#[test]
fn a_record_that_does_not_exist_is_named_with_the_limit() {
    let expected = ReleaseError::Record { record: 5, records: RECORDS };
    assert_eq!(expected.to_string(), "record 5 is out of range: the accountant keeps 3 records");
    for way in ways() {
        let mut door = door(RecordAccountant::new(RECORDS));
        assert_eq!((way.release)(&mut door, &[0, 5, 1], 3), Err(expected.clone()), "{}", way.mechanism);
        assert_untouched(&mut door, way.mechanism);
    }
    let mut door = door(RecordAccountant::new(RECORDS));
    assert_eq!(door.charge("training", FEATURES, &[0, 5], Loss::Zcdp { rho: 0.1 }), Err(expected.clone()));
    assert_untouched(&mut door, "charge");
    assert_eq!(door.again(&[5], 0).unwrap_err(), expected);
}

#[test]
fn values_that_do_not_divide_among_the_records_are_refused() {
    for way in ways() {
        for (records, values) in [(2, 3), (3, 2), (2, 1), (0, 1)] {
            let mut door = door(RecordAccountant::new(RECORDS));
            let refused = (way.release)(&mut door, &[0, 1, 2][..records], values);
            match refused {
                // Values of a codeword that do divide make it a record of another length.
                Err(ReleaseError::Mechanism(MechanismError::Record { .. })) => assert_eq!(way.kind, "Codewords"),
                refused => assert!(matches!(refused, Err(ReleaseError::Batch { .. })), "{}", way.mechanism),
            }
            assert_untouched(&mut door, way.mechanism);
        }
    }
    let said = ReleaseError::Batch { values: 3, records: 2 }.to_string();
    assert_eq!(said, "3 values do not divide among 2 records");
}

#[test]
fn a_record_has_one_label() {
    for way in labels() {
        for values in [0, 4, 6] {
            let mut door = door(RecordAccountant::new(RECORDS));
            let refused = (way.release)(&mut door, &[0, 1], values);
            assert_eq!(refused, Err(ReleaseError::Batch { values, records: 2 }), "{}", way.mechanism);
            assert_untouched(&mut door, way.mechanism);
        }
    }
}

#[test]
fn values_of_no_records_are_no_release() {
    for way in mechanisms() {
        let mut door = door(RecordAccountant::new(RECORDS));
        let refused = (way.release)(&mut door, &[], 0);
        assert_eq!(refused, Err(ReleaseError::Batch { values: 0, records: 0 }), "{}", way.mechanism);
        assert_untouched(&mut door, way.mechanism);
    }
}

/// A mechanism of somebody else's, that thinks better of it once it has been admitted.
#[derive(Debug)]
struct Refusing;

impl Mechanism for Refusing {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "refusing"
    }

    fn loss(&self, _: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Zcdp { rho: 0.5 })
    }

    fn apply(&self, _: Vec<f32>, _: &mut dyn CryptoRng) -> Result<Vec<f32>, MechanismError> {
        Err(MechanismError::Sigma { sigma: -1.0 })
    }
}

#[test]
fn a_mechanism_that_refuses_charges_nothing() {
    let step = 2.0_f64.powi(-20);
    let range = MechanismError::Range { index: 1, limit: 2.0_f64.powi(32) };
    let refusals: [(Box<dyn Mechanism<Output = Vec<f32>>>, _, _); 5] = [
        (Box::new(Refusing), Some(1.0), MechanismError::Sigma { sigma: -1.0 }),
        (Box::new(DiscreteGaussian::new(1.0, step).unwrap()), None, range.clone()),
        (Box::new(DiscreteGaussian::new(1.0, step).unwrap()), Some(1e30), range),
        (Box::new(Laplace::fine(1.0).unwrap()), Some(1.0), MechanismError::SensitivityL1 { l1: None }),
        (Box::new(Laplace::fine(1.0).unwrap()), None, MechanismError::SensitivityL1 { l1: None }),
    ];
    for (mechanism, clip, expected) in refusals {
        let gate = Gate::new(mechanism, clip, Relation::Remove).unwrap();
        let mut door = door(RecordAccountant::new(RECORDS));
        let refused = door.release(&gate, FEATURES, &[0, 1], Private::new(vec![0.0, 1e20])).unwrap_err();
        assert_eq!(refused, ReleaseError::Mechanism(expected));
        assert_untouched(&mut door, gate.name());
    }
}

#[test]
fn non_finite_input_is_refused_and_its_place_in_its_record_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (place, clip) in (0..6).flat_map(|place| [(place, None), (place, Some(1.0))]) {
            let mut values = vec![0.5; 6];
            values[place] = bad;
            let gate = Gate::new(Box::new(InsecureNone), clip, Relation::Remove).unwrap();
            let mut door = door(RecordAccountant::new(RECORDS));
            let refused = door.release(&gate, FEATURES, &[0, 1], Private::new(values)).unwrap_err();
            assert_eq!(refused, ReleaseError::NonFinite { index: place % 3 }, "place {place}, clip {clip:?}");
            assert_untouched(&mut door, "not finite");
        }
    }
}

#[test]
fn a_clip_that_is_no_bound_makes_no_gate() {
    for clip in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = Gate::new(Box::new(InsecureNone), Some(clip), Relation::Remove).unwrap_err();
        assert!(matches!(refused, MechanismError::Sensitivity { .. }), "{refused:?}");
    }
}

#[test]
fn what_no_clip_bounds_is_lost_altogether() {
    fn lost<O>(mechanism: impl Mechanism<Output = O> + 'static) -> Result<Loss, MechanismError> {
        Gate::new(Box::new(mechanism), None, Relation::Remove).unwrap().loss()
    }
    assert_eq!(lost(OneBit::new(1e9).unwrap()), Ok(Loss::Infinite));
    assert_eq!(lost(DiscreteGaussian::fine(1e9).unwrap()), Ok(Loss::Infinite));
    assert_eq!(lost(InsecureFloatNoise::new(1e9).unwrap()), Ok(Loss::Infinite));
    assert_eq!(lost(Laplace::fine(1e9).unwrap()), Err(MechanismError::SensitivityL1 { l1: None }));
}

#[test]
fn a_gate_states_the_loss_of_its_relation_or_of_what_is_known() {
    let gate = |relation| Gate::new(Box::new(InsecureFloatNoise::new(2.0).unwrap()), Some(3.0), relation).unwrap();
    assert_eq!(gate(Relation::Remove).loss(), Ok(Loss::Gaussian { mu: 1.5 }));
    assert_eq!(gate(Relation::Replace).loss(), Ok(Loss::Gaussian { mu: 3.0 }));
    let known = gate(Relation::Replace).with_sensitivity(Sensitivity::of_clipped(1.0, Relation::Remove));
    assert_eq!(known.loss(), Ok(Loss::Gaussian { mu: 0.5 }));
}

#[test]
fn an_infinite_loss_leaves_where_no_budget_is_and_stays_infinite() {
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).unwrap();
    let mut door = door(RecordAccountant::new(RECORDS));
    let values = vec![1.5_f32, -2.25, 0.0];
    let released = door.release(&gate, FEATURES, &[1], Private::new(values.clone())).unwrap();
    assert_eq!(released.into_inner(), values);
    assert_eq!(door.accountant().epsilon(DELTA), Ok(f64::INFINITY));
    // Once a budget is set, not even what costs nothing is admitted for that record.
    let spent = door.accountant().spent().to_vec();
    door.count_with(RecordAccountant::resume(spent).with_budget(Some(Budget { epsilon: 1e9, delta: DELTA })));
    assert!(door.disclose_labels(&[1], vec![0]).is_err());
    assert!(door.disclose_labels(&[0, 2], vec![0, 1]).is_ok());
}

#[test]
fn a_label_beyond_the_classes_charges_nothing() {
    let response = RandomisedResponse::new(10, 1.0).unwrap();
    let mut door = door(RecordAccountant::new(RECORDS));
    let refused = door.release_labels(&response, &[0, 1, 2], &Private::new(vec![9, 10, 11])).unwrap_err();
    assert_eq!(refused, ReleaseError::Label { index: 1, classes: 10 });
    assert_untouched(&mut door, "labels");
}

#[test]
fn disclosed_labels_leave_as_they_are_and_cost_nothing() {
    let mut door = door(within(1e-9));
    let released = door.disclose_labels(&[2, 0], vec![7, 4_000_000_000]).unwrap();
    assert_eq!(released.into_inner(), [7, 4_000_000_000]);
    assert_eq!(door.accountant().epsilon(DELTA), Ok(0.0));
    assert_eq!(door.take_ledger().len(), 1);
}

#[test]
fn only_what_was_released_is_let_out_again() {
    for way in ways() {
        let mut door = door(RecordAccountant::new(RECORDS));
        (way.release)(&mut door, &[0, 2], 2).unwrap();
        door.take_ledger();
        let before = door.accountant().clone();
        let again = door.again(&[2, 0, 2], "logits").map(Released::into_inner);
        // Public labels cost nothing, so nothing tells that they left.
        let has_lost = way.loss != Loss::Pure { epsilon: 0.0 };
        let expected = if has_lost { Ok("logits") } else { Err(ReleaseError::NeverReleased { record: 2 }) };
        assert_eq!(again, expected, "{}", way.mechanism);
        let record = if has_lost { 1 } else { 0 };
        let never = ReleaseError::NeverReleased { record };
        assert_eq!(door.again(&[0, 1], "logits").unwrap_err(), never, "{}", way.mechanism);
        assert_eq!(door.accountant(), &before);
    }
    let said = ReleaseError::NeverReleased { record: 1 }.to_string();
    assert_eq!(said, "record 1 has lost nothing so far, so nothing of it can have been released before");
}

#[test]
fn no_more_is_released_than_was_prepaid() {
    for (way, epsilon) in costly(1).filter(|(_, epsilon)| epsilon.is_finite()) {
        let other =
            if matches!(way.loss, Loss::Pure { .. }) { Loss::Zcdp { rho: 9.0 } } else { Loss::Pure { epsilon } };
        let mut door = door(RecordAccountant::prepaid(RECORDS, &[way.loss, other, way.loss, way.loss]));
        (0..3).for_each(|_| assert_eq!((way.release)(&mut door, &[0], 1), Ok(1)));
        door.take_ledger();
        let before = door.accountant().clone();
        let refused = (way.release)(&mut door, &[1, 0], 2);
        let is_prepaid = matches!(refused, Err(ReleaseError::Budget(BudgetError::Prepaid { .. })));
        assert!(is_prepaid, "{}: {refused:?}", way.mechanism);
        assert_eq!(door.accountant(), &before, "{}", way.mechanism);
        (way.release)(&mut door, &[1, 1, 1], 3).unwrap();
        assert!((way.release)(&mut door, &[2, 2, 2, 2], 4).is_err(), "{}", way.mechanism);
    }
}

#[test]
fn ledger_entries_keep_their_form() {
    let mut door = door(RecordAccountant::new(RECORDS));
    let gate = Gate::new(Box::new(OneBit::new(4.0).unwrap()), Some(1.0), Relation::Remove).unwrap();
    let gradient = Source { layer: "block.2", flow: Flow::Gradient };
    door.release(&gate, FEATURES, &[0, 1], Private::new(vec![0.0; 4])).unwrap();
    door.release(&gate, gradient, &[0, 0, 2], Private::new(vec![0.0; 3])).unwrap();
    let response = RandomisedResponse::new(10, 2.0).unwrap();
    door.release_labels(&response, &[1], &Private::new(vec![3])).unwrap();
    door.disclose_labels(&[1], vec![3]).unwrap();
    door.charge("training", Source { layer: "main", flow: Flow::Weights }, &[0], Loss::Zcdp { rho: 0.5 }).unwrap();
    door.charge("training", Source { layer: "main", flow: Flow::Weights }, &[0], Loss::Zcdp { rho: -0.5 }).unwrap();
    let entries = door.take_ledger();
    let lines: Vec<String> = entries.iter().map(|entry| serde_json::to_string(entry).unwrap()).collect();
    let weights = r#"{"layer":"main","released":"weights","mechanism":"training","loss":"#;
    let expected = [
        r#"{"layer":"features","released":"residual","mechanism":"one_bit","loss":{"gaussian":{"mu":0.25}},"records":2,"relation":"remove"}"#.to_owned(),
        r#"{"layer":"block.2","released":"gradient","mechanism":"one_bit","loss":{"gaussian":{"mu":0.25}},"records":3,"relation":"remove"}"#.to_owned(),
        r#"{"layer":"labels","released":"label","mechanism":"randomised_response","loss":{"pure":{"epsilon":2.0}},"records":1,"relation":"replace"}"#.to_owned(),
        r#"{"layer":"labels","released":"label","mechanism":"public_labels","loss":{"pure":{"epsilon":0.0}},"records":1,"relation":"replace"}"#.to_owned(),
        format!(r#"{weights}{{"zcdp":{{"rho":0.5}}}},"records":1,"relation":"replace"}}"#),
        format!(r#"{weights}"infinite","records":1,"relation":"replace"}}"#),
    ];
    assert_eq!(lines, expected);
    let read: Vec<LedgerEntry> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, entries);
}

#[test]
fn epsilon_is_that_of_the_record_that_has_lost_most() {
    let mut door = door(RecordAccountant::new(RECORDS));
    let mut lose = |records: &[usize], epsilon| door.charge("x", FEATURES, records, Loss::Pure { epsilon }).unwrap();
    lose(&[0, 1], 0.25);
    lose(&[1], 0.5);
    lose(&[2], 0.625);
    assert_eq!(door.accountant().epsilon(1e-9), Ok(0.75));
    assert!(door.accountant().epsilon(1.0).is_err());
    let more = door.accountant().spent_with(2, &[Loss::Pure { epsilon: 1.0 }], &[Loss::Pure { epsilon: 1.5 }; 2]);
    let epsilons: Vec<f64> = more.iter().map(|ledger| ledger.epsilon(1e-9).unwrap()).collect();
    assert_eq!(epsilons, [1.25, 1.75, 3.625]);
    assert_eq!(RecordAccountant::resume(more).epsilon(1e-9), Ok(3.625));
}

/// What an accountant must do, said as one would by hand: try it, and take it back if a record cannot afford it.
fn naive(spent: &mut Vec<RecordLedger>, limit: f64, records: &[usize], loss: Loss) -> bool {
    let mut after = spent.clone();
    records.iter().for_each(|&record| after[record].add(loss));
    let fits = records.iter().all(|&record| after[record].epsilon(DELTA).unwrap() <= limit);
    if fits {
        *spent = after;
    }
    fits
}

proptest! {
    #[test]
    fn records_pay_as_often_as_they_occur_and_only_if_all_can(
        releases in prop::collection::vec((prop::collection::vec(0_usize..4, 1..6), 0_usize..9), 0..40),
        limit in 0.5..6.0_f64,
    ) {
        let ways = ways();
        let accountant = RecordAccountant::new(4).with_budget(Some(Budget { epsilon: limit, delta: DELTA }));
        let (mut door, mut spent, mut noted) = (door(accountant), vec![RecordLedger::default(); 4], 0);
        for (records, way) in releases {
            let way = &ways[way];
            let fits = naive(&mut spent, limit, &records, way.loss);
            let released = (way.release)(&mut door, &records, records.len());
            prop_assert_eq!(released.is_ok(), fits, "{} of {:?}: {:?}", way.mechanism, records, released);
            noted += usize::from(fits);
            prop_assert_eq!(door.accountant().spent(), &spent);
        }
        prop_assert_eq!(door.take_ledger().len(), noted);
    }

    /// Also for clips that f32 does not have: the norm is that of the numbers that leave.
    #[test]
    fn every_record_is_clipped_on_its_own(
        values in prop::collection::vec(-10.0_f32..10.0, 12), clip in 1e-3..40.0_f64, records in 1_usize..=3,
    ) {
        let gate = Gate::new(Box::new(InsecureNone), Some(clip), Relation::Remove).unwrap();
        let mut door = door(RecordAccountant::new(RECORDS));
        let released = door.release(&gate, FEATURES, &[0, 1, 2][..records], Private::new(values.clone())).unwrap();
        let norm = |record: &[f32]| record.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let size = 12 / records;
        for (after, before) in released.get().chunks(size).zip(values.chunks(size)) {
            prop_assert!(norm(after) <= clip * (1.0 + 1e-12), "{} {clip}", norm(after));
            if norm(before) < clip * (1.0 - 1e-6) {
                prop_assert_eq!(after, before);
            } else {
                prop_assert!(norm(after) > clip * (1.0 - 1e-6));
            }
        }
    }
}
