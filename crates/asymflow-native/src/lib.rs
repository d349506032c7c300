#![doc = include_str!("../README.md")]

use asymflow_engine::local::Scratch;
use asymflow_engine::{Engine, EngineError, local::LocalConv};
use asymflow_linalg::conv::{self, ConvError, ConvShape};
use asymflow_privacy::payload::Payload;
use asymflow_residual::units::{self, ComputeUnit, ConvolutionUnit, Convolve, Gradients, Product, TrainUnit, Units};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, CollectError, ConvUnit, OpenError, Pass, ResidualModel, ResidualTraining, SgdStep, Unit, Wanted,
    },
};
use asymflow_zoo::{
    Network, Weights,
    ops::{Easing, ParamSpec},
};
use faer::Par;

/// The trusted engine's kernels, on the processor; each session has a thread of its own and shares the pool's.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeBackend {
    /// Threads of the pool that a computation uses; 0 takes all.
    pub threads: usize,
}

impl NativeBackend {
    /// The units of `model`, for an executor of one's own around them.
    ///
    /// # Errors
    /// A unit that is not executable.
    pub fn units(&self, model: &ResidualModel) -> Result<Units, OpenError> {
        Units::new(model, |unit| self.unit(unit))
    }

    fn unit(self, unit: &Unit) -> Result<Box<dyn ComputeUnit>, CollectError> {
        let par = if self.threads == 1 { Par::Seq } else { Par::rayon(self.threads) };
        Ok(match unit {
            Unit::Conv(conv) => Box::new(ConvolutionUnit::new(conv, Kernels { par, scratch: Scratch::default() })),
            Unit::Network(network) => Box::new(NativeNetwork::new(network, par).map_err(told)?),
        })
    }
}

impl ResidualBackend for NativeBackend {
    fn name(&self) -> &'static str {
        "native"
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: "native (CPU)".to_owned() }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        units::open(model, |unit| self.unit(unit))
    }

    fn open_waiting(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        units::open_waiting(model, |unit| self.unit(unit))
    }
}

/// Numbers that overflow are told apart from what else may fail.
fn told(error: EngineError) -> CollectError {
    let reason = error.to_string();
    if matches!(error, EngineError::NonFinite { .. }) { CollectError::NonFinite { reason } } else { reason.into() }
}

/// The convolution kernels of `asymflow-linalg`.
#[derive(Debug)]
struct Kernels {
    par: Par,
    scratch: Scratch,
}

impl Convolve for Kernels {
    fn convolve(&mut self, unit: &ConvUnit, samples: usize, product: Product<'_>) -> Result<Vec<f32>, String> {
        let ConvUnit { input, out_channels, kernel, stride, padding } = *unit;
        let (in_channels, height, width) = (input.channels, input.height, input.width);
        let shape = ConvShape { samples, in_channels, height, width, out_channels, kernel, stride, padding };
        let Self { par, scratch } = self;
        let zeros = |len: usize| vec![0.0; len];
        let (out, done): (_, Result<(), ConvError>) = match product {
            Product::Outputs { x, w } => {
                let mut y = zeros(shape.output_len());
                let stack = scratch.stack(conv::forward_scratch(shape, *par));
                let done = conv::forward(shape, x, w, &mut y, *par, stack);
                (y, done)
            }
            Product::InputGradient { dy, w } => {
                let mut dx = zeros(shape.input_len());
                let stack = scratch.stack(conv::input_gradient_scratch(shape, *par));
                let done = conv::input_gradient(shape, dy, w, &mut dx, *par, stack);
                (dx, done)
            }
            Product::WeightGradient { x, dy } => {
                let mut dw = zeros(shape.weight_len());
                let stack = scratch.stack(conv::weight_gradient_scratch(shape, *par));
                let done = conv::weight_gradient(shape, x, dy, &mut dw, *par, stack);
                (dw, done)
            }
        };
        done.map(|()| out).map_err(|error| error.to_string())
    }
}

/// A whole network on the trusted engine.
struct NativeNetwork {
    engine: Engine,
    convolver: LocalConv,
    /// Samples of the forward pass that was kept.
    kept: Option<usize>,
    /// Training passes so far, so that no two drop the same activations out.
    passes: u64,
}

impl NativeNetwork {
    fn new(network: &Network, par: Par) -> Result<Self, EngineError> {
        let zeros = vec![0.0; network.parameters().iter().map(ParamSpec::len).sum()];
        let weights = Weights::unflatten(network, &zeros)?;
        let engine = Engine::with_input_gradient(network.clone(), &weights, par)?;
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
        Ok(Self { engine, convolver, kept: None, passes: 0 })
    }
}

impl ComputeUnit for NativeNetwork {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        let x = x.into_f32();
        let samples = x.len() / self.engine.network().input.len();
        if pass == Pass::Training {
            self.reset();
            self.passes += 1;
        }
        let logits = self.engine.forward(&x, samples, pass, self.passes, &mut self.convolver).map_err(told)?;
        if pass == Pass::Training {
            self.engine.commit_moments();
            self.kept = Some(samples);
        }
        Ok(logits)
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let samples = self.kept.take().ok_or_else(|| "no kept forward pass".to_owned())?;
        let dx = self.engine.backward(dy, samples, &mut self.convolver).map_err(told)?;
        Ok((dx.filter(|_| wanted.input).map(|dx| dx.into_vec()).unwrap_or_default(), Vec::new()))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(self.engine.params().flat_values())
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        self.engine.params_mut().set_flat_values(&weights).map_err(|e| e.to_string().into())
    }

    fn reset(&mut self) {
        self.kept = None;
        self.convolver.forget();
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        Some(self)
    }
}

impl TrainUnit for NativeNetwork {
    fn step(&mut self, sgd: SgdStep) -> Result<(), CollectError> {
        self.engine.params_mut().step(sgd);
        Ok(())
    }

    fn momentum(&mut self) -> Result<Vec<f32>, CollectError> {
        Ok(self.engine.params().flat_momentum())
    }

    fn set_momentum(&mut self, momentum: &[f32]) -> Result<(), CollectError> {
        self.engine.params_mut().set_flat_momentum(momentum).map_err(|e| e.to_string().into())
    }

    fn ease(&mut self, easing: Easing) -> Result<(), CollectError> {
        self.engine.set_easing(easing);
        Ok(())
    }
}
