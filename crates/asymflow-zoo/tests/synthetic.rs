//! The synthetic set: what it promises about itself, and that a linear classifier fails on it.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use asymflow_zoo::data::Dataset;
use asymflow_zoo::data::{Augment, Batch, Loader, Normalization, synthetic};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Test accuracy of softmax regression on normalised pixels, by stochastic gradient descent with averaging.
fn linear_accuracy(train: &Dataset, test: &Dataset, epochs: u64) -> f64 {
    let (features, classes) = (train.shape().len(), train.classes());
    let normalization = Normalization::of(train);
    let mut weights = vec![0.0_f32; classes * (features + 1)];
    let mut mean = weights.clone();
    let loader = Loader::new(train, &normalization, Augment::NONE, 1);
    let mut batch = Batch::default();
    let mut steps = 0.0;
    for epoch in 0..epochs {
        let mut batches = loader.epoch(epoch, 64);
        while batches.next_into(&mut batch) {
            let rate = 2e-4 / (1.0 + epoch as f32) / batch.labels.len() as f32;
            let mut gradient = vec![0.0_f32; weights.len()];
            for (x, &label) in batch.images.chunks_exact(features).zip(&batch.labels) {
                let logits = logits(&weights, x);
                let top = logits.iter().copied().fold(f32::MIN, f32::max);
                let exps: Vec<f32> = logits.iter().map(|v| (v - top).exp()).collect();
                let sum: f32 = exps.iter().sum();
                for (class, row) in gradient.chunks_exact_mut(features + 1).enumerate() {
                    let error = exps[class] / sum - f32::from(u8::from(class == label as usize));
                    row.iter_mut().zip(x.iter().chain(&[1.0])).for_each(|(g, v)| *g += error * v);
                }
            }
            weights.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 64.0 * rate * g);
            steps += 1.0;
            mean.iter_mut().zip(&weights).for_each(|(m, w)| *m += (w - *m) / steps);
        }
    }
    let loader = Loader::new(test, &normalization, Augment::NONE, 1);
    let mut right = 0;
    for batch in loader.in_order(64) {
        for (x, &label) in batch.images.chunks_exact(features).zip(&batch.labels) {
            let best = logits(&mean, x).into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
            right += usize::from(best == label as usize);
        }
    }
    right as f64 / test.len() as f64
}

fn logits(weights: &[f32], x: &[f32]) -> Vec<f32> {
    weights
        .chunks_exact(x.len() + 1)
        .map(|row| row.iter().zip(x.iter().chain(&[1.0])).map(|(w, v)| w * v).sum())
        .collect()
}

#[test]
fn a_linear_classifier_fails() {
    let split = synthetic(4000, 1000, 7);
    let accuracy = linear_accuracy(&split.train, &split.test, 8);
    println!("softmax regression on 4000 synthetic images: {:.1} %", 100.0 * accuracy);
    assert!(accuracy < 0.30, "a linear classifier reaches {accuracy}");
}

#[test]
fn the_same_linear_classifier_learns_figures_that_stand_still() {
    // The control: one figure of each class, always the same, under fresh noise.
    let originals = synthetic(10, 0, 7).train;
    let noisy = |len: usize, seed: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let images = (0..len)
            .flat_map(|i| originals.image(i % 10).unwrap())
            .map(|&pixel| pixel.saturating_add_signed(rng.random_range(-60..=60)))
            .collect();
        let labels = (0..len).map(|i| i as u32 % 10).collect();
        Dataset::new(images, labels, originals.shape(), originals.class_names().to_vec()).unwrap()
    };
    let accuracy = linear_accuracy(&noisy(1000, 1), &noisy(500, 2), 2);
    assert!(accuracy > 0.95, "{accuracy}");
}

#[test]
fn the_set_is_deterministic_and_its_parts_differ() {
    let split = synthetic(50, 50, 3);
    assert_eq!(split, synthetic(50, 50, 3));
    assert_ne!(split.train.images(), synthetic(50, 50, 4).train.images());
    assert_ne!(split.train.images(), split.test.images());
    let longer = synthetic(60, 0, 3);
    assert_eq!(longer.train.image(49), split.train.image(49), "the first images do not depend on the number");
    for class in 0..10 {
        assert_eq!(split.train.labels().iter().filter(|&&label| label == class).count(), 5);
    }
}
