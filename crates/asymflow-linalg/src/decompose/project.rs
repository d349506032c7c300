//! V = Aᵀ·X and the residual X − A·V in one pass over tiles of pixels that stay in the cache.

use faer::Par;
use faer::dyn_stack::{MemStack, StackReq};
use rayon::prelude::*;

use super::batch::first_non_finite;
use super::{BatchShape, BatchToSplit, DecomposeError, LowRank};
use crate::parallel::{Shared, for_each};
use crate::simd::{Kernel, LANES, Lanes, Simd, dispatch};

/// Pixels of a tile.
const TILE: usize = 2 * LANES;
/// Tiles that a task works on at least.
const TASK_TILES: usize = 16;

/// Splits `x` by the orthonormal basis `basis` (`channels × rank`, row-major) in place of one that is found: fills `low_rank`,
/// reusing its memory, and `residual = x − A·V`.
///
/// # Errors
/// Empty batch, slices of the wrong length, rank out of range, non-finite values.
pub fn project(
    basis: &[f32],
    x: &[f32],
    shape: BatchShape,
    low_rank: &mut LowRank,
    residual: &mut [f32],
    par: Par,
) -> Result<(), DecomposeError> {
    let rank = basis.len() / shape.channels.max(1);
    let mut batch = BatchToSplit { x, shape, rank, low_rank, residual, par };
    batch.check(StackReq::EMPTY, MemStack::new(&mut []))?;
    if basis.len() != rank * shape.channels {
        let (expected, got) = (rank * shape.channels, basis.len());
        return Err(DecomposeError::Length { what: "the basis", expected, got });
    }
    batch.prepare(true);
    let BatchToSplit { low_rank, residual, .. } = batch;
    low_rank.coefficients.copy_from_slice(basis);
    project_batch(x, shape, low_rank, residual, par);
    match first_non_finite(&low_rank.principal).and_then(|_| first_non_finite(x)) {
        Some(index) => Err(DecomposeError::NonFinite { index }),
        None => Ok(()),
    }
}

/// Splits one sample `x` (`channels × pixels`) by the orthonormal `a` (`channels × rank`): writes `v` (`rank × pixels`) and
/// `residual`. All are row-major.
pub(super) fn project_sample(x: &[f32], pixels: usize, a: &[f32], v: &mut [f32], residual: &mut [f32], par: Par) {
    let (channels, rank) = (x.len() / pixels, v.len() / pixels);
    assert_eq!((residual.len(), a.len()), (x.len(), channels * rank), "{channels} channels, rank {rank}");
    let (v, residual) = (Shared::new(v), Shared::new(residual));
    let tiles = pixels.div_ceil(TILE);
    let threads = par.degree().min(tiles.div_ceil(TASK_TILES));
    let chunk = tiles.div_ceil(threads) * TILE;
    for_each(threads, pixels.div_ceil(chunk), |_, task| {
        let (first, end) = (task * chunk, pixels.min((task + 1) * chunk));
        let (v, residual) = (v.ptr(), residual.ptr());
        let part = Project { x: x.as_ptr(), a: a.as_ptr(), v, residual, channels, rank, pixels, first, end };
        // SAFETY: the lengths were checked above, and this task alone writes these pixels.
        unsafe { dispatch(&part) };
    });
}

/// Splits a batch by the one basis that `low_rank` has, whose lengths fit the shape: writes its principal channels, and
/// `residual`.
pub(super) fn project_batch(x: &[f32], shape: BatchShape, low_rank: &mut LowRank, residual: &mut [f32], par: Par) {
    let LowRank { rank, coefficients, principal, .. } = low_rank;
    let sample = shape.channels * shape.pixels;
    let threads = par.degree().min(shape.samples);
    let inner = if threads > 1 { Par::Seq } else { par };
    let run = |((x, v), residual): ((&[f32], &mut [f32]), &mut [f32])| {
        project_sample(x, shape.pixels, coefficients, v, residual, inner);
    };
    if threads > 1 {
        let principal = principal.par_chunks_exact_mut(*rank * shape.pixels);
        x.par_chunks_exact(sample).zip(principal).zip(residual.par_chunks_exact_mut(sample)).for_each(run);
    } else {
        x.chunks_exact(sample)
            .zip(principal.chunks_exact_mut(*rank * shape.pixels))
            .zip(residual.chunks_exact_mut(sample))
            .for_each(run);
    }
}

/// Pixels `first..end` of the matrices of [`project_sample`].
struct Project {
    x: *const f32,
    a: *const f32,
    v: *mut f32,
    residual: *mut f32,
    channels: usize,
    rank: usize,
    pixels: usize,
    first: usize,
    end: usize,
}

impl Kernel for Project {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let mut at = self.first;
        while at < self.end {
            let count = TILE.min(self.end - at);
            // SAFETY: `at + count ≤ pixels`.
            unsafe {
                if count == TILE {
                    self.tile::<S, 2>(at, LANES);
                } else {
                    self.tile::<S, 1>(at, LANES.min(count));
                }
            }
            at += if count == TILE { TILE } else { LANES };
        }
    }
}

impl Project {
    /// All ranks, eight at a time, for `N` vectors of pixels, the last of which has `lanes`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize>(&self, at: usize, lanes: usize) {
        let mut p = 0;
        while p < self.rank {
            // SAFETY: `p` and what is taken of it stay within the rank.
            unsafe {
                p += match self.rank - p {
                    8.. => self.block::<S, 8, N>(p, at, lanes),
                    4..8 => self.block::<S, 4, N>(p, at, lanes),
                    2..4 => self.block::<S, 2, N>(p, at, lanes),
                    _ => self.block::<S, 1, N>(p, at, lanes),
                }
            }
        }
    }

    /// Directions `p..p + P`; returns P. What earlier ones left is the residual so far.
    #[inline(always)]
    unsafe fn block<S: Simd, const P: usize, const N: usize>(&self, p: usize, at: usize, lanes: usize) -> usize {
        let some = Lanes::new(0, lanes);
        // SAFETY: rows and pixels lie in the matrices; of the last vector `lanes` values do.
        unsafe {
            let load = Load { some, whole: lanes == LANES };
            let mut sums = [[S::splat(0.0); N]; P];
            for row in 0..self.channels {
                let x = self.x.add(row * self.pixels + at);
                if N == 2 && p == 0 {
                    S::prefetch(x.wrapping_add(2 * TILE));
                    S::prefetch(x.wrapping_add(2 * TILE + LANES));
                }
                let x = load.vectors::<S, N>(x);
                let a = self.a.add(row * self.rank + p);
                for (q, sums) in sums.iter_mut().enumerate() {
                    let a = S::splat(*a.add(q));
                    for (sum, x) in sums.iter_mut().zip(&x) {
                        *sum = S::mul_add(a, *x, *sum);
                    }
                }
            }
            for (q, sums) in sums.iter_mut().enumerate() {
                load.store::<S, N>(self.v.add((p + q) * self.pixels + at), sums, lanes);
                for sum in sums {
                    *sum = S::sub(S::splat(0.0), *sum);
                }
            }
            let from = if p == 0 { self.x } else { self.residual.cast_const() };
            for row in 0..self.channels {
                let mut left = load.vectors::<S, N>(from.add(row * self.pixels + at));
                let a = self.a.add(row * self.rank + p);
                for (q, v) in sums.iter().enumerate() {
                    let a = S::splat(*a.add(q));
                    for (left, v) in left.iter_mut().zip(v) {
                        *left = S::mul_add(a, *v, *left);
                    }
                }
                load.store::<S, N>(self.residual.add(row * self.pixels + at), &left, lanes);
            }
        }
        P
    }
}

/// How the vectors of a tile are moved.
struct Load {
    some: Lanes,
    whole: bool,
}

impl Load {
    #[inline(always)]
    unsafe fn vectors<S: Simd, const N: usize>(&self, from: *const f32) -> [S::V; N] {
        // SAFETY: the caller vouches for the vectors.
        unsafe {
            let mut out = [S::splat(0.0); N];
            for (i, out) in out.iter_mut().enumerate() {
                let from = from.add(i * LANES);
                *out = if self.whole { S::load(from) } else { S::load_some(from, 1, &self.some) };
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd, const N: usize>(&self, to: *mut f32, v: &[S::V; N], lanes: usize) {
        // SAFETY: the caller vouches for the vectors.
        unsafe {
            for (i, v) in v.iter().enumerate() {
                if self.whole {
                    S::store(to.add(i * LANES), *v);
                } else {
                    S::store_first(to.add(i * LANES), *v, lanes);
                }
            }
        }
    }
}
