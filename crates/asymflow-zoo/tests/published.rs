//! The loaders on published data, where it is at hand: MNIST in `../shared/data/mnist` beside the
//! workspace, and any data set whose path is in `ASYMFLOW_DATA`.

#![expect(clippy::panic, clippy::print_stdout, reason = "a test may fail in its helpers, and says how long it took")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use asymflow_zoo::data::{Preparation, load};
use asymflow_zoo::{
    data::{DataSource, Split},
    network::Shape,
};

fn open(path: PathBuf) -> Split {
    let start = Instant::now();
    let source = DataSource::Files { path, prepare: Preparation::default() };
    let split = load(&source).unwrap_or_else(|error| panic!("{error}"));
    println!("{} + {} images in {:.2} s", split.train.len(), split.test.len(), start.elapsed().as_secs_f64());
    split
}

fn counts(labels: &[u32]) -> Vec<usize> {
    (0..10).map(|class| labels.iter().filter(|&&label| label == class).count()).collect()
}

#[test]
fn mnist_is_read_in_full() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/mnist");
    if !folder.is_dir() {
        println!("skipped: no MNIST in {}", folder.display());
        return;
    }
    let split = open(folder);
    assert_eq!((split.train.len(), split.test.len(), split.train.shape()), (60_000, 10_000, Shape::new(1, 28, 28)));
    // The published numbers of each digit, and the first labels.
    assert_eq!(counts(split.train.labels()), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    assert_eq!(counts(split.test.labels()), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    assert_eq!(split.train.labels()[..5], [5, 0, 4, 1, 9]);
    // The often quoted mean and standard deviation of the training pixels.
    let n = asymflow_zoo::data::Normalization::of(&split.train);
    assert!((n.mean[0] - 0.1307).abs() < 5e-5 && (n.std[0] - 0.3081).abs() < 5e-5, "{n:?}");
}

#[test]
fn the_given_data_set_is_read_in_full() {
    let Some(path) = std::env::var_os("ASYMFLOW_DATA") else {
        println!("skipped: ASYMFLOW_DATA names no data set");
        return;
    };
    let split = open(path.into());
    assert!(split.train.len() > 1 && split.test.len() > 1);
    for class in 0..split.train.classes() as u32 {
        assert!(split.train.labels().contains(&class), "class {class} has no training sample");
    }
    if split.train.len() == 50_000 && split.train.classes() == 10 {
        assert_eq!((split.train.shape(), split.test.len()), (Shape::new(3, 32, 32), 10_000));
        assert_eq!(counts(split.train.labels()), [5000; 10]);
        assert_eq!(counts(split.test.labels()), [1000; 10]);
    }
}
