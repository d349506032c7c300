//! What every executor is held to: a lowered network computed node by node in plain f64, forward and backward, straight from the
//! definitions and slow.

use crate::graph::{Graph, Node};
use crate::network::Network;
use crate::ops::{At, Easing, Op};
use crate::shape::NetworkError;
use crate::weights::{Weights, WeightsError};

/// A network and its weights in f64.
#[derive(Clone, Debug)]
pub struct Reference {
    graph: Graph,
    /// The parameters in the order of [`Network::parameters`].
    pub params: Vec<Vec<f64>>,
}

/// Every value of one pass.
#[derive(Clone, Debug)]
pub struct Tape {
    samples: usize,
    easing: Option<Easing>,
    values: Vec<Vec<f64>>,
}

/// Gradients of Σ logits·dlogits, and of what a pass was eased by.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of the input, samples × input shape.
    pub input: Vec<f64>,
    /// Of every parameter; zero for what is not trained.
    pub params: Vec<Vec<f64>>,
}

/// Why there is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The network is not executable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A batch or gradient of the wrong length.
    #[error("{what} of {got} values, expected {expected}")]
    Length {
        /// Batch or gradient.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Values of one sample, or of the batch's logits.
        expected: usize,
    },
}

impl Tape {
    /// Logits, samples × classes.
    pub fn logits(&self) -> &[f64] {
        self.values.last().map_or(&[], Vec::as_slice)
    }
}

impl Reference {
    /// A network with weights in the order of [`Weights::flatten`].
    ///
    /// # Errors
    /// They do not fit.
    pub fn new(network: &Network, weights: &[f32]) -> Result<Self, ReferenceError> {
        let graph = Graph::new(network)?;
        let weights = Weights::unflatten(network, weights)?;
        weights.validate(network)?;
        let wide = |name: &str| weights.tensors[name].data.iter().map(|&v| f64::from(v)).collect();
        let params = graph.params.iter().map(|spec| wide(&spec.name)).collect();
        Ok(Self { graph, params })
    }

    /// Logits of a batch in evaluation, samples × classes.
    ///
    /// # Errors
    /// The length is not a positive multiple of one sample.
    pub fn logits(&self, x: &[f64]) -> Result<Vec<f64>, ReferenceError> {
        let mut tape = self.run(x, None)?;
        Ok(tape.values.pop().unwrap_or_default())
    }

    /// A training pass: normalisations use the batch's statistics, and dropout drops nothing.
    ///
    /// # Errors
    /// As [`Reference::logits`].
    pub fn train(&self, x: &[f64], easing: Easing) -> Result<Tape, ReferenceError> {
        self.run(x, Some(easing))
    }

    /// Moves running statistics by those of a training pass.
    pub fn commit(&mut self, tape: &Tape) {
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let moved = node.op.statistics(&self.at(tape, node), &tape.inputs(&self.graph, index));
            moved.into_iter().for_each(|(at, values)| self.params[node.params.start + at] = values);
        }
    }

    /// Gradients of Σ logits·`dy`, and of the penalty that the pass was eased by.
    ///
    /// # Errors
    /// `dy` has another length than the logits.
    pub fn backward(&self, tape: &Tape, dy: &[f64]) -> Result<Gradients, ReferenceError> {
        let (got, expected) = (dy.len(), tape.logits().len());
        if got != expected {
            return Err(ReferenceError::Length { what: "gradient", got, expected });
        }
        let mut params: Vec<Vec<f64>> = self.params.iter().map(|values| vec![0.0; values.len()]).collect();
        let mut gradients: Vec<Vec<f64>> = tape.values.iter().map(|values| vec![0.0; values.len()]).collect();
        gradients[self.graph.output()].copy_from_slice(dy);
        for (index, node) in self.graph.nodes.iter().enumerate().rev() {
            let dy = std::mem::take(&mut gradients[index + 1]);
            let found = node.op.backward(&self.at(tape, node), &tape.inputs(&self.graph, index), &dy);
            for (&value, dx) in node.inputs.iter().zip(found.inputs) {
                gradients[value].iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
            }
            for (sum, of) in params[node.params.clone()].iter_mut().zip(found.params) {
                sum.iter_mut().zip(of).for_each(|(sum, of)| *sum = of);
            }
        }
        Ok(Gradients { input: gradients.swap_remove(0), params })
    }

    fn run(&self, x: &[f64], easing: Option<Easing>) -> Result<Tape, ReferenceError> {
        let (got, expected) = (x.len(), self.graph.input.len());
        if got == 0 || !got.is_multiple_of(expected) {
            return Err(ReferenceError::Length { what: "batch", got, expected });
        }
        let mut tape = Tape { samples: got / expected, easing, values: vec![x.to_vec()] };
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let y = node.op.forward(&self.at(&tape, node), &tape.inputs(&self.graph, index));
            tape.values.push(y);
        }
        Ok(tape)
    }

    fn at(&self, tape: &Tape, node: &Node) -> At<'_> {
        At {
            samples: tape.samples,
            input: node.input,
            output: node.output,
            params: &self.params[node.params.clone()],
            is_training: tape.easing.is_some(),
            easing: tape.easing.unwrap_or_default(),
            quadratics: self.graph.nodes.iter().filter(|node| matches!(node.op, Op::Quadratic(_))).count(),
        }
    }
}

impl Tape {
    fn inputs(&self, graph: &Graph, node: usize) -> Vec<&[f64]> {
        graph.nodes[node].inputs.iter().map(|&value| self.values[value].as_slice()).collect()
    }
}
