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
