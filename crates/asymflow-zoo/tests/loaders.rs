//! The loaders on small files made here, on golden pickles of Python, and on damaged ones.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use asymflow_zoo::data::{Filter, Resize, load};
use asymflow_zoo::{
    data::{DataError, DataSource, Split},
    network::Shape,
};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;

fn open(path: &Path) -> Result<Split, DataError> {
    load(&DataSource::Files { path: path.to_owned(), resize: None })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("top/{name}"), bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn pixels(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| ((7 * salt + 3 * i) % 251) as u8).collect()
}

/// CIFAR-10 binary, one image in each file; its label is the number of the file.
fn cifar10_binary() -> Vec<(&'static str, Vec<u8>)> {
    let names = [
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
    ];
    let record = |label: usize| [vec![label as u8], pixels(3072, label)].concat();
    names.into_iter().enumerate().map(|(i, name)| (name, record(i + 1))).collect()
}

fn idx(dimensions: &[u32], body: &[u8]) -> Vec<u8> {
    let mut bytes = (0x0800 + dimensions.len() as u32).to_be_bytes().to_vec();
    dimensions.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(body);
    bytes
}

fn mnist() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("train-images-idx3-ubyte.gz", gzip(&idx(&[3, 4, 5], &pixels(60, 1)))),
        ("train-labels-idx1-ubyte", idx(&[3], &[9, 0, 4])),
        ("t10k-images.idx3-ubyte", idx(&[2, 4, 5], &pixels(40, 2))),
        ("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[1, 2]))),
    ]
}

fn replaced(
    mut files: Vec<(&'static str, Vec<u8>)>,
    name: &str,
    change: impl FnOnce(&mut Vec<u8>),
) -> Vec<(&'static str, Vec<u8>)> {
    change(&mut files.iter_mut().find(|(n, _)| *n == name).unwrap().1);
    files
}

fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    encoded(image::ImageFormat::Png, width, height, pixel)
}

fn encoded(format: image::ImageFormat, width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
    let mut out = std::io::Cursor::new(Vec::new());
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn check_cifar10(split: &Split) {
    assert_eq!(split.train.shape(), Shape::new(3, 32, 32));
    assert_eq!(split.train.labels(), [1, 2, 3, 4, 5]);
    assert_eq!(split.test.labels(), [6]);
    assert_eq!(split.train.image(2).unwrap(), pixels(3072, 3));
    assert_eq!(split.test.images(), pixels(3072, 6));
}

#[test]
fn cifar10_binary_in_a_folder_a_subfolder_and_archives() {
    let mut files = cifar10_binary();
    files.push(("batches.meta.txt", b"airplane\nb\nc\nd\ne\nf\ng\nh\ni\ntruck\n\n".to_vec()));
    let plain = folder(&files);
    let split = open(plain.path()).unwrap();
    check_cifar10(&split);
    assert_eq!(split.test.class_names()[9], "truck");
    let nested = tempfile::tempdir().unwrap();
    fs::rename(plain.path(), nested.path().join("cifar-10-batches-bin")).unwrap();
    check_cifar10(&open(nested.path()).unwrap());
    let archives = folder(&[("a.tar.gz", gzip(&tar(&files))), ("a.tar", tar(&files))]);
    check_cifar10(&open(&archives.path().join("a.tar.gz")).unwrap());
    check_cifar10(&open(&archives.path().join("a.tar")).unwrap());
}

#[test]
fn cifar100_binary_takes_the_fine_label() {
    let record = |label: u8| [vec![3, label], pixels(3072, 0)].concat();
    let files = folder(&[("train.bin", [record(99), record(7)].concat()), ("test.bin", record(0))]);
    let split = open(files.path()).unwrap();
    assert_eq!((split.train.labels(), split.test.labels(), split.train.classes()), (&[99, 7][..], &[0][..], 100));
}

#[test]
fn pickles_of_python_2_and_3() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ten = fs::read(golden.join("cifar10_py2.pickle")).unwrap();
    let names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    let files: Vec<_> = names.into_iter().map(|name| (name, ten.clone())).collect();
    let archive = folder(&[("cifar-10-python.tar.gz", gzip(&tar(&files)))]);
    let split = open(&archive.path().join("cifar-10-python.tar.gz")).unwrap();
    assert_eq!((split.train.len(), split.test.labels()), (10, &[6, 9][..]));
    assert_eq!(split.test.image(1).unwrap(), pixels(3072, 1));
    let hundred = fs::read(golden.join("cifar100_py3.pickle")).unwrap();
    let files = folder(&[("train", hundred.clone()), ("test", hundred)]);
    let split = open(files.path()).unwrap();
    assert_eq!((split.train.labels(), split.train.image(1).unwrap()), (&[99, 0][..], pixels(3072, 1).as_slice()));
}

#[test]
fn idx_files_gzipped_or_not() {
    let split = open(folder(&mnist()).path()).unwrap();
    assert_eq!(split.train.shape(), Shape::new(1, 4, 5));
    assert_eq!((split.train.labels(), split.test.labels()), (&[9, 0, 4][..], &[1, 2][..]));
    assert_eq!(split.train.images(), pixels(60, 1));
}

#[test]
fn image_folders() {
    let colour = |seed: u32| png(6, 4, move |x, y| [(x * 10 + seed) as u8, (y * 20) as u8, seed as u8]);
    let mut grey = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(6, 4, image::Luma([77])).write_to(&mut grey, image::ImageFormat::Png).unwrap();
    let mut files = vec![
        ("train/cat/1.png", colour(1)),
        ("train/cat/2.PNG", grey.into_inner()),
        ("train/ant/1.png", colour(3)),
        ("train/ant/notes.txt", b"no image".to_vec()),
        ("test/cat/1.png", colour(4)),
    ];
    let split = open(folder(&files).path()).unwrap();
    assert_eq!(split.train.class_names(), ["ant", "cat"]);
    assert_eq!((split.train.labels(), split.test.labels()), (&[0, 1, 1][..], &[1][..]));
    assert_eq!(split.train.shape(), Shape::new(3, 4, 6));
    let image = split.train.image(1).unwrap();
    // Channel by channel, row by row: red of the pixel in column 2 and row 1, then its green.
    assert_eq!((image[6 + 2], image[24 + 6 + 2], image[48 + 6 + 2]), (21, 20, 1));
    assert_eq!(split.train.image(2).unwrap(), [77; 72]);

    files.push(("train/ant/2.png", png(5, 4, |_, _| [0; 3])));
    let mixed = folder(&files);
    assert!(matches!(open(mixed.path()), Err(DataError::MixedSizes { .. })));
    let resize = Resize { height: 8, width: 12, filter: Filter::Nearest };
    let split = load(&DataSource::Files { path: mixed.path().to_owned(), resize: Some(resize) }).unwrap();
    assert_eq!((split.train.len(), split.train.shape()), (4, Shape::new(3, 8, 12)));
    let cat = split.train.image(2).unwrap();
    assert_eq!((cat[0], cat[1], cat[2], cat[12], cat[24]), (1, 1, 11, 1, 1), "each pixel twice in both directions");
}

#[test]
fn bilinear_resizing_keeps_the_mean_and_the_ends() {
    let files = folder(&[
        ("train/a/1.png", png(4, 4, |x, _| [(x * 80) as u8; 3])),
        ("test/a/1.png", png(4, 4, |x, _| [(x * 80) as u8; 3])),
    ]);
    let resize = Resize { height: 2, width: 2, filter: Filter::Bilinear };
    let split = load(&DataSource::Files { path: files.path().to_owned(), resize: Some(resize) }).unwrap();
    let row: Vec<i32> = split.train.image(0).unwrap()[..2].iter().map(|&v| i32::from(v)).collect();
    assert!((row[0] + row[1] - 240).abs() <= 1 && row[0] < 80 && row[1] > 160, "{row:?}");
    let bad = Resize { height: 0, ..resize };
    let error = load(&DataSource::Files { path: files.path().to_owned(), resize: Some(bad) }).unwrap_err();
    assert!(matches!(error, DataError::Resize { height: 0, .. }));
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let nothing = open(Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(nothing.to_string(), "/nowhere/at/all: not found");
    assert!(matches!(open(folder(&[("readme", vec![1])]).path()), Err(DataError::Unrecognised { .. })));
    let mut files = cifar10_binary();
    files.remove(2);
    let error = open(folder(&files).path()).unwrap_err();
    assert!(matches!(&error, DataError::Missing { path } if path.ends_with("data_batch_3.bin")), "{error}");
    for (files, empty) in [
        (vec![("train/x", vec![])], "train"),
        (vec![("train/a/notes.txt", vec![])], "train/a"),
        (vec![("train/a/1.png", png(2, 2, |_, _| [0; 3])), ("test/x", vec![])], "test"),
    ] {
        let error = open(folder(&files).path()).unwrap_err();
        assert!(matches!(&error, DataError::Empty { path } if path.ends_with(empty)), "{error}");
    }
    let image = png(2, 2, |_, _| [0; 3]);
    let error = open(folder(&[("train/a/1.png", image.clone()), ("test/b/1.png", image)]).path()).unwrap_err();
    assert!(matches!(error, DataError::Class { .. }), "{error}");
    let too_many = DataSource::Synthetic { train: usize::MAX, test: 1, seed: 0 };
    assert!(matches!(load(&too_many), Err(DataError::TooFew { .. })));
}

#[test]
fn damaged_headers_and_labels_are_named_with_their_offset() {
    let files = replaced(cifar10_binary(), "data_batch_4.bin", |bytes| bytes[0] = 10);
    let error = open(folder(&files).path()).unwrap_err();
    assert!(error.to_string().ends_with("data_batch_4.bin: label 10 at 0 is not below the number of classes, 10"));
    let error = open(folder(&replaced(cifar10_binary(), "data_batch_1.bin", Vec::clear)).path()).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    let error = open(folder(&replaced(mnist(), "train-labels-idx1-ubyte", |bytes| bytes[3] = 3)).path()).unwrap_err();
    assert!(matches!(error, DataError::Header { field: "magic number", got: 0x803, .. }), "{error}");
    let error = open(folder(&replaced(mnist(), "train-labels-idx1-ubyte", |bytes| bytes[9] = 77)).path()).unwrap_err();
    assert!(matches!(error, DataError::Label { at: 9, label: 77, .. }), "{error}");
    let error = open(folder(&replaced(mnist(), "train-labels-idx1-ubyte", |bytes| bytes.push(0))).path()).unwrap_err();
    assert!(matches!(error, DataError::Trailing { offset: 11, extra: 1, .. }), "{error}");
    let huge = idx(&[u32::MAX, 28, 28], &[]);
    let error = open(folder(&replaced(mnist(), "t10k-images.idx3-ubyte", |bytes| *bytes = huge)).path()).unwrap_err();
    assert!(matches!(error, DataError::Truncated { offset: 16, .. }), "{error}");
    let fewer = idx(&[2], &[0, 1]);
    let error = open(folder(&replaced(mnist(), "train-labels-idx1-ubyte", |b| *b = fewer)).path()).unwrap_err();
    assert!(matches!(error, DataError::Count { images: 3, labels: 2, .. }), "{error}");
    let files = [("train/a/1.png", b"\x89PNG\r\n\x1a\n broken".to_vec()), ("test/a/1.png", vec![])];
    let error = open(folder(&files).path()).unwrap_err();
    assert!(matches!(&error, DataError::Image { path, .. } if path.ends_with("train/a/1.png")), "{error}");
}

/// A valid tree for each format: what is damaged, and whether in an archive.
fn valid(format: usize) -> (Vec<(&'static str, Vec<u8>)>, &'static str) {
    let golden = |name: &str| {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        fs::read(path).unwrap()
    };
    match format {
        0 => (cifar10_binary(), "data_batch_2.bin"),
        1 => (mnist(), "train-images-idx3-ubyte.gz"),
        2 => (mnist(), "train-labels-idx1-ubyte"),
        3 => (vec![("train", golden("cifar100_py3.pickle")), ("test", golden("cifar100_py3.pickle"))], "train"),
        4 => {
            let image = png(8, 8, |x, y| [(x * y) as u8; 3]);
            (vec![("train/a/1.png", image.clone()), ("test/a/1.png", image)], "train/a/1.png")
        }
        5 => {
            let image = encoded(image::ImageFormat::Jpeg, 8, 8, |x, y| [(x * y) as u8; 3]);
            (vec![("train/a/1.jpg", image.clone()), ("test/a/1.jpg", image)], "train/a/1.jpg")
        }
        _ => (vec![("all.tar.gz", gzip(&tar(&cifar10_binary())))], "all.tar.gz"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn every_truncation_is_an_error(format in 0_usize..7, share in 0.0..1.0_f64) {
        let (files, victim) = valid(format);
        let path = |folder: &TempDir| if format == 6 { folder.path().join(victim) } else { folder.path().to_owned() };
        prop_assert!(open(&path(&folder(&files))).is_ok());
        let cut = replaced(files, victim, |bytes| bytes.truncate((bytes.len() as f64 * share) as usize));
        prop_assert!(open(&path(&folder(&cut))).is_err());
    }

    #[test]
    fn flipped_bytes_never_panic(format in 0_usize..7, at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let (files, victim) = valid(format);
        let damaged = replaced(files, victim, |bytes| {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        });
        let folder = folder(&damaged);
        let path = if format == 6 { folder.path().join(victim) } else { folder.path().to_owned() };
        if let Ok(split) = open(&path) {
            prop_assert_eq!(split.train.images().len(), split.train.len() * split.train.shape().len());
        }
    }
}
