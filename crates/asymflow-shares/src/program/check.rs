//! Programs from outside.

use asymflow_zoo::network::Shape;
use serde::Deserialize;
use thiserror::Error;

use super::{FixedPoint, Op, Part, Program, Register, Step, Value, WeightPolicy};
use crate::conv::ConvShape;

/// Most values that all tensors of a query, or all weights, may have together.
const VALUES_LIMIT: usize = 1 << 30;
const STEPS_LIMIT: usize = 1 << 14;

/// Why bytes are no program.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ProgramError {
    /// They do not decode.
    #[error("malformed program: {0}")]
    Malformed(postcard::Error),
    /// A setting is out of range.
    #[error("program: {0} is out of range")]
    Setting(&'static str),
    /// An operation does not fit what it reads or writes.
    #[error("program, operation {index}: {what} does not fit")]
    Step {
        /// Index of the operation.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The fields of a [`Program`], in its order.
#[derive(Deserialize)]
pub(super) struct Unchecked {
    name: String,
    samples: usize,
    ring_bits: u32,
    policy: WeightPolicy,
    fixed: FixedPoint,
    integer_bits: u32,
    values: Vec<Value>,
    output: Register,
    layers: Vec<ConvShape>,
    steps: Vec<Step>,
    tag: [u8; 32],
}

impl TryFrom<Unchecked> for Program {
    type Error = ProgramError;

    fn try_from(raw: Unchecked) -> Result<Self, ProgramError> {
        let Unchecked { name, samples, ring_bits, policy, fixed, integer_bits, values, output, layers, steps, tag } =
            raw;
        let program =
            Self { name, samples, ring_bits, policy, fixed, integer_bits, values, output, layers, steps, tag };
        program.check()?;
        Ok(program)
    }
}

/// `None` where a size is zero or the product too large.
fn bounded(sizes: &[usize]) -> Option<usize> {
    let product = sizes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
    (1..=VALUES_LIMIT).contains(&product).then_some(product)
}

fn conv_fits(s: &ConvShape) -> bool {
    let small = |size: usize| size <= 1 << 20;
    let padded = |side: usize| small(side) && small(s.padding) && side + 2 * s.padding >= s.kernel;
    s.stride > 0
        && s.kernel > 0
        && padded(s.height)
        && padded(s.width)
        && bounded(&[s.in_channels, s.height + 2 * s.padding, s.width + 2 * s.padding]).is_some()
        && bounded(&[s.out_channels, s.in_channels, s.kernel, s.kernel]).is_some()
        && bounded(&[s.out_channels, s.out_height(), s.out_width()]).is_some()
        // What a convolution unfolds to.
        && bounded(&[s.in_channels, s.kernel, s.kernel, s.out_height(), s.out_width().next_multiple_of(16)]).is_some()
}

impl Program {
    fn check(&self) -> Result<(), ProgramError> {
        let require = |ok: bool, what| if ok { Ok(()) } else { Err(ProgramError::Setting(what)) };
        require(matches!(self.ring_bits, 32 | 48 | 64), "width of the ring")?;
        require((1..=1 << 16).contains(&self.samples), "number of samples")?;
        let FixedPoint { activation_bits, square_bits, weight_bits } = self.fixed;
        let fractions = [activation_bits, square_bits, weight_bits];
        require(fractions.iter().all(|bits| *bits < self.ring_bits), "fraction")?;
        require((1..self.ring_bits).contains(&self.integer_bits), "number of integer bits")?;
        require(self.steps.len() <= STEPS_LIMIT, "number of operations")?;
        require(self.values.len() == self.steps.len() + 1, "number of tensors")?;
        let mut total = 0_usize;
        for Value { shape: Shape { channels, height, width }, scale } in &self.values {
            let len = bounded(&[self.samples, *channels, *height, *width]).unwrap_or(VALUES_LIMIT);
            total = total.saturating_add(len);
            require(*scale < self.ring_bits && total < VALUES_LIMIT, "size of a tensor")?;
        }
        require(self.layers.iter().all(conv_fits), "shape of a convolution")?;
        let weights = self.layers.iter().map(ConvShape::weight_len).fold(0, usize::saturating_add);
        require(weights <= VALUES_LIMIT, "number of weights")?;
        // Operation i writes register i + 1 and reads earlier ones.
        for (index, step) in self.steps.iter().enumerate() {
            let fits = if step.op.output() == index + 1 { self.check_op(index, &step.op) } else { Err("register") };
            fits.map_err(|what| ProgramError::Step { index, what })?;
        }
        require(self.output < self.values.len() && !self.is_opened(self.output), "output")
    }

    fn is_opened(&self, register: Register) -> bool {
        let writer = register.checked_sub(1).and_then(|index| self.steps.get(index));
        writer.is_some_and(|step| matches!(step.op, Op::Open { .. }))
    }

    /// A shared register written before operation `index`.
    fn shared(&self, index: usize, register: Register) -> Result<Shape, &'static str> {
        if register <= index && !self.is_opened(register) { Ok(self.values[register].shape) } else { Err("input") }
    }

    fn check_op(&self, index: usize, op: &Op) -> Result<(), &'static str> {
        let out = self.values[index + 1].shape;
        let require = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let same = |input| self.shared(index, input).and_then(|shape| require(shape == out, "shape"));
        let in_ring = |shift: u32| require(shift < self.ring_bits - 1, "shift");
        match op {
            Op::Open { input, .. } => {
                require(self.policy == WeightPolicy::Shared, "opening")?;
                same(*input)
            }
            Op::Linear { input, layer, .. } => {
                let shape = self.layers.get(*layer).ok_or("layer")?;
                let opened = self.is_opened(*input);
                require(*input <= index && opened == (self.policy == WeightPolicy::Shared), "input")?;
                require(self.values[*input].shape.len() == shape.input_len(), "shape")?;
                require(out == Shape::new(shape.out_channels, shape.out_height(), shape.out_width()), "shape")
            }
            Op::Relu { input, shift, compare, grouping, .. } => {
                let window = compare.width >= 2 && compare.dropped.saturating_add(compare.width) <= self.ring_bits;
                require(window, "window")?;
                in_ring(*shift)?;
                same(*input)?;
                grouping.check(out)
            }
            Op::Square { input, shift, .. } | Op::Rescale { input, shift, .. } | Op::Truncate { input, shift, .. } => {
                in_ring(*shift)?;
                same(*input)
            }
            Op::Affine { input, factor, offset, .. } => {
                let fits = |values: &[i64]| values.len() == 1 || values.len() == out.channels;
                require(fits(factor) && fits(offset), "number of factors or offsets")?;
                require(self.shared(index, *input)?.len() == out.len(), "shape")
            }
            Op::Select { input, channels, .. } => {
                let shape = self.shared(index, *input)?;
                require(channels.iter().all(|&channel| (channel as usize) < shape.channels), "channel")?;
                require(out == Shape { channels: channels.len(), ..shape }, "shape")
            }
            Op::Take { input, rows, columns, .. } => {
                let Shape { channels, height, width } = self.shared(index, *input)?;
                let within = |places: &[u32], side| places.iter().all(|&place| (place as usize) < side);
                require(within(rows, height) && within(columns, width), "row or column")?;
                require(out == Shape { channels, height: rows.len(), width: columns.len() }, "shape")
            }
            Op::Join { parts, .. } => {
                let mut free = vec![true; out.channels];
                for Part { input, shift, channels } in parts {
                    in_ring(*shift)?;
                    let shape = self.shared(index, *input)?;
                    require(shape == Shape { channels: channels.len(), ..out }, "shape")?;
                    for &channel in channels {
                        let place = free.get_mut(channel as usize).ok_or("channel")?;
                        require(std::mem::replace(place, false), "channel")?;
                    }
                }
                Ok(())
            }
            Op::Add { inputs, shifts, .. } => {
                shifts.iter().try_for_each(|shift| in_ring(*shift))?;
                inputs.iter().try_for_each(|input| same(*input))
            }
            Op::Pool { input, bits, .. } => {
                require(*bits < self.ring_bits - 1, "fraction")?;
                let shape = self.shared(index, *input)?;
                require(shape.channels == out.channels && out.height == out.width, "shape")
            }
        }
    }
}
