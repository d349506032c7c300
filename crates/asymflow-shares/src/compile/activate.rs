//! Sign decisions into operations.

use asymflow_zoo::ops::{Choice, Decision as ZooDecision, Grouping as ZooGrouping, SharedRelu};

use super::curve::Curve;
use super::lower::Compiler;
use super::options::{Activation, Comparison, CompileError};
use crate::groups::{Decision, Grouping};
use crate::program::{Compare, Method, Op, Register, Value};
use crate::ring::Ring;

/// Fraction bits of learned decision weights.
const VOTE_BITS: u32 = 8;
/// Most values that share a decision.
pub(super) const GROUP_LIMIT: usize = 1 << 24;

/// The sums that decide about groups.
#[derive(Clone, Copy)]
pub(super) struct Votes {
    /// Fraction bits of the weights of learned votes.
    dropped: u32,
    /// How many values the largest sum has.
    summed: usize,
}

impl Votes {
    /// Of a mean or of learned weights.
    pub(super) const fn new(learned: bool, summed: usize) -> Self {
        Self { dropped: if learned { VOTE_BITS } else { 0 }, summed }
    }

    pub(super) fn of(layer: &SharedRelu) -> Self {
        let size = match &layer.grouping {
            ZooGrouping::Blocks { channels, rows, columns } => channels * rows * columns,
            ZooGrouping::Choices(choices) => choices.iter().map(block_size).max().unwrap_or(1),
        };
        let single = matches!(layer.decision, ZooDecision::Corner | ZooDecision::Centre);
        Self::new(layer.decision == ZooDecision::Learned, if single { 1 } else { size })
    }

    /// Bits of the ring that they need beyond those of a value.
    pub(super) const fn taken(self) -> u32 {
        self.dropped + ceil_log2(self.summed) + 1
    }
}

impl<R: Ring> Compiler<'_, R> {
    /// What stands in place of a ReLU; quadratics have been taken before.
    pub(super) fn activation(&mut self, input: Register) -> Result<Register, CompileError> {
        let name = format!("{}.relu", self.last);
        let shape = self.value(input).shape;
        match self.options.activations.get(&name).cloned().unwrap_or(Activation::Relu) {
            Activation::Relu => Ok(self.relu(&name, Grouping::Each, Votes::new(false, 1), input)),
            Activation::Identity => Ok(input),
            Activation::Quadratic { a, b, c } => {
                self.quadratic(Curve { name, channels: vec![[a, b, c]; shape.channels] }, input)
            }
            Activation::SharedRelu { block: (rows, columns), channels, decision } => {
                let (decision, weights) = match decision {
                    Decision::Corner => (ZooDecision::Corner, Vec::new()),
                    Decision::Centre => (ZooDecision::Centre, Vec::new()),
                    Decision::Mean => (ZooDecision::Mean, Vec::new()),
                    Decision::Weights(weights) => (ZooDecision::Learned, weights),
                };
                let size = rows.saturating_mul(columns).saturating_mul(channels);
                if !(1..=GROUP_LIMIT).contains(&size) {
                    return Err(CompileError::Activation { name, what: "side of a block" });
                }
                // Sums keep the room that a sum of as many values has.
                if weights.iter().any(|w| !w.is_finite() || w.abs() > 1.0) {
                    return Err(CompileError::Activation { name, what: "decision weight" });
                }
                let grouping = ZooGrouping::Blocks { channels, rows, columns };
                let layer = SharedRelu { name, channels: shape.channels, grouping, decision };
                self.blocks(layer, &weights, input)
            }
        }
    }

    /// A layer of shared decisions with its trained tensors.
    pub(super) fn shared_relu(&mut self, layer: &SharedRelu, input: Register) -> Result<Register, CompileError> {
        if layer.decision == ZooDecision::Largest {
            return Err(CompileError::Unsupported {
                layer: layer.name.clone(),
                reason: "the activation of largest magnitude takes comparisons to find",
                replacement: "the mean, a corner, the centre or learned decisions",
            });
        }
        if let ZooGrouping::Choices(choices) = &layer.grouping {
            return self.choices(layer, choices, input);
        }
        let votes =
            if layer.decision == ZooDecision::Learned { self.tensor(&format!("{}.vote", layer.name)) } else { &[] };
        // Only the sign of a vote matters: the largest weight becomes one.
        let largest = votes.iter().map(|vote| vote.abs()).fold(0.0, f32::max);
        if layer.decision == ZooDecision::Learned && largest == 0.0 {
            // No vote is positive, and nothing is kept.
            let shape = self.value(input).shape;
            return Ok(self.join(&layer.name, shape, Vec::new()));
        }
        let votes: Vec<f32> = votes.iter().map(|vote| vote / largest).collect();
        self.blocks(layer.clone(), &votes, input)
    }

    /// Decisions of blocks; `votes` are the weights of learned ones.
    fn blocks(&mut self, layer: SharedRelu, votes: &[f32], input: Register) -> Result<Register, CompileError> {
        let out_of_range = |what| Err(CompileError::Activation { name: layer.name.clone(), what });
        let learned = layer.decision == ZooDecision::Learned;
        if learned && votes.len() != layer.places() {
            return out_of_range("number of decision weights");
        }
        if votes.iter().any(|vote| !vote.is_finite()) {
            return out_of_range("decision weight");
        }
        let sums = Votes::of(&layer);
        let taken = self.options.integer_bits + sums.taken();
        if self.options.fixed.activation_bits + taken > R::BITS {
            return out_of_range("size of a block, for the sums that the ring holds,");
        }
        let input = self.shorten(&layer.name, input, R::BITS - taken);
        let weights = votes.iter().map(|vote| (vote * (1 << VOTE_BITS) as f32).round() as i64).collect();
        let name = layer.name.clone();
        let layer = SharedRelu { name: String::new(), ..layer };
        Ok(self.relu(&name, Grouping::Shared { layer, weights }, sums, input))
    }

    /// One choice for each channel: two rounds for all that share decisions, one for all quadratics, none for the rest.
    fn choices(&mut self, layer: &SharedRelu, choices: &[Choice], input: Register) -> Result<Register, CompileError> {
        let name = &layer.name;
        let shape = self.value(input).shape;
        let places = |wanted: fn(&Choice) -> bool| -> Vec<u32> {
            (0_u32..).zip(choices).filter(|(_, choice)| wanted(choice)).map(|(channel, _)| channel).collect()
        };
        let gated = places(|choice| matches!(choice, Choice::Block { .. } | Choice::Copy { .. }));
        let mut parts = Vec::new();
        if !gated.is_empty() {
            let whole = gated.len() == choices.len();
            let part = if whole { input } else { self.select(name, input, gated.clone()) };
            let choices = renumbered(choices, &gated);
            let grouping = ZooGrouping::Choices(choices);
            let part = self.blocks(SharedRelu { channels: gated.len(), grouping, ..layer.clone() }, &[], part)?;
            if whole {
                return Ok(part);
            }
            parts.push((part, gated));
        }
        let curved = places(|choice| *choice == Choice::Quadratic);
        if !curved.is_empty() {
            let part = self.select(name, input, curved.clone());
            let (rows, _) = self.tensor(&format!("{name}.quadratic")).as_chunks::<3>();
            let channels = rows.iter().map(|row| row.map(f64::from)).collect();
            parts.push((self.quadratic(Curve { name: name.clone(), channels }, part)?, curved));
        }
        let kept = places(|choice| *choice == Choice::Identity);
        if kept.len() == choices.len() {
            return Ok(input);
        }
        if !kept.is_empty() {
            parts.push((self.select(name, input, kept.clone()), kept));
        }
        Ok(self.join(name, shape, parts))
    }

    /// Truncates to the bits of activations on the way.
    pub(super) fn relu(&mut self, name: &str, grouping: Grouping, sums: Votes, input: Register) -> Register {
        let Value { shape, scale } = self.value(input);
        let bits = self.options.fixed.activation_bits;
        let shift = scale - bits;
        let dropped = sums.dropped + shift;
        let room = R::BITS - dropped;
        let width = match self.options.comparison {
            Comparison::Exact => room,
            Comparison::Window { bits } => (bits + ceil_log2(sums.summed)).min(room),
        };
        let compare = Compare { dropped, width, method: Method::Tables };
        self.push(name, shape, bits, |output| Op::Relu { input, output, shift, compare, grouping })
    }
}

/// Whether every channel is decided about, or nothing.
pub(super) fn decides_all(layer: &SharedRelu) -> bool {
    let ZooGrouping::Choices(choices) = &layer.grouping else { return true };
    choices.iter().all(|choice| matches!(choice, Choice::Block { .. } | Choice::Copy { .. } | Choice::Zero))
}

/// The choices of the channels of `gated` alone, prototypes renumbered.
fn renumbered(choices: &[Choice], gated: &[u32]) -> Vec<Choice> {
    let place = |channel: usize| gated.iter().position(|&c| c as usize == channel).unwrap_or_default();
    let renumber = |&channel: &u32| match choices[channel as usize] {
        Choice::Copy { of } => Choice::Copy { of: place(of) },
        choice => choice,
    };
    gated.iter().map(renumber).collect()
}

const fn block_size(choice: &Choice) -> usize {
    match *choice {
        Choice::Block { rows, columns } => rows * columns,
        Choice::Copy { .. } | Choice::Quadratic | Choice::Identity | Choice::Zero => 1,
    }
}

const fn ceil_log2(size: usize) -> u32 {
    size.next_power_of_two().ilog2()
}
