//! Gram matrices, for AVX-512 where there is.

use faer::Accum;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::prelude::*;

/// Adds the lower half of m·mᵀ to `gram` (column-major; the upper half stays as it is).
pub(super) fn add_gram(m: MatRef<'_, f32>, gram: &mut [f32], par: Par) {
    #[cfg(target_arch = "x86_64")]
    if par.degree() == 1
        && is_x86_feature_detected!("avx512f")
        && let Some(rows) = m.transpose().try_as_col_major()
        && usize::try_from(rows.col_stride()).is_ok_and(|pitch| pitch == m.ncols())
    {
        let (n, depth) = m.shape();
        assert_eq!(gram.len(), n * n, "callers size the Gram matrix");
        // SAFETY: the processor has AVX-512; `m` is `n` rows of `depth` values, one after the other, and `gram` n².
        return unsafe { avx512::add_gram(rows.as_ptr(), n, depth, gram.as_mut_ptr()) };
    }
    let n = m.nrows();
    triangular::matmul(
        MatMut::from_column_major_slice_mut(gram, n, n),
        BlockStructure::TriangularLower,
        Accum::Add,
        m,
        BlockStructure::Rectangular,
        m.transpose(),
        BlockStructure::Rectangular,
        1.0,
        par,
    );
}

/// Copies the lower half of `gram` (`n × n`) to the upper.
pub(super) fn mirror(gram: &mut [f32], n: usize) {
    for column in 0..n {
        for row in column + 1..n {
            gram[row * n + column] = gram[column * n + row];
        }
    }
}

/// Sum of the diagonal: the energy of the matrix behind `gram`.
pub(super) fn trace(gram: &[f32], n: usize) -> f32 {
    gram.iter().step_by(n + 1).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Values of a register.
    const LANES: usize = 16;
    /// Side of a register tile: 16 sums in registers.
    const TILE: usize = 4;
    /// Values of a row taken at once: 64 rows of it stay in the second-level cache, eight in the first.
    const DEPTH: usize = 1024;

    /// Adds the lower half of m·mᵀ to `gram`: rows are read along their length, so nothing is packed.
    ///
    /// # Safety
    /// The processor has AVX-512, `m` points to `n · depth` values and `gram` to `n · n`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn add_gram(m: *const f32, n: usize, depth: usize, gram: *mut f32) {
        for from in (0..depth).step_by(DEPTH) {
            let length = DEPTH.min(depth - from);
            for column in (0..n).step_by(TILE) {
                for row in (column..n).step_by(TILE) {
                    // SAFETY: rows beyond the last are clamped to it, `from + length ≤ depth`.
                    let pointer = |i: usize| unsafe { m.add(i.min(n - 1) * depth + from) };
                    let a = std::array::from_fn(|i| pointer(row + i));
                    let b = std::array::from_fn(|i| pointer(column + i));
                    // SAFETY: each pointer is valid for `length` values.
                    let sums = unsafe { tile(a, b, length) };
                    for (i, sums) in sums.iter().enumerate().take(n - row) {
                        for (j, sum) in sums.iter().enumerate().take(n - column) {
                            // SAFETY: `row + i` and `column + j` are below `n`.
                            unsafe { *gram.add((column + j) * n + row + i) += sum };
                        }
                    }
                }
            }
        }
    }

    /// Products of four rows with four others over `length` values.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn tile(a: [*const f32; TILE], b: [*const f32; TILE], length: usize) -> [[f32; TILE]; TILE] {
        let mut sums = [[_mm512_setzero_ps(); TILE]; TILE];
        for at in (0..length).step_by(LANES) {
            let left = length - at;
            let mask = if left < LANES { (1 << left) - 1 } else { u16::MAX };
            // SAFETY: the mask keeps loads within `length`.
            let load = |from: *const f32| unsafe { _mm512_maskz_loadu_ps(mask, from.add(at)) };
            let (a, b) = (a.map(load), b.map(load));
            // With iterators here, or a tile any larger, the compiler keeps sums in memory, at half the speed.
            for i in 0..TILE {
                for j in 0..TILE {
                    sums[i][j] = _mm512_fmadd_ps(a[i], b[j], sums[i][j]);
                }
            }
        }
        let mut products = [[0.0; TILE]; TILE];
        for i in 0..TILE {
            for j in 0..TILE {
                products[i][j] = _mm512_reduce_add_ps(sums[i][j]);
            }
        }
        products
    }
}

#[cfg(test)]
mod tests {
    use super::super::subspace::fill_uniform;
    use super::*;

    #[test]
    fn the_lower_half_is_added_for_every_size() {
        for n in (1..10).chain([33]) {
            for depth in [1, 2, 15, 16, 17, 40, 1023, 1024, 1025, 2100] {
                let mut m = vec![0.0; n * depth];
                fill_uniform(&mut m, (n * depth) as u64);
                let by_rows = MatRef::from_row_major_slice(&m[..], n, depth);
                let by_columns = MatRef::from_column_major_slice(&m[..], n, depth);
                for (matrix, par) in [(by_rows, Par::Seq), (by_columns, Par::Seq), (by_rows, Par::rayon(2))] {
                    let mut gram = vec![0.5; n * n];
                    add_gram(matrix, &mut gram, par);
                    mirror(&mut gram, n);
                    let entry = |i: usize, j: usize| -> f64 {
                        (0..depth).map(|k| f64::from(matrix[(i, k)]) * f64::from(matrix[(j, k)])).sum()
                    };
                    for (at, value) in gram.iter().enumerate() {
                        let expected = 0.5 + entry(at / n, at % n);
                        let error = (f64::from(*value) - expected).abs();
                        assert!(error < 1e-5 * depth as f64, "{n}x{depth} at {at}: {value} {expected}");
                    }
                    let expected: f64 = (0..n).map(|i| 0.5 + entry(i, i)).sum();
                    assert!((f64::from(trace(&gram, n)) - expected).abs() < 1e-5 * expected);
                }
            }
        }
    }
}
