//! Data sets of labelled 8-bit images: loading, the built-in synthetic set, batches.

mod batches;
mod cifar;
mod dataset;
mod error;
mod files;
mod folder;
mod idx;
mod pickle;
mod resize;
mod synthetic;

use std::path::{Path, PathBuf};

pub use batches::{Augment, Batch, Batches, Loader, Normalization, epoch_order};
pub use dataset::{Dataset, Split};
pub use error::DataError;
pub use folder::{read_image, write_png};
pub use resize::{Filter, MAX_SIDE, Resize};
pub use synthetic::{SYNTHETIC_CLASSES, synthetic};

use crate::data::files::Files;

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
