//! Activations into operations.

use super::lower::Compiler;
use super::{Activation, Comparison, CompileError, fixed_point};
use crate::groups::{Decision, Grouping, Vote};
use crate::program::{Compare, Op, Register, Value};
use crate::ring::Ring;

/// Fraction bits of learned decision weights.
const VOTE_BITS: u32 = 8;

impl<R: Ring> Compiler<'_, R> {
    pub(super) fn activation(&mut self, input: Register) -> Result<Register, CompileError> {
        let name = format!("{}.relu", self.last);
        match self.options.activations.get(&name).cloned().unwrap_or(Activation::Relu) {
            Activation::Relu => Ok(self.relu(&name, Grouping::Each, 1, 0, input)),
            Activation::Identity => Ok(input),
            Activation::Quadratic { a, b, c } => self.quadratic(&name, (a, b, c), input),
            Activation::SharedRelu { block: (rows, columns), channels, decision } => {
                let size = rows.saturating_mul(columns).saturating_mul(channels);
                if !(1..=1 << 24).contains(&size) {
                    return Err(CompileError::Activation { name, what: "side of a block" });
                }
                let dropped = if matches!(decision, Decision::Weights(_)) { VOTE_BITS } else { 0 };
                let summed = if matches!(decision, Decision::Corner | Decision::Centre) { 1 } else { size };
                let sum_bits = self.value(input).scale + self.options.integer_bits + dropped + ceil_log2(summed);
                if sum_bits >= R::BITS {
                    return Err(CompileError::Activation {
                        name,
                        what: "size of a block, for the sums that the ring holds,",
                    });
                }
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
            Comparison::Window { bits } => (bits + ceil_log2(summed)).min(room),
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
        // α is small: without fraction bits of its own it would vanish.
        let input = self.make_room(name, input);
        let Value { shape, scale } = self.value(input);
        let bits = self.options.fixed.activation_bits;
        let fixed = |value: f64, bits: u32| fixed_point::<R>(value, bits).ok_or_else(|| out_of_range("coefficient"));
        // α gets as many fraction bits as the ring has room for beside the integers.
        let extra = (R::BITS - 2).saturating_sub(scale + self.options.integer_bits).min(16);
        let (factor, offset) = (fixed(alpha, extra)?, fixed(beta, scale + extra)?);
        let input = self.push(name, shape, scale + extra, |output| Op::Affine { input, output, factor, offset });
        let shift = scale + extra - bits;
        let square = self.push(name, shape, 2 * bits, |output| Op::Square { input, output, shift });
        let (factor, offset) = (sign as i64, fixed(gamma, 2 * bits)?);
        Ok(self.push(name, shape, 2 * bits, |output| Op::Affine { input: square, output, factor, offset }))
    }
}

const fn ceil_log2(size: usize) -> u32 {
    size.next_power_of_two().ilog2()
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
