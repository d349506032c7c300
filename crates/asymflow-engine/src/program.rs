//! A network prepared for execution: lowered, ReLU fused where it can be, groups of activations laid out.

use asymflow_zoo::ops::{AvgPool, MaxPool, Op, Pointwise};
use asymflow_zoo::{
    Network,
    graph::Graph,
    network::{NetworkError, Shape},
    ops::Conv,
};

use crate::quadratic::QuadraticNode;
use crate::shared_relu::SharedNode;

/// A convolution and where its parameters lie.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvNode {
    /// Number of this convolution in execution order.
    pub index: usize,
    /// Its definition.
    pub conv: Conv,
    /// Shape of one input sample.
    pub input: Shape,
    /// Shape of one output sample.
    pub output: Shape,
    /// Index of the weight in the parameters.
    pub weight: usize,
    /// Index of the bias.
    pub bias: Option<usize>,
    /// Whether somebody needs the gradient with respect to the input.
    pub input_gradient: bool,
    /// Whether the engine rectifies its output with the bias.
    pub(crate) relu: bool,
}

/// What a node computes, with the indices of its parameters.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Conv(Box<ConvNode>),
    /// Scale, shift, running mean and variance are four consecutive parameters from `first` on.
    Norm {
        first: usize,
        relu: bool,
    },
    GroupNorm {
        first: usize,
        groups: usize,
    },
    Relu,
    PRelu {
        slopes: usize,
    },
    Pointwise(Pointwise),
    Quadratic(Box<QuadraticNode>),
    SharedRelu(Box<SharedNode>),
    MaxPool(MaxPool),
    AvgPool(AvgPool),
    Flatten,
    /// Weight and bias are consecutive parameters.
    Linear {
        weight: usize,
    },
    Dropout {
        p: f32,
        /// Number among the dropouts, for its random stream.
        index: usize,
    },
    Add {
        relu: bool,
    },
}

/// One step of execution.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub kind: Kind,
    pub name: String,
    /// The values that it reads, and whether it is the last to read them.
    pub inputs: Vec<(usize, bool)>,
    /// The value that it makes.
    pub value: usize,
    /// Shape of one output sample.
    pub output: Shape,
}

/// A prepared network.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) nodes: Vec<Node>,
    pub(crate) input: Shape,
    /// The value that is put out.
    pub(crate) output: usize,
    /// Number of quadratics: what a penalty on their inputs is averaged over.
    pub(crate) quadratics: usize,
}

impl Program {
    /// Prepares a network.
    ///
    /// # Errors
    /// A layer does not fit its input.
    pub fn new(network: &Network) -> Result<Self, NetworkError> {
        Self::prepare(network, false)
    }

    /// As [`Program::new`], of a network whose backward pass also yields the gradient of its input.
    ///
    /// # Errors
    /// A layer does not fit its input.
    pub fn with_input_gradient(network: &Network) -> Result<Self, NetworkError> {
        Self::prepare(network, true)
    }

    fn prepare(network: &Network, input_gradient: bool) -> Result<Self, NetworkError> {
        let graph = Graph::new(network)?;
        let (uses, last_uses) = (graph.uses(), graph.last_uses());
        let mut program = Self { nodes: Vec::new(), input: graph.input, output: graph.output(), quadratics: 0 };
        let (mut convs, mut dropouts) = (0, 0);
        for (index, node) in graph.nodes.iter().enumerate() {
            let first = node.params.start;
            let kind = match &node.op {
                Op::Conv(conv) => {
                    convs += 1;
                    Kind::Conv(Box::new(ConvNode {
                        index: convs - 1,
                        conv: conv.clone(),
                        input: node.input,
                        output: node.output,
                        weight: first,
                        bias: conv.bias.then_some(first + 1),
                        input_gradient: first > 0 || input_gradient,
                        relu: false,
                    }))
                }
                Op::Norm(_) => Kind::Norm { first, relu: false },
                Op::GroupNorm(norm) => Kind::GroupNorm { first, groups: norm.groups },
                Op::Relu if uses[node.inputs[0]] == 1 && program.fuse_relu(node.inputs[0], index + 1) => continue,
                Op::Relu => Kind::Relu,
                Op::PRelu(_) => Kind::PRelu { slopes: first },
                &Op::Pointwise(function) => Kind::Pointwise(function),
                Op::Quadratic(layer) => {
                    program.quadratics += 1;
                    Kind::Quadratic(Box::new(QuadraticNode { layer: layer.clone(), first }))
                }
                Op::SharedRelu(layer) => Kind::SharedRelu(Box::new(SharedNode::new(layer, node.input, first))),
                Op::MaxPool(pool) => Kind::MaxPool(*pool),
                Op::AvgPool(pool) => Kind::AvgPool(*pool),
                Op::Flatten => Kind::Flatten,
                Op::Linear(_) => Kind::Linear { weight: first },
                Op::Dropout(dropout) => {
                    dropouts += 1;
                    Kind::Dropout { p: dropout.p, index: dropouts - 1 }
                }
                Op::Add => Kind::Add { relu: false },
            };
            let read = |(i, &value): (usize, &usize)| {
                (value, last_uses[value] == Some(index) && !node.inputs[i + 1..].contains(&value))
            };
            let inputs = node.inputs.iter().enumerate().map(read).collect();
            let (name, value, output) = (node.name.clone(), index + 1, node.output);
            program.nodes.push(Node { kind, name, inputs, value, output });
        }
        Ok(program)
    }

    /// Lets the node before a ReLU rectify as well, where it can and makes just what the ReLU reads; it then makes `value`.
    fn fuse_relu(&mut self, reads: usize, value: usize) -> bool {
        let Some(Node { kind, value: made, .. }) = self.nodes.last_mut() else {
            return false;
        };
        let relu = if let Kind::Norm { relu, .. } | Kind::Add { relu } = kind {
            relu
        } else if let Kind::Conv(conv) = kind
            && conv.bias.is_some()
        {
            &mut conv.relu
        } else {
            return false;
        };
        let can = !*relu && *made == reads;
        if can {
            (*relu, *made) = (true, value);
        }
        can
    }

    /// Every convolution in execution order (main branch before shortcut).
    pub fn conv_nodes(&self) -> Vec<&ConvNode> {
        let mut convs = Vec::new();
        for node in &self.nodes {
            if let Kind::Conv(conv) = &node.kind {
                convs.push(&**conv);
            }
        }
        convs
    }

    /// Number of convolutions.
    pub fn convs(&self) -> usize {
        self.conv_nodes().len()
    }
}
