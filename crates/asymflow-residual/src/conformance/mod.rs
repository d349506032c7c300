//! The suite that every residual backend must pass, compared with the zoo's reference in f64.
//!
//! [`RULES`] are what a backend promises; [`check`] holds one to the rules of the parts that it has, and lists everything that
//! it breaks. Feature `conformance`.

mod convolutions;
mod networks;
mod stored;
mod tools;

use std::fmt;

use crate::backend::ResidualBackend;
pub use tools::Nonconformance;
use tools::Subject;

/// What a backend can be held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Convolution units: all that AsymML needs.
    Convolutions,
    /// Network units, in inference.
    Inference,
    /// Network units that are trained.
    Training,
    /// Records that network units keep, which Delta needs.
    Records,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Convolutions, Self::Inference, Self::Training, Self::Records];
}

/// Something that a backend promises.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What a backend has to have to be held to it.
    pub part: Part,
    /// A name.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    check: fn(&Subject<'_>) -> Result<(), Nonconformance>,
}

/// Everything that a backend breaks: rules by name, and how each shows first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonconforming(pub Vec<(&'static str, Nonconformance)>);

impl std::error::Error for Nonconforming {}

impl fmt::Display for Nonconforming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} rules are broken", self.0.len(), RULES.len())?;
        self.0.iter().try_for_each(|(rule, broken)| write!(f, "\n{rule}: {broken}"))
    }
}

/// Holds `backend` to the rules of `parts`, each on a session of its own.
///
/// # Errors
/// Every rule that is broken.
pub fn check(backend: &dyn ResidualBackend, parts: &[Part]) -> Result<(), Nonconforming> {
    check_rounded(backend, parts, 1.0)
}

/// As [`check`], of a backend that computes in shorter numbers than binary32: tolerances are `slack` times those of the rules.
/// What is promised exactly stays exact.
///
/// # Errors
/// Every rule that is broken.
pub fn check_rounded(backend: &dyn ResidualBackend, parts: &[Part], slack: f64) -> Result<(), Nonconforming> {
    let subject = &Subject { backend, slack };
    let held = RULES.iter().filter(|rule| parts.contains(&rule.part));
    let broken: Vec<_> = held.filter_map(|rule| Some((rule.name, (rule.check)(subject).err()?))).collect();
    if broken.is_empty() { Ok(()) } else { Err(Nonconforming(broken)) }
}

const fn rule(
    part: Part,
    name: &'static str,
    promise: &'static str,
    check: fn(&Subject<'_>) -> Result<(), Nonconformance>,
) -> Rule {
    Rule { part, name, promise, check }
}

/// What a backend promises.
pub const RULES: &[Rule] = &[
    rule(
        Part::Convolutions,
        "products",
        "outputs and both gradients of every shape are within 1e-5 of the largest value, of inputs in f32 and f16; a \
         gradient that is not wanted is empty; a ticket is collected once",
        convolutions::products,
    ),
    rule(
        Part::Convolutions,
        "added weights",
        "weights are those that were set, and a difference is added exactly as f32 adds",
        convolutions::weights,
    ),
    rule(
        Part::Convolutions,
        "order",
        "submissions are computed in order and collected in any; the counters then say more than zero busy seconds, and no \
         fewer than zero of transfer",
        convolutions::order,
    ),
    rule(
        Part::Convolutions,
        "refusals",
        "a unit that is not there, part of a sample, weights of another length or not finite, a gradient without a \
         forward pass that was kept, and a step are errors, and nothing is lost by them",
        convolutions::refusals,
    ),
    rule(
        Part::Convolutions,
        "reset",
        "a reset drops passes and tickets and no weights, and the session goes on",
        convolutions::reset,
    ),
    rule(
        Part::Convolutions,
        "limits",
        "a unit whose sizes are zero, do not fit or exceed the limits of `session::sizes` is refused by its number",
        convolutions::bad_models,
    ),
    rule(
        Part::Inference,
        "network inference",
        "weights are zero at first and then those that were set; logits are within 1e-4",
        networks::inference,
    ),
    rule(
        Part::Training,
        "network training",
        "logits, input gradients, running statistics, momentum and weights of three steps are those of SGD, also where another \
         session goes on with weights and momentum, and an inference comes between a pass and its gradient",
        networks::training,
    ),
    rule(
        Part::Training,
        "network refusals",
        "a step without a gradient, momentum of another length or not finite, weights added to a network, and a network that is \
         none are errors",
        networks::refusals,
    ),
    rule(
        Part::Records,
        "records",
        "bits are computed on as zeros and ones; stored records are those that were stored last, and a step on them is that of \
         cross-entropy; what was never stored or has no label fails, and the session goes on",
        stored::records,
    ),
];
