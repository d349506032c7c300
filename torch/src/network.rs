//! A whole network; its weights live where it is computed.

use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{CollectError, Pass, SgdStep, Wanted};
use asymflow_residual::units::{ComputeUnit, Gradients, TrainUnit};
use asymflow_zoo::ops::Op;
use asymflow_zoo::{Network, graph::Graph, network::NetworkError, ops::Easing};
use tch::{Kind, Tensor, no_grad_guard};

use crate::activations::GroupTable;
use crate::convolution::unscaled;
use crate::parameters::Parameters;
use crate::pass::Nodes;
use crate::place::{Place, download, scale_for};

/// A network.
pub(crate) struct TorchNetwork {
    graph: Graph,
    classes: usize,
    place: Place,
    parameters: Parameters,
    kept: Option<Kept>,
    gradient: Option<Tensor>,
    easing: Easing,
    /// Of each node that shares decisions.
    groups: Vec<Option<GroupTable>>,
}

/// A training pass as PyTorch's graph.
struct Kept {
    x: Tensor,
    /// The parameters that it read.
    leaves: Vec<Tensor>,
    logits: Tensor,
    penalty: Option<Tensor>,
}

impl TorchNetwork {
    pub fn new(network: &Network, place: Place) -> Result<Self, NetworkError> {
        let graph = Graph::new(network)?;
        Ok(Self {
            classes: network.classes,
            parameters: Parameters::new(&graph.params, place.device),
            kept: None,
            gradient: None,
            easing: Easing::default(),
            groups: graph.nodes.iter().map(|node| GroupTable::of(node, place.device)).collect(),
            place,
            graph,
        })
    }

    /// Logits of `x` in binary32, and the penalty of a training pass.
    fn run(&self, x: Tensor, samples: usize, train: bool) -> (Tensor, Option<Tensor>) {
        let easing = if train { self.easing } else { Easing::default() };
        let mut nodes = Nodes::new(&self.graph, &self.parameters, &self.groups, self.place, train, easing);
        let logits = nodes.run(x).reshape([samples as i64, self.classes as i64]).to_kind(Kind::Float);
        (logits, nodes.penalty())
    }

    /// The first normalisation that a training pass of `samples` gives one value a channel.
    fn without_variance(&self, samples: usize) -> Option<&str> {
        let is_one = |node: &&asymflow_zoo::graph::Node| {
            let normalises = match &node.op {
                Op::Norm(_) => true,
                Op::Quadratic(quadratic) => quadratic.form.bases().is_some(),
                Op::Conv(_) | Op::GroupNorm(_) | Op::Relu | Op::PRelu(_) | Op::Pointwise(_) => false,
                Op::SharedRelu(_) | Op::MaxPool(_) => false,
                Op::AvgPool(_) | Op::Linear(_) | Op::Dropout(_) | Op::Flatten | Op::Add => false,
            };
            normalises && samples * node.input.pixels() < 2
        };
        self.graph.nodes.iter().find(is_one).map(|node| node.name.as_str())
    }
}

impl ComputeUnit for TorchNetwork {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        let samples = x.len() / self.graph.input.len().max(1);
        if pass == Pass::Training {
            // Should this pass fail, an earlier one must not be differentiated in its place.
            self.kept = None;
            if let Some(name) = self.without_variance(samples) {
                return Err(format!("{name}: one value a channel has no variance; use more samples").into());
            }
        }
        let place = self.place;
        Ok(place.compute(|| {
            let x = place.batch(&x, self.graph.input);
            if pass == Pass::Inference {
                let _no_graph = no_grad_guard();
                return download(&self.run(x, samples, false).0);
            }
            let x = x.set_requires_grad(true);
            let (logits, penalty) = self.run(x.shallow_clone(), samples, true);
            let result = download(&logits);
            self.kept = Some(Kept { x, leaves: self.parameters.leaves(), logits, penalty });
            result
        }))
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let Kept { x, leaves, logits, penalty } = self.kept.take().ok_or_else(|| "no kept forward pass".to_owned())?;
        let scale = scale_for(self.place.kind, &dy);
        let mut asked = leaves;
        if wanted.input {
            asked.push(x);
        }
        let (gradient, input) = self.place.compute(|| {
            let dy = Tensor::from_slice(&dy).view_as(&logits).to_device(self.place.device);
            let mut loss = (logits * dy).sum(Kind::Float);
            if let Some(penalty) = penalty {
                loss += penalty;
            }
            let mut found = Tensor::run_backward(&[loss * f64::from(scale)], &asked, false, false);
            let input = if wanted.input { found.pop() } else { None };
            let one = |(found, leaf): (Tensor, &Tensor)| if found.defined() { found } else { leaf.zeros_like() };
            let found: Vec<Tensor> = found.into_iter().zip(&asked).map(one).collect();
            let row = (!found.is_empty()).then(|| self.parameters.gradient_row(&found));
            (
                row.map(|row| if scale == 1.0 { row } else { row / f64::from(scale) }),
                input.map(|dx| unscaled(&dx, scale)),
            )
        });
        self.gradient = gradient;
        Ok((input.unwrap_or_default(), Vec::new()))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(download(&self.parameters.flat()))
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        self.parameters.set(&weights);
        Ok(())
    }

    fn reset(&mut self) {
        (self.kept, self.gradient) = (None, None);
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        Some(self)
    }
}

impl TrainUnit for TorchNetwork {
    fn step(&mut self, sgd: SgdStep) -> Result<(), CollectError> {
        let gradient = self.gradient.take().ok_or_else(|| "no gradient to step along".to_owned())?;
        self.parameters.step(gradient, sgd);
        Ok(())
    }

    fn momentum(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(download(&self.parameters.momentum()))
    }

    fn set_momentum(&mut self, momentum: &[f32]) -> Result<(), CollectError> {
        self.parameters.set_momentum(momentum);
        Ok(())
    }

    fn ease(&mut self, easing: Easing) -> Result<(), CollectError> {
        self.easing = easing;
        Ok(())
    }
}
