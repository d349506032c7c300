//! A network and its parameters in the trusted part: forward, backward, and what they take.

use std::sync::Arc;

use asymflow_zoo::{Network, Weights, ops::Easing, weights::Pass};
use faer::Par;

use crate::buffer::{Activation, Buffer, Pool};
use crate::convolver::{Convolver, Turns};
use crate::error::EngineError;
use crate::ops::NormSaved;
use crate::params::Params;
use crate::program::Program;
use crate::quadratic::QuadraticSaved;
use crate::shared_relu::SharedSaved;
use crate::streamed::{ModelWeights, StreamError, WeightStream};

mod backward;
mod forward;

/// What the backward pass of a node needs.
#[derive(Debug)]
enum Saved {
    Norm { x: Activation, y: Option<Arc<Buffer>>, moments: NormSaved },
    Relu { y: Arc<Buffer> },
    Input { x: Activation },
    Quadratic(QuadraticSaved),
    SharedRelu(SharedSaved),
    MaxPool { argmax: crate::buffer::Beside<u32>, x: asymflow_zoo::network::Shape },
    AvgPool { x: asymflow_zoo::network::Shape },
    Dropout { keep: crate::buffer::Beside<bool> },
    Add { y: Option<Arc<Buffer>> },
}

/// Statistics of a batch, waiting for the step to succeed before they move the running ones.
#[derive(Debug)]
struct Moments {
    first: usize,
    mean: Vec<f32>,
    unbiased_variance: Vec<f32>,
}

/// The trusted executor of one network.
#[derive(Debug)]
pub struct Engine {
    network: Network,
    program: Program,
    work: Work,
}

/// What passes work with, beside the program.
#[derive(Debug)]
struct Work {
    params: Params,
    pool: Pool,
    par: Par,
    stream: Option<WeightStream>,
    saved: Vec<Option<Saved>>,
    /// Samples of the pass that was kept last.
    kept: Option<usize>,
    moments: Vec<Moments>,
    dropout_seed: u64,
    easing: Easing,
    /// Whether every node's output is looked at.
    checks: bool,
    /// Squared norms of the samples' gradients, convolutions' weights left out, while they are asked for.
    squares: Option<Vec<f64>>,
}

impl Engine {
    /// An executor of `network` with `weights` on the threads of `par`.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn new(network: Network, weights: &Weights, par: Par) -> Result<Self, EngineError> {
        let program = Program::new(&network)?;
        let params = Params::new(&network, weights)?;
        Ok(Self::of(program, network, params, None, par))
    }

    /// As [`Engine::new`], with weights that are moved in, or streamed: then it serves inference alone.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn with_weights(network: Network, weights: ModelWeights, par: Par) -> Result<Self, EngineError> {
        let program = Program::new(&network)?;
        let (params, stream) = match weights {
            ModelWeights::Held(weights) => (Params::moved(&network, weights)?, None),
            ModelWeights::Streamed(kept, sealed) => (Params::kept(&network, kept)?, Some(sealed.stream()?)),
        };
        Ok(Self::of(program, network, params, stream, par))
    }

    /// As [`Engine::new`], for a network whose [`Engine::backward`] also yields the gradient of its input.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn with_input_gradient(network: Network, weights: &Weights, par: Par) -> Result<Self, EngineError> {
        let program = Program::with_input_gradient(&network)?;
        let params = Params::new(&network, weights)?;
        Ok(Self::of(program, network, params, None, par))
    }

    /// An engine without weights and with a measuring pool, for [`Engine::measure`]; `input_gradient` as of
    /// [`Engine::with_input_gradient`].
    ///
    /// # Errors
    /// A network that is none.
    pub fn measuring(network: Network, input_gradient: bool, par: Par) -> Result<Self, EngineError> {
        let program = if input_gradient { Program::with_input_gradient(&network) } else { Program::new(&network) }?;
        let params = Params::absent(&network);
        let mut engine = Self::of(program, network, params, None, par);
        engine.work.pool = Pool::measuring();
        Ok(engine)
    }

    fn of(program: Program, network: Network, params: Params, stream: Option<WeightStream>, par: Par) -> Self {
        let work = Work {
            params,
            pool: Pool::default(),
            par,
            stream,
            saved: Vec::new(),
            kept: None,
            moments: Vec::new(),
            dropout_seed: 0,
            easing: Easing::default(),
            checks: false,
            squares: None,
        };
        Self { network, program, work }
    }

    /// The network.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The prepared network.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Parameters, gradients and the state of the optimiser.
    pub const fn params(&self) -> &Params {
        &self.work.params
    }

    /// The same, to be stepped.
    pub const fn params_mut(&mut self) -> &mut Params {
        &mut self.work.params
    }

    /// The prepared network, and its parameters to be changed.
    pub const fn parts_mut(&mut self) -> (&Program, &mut Params) {
        (&self.program, &mut self.work.params)
    }

    /// Memory for activations.
    pub const fn pool(&self) -> &Pool {
        &self.work.pool
    }

    /// What training passes ease from now on.
    pub const fn set_easing(&mut self, easing: Easing) {
        self.work.easing = easing;
    }

    /// Refuses what needs all weights at once.
    ///
    /// # Errors
    /// They are streamed.
    pub fn needs_all_weights(&self) -> Result<(), EngineError> {
        if self.work.stream.is_some() { Err(StreamError::InferenceOnly.into()) } else { Ok(()) }
    }

    /// Logits of a batch (samples × input shape, row-major).
    ///
    /// In training, batch statistics are used and what [`Engine::backward`] needs is kept; `dropout_seed`
    /// makes the step repeatable.
    ///
    /// # Errors
    /// A batch of the wrong length, a value that is not finite, with the layer where it appeared, or what the convolver
    /// reports.
    pub fn forward<C: Convolver>(
        &mut self,
        images: &[f32],
        samples: usize,
        pass: Pass,
        dropout_seed: u64,
        convolver: &mut C,
    ) -> Result<Vec<f32>, C::Error> {
        self.check_batch(images, samples)?;
        if pass == Pass::Training {
            self.needs_all_weights()?;
        }
        self.work.dropout_seed = dropout_seed;
        let logits = self.pass(images, samples, pass, convolver)?;
        if let Err(error) = check_finite("logits", &logits) {
            self.work.checks = convolver.is_repeatable();
            let again = if self.work.checks { self.pass(images, samples, pass, convolver) } else { Ok(Vec::new()) };
            self.work.checks = false;
            if pass == Pass::Training {
                self.work.kept = None;
            }
            return Err(again.err().unwrap_or_else(|| error.into()));
        }
        Ok(logits)
    }

    /// Logits of a batch in inference, as [`Engine::forward`] returns them, computed in two halves that leapfrog through the layers: an
    /// answer to one is under way while the other is computed on. What depends on the other samples of a batch sees half of them.
    ///
    /// # Errors
    /// As [`Engine::forward`], and weights that are streamed.
    pub fn infer_in_halves<C: Turns>(
        &mut self,
        images: &[f32],
        samples: usize,
        convolver: &mut C,
    ) -> Result<Vec<f32>, C::Error> {
        self.check_batch(images, samples)?;
        self.needs_all_weights()?;
        let (first, input) = (samples.div_ceil(2), self.program.input);
        let (before, after) = images.split_at(first * input.len());
        let half = |(at, images): (usize, &[f32])| {
            let mut buffer = self.work.pool.take(images.len());
            buffer.copy_from_slice(images);
            (at, Activation::new(images.len() / input.len(), input, buffer))
        };
        let halves = [(0, before), (first, after)].into_iter().filter(|(_, images)| !images.is_empty());
        let halves = halves.map(half).collect();
        let logits = self.work.run_in_turns(&self.program, halves, convolver)?;
        let logits: Vec<f32> = logits.iter().flat_map(|half| half.data.iter().copied()).collect();
        check_finite("logits", &logits)?;
        Ok(logits)
    }

    fn check_batch(&self, images: &[f32], samples: usize) -> Result<(), EngineError> {
        let expected = self.program.input.len();
        if samples == 0 || samples.checked_mul(expected) != Some(images.len()) || self.work.pool.is_measuring() {
            return Err(EngineError::Batch { got: images.len(), samples, expected });
        }
        check_finite("input", images)
    }

    fn pass<C: Convolver>(
        &mut self,
        images: &[f32],
        samples: usize,
        pass: Pass,
        convolver: &mut C,
    ) -> Result<Vec<f32>, C::Error> {
        let mut buffer = self.work.begin(&self.program, samples, pass);
        buffer.copy_from_slice(images);
        let x = Activation::new(samples, self.program.input, buffer);
        let logits = self.work.run(&self.program, x, pass, convolver)?;
        // Taken out of the pool: the backward pass brings as much back in.
        Ok(logits.into_buffer(&self.work.pool).into_vec())
    }

    /// Gradients of every parameter from that of the logits of the training pass just done, which is spent; returns the gradient
    /// of the input where the engine was made [`Engine::with_input_gradient`].
    ///
    /// # Errors
    /// No kept training pass of as many samples, a gradient of another length than its logits, or what the convolver reports.
    pub fn backward<C: Convolver>(
        &mut self,
        d_logits: Vec<f32>,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        if self.work.kept != Some(samples) {
            return Err(EngineError::NoForward { layer: self.network.name.clone() }.into());
        }
        let (got, expected) = (d_logits.len(), samples * self.network.classes);
        if got != expected {
            return Err(EngineError::Length { what: "gradient of the logits", got, expected }.into());
        }
        let dy = self.work.pool.adopt(d_logits);
        self.work.unwind(&self.program, dy, samples, convolver)
    }

    /// As [`Engine::backward`], for the squared norm of each sample's gradient of all parameters but weights of convolutions.
    pub(crate) fn unwind_per_sample<C: Convolver<Error = EngineError>>(
        &mut self,
        d_logits: Vec<f32>,
        samples: usize,
        convolver: &mut C,
    ) -> Result<(Vec<f64>, Option<Buffer>), EngineError> {
        self.work.squares = Some(vec![0.0; samples]);
        let done = self.backward(d_logits, samples, convolver);
        let squares = self.work.squares.take().unwrap_or_default();
        done.map(|d_input| (squares, d_input))
    }

    /// What a pass takes, and in training the backward pass after it: every buffer is taken and dropped as the pass does it, and
    /// nothing is computed. Returns the bytes kept between both; the pool knows the rest.
    ///
    /// # Errors
    /// An engine that is not [`Engine::measuring`], or what the convolver reports.
    pub fn measure<C: Convolver>(&mut self, samples: usize, pass: Pass, convolver: &mut C) -> Result<usize, C::Error> {
        let expected = self.program.input.len();
        if !self.work.pool.is_measuring() {
            return Err(EngineError::Batch { got: 0, samples, expected }.into());
        }
        let buffer = self.work.begin(&self.program, samples, pass);
        let x = Activation::new(samples, self.program.input, buffer);
        let logits = self.work.run(&self.program, x, pass, convolver)?.into_buffer(&self.work.pool);
        let len = logits.len();
        drop(logits.into_vec());
        if pass == Pass::Inference {
            return Ok(0);
        }
        let kept = self.work.pool.held_bytes();
        let dy = self.work.pool.adopt_length(len);
        if let Some(dx) = self.work.unwind(&self.program, dy, samples, convolver)? {
            drop(dx.into_vec());
        }
        Ok(kept)
    }

    /// Moves the running statistics by those of the batch just done; called once its step has succeeded.
    pub fn commit_moments(&mut self) {
        let Work { moments, params, .. } = &mut self.work;
        moments.drain(..).for_each(|Moments { first, mean, unbiased_variance }| {
            params.move_running(first + 2, &mean);
            params.move_running(first + 3, &unbiased_variance);
        });
    }
}

/// Refuses NaN and infinities at a layer boundary.
///
/// # Errors
/// The first value that is not finite.
pub(crate) fn check_finite(layer: &str, values: &[f32]) -> Result<(), EngineError> {
    // A NaN or infinity survives multiplication by zero and addition; summing finds it without a branch.
    let clean = values.chunks(1 << 12).all(|chunk| chunk.iter().map(|v| v * 0.0).sum::<f32>() == 0.0);
    if clean {
        return Ok(());
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(EngineError::NonFinite { layer: layer.to_owned(), index }),
        None => Ok(()),
    }
}
