//! The optimal decomposition: singular value decomposition, truncated.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;

use super::batch::{self, Sample};
use super::{BatchShape, BatchToSplit, DecomposeError, Decomposer};

/// Thin SVD of each sample, the first r singular triples kept (thesis eq 2.1 to 2.5):
/// A = U_r·diag(s_r), V = the transposed right singular vectors. The residual is the smallest there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactSvd;

fn sample_scratch(shape: BatchShape, par: Par) -> StackReq {
    let size = shape.channels.min(shape.pixels);
    StackReq::all_of(&[
        temp_mat_scratch::<f32>(shape.channels, size),
        temp_mat_scratch::<f32>(shape.pixels, size),
        batch::zeros_scratch(size),
        svd_scratch::<f32>(
            shape.channels,
            shape.pixels,
            ComputeSvdVectors::Thin,
            ComputeSvdVectors::Thin,
            par,
            Default::default(),
        ),
    ])
}

fn sample(
    shape: BatchShape,
    rank: usize,
    par: Par,
    sample: Sample<'_>,
    stack: &mut MemStack,
) -> Result<(), DecomposeError> {
    let BatchShape { channels, pixels, .. } = shape;
    // Residual memory is free until the end; squares of tiny and huge values would leave the range of f32.
    let (scaled, scale) = batch::rescaled(sample.x, sample.residual)
        .map_err(|index| DecomposeError::NonFinite { index: sample.index * channels * pixels + index })?;
    let scaled = MatRef::from_row_major_slice(scaled, channels, pixels);
    let size = channels.min(pixels);
    let x = MatRef::from_row_major_slice(sample.x, channels, pixels);
    let (mut u, stack) = temp_mat_zeroed::<f32, _, _>(channels, size, stack);
    let (mut v, stack) = temp_mat_zeroed::<f32, _, _>(pixels, size, stack);
    let (mut s, stack) = batch::zeros(stack, size);
    let (mut u, mut v) = (u.as_mat_mut(), v.as_mat_mut());
    svd(scaled, DiagMut::from_slice_mut(&mut s), Some(u.rb_mut()), Some(v.rb_mut()), par, stack, Default::default())
        .map_err(|_| DecomposeError::NoConvergence)?;
    let mut a = MatMut::from_row_major_slice_mut(sample.coefficients, channels, rank);
    for p in 0..rank {
        for j in 0..channels {
            a[(j, p)] = u[(j, p)] * s[p] * scale;
        }
    }
    let mut principal = MatMut::from_row_major_slice_mut(sample.principal, rank, pixels);
    principal.copy_from(v.rb().subcols(0, rank).transpose());
    batch::subtract(x, a.rb(), principal.rb(), sample.residual, par);
    Ok(())
}

impl Decomposer for ExactSvd {
    fn name(&self) -> &'static str {
        "exact-svd"
    }

    fn scratch(&self, shape: BatchShape, _rank: usize, par: Par) -> StackReq {
        let one = sample_scratch(shape, batch::inner(shape, par));
        batch::shared_scratch(one, batch::shares(shape.samples, par))
    }

    fn fill(&self, mut batch: BatchToSplit<'_>, stack: &mut MemStack) -> Result<(), DecomposeError> {
        let BatchToSplit { shape, rank, par, .. } = batch;
        let inner = batch::inner(shape, par);
        let one = sample_scratch(shape, inner);
        batch::for_each_sample(&mut batch, one, stack, |part, stack| sample(shape, rank, inner, part, stack))
    }
}
