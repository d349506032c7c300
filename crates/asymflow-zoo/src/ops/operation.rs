//! What every operation says of itself.

use std::fmt::Debug;

use super::easing::Easing;
use crate::param::ParamSpec;
use crate::shape::{NetworkError, Shape};

/// Cost of an operation for one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCost {
    /// Multiply-accumulates of convolutions and fully connected layers.
    pub macs: u64,
    /// Sign decisions.
    pub relus: u64,
    /// Squares of quadratic activations.
    pub squares: u64,
}

/// Where an operation computes in the reference.
pub(crate) struct At<'a> {
    /// Samples of the batch.
    pub samples: usize,
    /// Shape of one input sample.
    pub input: Shape,
    /// Shape of one output sample.
    pub output: Shape,
    /// Its parameters.
    pub params: &'a [Vec<f64>],
    /// Whether normalisations use the batch's statistics.
    pub is_training: bool,
    /// What eases a training pass; the default in evaluation.
    pub easing: Easing,
    /// Quadratics of the network, over which a penalty is averaged.
    pub quadratics: usize,
}

impl At<'_> {
    /// Channel of value `i` of a batch of inputs.
    pub fn channel(&self, i: usize) -> usize {
        i / self.input.pixels() % self.input.channels
    }

    /// Σ of a batch by channel.
    pub fn by_channel(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.input.channels];
        values.enumerate().for_each(|(i, value)| sums[self.channel(i)] += value);
        sums
    }
}

/// Gradients of one operation.
pub(crate) struct Gradient {
    /// Of each input.
    pub inputs: Vec<Vec<f64>>,
    /// Of each parameter; empty for what is not trained.
    pub params: Vec<Vec<f64>>,
}

impl Gradient {
    /// Of one input, and no parameter.
    pub fn of(input: Vec<f64>) -> Self {
        Self { inputs: vec![input], params: Vec::new() }
    }
}

/// What an operation says of itself. Batches are samples × channels × rows × columns.
pub(super) trait Operation: Debug {
    fn label(&self) -> &str;
    fn output(&self, input: Shape) -> Result<Shape, NetworkError>;
    fn parameters(&self) -> Vec<ParamSpec> {
        Vec::new()
    }
    fn cost(&self, _input: Shape, _output: Shape) -> OpCost {
        OpCost::default()
    }
    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64>;
    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient;
    fn statistics(&self, _at: &At<'_>, _inputs: &[&[f64]]) -> Vec<(usize, Vec<f64>)> {
        Vec::new()
    }
}
