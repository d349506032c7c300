//! Codewords: frequencies, the ratio that ε bounds, and what is nearest.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Door, Loss, Private,
    accountants::{Relation, Sensitivity},
    door::{Gate, Source},
    mechanisms::{Codewords, Mechanism, MechanismError},
    payload::PackedBits,
    records::{Flow, RecordAccountant},
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const FEATURES: Source<'_> = Source { layer: "features", flow: Flow::Residual };

/// What comes out for `count` records that are all `record`, as text of bits.
fn drawn(mechanism: &Codewords, record: &[f32], count: usize, seed: u64) -> Vec<Vec<u8>> {
    let all = record.repeat(count);
    let bits = mechanism.apply(all, &mut ChaCha20Rng::seed_from_u64(seed)).unwrap();
    assert_eq!(bits.len(), count * mechanism.bits());
    bits.as_bytes().chunks_exact(mechanism.bits() / 8).map(<[u8]>::to_vec).collect()
}

fn count(words: &[Vec<u8>], is: impl Fn(&[u8]) -> bool) -> f64 {
    words.iter().filter(|word| is(word)).count() as f64
}

#[test]
fn classes_come_out_with_their_probabilities() {
    const RECORDS: usize = 200_000;
    for (classes, epsilon, seed) in [(2, 0.5, 1), (10, 1.4, 2), (10, 4.0, 3), (100, 6.0, 4)] {
        let mechanism = Codewords::of_classes(classes, Some(epsilon)).unwrap();
        let mut record = vec![-1.0; classes as usize];
        record[1] = 0.25;
        let words = drawn(&mechanism, &record, RECORDS, seed);
        let keep = epsilon.exp() / (epsilon.exp() + f64::from(classes - 1));
        for class in 0..classes as usize {
            let p = if class == 1 { keep } else { (1.0 - keep) / f64::from(classes - 1) };
            let found = count(&words, |word| word[class / 8] >> (class % 8) & 1 == 1);
            let deviation = (RECORDS as f64 * p * (1.0 - p)).sqrt();
            assert!((found - RECORDS as f64 * p).abs() < 4.9 * deviation, "{classes} classes, {class}: {found}");
        }
        // One class a word, and no bit beyond the classes.
        assert!(words.iter().all(|word| word.iter().map(|byte| byte.count_ones()).sum::<u32>() == 1));
    }
}

/// The set of outcomes that tells `a` from `b` best in one sample, and the ε that it proves in another.
fn epsilon_from_below(
    mechanism: &Codewords,
    (a, b): (&[f32], &[f32]),
    outcome: impl Fn(&[u8]) -> u32,
    (records, seed): (usize, u64),
) -> f64 {
    let counted = |record, seed| {
        let mut counts = [0.0_f64; 64];
        drawn(mechanism, record, records, seed).iter().for_each(|word| counts[outcome(word) as usize] += 1.0);
        counts
    };
    // Three and a half standard deviations to either side: one in four thousand that the bound is wrong.
    let proved = |a: f64, b: f64| ((a - 3.5 * a.sqrt()).max(0.0) / (b + 3.5 * b.sqrt() + 6.0)).ln();
    let sums = |of: [[f64; 64]; 2], set: &[usize]| of.map(|counts| set.iter().map(|&i| counts[i]).sum::<f64>());
    let first = [counted(a, seed), counted(b, seed + 1)];
    let mut order: Vec<usize> = (0..64).collect();
    order.sort_by(|&i, &j| (first[0][j] / (first[1][j] + 1.0)).total_cmp(&(first[0][i] / (first[1][i] + 1.0))));
    let proves = |of, n: &usize| {
        let [a, b] = sums(of, &order[..*n]);
        proved(a, b)
    };
    let best = (1..64).max_by(|n, m| proves(first, n).total_cmp(&proves(first, m))).unwrap();
    proves([counted(a, seed + 2), counted(b, seed + 3)], &best)
}

#[test]
fn an_audit_from_below_finds_no_more_than_epsilon_and_most_of_it() {
    for (epsilon, seed) in [(1.4, 10), (4.0, 20)] {
        let guess = Codewords::of_classes(10, Some(epsilon)).unwrap();
        let one = |class: usize| (0..10).map(|i| f32::from(u8::from(i == class))).collect::<Vec<_>>();
        let class = |word: &[u8]| u32::from(u16::from_le_bytes([word[0], word[1]]).trailing_zeros() as u8);
        let least = epsilon_from_below(&guess, (&one(0), &one(7)), class, (100_000, seed));
        assert!(least <= epsilon && least > 0.9 * epsilon, "classes: {least} of {epsilon}");
    }
    let point = Codewords::on_sphere(3, Some(4.0)).unwrap();
    let axis = |sign: f32| vec![sign, 0.0, 0.0];
    let level = |word: &[u8]| word[0].count_ones();
    let least = epsilon_from_below(&point, (&axis(1.0), &axis(-1.0)), level, (6_000, 30));
    assert!(least <= 4.0 && least > 2.0, "sphere: {least} of 4");
}

/// Whether the m nearest are hit as often as they are to be, and points come out along the record.
#[test]
fn points_come_out_around_their_record() {
    const RECORDS: usize = 2_000;
    let axis: Vec<f32> = (0..9).map(|i| if i == 2 { 1.0 } else { 0.0 }).collect();
    // Bits of the third coordinate: how many of its eight levels are passed.
    let mean_level = |mechanism: &Codewords, record: &[f32], seed| {
        let words = drawn(mechanism, record, RECORDS, seed);
        words.iter().map(|word| f64::from(word[2].count_ones())).sum::<f64>() / RECORDS as f64
    };
    let mut last = 4.1;
    for (epsilon, seed) in [(1.4, 1), (4.0, 2), (9.0, 3), (17.0, 4)] {
        let mechanism = Codewords::on_sphere(9, Some(epsilon)).unwrap();
        let (nearest, words) = mechanism.cap();
        assert!(nearest >= 1 && 2 * nearest <= words, "{nearest} of {words}");
        let level = mean_level(&mechanism, &axis, seed);
        assert!(level > last, "ε {epsilon}: {level} after {last}");
        last = level;
        let opposite: Vec<f32> = axis.iter().map(|v| -v).collect();
        let other = mean_level(&mechanism, &opposite, seed + 10);
        assert!((level + other - 8.0).abs() < 0.5, "{level} and {other}");
    }
    assert!(last > 7.0, "{last}");
}

#[test]
fn its_loss_is_pure_by_replacement_and_charged_at_the_door() {
    let gate = |epsilon| {
        let mechanism = Codewords::of_classes(10, epsilon).unwrap();
        Gate::<PackedBits>::new(Box::new(mechanism), Some(1.0), Relation::Replace).unwrap()
    };
    assert_eq!(gate(None).loss(), Ok(Loss::Infinite));
    assert_eq!(gate(None).name(), "insecure_codewords");
    let mut door = Door::new(RecordAccountant::new(3), ChaCha20Rng::seed_from_u64(7));
    door.release(&gate(Some(4.0)), FEATURES, &[0, 2], Private::new(vec![0.5; 20])).unwrap();
    assert_eq!(door.accountant().epsilon(1e-9), Ok(4.0));
    let entry = &door.take_ledger()[0];
    assert_eq!((entry.loss, entry.relation, entry.records), (Loss::Pure { epsilon: 4.0 }, Relation::Replace, 2));
    // Neither part of a word nor two words at the loss of one.
    for (values, each) in [(18, 9), (40, 20)] {
        let refused = door.release(&gate(Some(4.0)), FEATURES, &[0, 2], Private::new(vec![0.5; values]));
        let said = format!("a record has 10 values for the mechanism, got {each}");
        assert_eq!(refused.unwrap_err().to_string(), said);
    }
    assert_eq!(door.accountant().epsilon(1e-9), Ok(4.0));
}

#[test]
fn a_record_removed_loses_less_than_one_replaced() {
    for (epsilon, expected) in [(1.4, 1.1334), (9.0, 6.698)] {
        // ln of the larger of N·e^ε/(e^ε + N − 1) and (e^ε + N − 1)/N, for N = 10.
        let found = Codewords::of_classes(10, Some(epsilon)).unwrap().removal_epsilon().unwrap();
        assert!((found - expected).abs() < 1e-3, "{epsilon}: {found}");
    }
    let unbounded = Sensitivity::unbounded(Relation::Replace);
    for epsilon in [0.1, 1.4, 4.0, 9.0, 17.0, 40.0] {
        let mechanism = Codewords::on_sphere(9, Some(epsilon)).unwrap();
        assert_eq!(mechanism.loss(unbounded), Ok(Loss::Pure { epsilon }));
        let removed = mechanism.removal_epsilon().unwrap();
        assert!(removed > 0.0 && removed < epsilon, "{epsilon}: {removed}");
    }
}

#[test]
fn what_makes_no_codebook_is_refused() {
    assert_eq!(Codewords::of_classes(1, Some(1.0)).unwrap_err(), MechanismError::Classes { classes: 1 });
    assert_eq!(Codewords::on_sphere(1, Some(1.0)).unwrap_err(), MechanismError::Classes { classes: 1 });
    for epsilon in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(Codewords::of_classes(3, Some(epsilon)).unwrap_err(), MechanismError::Epsilon { epsilon });
    }
    assert!(matches!(Codewords::on_sphere(9, Some(f64::NAN)), Err(MechanismError::Epsilon { .. })));
}
