//! The sum that ends a residual block.

use super::operation::{At, Gradient, Operation};
use crate::shape::{NetworkError, Shape};

#[derive(Debug)]
pub(super) struct Add;

impl Operation for Add {
    fn label(&self) -> &str {
        "residual"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        Ok(input)
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let mut sum = vec![0.0; at.samples * at.output.len()];
        inputs.iter().for_each(|x| sum.iter_mut().zip(*x).for_each(|(sum, x)| *sum += x));
        sum
    }

    fn backward(&self, _: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        Gradient { inputs: vec![dy.to_vec(); inputs.len()], params: Vec::new() }
    }
}
