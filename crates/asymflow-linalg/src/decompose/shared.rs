//! One left factor for the whole batch.

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::*;

use super::batch;
use super::gram_matrix::{add_gram, mirror, trace};
use super::subspace::Plan;
use super::{BatchShape, DecomposeError, Decomposer, LowRank};

/// A from the sum of the samples' Gram matrices, V\[s\] = Aᵀ·X\[s\].
///
/// The kernels W' = W·A are folded once for a batch instead of once for a sample; the residual is larger than
/// with a basis for each sample, smallest among all shared ones. A depends on every sample of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedBasis {
    /// Columns iterated beyond the rank.
    pub oversample: usize,
    /// Steps of the subspace iteration.
    pub steps: usize,
}

impl Default for SharedBasis {
    fn default() -> Self {
        // One small problem for the whole batch: steps cost next to nothing.
        Self { oversample: 8, steps: 4 }
    }
}

impl SharedBasis {
    fn plan(&self, shape: BatchShape, rank: usize) -> Plan {
        Plan::new(shape.channels, rank, self.oversample, self.steps)
    }
}

/// Adds up the Gram matrices of `x`, one partial sum in `sums` for each thread.
fn sum_grams(x: &[f32], shape: BatchShape, sums: &mut [f32], par: Par) {
    let square = shape.channels * shape.channels;
    let shares = sums.len() / square;
    if shares > 1 {
        let left = shares / 2;
        let samples = shape.samples * left / shares;
        let (x_left, x_right) = x.split_at(samples * shape.channels * shape.pixels);
        let (sums_left, sums_right) = sums.split_at_mut(left * square);
        rayon::join(
            || sum_grams(x_left, BatchShape { samples, ..shape }, sums_left, par),
            || sum_grams(x_right, BatchShape { samples: shape.samples - samples, ..shape }, sums_right, par),
        );
        let (first, others) = sums.split_at_mut(square);
        let right = &others[(left - 1) * square..][..square];
        first.iter_mut().zip(right).for_each(|(sum, value)| *sum += value);
        return;
    }
    sums.fill(0.0);
    for sample in x.chunks_exact(shape.channels * shape.pixels) {
        let sample = MatRef::from_row_major_slice(sample, shape.channels, shape.pixels);
        add_gram(sample, sums, par);
    }
}

impl Decomposer for SharedBasis {
    fn name(&self) -> &'static str {
        "shared-basis"
    }

    fn shares_basis(&self) -> bool {
        true
    }

    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq {
        let shares = batch::shares(shape.samples, par);
        let sums = batch::zeros_scratch(shape.channels * shape.channels * shares);
        let each = batch::shared_scratch(StackReq::EMPTY, shares);
        sums.and(self.plan(shape, rank).scratch().or(each))
    }

    fn decompose(
        &self,
        x: &[f32],
        shape: BatchShape,
        rank: usize,
        low_rank: &mut LowRank,
        residual: &mut [f32],
        par: Par,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        batch::check(x, shape, rank, residual, self.scratch(shape, rank, par), stack)?;
        batch::prepare(low_rank, shape, rank, true);
        let BatchShape { samples, channels, pixels } = shape;
        let inner = batch::inner(shape, par);
        let square = channels * channels;
        let (mut sums, stack) = batch::zeros(stack, square * batch::shares(samples, par));
        sum_grams(x, shape, &mut sums, inner);
        if !batch::in_range(trace(&sums[..square], channels)) {
            let (scaled, _) = batch::rescaled(x, residual).map_err(|index| DecomposeError::NonFinite { index })?;
            sum_grams(scaled, shape, &mut sums, inner);
        }
        mirror(&mut sums[..square], channels);
        let energy = trace(&sums[..square], channels);
        let gram = MatRef::from_column_major_slice(&sums[..square], channels, channels);
        let a = MatMut::from_row_major_slice_mut(&mut low_rank.coefficients, channels, rank);
        self.plan(shape, rank).run(gram, energy, a, stack)?;
        let basis = std::mem::take(&mut low_rank.coefficients);
        let a = MatRef::from_row_major_slice(&basis[..], channels, rank);
        let done = batch::for_each_sample(x, samples, low_rank, residual, (par, StackReq::EMPTY), stack, |part, _| {
            let x = MatRef::from_row_major_slice(part.x, channels, pixels);
            let mut v = MatMut::from_row_major_slice_mut(part.principal, rank, pixels);
            matmul(v.rb_mut(), Accum::Replace, a.transpose(), x, 1.0, inner);
            batch::subtract(x, a, v.rb(), part.residual, inner);
            Ok(())
        });
        low_rank.coefficients = basis;
        done
    }
}
