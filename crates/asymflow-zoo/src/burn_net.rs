//! A [`Network`] on a burn device: inference and training.
//!
//! Parameters are kept as plain one-dimensional tensors in the order of [`Network::parameters`]. A
//! training pass wraps them in autodiff leaves, so that inference never pays for a graph.

use burn::tensor::module::{adaptive_avg_pool2d, batch_norm, batch_norm_train, conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Distribution, Tensor, TensorData, activation::relu};
use thiserror::Error;

use crate::graph::Graph;
use crate::network::Network;
use crate::ops::{Conv, Easing, GroupNorm, Linear, Op};
use crate::param::{ParamSpec, rate_factors};
use crate::shape::NetworkError;
use crate::training::SgdStep;
use crate::weights::{Weights, WeightsError};

mod activations;

use activations::GroupTable;

/// ε of every normalisation; not widened from f32, so that the numbers are PyTorch's.
const EPSILON: f64 = 1e-5;
/// Weight of the new batch in running statistics.
const MOMENTUM: f64 = 0.1;

/// Why a [`BurnNet`] cannot compute.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum BurnNetError {
    /// The network is not executable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor of another shape.
    #[error("{what} of shape {got:?}, expected {expected:?}")]
    Shape {
        /// Input or gradient.
        what: &'static str,
        /// What was given.
        got: Vec<usize>,
        /// What is needed.
        expected: Vec<usize>,
    },
    /// Batch statistics need two values a channel.
    #[error("batch normalisation {name}: one value a channel has no variance; use more samples")]
    SingleValue {
        /// The normalisation.
        name: String,
    },
    /// A gradient without a training pass.
    #[error("no training pass to differentiate")]
    NoForward,
    /// A step without a gradient.
    #[error("no gradient to step along")]
    NoGradient,
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
}

/// What a training pass keeps.
#[derive(Debug)]
struct Kept {
    input: Tensor<4>,
    leaves: Vec<Tensor<1>>,
    logits: Tensor<2>,
    penalty: Option<Tensor<1>>,
}

/// A network with its weights on a device.
#[derive(Debug)]
pub struct BurnNet {
    network: Network,
    graph: Graph,
    device: Device,
    params: Vec<Tensor<1>>,
    velocity: Vec<Option<Tensor<1>>>,
    kept: Option<Kept>,
    gradients: Option<Vec<Option<Tensor<1>>>>,
    easing: Easing,
    /// Of each node that shares decisions.
    groups: Vec<Option<GroupTable>>,
}

impl BurnNet {
    /// Uploads `weights`.
    ///
    /// # Errors
    /// A network that is not executable, or weights that do not fit it.
    pub fn new(network: &Network, weights: &Weights, device: &Device) -> Result<Self, BurnNetError> {
        let graph = Graph::new(network)?;
        let device = device.clone().inner();
        let mut net = Self {
            network: network.clone(),
            velocity: graph.params.iter().map(|_| None).collect(),
            params: Vec::new(),
            kept: None,
            gradients: None,
            easing: Easing::default(),
            groups: graph.nodes.iter().map(|node| GroupTable::of(node, &device)).collect(),
            device,
            graph,
        };
        net.set_weights(&weights.flatten(network)?)?;
        Ok(net)
    }

    /// What training passes ease from now on.
    pub const fn set_easing(&mut self, easing: Easing) {
        self.easing = easing;
    }

    /// Replaces all weights by flattened ones; the momentum and a kept pass stay.
    ///
    /// # Errors
    /// Another length than that of all parameters.
    pub fn set_weights(&mut self, flat: &[f32]) -> Result<(), BurnNetError> {
        self.params = self.upload(flat)?;
        Ok(())
    }

    /// Replaces the momentum of every parameter by flattened ones, in the order of the weights.
    ///
    /// # Errors
    /// As [`BurnNet::set_weights`].
    pub fn set_momentum(&mut self, flat: &[f32]) -> Result<(), BurnNetError> {
        self.velocity = self.upload(flat)?.into_iter().map(Some).collect();
        Ok(())
    }

    fn upload(&self, flat: &[f32]) -> Result<Vec<Tensor<1>>, BurnNetError> {
        let expected = self.graph.params.iter().map(ParamSpec::len).sum();
        if flat.len() != expected {
            return Err(WeightsError::Length { expected, got: flat.len() }.into());
        }
        let mut rest = flat;
        let upload = |spec: &ParamSpec| {
            let (head, tail) = rest.split_at(spec.len());
            rest = tail;
            Tensor::from_data(TensorData::new(head.to_vec(), [head.len()]), &self.device)
        };
        Ok(self.graph.params.iter().map(upload).collect())
    }

    /// Samples of the network's input shape, row-major, as a tensor on its device.
    ///
    /// # Errors
    /// The length is not a positive multiple of one sample.
    pub fn batch(&self, values: Vec<f32>) -> Result<Tensor<4>, BurnNetError> {
        let s = self.network.input;
        let samples = values.len() / s.len().max(1);
        if samples == 0 || samples * s.len() != values.len() {
            let expected = vec![samples.max(1), s.channels, s.height, s.width];
            return Err(BurnNetError::Shape { what: "input", got: vec![values.len()], expected });
        }
        Ok(Tensor::from_data(TensorData::new(values, [samples, s.channels, s.height, s.width]), &self.device))
    }

    /// Logits of `x`, samples × classes.
    ///
    /// With `train`, batch normalisation uses and updates batch statistics, dropout drops, and the pass
    /// is kept for [`BurnNet::backward`], replacing an earlier one. The result carries no graph.
    ///
    /// # Errors
    /// An input of another shape, or a batch too small for batch statistics.
    pub fn forward(&mut self, x: Tensor<4>, train: bool) -> Result<Tensor<2>, BurnNetError> {
        let s = self.network.input;
        let [samples, dims @ ..] = x.dims();
        if dims != [s.channels, s.height, s.width] || samples == 0 {
            let expected = vec![samples.max(1), s.channels, s.height, s.width];
            return Err(BurnNetError::Shape { what: "input", got: x.dims().to_vec(), expected });
        }
        let x = x.inner();
        if !train {
            let mut pass = Pass::new(self, &self.params, train);
            return Ok(pass.run(x)?.reshape([samples, self.network.classes]));
        }
        // Should this pass fail, an earlier one must not be differentiated in its place.
        self.kept = None;
        let input = x.autodiff().require_grad();
        let leaf = |(param, spec): (&Tensor<1>, &ParamSpec)| {
            if spec.kind.is_trained() { param.clone().autodiff().require_grad() } else { param.clone().autodiff() }
        };
        let leaves: Vec<_> = self.params.iter().zip(&self.graph.params).map(leaf).collect();
        let mut pass = Pass::new(self, &leaves, train);
        let logits = pass.run(input.clone())?.reshape([samples, self.network.classes]);
        let penalty = pass.penalty();
        for (index, updated) in pass.statistics {
            if let Some(param) = self.params.get_mut(index) {
                *param = updated;
            }
        }
        let result = logits.clone().inner();
        self.kept = Some(Kept { input, leaves, logits, penalty });
        Ok(result)
    }

    /// Differentiates the kept training pass, which it consumes: parameter gradients stay for
    /// [`BurnNet::step`], that of the input is returned.
    ///
    /// # Errors
    /// No kept pass, or a gradient of another shape than its logits.
    pub fn backward(&mut self, dlogits: Tensor<2>) -> Result<Tensor<4>, BurnNetError> {
        let kept = self.kept.take().ok_or(BurnNetError::NoForward)?;
        if dlogits.dims() != kept.logits.dims() {
            let (got, expected) = (dlogits.dims().to_vec(), kept.logits.dims().to_vec());
            self.kept = Some(kept);
            return Err(BurnNetError::Shape { what: "gradient", got, expected });
        }
        let mut loss = (kept.logits * dlogits.inner()).sum();
        if let Some(penalty) = kept.penalty {
            loss = loss + penalty;
        }
        let mut gradients = loss.backward();
        let input = kept.input.grad_remove(&mut gradients);
        self.gradients = Some(kept.leaves.iter().map(|leaf| leaf.grad_remove(&mut gradients)).collect());
        input.ok_or(BurnNetError::NoForward)
    }

    /// Steps every trained parameter along the latest gradient, which it consumes.
    ///
    /// # Errors
    /// No gradient.
    pub fn step(&mut self, sgd: SgdStep) -> Result<(), BurnNetError> {
        let gradients = self.gradients.take().ok_or(BurnNetError::NoGradient)?;
        let shrink = sgd.clip_norm.is_finite().then(|| shrinking(&gradients, f64::from(sgd.clip_norm))).flatten();
        let factors = rate_factors(&self.graph.params, sgd.coefficient_rate, sgd.first_layer_rate);
        let [learning_rate, momentum, weight_decay] =
            [sgd.learning_rate, sgd.momentum, sgd.weight_decay].map(f64::from);
        let tensors = factors.into_iter().zip(&mut self.params).zip(&mut self.velocity);
        for (((factor, param), velocity), gradient) in tensors.zip(gradients) {
            let Some(mut gradient) = gradient else { continue };
            if let Some(shrink) = &shrink {
                gradient = gradient * shrink.clone();
            }
            if weight_decay != 0.0 {
                gradient = gradient + param.clone() * weight_decay;
            }
            if momentum != 0.0 {
                gradient = match velocity.take() {
                    Some(old) => old * momentum + gradient,
                    None => gradient,
                };
                *velocity = Some(gradient.clone());
            }
            *param = param.clone() - gradient * (learning_rate * f64::from(factor));
        }
        Ok(())
    }

    /// Downloads all weights in the order of [`Network::parameters`].
    ///
    /// # Errors
    /// The device failed.
    pub fn flat_weights(&self) -> Result<Vec<f32>, BurnNetError> {
        let mut flat = Vec::with_capacity(self.graph.params.iter().map(ParamSpec::len).sum());
        for param in &self.params {
            flat.extend(download(param.clone())?);
        }
        Ok(flat)
    }

    /// Downloads the momentum of every parameter, in the order of the weights; zeros where there is none yet.
    ///
    /// # Errors
    /// The device failed.
    pub fn flat_momentum(&self) -> Result<Vec<f32>, BurnNetError> {
        let mut flat = Vec::with_capacity(self.graph.params.iter().map(ParamSpec::len).sum());
        for (spec, velocity) in self.graph.params.iter().zip(&self.velocity) {
            match velocity {
                Some(velocity) => flat.extend(download(velocity.clone())?),
                None => flat.resize(flat.len() + spec.len(), 0.0),
            }
        }
        Ok(flat)
    }

    /// Downloads all weights by name.
    ///
    /// # Errors
    /// The device failed.
    pub fn weights(&self) -> Result<Weights, BurnNetError> {
        Ok(Weights::unflatten(&self.network, &self.flat_weights()?)?)
    }

    /// Drops a kept pass and gradient.
    pub fn reset(&mut self) {
        self.kept = None;
        self.gradients = None;
    }

    /// The network.
    pub const fn network(&self) -> &Network {
        &self.network
    }
}

/// What brings the norm of all gradients together down to `limit`: min(1, limit / norm), on the device.
fn shrinking(gradients: &[Option<Tensor<1>>], limit: f64) -> Option<Tensor<1>> {
    let squares = gradients.iter().flatten().map(|gradient| (gradient.clone() * gradient.clone()).sum());
    let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
    Some((norm.clamp_min(f64::MIN_POSITIVE).recip() * limit).clamp_max(1.0))
}

/// Values of a tensor, row-major.
///
/// # Errors
/// The device failed.
pub fn download<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, BurnNetError> {
    tensor.try_into_vec_as::<f32>().map_err(|error| BurnNetError::Device(error.to_string()))
}

/// One pass through the nodes.
struct Pass<'a> {
    graph: &'a Graph,
    params: &'a [Tensor<1>],
    train: bool,
    /// Running statistics to be replaced.
    statistics: Vec<(usize, Tensor<1>)>,
    easing: Easing,
    groups: &'a [Option<GroupTable>],
    /// Of each quadratic so far.
    penalties: Vec<Tensor<1>>,
}

impl<'a> Pass<'a> {
    fn new(net: &'a BurnNet, params: &'a [Tensor<1>], train: bool) -> Self {
        let easing = if train { net.easing } else { Easing::default() };
        let (statistics, penalties) = (Vec::new(), Vec::new());
        Self { graph: &net.graph, params, train, statistics, easing, groups: &net.groups, penalties }
    }

    /// Parameter `at` in its own shape.
    fn param<const D: usize>(&self, at: usize) -> Result<Tensor<D>, BurnNetError> {
        let found = self.params.get(at).zip(self.graph.params.get(at));
        let (param, spec) = found.ok_or_else(|| WeightsError::Missing { name: format!("parameter {at}") })?;
        let shape: [usize; D] = spec.shape.as_slice().try_into().map_err(|_| BurnNetError::Shape {
            what: "parameter",
            got: spec.shape.clone(),
            expected: vec![0; D],
        })?;
        Ok(param.clone().reshape(shape))
    }

    fn run(&mut self, x: Tensor<4>) -> Result<Tensor<4>, BurnNetError> {
        let graph = self.graph;
        let last = graph.last_uses();
        let mut values: Vec<Option<Tensor<4>>> = vec![Some(x)];
        for (index, node) in graph.nodes.iter().enumerate() {
            let mut read = |(i, &value): (usize, &usize)| {
                // Let go with its last use.
                let is_last = last[value] == Some(index) && !node.inputs[i + 1..].contains(&value);
                if is_last { values[value].take() } else { values[value].clone() }
            };
            let inputs: Vec<Tensor<4>> = node.inputs.iter().enumerate().filter_map(&mut read).collect();
            values.push(Some(self.node(index, inputs)?));
        }
        values.pop().flatten().ok_or(BurnNetError::NoForward)
    }

    fn node(&mut self, index: usize, inputs: Vec<Tensor<4>>) -> Result<Tensor<4>, BurnNetError> {
        let node = &self.graph.nodes[index];
        let first = node.params.start;
        let mut inputs = inputs.into_iter();
        let x = inputs.next().ok_or(BurnNetError::NoForward)?;
        Ok(match &node.op {
            Op::Conv(conv) => self.conv(conv, first, x)?,
            Op::Norm(norm) => {
                let (scale, shift) = (self.param::<1>(first)?, self.param::<1>(first + 1)?);
                self.normalise(&norm.name, x, scale, shift, first + 2)?
            }
            Op::GroupNorm(norm) => self.group_norm(norm, first, x)?,
            Op::Relu => relu(x),
            Op::PRelu(prelu) => {
                let slopes = self.param::<1>(first)?.reshape([1, prelu.channels, 1, 1]);
                relu(x.clone()) - relu(-x) * slopes
            }
            &Op::Pointwise(function) => activations::pointwise(function, x),
            Op::Quadratic(quadratic) => self.quadratic(quadratic, first, x)?,
            Op::SharedRelu(shared) => self.shared_relu(shared, index, x)?,
            Op::MaxPool(pool) => {
                let options = MaxPoolOptions::new([pool.kernel; 2]).with_stride([pool.stride; 2]);
                max_pool2d(x, options.with_padding([pool.padding; 2]))
            }
            Op::AvgPool(pool) => adaptive_avg_pool2d(x, [pool.out; 2]),
            Op::Flatten => {
                let [samples, channels, height, width] = x.dims();
                x.reshape([samples, channels * height * width, 1, 1])
            }
            Op::Linear(linear) => self.linear(linear, first, x)?,
            Op::Dropout(dropout) if self.train && dropout.p > 0.0 => {
                let keep = 1.0 - f64::from(dropout.p);
                let mask = Tensor::random(x.dims(), Distribution::Bernoulli(keep), &x.device().inner());
                x * (mask / keep)
            }
            Op::Dropout(_) => x,
            Op::Add => inputs.fold(x, |sum, x| sum + x),
        })
    }

    fn conv(&self, conv: &Conv, first: usize, x: Tensor<4>) -> Result<Tensor<4>, BurnNetError> {
        let weight = self.param::<4>(first)?;
        let bias = if conv.bias { Some(self.param::<1>(first + 1)?) } else { None };
        let options = ConvOptions::new([conv.stride; 2], [conv.padding; 2], [1; 2], 1);
        Ok(conv2d(x, weight, bias, options))
    }

    fn group_norm(&self, norm: &GroupNorm, first: usize, x: Tensor<4>) -> Result<Tensor<4>, BurnNetError> {
        let affine = |at| self.param::<1>(at).map(|values| values.reshape([1, norm.channels, 1, 1]));
        let [samples, channels, height, width] = x.dims();
        let together = channels / norm.groups.max(1) * height * width;
        let x: Tensor<3> = x.reshape([samples, norm.groups, together]);
        let centred = x.clone() - x.mean_dim(2);
        let variance = (centred.clone() * centred.clone()).mean_dim(2);
        let normal = centred / (variance + EPSILON).sqrt();
        Ok(normal.reshape([samples, channels, height, width]) * affine(first)? + affine(first + 1)?)
    }

    fn linear(&self, linear: &Linear, first: usize, x: Tensor<4>) -> Result<Tensor<4>, BurnNetError> {
        let samples = x.dims()[0];
        let weight = self.param::<2>(first)?;
        let bias = self.param::<1>(first + 1)?;
        let x = x.reshape([samples, linear.in_features]);
        let y = burn::tensor::module::linear(x, weight.transpose(), Some(bias));
        Ok(y.reshape([samples, linear.out_features, 1, 1]))
    }

    /// Normalises by the running statistics at `at`, or by the batch's.
    fn normalise(
        &mut self,
        name: &str,
        x: Tensor<4>,
        scale: Tensor<1>,
        shift: Tensor<1>,
        at: usize,
    ) -> Result<Tensor<4>, BurnNetError> {
        let (mean, variance) = (self.param::<1>(at)?, self.param::<1>(at + 1)?);
        if !self.train {
            return Ok(batch_norm(x, scale, shift, mean, variance, EPSILON));
        }
        let [samples, _, height, width] = x.dims();
        let count = (samples * height * width) as f64;
        if count < 2.0 {
            return Err(BurnNetError::SingleValue { name: name.to_owned() });
        }
        let normalised = batch_norm_train(x, scale, shift, EPSILON);
        // PyTorch normalises by the biased variance and remembers the unbiased one.
        let unbiased = normalised.variance.inner() * (count / (count - 1.0));
        let blend = |old: Tensor<1>, new: Tensor<1>| old.inner() * (1.0 - MOMENTUM) + new * MOMENTUM;
        self.statistics.push((at, blend(mean, normalised.mean.inner())));
        self.statistics.push((at + 1, blend(variance, unbiased)));
        Ok(normalised.output)
    }
}
