//! Clipping: what bounds the sensitivity of a record before it is released.

use thiserror::Error;

use crate::payload::Payload;

/// Why a record was not clipped. The record is unchanged.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ClipError {
    /// The bound is not a positive finite number.
    #[error("clip bound must be positive and finite, got {limit}")]
    Limit {
        /// The bound asked for.
        limit: f32,
    },
    /// The record holds NaN or an infinity, which no scale brings within a bound.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value.
        index: usize,
    },
}

/// Independent running sums, so that the compiler can keep them in vector registers.
const LANES: usize = 8;

/// Scales `record` so that its l2 norm is at most `clip`; a record within the bound stays as it is.
/// Returns the l2 norm before (infinite when it exceeds what f32 holds).
///
/// # Guarantee
/// Σ xᵢ² ≤ `clip`² for the numbers that are left in `record`, rounded to f32 as they are: the sum of squares is
/// taken in double-double arithmetic (relative error below n²·2⁻¹⁰⁴), and scaled values round towards zero.
///
/// # Errors
/// `clip` is not positive and finite, or a value is not finite; then nothing has changed.
pub fn clip_l2(record: &mut [f32], clip: f32) -> Result<f32, ClipError> {
    check(record, clip)?;
    let (high, low) = sum_of_squares(record);
    let bound = f64::from(clip) * f64::from(clip); // exact: 24 + 24 bits
    let norm = (high + low).sqrt();
    if (high - bound) + low > 0.0 {
        // Two roundings of 2⁻⁵³ each, in the root and the quotient, stay below this margin.
        let scale = f64::from(clip) / norm * (1.0 - 4.0 * f64::EPSILON);
        record.iter_mut().for_each(|value| *value = towards_zero(f64::from(*value) * scale));
    }
    Ok(norm as f32)
}

/// Moves every value into [−`limit`, `limit`]. Returns how many were outside.
///
/// # Errors
/// `limit` is not positive and finite, or a value is not finite; then nothing has changed.
pub fn clip_coordinates(record: &mut [f32], limit: f32) -> Result<usize, ClipError> {
    check(record, limit)?;
    let mut clipped = 0;
    for value in record {
        clipped += usize::from(value.abs() > limit);
        *value = value.clamp(-limit, limit);
    }
    Ok(clipped)
}

fn check(record: &[f32], limit: f32) -> Result<(), ClipError> {
    if !(limit.is_finite() && limit > 0.0) {
        return Err(ClipError::Limit { limit });
    }
    match Payload::first_non_finite_of(record) {
        Some(index) => Err(ClipError::NonFinite { index }),
        None => Ok(()),
    }
}

/// Σ xᵢ² as an unevaluated sum of two f64. Squares of f32 are exact in f64, so only additions round.
fn sum_of_squares(record: &[f32]) -> (f64, f64) {
    let (mut high, mut low) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    for chunk in record.chunks(LANES) {
        for ((high, low), &value) in high.iter_mut().zip(&mut low).zip(chunk) {
            let (sum, error) = two_sum(*high, f64::from(value) * f64::from(value));
            *high = sum;
            *low += error;
        }
    }
    let mut total = (0.0, 0.0);
    for (high, low) in high.into_iter().zip(low) {
        let (sum, error) = two_sum(total.0, high);
        total = (sum, total.1 + error + low);
    }
    total
}

/// a + b and the error of that sum, exactly (Knuth's TwoSum).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// The f32 nearest to `value` among those no larger in magnitude.
fn towards_zero(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}
