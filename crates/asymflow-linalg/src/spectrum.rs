//! Singular values of a sample and what they say about it.

use faer::MatRef;
use thiserror::Error;

/// Why a spectrum could not be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpectrumError {
    /// The matrix holds another number of values than its shape says.
    #[error("a matrix of {rows}x{columns} holds {expected} values, not {got}")]
    Length {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Their product.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// The matrix holds NaN or an infinity.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value.
        index: usize,
    },
    /// The decomposition did not converge.
    #[error("the singular value decomposition did not converge")]
    NoConvergence,
}

/// Singular values of the row-major `x` (`channels × pixels`), falling; computed in f64.
///
/// # Errors
/// Wrong length, non-finite values, no convergence.
pub fn singular_values(x: &[f32], channels: usize, pixels: usize) -> Result<Vec<f32>, SpectrumError> {
    let expected = channels * pixels;
    if x.len() != expected {
        return Err(SpectrumError::Length { rows: channels, columns: pixels, expected, got: x.len() });
    }
    if let Some(index) = x.iter().position(|value| !value.is_finite()) {
        return Err(SpectrumError::NonFinite { index });
    }
    let wide: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
    let matrix = MatRef::from_row_major_slice(&wide[..], channels, pixels);
    let values = matrix.singular_values().map_err(|_| SpectrumError::NoConvergence)?;
    Ok(values.into_iter().map(|value| value as f32).collect())
}

/// Share of the energy ‖X‖² that the first `rank` singular values keep; 1 when there is none.
pub fn energy_kept(singular_values: &[f32], rank: usize) -> f64 {
    let square = |value: &f32| f64::from(*value).powi(2);
    let total: f64 = singular_values.iter().map(square).sum();
    if total > 0.0 { singular_values.iter().take(rank).map(square).sum::<f64>() / total } else { 1.0 }
}

/// Smallest rank, at least 1, that keeps `share` of the energy.
pub fn rank_for_energy(singular_values: &[f32], share: f64) -> usize {
    let enough = |rank: &usize| energy_kept(singular_values, *rank) >= share;
    (1..singular_values.len()).find(enough).unwrap_or(singular_values.len().max(1))
}

/// SVD-channel entropy μ = −log₂ Σ s̄ⱼ² with s̄ⱼ = sⱼ / Σ s, in bits (thesis Definition 1, a Rényi-2 entropy).
///
/// 0 for one singular value or none, log₂ N for N equal ones. If the singular values fall geometrically, ⌈2^μ⌉ of
/// them keep at least 0.969 of the energy (thesis Theorem 1, which rounds to 0.97).
pub fn svd_channel_entropy(singular_values: &[f32]) -> f64 {
    let sum: f64 = singular_values.iter().map(|value| f64::from(*value)).sum();
    let squares: f64 = singular_values.iter().map(|value| f64::from(*value).powi(2)).sum();
    // +0.0 turns the −0 of a single value into 0.
    if squares > 0.0 { -(squares / (sum * sum)).log2() + 0.0 } else { 0.0 }
}

#[cfg(test)]
mod tests;
