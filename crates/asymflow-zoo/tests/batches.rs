//! Batches: against a plain reference, and independence of batch size and order.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use asymflow_zoo::data::{Augment, Batch, Loader, Normalization, epoch_order, synthetic};
use asymflow_zoo::{
    data::{DataError, Dataset},
    network::Shape,
};
use proptest::prelude::*;

fn random_set(len: usize, shape: Shape, classes: usize) -> Dataset {
    let images = (0..len * shape.len()).map(|i| ((i * i / 3 + 13 * i) % 256) as u8).collect();
    let labels = (0..len).map(|i| (i * i % classes) as u32).collect();
    Dataset::new(images, labels, shape, (0..classes).map(|c| c.to_string()).collect()).unwrap()
}

#[test]
fn normalization_is_that_of_numpy() {
    let images = vec![0, 255, 51, 102, 10, 20, 30, 40, /* second image */ 255, 0, 51, 102, 50, 60, 70, 80];
    let data = Dataset::new(images, vec![0, 0], Shape::new(2, 2, 2), vec!["a".to_owned()]).unwrap();
    let n = Normalization::of(&data);
    // numpy: x[:, c].mean() / 255 and x[:, c].std() / 255 of the pixels above.
    let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
    assert!(close(n.mean[0], 0.4) && close(n.mean[1], 45.0 / 255.0), "{n:?}");
    assert!(close(n.std[0], 0.374_165_74) && close(n.std[1], 525.0_f32.sqrt() / 255.0), "{n:?}");
    let constant = Dataset::new(vec![9; 8], vec![0, 0], Shape::new(1, 2, 2), vec!["a".to_owned()]).unwrap();
    assert_eq!(Normalization::of(&constant).std, [1.0]);
}

#[test]
fn a_normalised_training_set_has_mean_zero_and_deviation_one() {
    let data = synthetic(500, 0, 1).train;
    let loader = Loader::new(&data, &Normalization::of(&data), Augment::NONE, 0);
    let batch = loader.in_order(500).next().unwrap();
    for channel in 0..3 {
        let values: Vec<f64> =
            batch.images.chunks_exact(1024).skip(channel).step_by(3).flatten().map(|&v| f64::from(v)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3, "{mean} {square}");
    }
}

#[test]
fn every_crop_is_a_window_of_the_padded_image() {
    let shape = Shape::new(2, 6, 5);
    let data = random_set(40, shape, 3);
    let normalization = Normalization { mean: vec![0.5, 0.25], std: vec![0.5, 2.0] };
    let augment = Augment { crop_padding: 2, flip: true };
    let loader = Loader::new(&data, &normalization, augment, 9);
    let mut seen = std::collections::BTreeSet::new();
    for epoch in 0..20 {
        for batch in loader.epoch(epoch, 7) {
            for (sample, &index) in batch.images.chunks_exact(shape.len()).zip(&batch.indices) {
                let image = data.image(index as usize).unwrap();
                let view = (0..=4).flat_map(|d| (0..=4).flat_map(move |r| [(d, r, false), (d, r, true)])).find(|&v| {
                    padded_window(image, shape, 2, v, &normalization)
                        .iter()
                        .zip(sample)
                        .all(|(a, b)| (a - b).abs() < 1e-6)
                });
                seen.insert(view.unwrap());
            }
        }
    }
    assert_eq!(seen.len(), 50, "every shift occurs, mirrored and not");
}

/// The slow reference: pad with zeros, cut a window, mirror it, normalise.
fn padded_window(
    image: &[u8],
    shape: Shape,
    padding: usize,
    (down, right, mirrored): (usize, usize, bool),
    n: &Normalization,
) -> Vec<f32> {
    let mut out = Vec::new();
    for channel in 0..shape.channels {
        for row in 0..shape.height {
            for column in 0..shape.width {
                let column = if mirrored { shape.width - 1 - column } else { column };
                let (y, x) = ((row + down).checked_sub(padding), (column + right).checked_sub(padding));
                let pixel = match (y, x) {
                    (Some(y), Some(x)) if y < shape.height && x < shape.width => {
                        image[(channel * shape.height + y) * shape.width + x]
                    }
                    _ => 0,
                };
                out.push((f32::from(pixel) / 255.0 - n.mean[channel]) / n.std[channel]);
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn an_epoch_visits_every_sample_once(seed: u64, epoch: u64, len in 0_usize..300) {
        let mut order = epoch_order(seed, epoch, len);
        prop_assert_eq!(&order, &epoch_order(seed, epoch, len));
        order.sort_unstable();
        prop_assert_eq!(order, (0..len as u32).collect::<Vec<_>>());
    }

    #[test]
    fn samples_do_not_depend_on_batch_size_or_order(seed: u64, epoch: u64, size in 1_usize..40) {
        let shape = Shape::new(1, 4, 4);
        let data = random_set(30, shape, 2);
        let loader = Loader::new(&data, &Normalization::of(&data), Augment { crop_padding: 1, flip: true }, seed);
        let mut alone = Batch::default();
        let mut visited = 0;
        for batch in loader.epoch(epoch, size) {
            visited += batch.labels.len();
            for (k, &index) in batch.indices.iter().enumerate() {
                loader.gather(Some(epoch), &[index], &mut alone);
                prop_assert_eq!(&alone.images[..], &batch.images[k * shape.len()..][..shape.len()]);
                prop_assert_eq!(alone.labels[0], batch.labels[k]);
            }
        }
        prop_assert_eq!(visited, 30);
    }

    #[test]
    fn a_subset_is_balanced(n in 0_usize..=200, seed: u64) {
        // Classes of 100, 60 and 40 samples.
        let labels = (0..200).map(|i| u32::from(i >= 100) + u32::from(i >= 160)).collect();
        let images = (0..200).map(|i| i as u8).collect();
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let data = Dataset::new(images, labels, Shape::new(1, 1, 1), names).unwrap();
        let subset = data.subset(n, seed).unwrap();
        prop_assert_eq!(&subset, &data.subset(n, seed).unwrap());
        prop_assert_eq!(subset.len(), n);
        prop_assert!(subset.images().is_sorted_by(|a, b| a < b), "no sample twice, and in order");
        let count = |class| subset.labels().iter().filter(|&&label| label == class).count();
        let counts = [count(0), count(1), count(2)];
        let most = counts.into_iter().max().unwrap();
        for (count, available) in counts.into_iter().zip([100, 60, 40]) {
            prop_assert!(count + 1 >= most || count == available, "{:?}", counts);
        }
    }
}

#[test]
fn two_epochs_differ_and_a_loader_reuses_its_buffers() {
    assert_ne!(epoch_order(1, 0, 100), epoch_order(1, 1, 100));
    assert_ne!(epoch_order(1, 0, 100), epoch_order(2, 0, 100));
    let data = random_set(10, Shape::new(1, 4, 4), 2);
    let loader = Loader::new(&data, &Normalization::of(&data), Augment::STANDARD, 1);
    let mut batches = loader.epoch(0, 4);
    assert_eq!(batches.len(), 3);
    let mut batch = Batch::default();
    let mut sizes = Vec::new();
    while batches.next_into(&mut batch) {
        sizes.push(batch.labels.len());
        assert_eq!(batch.images.len(), 16 * batch.labels.len());
    }
    assert_eq!(sizes, [4, 4, 2]);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let shape = Shape::new(1, 2, 2);
    let names = || vec!["a".to_owned(), "b".to_owned()];
    assert!(matches!(Dataset::new(vec![0; 7], vec![0, 1], shape, names()), Err(DataError::Length { .. })));
    assert!(matches!(
        Dataset::new(vec![0; 8], vec![0, 2], shape, names()),
        Err(DataError::Label { at: 1, label: 2, .. })
    ));
    let data = Dataset::new(vec![0; 8], vec![0, 1], shape, names()).unwrap();
    assert!(matches!(data.subset(3, 0), Err(DataError::TooFew { wanted: 3, available: 2 })));
    assert_eq!(data.image(2), None);
    assert_eq!(data.image(usize::MAX), None);
}

#[test]
fn an_image_survives_a_png_file_and_fits_other_shapes() {
    let data = synthetic(1, 0, 5).train;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.png");
    let shape = data.shape();
    asymflow_zoo::data::write_png(&path, data.images(), shape).unwrap();
    assert_eq!(asymflow_zoo::data::read_image(&path, shape, None).unwrap(), data.images());
    let grey = asymflow_zoo::data::read_image(&path, Shape::new(1, 28, 28), None).unwrap();
    assert_eq!(grey.len(), 28 * 28);
    assert!(asymflow_zoo::data::read_image(&path, Shape::new(4, 28, 28), None).is_err());
    assert!(asymflow_zoo::data::write_png(&path, &data.images()[1..], shape).is_err());
}
