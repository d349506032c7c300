//! Amplification by shuffling: what is lost by one of many records that answer alike, in an order that nobody knows.

use thiserror::Error;

use crate::loss::Loss;

/// Why shuffling is no help that could be stated.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ShuffleError {
    /// The bound is proved for less.
    #[error(
        "shuffling {records} records amplifies nothing above epsilon {limit} a record at delta {delta}, got {epsilon}"
    )]
    TooMuch {
        /// ε of one record by itself.
        epsilon: f64,
        /// The largest that the bound holds for.
        limit: f64,
        /// How many records are shuffled.
        records: u64,
        /// δ of the bound.
        delta: f64,
    },
    /// A loss that is not pure is not amplified.
    #[error("only pure losses are amplified by shuffling, got {loss:?}")]
    NotPure {
        /// The loss.
        loss: Loss,
    },
    /// δ lies outside (0, 1).
    #[error("delta must lie strictly between 0 and 1, got {delta}")]
    Delta {
        /// The δ asked for.
        delta: f64,
    },
}

/// What one record loses when `records` records are released, each at `loss` by the same mechanism, and only their multiset is
/// seen: (ε, δ) with ε = ln(1 + (e^ε₀ − 1)/(e^ε₀ + 1)·(8·√(e^ε₀·ln(4/δ)/n) + 8·e^ε₀/n)), by replacement (Feldman, McMillan and
/// Talwar 2021, "Hiding Among the Clones", theorem 3.1).
///
/// **It does not hold** above ε₀ = ln(n/(16·ln(2/δ))), for losses that are not pure, and for whoever can tell which answer is
/// whose: by its number, by the order in which records are trained on, by what is asked about later, or because it was a
/// client that asked. Everything that is released of a record, its label included, is one answer, and ε₀ is that of all of it.
///
/// ```
/// use asymflow_privacy::Loss;
/// use asymflow_privacy::accountants::shuffled;
///
/// // A codeword at 1.4 and a label at 4, of 50,000 records.
/// let Loss::Approximate { epsilon, .. } = shuffled(Loss::Pure { epsilon: 5.4 }, 50_000, 1e-5)? else { panic!() };
/// assert!((epsilon - 1.08).abs() < 0.01);
/// assert!(shuffled(Loss::Pure { epsilon: 9.0 }, 50_000, 1e-5).is_err());
/// # Ok::<(), asymflow_privacy::accountants::ShuffleError>(())
/// ```
///
/// # Errors
/// A loss that is not pure, or too large for so many records; a δ that is none.
pub fn shuffled(loss: Loss, records: u64, delta: f64) -> Result<Loss, ShuffleError> {
    let Loss::Pure { epsilon } = loss.checked() else { return Err(ShuffleError::NotPure { loss }) };
    if !(delta > 0.0 && delta < 1.0) {
        return Err(ShuffleError::Delta { delta });
    }
    let n = records as f64;
    let limit = (n / (16.0 * (2.0 / delta).ln())).ln();
    if epsilon > limit {
        return Err(ShuffleError::TooMuch { epsilon, limit, records, delta });
    }
    let power = epsilon.exp();
    let clones = 8.0 * (power * (4.0 / delta).ln() / n).sqrt() + 8.0 * power / n;
    let amplified = ((0.5 * epsilon).tanh() * clones).ln_1p();
    // Shuffling is post-processing: it never costs more.
    Ok(if amplified < epsilon { Loss::Approximate { epsilon: amplified, delta } } else { loss })
}
