//! Leading eigenvectors of a small symmetric positive semidefinite matrix, by subspace iteration with a Chebyshev
//! filter (Zhou, Saad, Tiago, Chelikowsky 2006).

use faer::Accum;
use faer::diag::DiagMut;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;

use super::DecomposeError;
use super::batch::{zeros, zeros_scratch};
use super::orthonormal::{LANES, orthonormalise};

/// Seed of the fixed start: results depend on the sample alone.
const START_SEED: u64 = 0x5eed;

/// Next value of splitmix64.
pub(super) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `values` with independent uniform values in (−1, 1).
pub(crate) fn fill_uniform(values: &mut [f32], seed: u64) {
    let mut state = seed;
    for value in values {
        // 24 bits fill the mantissa; the half step keeps zero out.
        *value = ((splitmix(&mut state) >> 40) as f32 + 0.5) * (2.0 / (1 << 24) as f32) - 1.0;
    }
}

/// Degree of the Chebyshev filter: products with the matrix for each orthonormalisation.
const DEGREE: usize = 2;

/// How the leading eigenvectors are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Side of the matrix.
    pub n: usize,
    /// Eigenvectors wanted.
    pub rank: usize,
    /// Columns iterated; `n` for the exact decomposition.
    pub block: usize,
    /// Filter steps.
    pub steps: usize,
}

impl Plan {
    pub fn new(n: usize, rank: usize, oversample: usize, steps: usize) -> Self {
        let block = rank.saturating_add(oversample).min(n);
        // Past half the side the full decomposition costs no more than the iteration.
        let block = if block > n / 2 { n } else { block };
        Self { n, rank, block, steps }
    }

    fn exact(self) -> bool {
        self.block == self.n
    }

    /// Columns stored: whole groups of lanes.
    fn width(self) -> usize {
        self.block.next_multiple_of(LANES)
    }

    pub fn scratch(self) -> StackReq {
        let iterate = if self.exact() {
            StackReq::EMPTY
        } else {
            zeros_scratch(self.n * self.width()).array(3).and(zeros_scratch(self.width()))
        };
        iterate.and(temp_mat_scratch::<f32>(self.block, self.block)).and(eigen_scratch(self.block))
    }

    /// Writes the leading eigenvectors of `gram`, whose trace is `energy`, into the columns of `vectors` (`n × rank`).
    pub fn run(
        self,
        gram: MatRef<'_, f32>,
        energy: f32,
        mut vectors: MatMut<'_, f32>,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let Self { n, rank, block, steps } = self;
        if self.exact() {
            return eigen(gram, stack, |u| vectors.copy_from(u.subcols(n - rank, rank).reverse_cols()));
        }
        let width = self.width();
        let scale = if energy > 0.0 { 1.0 / energy } else { 1.0 };
        let (mut q, stack) = zeros(stack, n * width);
        let (mut z, stack) = zeros(stack, n * width);
        let (mut w, stack) = zeros(stack, n * width);
        let (mut entering, stack) = zeros(stack, width);
        let multiply = |q: &[f32], z: &mut [f32], scale: f32| {
            let q = MatRef::from_row_major_slice(q, n, width);
            matmul(MatMut::from_row_major_slice_mut(z, n, width), Accum::Replace, gram, q, scale, Par::Seq);
        };
        q.chunks_exact_mut(width).zip(0..).for_each(|(row, at)| fill_uniform(&mut row[..block], START_SEED + at));
        multiply(&q, &mut z, scale);
        std::mem::swap(&mut q, &mut z);
        let mut bound = orthonormalise(&mut q, width, block, &mut entering) / (n as f32 / 3.0).sqrt();
        for _ in 0..steps {
            // T_d(2G/bound − 1) Q by the three-term recurrence: at most 1 on eigenvalues below the bound,
            // growing as fast as a polynomial of the degree can above it.
            // Eigenvalues below the rounding of the matrix are noise; the floor keeps squares of T_d in range.
            let factor = 2.0 / bound.max(f32::EPSILON);
            multiply(&q, &mut z, factor * scale);
            z.iter_mut().zip(&q[..]).for_each(|(z, q)| *z -= q);
            for _ in 1..DEGREE {
                multiply(&z, &mut w, 2.0 * factor * scale);
                w.iter_mut().zip(&z[..]).zip(&q[..]).for_each(|((w, z), q)| *w -= 2.0 * z + q);
                std::mem::swap(&mut q, &mut z);
                std::mem::swap(&mut z, &mut w);
            }
            std::mem::swap(&mut q, &mut z);
            let growth = orthonormalise(&mut q, width, block, &mut entering);
            // The eigenvalue that grew so much.
            bound *= if growth > 1.0 { 0.5 + 0.5 * (growth.acosh() / DEGREE as f32).cosh() } else { 0.5 };
        }
        if block == rank {
            vectors.copy_from(MatRef::from_row_major_slice(&q[..], n, width).subcols(0, rank));
            return Ok(());
        }
        // Rayleigh-Ritz: the best `rank` directions within the block.
        multiply(&q, &mut z, scale);
        let (mut small, stack) = temp_mat_zeroed::<f32, _, _>(block, block, stack);
        let mut small = small.as_mat_mut();
        let q = MatRef::from_row_major_slice(&q[..], n, width).subcols(0, block);
        let z = MatRef::from_row_major_slice(&z[..], n, width).subcols(0, block);
        matmul(small.rb_mut(), Accum::Replace, q.transpose(), z, 1.0, Par::Seq);
        eigen(small.rb(), stack, |u| {
            matmul(vectors, Accum::Replace, q, u.subcols(block - rank, rank).reverse_cols(), 1.0, Par::Seq);
        })
    }
}

pub(super) fn eigen_scratch(n: usize) -> StackReq {
    StackReq::all_of(&[
        temp_mat_scratch::<f32>(n, n),
        zeros_scratch(n),
        self_adjoint_evd_scratch::<f32>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default()),
    ])
}

/// All eigenvectors of `matrix`, eigenvalues rising, handed to `then`.
pub(super) fn eigen(
    matrix: MatRef<'_, f32>,
    stack: &mut MemStack,
    then: impl FnOnce(MatRef<'_, f32>),
) -> Result<(), DecomposeError> {
    let n = matrix.nrows();
    let (mut u, stack) = temp_mat_zeroed::<f32, _, _>(n, n, stack);
    let (mut s, stack) = zeros(stack, n);
    let mut u = u.as_mat_mut();
    self_adjoint_evd(matrix, DiagMut::from_slice_mut(&mut s), Some(u.rb_mut()), Par::Seq, stack, Default::default())
        .map_err(|_| DecomposeError::NoConvergence)?;
    then(u.rb());
    Ok(())
}
