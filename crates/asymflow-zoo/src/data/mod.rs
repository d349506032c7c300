//! Data sets of labelled 8-bit images: loading, the built-in synthetic set, batches.

mod array;
mod batches;
mod cifar;
mod dataset;
mod error;
mod files;
mod folder;
mod idx;
mod left_out;
mod pickle;
mod picture;
mod resize;
mod synthetic;
mod tables;

use std::path::{Path, PathBuf};

pub use batches::{Augment, Batch, Batches, Loader, Normalization, epoch_order};
pub use dataset::{Dataset, Split};
pub use error::DataError;
pub use left_out::LeftOut;
pub use picture::{read_image, write_png};
pub use resize::{Filter, MAX_SIDE, Preparation, Resize};
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
    /// A folder or an archive, whose format is recognised by the names in it.
    Files {
        /// The folder, or a tar archive of CIFAR or an `.npz` archive.
        path: PathBuf,
        /// What is done to every image.
        prepare: Preparation,
    },
}

/// A data set, and what it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The data.
    pub split: Split,
    /// Which set it is, its classes and shape, and what was left out, in one line.
    pub about: String,
}

/// Most images in each part of a synthetic set that [`load`] makes.
pub const MAX_SYNTHETIC: usize = 1_000_000;

/// Names of classes or sets that a line shows before it counts the rest.
const SHOWN: usize = 4;

/// Loads a data set.
///
/// # Errors
/// Anything that is missing, damaged, inconsistent or beyond the limits, with its path and offset; a folder with several sets.
pub fn load(source: &DataSource) -> Result<Split, DataError> {
    load_described(source).map(|loaded| loaded.split)
}

/// As [`load`], and says what was read.
///
/// # Errors
/// As there.
pub fn load_described(source: &DataSource) -> Result<Loaded, DataError> {
    let (split, name, left_out) = match source {
        DataSource::Synthetic { train, test, seed } => {
            let wanted = *train.max(test);
            if wanted > MAX_SYNTHETIC {
                return Err(DataError::TooFew { wanted, available: MAX_SYNTHETIC });
            }
            (synthetic(*train, *test, *seed), "built-in figures".to_owned(), LeftOut::default())
        }
        DataSource::Files { path, prepare } => {
            if !prepare.is_valid() {
                return Err(DataError::Preparation { prepare: *prepare, limit: MAX_SIDE });
            }
            load_files(path, *prepare)?
        }
    };
    let (train, test) = (split.train.shape(), split.test.shape());
    if train != test {
        return Err(DataError::SplitShapes { train, test });
    }
    let about = format!("{name}: {} classes, {train}{}{left_out}", split.train.classes(), absent(&split));
    Ok(Loaded { split, about })
}

/// The classes of which there are no images.
fn absent(split: &Split) -> String {
    let list = |part: &str, data: &Dataset| {
        let names: Vec<&str> = data.without_images().collect();
        let shown = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if names.is_empty() || data.is_empty() { String::new() } else { format!("; no {part} image of {shown}{more}") }
    };
    list("training", &split.train) + &list("test", &split.test)
}

/// A set that lies in a folder.
enum Found {
    Cifar(&'static cifar::Form),
    Idx(idx::Names),
    Arrays([String; 4]),
    Npz(String),
    Tables([String; 2]),
    Images(PathBuf),
}

impl Found {
    fn name(&self) -> String {
        match self {
            Self::Cifar(form) => form.name.to_owned(),
            Self::Idx(names) => format!("idx files {}", names.prefix).trim_end().to_owned(),
            Self::Arrays(names) => format!("numpy arrays {}, …", names[0]),
            Self::Npz(name) => format!("numpy archive {name}"),
            Self::Tables(names) => format!("tables {} and {}", names[0], names[1]),
            Self::Images(folder) => format!("image folders {}", folder.display()),
        }
    }

    /// Every set in one folder.
    fn all_in(folder: &Path) -> Result<Vec<(Self, Files)>, DataError> {
        let files = Files::in_folder(folder)?;
        let npz = files.names().filter(|name| name.ends_with(".npz")).map(|name| Self::Npz(name.to_owned()));
        let mut found: Vec<Self> = cifar::forms_in(&files).map(Self::Cifar).chain(npz).collect();
        found.extend(idx::sets_in(&files).into_iter().map(Self::Idx));
        found.extend(tables::arrays_in(&files).map(Self::Arrays));
        if let Some(names) = tables::csv_in(&files)
            && tables::is_table(&String::from_utf8_lossy(&files.head(&names[0], 1 << 20)?))
        {
            found.push(Self::Tables(names));
        }
        found.extend(folder::training_folder(folder).map(Self::Images));
        found.into_iter().map(|found| Ok((found, Files::in_folder(folder)?))).collect()
    }

    fn load(&self, files: &mut Files, prepare: Preparation) -> Result<(Split, LeftOut), DataError> {
        let split = match self {
            Self::Images(folder) => return folder::load(folder, prepare),
            Self::Cifar(form) => cifar::load(form, files),
            Self::Idx(names) => idx::load(files, names),
            Self::Arrays(names) => tables::load_arrays(files, names),
            Self::Npz(name) => tables::load_npz(&files.take(name)?),
            Self::Tables(names) => tables::load_csv(files, names),
        }?;
        Ok((prepared(split, prepare), LeftOut::default()))
    }
}

fn prepared(Split { train, test }: Split, prepare: Preparation) -> Split {
    Split { train: train.prepared(prepare), test: test.prepared(prepare) }
}

fn load_files(path: &Path, prepare: Preparation) -> Result<(Split, String, LeftOut), DataError> {
    let loaded = |found: &Found, files: &mut Files| {
        found.load(files, prepare).map(|(split, left_out)| (split, found.name(), left_out))
    };
    let unrecognised = |found: String| DataError::Unrecognised { path: path.to_owned(), found };
    if !path.is_dir() {
        if files::head(path)?.starts_with(b"PK") {
            let split = prepared(tables::load_npz(&files::read_file(path)?)?, prepare);
            return Ok((split, Found::Npz(files::name_of(path)).name(), LeftOut::default()));
        }
        let mut files = Files::in_archive(path, cifar::is_wanted)?;
        let form = cifar::forms_in(&files).next();
        let form = form.ok_or_else(|| unrecognised(": archives are read of CIFAR alone; unpack others".to_owned()))?;
        return loaded(&Found::Cifar(form), &mut files);
    }
    // Published archives unpack into a folder, or into one within one.
    let mut folders = vec![path.to_owned()];
    for _ in 0..3 {
        let mut sets = Vec::new();
        let mut deeper = Vec::new();
        for folder in &folders {
            sets.extend(Found::all_in(folder)?);
            deeper.extend(files::entries(folder)?.into_iter().filter(|path| path.is_dir() && !files::is_clutter(path)));
        }
        if let [(found, files)] = &mut sets[..] {
            return loaded(found, files);
        }
        if !sets.is_empty() {
            let sets = sets.iter().map(|(found, files)| format!("{} in {}", found.name(), files.origin.display()));
            return Err(DataError::Several { path: path.to_owned(), sets: sets.collect() });
        }
        folders = deeper;
    }
    Err(unrecognised(contents(path)?))
}

/// What a folder holds, for a message.
fn contents(path: &Path) -> Result<String, DataError> {
    let entries = files::entries(path)?;
    let names: Vec<String> = entries.iter().take(SHOWN).map(|path| files::name_of(path)).collect();
    Ok(match entries.len() {
        0 => ": it is empty".to_owned(),
        len if len > names.len() => format!(": there are {} and {} more", names.join(", "), len - names.len()),
        _ => format!(": there are {}", names.join(", ")),
    })
}
