//! From a network of the zoo and its weights to a program on shares.

use std::collections::BTreeMap;

use asymflow_zoo::{Conv, Layer, Network, NetworkError, Shape, Weights, WeightsError};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::conv::ConvShape;
use crate::groups::{Decision, Grouping, Vote};
use crate::model::FixedModel;
use crate::program::{Compare, FixedPoint, Op, Program, Register, Step, Value, WeightPolicy};
use crate::ring::Ring;

/// Fraction bits of learned decision weights.
const VOTE_BITS: u32 = 8;
/// Fraction bits of 1/size where the size of a pooling window is no power of two.
const POOL_BITS: u32 = 10;

/// What stands in place of a rectified linear unit.
#[derive(Clone, Debug, PartialEq)]
pub enum Activation {
    /// max(x, 0), each activation deciding for itself.
    Relu,
    /// D·x with one decision D for each block of channels × rows × columns.
    SharedRelu {
        /// Rows and columns of a block.
        block: (usize, usize),
        /// Channels of a block.
        channels: usize,
        /// What decides.
        decision: Decision,
    },
    /// a x² + b x + c, a ≠ 0.
    Quadratic {
        /// Coefficient of x².
        a: f64,
        /// Coefficient of x.
        b: f64,
        /// Constant.
        c: f64,
    },
    /// x.
    Identity,
}

/// Which bits a sign decision looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All bits above those that are truncated. A single activation is always right. A group whose deciding sum lies
    /// within one unit of the activations' last place below zero may be kept.
    Exact,
    /// A window of this many bits above those that are truncated, sign included. The decision is right for values below
    /// `2^(bits − 1 − activation_bits)` in magnitude, and arbitrary beyond. Decisions of g activations get
    /// ⌈log₂ g⌉ bits more.
    Window {
        /// Width of the window, at least 2.
        bits: u32,
    },
}

/// How to compile.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether the servers know the weights.
    pub policy: WeightPolicy,
    /// Fraction bits.
    pub fixed: FixedPoint,
    /// Which bits decisions look at.
    pub comparison: Comparison,
    /// Integer bits that every value before truncation must have room for, sign included; where the scale would grow
    /// beyond, local truncation is put in.
    pub integer_bits: u32,
    /// Samples in one query.
    pub samples: usize,
    /// What stands in place of the activations named here ([`activations`]).
    pub activations: BTreeMap<String, Activation>,
}

impl Options {
    /// The usual settings over the ring `R`: 12 fraction bits of 64 or 9 of 32, exact decisions, one sample a query.
    pub fn new<R: Ring>(policy: WeightPolicy) -> Self {
        let (bits, integer_bits) = if R::BITS == 64 { (12, 14) } else { (9, 8) };
        Self {
            policy,
            fixed: FixedPoint { activation_bits: bits, weight_bits: bits },
            comparison: Comparison::Exact,
            integer_bits,
            samples: 1,
            activations: BTreeMap::new(),
        }
    }
}

/// Why a network cannot be computed on shares.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CompileError {
    /// A layer that has no protocol.
    #[error("layer {layer} cannot be computed on shares: {reason}; use {replacement} instead")]
    Unsupported {
        /// The layer.
        layer: String,
        /// Why not.
        reason: &'static str,
        /// What would do.
        replacement: &'static str,
    },
    /// An override for an activation that is not there.
    #[error("no activation named {name}; there are {known:?}")]
    UnknownActivation {
        /// The name.
        name: String,
        /// The activations of the network.
        known: Vec<String>,
    },
    /// An activation whose settings do not fit.
    #[error("activation {name}: {what} is out of range")]
    Activation {
        /// The activation.
        name: String,
        /// Which setting.
        what: &'static str,
    },
    /// Settings that the ring has no room for.
    #[error("{what} of {got} is out of range {least}..={most}")]
    Options {
        /// Which setting.
        what: &'static str,
        /// Its value.
        got: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
    /// A weight too large for the ring.
    #[error("layer {layer}: {value} does not fit the ring with {bits} fraction bits")]
    Magnitude {
        /// The layer.
        layer: String,
        /// The value.
        value: f64,
        /// Fraction bits.
        bits: u32,
    },
    /// The network is not executable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Names and shapes of the activations of `network`: the name of the layer before, and `.relu`.
///
/// # Errors
/// The first layer that does not fit its input.
pub fn activations(network: &Network) -> Result<Vec<(String, Shape)>, NetworkError> {
    let mut found = Vec::new();
    list_activations(&network.layers, network.input, &mut "input".to_owned(), &mut found)?;
    Ok(found)
}

fn list_activations(
    layers: &[Layer],
    mut shape: Shape,
    last: &mut String,
    found: &mut Vec<(String, Shape)>,
) -> Result<Shape, NetworkError> {
    for layer in layers {
        match layer {
            Layer::Relu => found.push((format!("{last}.relu"), shape)),
            Layer::Residual { main, shortcut } => {
                list_activations(shortcut, shape, &mut last.clone(), found)?;
                list_activations(main, shape, last, found)?;
            }
            _ => name_after(layer, last),
        }
        shape = layer.output(shape)?;
    }
    Ok(shape)
}

fn name_after(layer: &Layer, last: &mut String) {
    if let Layer::Conv(Conv { name, .. }) = layer {
        name.clone_into(last);
    } else if let Layer::Linear(linear) = layer {
        linear.name.clone_into(last);
    }
}

/// `network` with average pooling in place of maximum pooling over windows that neither overlap nor leave a rest.
/// Other maximum pooling stays, and [`compile`] refuses it. Such a network wants training as it is.
pub fn with_average_pooling(network: &Network) -> Network {
    let mut network = network.clone();
    let mut shape = network.input;
    for layer in &mut network.layers {
        if let Layer::MaxPool { kernel, stride, padding: 0 } = *layer
            && kernel == stride
            && kernel > 0
            && shape.height == shape.width
            && shape.height.is_multiple_of(kernel)
        {
            *layer = Layer::AdaptiveAvgPool { out: shape.height / kernel };
        }
        match layer.output(shape) {
            Ok(out) => shape = out,
            Err(_) => break,
        }
    }
    network
}

/// Compiles `network`. Batch normalisation is folded into the convolution before it.
///
/// # Errors
/// What cannot be computed on shares, and what stands in its place; settings or weights that do not fit.
pub fn compile<R: Ring>(
    network: &Network,
    weights: &Weights,
    options: &Options,
) -> Result<FixedModel<R>, CompileError> {
    network.validate()?;
    weights.validate(network)?;
    check_options::<R>(options)?;
    let known: Vec<String> = activations(network)?.into_iter().map(|(name, _)| name).collect();
    if let Some(name) = options.activations.keys().find(|name| !known.contains(name)) {
        return Err(CompileError::UnknownActivation { name: name.clone(), known });
    }
    let mut compiler = Compiler::<R>::new(network, weights, options);
    let output = compiler.layers(&network.layers, 0)?;
    compiler.finish(output)
}

fn check_options<R: Ring>(options: &Options) -> Result<(), CompileError> {
    let check = |what, got: u64, least: u64, most: u64| {
        if (least..=most).contains(&got) { Ok(()) } else { Err(CompileError::Options { what, got, least, most }) }
    };
    let room = u64::from(R::BITS - 2);
    let FixedPoint { activation_bits, weight_bits } = options.fixed;
    check("number of activation bits", activation_bits.into(), 1, room / 2)?;
    check("number of weight bits", weight_bits.into(), 1, room / 2)?;
    check("number of integer bits", options.integer_bits.into(), 1, room - u64::from(activation_bits + weight_bits))?;
    check("number of samples", options.samples as u64, 1, 1 << 16)?;
    if let Comparison::Window { bits } = options.comparison {
        check("window of a comparison", bits.into(), 2, R::BITS.into())?;
    }
    Ok(())
}

struct Compiler<'a, R> {
    weights: &'a Weights,
    options: &'a Options,
    /// The last layer with weights, which names the activation after it.
    last: String,
    program: Program,
    /// Weight and bias of each linear layer.
    values: Vec<(Vec<R>, Vec<R>)>,
    /// Registers that have been opened, and where to.
    opened: BTreeMap<Register, Register>,
}

impl<'a, R: Ring> Compiler<'a, R> {
    fn new(network: &Network, weights: &'a Weights, options: &'a Options) -> Self {
        let input = Value { shape: network.input, scale: options.fixed.activation_bits };
        let program = Program {
            name: network.name.clone(),
            samples: options.samples,
            ring_bits: R::BITS,
            policy: options.policy,
            fixed: options.fixed,
            values: vec![input],
            output: 0,
            layers: Vec::new(),
            steps: Vec::new(),
            tag: [0; 32],
        };
        let last = "input".to_owned();
        Self { weights, options, last, program, values: Vec::new(), opened: BTreeMap::new() }
    }

    fn finish(mut self, output: Register) -> Result<FixedModel<R>, CompileError> {
        self.program.output = output;
        if self.options.policy == WeightPolicy::Public {
            let mut bytes = Vec::new();
            for (weight, bias) in &self.values {
                R::write(weight, &mut bytes);
                R::write(bias, &mut bytes);
            }
            self.program.tag = Sha256::digest(&bytes).into();
        }
        Ok(FixedModel { program: self.program, layers: self.values })
    }

    fn layers(&mut self, layers: &[Layer], mut at: Register) -> Result<Register, CompileError> {
        let mut rest = layers;
        while let Some((layer, after)) = rest.split_first() {
            rest = after;
            at = match layer {
                Layer::Conv(conv) => {
                    let norm = match after {
                        [Layer::BatchNorm { name, .. }, after @ ..] => {
                            rest = after;
                            Some(name.as_str())
                        }
                        _ => None,
                    };
                    self.last.clone_from(&conv.name);
                    self.conv(conv, norm, at)?
                }
                Layer::Linear(linear) => {
                    self.last.clone_from(&linear.name);
                    let shape = dense(linear.in_features, linear.out_features);
                    self.linear(&linear.name, shape, &[], true, at)?
                }
                Layer::Relu => self.activation(at)?,
                Layer::AdaptiveAvgPool { out } => self.pool(*out, at),
                Layer::Flatten => self.reshape(at),
                Layer::Dropout { .. } => at,
                Layer::Residual { main, shortcut } => self.residual(main, shortcut, at)?,
                Layer::BatchNorm { .. } | Layer::PRelu { .. } | Layer::MaxPool { .. } => {
                    return Err(self.refuse(layer));
                }
            };
        }
        Ok(at)
    }

    fn refuse(&self, layer: &Layer) -> CompileError {
        let (layer, reason, replacement) = match layer {
            Layer::MaxPool { .. } => (
                format!("max-pool after {}", self.last),
                "a maximum takes one comparison for each pair of values",
                "average pooling (`with_average_pooling`)",
            ),
            Layer::PRelu { name, .. } => (name.clone(), "there is no protocol for trained slopes", "a ReLU"),
            other => (
                other.label().to_owned(),
                "a normalisation must follow a convolution, to be folded into it",
                "a normalisation directly after a convolution",
            ),
        };
        CompileError::Unsupported { layer, reason, replacement }
    }

    fn value(&self, register: Register) -> Value {
        self.program.values[register]
    }

    fn push(&mut self, label: &str, shape: Shape, scale: u32, op: impl FnOnce(Register) -> Op) -> Register {
        let output = self.program.values.len();
        self.program.values.push(Value { shape, scale });
        self.program.steps.push(Step { label: label.to_owned(), op: op(output) });
        output
    }

    fn conv(&mut self, conv: &Conv, norm: Option<&str>, input: Register) -> Result<Register, CompileError> {
        let Shape { height, width, .. } = self.value(input).shape;
        let shape = ConvShape {
            in_channels: conv.in_channels,
            out_channels: conv.out_channels,
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
            height,
            width,
        };
        let affine = norm.map(|norm| self.folded(norm)).unwrap_or_default();
        self.linear(&conv.name, shape, &affine, conv.bias, input)
    }

    /// Factor and offset of each channel of a batch normalisation.
    fn folded(&self, norm: &str) -> Vec<(f64, f64)> {
        let values = |suffix: &str| self.tensor(&format!("{norm}.{suffix}"));
        let scales = values("weight").iter().zip(values("running_var"));
        let offsets = values("bias").iter().zip(values("running_mean"));
        let fold = |((scale, variance), (shift, mean)): ((&f32, &f32), (&f32, &f32))| {
            let factor = f64::from(*scale) / (f64::from(*variance) + 1e-5).sqrt();
            (factor, f64::from(*shift) - factor * f64::from(*mean))
        };
        scales.zip(offsets).map(fold).collect()
    }

    /// Values of a tensor that validation has seen.
    fn tensor(&self, name: &str) -> &'a [f32] {
        self.weights.tensors.get(name).map_or(&[], |tensor| &tensor.data)
    }

    /// A convolution or fully connected layer; `affine` is what is folded into each output channel.
    fn linear(
        &mut self,
        name: &str,
        shape: ConvShape,
        affine: &[(f64, f64)],
        has_bias: bool,
        input: Register,
    ) -> Result<Register, CompileError> {
        let bits = self.options.fixed.weight_bits;
        let input = self.make_room(name, input);
        let scale = self.value(input).scale + bits;
        let raw = self.tensor(&format!("{name}.weight"));
        let biases = if has_bias { self.tensor(&format!("{name}.bias")) } else { &[] };
        let mut weight = Vec::with_capacity(raw.len());
        let mut bias = Vec::with_capacity(shape.out_channels);
        for (channel, row) in raw.chunks_exact(raw.len() / shape.out_channels).enumerate() {
            let (factor, offset) = affine.get(channel).copied().unwrap_or((1.0, 0.0));
            for value in row {
                weight.push(quantise(name, f64::from(*value) * factor, bits)?);
            }
            let own = biases.get(channel).copied().unwrap_or_default();
            bias.push(quantise(name, f64::from(own) * factor + offset, scale)?);
        }
        let input = if self.options.policy == WeightPolicy::Shared { self.open(name, input) } else { input };
        let layer = self.program.layers.len();
        self.program.layers.push(shape);
        self.values.push((weight, bias));
        let out = Shape::new(shape.out_channels, shape.out_height(), shape.out_width());
        Ok(self.push(name, out, scale, |output| Op::Linear { input, layer, output }))
    }

    fn open(&mut self, label: &str, input: Register) -> Register {
        if let Some(opened) = self.opened.get(&input) {
            return *opened;
        }
        let Value { shape, scale } = self.value(input);
        let opened = self.push(label, shape, scale, |output| Op::Open { input, output });
        self.opened.insert(input, opened);
        opened
    }

    /// Truncates locally where another layer of weights would leave too little room for integers.
    fn make_room(&mut self, label: &str, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let most = R::BITS - 2 - self.options.integer_bits - self.options.fixed.weight_bits;
        if scale <= most {
            return input;
        }
        let target = self.options.fixed.activation_bits;
        self.push(label, shape, target, |output| Op::Truncate { input, output, shift: scale - target })
    }

    fn pool(&mut self, out: usize, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let even = shape.height.is_multiple_of(out) && shape.width.is_multiple_of(out);
        let size = shape.height / out * (shape.width / out);
        let bits = if even && size.is_power_of_two() { size.ilog2() } else { POOL_BITS };
        self.push("avg-pool", Shape::new(shape.channels, out, out), scale + bits, |output| Op::Pool {
            input,
            output,
            bits,
        })
    }

    /// Flattening moves nothing: only the shape of the register changes.
    fn reshape(&mut self, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let flat = Shape::new(shape.len(), 1, 1);
        self.push("flatten", flat, scale, |output| Op::Affine { input, output, factor: 1, offset: 0 })
    }

    fn residual(&mut self, main: &[Layer], shortcut: &[Layer], at: Register) -> Result<Register, CompileError> {
        let before = self.last.clone();
        let right = self.layers(shortcut, at)?;
        self.last = before;
        let left = self.layers(main, at)?;
        let (left_value, right_value) = (self.value(left), self.value(right));
        let scale = left_value.scale.max(right_value.scale);
        let shifts = [scale - left_value.scale, scale - right_value.scale];
        Ok(self.push("residual", left_value.shape, scale, |output| Op::Add { inputs: [left, right], shifts, output }))
    }

    fn activation(&mut self, input: Register) -> Result<Register, CompileError> {
        let name = format!("{}.relu", self.last);
        match self.options.activations.get(&name).cloned().unwrap_or(Activation::Relu) {
            Activation::Relu => Ok(self.relu(&name, Grouping::Each, 1, 0, input)),
            Activation::Identity => Ok(input),
            Activation::Quadratic { a, b, c } => self.quadratic(&name, (a, b, c), input),
            Activation::SharedRelu { block: (rows, columns), channels, decision } => {
                let size = rows * columns * channels;
                if size == 0 {
                    return Err(CompileError::Activation { name, what: "side of a block" });
                }
                let dropped = if matches!(decision, Decision::Weights(_)) { VOTE_BITS } else { 0 };
                let summed = if matches!(decision, Decision::Corner | Decision::Centre) { 1 } else { size };
                let decision = vote(&name, decision, size)?;
                let grouping = Grouping::Blocks { channels, rows, columns, decision };
                Ok(self.relu(&name, grouping, summed, dropped, input))
            }
        }
    }

    /// Truncates to the bits of activations on the way.
    fn relu(&mut self, name: &str, grouping: Grouping, summed: usize, dropped: u32, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let bits = self.options.fixed.activation_bits;
        let shift = scale - bits;
        let dropped = dropped + shift;
        let room = R::BITS - dropped;
        let width = match self.options.comparison {
            Comparison::Exact => room,
            Comparison::Window { bits } => (bits + summed.next_power_of_two().ilog2()).min(room),
        };
        let compare = Compare { dropped, width };
        self.push(name, shape, bits, |output| Op::Relu { input, output, shift, compare, grouping })
    }

    /// a x² + b x + c = ±(αx + β)² + γ with α = √|a|: one square.
    fn quadratic(&mut self, name: &str, (a, b, c): (f64, f64, f64), input: Register) -> Result<Register, CompileError> {
        let out_of_range = |what| CompileError::Activation { name: name.to_owned(), what };
        if a == 0.0 || !(a.is_finite() && b.is_finite() && c.is_finite()) {
            return Err(out_of_range("coefficient of a quadratic"));
        }
        let sign = a.signum();
        let alpha = a.abs().sqrt();
        let beta = sign * b / (2.0 * alpha);
        let gamma = c - sign * beta * beta;
        let Value { shape, scale } = self.value(input);
        let bits = self.options.fixed.activation_bits;
        let fixed = |value: f64, bits: u32| fixed_point::<R>(value, bits).ok_or_else(|| out_of_range("coefficient"));
        // α gets as many fraction bits as the ring has room for beside the integers.
        let extra = (R::BITS - 2).saturating_sub(scale + self.options.integer_bits).min(16);
        let (factor, offset) = (fixed(alpha, extra)?, fixed(beta, scale + extra)?);
        let input =
            self.push(name, shape, scale + extra, |output| Op::Affine { input, output, factor, offset });
        let shift = scale + extra - bits;
        let square = self.push(name, shape, 2 * bits, |output| Op::Square { input, output, shift });
        let (factor, offset) = (sign as i64, fixed(gamma, 2 * bits)?);
        Ok(self.push(name, shape, 2 * bits, |output| Op::Affine { input: square, output, factor, offset }))
    }
}

const fn dense(inputs: usize, outputs: usize) -> ConvShape {
    ConvShape { in_channels: inputs, out_channels: outputs, kernel: 1, stride: 1, padding: 0, height: 1, width: 1 }
}

fn vote(name: &str, decision: Decision, size: usize) -> Result<Vote, CompileError> {
    let out_of_range = |what| CompileError::Activation { name: name.to_owned(), what };
    Ok(match decision {
        Decision::Corner => Vote::Corner,
        Decision::Centre => Vote::Centre,
        Decision::Mean => Vote::Sum,
        Decision::Weights(weights) => {
            if weights.len() != size {
                return Err(out_of_range("number of decision weights"));
            }
            // Sums keep the room that a sum of as many values has.
            if weights.iter().any(|w| !w.is_finite() || w.abs() > 1.0) {
                return Err(out_of_range("decision weight"));
            }
            Vote::Weights(weights.iter().map(|w| (w * (1 << VOTE_BITS) as f32).round() as i64).collect())
        }
    })
}

/// `value` with `bits` fraction bits, where its magnitude stays below 2^(ℓ−2).
pub(crate) fn fixed_point<R: Ring>(value: f64, bits: u32) -> Option<i64> {
    let scaled = (value * 2_f64.powi(bits as i32)).round();
    (scaled.abs() < 2_f64.powi(R::BITS as i32 - 2)).then_some(scaled as i64)
}

fn quantise<R: Ring>(layer: &str, value: f64, bits: u32) -> Result<R, CompileError> {
    fixed_point::<R>(value, bits).map(R::from_i64).ok_or_else(|| CompileError::Magnitude {
        layer: layer.to_owned(),
        value,
        bits,
    })
}
