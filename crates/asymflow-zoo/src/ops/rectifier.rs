//! ReLU, and ReLU with trained slopes below zero.

use super::operation::{At, Gradient, OpCost, Operation};
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

#[derive(Debug)]
pub(super) struct Relu;

/// Rectified linear unit with a trained slope for each channel below zero (He et al., 2015); weight `channels`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PRelu {
    /// Parameter prefix.
    pub name: String,
    /// Channels.
    pub channels: usize,
}

/// max(x, 0) that keeps NaN.
pub(super) fn relu(x: f64) -> f64 {
    if x <= 0.0 { 0.0 } else { x }
}

fn decisions(output: Shape) -> OpCost {
    OpCost { relus: output.len() as u64, ..OpCost::default() }
}

impl Operation for Relu {
    fn label(&self) -> &str {
        "relu"
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        Ok(input)
    }

    fn cost(&self, _: Shape, output: Shape) -> OpCost {
        decisions(output)
    }

    fn forward(&self, _: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        inputs[0].iter().map(|&x| relu(x)).collect()
    }

    fn backward(&self, _: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        Gradient::of(inputs[0].iter().zip(dy).map(|(&x, &dy)| if x > 0.0 { dy } else { 0.0 }).collect())
    }
}

impl Operation for PRelu {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        input.expect_channels(&self.name, self.channels)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        vec![ParamSpec::new(&self.name, "weight", vec![self.channels], ParamKind::Slope, Init::constant(0.25))]
    }

    fn cost(&self, _: Shape, output: Shape) -> OpCost {
        decisions(output)
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let slope = |i: usize| at.params[0][at.channel(i)];
        inputs[0].iter().enumerate().map(|(i, &x)| if x < 0.0 { x * slope(i) } else { x }).collect()
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let slope = |i: usize| at.params[0][at.channel(i)];
        let pairs = || inputs[0].iter().zip(dy);
        let input = pairs().enumerate().map(|(i, (&x, &dy))| if x < 0.0 { dy * slope(i) } else { dy }).collect();
        let slopes = at.by_channel(pairs().map(|(&x, &dy)| x.min(0.0) * dy));
        Gradient { inputs: vec![input], params: vec![slopes] }
    }
}
