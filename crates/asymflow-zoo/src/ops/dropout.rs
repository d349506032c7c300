//! Dropout.

use super::operation::{At, Gradient, Operation};
use crate::shape::{NetworkError, Shape};

/// Zeroes each value with probability `p` in training and scales the others by 1/(1 − p). Which ones is each executor's own
/// draw: the reference computes the identity, which it also is in evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing, in [0, 1).
    pub p: f32,
}

impl Operation for Dropout {
    fn label(&self) -> &str {
        "dropout"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        if (0.0..1.0).contains(&self.p) { Ok(input) } else { Err(NetworkError::out_of_range("dropout", "probability")) }
    }

    fn forward(&self, _: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        inputs[0].to_vec()
    }

    fn backward(&self, _: &At<'_>, _: &[&[f64]], dy: &[f64]) -> Gradient {
        Gradient::of(dy.to_vec())
    }
}
