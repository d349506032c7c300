//! Accountants: what a sequence of releases of one record has cost.

use std::fmt::Debug;

use thiserror::Error;

use crate::boundary::Receipt;
use crate::mechanism::Loss;

/// Why no ε can be given.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum AccountantError {
    /// δ lies outside (0, 1).
    #[error("delta must lie strictly between 0 and 1, got {delta}")]
    Delta {
        /// The δ asked for.
        delta: f64,
    },
}

/// Adds up the losses of the releases that one record takes part in.
pub trait Accountant: Send + Debug {
    /// Counts one release.
    fn absorb(&mut self, receipt: Receipt);

    /// The ε of everything absorbed so far at `delta`; infinite when any release had no guarantee.
    ///
    /// # Errors
    /// `delta` outside (0, 1).
    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError>;
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
    fn absorb(&mut self, receipt: Receipt) {
        self.rho += match receipt.loss() {
            Loss::Zcdp { rho } => rho,
            Loss::Infinite => f64::INFINITY,
        };
    }

    /// ε = ρ + 2·√(ρ·ln(1/δ)) (Bun and Steinke 2016, proposition 1.3).
    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        if !(delta > 0.0 && delta < 1.0) {
            return Err(AccountantError::Delta { delta });
        }
        Ok(self.rho + 2.0 * (self.rho * (1.0 / delta).ln()).sqrt())
    }
}
