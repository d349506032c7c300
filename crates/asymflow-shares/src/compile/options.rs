//! How to compile, and why it fails.

use std::collections::BTreeMap;

use asymflow_zoo::{network::NetworkError, weights::WeightsError};
use thiserror::Error;

use crate::groups::Decision;
use crate::link::Profile;
use crate::program::{FixedPoint, Method, WeightPolicy};
use crate::ring::Ring;

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

/// How signs are decided about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Selection {
    /// The same everywhere.
    Always(Method),
    /// In each layer what takes least time over this link, with the deal taken to come over one like it: keys where few decisions wait
    /// for exchanges, tables where many wait for bytes.
    Auto(Profile),
}

/// How a value is truncated between linear layers that no activation separates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// By opening it under a mask: one round, never wrong.
    Opened,
    /// Each server its share: no round, wrong by about 2^(ℓ−bits) with probability |x| / 2^ℓ.
    Local,
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
    /// How decisions are computed.
    pub method: Selection,
    /// Integer bits that every value before truncation must have room for, sign included; where the scale would grow
    /// beyond, a truncation is put in. Inputs and weights that need more are refused.
    pub integer_bits: u32,
    /// How values are truncated where no activation does it.
    pub truncation: Truncation,
    /// Samples in one query.
    pub samples: usize,
    /// What stands in place of the activations named here ([`activations`](super::activations)).
    pub activations: BTreeMap<String, Activation>,
}

impl Options {
    /// The usual settings over the ring `R`: activations have 16 fraction bits of 64 and 14 of 48, weights and what is squared 12; all
    /// have 9 of 32. Decisions are exact and by tables, a query has one sample, and no truncation can fail.
    pub fn new<R: Ring>(policy: WeightPolicy) -> Self {
        let (activation_bits, bits, integer_bits) = match R::BITS {
            64 => (16, 12, 14),
            48 => (14, 12, 10),
            _ => (9, 9, 8),
        };
        Self {
            policy,
            fixed: FixedPoint { activation_bits, square_bits: bits, weight_bits: bits },
            comparison: Comparison::Exact,
            method: Selection::Always(Method::Tables),
            integer_bits,
            truncation: Truncation::Opened,
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
    /// A weight or bias beyond what values have room for.
    #[error("layer {layer}: a weight or bias of {value} is not below {limit} in magnitude, which values have room for")]
    Weight {
        /// The layer.
        layer: String,
        /// The value, normalisation and activation folded in.
        value: f64,
        /// 2^(integer bits − 1).
        limit: f64,
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

pub(super) fn check_options<R: Ring>(options: &Options) -> Result<(), CompileError> {
    let check = |what, got: u64, least: u64, most: u64| {
        if (least..=most).contains(&got) { Ok(()) } else { Err(CompileError::Options { what, got, least, most }) }
    };
    let room = u64::from(R::BITS - 2);
    let FixedPoint { activation_bits, square_bits, weight_bits } = options.fixed;
    check("number of activation bits", activation_bits.into(), 1, room / 2)?;
    check("number of bits of a square", square_bits.into(), 1, room / 2)?;
    check("number of weight bits", weight_bits.into(), 1, room / 2)?;
    check("number of integer bits", options.integer_bits.into(), 1, room - u64::from(activation_bits + weight_bits))?;
    check("number of samples", options.samples as u64, 1, 1 << 16)?;
    if let Comparison::Window { bits } = options.comparison {
        check("window of a comparison", bits.into(), 2, R::BITS.into())?;
    }
    Ok(())
}
