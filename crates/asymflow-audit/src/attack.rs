//! What an attack is: who plays it, what it sees and knows, what it may compute, and what it says.

use std::fmt::Debug;

use asymflow_engine::EngineError;
use asymflow_residual::backend::{ResidualModel, UnitId};
use asymflow_zoo::{Network, Weights};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tape::Tape;

/// Who attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// The worker, who computes what it is asked to.
    Worker,
    /// Whoever can ask for logits, or holds the weights.
    Client,
}

/// What everybody has: the network, its weights, how activations are split, and images of another split than the targets.
#[derive(Clone, Copy, Debug)]
pub struct Public<'a> {
    /// The network.
    pub network: &'a Network,
    /// Its weights, which are public in every mode.
    pub weights: &'a Weights,
    /// Units of the worker.
    pub model: &'a ResidualModel,
    /// Principal channels that the trusted part keeps, by unit; empty where nothing is split.
    pub ranks: &'a [usize],
    /// Whether one basis serves a whole batch.
    pub shares_basis: bool,
    /// Public images, samples × C×H×W.
    pub images: &'a [f32],
    /// Their labels.
    pub labels: &'a [u32],
    /// What the mode releases of the public images: whoever knows the program can run it on them.
    pub tape: &'a Tape,
}

/// What an attacker has. Neither the targets nor anything that was computed of them but by the mode itself is in it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// A recorder's copy of what crossed for the targets.
    pub tape: &'a Tape,
    /// What is public.
    pub public: Public<'a>,
}

/// What an attack may compute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Tries at every point that is solved for by itself.
    pub tries: usize,
    /// Passes over public data, for what is trained.
    pub epochs: usize,
    /// Seed of its own randomness.
    pub seed: u64,
}

/// What an attack says of the targets, in the order in which they were sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Guess {
    /// The input of a unit, samples × its shape.
    Activations(UnitId, Vec<f32>),
    /// The images, samples × C×H×W.
    Images(Vec<f32>),
    /// The labels.
    Labels(Vec<u32>),
}

/// Why there is no guess, or no figure.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The attack has nothing to begin with here.
    #[error("{attack} does not apply: {why}")]
    NotApplicable {
        /// The attack.
        attack: &'static str,
        /// What it would need.
        why: String,
    },
    /// A guess that is not of the targets' shape.
    #[error("{attack} guessed {got} values, the targets have {expected}")]
    Length {
        /// The attack.
        attack: &'static str,
        /// Values guessed.
        got: usize,
        /// Values of the targets.
        expected: usize,
    },
    /// A network of the attacker's cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A mechanism refused.
    #[error(transparent)]
    Release(#[from] asymflow_privacy::door::ReleaseError),
    /// No ε can be given.
    #[error(transparent)]
    Accountant(#[from] asymflow_privacy::accountants::AccountantError),
}

/// A value that turns what a party has into a guess.
pub trait Attack: Debug + Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Who plays it.
    fn party(&self) -> Party {
        Party::Worker
    }

    /// Guesses.
    ///
    /// # Errors
    /// It does not apply here, or cannot be computed.
    fn guess(&self, sight: &Sight<'_>, budget: Budget) -> Result<Guess, AuditError>;
}
