//! A map as one row of features.

use super::operation::{At, Gradient, Operation};
use crate::shape::{NetworkError, Shape};

#[derive(Debug)]
pub(super) struct Flatten;

impl Operation for Flatten {
    fn label(&self) -> &str {
        "flatten"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        Ok(Shape::new(input.len(), 1, 1))
    }

    fn forward(&self, _: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        inputs[0].to_vec()
    }

    fn backward(&self, _: &At<'_>, _: &[&[f64]], dy: &[f64]) -> Gradient {
        Gradient::of(dy.to_vec())
    }
}
