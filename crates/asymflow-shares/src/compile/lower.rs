//! Layer by layer into operations.

use std::collections::BTreeMap;

use asymflow_zoo::{
    Network, Weights,
    network::{Layer, Shape},
    ops::{Conv, MaxPool},
};
use sha2::{Digest, Sha256};

use super::activate::{GROUP_LIMIT, Votes, decides_all};
use super::curve::Curve;
use super::names::name_after;
use super::options::{Activation, CompileError, Options, Truncation};
use crate::conv::ConvShape;
use crate::groups::Decision;
use crate::model::FixedModel;
use crate::program::{Op, Program, Register, Step, Value, WeightPolicy};
use crate::ring::{Ring, fixed_point};

/// Least and most fraction bits of 1/size where the size of a pooling window is no power of two. With the most 1/49 is off by 2e-5 of
/// itself, with the least by 5e-3.
const POOL_BITS: [u32; 2] = [10, 18];

/// Bits that more fraction bits of 1/size leave free, as squares may exceed the integer bits that are asked for.
const SPARE_BITS: u32 = 4;

/// Most fraction bits that weights get on top, where there is room for them. They round to nothing beside activations then,
/// and decisions drop as many bits more.
const FINE_BITS: u32 = 8;

/// Bits of the ring that a difference of values takes beyond those of a value.
pub(super) const DIFFERENCE_BITS: u32 = 1;

/// What has been compiled so far.
pub(super) struct Compiler<'a, R> {
    weights: &'a Weights,
    pub(super) options: &'a Options,
    /// The last layer with weights, which names the activation after it.
    pub(super) last: String,
    /// What [`Compiler::taken`] says of the end of the layers that are being compiled.
    end: u32,
    program: Program,
    /// Weight and bias of each linear layer.
    values: Vec<(Vec<R>, Vec<R>)>,
    /// Registers that have been opened, and where to.
    opened: BTreeMap<Register, Register>,
}

impl<'a, R: Ring> Compiler<'a, R> {
    pub(super) fn new(network: &Network, weights: &'a Weights, options: &'a Options) -> Self {
        let input = Value { shape: network.input, scale: options.fixed.activation_bits };
        let program = Program {
            name: network.name.clone(),
            samples: options.samples,
            ring_bits: R::BITS,
            policy: options.policy,
            fixed: options.fixed,
            integer_bits: options.integer_bits,
            values: vec![input],
            output: 0,
            layers: Vec::new(),
            steps: Vec::new(),
            tag: [0; 32],
        };
        let last = "input".to_owned();
        // Nothing multiplies the logits.
        let end = 0;
        Self { weights, options, last, end, program, values: Vec::new(), opened: BTreeMap::new() }
    }

    pub(super) fn finish(mut self, output: Register) -> Result<FixedModel<R>, CompileError> {
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

    pub(super) fn layers(&mut self, layers: &[Layer], mut at: Register) -> Result<Register, CompileError> {
        let mut rest = layers;
        while let Some((layer, after)) = rest.split_first() {
            let at_layer = rest;
            rest = after;
            at = match layer {
                Layer::Conv(conv) => {
                    let mut norm = None;
                    if let [Layer::BatchNorm { name, .. }, after @ ..] = after {
                        (norm, rest) = (Some(name.as_str()), after);
                    }
                    self.last.clone_from(&conv.name);
                    let follows = self.follows(&mut rest, conv.out_channels)?;
                    self.conv(conv, norm, follows, at)?
                }
                Layer::Linear(linear) => {
                    self.last.clone_from(&linear.name);
                    let shape = dense(linear.in_features, linear.out_features);
                    let follows = self.follows(&mut rest, linear.out_features)?;
                    self.weighted(&linear.name, shape, &[], true, follows, at)?
                }
                Layer::Relu => {
                    // ReLU(max) is max(ReLU), with fewer values to decide about.
                    if let (Some(pool), Some((_, after))) = (self.pooled_first(after), after.split_first()) {
                        rest = after;
                        at = self.max_pool(pool, at);
                    }
                    self.activation(at)?
                }
                &Layer::MaxPool { kernel, stride, padding } => self.max_pool(MaxPool { kernel, stride, padding }, at),
                Layer::Quadratic(quadratic) => match self.curve(at_layer, quadratic.channels)? {
                    Some((curve, after)) => {
                        rest = after;
                        self.quadratic(curve, at)?
                    }
                    None => at,
                },
                Layer::SharedRelu(shared) => self.shared_relu(shared, at)?,
                Layer::AdaptiveAvgPool { out } => self.pool(*out, at),
                Layer::Flatten => self.reshape(at),
                Layer::Dropout { .. } => at,
                Layer::Residual { main, shortcut } => self.residual(main, shortcut, after, at)?,
                Layer::BatchNorm { .. } | Layer::GroupNorm(_) | Layer::PRelu { .. } | Layer::Pointwise(_) => {
                    return Err(self.refuse(layer));
                }
            };
        }
        Ok(at)
    }

    fn refuse(&self, layer: &Layer) -> CompileError {
        let (layer, reason, replacement) = match layer {
            Layer::Pointwise(function) => (
                format!("{} after {}", function.name(), self.last),
                "there is no protocol for that function",
                "a quadratic",
            ),
            Layer::GroupNorm(norm) => {
                (norm.name.clone(), "its statistics are those of the image, which nobody sees", "batch normalisation")
            }
            Layer::PRelu { name, .. } => (name.clone(), "there is no protocol for trained slopes", "a ReLU"),
            other => (
                other.label().to_owned(),
                "a normalisation must follow a convolution, to be folded into it",
                "a normalisation directly after a convolution",
            ),
        };
        CompileError::Unsupported { layer, reason, replacement }
    }

    pub(super) fn value(&self, register: Register) -> Value {
        self.program.values[register]
    }

    pub(super) fn push(&mut self, label: &str, shape: Shape, scale: u32, op: impl FnOnce(Register) -> Op) -> Register {
        let output = self.program.values.len();
        self.program.values.push(Value { shape, scale });
        self.program.steps.push(Step { label: label.to_owned(), op: op(output) });
        output
    }

    fn conv(
        &mut self,
        conv: &Conv,
        norm: Option<&str>,
        follows: Follows,
        input: Register,
    ) -> Result<Register, CompileError> {
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
        self.weighted(&conv.name, shape, &affine, conv.bias, follows, input)
    }

    /// What follows a layer of weights; a quadratic is taken off `rest`.
    fn follows(&self, rest: &mut &[Layer], channels: usize) -> Result<Follows, CompileError> {
        if let Some((curve, after)) = self.curve(rest, channels)? {
            *rest = after;
            return Ok(Follows::Curve(curve));
        }
        Ok(Follows::Bits(self.taken(rest, &self.last)))
    }

    /// Bits of the ring that what follows takes beyond those of a value: sums that decide, or the next weights.
    /// `name` is the layer before.
    fn taken(&self, next: &[Layer], name: &str) -> u32 {
        let weights = self.options.fixed.weight_bits;
        match next {
            [] => self.end,
            [Layer::Relu, after @ ..] => match self.options.activations.get(&format!("{name}.relu")) {
                None | Some(Activation::Relu) => {
                    if matches!(after, [Layer::MaxPool { .. }, ..]) {
                        DIFFERENCE_BITS
                    } else {
                        0
                    }
                }
                Some(Activation::SharedRelu { block: (rows, columns), channels, decision }) => {
                    let size = rows.saturating_mul(*columns).saturating_mul(*channels);
                    // Larger ones are refused when they are met.
                    Votes::new(matches!(decision, Decision::Weights(_)), size.min(GROUP_LIMIT)).taken()
                }
                Some(Activation::Quadratic { .. } | Activation::Identity) => weights,
            },
            [Layer::SharedRelu(shared), ..] => {
                Votes::of(shared).taken().max(if decides_all(shared) { 0 } else { weights })
            }
            [Layer::MaxPool { .. }, ..] => DIFFERENCE_BITS,
            [
                Layer::Conv(_)
                | Layer::BatchNorm { .. }
                | Layer::GroupNorm(_)
                | Layer::PRelu { .. }
                | Layer::Pointwise(_)
                | Layer::Quadratic(_)
                | Layer::AdaptiveAvgPool { .. }
                | Layer::Flatten
                | Layer::Linear(_)
                | Layer::Dropout { .. }
                | Layer::Residual { .. },
                ..,
            ] => weights,
        }
    }

    /// A convolution or fully connected layer, with the quadratic after it if there is one.
    fn weighted(
        &mut self,
        name: &str,
        shape: ConvShape,
        affine: &[(f64, f64)],
        has_bias: bool,
        follows: Follows,
        input: Register,
    ) -> Result<Register, CompileError> {
        let mut bits = self.options.fixed.weight_bits;
        let input = self.make_room(name, input);
        let curve = match follows {
            Follows::Curve(curve) => curve,
            Follows::Bits(taken) => {
                let used = self.value(input).scale + bits + self.options.integer_bits + taken;
                bits += (R::BITS - 2).saturating_sub(used).min(FINE_BITS);
                return self.linear(name, shape, (affine, bits), has_bias, input);
            }
        };
        let squares = self.complete(curve)?;
        let bits = bits + self.extra_bits(&squares, self.value(input).scale + bits);
        let output = self.linear(name, shape, (&squares.folded(affine), bits), has_bias, input)?;
        self.square(&squares, output)
    }

    /// Factor and offset of each channel of a batch normalisation.
    pub(super) fn folded(&self, norm: &str) -> Vec<(f64, f64)> {
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
    pub(super) fn tensor(&self, name: &str) -> &'a [f32] {
        self.weights.tensors.get(name).map_or(&[], |tensor| &tensor.data)
    }

    /// A convolution or fully connected layer; `affine` is what is folded into each output channel, and `bits` the fraction
    /// bits of its weights.
    fn linear(
        &mut self,
        name: &str,
        shape: ConvShape,
        (affine, bits): (&[(f64, f64)], u32),
        has_bias: bool,
        input: Register,
    ) -> Result<Register, CompileError> {
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

    /// Truncates where another layer of weights, or a factor of as many bits, would leave too little room for integers.
    pub(super) fn make_room(&mut self, label: &str, input: Register) -> Register {
        self.shorten(label, input, self.room())
    }

    /// Most fraction bits before another layer of weights.
    pub(super) fn room(&self) -> u32 {
        R::BITS - 2 - self.options.integer_bits - self.options.fixed.weight_bits
    }

    /// Truncates to the bits of activations where there are more than `most` fraction bits.
    pub(super) fn shorten(&mut self, label: &str, input: Register, most: u32) -> Register {
        let Value { shape, scale } = self.value(input);
        if scale <= most {
            return input;
        }
        let target = self.options.fixed.activation_bits;
        let truncation = self.options.truncation;
        let shift = scale - target;
        self.push(label, shape, target, |output| match truncation {
            Truncation::Opened => Op::Rescale { input, output, shift },
            Truncation::Local => Op::Truncate { input, output, shift },
        })
    }

    fn pool(&mut self, out: usize, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let even = shape.height.is_multiple_of(out) && shape.width.is_multiple_of(out);
        let size = shape.height / out * (shape.width / out);
        let room = (R::BITS - 2 - SPARE_BITS).saturating_sub(self.options.integer_bits + scale);
        let [least, most] = POOL_BITS;
        let bits = if even && size.is_power_of_two() { size.ilog2() } else { room.clamp(least, most) };
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
        self.push("flatten", flat, scale, |output| Op::Affine { input, output, factor: vec![1], offset: vec![0] })
    }

    fn residual(
        &mut self,
        main: &[Layer],
        shortcut: &[Layer],
        after: &[Layer],
        at: Register,
    ) -> Result<Register, CompileError> {
        let before = self.last.clone();
        let mut last = before.clone();
        main.iter().for_each(|layer| name_after(layer, &mut last));
        let end = self.taken(after, &last);
        let outer = std::mem::replace(&mut self.end, end);
        let right = self.layers(shortcut, at)?;
        self.last = before;
        let left = self.layers(main, at)?;
        self.end = outer;
        let (left_value, right_value) = (self.value(left), self.value(right));
        let scale = left_value.scale.max(right_value.scale);
        let shifts = [scale - left_value.scale, scale - right_value.scale];
        Ok(self.push("residual", left_value.shape, scale, |output| Op::Add { inputs: [left, right], shifts, output }))
    }
}

/// What follows a layer of weights.
enum Follows {
    /// A quadratic, which is folded into it.
    Curve(Curve),
    /// Something that takes so many bits of the ring beyond those of a value.
    Bits(u32),
}

const fn dense(inputs: usize, outputs: usize) -> ConvShape {
    ConvShape { in_channels: inputs, out_channels: outputs, kernel: 1, stride: 1, padding: 0, height: 1, width: 1 }
}

fn quantise<R: Ring>(layer: &str, value: f64, bits: u32) -> Result<R, CompileError> {
    fixed_point::<R>(value, bits).map(R::from_i64).ok_or_else(|| CompileError::Magnitude {
        layer: layer.to_owned(),
        value,
        bits,
    })
}
