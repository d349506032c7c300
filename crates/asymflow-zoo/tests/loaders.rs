//! The loaders on small files made here, on golden pickles of Python, and on damaged ones.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use asymflow_zoo::data::{Filter, Preparation, Resize, load, load_described, read_image};
use asymflow_zoo::{
    data::{DataError, DataSource, Split},
    network::Shape,
};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;

fn open(path: &Path) -> Result<Split, DataError> {
    load(&DataSource::Files { path: path.to_owned(), prepare: Preparation::default() })
}

fn resized(path: &Path, resize: Resize) -> Result<Split, DataError> {
    let prepare = Preparation { channels: None, resize: Some(resize) };
    load(&DataSource::Files { path: path.to_owned(), prepare })
}

fn about(path: &Path) -> String {
    load_described(&DataSource::Files { path: path.to_owned(), prepare: Preparation::default() }).unwrap().about
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
    let resize = Resize { height: 8, width: 12, shorter: None, filter: Filter::Nearest };
    let split = resized(mixed.path(), resize).unwrap();
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
    let resize = Resize { height: 2, width: 2, shorter: None, filter: Filter::Bilinear };
    let split = resized(files.path(), resize).unwrap();
    let row: Vec<i32> = split.train.image(0).unwrap()[..2].iter().map(|&v| i32::from(v)).collect();
    assert!((row[0] + row[1] - 240).abs() <= 1 && row[0] < 80 && row[1] > 160, "{row:?}");
    let bad = Resize { height: 0, ..resize };
    assert!(matches!(resized(files.path(), bad), Err(DataError::Preparation { .. })));
    let bad = Resize { shorter: Some(1), ..resize };
    assert!(matches!(resized(files.path(), bad), Err(DataError::Preparation { .. })));
}

#[test]
fn labels_of_idx_files_are_any_numbers() {
    let of = |label: u8| open(folder(&replaced(mnist(), "train-labels-idx1-ubyte", |b| b[9] = label)).path()).unwrap();
    assert_eq!((of(77).train.classes(), of(77).train.labels()), (78, &[9, 77, 4][..]));
    // As QMNIST has them: rows of 32-bit numbers of which the first is the class.
    let rows = [&[0, 0, 0x0c, 2, 0, 0, 0, 3, 0, 0, 0, 2][..], &[0, 0, 0, 7, 0, 0, 1, 1].repeat(3)].concat();
    let files = mnist().into_iter().map(|(name, bytes)| match name {
        "train-labels-idx1-ubyte" => ("train-labels-idx2-int", rows.clone()),
        name => (name, bytes),
    });
    let split = open(folder(&files.collect::<Vec<_>>()).path()).unwrap();
    assert_eq!((split.train.labels(), split.train.classes()), (&[7, 7, 7][..], 8));
    let prefixed: Vec<(String, Vec<u8>)> = mnist()
        .into_iter()
        .map(|(name, bytes)| (format!("emnist-letters-{}", name.replace("t10k", "test")), bytes))
        .collect();
    let prefixed: Vec<(&str, Vec<u8>)> = prefixed.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    assert_eq!(open(folder(&prefixed).path()).unwrap().test.labels(), [1, 2]);
}

#[test]
fn tables_and_arrays() {
    let row = |label: usize| {
        format!("{label},{}\n", pixels(16, label).iter().map(u8::to_string).collect::<Vec<_>>().join(","))
    };
    let names: String =
        std::iter::once("label".to_owned()).chain((0..16).map(|i| format!("pixel{i}"))).collect::<Vec<_>>().join(",");
    for head in [String::new(), format!("{names}\r\n"), format!("\u{feff}{names}\n")] {
        let table = |rows: &[usize]| (head.clone() + &rows.iter().map(|&l| row(l)).collect::<String>()).into_bytes();
        let files = folder(&[("fashion_train.csv", table(&[3, 1])), ("fashion_test.csv", table(&[0]))]);
        let split = open(files.path()).unwrap();
        assert_eq!((split.train.labels(), split.test.labels(), split.train.classes()), (&[3, 1][..], &[0][..], 4));
        assert_eq!((split.train.shape(), split.train.image(1).unwrap()), (Shape::new(1, 4, 4), &pixels(16, 1)[..]));
    }
    let files = folder(&[("train.csv", row(1).into_bytes()), ("test.csv", b"1,2,3\n".to_vec())]);
    assert!(matches!(open(files.path()), Err(DataError::Array { .. })));
    let npy = |header: &str, body: &[u8]| {
        [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), body].concat()
    };
    let images = |n: usize| {
        npy(&format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({n}, 4, 5, 3), }}"), &pixels(60 * n, 0))
    };
    let labels = |n: usize| {
        npy(&format!("{{'descr': '>i4', 'fortran_order': False, 'shape': ({n},), }}"), &[0, 0, 0, 5].repeat(n))
    };
    let files = folder(&[
        ("x_train.npy", images(2)),
        ("y_train.npy", labels(2)),
        ("x_test.npy", images(1)),
        ("y_test.npy", labels(1)),
    ]);
    let split = open(files.path()).unwrap();
    assert_eq!((split.train.shape(), split.train.labels()), (Shape::new(3, 4, 5), &[5, 5][..]));
    assert_eq!(split.train.image(0).unwrap()[20], pixels(60, 0)[1], "channels last become channels first");
    let files = folder(&[
        ("x_train.npy", images(2)),
        ("y_train.npy", labels(1)),
        ("x_test.npy", images(1)),
        ("y_test.npy", labels(1)),
    ]);
    assert!(matches!(open(files.path()), Err(DataError::Count { images: 2, labels: 1, .. })));
}

fn foreign(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/foreign").join(name)
}

#[test]
fn archives_of_arrays_by_numpy() {
    let split = open(&foreign("keras.npz")).unwrap();
    assert_eq!(
        (split.train.shape(), split.train.labels(), split.train.classes()),
        (Shape::new(1, 20, 20), &[2, 0, 1][..], 3)
    );
    let floats = open(&foreign("floats.npz")).unwrap();
    assert_eq!(floats.train, split.train, "fractions in column-major order are the same bytes");
    let medical = open(folder(&[("x.npz", fs::read(foreign("medmnist.npz")).unwrap())]).path()).unwrap();
    assert_eq!(
        (medical.train.shape(), medical.train.labels(), medical.test.labels()),
        (Shape::new(3, 28, 28), &[1, 0][..], &[1][..])
    );
    // Red of row 1, column 2, and its green.
    assert_eq!((medical.train.images()[30], medical.train.images()[784 + 30]), (13, 245));
}

#[test]
fn cifar_however_it_was_pickled() {
    let golden = fs::read_dir(foreign("")).unwrap().map(|entry| entry.unwrap().path());
    let pickles: Vec<PathBuf> = golden.filter(|path| path.extension().is_some_and(|e| e == "pickle")).collect();
    assert_eq!(pickles.len(), 14);
    let names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    for path in pickles {
        let file = fs::read(&path).unwrap();
        let files: Vec<_> = names.into_iter().map(|name| (name, file.clone())).collect();
        let split = open(folder(&files).path()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(split.test.labels(), [6, 9], "{}", path.display());
        assert_eq!(split.test.image(1).unwrap(), pixels(3072, 1), "{}", path.display());
    }
}

#[derive(serde::Deserialize)]
struct Picture {
    file: String,
    what: String,
    reference: String,
    shape: [usize; 3],
    tolerance: u8,
    resize: Option<Resize>,
}

#[test]
fn pictures_of_other_programs_are_what_pillow_and_torchvision_see() {
    let list: Vec<Picture> = serde_json::from_slice(&fs::read(foreign("pictures.json")).unwrap()).unwrap();
    assert_eq!(list.len(), 41);
    let mut wrong = Vec::new();
    for Picture { file, what, reference, shape: [channels, height, width], tolerance, resize } in list {
        let shape = Shape::new(channels, height, width);
        let same = Some(Resize { height, width, shorter: None, filter: Filter::Nearest });
        let got = read_image(&foreign(&file), shape, resize.or(same)).unwrap();
        let expected = read_image(&foreign(&reference), shape, same).unwrap();
        let difference = got.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if difference > tolerance {
            wrong.push(format!("{what}: differs by {difference}"));
        }
        // The same code makes data sets.
        let bytes = fs::read(foreign(&file)).unwrap();
        let files = folder(&[("train/a/1", bytes.clone()), ("test/a/1", bytes)]);
        let prepare = Preparation { channels: Some(channels), resize };
        let split = load(&DataSource::Files { path: files.path().to_owned(), prepare }).unwrap();
        assert_eq!(split.train.images(), got, "{what}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_left_out_is_counted_and_no_class_vanishes() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let image = png(2, 2, |_, _| [9; 3]);
    let files = folder(&[
        ("train/cat/deep/er/1.png", image.clone()),
        ("train/cat/2.webp", encoded(image::ImageFormat::WebP, 2, 2, |_, _| [9; 3])),
        ("train/cat/noextension", encoded(image::ImageFormat::Bmp, 2, 2, |_, _| [9; 3])),
        ("train/cat/notes.txt", b"no image".to_vec()),
        ("train/cat/Thumbs.db", vec![1]),
        ("train/cat/._1.png", vec![1]),
        ("train/.DS_Store", vec![1]),
        ("train/__MACOSX/cat/1.png", image.clone()),
        ("train/@eaDir/x.png", image.clone()),
        ("train/.ipynb_checkpoints/1.png", image.clone()),
        ("train/dog/1.tiff", encoded(image::ImageFormat::Tiff, 2, 2, |_, _| [9; 3])),
        ("valid/cat/1.gif", encoded(image::ImageFormat::Gif, 2, 2, |_, _| [9; 3])),
    ]);
    let strange = files.path().join("train").join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("1.png"), &image).unwrap();
    symlink(files.path().join("train/dog"), files.path().join("train/hound")).unwrap();
    symlink("/nowhere", files.path().join("train/cat/gone")).unwrap();
    let split = open(files.path()).unwrap();
    assert_eq!(split.train.class_names(), ["caf\\xE9", "cat", "dog", "hound"]);
    assert_eq!(split.train.labels(), [0, 1, 1, 1, 2, 3]);
    let about = about(files.path());
    for part in [
        "4 classes",
        "no test image of \"caf",
        "1 .txt",
        "1 Thumbs.db",
        "1 ._*",
        "1 .DS_Store",
        "1 __MACOSX",
        "1 broken links",
    ] {
        assert!(about.contains(part), "{part} is not in {about}");
    }
    // A ring of links is an error and no endless walk.
    symlink(files.path().join("train/cat"), files.path().join("train/cat/deep/ring")).unwrap();
    assert!(matches!(open(files.path()), Err(DataError::TooLarge { .. })));
}

#[test]
fn what_lies_there_instead_is_said() {
    let image = png(2, 2, |_, _| [9; 3]);
    let says = |files: &[(&str, Vec<u8>)], words: &[&str]| {
        let error = open(folder(files).path()).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in {error}"));
    };
    let at = |name: &'static str, bytes: &[u8]| {
        vec![("train/a/1.png", image.clone()), ("train/a/2.jpg", bytes.to_vec()), (name, image.clone())]
    };
    says(&at("test/a/1.png", b"<!DOCTYPE html><html>"), &["2.jpg", "HTML"]);
    says(&at("test/a/1.png", b"version https://git-lfs.github.com/spec/v1"), &["2.jpg", "git lfs pull"]);
    says(&at("test/a/1.png", b"\0\0\0\x18ftypheic\0\0"), &["2.jpg", "HEIC"]);
    says(&at("test/a/1.png", b""), &["2.jpg", "empty"]);
    says(&[("train/cat.1.png", image.clone()), ("test/1.png", image.clone())], &["1 images and no folder of a class"]);
    says(
        &[("train/a/1.png", image.clone()), ("test/1.png", image.clone())],
        &["test: 1 images and no folder of a class"],
    );
    says(&[("train/a/1.png", image.clone())], &["no test set"]);
    let both = [cifar10_binary(), vec![("train.bin", vec![0; 3074]), ("test.bin", vec![0; 3074])]].concat();
    says(&both, &["CIFAR-10, binary", "CIFAR-100, binary"]);
    says(&[("cats/1.png", image.clone()), ("dogs/1.png", image.clone())], &["there are cats, dogs"]);
}

#[test]
fn tiny_imagenet_is_read_as_it_is_published() {
    let image = |v: u8| png(4, 4, move |_, _| [v; 3]);
    let files = folder(&[
        ("tiny/wnids.txt", b"n02\nn01\n".to_vec()),
        ("tiny/train/n01/images/n01_0.JPEG", encoded(image::ImageFormat::Jpeg, 4, 4, |_, _| [40; 3])),
        ("tiny/train/n01/n01_boxes.txt", b"n01_0.JPEG 0 0 3 3\n".to_vec()),
        ("tiny/train/n02/images/n02_0.JPEG", image(80)),
        ("tiny/val/images/val_0.JPEG", image(81)),
        ("tiny/val/images/val_1.JPEG", image(41)),
        ("tiny/val/val_annotations.txt", b"val_0.JPEG\tn02\t0\t0\t3\t3\nval_1.JPEG\tn01\t0\t0\t3\t3\n".to_vec()),
        ("tiny/test/images/test_0.JPEG", image(1)),
    ]);
    let split = open(files.path()).unwrap();
    assert_eq!((split.train.labels(), split.test.labels()), (&[0, 1][..], &[1, 0][..]));
    assert_eq!(split.test.image(0).unwrap()[0], 81);
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
        (vec![("train/a/1.png", png(2, 2, |_, _| [0; 3])), ("train/b/x.txt", vec![]), ("test/x", vec![])], "train/b"),
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
