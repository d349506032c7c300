//! Image folders as torchvision reads them: `train/<class>/…/image` and a test set beside it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::picture::{EXTENSIONS, decode, is_image};
use crate::data::{DataError, Dataset, LeftOut, Preparation, Split, files};
use crate::shape::Shape;

/// Most bytes of decoded images in one part of a split.
const LIMIT_BYTES: usize = 16 << 30;
/// Deepest nest of folders within a class.
const MAX_DEPTH: usize = 32;
/// What the folder of the test set may be called; the first that has labels is taken.
const TEST_NAMES: [&str; 6] = ["test", "val", "valid", "validation", "testing", "eval"];
const TRAIN_NAMES: [&str; 2] = ["train", "training"];

/// The folder of the training set.
pub(super) fn training_folder(folder: &Path) -> Option<PathBuf> {
    TRAIN_NAMES.iter().map(|name| folder.join(name)).find(|folder| folder.is_dir())
}

pub(super) fn load(train_folder: &Path, prepare: Preparation) -> Result<(Split, LeftOut), DataError> {
    let mut left_out = LeftOut::default();
    let classes = subfolders(train_folder, &mut left_out)?;
    let names: Vec<&OsStr> = classes.iter().filter_map(|path| path.file_name()).collect();
    let mut train = Listing::default();
    for (label, path) in classes.iter().enumerate() {
        train.add(path, label as u32, &mut left_out)?;
    }
    if names.is_empty() {
        let images = images_in(train_folder, &mut LeftOut::default())?.len();
        return Err(match images {
            0 => DataError::Empty { path: train_folder.to_owned() },
            images => DataError::Flat { path: train_folder.to_owned(), images },
        });
    }
    left_out.beside_classes(train_folder)?;
    let test = test_listing(train_folder.parent().unwrap_or(train_folder), &names, &mut left_out)?;
    let class_names: Vec<String> = classes.iter().map(|path| files::name_of(path)).collect();
    let shape = train.shape(prepare)?;
    let train = train.load(train_folder, shape, &class_names, prepare)?;
    let test = test.load(train_folder, shape, &class_names, prepare)?;
    Ok((Split { train, test }, left_out))
}

impl LeftOut {
    /// Counts the files that lie beside the folders of the classes.
    fn beside_classes(&mut self, folder: &Path) -> Result<(), DataError> {
        files::entries(folder)?.iter().filter(|path| !path.is_dir()).for_each(|path| self.count(path));
        Ok(())
    }
}

fn subfolders(folder: &Path, left_out: &mut LeftOut) -> Result<Vec<PathBuf>, DataError> {
    let folders = files::entries(folder)?.into_iter().filter(|path| path.is_dir());
    let (clutter, classes): (Vec<_>, Vec<_>) = folders.partition(|path| files::is_clutter(path));
    clutter.iter().for_each(|path| left_out.count(path));
    Ok(classes)
}

/// The test set: folders of classes of the training set, or, as Tiny-ImageNet has it, images with a list of their classes.
fn test_listing(folder: &Path, names: &[&OsStr], left_out: &mut LeftOut) -> Result<Listing, DataError> {
    let there: Vec<PathBuf> = TEST_NAMES.iter().map(|name| folder.join(name)).filter(|path| path.is_dir()).collect();
    let Some(first) = there.first() else { return Err(DataError::NoTest { path: folder.to_owned() }) };
    for test in &there {
        let list = test.join("val_annotations.txt");
        if list.is_file() {
            return annotated(test, &list, names);
        }
        let classes = subfolders(test, &mut LeftOut::default())?;
        let label = |path: &PathBuf| names.iter().position(|name| Some(*name) == path.file_name());
        if !classes.iter().any(|path| label(path).is_some()) {
            continue;
        }
        let mut listing = Listing::default();
        for path in subfolders(test, left_out)? {
            let Some(label) = label(&path) else { return Err(DataError::Class { path }) };
            listing.add(&path, label as u32, left_out)?;
        }
        left_out.beside_classes(test)?;
        return Ok(listing);
    }
    let mut unknown = subfolders(first, &mut LeftOut::default())?.into_iter();
    let images = images_in(first, &mut LeftOut::default())?.len();
    Err(match (unknown.next(), images) {
        (_, 0) => DataError::Empty { path: first.clone() },
        (Some(path), _) => DataError::Class { path },
        (None, images) => DataError::Flat { path: first.clone(), images },
    })
}

/// `val/images/*` with lines `name<tab>class<tab>…`.
fn annotated(folder: &Path, list: &Path, names: &[&OsStr]) -> Result<Listing, DataError> {
    let file = files::read_file(list)?;
    let text = String::from_utf8_lossy(&file.bytes);
    let mut listing = Listing::default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut fields = line.split('\t');
        let (name, class) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let label = names.iter().position(|known| known.to_str() == Some(class));
        let Some(label) = label else { return Err(DataError::Class { path: list.join(class) }) };
        // The name of a file and not a way out of the folder.
        let name = Path::new(name).file_name().unwrap_or_default();
        listing.paths.push(folder.join("images").join(name));
        listing.labels.push(label as u32);
    }
    Ok(listing)
}

/// The images below a folder, folder by folder and name by name.
fn images_in(folder: &Path, left_out: &mut LeftOut) -> Result<Vec<PathBuf>, DataError> {
    let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let mut open = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        if depth > MAX_DEPTH {
            return Err(DataError::TooLarge {
                path: folder,
                limit: format!("{MAX_DEPTH} folders deep, or links in a ring"),
            });
        }
        let mut images = Vec::new();
        for path in files::entries(&folder)? {
            if files::is_clutter(&path) {
                left_out.count(&path);
            } else if path.is_dir() {
                open.push((path, depth + 1));
            } else if claims_image(&path) && !is_device(&path) || path.is_file() && is_image(&files::head(&path)?) {
                images.push(path);
            } else {
                left_out.count(&path);
            }
        }
        found.insert(folder, images);
    }
    // As paths compare, `a-b` comes before `a/b` no more than for Python, which compares text.
    let mut folders: Vec<(PathBuf, Vec<PathBuf>)> = found.into_iter().collect();
    folders.sort_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
    Ok(folders.into_iter().flat_map(|(_, images)| images).collect())
}

fn claims_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}

/// A pipe or socket is never waited for; a link that leads nowhere is no device, and is reported when it is read.
fn is_device(path: &Path) -> bool {
    path.exists() && !path.is_file()
}

/// Images and their labels, not yet read.
#[derive(Default)]
struct Listing {
    paths: Vec<PathBuf>,
    labels: Vec<u32>,
}

impl Listing {
    /// All images of a class. There must be one: a class never vanishes.
    fn add(&mut self, folder: &Path, label: u32, left_out: &mut LeftOut) -> Result<(), DataError> {
        let images = images_in(folder, left_out)?;
        if images.is_empty() {
            return Err(DataError::Empty { path: folder.to_owned() });
        }
        self.paths.extend(images);
        self.labels.resize(self.paths.len(), label);
        Ok(())
    }

    /// The shape of all images: that of the first.
    fn shape(&self, prepare: Preparation) -> Result<Shape, DataError> {
        let first = self.paths.first().ok_or_else(|| DataError::Empty { path: PathBuf::new() })?;
        Ok(decode(&files::read_file(first)?, prepare)?.0)
    }

    fn load(self, folder: &Path, shape: Shape, names: &[String], prepare: Preparation) -> Result<Dataset, DataError> {
        let bytes = self.paths.len().saturating_mul(shape.len());
        if bytes > LIMIT_BYTES {
            let limit = format!("{LIMIT_BYTES} bytes of pixels");
            return Err(DataError::TooLarge { path: folder.to_owned(), limit });
        }
        let mut images = vec![0; bytes];
        images.par_chunks_exact_mut(shape.len()).zip(&self.paths).try_for_each(|(image, path)| {
            let (got, pixels) = decode(&files::read_file(path)?, prepare)?;
            if got != shape {
                return Err(DataError::MixedSizes { path: path.clone(), expected: shape, got });
            }
            image.copy_from_slice(&pixels);
            Ok(())
        })?;
        Dataset::new(images, self.labels, shape, names.to_vec())
    }
}
