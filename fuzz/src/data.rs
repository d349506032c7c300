//! Files of data sets and images.

use std::hint::black_box;
use std::path::Path;

use asymflow_zoo::data::{load, read_image};
use asymflow_zoo::{data::DataSource, network::Shape};
use tempfile::TempDir;

/// Two images of 2×3 pixels, and their labels.
const IDX_IMAGES: &[u8] = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x03abcdefghijkl";
const IDX_LABELS: &[u8] = b"\0\0\x08\x01\0\0\0\x02\x01\x02";

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a file in it");
    }
    folder
}

fn open(path: &Path) {
    if let Ok(split) = load(&DataSource::Files { path: path.to_owned(), prepare: Default::default() }) {
        assert_eq!(split.train.images().len(), split.train.len() * split.train.shape().len());
        assert!(split.train.labels().iter().all(|&label| (label as usize) < split.train.classes()));
    }
}

/// A tar archive, gzipped or not, of whichever form of CIFAR.
pub fn archive(input: &[u8]) {
    let folder = folder(&[("all.tar.gz", input)]);
    open(&folder.path().join("all.tar.gz"));
}

/// A file of CIFAR-100 records.
pub fn cifar_binary(input: &[u8]) {
    open(folder(&[("train.bin", input), ("test.bin", input)]).path());
}

/// A pickle of CIFAR-100, which is at the same time the file of names.
pub fn pickle(input: &[u8]) {
    open(folder(&[("train", input), ("test", input)]).path());
    open(folder(&[("train", input), ("test", input), ("meta", input)]).path());
}

/// A file of images, then a file of labels.
pub fn idx(input: &[u8]) {
    for (images, labels) in [(input, IDX_LABELS), (IDX_IMAGES, input)] {
        let files = [
            ("train-images-idx3-ubyte", images),
            ("train-labels-idx1-ubyte", labels),
            ("t10k-images-idx3-ubyte", images),
            ("t10k-labels-idx1-ubyte", labels),
        ];
        open(folder(&files).path());
    }
}

/// An archive of arrays, and one array beside others.
pub fn arrays(input: &[u8]) {
    let folder = folder(&[("set.npz", input)]);
    open(&folder.path().join("set.npz"));
    let files = ["x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"].map(|name| (name, input));
    open(self::folder(&files).path());
}

/// A table of a label and pixels.
pub fn table(input: &[u8]) {
    open(folder(&[("train.csv", input), ("test.csv", input)]).path());
}

/// An image that a client asks about.
pub fn image(input: &[u8]) {
    let folder = folder(&[("image", input)]);
    for channels in [1, 3] {
        let shape = Shape::new(channels, 8, 8);
        if let Ok(pixels) = black_box(read_image(&folder.path().join("image"), shape, None)) {
            assert_eq!(pixels.len(), shape.len());
        }
    }
}
