//! Batches: shuffling, normalisation and augmentation, all deterministic in seed, epoch and sample.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, MAX_SIDE};
use crate::shape::Shape;

/// Mean and standard deviation of each channel, of pixels scaled to [0, 1].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, positive.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Value of each pixel byte, by channel. A channel that is not named is only scaled to [0, 1].
    pub fn values(&self, channels: usize) -> Vec<[f32; 256]> {
        let of = |channel: usize| {
            let mean = self.mean.get(channel).copied().unwrap_or(0.0);
            let std = self.std.get(channel).copied().unwrap_or(1.0);
            std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std)
        };
        (0..channels).map(of).collect()
    }

    /// Statistics of `data`, usually the training set. A constant channel gets standard deviation 1.
    pub fn of(data: &Dataset) -> Self {
        let shape = data.shape();
        let mut counts = vec![[0_u64; 256]; shape.channels];
        for (plane, pixels) in data.images().chunks_exact(shape.pixels()).enumerate() {
            let histogram = &mut counts[plane % shape.channels];
            pixels.iter().for_each(|&pixel| histogram[usize::from(pixel)] += 1);
        }
        let (mean, std) = counts.iter().map(mean_and_std).unzip();
        Self { mean, std }
    }
}

fn mean_and_std(histogram: &[u64; 256]) -> (f32, f32) {
    let total = histogram.iter().sum::<u64>().max(1) as f64;
    let moment = |f: &dyn Fn(f64) -> f64| -> f64 {
        histogram.iter().enumerate().map(|(pixel, &count)| count as f64 * f(pixel as f64 / 255.0)).sum::<f64>() / total
    };
    let mean = moment(&|x| x);
    let std = moment(&|x| (x - mean).powi(2)).sqrt();
    (mean as f32, if std > 0.0 { std as f32 } else { 1.0 })
}

/// Random changes to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Crop at random after padding every side by so many black pixels, at most [`MAX_SIDE`]; 0 for none.
    pub crop_padding: usize,
    /// Mirror left to right with probability one half.
    pub flip: bool,
}

impl Augment {
    /// None at all, as in evaluation.
    pub const NONE: Self = Self { crop_padding: 0, flip: false };
    /// The usual one for CIFAR: crop with padding 4, and flip (He et al., 2016, section 4.2).
    pub const STANDARD: Self = Self { crop_padding: 4, flip: true };
}

/// Samples ready for a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Normalised images, N×C×H×W.
    pub images: Vec<f32>,
    /// Labels.
    pub labels: Vec<u32>,
    /// Where the samples stand in the data set.
    pub indices: Vec<u32>,
}

/// Order in which epoch `epoch` visits `len` samples: a shuffle deterministic in `seed` and `epoch`.
pub fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len).map(|index| index as u32).collect();
    order.shuffle(&mut rng_of(seed, epoch, u64::MAX));
    order
}

/// Generator of one sample in one epoch: independent of batch size and of the order of visits.
fn rng_of(seed: u64, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, value) in key.chunks_exact_mut(8).zip([seed, epoch, index]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Makes batches of a data set.
#[derive(Clone, Debug)]
pub struct Loader<'a> {
    data: &'a Dataset,
    /// Value of each pixel byte, by channel.
    values: Vec<[f32; 256]>,
    augment: Augment,
    seed: u64,
}

impl<'a> Loader<'a> {
    /// A loader of `data` whose shuffles and augmentation are deterministic in `seed`.
    /// Channels that `normalization` does not name are only scaled to [0, 1].
    pub fn new(data: &'a Dataset, normalization: &Normalization, augment: Augment, seed: u64) -> Self {
        Self { data, values: normalization.values(data.shape().channels), augment, seed }
    }

    /// How images are augmented.
    pub const fn augment(&self) -> Augment {
        self.augment
    }

    /// Seed of shuffles and augmentation.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Batches of `batch` samples (the last may be smaller) in the shuffled order of `epoch`, augmented.
    pub fn epoch(&self, epoch: u64, batch: usize) -> Batches<'_, 'a> {
        let order = epoch_order(self.seed, epoch, self.data.len());
        Batches { loader: self, order, epoch: Some(epoch), batch: batch.max(1), next: 0 }
    }

    /// Batches of `batch` samples (the last may be smaller) in the order of the data set, not augmented.
    pub fn in_order(&self, batch: usize) -> Batches<'_, 'a> {
        let order = (0..self.data.len()).map(|index| index as u32).collect();
        Batches { loader: self, order, epoch: None, batch: batch.max(1), next: 0 }
    }

    /// Overwrites `out` with the samples at `indices`, augmented as of `epoch`, or not at all where `None`.
    /// Any way of sampling can be built on this one. Indices past the end are left out.
    pub fn gather(&self, epoch: Option<u64>, indices: &[u32], out: &mut Batch) {
        let shape = self.data.shape();
        out.indices.clear();
        out.indices.extend(indices.iter().filter(|&&index| (index as usize) < self.data.len()));
        out.labels.clear();
        out.labels.extend(out.indices.iter().map(|&index| self.data.labels()[index as usize]));
        out.images.resize(out.indices.len() * shape.len(), 0.0);
        for (&index, sample) in out.indices.iter().zip(out.images.chunks_exact_mut(shape.len())) {
            let Some(image) = self.data.image(index as usize) else { continue };
            let view = epoch.map_or(View::WHOLE, |epoch| self.view(epoch, index));
            let planes = image.chunks_exact(shape.pixels()).zip(sample.chunks_exact_mut(shape.pixels()));
            for ((pixels, out), values) in planes.zip(&self.values) {
                view.write(pixels, shape, values, out);
            }
        }
    }

    fn view(&self, epoch: u64, index: u32) -> View {
        if self.augment == Augment::NONE {
            return View::WHOLE;
        }
        let mut rng = rng_of(self.seed, epoch, u64::from(index));
        let padding = self.augment.crop_padding.min(MAX_SIDE) as i32;
        let [down, right] = std::array::from_fn(|_| rng.random_range(-padding..=padding) as isize);
        View { down, right, mirrored: self.augment.flip && rng.random() }
    }
}

/// Which part of an image is taken: shifted by so many rows and columns, mirrored or not.
#[derive(Clone, Copy, Debug)]
struct View {
    down: isize,
    right: isize,
    mirrored: bool,
}

impl View {
    const WHOLE: Self = Self { down: 0, right: 0, mirrored: false };

    /// Writes one plane of `pixels`; what lies outside is black (byte 0, normalised as every pixel).
    fn write(self, pixels: &[u8], shape: Shape, values: &[f32; 256], out: &mut [f32]) {
        let (width, black) = (shape.width as isize, values[0]);
        // Output columns `from..to` come from inside the image, starting at column `from + right`.
        let from = (-self.right).clamp(0, width) as usize;
        let to = (width - self.right).clamp(from as isize, width) as usize;
        let start = (from as isize + self.right).max(0) as usize;
        for (row, out) in out.chunks_exact_mut(shape.width).enumerate() {
            let source = usize::try_from(row as isize + self.down).ok().filter(|&row| row < shape.height);
            let inside = source.and_then(|row| pixels.get(row * shape.width + start..)?.get(..to - from));
            match inside {
                Some(inside) => {
                    out[..from].fill(black);
                    out[to..].fill(black);
                    out[from..to].iter_mut().zip(inside).for_each(|(out, &pixel)| *out = values[usize::from(pixel)]);
                }
                None => out.fill(black),
            }
            if self.mirrored {
                out.reverse();
            }
        }
    }
}

/// The batches of one pass over a data set.
#[derive(Clone, Debug)]
pub struct Batches<'l, 'a> {
    loader: &'l Loader<'a>,
    order: Vec<u32>,
    epoch: Option<u64>,
    batch: usize,
    next: usize,
}

impl Batches<'_, '_> {
    /// Overwrites `out` with the next batch, reusing its buffers; `false` after the last.
    pub fn next_into(&mut self, out: &mut Batch) -> bool {
        let end = self.next.saturating_add(self.batch).min(self.order.len());
        let indices = &self.order[self.next..end];
        self.loader.gather(self.epoch, indices, out);
        let some = !indices.is_empty();
        self.next = end;
        some
    }
}

impl Iterator for Batches<'_, '_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.next_into(&mut batch).then_some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.order.len() - self.next).div_ceil(self.batch);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_, '_> {}
