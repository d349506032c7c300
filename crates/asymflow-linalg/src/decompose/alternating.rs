//! The light decomposition of AsymML: alternating rank-1 updates with deflation (thesis Alg. 1).

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::*;

use super::batch::{self, Sample};
use super::subspace::fill_uniform;
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer, LowRank};

/// Where the right factor of each new component starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialisation {
    /// The p-th channel of the input for component p.
    ChannelStart,
    /// The mean over the channels of what is left.
    MeanStart,
    /// Uniform values in (−1, 1).
    RandomStart {
        /// Seed, the same for all samples.
        seed: u64,
    },
}

/// r times: u = X·v/‖X·v‖, v = Xᵀ·u, repeated, then X ← X − u·vᵀ. Factors are not orthogonal.
///
/// The same products u·vᵀ as in the thesis, whose u and v share the length differently and whose divisions add 1e-6;
/// without that, results do not depend on the scale of the input. A start of zero is replaced by the channel with the
/// most energy left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternating {
    /// Where components start.
    pub initialisation: Initialisation,
    /// Updates of u and v for each component, at least 1.
    pub iterations: usize,
    /// Stop adding components once ‖residual‖²/‖X‖² of the whole batch is at most this; the rank becomes the number
    /// of components used, at least 1.
    pub energy_stop: Option<f32>,
}

impl Default for Alternating {
    fn default() -> Self {
        Self { initialisation: Initialisation::ChannelStart, iterations: 2, energy_stop: None }
    }
}

fn energy(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|value| value * value).sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value * value);
    }
    rest + sums.iter().sum::<f32>()
}

/// Scales `u` to length 1; what has no length becomes zero.
fn normalise(u: &mut [f32]) {
    let length = energy(u).sqrt();
    let factor = if length.is_normal() { 1.0 / length } else { 0.0 };
    u.iter_mut().for_each(|value| *value *= factor);
}

impl Alternating {
    /// Fills `v` for component `p` from what is left, `left` (`channels × pixels`).
    fn start(&self, p: usize, x: &[f32], left: &[f32], v: &mut [f32]) {
        let pixels = v.len();
        match self.initialisation {
            Initialisation::ChannelStart => v.copy_from_slice(&x[p * pixels..][..pixels]),
            Initialisation::MeanStart => {
                v.fill(0.0);
                for channel in left.chunks_exact(pixels) {
                    v.iter_mut().zip(channel).for_each(|(mean, value)| *mean += value);
                }
            }
            Initialisation::RandomStart { seed } => fill_uniform(v, seed.wrapping_add(p as u64)),
        }
        // Only the direction counts; the largest entry keeps sums of squares in range.
        let largest = v.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        if largest > 0.0 {
            v.iter_mut().for_each(|value| *value /= largest);
        } else {
            strongest(left, v);
        }
    }

    /// Takes component `p` out of `sample.residual`.
    fn component(&self, shape: BatchShape, rank: usize, p: usize, sample: Sample<'_>, par: Par, stack: &mut MemStack) {
        let BatchShape { channels, pixels, .. } = shape;
        let (mut u, _) = batch::zeros(stack, channels);
        let v = &mut sample.principal[p * pixels..][..pixels];
        self.start(p, sample.x, sample.residual, v);
        for attempt in 0..2 {
            let left = MatRef::from_row_major_slice(&*sample.residual, channels, pixels);
            for _ in 0..self.iterations.max(1) {
                let to = MatMut::from_column_major_slice_mut(&mut u[..], channels, 1);
                matmul(to, Accum::Replace, left, MatRef::from_column_major_slice(&*v, pixels, 1), 1.0, par);
                normalise(&mut u);
                let to = MatMut::from_column_major_slice_mut(v, pixels, 1);
                let from = MatRef::from_column_major_slice(&u[..], channels, 1);
                matmul(to, Accum::Replace, left.transpose(), from, 1.0, par);
            }
            // A start orthogonal to all that is left finds nothing: take the strongest channel instead.
            if attempt == 1 || energy(v) > 0.0 {
                break;
            }
            strongest(sample.residual, v);
        }
        let from = MatRef::from_column_major_slice(&u[..], channels, 1);
        let to = MatMut::from_row_major_slice_mut(&mut *sample.residual, channels, pixels);
        matmul(to, Accum::Add, from, MatRef::from_row_major_slice(&*v, 1, pixels), -1.0, par);
        for (row, u) in sample.coefficients.chunks_exact_mut(rank).zip(&u[..]) {
            row[p] = *u;
        }
    }
}

/// Copies the channel of `left` with the most energy to `v`.
fn strongest(left: &[f32], v: &mut [f32]) {
    let channels = left.chunks_exact(v.len()).map(|channel| (energy(channel), channel));
    if let Some((_, channel)) = channels.max_by(|a, b| a.0.total_cmp(&b.0)) {
        v.copy_from_slice(channel);
    }
}

/// Drops the components beyond `used`.
fn shrink(low_rank: &mut LowRank, pixels: usize, used: usize) {
    let rank = low_rank.rank;
    let keep = |values: &mut Vec<f32>, stride: usize, width: usize| {
        let rows = values.len() / stride;
        for row in 0..rows {
            values.copy_within(row * stride..row * stride + width, row * width);
        }
        values.truncate(rows * width);
    };
    keep(&mut low_rank.coefficients, rank, used);
    keep(&mut low_rank.principal, rank * pixels, used * pixels);
    low_rank.rank = used;
}

impl Decomposer for Alternating {
    fn name(&self) -> &'static str {
        "alternating"
    }

    fn scratch(&self, shape: BatchShape, _rank: usize, par: Par) -> StackReq {
        batch::shared_scratch(batch::zeros_scratch(shape.channels), batch::shares(shape.samples, par))
    }

    fn fill(&self, mut batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { shape, rank, par, .. } = batch;
        let BatchShape { channels, pixels, .. } = shape;
        let inner = batch::inner(shape, par);
        let one = batch::zeros_scratch(channels);
        // One scale for the batch keeps squares in range and the samples' energies comparable.
        let scale = batch::largest(batch.x, shape, par).map_err(|index| DecomposeError::NonFinite { index })?;
        let prepare = |sample: Sample<'_>| {
            sample.residual.iter_mut().zip(sample.x).for_each(|(left, value)| *left = value / scale);
        };
        let finish = |sample: Sample<'_>, used: usize| {
            sample.principal.iter_mut().for_each(|value| *value *= scale);
            let a = MatRef::from_row_major_slice(&*sample.coefficients, channels, used);
            let v = MatRef::from_row_major_slice(&*sample.principal, used, pixels);
            batch::subtract(MatRef::from_row_major_slice(sample.x, channels, pixels), a, v, sample.residual, inner);
        };
        let Some(stop) = self.energy_stop else {
            // Without a common stop a sample stays with its thread, and in its cache, from start to end.
            return batch::for_each_sample(&mut batch, one, stack, |mut sample, stack| {
                prepare(sample.reborrow());
                for p in 0..rank {
                    self.component(shape, rank, p, sample.reborrow(), inner, stack);
                }
                finish(sample, rank);
                Ok(())
            });
        };
        batch::for_each_sample(&mut batch, one, stack, |sample, _| {
            prepare(sample);
            Ok(())
        })?;
        let total = batch::energy(batch.residual, shape, par);
        let mut used = 0;
        while used < rank && (used == 0 || batch::energy(batch.residual, shape, par) > f64::from(stop) * total) {
            batch::for_each_sample(&mut batch, one, stack, |sample, stack| {
                self.component(shape, rank, used, sample, inner, stack);
                Ok(())
            })?;
            used += 1;
        }
        shrink(batch.low_rank, pixels, used);
        batch::for_each_sample(&mut batch, one, stack, |sample, _| {
            finish(sample, used);
            Ok(())
        })
    }
}
