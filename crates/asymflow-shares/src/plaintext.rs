//! What a program computes, in the clear: the reference that protocols are compared with, and where overflow shows.

use thiserror::Error;

use crate::conv::{Kernel, add_bias, float_conv};
use crate::groups::Grouping;
use crate::input::{ClientError, decode, encode};
use crate::local::local;
use crate::model::FixedModel;
use crate::nonlinear::{deciding, group_of};
use crate::program::{Op, Program, Step};
use crate::ring::Ring;

/// Why there is no result to trust.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlaintextError {
    /// The input does not fit.
    #[error(transparent)]
    Input(#[from] ClientError),
    /// A value beyond what protocols handle: 2^(ℓ−2) in magnitude at the scale of its layer, or the window of a decision.
    #[error("layer {layer}: {value:e} with {scale} fraction bits leaves the range in which shares are right")]
    Overflow {
        /// The layer.
        layer: String,
        /// The value.
        value: f64,
        /// Fraction bits.
        scale: u32,
    },
}

/// x / 2^bits, halves upwards.
fn rounded<R: Ring>(x: R, bits: u32) -> R {
    let half = bits.checked_sub(1).map_or(R::ZERO, |bits| R::from_u64(1 << bits));
    x.plus(half).shifted_right_signed(bits)
}

/// All tensors of a run in the clear, and the logits.
#[derive(Debug)]
pub struct Trace {
    /// Samples × classes.
    pub logits: Vec<f32>,
    /// What the operations of each layer put out, in order; a layer may have several.
    pub layers: Vec<(String, Vec<f32>)>,
}

impl<R: Ring> FixedModel<R> {
    /// Computes what the servers compute on shares, with truncation to the nearest where theirs is random, and refuses what
    /// overflows the ring or the window of a decision.
    ///
    /// # Errors
    /// The input does not fit, or a value leaves the range in which protocols are right.
    pub fn evaluate(&self, input: &[f32]) -> Result<Trace, PlaintextError> {
        let program = &self.program;
        let mut layers = Vec::new();
        let registers = self.walk(input, |step, registers| {
            let output = step.op.output();
            layers.push((step.label.clone(), decode(&registers[output], program.values[output].scale)));
        })?;
        let logits = decode(&registers[program.output], program.values[program.output].scale);
        Ok(Trace { logits, layers })
    }

    /// Largest magnitude of what each operation decides about, zero where it decides nothing.
    pub(crate) fn deciding_magnitudes(&self, input: &[f32]) -> Result<Vec<f64>, PlaintextError> {
        let mut largest = Vec::new();
        self.walk(input, |step, registers| {
            largest.push(match &step.op {
                Op::Relu { input, grouping, .. } => self.sums(grouping, *input, &registers[*input]),
                Op::Open { .. }
                | Op::Linear { .. }
                | Op::Square { .. }
                | Op::Affine { .. }
                | Op::Select { .. }
                | Op::Take { .. }
                | Op::Join { .. }
                | Op::Add { .. }
                | Op::Pool { .. }
                | Op::Rescale { .. }
                | Op::Truncate { .. } => 0.0,
            });
        })?;
        Ok(largest)
    }

    /// Computes all registers, and tells `each` about every operation that keeps within its range.
    fn walk(&self, input: &[f32], mut each: impl FnMut(&Step, &[Vec<R>])) -> Result<Vec<Vec<R>>, PlaintextError> {
        let program = &self.program;
        let mut registers = vec![Vec::new(); program.values.len()];
        registers[0] = encode::<R>(program, input)?;
        for step in &program.steps {
            let output = step.op.output();
            registers[output] = self.step(program, &step.op, &registers);
            let magnitude = self.magnitude(&step.op, &registers);
            if magnitude >= 2_f64.powi(R::BITS as i32 - 2) {
                // Where values are truncated, those before are too large.
                let register = match step.op {
                    Op::Relu { input, .. } | Op::Rescale { input, .. } | Op::Truncate { input, .. } => input,
                    Op::Open { .. }
                    | Op::Linear { .. }
                    | Op::Square { .. }
                    | Op::Affine { .. }
                    | Op::Select { .. }
                    | Op::Take { .. }
                    | Op::Join { .. }
                    | Op::Add { .. }
                    | Op::Pool { .. } => output,
                };
                let scale = program.values[register].scale;
                let value = magnitude * 2_f64.powi(-(scale as i32));
                return Err(PlaintextError::Overflow { layer: step.label.clone(), value, scale });
            }
            each(step, &registers);
        }
        Ok(registers)
    }

    /// Largest magnitude that an operation meets, bounded in floating point, which does not wrap and so shows what the
    /// ring would hide.
    fn magnitude(&self, op: &Op, registers: &[Vec<R>]) -> f64 {
        let float = |x: &R| x.to_i64() as f64;
        let most = |register: &usize| registers[*register].iter().map(|x| float(x).abs()).fold(0.0, f64::max);
        let power = |bits: u32| 2_f64.powi(bits as i32);
        match op {
            Op::Linear { input, layer, .. } => {
                let (shape, (weight, bias)) = (self.program.layers[*layer], &self.layers[*layer]);
                let floats = |values: &[R]| values.iter().map(float).collect::<Vec<f64>>();
                let sums = float_conv(shape, &floats(weight), &floats(bias), &floats(&registers[*input]));
                sums.into_iter().fold(0.0, |largest, x| f64::max(largest, x.abs()))
            }
            // What decides has to fit its window, which with all bits is twice as wide as the range of a value.
            Op::Relu { input, compare, grouping, .. } => {
                let window = R::BITS as i32 - 1 - (compare.dropped + compare.width) as i32;
                compare.reach(self.sums(grouping, *input, &registers[*input])) * 2_f64.powi(window)
            }
            Op::Square { input, shift, .. } => (most(input) / power(*shift)).powi(2),
            Op::Affine { input, output, factor, offset } => {
                let planes = registers[*input].chunks_exact(self.program.values[*output].shape.pixels());
                let of = |values: &[i64], channel: usize| values[channel % values.len()].unsigned_abs() as f64;
                let most = |(channel, plane): (usize, &[R])| {
                    let most = plane.iter().map(|x| float(x).abs()).fold(0.0, f64::max);
                    most * of(factor, channel) + of(offset, channel)
                };
                planes.enumerate().map(most).fold(0.0, f64::max)
            }
            Op::Select { input, .. } | Op::Take { input, .. } => most(input),
            Op::Join { parts, .. } => {
                parts.iter().map(|part| most(&part.input) * power(part.shift)).fold(0.0, f64::max)
            }
            Op::Add { inputs: [left, right], shifts: [a, b], .. } => most(left) * power(*a) + most(right) * power(*b),
            Op::Pool { input, bits, .. } => most(input) * power(*bits),
            Op::Open { input, .. } | Op::Rescale { input, .. } | Op::Truncate { input, .. } => most(input),
        }
    }

    /// Bound of what decides: values, or sums of groups.
    fn sums(&self, grouping: &Grouping, register: usize, x: &[R]) -> f64 {
        let Some(groups) = grouping.groups(self.program.values[register].shape) else {
            return x.iter().map(|x| (x.to_i64() as f64).abs()).fold(0.0, f64::max);
        };
        let mut sums = vec![0.0; self.program.samples * groups.count];
        for (index, x) in x.iter().enumerate() {
            let weight = groups.weight[index % groups.of.len()];
            sums[group_of(Some(&groups), index)] += (x.to_i64() as f64 * weight as f64).abs();
        }
        sums.into_iter().fold(0.0, f64::max)
    }

    pub(crate) fn step(&self, program: &Program, op: &Op, registers: &[Vec<R>]) -> Vec<R> {
        match op {
            Op::Open { input, .. } => registers[*input].clone(),
            Op::Linear { input, layer, output } => {
                let (weight, bias) = &self.layers[*layer];
                let shape = program.layers[*layer];
                let mut sums = vec![R::ZERO; program.len(*output)];
                add_bias(bias, shape.output_len(), &mut sums);
                Kernel::new(shape, weight).apply(&registers[*input], &mut sums);
                sums
            }
            Op::Relu { input, shift, compare, grouping, .. } => {
                let groups = grouping.groups(program.values[*input].shape);
                let x = &registers[*input];
                let decisions = deciding(x, groups.as_ref(), program.samples);
                let keep = |value: R| {
                    let top = R::BITS - compare.dropped - compare.width;
                    !value.shifted_right_signed(compare.dropped).shifted_left(compare.dropped + top).sign_bit()
                };
                let decisions: Vec<bool> = decisions.into_iter().map(keep).collect();
                let kept = |index| decisions[group_of(groups.as_ref(), index)];
                let one = |(index, x): (usize, &R)| if kept(index) { rounded(*x, *shift) } else { R::ZERO };
                x.iter().enumerate().map(one).collect()
            }
            Op::Square { input, shift, .. } => {
                let square = |x: &R| rounded(*x, *shift).times(rounded(*x, *shift));
                registers[*input].iter().map(square).collect()
            }
            Op::Affine { .. }
            | Op::Select { .. }
            | Op::Take { .. }
            | Op::Join { .. }
            | Op::Add { .. }
            | Op::Pool { .. } => local(program, op, registers, true).unwrap_or_default(),
            Op::Rescale { input, shift, .. } | Op::Truncate { input, shift, .. } => {
                registers[*input].iter().map(|x| rounded(*x, *shift)).collect()
            }
        }
    }
}
