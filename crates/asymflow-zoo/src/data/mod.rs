//! Data sets of labelled 8-bit images: loading, the built-in synthetic set, batches.

mod batches;
mod cifar;
mod error;
mod files;
mod folder;
mod idx;
mod pickle;
mod synthetic;

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

pub use batches::{Augment, Batch, Batches, Loader, Normalization, epoch_order};
pub use error::DataError;
pub use folder::{read_image, write_png};
pub use synthetic::{SYNTHETIC_CLASSES, synthetic};

use crate::data::files::Files;
use crate::shape::Shape;

/// Labelled images of one shape, N×C×H×W bytes, with labels below the number of classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    images: Vec<u8>,
    labels: Vec<u32>,
    shape: Shape,
    class_names: Vec<String>,
}

/// A training and a test set of one shape and the same classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Training set.
    pub train: Dataset,
    /// Test set.
    pub test: Dataset,
}

/// Where data come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// The built-in set ([`synthetic`]), at most [`MAX_SYNTHETIC`] images in each part.
    Synthetic {
        /// Training images.
        train: usize,
        /// Test images.
        test: usize,
        /// Seed of all of them.
        seed: u64,
    },
    /// A folder or a tar archive, whose format is recognised by the names in it.
    Files {
        /// The folder or archive.
        path: PathBuf,
        /// Resizes every image.
        resize: Option<Resize>,
    },
}

/// Stretches or shrinks images to one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Rows, from 1 to [`MAX_SIDE`].
    pub height: usize,
    /// Columns, from 1 to [`MAX_SIDE`].
    pub width: usize,
    /// How pixels in between are made.
    pub filter: Filter,
}

/// How [`Resize`] makes pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Takes the nearest pixel.
    Nearest,
    /// Interpolates linearly; when shrinking, over a window that grows with the factor.
    Bilinear,
}

/// Longest side of an image, in pixels.
pub const MAX_SIDE: usize = 8192;
/// Most images in each part of a synthetic set that [`load`] makes.
pub const MAX_SYNTHETIC: usize = 1_000_000;

/// Subfolders in which the published archives unpack.
const SUBFOLDERS: [&str; 6] =
    ["cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python", "MNIST/raw", "raw"];

/// Loads a data set.
///
/// # Errors
/// Anything that is missing, damaged, inconsistent or beyond the limits, with its path and offset.
pub fn load(source: &DataSource) -> Result<Split, DataError> {
    match source {
        DataSource::Synthetic { train, test, seed } => {
            let wanted = *train.max(test);
            if wanted > MAX_SYNTHETIC {
                return Err(DataError::TooFew { wanted, available: MAX_SYNTHETIC });
            }
            Ok(synthetic(*train, *test, *seed))
        }
        DataSource::Files { path, resize } => {
            if let Some(Resize { height, width, .. }) = *resize
                && ![height, width].iter().all(|side| (1..=MAX_SIDE).contains(side))
            {
                return Err(DataError::Resize { height, width, limit: MAX_SIDE });
            }
            let split = load_files(path, *resize)?;
            if split.train.shape != split.test.shape {
                return Err(DataError::SplitShapes { train: split.train.shape, test: split.test.shape });
            }
            Ok(split)
        }
    }
}

fn load_files(path: &Path, resize: Option<Resize>) -> Result<Split, DataError> {
    let resized = |split: Split| match resize {
        Some(resize) => Split { train: split.train.resized(resize), test: split.test.resized(resize) },
        None => split,
    };
    if !path.is_dir() {
        let mut files = Files::in_archive(path, cifar::is_wanted)?;
        let form = cifar::form_of(&files).ok_or_else(|| DataError::Unrecognised { path: path.to_owned() })?;
        return cifar::load(form, &mut files).map(resized);
    }
    for folder in [path.to_owned()].into_iter().chain(SUBFOLDERS.iter().map(|sub| path.join(sub))) {
        if !folder.is_dir() {
            continue;
        }
        let mut files = Files::in_folder(&folder)?;
        if let Some(form) = cifar::form_of(&files) {
            return cifar::load(form, &mut files).map(resized);
        }
        if idx::is_in(&files) {
            return idx::load(&mut files).map(resized);
        }
        if folder::is_in(&folder) {
            return folder::load(&folder, resize);
        }
    }
    Err(DataError::Unrecognised { path: path.to_owned() })
}

impl Dataset {
    /// A data set of `labels.len()` images of `shape`, one class for each name.
    ///
    /// # Errors
    /// Lengths that do not fit and labels that are not below the number of class names.
    pub fn new(images: Vec<u8>, labels: Vec<u32>, shape: Shape, class_names: Vec<String>) -> Result<Self, DataError> {
        if shape.is_empty() || labels.len().checked_mul(shape.len()) != Some(images.len()) {
            return Err(DataError::Length { bytes: images.len(), labels: labels.len(), shape });
        }
        let classes = class_names.len();
        if let Some(at) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(DataError::Label { path: PathBuf::new(), at, label: i64::from(labels[at]), classes });
        }
        Ok(Self { images, labels, shape, class_names })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shape of one image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// Name of each class.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Label of each sample, below [`Dataset::classes`].
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// All images, N×C×H×W.
    pub fn images(&self) -> &[u8] {
        &self.images
    }

    /// Image `index`, C×H×W; `None` past the end.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        let start = index.checked_mul(self.shape.len())?;
        self.images.get(start..start + self.shape.len())
    }

    /// `n` samples drawn without replacement, every class as often as the others as long as it lasts.
    /// Deterministic in `seed`; the samples keep their order.
    ///
    /// # Errors
    /// `n` is larger than the data set.
    pub fn subset(&self, n: usize, seed: u64) -> Result<Self, DataError> {
        if n > self.len() {
            return Err(DataError::TooFew { wanted: n, available: self.len() });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut by_class = vec![Vec::new(); self.classes()];
        for (index, &label) in self.labels.iter().enumerate() {
            by_class[label as usize].push(index);
        }
        by_class.iter_mut().for_each(|members| members.shuffle(&mut rng));
        let mut chosen = Vec::with_capacity(n);
        while chosen.len() < n {
            // The classes that get the last, incomplete round are drawn as well.
            by_class.shuffle(&mut rng);
            let missing = n - chosen.len();
            chosen.extend(by_class.iter_mut().filter_map(Vec::pop).take(missing));
        }
        chosen.sort_unstable();
        let images = chosen.iter().filter_map(|&index| self.image(index)).flatten().copied().collect();
        let labels = chosen.iter().map(|&index| self.labels[index]).collect();
        Ok(Self { images, labels, shape: self.shape, class_names: self.class_names.clone() })
    }

    /// The same images in another size.
    fn resized(self, resize: Resize) -> Self {
        let shape = resize.shape(self.shape);
        let images = self
            .images
            .par_chunks_exact(self.shape.len())
            .flat_map_iter(|image| resize.apply(image, self.shape))
            .collect();
        Self { images, shape, ..self }
    }
}
