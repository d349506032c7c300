//! Decomposition through the Gram matrix of each sample: nearly optimal at the speed of matrix products.

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::*;

use super::batch::{self, Sample};
use super::gram_matrix::{add_gram, mirror, trace};
use super::project::project_sample;
use super::subspace::Plan;
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer};

/// The leading eigenvectors of X·Xᵀ (or Xᵀ·X when that is smaller), found by subspace iteration.
///
/// With more pixels than channels A = U_r is orthonormal and V = Aᵀ·X; otherwise V = W_rᵀ is orthonormal and
/// A = X·Vᵀ. Either way A·V is X projected to the leading subspace, and the residual is what lies outside.
/// Singular values below about 3e-4 of the largest drown in the rounding of the Gram matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gram {
    /// Columns iterated beyond the rank.
    pub oversample: usize,
    /// Steps of the subspace iteration, each a product with the filtered Gram matrix.
    pub steps: usize,
}

impl Default for Gram {
    fn default() -> Self {
        Self { oversample: 4, steps: 1 }
    }
}

impl Gram {
    fn plan(&self, shape: BatchShape, rank: usize) -> Plan {
        Plan::new(shape.channels.min(shape.pixels), rank, self.oversample, self.steps)
    }

    fn sample_scratch(&self, shape: BatchShape, rank: usize) -> StackReq {
        let plan = self.plan(shape, rank);
        batch::zeros_scratch(plan.n * plan.n).and(plan.scratch())
    }

    fn sample(
        &self,
        shape: BatchShape,
        rank: usize,
        par: Par,
        sample: Sample<'_>,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let BatchShape { channels, pixels, .. } = shape;
        let plan = self.plan(shape, rank);
        let wide = channels <= pixels;
        let (mut gram, stack) = batch::zeros(stack, plan.n * plan.n);
        let x = MatRef::from_row_major_slice(sample.x, channels, pixels);
        let side = |m| if wide { m } else { MatRef::transpose(m) };
        add_gram(side(x), &mut gram, par);
        if !batch::in_range(trace(&gram, plan.n)) {
            let (scaled, _) = batch::rescaled(sample.x, sample.residual)
                .map_err(|index| DecomposeError::NonFinite { index: sample.index * channels * pixels + index })?;
            gram.fill(0.0);
            add_gram(side(MatRef::from_row_major_slice(scaled, channels, pixels)), &mut gram, par);
        }
        mirror(&mut gram, plan.n);
        let energy = trace(&gram, plan.n);
        let mut a = MatMut::from_row_major_slice_mut(sample.coefficients, channels, rank);
        let gram = MatRef::from_column_major_slice(&gram[..], plan.n, plan.n);
        if wide {
            plan.run(gram, energy, a, stack)?;
            project_sample(sample.x, pixels, sample.coefficients, sample.principal, sample.residual, par);
        } else {
            let mut v = MatMut::from_row_major_slice_mut(sample.principal, rank, pixels);
            plan.run(gram, energy, v.rb_mut().transpose_mut(), stack)?;
            matmul(a.rb_mut(), Accum::Replace, x, v.rb().transpose(), 1.0, par);
            batch::subtract(x, a.rb(), v.rb(), sample.residual, par);
        }
        Ok(())
    }
}

impl Decomposer for Gram {
    fn name(&self) -> &'static str {
        "gram"
    }

    fn scratch(&self, shape: BatchShape, rank: usize, par: Par) -> StackReq {
        batch::shared_scratch(self.sample_scratch(shape, rank), batch::shares(shape.samples, par))
    }

    fn fill(&self, mut batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { shape, rank, par, .. } = batch;
        let inner = batch::inner(shape, par);
        let one = self.sample_scratch(shape, rank);
        batch::for_each_sample(&mut batch, one, stack, |part, stack| self.sample(shape, rank, inner, part, stack))
    }
}
