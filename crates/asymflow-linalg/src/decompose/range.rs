//! Randomised range finder (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1).

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::*;

use super::batch::{self, Sample};
use super::orthonormal::{LANES, orthonormalise};
use super::subspace::{eigen, eigen_scratch, fill_uniform};
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer};

/// An orthonormal basis Q of X·Ω, Ω uniform in (−1, 1), improved by power iterations; then the best part of Q·(Qᵀ·X).
///
/// A is orthonormal. Results depend on the sample and the seed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomRange {
    /// Columns of Ω beyond the rank.
    pub oversample: usize,
    /// Products with X·Xᵀ.
    pub power_iterations: usize,
    /// Seed of Ω, the same for all samples.
    pub seed: u64,
}

impl Default for RandomRange {
    fn default() -> Self {
        Self { oversample: 8, power_iterations: 2, seed: 0 }
    }
}

/// Sizes of one sample's problem.
#[derive(Clone, Copy)]
struct Sizes {
    channels: usize,
    pixels: usize,
    rank: usize,
    /// Columns of the range that is iterated: the rank and the oversampling.
    block: usize,
    /// `block`, rounded up to whole lanes.
    width: usize,
}

impl RandomRange {
    fn sizes(&self, shape: BatchShape, rank: usize) -> Sizes {
        let BatchShape { channels, pixels, .. } = shape;
        let block = rank.saturating_add(self.oversample).min(channels).min(pixels);
        Sizes { channels, pixels, rank, block, width: block.next_multiple_of(LANES) }
    }

    fn sample(
        &self,
        sizes: Sizes,
        omega: &[f32],
        par: Par,
        sample: Sample<'_>,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let Sizes { channels, pixels, rank, block, width } = sizes;
        let (mut q, stack) = batch::zeros(stack, channels * width);
        let (mut b, stack) = batch::zeros(stack, pixels * width);
        let (mut lengths, stack) = batch::zeros(stack, width);
        let (mut small, stack) = batch::zeros(stack, block * block);
        // The iteration needs no scale but a safe one; the residual's memory is free until the end.
        let (scaled, _) = batch::rescaled(sample.x, sample.residual)
            .map_err(|index| DecomposeError::NonFinite { index: sample.index * channels * pixels + index })?;
        let scaled = MatRef::from_row_major_slice(scaled, channels, pixels);
        let range = |right: &[f32], q: &mut [f32]| {
            let right = MatRef::from_row_major_slice(right, pixels, width);
            matmul(MatMut::from_row_major_slice_mut(q, channels, width), Accum::Replace, scaled, right, 1.0, par);
        };
        let rows = |q: &[f32], b: &mut [f32]| {
            let q = MatRef::from_row_major_slice(q, channels, width);
            matmul(MatMut::from_row_major_slice_mut(b, pixels, width), Accum::Replace, scaled.transpose(), q, 1.0, par);
        };
        range(omega, &mut q);
        orthonormalise(&mut q, width, block, &mut lengths);
        for _ in 0..self.power_iterations {
            rows(&q, &mut b);
            range(&b, &mut q);
            orthonormalise(&mut q, width, block, &mut lengths);
        }
        rows(&q, &mut b);
        let b = MatRef::from_row_major_slice(&b[..], pixels, width).subcols(0, block);
        let q = MatRef::from_row_major_slice(&q[..], channels, width).subcols(0, block);
        let mut small = MatMut::from_column_major_slice_mut(&mut small, block, block);
        matmul(small.rb_mut(), Accum::Replace, b.transpose(), b, 1.0, par);
        let mut a = MatMut::from_row_major_slice_mut(sample.coefficients, channels, rank);
        eigen(small.rb(), stack, |u| {
            let leading = u.subcols(block - rank, rank).reverse_cols();
            matmul(a.rb_mut(), Accum::Replace, q, leading, 1.0, par);
        })?;
        let x = MatRef::from_row_major_slice(sample.x, channels, pixels);
        let mut v = MatMut::from_row_major_slice_mut(sample.principal, rank, pixels);
        matmul(v.rb_mut(), Accum::Replace, a.rb().transpose(), x, 1.0, par);
        batch::subtract(x, a.rb(), v.rb(), sample.residual, par);
        Ok(())
    }
}

fn sample_scratch(sizes: Sizes) -> StackReq {
    let Sizes { channels, pixels, block, width, .. } = sizes;
    StackReq::all_of(&[
        batch::zeros_scratch(channels * width),
        batch::zeros_scratch(pixels * width),
        batch::zeros_scratch(width),
        batch::zeros_scratch(block * block),
        eigen_scratch(block),
    ])
}

impl Decomposer for RandomRange {
    fn name(&self) -> &'static str {
        "random-range"
    }

    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq {
        let sizes = self.sizes(shape, rank);
        let shares = batch::shares(shape.samples, par);
        batch::zeros_scratch(sizes.pixels * sizes.width).and(batch::shared_scratch(sample_scratch(sizes), shares))
    }

    fn fill(&self, mut batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { shape, rank, par, .. } = batch;
        let sizes = self.sizes(shape, rank);
        let (mut omega, stack) = batch::zeros(stack, sizes.pixels * sizes.width);
        fill_uniform(&mut omega, self.seed);
        // Columns stored beyond the block stay zero, so products leave them zero.
        omega.chunks_exact_mut(sizes.width).for_each(|row| row[sizes.block..].fill(0.0));
        let omega = &omega[..];
        let inner = batch::inner(shape, par);
        batch::for_each_sample(&mut batch, sample_scratch(sizes), stack, |part, stack| {
            self.sample(sizes, omega, inner, part, stack)
        })
    }
}
