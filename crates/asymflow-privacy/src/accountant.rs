//! Accountants: what a sequence of releases of one record has cost.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::loss::{Loss, Relation};

/// Why no ε can be given.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum AccountantError {
    /// δ lies outside (0, 1).
    #[error("delta must lie strictly between 0 and 1, got {delta}")]
    Delta {
        /// The δ asked for.
        delta: f64,
    },
    /// An event is none: its noise, probability or loss is out of range.
    #[error("{what} of an event is out of range, got {value}")]
    Event {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// δ is so small that rounding errors could exceed it.
    #[error("delta {delta} is below {least}, what the numerical error of this composition allows")]
    Precision {
        /// The δ asked for.
        delta: f64,
        /// The least δ for which an ε can be given.
        least: f64,
    },
    /// The composition needs more memory than the accountant takes.
    #[error("{what} would take {needed}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How many are needed.
        needed: f64,
        /// How many there may be.
        limit: usize,
    },
}

/// Adds up the losses of the releases that one record takes part in.
pub trait Accountant: Send + Debug {
    /// Counts one release.
    fn absorb(&mut self, loss: Loss);

    /// The ε of everything absorbed so far at `delta`; infinite when any release had no guarantee.
    ///
    /// # Errors
    /// `delta` outside (0, 1), or, for numerical accountants, beyond their precision or memory.
    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError>;
}

/// One use of a mechanism, as accountants compose it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Gaussian noise of `noise_multiplier` times the l2 sensitivity.
    Gaussian {
        /// σ/Δ₂.
        noise_multiplier: f64,
    },
    /// The same for a sum over records, each of which takes part with probability `q` of its own; neighbours add or
    /// remove one record. The sampling must stay secret.
    PoissonSampled {
        /// Probability with which a record takes part.
        q: f64,
        /// σ/Δ₂.
        noise_multiplier: f64,
    },
    /// The same where neighbours differ by a record *replaced*: `noise_multiplier` is of the distance of two records.
    ReplacementSampled {
        /// Probability with which a record takes part.
        q: f64,
        /// σ/Δ₂.
        noise_multiplier: f64,
    },
    /// Discrete Gaussian noise P(y) ∝ exp(−y²/(2σ²)) on one integer that neighbours move by at most `sensitivity`.
    DiscreteGaussian {
        /// σ, in steps.
        sigma: f64,
        /// In steps, at least 1.
        sensitivity: u32,
    },
    /// ρ-zero-concentrated differential privacy.
    Zcdp {
        /// ρ.
        rho: f64,
    },
    /// Pure ε-differential privacy.
    Pure {
        /// ε.
        epsilon: f64,
    },
    /// (ε, δ)-differential privacy.
    Approximate {
        /// ε.
        epsilon: f64,
        /// δ.
        delta: f64,
    },
}

impl Event {
    /// The event that a loss stands for; `None` when there is no guarantee.
    pub const fn of_loss(loss: Loss) -> Option<Self> {
        match loss.checked() {
            Loss::Gaussian { mu } => Some(Self::Gaussian { noise_multiplier: 1.0 / mu }),
            Loss::Sampled { q, noise_multiplier, relation: Relation::Remove } => {
                Some(Self::PoissonSampled { q, noise_multiplier })
            }
            Loss::Sampled { q, noise_multiplier, relation: Relation::Replace } => {
                Some(Self::ReplacementSampled { q, noise_multiplier })
            }
            Loss::Zcdp { rho } => Some(Self::Zcdp { rho }),
            Loss::Pure { epsilon } => Some(Self::Pure { epsilon }),
            Loss::Approximate { epsilon, delta } => Some(Self::Approximate { epsilon, delta }),
            Loss::Infinite => None,
        }
    }

    /// The event, if its numbers are in range; sampling with probability 1 is none.
    pub(crate) fn checked(self) -> Result<Self, AccountantError> {
        let event = match self {
            Self::PoissonSampled { q: 1.0, noise_multiplier }
            | Self::ReplacementSampled { q: 1.0, noise_multiplier } => Self::Gaussian { noise_multiplier },
            other => other,
        };
        let (what, value, valid) = match event {
            Self::Gaussian { noise_multiplier } => ("noise multiplier", noise_multiplier, noise_multiplier > 0.0),
            Self::PoissonSampled { q, .. } | Self::ReplacementSampled { q, .. } if !(q > 0.0 && q < 1.0) => {
                ("sampling probability", q, false)
            }
            Self::PoissonSampled { noise_multiplier, .. } | Self::ReplacementSampled { noise_multiplier, .. } => {
                ("noise multiplier", noise_multiplier, noise_multiplier > 0.0 && noise_multiplier.is_finite())
            }
            Self::Zcdp { rho } => ("rho", rho, rho >= 0.0 && rho.is_finite()),
            Self::DiscreteGaussian { sensitivity: 0, .. } => ("sensitivity", 0.0, false),
            Self::DiscreteGaussian { sigma, .. } => ("sigma", sigma, sigma > 0.0 && sigma.is_finite()),
            Self::Approximate { delta, .. } if !(0.0..1.0).contains(&delta) => ("delta", delta, false),
            Self::Pure { epsilon } | Self::Approximate { epsilon, .. } => {
                ("epsilon", epsilon, epsilon >= 0.0 && epsilon.is_finite())
            }
        };
        if valid { Ok(event) } else { Err(AccountantError::Event { what, value }) }
    }
}

/// `delta`, if it is a probability strictly between 0 and 1.
pub(crate) fn checked_delta(delta: f64) -> Result<f64, AccountantError> {
    if delta > 0.0 && delta < 1.0 { Ok(delta) } else { Err(AccountantError::Delta { delta }) }
}

/// Zero-concentrated differential privacy: ρ adds up over releases (Bun and Steinke 2016, lemma 1.7).
#[derive(Clone, Debug, Default)]
pub struct ZcdpAccountant {
    rho: f64,
}

impl ZcdpAccountant {
    /// An accountant that has already spent `rho`, as a resumed run has. A number that is no loss (negative
    /// or NaN) counts as infinite: a damaged ledger must not make ε smaller.
    pub const fn resume(rho: f64) -> Self {
        Self { rho: if rho >= 0.0 { rho } else { f64::INFINITY } }
    }

    /// ρ spent so far; infinite when any release had no guarantee.
    pub const fn rho(&self) -> f64 {
        self.rho
    }
}

impl Accountant for ZcdpAccountant {
    fn absorb(&mut self, loss: Loss) {
        self.rho += loss.rho();
    }

    /// ε = ρ + 2·√(ρ·ln(1/δ)) (Bun and Steinke 2016, proposition 1.3).
    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        checked_delta(delta)?;
        Ok(self.rho + 2.0 * (self.rho * (1.0 / delta).ln()).sqrt())
    }
}
