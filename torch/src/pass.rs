//! One pass through the nodes of a network.

use asymflow_zoo::graph::{Graph, Node};
use asymflow_zoo::ops::{Conv, Easing, Linear, NORM_EPSILON, NORM_MOMENTUM, Op, Pointwise};
use tch::{Kind, Tensor};

use crate::activations::GroupTable;
use crate::parameters::Parameters;
use crate::place::Place;

/// What a pass reads, and what it gathers.
pub(crate) struct Nodes<'a> {
    graph: &'a Graph,
    parameters: &'a Parameters,
    pub(crate) groups: &'a [Option<GroupTable>],
    place: Place,
    pub(crate) train: bool,
    pub(crate) easing: Easing,
    /// Of each quadratic so far.
    pub(crate) penalties: Vec<Tensor>,
}

impl<'a> Nodes<'a> {
    pub fn new(
        graph: &'a Graph,
        parameters: &'a Parameters,
        groups: &'a [Option<GroupTable>],
        place: Place,
        train: bool,
        easing: Easing,
    ) -> Self {
        Self { graph, parameters, groups, place, train, easing, penalties: Vec::new() }
    }

    /// The output of the last node. Values are let go with their last use.
    pub fn run(&mut self, x: Tensor) -> Tensor {
        let graph = self.graph;
        let (uses, last) = (graph.uses(), graph.last_uses());
        let mut values: Vec<Option<Tensor>> = vec![Some(x)];
        for (index, node) in graph.nodes.iter().enumerate() {
            let mut read = |(i, &value): (usize, &usize)| {
                let is_last = last[value] == Some(index) && !node.inputs[i + 1..].contains(&value);
                // Only what nobody else reads, and no gradient asks for, is written over.
                let is_free =
                    uses[value] == 1 && value.checked_sub(1).is_some_and(|maker| is_forgotten(&graph.nodes[maker].op));
                let tensor =
                    if is_last { values[value].take() } else { values[value].as_ref().map(Tensor::shallow_clone) };
                Some((tensor?, is_free))
            };
            let inputs: Vec<(Tensor, bool)> = node.inputs.iter().enumerate().filter_map(&mut read).collect();
            let y = self.node(index, node, inputs);
            values.push(Some(y));
        }
        values.pop().flatten().unwrap_or_default()
    }

    fn node(&mut self, index: usize, node: &Node, inputs: Vec<(Tensor, bool)>) -> Tensor {
        let first = node.params.start;
        let mut inputs = inputs.into_iter();
        let (mut x, is_free) = inputs.next().unwrap_or_default();
        match &node.op {
            Op::Conv(conv) => self.conv(conv, first, &x),
            Op::Norm(_) => {
                let affine = Some((self.param(first), self.param(first + 1)));
                self.normalise(&x, affine, first + 2)
            }
            Op::GroupNorm(norm) => {
                let (scale, shift) = (Some(self.param(first)), Some(self.param(first + 1)));
                x.group_norm(norm.groups as i64, scale, shift, f64::from(NORM_EPSILON), true)
            }
            Op::Relu if is_free => x.relu_(),
            Op::Relu => x.relu(),
            Op::Pointwise(Pointwise::Silu) => x.silu(),
            Op::Pointwise(Pointwise::Tanh) => x.tanh(),
            Op::PRelu(_) => x.prelu(&self.param(first).to_kind(x.kind())),
            Op::Quadratic(quadratic) => self.in_binary32(&x, |nodes, x| nodes.quadratic(quadratic, first, x)),
            Op::SharedRelu(shared) => self.in_binary32(&x, |nodes, x| nodes.shared_relu(shared, node, index, x)),
            Op::MaxPool(pool) => {
                let [kernel, stride, padding] = [pool.kernel, pool.stride, pool.padding].map(|side| side as i64);
                x.max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1, 1], false)
            }
            Op::AvgPool(pool) => x.adaptive_avg_pool2d([pool.out as i64; 2]),
            Op::Flatten => x.reshape([x.size()[0], -1, 1, 1]),
            Op::Linear(linear) => self.linear(linear, first, &x),
            Op::Dropout(dropout) => x.dropout(f64::from(dropout.p), self.train),
            Op::Add => match inputs.next() {
                Some((other, _)) if is_free => x.g_add_(&other),
                Some((other, _)) => x + other,
                None => x,
            },
        }
    }

    pub(crate) fn param(&self, at: usize) -> &Tensor {
        self.parameters.tensor(at)
    }

    /// Computes on a copy in binary32: polynomials and votes leave the range of shorter numbers.
    fn in_binary32(&mut self, x: &Tensor, compute: impl FnOnce(&mut Self, Tensor) -> Tensor) -> Tensor {
        let y = compute(self, x.to_kind(Kind::Float));
        y.to_kind(self.place.kind)
    }

    fn conv(&self, conv: &Conv, first: usize, x: &Tensor) -> Tensor {
        let cast = |at: usize| self.param(at).to_kind(self.place.kind);
        let [stride, padding] = [conv.stride, conv.padding].map(|side| side as i64);
        let bias = conv.bias.then(|| cast(first + 1));
        x.conv2d(&cast(first), bias, [stride; 2], [padding; 2], [1, 1], 1)
    }

    fn linear(&self, linear: &Linear, first: usize, x: &Tensor) -> Tensor {
        let cast = |at: usize| self.param(at).to_kind(self.place.kind);
        let y = x.reshape([-1, linear.in_features as i64]).linear(&cast(first), Some(cast(first + 1)));
        y.reshape([-1, linear.out_features as i64, 1, 1])
    }

    /// Normalises by the running statistics at `at`, or by the batch's, towards which those are moved.
    pub(crate) fn normalise(&self, x: &Tensor, affine: Option<(&Tensor, &Tensor)>, at: usize) -> Tensor {
        let running = (Some(self.param(at)), Some(self.param(at + 1)));
        let (momentum, epsilon) = (f64::from(NORM_MOMENTUM), f64::from(NORM_EPSILON));
        x.batch_norm(
            affine.map(|(scale, _)| scale),
            affine.map(|(_, shift)| shift),
            running.0,
            running.1,
            self.train,
            momentum,
            epsilon,
            true,
        )
    }
}

/// Whether the gradient of an operation can do without its output.
const fn is_forgotten(op: &Op) -> bool {
    match op {
        Op::Conv(_) | Op::Norm(_) | Op::GroupNorm(_) | Op::Linear(_) | Op::Add => true,
        Op::Relu | Op::PRelu(_) | Op::Pointwise(_) | Op::Quadratic(_) | Op::SharedRelu(_) => false,
        Op::MaxPool(_) | Op::AvgPool(_) | Op::Dropout(_) | Op::Flatten => false,
    }
}
