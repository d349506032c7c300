//! Leading eigenvectors of a small symmetric positive semidefinite matrix.

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
pub(super) fn fill_uniform(values: &mut [f32], seed: u64) {
    let mut state = seed;
    for value in values {
        // 24 bits fill the mantissa; the half step keeps zero out.
        *value = ((splitmix(&mut state) >> 40) as f32 + 0.5) * (2.0 / (1 << 24) as f32) - 1.0;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums that do not wait for each other, so the loop vectorises.
    let mut sums = [0.0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    rest + sums.iter().sum::<f32>()
}

/// Makes the columns of `q` (column-major, each of length `n`) orthonormal.
///
/// Modified Gram-Schmidt, a column twice when it lost most of its length; a column in the span of those
/// before it is replaced by a unit vector outside the span.
pub(super) fn orthonormalise(q: &mut [f32], n: usize) {
    let columns = q.len() / n;
    for k in 0..columns {
        let (before, rest) = q.split_at_mut(k * n);
        let column = &mut rest[..n];
        let mut unit = 0;
        loop {
            let length = dot(column, column).sqrt();
            let mut left = length;
            // Twice is enough (Giraud, Langou, Rozložník 2005).
            for _ in 0..2 {
                let entering = left;
                for earlier in before.chunks_exact(n) {
                    let share = dot(earlier, column);
                    column.iter_mut().zip(earlier).for_each(|(value, e)| *value -= share * e);
                }
                left = dot(column, column).sqrt();
                if left > 0.5 * entering {
                    break;
                }
            }
            if left > 1e-5 * length && left.is_normal() {
                let scale = 1.0 / left;
                column.iter_mut().for_each(|value| *value *= scale);
                break;
            }
            column.fill(0.0);
            if unit == n {
                break;
            }
            column[unit] = 1.0;
            unit += 1;
        }
    }
}

/// How the leading eigenvectors are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Side of the matrix.
    pub n: usize,
    /// Eigenvectors wanted.
    pub rank: usize,
    /// Columns iterated; `n` for the exact decomposition.
    pub block: usize,
    /// Subspace steps.
    pub steps: usize,
}

impl Plan {
    pub fn new(n: usize, rank: usize, oversample: usize, steps: usize) -> Self {
        let block = (rank + oversample).min(n);
        // Past half the side the full decomposition costs no more than the iteration.
        let block = if 2 * block > n { n } else { block };
        Self { n, rank, block, steps }
    }

    fn exact(self) -> bool {
        self.block == self.n
    }

    pub fn scratch(self) -> StackReq {
        let iterate = if self.exact() { StackReq::EMPTY } else { zeros_scratch(2 * self.n * self.block) };
        let ritz = StackReq::all_of(&[
            temp_mat_scratch::<f32>(self.block, self.block).array(2),
            zeros_scratch(self.block),
            self_adjoint_evd_scratch::<f32>(self.block, ComputeEigenvectors::Yes, Par::Seq, Default::default()),
        ]);
        iterate.and(ritz)
    }

    /// Writes the leading eigenvectors of `gram` into the columns of `vectors` (`n × rank`).
    pub fn run(
        self,
        gram: MatRef<'_, f32>,
        vectors: MatMut<'_, f32>,
        stack: &mut MemStack,
    ) -> Result<(), DecomposeError> {
        let Self { n, rank, block, steps } = self;
        if self.exact() {
            return eigen(gram, stack, |u| {
                let mut vectors = vectors;
                vectors.copy_from(u.subcols(n - rank, rank).reverse_cols());
            });
        }
        let (mut q, stack) = zeros(stack, n * block);
        let (mut z, stack) = zeros(stack, n * block);
        fill_uniform(&mut q, START_SEED);
        for _ in 0..steps {
            multiply(gram, &q, &mut z);
            std::mem::swap(&mut q, &mut z);
            orthonormalise(&mut q, n);
        }
        // Rayleigh-Ritz: the best `rank` directions within the block.
        multiply(gram, &q, &mut z);
        let (mut small, stack) = temp_mat_zeroed::<f32, _, _>(block, block, stack);
        let mut small = small.as_mat_mut();
        let q = MatRef::from_column_major_slice(&q[..], n, block);
        let z = MatRef::from_column_major_slice(&z[..], n, block);
        matmul(small.rb_mut(), Accum::Replace, q.transpose(), z, 1.0, Par::Seq);
        eigen(small.rb(), stack, |u| {
            matmul(vectors, Accum::Replace, q, u.subcols(block - rank, rank).reverse_cols(), 1.0, Par::Seq);
        })
    }
}

fn multiply(gram: MatRef<'_, f32>, q: &[f32], z: &mut [f32]) {
    let n = gram.nrows();
    let columns = q.len() / n;
    matmul(
        MatMut::from_column_major_slice_mut(z, n, columns),
        Accum::Replace,
        gram,
        MatRef::from_column_major_slice(q, n, columns),
        1.0,
        Par::Seq,
    );
}

/// All eigenvectors of `matrix`, eigenvalues rising, handed to `then`.
fn eigen(
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
