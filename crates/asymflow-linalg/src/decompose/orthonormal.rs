//! Gram-Schmidt by rows.

/// Columns handled together: one AVX-512 register.
pub(super) const LANES: usize = 16;

/// Share of its squared length below which what is left of a column is orthogonalised again.
const LOST: f32 = 1e-4;

/// Makes the first `columns` columns of the row-major `q` (rows of `width`, a multiple of [`LANES`]) orthonormal
/// and returns the length the last one had left. `lengths` holds `width` values.
///
/// Modified Gram-Schmidt by rows: each column is taken out of all later ones at once, so nothing waits for a
/// horizontal sum. A column within the span of those before it is replaced by one outside.
pub(super) fn orthonormalise(q: &mut [f32], width: usize, columns: usize, lengths: &mut [f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { by_rows_avx512(q, width, columns, lengths) };
    }
    by_rows(q, width, columns, lengths)
}

/// The same code, compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn by_rows_avx512(q: &mut [f32], width: usize, columns: usize, lengths: &mut [f32]) -> f32 {
    by_rows(q, width, columns, lengths)
}

// Inlined with all it calls, and loops instead of closures, so that the compiler may use AVX-512.
#[inline(always)]
fn by_rows(q: &mut [f32], width: usize, columns: usize, lengths: &mut [f32]) -> f32 {
    lengths.fill(0.0);
    for row in q.chunks_exact(width) {
        for (sum, value) in lengths.iter_mut().zip(row) {
            *sum += value * value;
        }
    }
    let mut length = 0.0;
    for k in 0..columns {
        let first = k / LANES * LANES;
        let mut shares = products(q, width, k, first);
        if shares[k - first] <= LOST * lengths[k] {
            repair(q, width, k);
            shares = products(q, width, k, first);
        }
        let inverse_square = 1.0 / shares[k - first];
        length = shares[k - first].sqrt();
        shares[..=k - first].fill(0.0);
        for from in (first..width).step_by(LANES) {
            if from > first {
                shares = products(q, width, k, from);
            }
            for share in &mut shares {
                *share *= inverse_square;
            }
            for row in q.chunks_exact_mut(width) {
                let pivot = row[k];
                for (value, share) in row[from..from + LANES].iter_mut().zip(&shares) {
                    *value -= pivot * share;
                }
            }
        }
        let inverse = 1.0 / length;
        for row in q.chunks_exact_mut(width) {
            row[k] *= inverse;
        }
    }
    length
}

/// The products of column `k` of `q` with the columns `from..from + LANES`.
#[inline(always)]
fn products(q: &[f32], width: usize, k: usize, from: usize) -> [f32; LANES] {
    // Two sums that do not wait for each other.
    let (mut even, mut odd) = ([0.0f32; LANES], [0.0f32; LANES]);
    let pairs = q.chunks_exact(2 * width);
    let last = pairs.remainder();
    for rows in pairs {
        let (a, b) = rows.split_at(width);
        let (pivot_a, pivot_b) = (a[k], b[k]);
        let values = a[from..from + LANES].iter().zip(&b[from..from + LANES]);
        for ((even, odd), (a, b)) in even.iter_mut().zip(&mut odd).zip(values) {
            *even += pivot_a * a;
            *odd += pivot_b * b;
        }
    }
    if !last.is_empty() {
        let pivot = last[k];
        for (even, value) in even.iter_mut().zip(&last[from..from + LANES]) {
            *even += pivot * value;
        }
    }
    for (even, odd) in even.iter_mut().zip(odd) {
        *even += odd;
    }
    even
}

/// Takes the columns before it out of column `k` once more; one within their span becomes a vector outside it.
#[cold]
fn repair(q: &mut [f32], width: usize, k: usize) {
    let mut left = length_squared(q, width, k);
    for _ in 0..2 {
        let entering = left;
        for j in 0..k {
            let share: f32 = q.chunks_exact(width).map(|row| row[j] * row[k]).sum();
            q.chunks_exact_mut(width).for_each(|row| row[k] -= share * row[j]);
        }
        left = length_squared(q, width, k);
        if left > LOST * entering && left > f32::MIN_POSITIVE {
            return;
        }
    }
    replace(q, width, k);
}

fn length_squared(q: &[f32], width: usize, k: usize) -> f32 {
    q.chunks_exact(width).map(|row| row[k] * row[k]).sum()
}

/// Sets column `k` of `q` to a vector orthogonal to the columns before it.
fn replace(q: &mut [f32], width: usize, k: usize) {
    // 1 − Σ_j q_ij² is what orthogonalisation leaves of the unit vector e_i; the largest is at least 1 − k/n.
    let taken = |row: &[f32]| row[..k].iter().map(|value| value * value).sum::<f32>();
    let rows = q.chunks_exact(width).map(taken).enumerate();
    let unit = rows.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(row, _)| row);
    for row in 0..q.len() / width {
        let overlap: f32 = (0..k).map(|j| q[unit * width + j] * q[row * width + j]).sum();
        q[row * width + k] = f32::from(u8::from(row == unit)) - overlap;
    }
}

#[cfg(test)]
mod tests {
    use super::super::subspace::fill_uniform;
    use super::*;

    /// Largest entry of |QᵀQ − I| over the first `columns` columns.
    fn error(q: &[f32], width: usize, columns: usize) -> f64 {
        let mut worst = 0.0f64;
        for a in 0..columns {
            for b in 0..=a {
                let product: f64 = q.chunks_exact(width).map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
                worst = worst.max((product - f64::from(u8::from(a == b))).abs());
            }
        }
        worst
    }

    #[test]
    fn columns_become_orthonormal_and_keep_their_span() {
        for (n, width, columns) in [(1, 16, 1), (7, 16, 7), (64, 16, 12), (33, 32, 30), (50, 48, 40)] {
            let mut start = vec![0.0; n * width];
            fill_uniform(&mut start, n as u64);
            for by in [by_rows, orthonormalise] {
                let (mut q, mut lengths) = (start.clone(), vec![0.0; width]);
                by(&mut q, width, columns, &mut lengths);
                assert!(error(&q, width, columns) < 1e-3, "{n} {columns}: {}", error(&q, width, columns));
                // Column k of the start lies in the span of the first k + 1 columns.
                for k in 0..columns {
                    let shares: Vec<f64> = (0..=k)
                        .map(|j| (0..n).map(|i| f64::from(q[i * width + j]) * f64::from(start[i * width + k])).sum())
                        .collect();
                    for i in 0..n {
                        let rebuilt: f64 = (0..=k).map(|j| shares[j] * f64::from(q[i * width + j])).sum();
                        assert!((rebuilt - f64::from(start[i * width + k])).abs() < 1e-3, "{n} column {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn dependent_and_empty_columns_are_replaced() {
        let (n, width, columns) = (20, 16, 10);
        let mut start = vec![0.0; n * width];
        fill_uniform(&mut start[..n * width], 1);
        for row in start.chunks_exact_mut(width) {
            row[3] = 2.0 * row[0] - row[1];
            row[5] = 0.0;
            row[6] = row[2] * 1e-20;
            row[7] = row[2] + row[4] * 1e-6;
        }
        for by in [by_rows, orthonormalise] {
            let mut q = start.clone();
            by(&mut q, width, columns, &mut [0.0; 16]);
            assert!(error(&q, width, columns) < 1e-3, "{}", error(&q, width, columns));
        }
        let mut q = vec![0.0; n * width];
        orthonormalise(&mut q, width, columns, &mut [0.0; 16]);
        assert!(error(&q, width, columns) < 1e-6);
    }
}
