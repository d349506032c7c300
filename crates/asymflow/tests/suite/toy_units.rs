//! What the toy backend computes.

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_linalg::conv::{self, ConvShape};
use asymflow_residual::backend::{ConvUnit, Pass, SgdStep, Wanted};
use asymflow_zoo::{Network, Weights, ops::ParamSpec};
use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};

/// One unit; only networks are stepped and have a momentum.
pub trait ToyUnit: Send {
    fn forward(&mut self, x: Vec<f32>, pass: Pass) -> Vec<f32>;
    /// Gradients of the input and the weights; none without a kept forward pass.
    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Option<(Vec<f32>, Vec<f32>)>;
    fn weights(&self) -> Vec<f32>;
    fn set_weights(&mut self, weights: Vec<f32>);
    fn reset(&mut self);
    fn step(&mut self, _sgd: SgdStep) {
        unreachable!("nobody steps a convolution");
    }
    fn momentum(&self) -> Vec<f32> {
        unreachable!("a convolution has no momentum");
    }
    fn set_momentum(&mut self, _momentum: &[f32]) {
        unreachable!("a convolution has no momentum");
    }
}

pub struct ToyConv {
    conv: ConvUnit,
    weights: Vec<f32>,
    kept: Option<Vec<f32>>,
}

fn with_stack<T>(request: StackReq, f: impl FnOnce(&mut MemStack) -> T) -> T {
    f(MemStack::new(&mut MemBuffer::new(request)))
}

impl ToyConv {
    pub fn new(conv: &ConvUnit) -> Self {
        let mut unit = Self { conv: conv.clone(), weights: Vec::new(), kept: None };
        unit.weights = vec![0.0; unit.shape(conv.input.len()).weight_len()];
        unit
    }

    fn shape(&self, values: usize) -> ConvShape {
        let ConvUnit { input, out_channels, kernel, stride, padding } = self.conv;
        ConvShape {
            samples: values / input.len(),
            in_channels: input.channels,
            height: input.height,
            width: input.width,
            out_channels,
            kernel,
            stride,
            padding,
        }
    }
}

impl ToyUnit for ToyConv {
    fn forward(&mut self, x: Vec<f32>, pass: Pass) -> Vec<f32> {
        let s = self.shape(x.len());
        let mut y = vec![0.0; s.output_len()];
        let par = Par::Seq;
        with_stack(conv::forward_scratch(s, par), |stack| conv::forward(s, &x, &self.weights, &mut y, par, stack))
            .expect("shapes were checked");
        self.kept = (pass == Pass::Training).then_some(x);
        y
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Option<(Vec<f32>, Vec<f32>)> {
        let x = self.kept.take()?;
        let s = self.shape(x.len());
        let (mut dx, mut dw, par) = (Vec::new(), vec![0.0; s.weight_len()], Par::Seq);
        with_stack(conv::weight_gradient_scratch(s, par), |stack| {
            conv::weight_gradient(s, &x, &dy, &mut dw, par, stack)
        })
        .expect("shapes were checked");
        if wanted.input {
            dx = vec![0.0; s.input_len()];
            with_stack(conv::input_gradient_scratch(s, par), |stack| {
                conv::input_gradient(s, &dy, &self.weights, &mut dx, par, stack)
            })
            .expect("shapes were checked");
        }
        Some((dx, dw))
    }

    fn weights(&self) -> Vec<f32> {
        self.weights.clone()
    }

    fn set_weights(&mut self, weights: Vec<f32>) {
        self.weights = weights;
    }

    fn reset(&mut self) {
        self.kept = None;
    }
}

/// A whole network; it gives no gradient of its input.
pub struct ToyNetwork {
    engine: Engine,
    convolver: LocalConv,
    kept: Option<usize>,
}

impl ToyNetwork {
    pub fn new(network: &Network) -> Self {
        let zeros = vec![0.0; network.parameters().iter().map(ParamSpec::len).sum()];
        let weights = Weights::unflatten(network, &zeros).unwrap();
        let engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        Self { engine, convolver, kept: None }
    }
}

impl ToyUnit for ToyNetwork {
    fn forward(&mut self, x: Vec<f32>, pass: Pass) -> Vec<f32> {
        let samples = x.len() / self.engine.network().input.len();
        let logits = self.engine.forward(&x, samples, pass, 0, &mut self.convolver).unwrap();
        self.engine.commit_moments();
        self.kept = (pass == Pass::Training).then_some(samples);
        logits
    }

    fn gradient(&mut self, dy: Vec<f32>, _wanted: Wanted) -> Option<(Vec<f32>, Vec<f32>)> {
        let samples = self.kept.take()?;
        self.engine.backward(dy, samples, &mut self.convolver).unwrap();
        Some((Vec::new(), Vec::new()))
    }

    fn weights(&self) -> Vec<f32> {
        self.engine.params().flat_values()
    }

    fn set_weights(&mut self, weights: Vec<f32>) {
        self.engine.params_mut().set_flat_values(&weights).unwrap();
    }

    fn reset(&mut self) {
        self.kept = None;
    }

    fn step(&mut self, sgd: SgdStep) {
        self.engine.params_mut().step(sgd);
    }

    fn momentum(&self) -> Vec<f32> {
        self.engine.params().flat_momentum()
    }

    fn set_momentum(&mut self, momentum: &[f32]) {
        self.engine.params_mut().set_flat_momentum(momentum).unwrap();
    }
}
