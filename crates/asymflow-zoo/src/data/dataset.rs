//! Labelled images in memory.

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::data::{DataError, Preparation};
use crate::shape::Shape;

/// Labelled images of one shape, N×C×H×W bytes, with labels below the number of classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pub(super) images: Vec<u8>,
    pub(super) labels: Vec<u32>,
    pub(super) shape: Shape,
    pub(super) class_names: Vec<String>,
}

/// A training and a test set of one shape and the same classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Training set.
    pub train: Dataset,
    /// Test set.
    pub test: Dataset,
}

/// Most classes of labels that are plain numbers.
const MAX_CLASSES: i64 = 65_536;

impl Split {
    /// Images and numbers of training and test set. The classes are the numbers from 0 to the largest of both.
    pub(super) fn labelled(train: Numbered, test: Numbered, path: &Path) -> Result<Self, DataError> {
        let largest = train.2.iter().chain(&test.2).copied().max().unwrap_or_default();
        let classes = largest.clamp(0, MAX_CLASSES - 1) as usize + 1;
        let part = |(shape, images, labels): Numbered| {
            let count = images.len() / shape.len().max(1);
            if labels.len() != count {
                return Err(DataError::Count { path: path.to_owned(), images: count, labels: labels.len() });
            }
            if let Some(at) = labels.iter().position(|label| !(0..classes as i64).contains(label)) {
                return Err(DataError::Label { path: path.to_owned(), at, label: labels[at], classes });
            }
            let labels = labels.into_iter().map(|label| label as u32).collect();
            Dataset::new(images, labels, shape, (0..classes).map(|class| class.to_string()).collect())
        };
        Ok(Self { train: part(train)?, test: part(test)? })
    }
}

/// Shape, images N×C×H×W, and a number for each.
pub(super) type Numbered = (Shape, Vec<u8>, Vec<i64>);

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

    /// The same images, prepared.
    pub(super) fn prepared(self, prepare: Preparation) -> Self {
        let shape = prepare.shape(self.shape);
        if shape == self.shape {
            return self;
        }
        let images = self
            .images
            .par_chunks_exact(self.shape.len())
            .flat_map_iter(|image| prepare.apply(image.to_vec(), self.shape))
            .collect();
        Self { images, shape, ..self }
    }

    /// Names of the classes of which there is no image.
    pub(super) fn without_images(&self) -> impl Iterator<Item = &str> {
        let mut there = vec![false; self.classes()];
        self.labels.iter().for_each(|&label| there[label as usize] = true);
        self.class_names.iter().zip(there).filter(|(_, there)| !there).map(|(name, _)| name.as_str())
    }
}
