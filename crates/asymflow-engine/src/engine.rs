//! Forward and backward execution of a [`Program`] inside the trusted part.
//!
//! The engine computes everything but the convolutions; those it asks of a [`Convolver`], which is where
//! the modes differ.

use std::sync::Arc;

use asymflow_zoo::{Easing, Network, Pass, Shape, Weights};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::buffer::{Activation, Buffer, Pool};
use crate::error::EngineError;
use crate::ops::{self, LinearShape, NormSaved};
use crate::params::Params;
use crate::program::{ConvNode, Node, Program};
use crate::quadratic::QuadraticSaved;
use crate::shared_relu::SharedSaved;
use crate::streamed::{ModelWeights, StreamError, WeightStream};

mod activations;

/// Computes the convolutions of a network, wherever that happens.
pub trait Convolver: Send {
    /// Why a convolution could not be computed; what the engine itself refuses is told through it.
    type Error: From<EngineError>;

    /// y = conv(x, W) without bias. With [`Pass::Training`], keeps what [`Convolver::backward`] needs.
    ///
    /// # Errors
    /// Whatever the place of computation reports.
    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, Self::Error>;

    /// Writes ∂W into `d_weight` and returns ∂x where the node needs it.
    ///
    /// # Errors
    /// No kept forward pass, or whatever the place of computation reports.
    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, Self::Error>;
}

#[derive(Debug)]
enum Saved {
    Norm { x: Activation, y: Option<Arc<Buffer>>, moments: NormSaved },
    Relu { y: Arc<Buffer> },
    PRelu { x: Activation },
    Quadratic(QuadraticSaved),
    SharedRelu(SharedSaved),
    MaxPool { argmax: Vec<u32>, input: Shape, output: Shape },
    AvgPool { input: Shape },
    Unchanged,
    Linear { x: Activation },
    Dropout { keep: Vec<bool> },
    Residual { y: Option<Arc<Buffer>> },
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
    /// The network.
    pub network: Network,
    /// The prepared network.
    pub program: Program,
    /// Parameters, gradients and optimiser state.
    pub params: Params,
    /// Memory for activations.
    pub pool: Pool,
    par: Par,
    stream: Option<WeightStream>,
    tape: Vec<Saved>,
    moments: Vec<Moments>,
    dropout_seed: u64,
    easing: Easing,
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

    fn of(program: Program, network: Network, params: Params, stream: Option<WeightStream>, par: Par) -> Self {
        let pool = Pool::default();
        let (tape, moments) = (Vec::new(), Vec::new());
        Self { network, program, params, pool, par, stream, tape, moments, dropout_seed: 0, easing: Easing::default() }
    }

    /// What training passes ease from now on.
    pub const fn set_easing(&mut self, easing: Easing) {
        self.easing = easing;
    }

    /// Refuses what needs all weights at once.
    ///
    /// # Errors
    /// They are streamed.
    pub fn needs_all_weights(&self) -> Result<(), EngineError> {
        if self.stream.is_some() { Err(StreamError::InferenceOnly.into()) } else { Ok(()) }
    }

    /// Logits of a batch (samples × input shape, row-major).
    ///
    /// In training, batch statistics are used and what [`Engine::backward`] needs is kept; `dropout_seed`
    /// makes the step repeatable.
    ///
    /// # Errors
    /// A batch of the wrong length, non-finite values, or what the convolver reports.
    pub fn forward<C: Convolver>(
        &mut self,
        images: &[f32],
        samples: usize,
        pass: Pass,
        dropout_seed: u64,
        convolver: &mut C,
    ) -> Result<Vec<f32>, C::Error> {
        let expected = self.network.input.len();
        if samples == 0 || images.len() != samples * expected {
            return Err(EngineError::Batch { got: images.len(), samples, expected }.into());
        }
        check_finite("input", images)?;
        // An inference between a training pass and its gradient leaves what was kept.
        if pass == Pass::Training {
            self.needs_all_weights()?;
            self.params.train();
            self.tape.clear();
            self.moments.clear();
        }
        self.dropout_seed = dropout_seed;
        let mut buffer = self.pool.take(images.len());
        buffer.copy_from_slice(images);
        let x = Activation::new(samples, self.network.input, buffer);
        let nodes = std::mem::take(&mut self.program.nodes);
        let result = self.run(&nodes, x, pass, convolver);
        self.program.nodes = nodes;
        // Taken out of the pool: the backward pass brings as much back in.
        let logits = result?.into_buffer(&self.pool).into_vec();
        check_finite("logits", &logits)?;
        Ok(logits)
    }

    /// Gradients of every parameter from that of the logits; returns the gradient of the input where the engine
    /// was made [`Engine::with_input_gradient`].
    ///
    /// # Errors
    /// No kept forward pass, or what the convolver reports.
    pub fn backward<C: Convolver>(
        &mut self,
        d_logits: Vec<f32>,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        let dy = self.pool.adopt(d_logits);
        let nodes = std::mem::take(&mut self.program.nodes);
        let result = self.unwind(&nodes, dy, samples, convolver);
        self.program.nodes = nodes;
        result
    }

    /// Moves the running statistics by those of the batch just done; called once its step has succeeded.
    pub fn commit_moments(&mut self) {
        for moments in self.moments.drain(..) {
            let running = [(2, &moments.mean), (3, &moments.unbiased_variance)];
            for (offset, batch) in running {
                for (running, &batch) in self.params.values[moments.first + offset].iter_mut().zip(batch) {
                    *running += ops::NORM_MOMENTUM * (batch - *running);
                }
            }
        }
    }

    fn run<C: Convolver>(
        &mut self,
        nodes: &[Node],
        mut x: Activation,
        pass: Pass,
        convolver: &mut C,
    ) -> Result<Activation, C::Error> {
        for node in nodes {
            let fetched = self.fetch(node)?;
            x = match node {
                Node::Conv(conv) => self.run_conv(conv, &x, pass, convolver)?,
                Node::Norm { first, relu } => self.run_norm(*first, *relu, x, pass),
                Node::Residual { main, shortcut, relu } => {
                    let long = self.run(main, x.clone(), pass, convolver)?;
                    let short = self.run(shortcut, x, pass, convolver)?;
                    let (samples, shape) = (long.samples, long.shape);
                    let mut sum = long.into_buffer(&self.pool);
                    ops::add_assign(&mut sum, &short.data);
                    if *relu {
                        ops::relu(&mut sum);
                    }
                    let y = Activation::new(samples, shape, sum);
                    self.keep(pass, || Saved::Residual { y: relu.then(|| Arc::clone(&y.data)) });
                    y
                }
                simple => self.run_simple(simple, x, pass),
            };
            if let Some(index) = fetched {
                self.params.values[index] = Vec::new();
            }
        }
        Ok(x)
    }

    /// Brings in the weights of a node where they are streamed; returns where they are, to be let go after it.
    fn fetch(&mut self, node: &Node) -> Result<Option<usize>, EngineError> {
        let index = match node {
            Node::Conv(conv) => conv.weight,
            Node::Linear { weight, .. } => *weight,
            _ => return Ok(None),
        };
        let Some(stream) = &mut self.stream else { return Ok(None) };
        self.params.values[index] = stream.take(index)?;
        Ok(Some(index))
    }

    fn keep(&mut self, pass: Pass, saved: impl FnOnce() -> Saved) {
        if pass == Pass::Training {
            self.tape.push(saved());
        }
    }

    fn run_conv<C: Convolver>(
        &mut self,
        node: &ConvNode,
        x: &Activation,
        pass: Pass,
        convolver: &mut C,
    ) -> Result<Activation, C::Error> {
        let mut y = convolver.forward(node, x, &self.params.values[node.weight], pass)?;
        if let Some(bias) = node.bias {
            let ones = vec![1.0; node.output.channels];
            let x = self.pool.take(y.len());
            let x = std::mem::replace(&mut y, x);
            ops::scale_shift(&x, &mut y, node.output, &ones, &self.params.values[bias], false);
        }
        Ok(Activation::new(x.samples, node.output, y))
    }

    fn run_norm(&mut self, first: usize, relu: bool, x: Activation, pass: Pass) -> Activation {
        let shape = x.shape;
        let (mean, variance) = match pass {
            Pass::Training => ops::channel_moments(&x.data, shape),
            Pass::Inference => (self.params.values[first + 2].clone(), self.params.values[first + 3].clone()),
        };
        let inverse_std: Vec<f32> = variance.iter().map(|v| 1.0 / (v + ops::NORM_EPSILON).sqrt()).collect();
        let (gamma, beta) = (&self.params.values[first], &self.params.values[first + 1]);
        let scale: Vec<f32> = gamma.iter().zip(&inverse_std).map(|(g, s)| g * s).collect();
        let shift: Vec<f32> = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        let mut y = self.pool.take(x.data.len());
        ops::scale_shift(&x.data, &mut y, shape, &scale, &shift, relu);
        let y = Activation::new(x.samples, shape, y);
        if pass == Pass::Training {
            let count = (x.data.len() / shape.channels) as f32;
            let unbiased = count / (count - 1.0).max(1.0);
            let unbiased_variance = variance.iter().map(|v| v * unbiased).collect();
            self.moments.push(Moments { first, mean: mean.clone(), unbiased_variance });
            let kept = relu.then(|| Arc::clone(&y.data));
            self.tape.push(Saved::Norm { x, y: kept, moments: NormSaved { mean, inverse_std } });
        }
        y
    }

    fn run_simple(&mut self, node: &Node, x: Activation, pass: Pass) -> Activation {
        let (samples, shape) = (x.samples, x.shape);
        match node {
            Node::Relu => {
                let mut y = x.into_buffer(&self.pool);
                ops::relu(&mut y);
                let y = Activation::new(samples, shape, y);
                self.keep(pass, || Saved::Relu { y: Arc::clone(&y.data) });
                y
            }
            Node::PRelu { slopes } => {
                let mut y = self.pool.take(x.data.len());
                ops::prelu(&x.data, &mut y, shape, &self.params.values[*slopes]);
                self.keep(pass, || Saved::PRelu { x });
                Activation::new(samples, shape, y)
            }
            Node::Quadratic(node) => self.run_quadratic(node, x, pass),
            Node::SharedRelu(node) => self.run_shared_relu(node, x, pass),
            Node::MaxPool(window) => {
                let side = |side: usize| (side + 2 * window.padding - window.kernel) / window.stride + 1;
                let output = Shape::new(shape.channels, side(shape.height), side(shape.width));
                let mut y = self.pool.take(samples * output.len());
                let mut argmax = vec![0; samples * output.len()];
                ops::max_pool(&x.data, shape, &mut y, output, *window, &mut argmax);
                self.keep(pass, || Saved::MaxPool { argmax, input: shape, output });
                Activation::new(samples, output, y)
            }
            Node::AvgPool { out } => {
                let output = Shape::new(shape.channels, *out, *out);
                let mut y = self.pool.take(samples * output.len());
                ops::avg_pool(&x.data, shape, &mut y, *out);
                self.keep(pass, || Saved::AvgPool { input: shape });
                Activation::new(samples, output, y)
            }
            Node::Linear { weight, outputs } => {
                let s = LinearShape { samples, inputs: shape.len(), outputs: *outputs };
                let mut y = self.pool.take(samples * outputs);
                let values = &self.params.values;
                ops::linear(s, &x.data, &values[*weight], &values[weight + 1], &mut y, self.par);
                self.keep(pass, || Saved::Linear { x });
                Activation::new(samples, Shape::new(*outputs, 1, 1), y)
            }
            Node::Dropout { p, index } if pass == Pass::Training => {
                let mut rng = ChaCha8Rng::seed_from_u64(self.dropout_seed);
                rng.set_stream(*index as u64);
                let keep: Vec<bool> = (0..x.data.len()).map(|_| rng.random::<f32>() >= *p).collect();
                let mut y = x.into_buffer(&self.pool);
                drop_out(&mut y, &keep, *p);
                self.tape.push(Saved::Dropout { keep });
                Activation::new(samples, shape, y)
            }
            // Flatten keeps the memory and changes the shape; dropout in evaluation keeps both.
            _ => {
                let flat = if matches!(node, Node::Flatten) { Shape::new(shape.len(), 1, 1) } else { shape };
                self.keep(pass, || Saved::Unchanged);
                Activation { samples, shape: flat, data: x.data }
            }
        }
    }

    /// Backward of `nodes`; `None` where nobody needs the gradient of the input.
    fn unwind<C: Convolver>(
        &mut self,
        nodes: &[Node],
        dy: Buffer,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        let mut dy = Some(dy);
        for node in nodes.iter().rev() {
            let Some(gradient) = dy else { return Ok(None) };
            dy = match node {
                Node::Conv(conv) => self.unwind_conv(conv, gradient, samples, convolver)?,
                Node::Residual { main, shortcut, .. } => {
                    self.unwind_residual(main, shortcut, gradient, samples, convolver)?
                }
                simple => Some(self.unwind_simple(simple, gradient, samples)?),
            };
        }
        Ok(dy)
    }

    fn pop(&mut self, layer: &str) -> Result<Saved, EngineError> {
        self.tape.pop().ok_or_else(|| EngineError::NoForward { layer: layer.to_owned() })
    }

    fn unwind_conv<C: Convolver>(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        if let Some(bias) = node.bias {
            let pixels = node.output.pixels();
            let gradient = &mut self.params.gradients[bias];
            gradient.fill(0.0);
            for (plane, values) in dy.chunks_exact(pixels).enumerate() {
                gradient[plane % node.output.channels] += values.iter().sum::<f32>();
            }
        }
        let Params { values, gradients, .. } = &mut self.params;
        convolver.backward(node, dy, samples, &values[node.weight], &mut gradients[node.weight])
    }

    fn unwind_residual<C: Convolver>(
        &mut self,
        main: &[Node],
        shortcut: &[Node],
        mut dy: Buffer,
        samples: usize,
        convolver: &mut C,
    ) -> Result<Option<Buffer>, C::Error> {
        if let Saved::Residual { y: Some(y) } = self.pop("residual")? {
            ops::relu_backward(&y, &mut dy);
        }
        let mut branch = self.pool.take(dy.len());
        branch.copy_from_slice(&dy);
        // The tape is unwound in reverse: the shortcut ran last.
        let short = self.unwind(shortcut, branch, samples, convolver)?;
        let long = self.unwind(main, dy, samples, convolver)?;
        Ok(match (short, long) {
            (Some(short), Some(mut long)) => {
                ops::add_assign(&mut long, &short);
                Some(long)
            }
            (short, long) => short.or(long),
        })
    }

    fn unwind_simple(&mut self, node: &Node, mut dy: Buffer, samples: usize) -> Result<Buffer, EngineError> {
        let saved = self.pop("layer")?;
        Ok(match (node, saved) {
            (Node::Norm { first, .. }, Saved::Norm { x, y, moments }) => {
                let scale = &self.params.values[*first];
                let (d_scale, d_shift) =
                    ops::norm_backward(&x.data, y.as_ref().map(|y| &y[..]), &mut dy, x.shape, scale, &moments);
                self.params.gradients[*first] = d_scale;
                self.params.gradients[first + 1] = d_shift;
                dy
            }
            (_, Saved::Relu { y }) => {
                ops::relu_backward(&y, &mut dy);
                dy
            }
            (Node::PRelu { slopes }, Saved::PRelu { x }) => {
                let d_slopes = ops::prelu_backward(&x.data, &mut dy, x.shape, &self.params.values[*slopes]);
                self.params.gradients[*slopes] = d_slopes;
                dy
            }
            (Node::Quadratic(node), Saved::Quadratic(saved)) => {
                self.unwind_quadratic(node, &saved, &mut dy);
                dy
            }
            (Node::SharedRelu(node), Saved::SharedRelu(saved)) => {
                self.unwind_shared_relu(node, saved, &mut dy);
                dy
            }
            (_, Saved::MaxPool { argmax, input, output }) => {
                let mut dx = self.pool.take(samples * input.len());
                ops::max_pool_backward(&dy, output, &argmax, &mut dx, input);
                dx
            }
            (Node::AvgPool { out }, Saved::AvgPool { input }) => {
                let mut dx = self.pool.take(samples * input.len());
                ops::avg_pool_backward(&dy, *out, &mut dx, input);
                dx
            }
            (Node::Linear { weight, outputs }, Saved::Linear { x }) => {
                let s = LinearShape { samples, inputs: x.shape.len(), outputs: *outputs };
                let mut dx = self.pool.take(x.data.len());
                let Params { values, gradients, .. } = &mut self.params;
                if let [d_weight, d_bias] = &mut gradients[*weight..weight + 2] {
                    ops::linear_backward(s, &x.data, &values[*weight], &dy, d_weight, d_bias, &mut dx, self.par);
                }
                dx
            }
            (Node::Dropout { p, .. }, Saved::Dropout { keep }) => {
                drop_out(&mut dy, &keep, *p);
                dy
            }
            _ => dy,
        })
    }
}

fn drop_out(values: &mut [f32], keep: &[bool], p: f32) {
    let gain = 1.0 / (1.0 - p);
    for (value, &keep) in values.iter_mut().zip(keep) {
        *value = if keep { *value * gain } else { 0.0 };
    }
}

/// Refuses NaN and infinities at a layer boundary.
///
/// # Errors
/// The first value that is not finite.
pub fn check_finite(layer: &str, values: &[f32]) -> Result<(), EngineError> {
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
