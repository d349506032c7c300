//! A network lowered to operations, in the order of execution.

pub mod cost;
pub mod reference;

use std::ops::Range;

use crate::network::{Layer, Network};
use crate::ops::Op;
use crate::param::ParamSpec;
use crate::shape::{NetworkError, Shape};

/// One operation of a [`Graph`]. It makes the value after those of the nodes before it: node `i` makes value `i + 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Prefix of its parameters' names; where it has none, the last convolution or linear layer before it and its kind, as
    /// `conv1.relu`.
    pub name: String,
    /// The values that it reads: one, or two that are added.
    pub inputs: Vec<usize>,
    /// Shape of one sample of every input.
    pub input: Shape,
    /// Shape of one output sample.
    pub output: Shape,
    /// Where its parameters lie among those of the network.
    pub params: Range<usize>,
}

/// A lowered network: residual blocks are their main branch, their shortcut and a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Shape of value 0, the input.
    pub input: Shape,
    /// The operations. The last makes the output.
    pub nodes: Vec<Node>,
    /// Every parameter tensor, as [`Network::parameters`].
    pub params: Vec<ParamSpec>,
}

impl Graph {
    /// Lowers a network.
    ///
    /// # Errors
    /// As [`Network::validate`].
    pub fn new(network: &Network) -> Result<Self, NetworkError> {
        network.validate()?;
        Self::of(&network.layers, network.input)
    }

    /// Lowers layers, whatever they end in.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn of(layers: &[Layer], input: Shape) -> Result<Self, NetworkError> {
        let mut graph = Self { input, nodes: Vec::new(), params: Vec::new() };
        graph.lower(layers, 0, &mut "input".to_owned())?;
        Ok(graph)
    }

    /// Shape of one sample of a value.
    pub fn shape(&self, value: usize) -> Shape {
        value.checked_sub(1).map_or(self.input, |node| self.nodes[node].output)
    }

    /// The value that the last node makes, or the input.
    pub const fn output(&self) -> usize {
        self.nodes.len()
    }

    /// For every value, how many nodes read it.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len() + 1];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|&value| uses[value] += 1);
        uses
    }

    /// The node that reads a value last.
    pub fn last_uses(&self) -> Vec<Option<usize>> {
        let mut last = vec![None; self.nodes.len() + 1];
        for (index, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&value| last[value] = Some(index));
        }
        last
    }

    /// Appends `layers` on top of value `at`; `last` is the last layer of weights. Returns the value that they make.
    fn lower(&mut self, layers: &[Layer], mut at: usize, last: &mut String) -> Result<usize, NetworkError> {
        for layer in layers {
            at = match layer.op() {
                Some(op) => self.push(op, vec![at], last)?,
                None => self.block(layer, at, last)?,
            };
        }
        Ok(at)
    }

    fn block(&mut self, layer: &Layer, at: usize, last: &mut String) -> Result<usize, NetworkError> {
        let Layer::Residual { main, shortcut } = layer else { return Ok(at) };
        let mut before = last.clone();
        let long = self.lower(main, at, last)?;
        let short = self.lower(shortcut, at, &mut before)?;
        let (main, shortcut) = (self.shape(long), self.shape(short));
        if main != shortcut {
            return Err(NetworkError::Branches { main, shortcut });
        }
        self.push(Op::Add, vec![long, short], last)
    }

    fn push(&mut self, op: Op, inputs: Vec<usize>, last: &mut String) -> Result<usize, NetworkError> {
        if matches!(op, Op::Conv(_) | Op::Linear(_)) {
            op.label().clone_into(last);
        }
        let (first, params) = (self.params.len(), op.parameters());
        let name = if params.is_empty() { format!("{last}.{}", op.label()) } else { op.label().to_owned() };
        self.params.extend(params);
        let input = self.shape(inputs[0]);
        let output = op.output(input)?;
        self.nodes.push(Node { op, name, inputs, input, output, params: first..self.params.len() });
        Ok(self.nodes.len())
    }
}
