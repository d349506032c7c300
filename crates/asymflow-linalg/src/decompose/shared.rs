//! One left factor for the whole batch.

use faer::dyn_stack::{MemStack, StackReq};
use faer::prelude::*;

use super::batch;
use super::gram_matrix::{add_gram, mirror, trace};
use super::project::project_batch;
use super::subspace::Plan;
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer};

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
        sums.and(self.plan(shape, rank).scratch())
    }

    fn fill(&self, batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { x, shape, rank, low_rank, residual, par } = batch;
        let BatchShape { samples, channels, .. } = shape;
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
        project_batch(x, shape, low_rank, residual, par);
        Ok(())
    }
}

/// A basis of a layer that serves for many batches: that of [`SharedBasis`] when it is learned, and V\[s\] = Aᵀ·X\[s\] until it
/// is learned again ([`Decomposer::serves`]). Finding it then costs nothing, and one fold serves a batch.
///
/// It leaves a residual a quarter larger than a basis for each sample, twice as large on maps of few pixels, and shows more of
/// the data: a worker that knows it can tell more of X_main from the residuals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed(SharedBasis);

/// Training steps for which a fixed basis serves.
const SERVES: usize = 20;

impl Decomposer for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn shares_basis(&self) -> bool {
        true
    }

    fn serves(&self) -> usize {
        SERVES
    }

    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq {
        self.0.scratch(shape, rank, par)
    }

    fn fill(&self, batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        self.0.fill(batch, stack)
    }
}
