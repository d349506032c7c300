//! A [`Network`] prepared for execution: parameter indices instead of names, ReLU fused where it can be.

use asymflow_zoo::{Conv, Layer, Network, Shape};

use crate::ops::Window;
use crate::quadratic::QuadraticNode;
use crate::shared_relu::SharedNode;

/// A convolution and where its parameters lie.
#[derive(Clone, Debug)]
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
}

/// One step of execution.
#[derive(Clone, Debug)]
pub enum Node {
    /// Convolution.
    Conv(Box<ConvNode>),
    /// Batch normalisation; scale, shift, running mean and variance are four consecutive parameters.
    Norm {
        /// Index of the scale.
        first: usize,
        /// Whether a ReLU follows at once.
        relu: bool,
    },
    /// ReLU on its own.
    Relu,
    /// ReLU with a slope for each channel below zero.
    PRelu {
        /// Index of the slopes.
        slopes: usize,
    },
    /// A trained quadratic.
    Quadratic(Box<QuadraticNode>),
    /// A ReLU whose decisions are shared.
    SharedRelu(Box<SharedNode>),
    /// Max-pooling.
    MaxPool(Window),
    /// Adaptive average pooling to `out × out`.
    AvgPool {
        /// Side of the output.
        out: usize,
    },
    /// C×H×W to features.
    Flatten,
    /// Fully connected; weight and bias are consecutive parameters.
    Linear {
        /// Index of the weight.
        weight: usize,
        /// Output features.
        outputs: usize,
    },
    /// Dropout, with the number of this dropout for its random stream.
    Dropout {
        /// Probability of zeroing.
        p: f32,
        /// Number among the dropouts.
        index: usize,
    },
    /// main(x) + shortcut(x), then ReLU where one follows at once.
    Residual {
        /// Longer branch.
        main: Vec<Node>,
        /// Shorter branch; empty is the identity.
        shortcut: Vec<Node>,
        /// Whether a ReLU follows at once.
        relu: bool,
    },
}

/// A prepared network.
#[derive(Clone, Debug)]
pub struct Program {
    /// The steps.
    pub nodes: Vec<Node>,
    /// Number of convolutions.
    pub convs: usize,
    /// Number of quadratics: what a penalty on their inputs is averaged over.
    pub quadratics: usize,
}

#[derive(Default)]
struct Counters {
    input_gradient: bool,
    parameters: usize,
    convs: usize,
    quadratics: usize,
    dropouts: usize,
}

impl Program {
    /// Prepares a validated network.
    ///
    /// # Errors
    /// A layer does not fit its input.
    pub fn new(network: &Network) -> Result<Self, asymflow_zoo::NetworkError> {
        Self::prepare(network, false)
    }

    /// Prepares a validated network whose backward pass also yields the gradient of its input.
    ///
    /// # Errors
    /// A layer does not fit its input.
    pub fn with_input_gradient(network: &Network) -> Result<Self, asymflow_zoo::NetworkError> {
        Self::prepare(network, true)
    }

    fn prepare(network: &Network, input_gradient: bool) -> Result<Self, asymflow_zoo::NetworkError> {
        network.validate()?;
        let mut counters = Counters { input_gradient, ..Counters::default() };
        let (nodes, _) = prepare(&network.layers, network.input, &mut counters)?;
        Ok(Self { nodes, convs: counters.convs, quadratics: counters.quadratics })
    }

    /// Every convolution in execution order (main branch before shortcut).
    pub fn conv_nodes(&self) -> Vec<&ConvNode> {
        fn visit<'a>(nodes: &'a [Node], out: &mut Vec<&'a ConvNode>) {
            for node in nodes {
                match node {
                    Node::Conv(conv) => out.push(conv),
                    Node::Residual { main, shortcut, .. } => {
                        visit(main, out);
                        visit(shortcut, out);
                    }
                    _ => {}
                }
            }
        }
        let mut out = Vec::new();
        visit(&self.nodes, &mut out);
        out
    }
}

fn prepare(
    layers: &[Layer],
    mut shape: Shape,
    counters: &mut Counters,
) -> Result<(Vec<Node>, Shape), asymflow_zoo::NetworkError> {
    let mut nodes: Vec<Node> = Vec::new();
    for layer in layers {
        let output = layer.output(shape)?;
        if matches!(layer, Layer::Relu) && fuse_relu(nodes.last_mut()) {
            continue;
        }
        nodes.push(node(layer, shape, output, counters)?);
        shape = output;
    }
    Ok((nodes, shape))
}

fn fuse_relu(last: Option<&mut Node>) -> bool {
    match last {
        Some(Node::Norm { relu, .. } | Node::Residual { relu, .. }) if !*relu => {
            *relu = true;
            true
        }
        _ => false,
    }
}

fn node(
    layer: &Layer,
    input: Shape,
    output: Shape,
    counters: &mut Counters,
) -> Result<Node, asymflow_zoo::NetworkError> {
    let first = counters.parameters;
    Ok(match layer {
        Layer::Conv(conv) => {
            let index = counters.convs;
            counters.convs += 1;
            counters.parameters += 1 + usize::from(conv.bias);
            Node::Conv(Box::new(ConvNode {
                index,
                conv: conv.clone(),
                input,
                output,
                weight: first,
                bias: conv.bias.then_some(first + 1),
                input_gradient: first > 0 || counters.input_gradient,
            }))
        }
        Layer::BatchNorm { .. } => {
            counters.parameters += 4;
            Node::Norm { first, relu: false }
        }
        Layer::Relu => Node::Relu,
        Layer::PRelu { .. } => {
            counters.parameters += 1;
            Node::PRelu { slopes: first }
        }
        Layer::Quadratic(layer) => {
            counters.parameters += layer.tensors();
            counters.quadratics += 1;
            Node::Quadratic(Box::new(QuadraticNode { layer: layer.clone(), first }))
        }
        Layer::SharedRelu(layer) => {
            counters.parameters += layer.tensors();
            Node::SharedRelu(Box::new(SharedNode::new(layer, input, first)))
        }
        Layer::MaxPool { kernel, stride, padding } => {
            Node::MaxPool(Window { kernel: *kernel, stride: *stride, padding: *padding })
        }
        Layer::AdaptiveAvgPool { out } => Node::AvgPool { out: *out },
        Layer::Flatten => Node::Flatten,
        Layer::Linear(linear) => {
            counters.parameters += 2;
            Node::Linear { weight: first, outputs: linear.out_features }
        }
        Layer::Dropout { p } => {
            counters.dropouts += 1;
            Node::Dropout { p: *p, index: counters.dropouts - 1 }
        }
        Layer::Residual { main, shortcut } => {
            let (main, _) = prepare(main, input, counters)?;
            let (shortcut, _) = prepare(shortcut, input, counters)?;
            Node::Residual { main, shortcut, relu: false }
        }
    })
}
