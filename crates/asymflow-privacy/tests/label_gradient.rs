//! The sensitivity of a batch's logit gradient to a label, by brute force over labels and logits in f32.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    accountants::{Relation, Sensitivity},
    mechanisms::clip_l2,
};
use proptest::prelude::*;

/// (softmax(z) − y)/samples in f32, as it is computed where it is released.
fn gradient(logits: &[f32], label: usize, samples: usize) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|&v| (v - max).exp()).sum();
    let entry = |(j, &v): (usize, &f32)| ((v - max).exp() / sum - f32::from(u8::from(j == label))) / samples as f32;
    logits.iter().enumerate().map(entry).collect()
}

/// What a mechanism on a grid adds its noise to.
fn on_grid(row: &[f32], step: f64) -> Vec<f64> {
    row.iter().map(|&v| (f64::from(v) / step).trunc() * step).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// The largest distances, over all labels, of rows on the grid: from zeros, and from the row of another label.
fn largest(logits: &[f32], samples: usize, step: f64) -> (f64, f64) {
    let bound = Sensitivity::of_label_gradient(samples, Relation::Remove).l2() as f32;
    let row = |label| {
        let mut row = gradient(logits, label, samples);
        let before = row.clone();
        clip_l2(&mut row, bound).unwrap();
        assert_eq!(row, before, "the bound on the norm changes nothing");
        on_grid(&row, step)
    };
    let rows: Vec<Vec<f64>> = (0..logits.len()).map(row).collect();
    let zeros = vec![0.0; logits.len()];
    let removed = rows.iter().map(|row| distance(row, &zeros)).fold(0.0, f64::max);
    let replaced = rows.iter().flat_map(|a| rows.iter().map(|b| distance(a, b))).fold(0.0, f64::max);
    (removed, replaced)
}

fn bounds(samples: usize) -> (f64, f64) {
    let of = |relation| Sensitivity::of_label_gradient(samples, relation).l2();
    (of(Relation::Remove), of(Relation::Replace))
}

#[test]
fn the_bound_is_reached_and_it_is_half_of_what_clipping_alone_would_say() {
    let mut logits = vec![0.0; 10];
    logits[3] = 60.0;
    let ((removed, replaced), (remove, replace)) = (largest(&logits, 1, 1e-9), bounds(1));
    assert!(removed <= remove && removed > 0.999 * remove, "{removed} {remove}");
    assert!(replaced <= replace && replaced > 0.999 * replace, "{replaced} {replace}");
    let clipped = Sensitivity::of_clipped(std::f64::consts::SQRT_2, Relation::Replace).l2();
    assert!((replace / clipped - 0.5).abs() < 1e-3);
}

proptest! {
    #[test]
    fn no_label_moves_a_row_further_than_stated(
        logits in proptest::collection::vec(-30.0_f32..30.0, 2..12),
        flat in any::<bool>(),
        samples in 1_usize..300,
        log_step in -30_i32..-2,
    ) {
        let logits: Vec<f32> = logits.into_iter().map(|v| if flat { v * 0.01 } else { v }).collect();
        let ((removed, replaced), (remove, replace)) = (largest(&logits, samples, 2.0_f64.powi(log_step)), bounds(samples));
        prop_assert!(removed <= remove, "{removed} {remove}");
        prop_assert!(replaced <= replace, "{replaced} {replace}");
    }

    #[test]
    fn many_classes_stay_within_the_margin(seed in any::<u32>(), scale in 0.0_f32..20.0) {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_769).wrapping_add(seed) >> 8) as f32 / 16_777_216.0 - 0.5;
        let logits: Vec<f32> = (0..4096).map(|i| scale * noise(i)).collect();
        let (remove, replace) = bounds(1);
        let pick = |label| gradient(&logits, label, 1).into_iter().map(f64::from).collect::<Vec<_>>();
        let (a, b) = (pick(seed as usize % 4096), pick((seed as usize / 4096) % 4096));
        prop_assert!(distance(&a, &vec![0.0; 4096]) <= remove && distance(&a, &b) <= replace);
    }
}
