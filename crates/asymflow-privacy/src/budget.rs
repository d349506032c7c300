//! Budgets: losses are charged before data leaves, and refused when they would exceed a limit.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::accountant::{AccountantError, checked_delta};
use crate::gdp::gdp_epsilon;
use crate::loss::Loss;
use crate::zcdp::{gdp_with_zcdp_epsilon, zcdp_epsilon};

/// The most that a record may lose: ε at δ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The largest ε.
    pub epsilon: f64,
    /// The δ at which it is taken.
    pub delta: f64,
}

impl Budget {
    /// Whether a record that had lost `spent` may have lost `after`.
    pub(crate) fn admit(self, spent: &RecordLedger, after: &RecordLedger) -> Result<(), BudgetError> {
        let Self { epsilon: limit, delta } = self;
        // A budget read from a file was not checked: whatever is no δ, or NaN, fits nothing.
        let no_budget = |_| BudgetError::Budget { epsilon: limit, delta };
        let asked = after.epsilon(delta).map_err(no_budget)?;
        if asked <= limit {
            return Ok(());
        }
        Err(BudgetError::Exhausted { spent: spent.epsilon(delta).map_err(no_budget)?, asked, limit, delta })
    }
}

/// Why a loss was not charged. Nothing has changed, and nothing may be released.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum BudgetError {
    /// The loss does not fit any more.
    #[error("epsilon {spent} is spent and the release would make it {asked}, above the limit {limit} at delta {delta}")]
    Exhausted {
        /// ε spent so far.
        spent: f64,
        /// ε that would be spent with the loss.
        asked: f64,
        /// The budget's ε.
        limit: f64,
        /// The budget's δ.
        delta: f64,
    },
    /// More would be released than was charged beforehand.
    #[error("the release would bring the loss to rho {rho}, above the {allowed} that was charged beforehand")]
    Prepaid {
        /// ρ with the loss.
        rho: f64,
        /// ρ charged.
        allowed: f64,
    },
    /// The budget itself is none.
    #[error("budget of epsilon {epsilon} at delta {delta} is none: both must be positive, delta below 1")]
    Budget {
        /// Its ε.
        epsilon: f64,
        /// Its δ.
        delta: f64,
    },
}

/// What one record has lost, in a few numbers.
///
/// Gaussian losses compose exactly (μ² adds up; Dong, Roth and Su 2022, corollary 3.3), ρ adds up, and so does ε.
/// Mixed, the ε given is the least of several upper bounds, [`RecordLedger::epsilon`] says which.
///
/// Serialised, it keeps what was spent, infinities included; a number that is no loss is read as infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredLedger", into = "StoredLedger")]
pub struct RecordLedger {
    /// Σμ² of Gaussian losses.
    mu_squared: f64,
    /// Σρ of zCDP losses.
    rho: f64,
    /// Σε of pure losses.
    pure_epsilon: f64,
    /// Σρ of the same pure losses, as zCDP.
    pure_rho: f64,
}

/// `None` is infinite, for which JSON has no number.
#[derive(Serialize, Deserialize)]
struct StoredLedger {
    mu_squared: Option<f64>,
    rho: Option<f64>,
    pure_epsilon: Option<f64>,
    pure_rho: Option<f64>,
}

impl From<StoredLedger> for RecordLedger {
    fn from(stored: StoredLedger) -> Self {
        let loss = |value: Option<f64>| value.filter(|&v| v >= 0.0).unwrap_or(f64::INFINITY);
        Self {
            mu_squared: loss(stored.mu_squared),
            rho: loss(stored.rho),
            pure_epsilon: loss(stored.pure_epsilon),
            pure_rho: loss(stored.pure_rho),
        }
    }
}

impl From<RecordLedger> for StoredLedger {
    fn from(ledger: RecordLedger) -> Self {
        let stored = |value: f64| value.is_finite().then_some(value);
        Self {
            mu_squared: stored(ledger.mu_squared),
            rho: stored(ledger.rho),
            pure_epsilon: stored(ledger.pure_epsilon),
            pure_rho: stored(ledger.pure_rho),
        }
    }
}

impl RecordLedger {
    /// Adds one loss.
    pub fn add(&mut self, loss: Loss) {
        match loss.checked() {
            Loss::Gaussian { mu } => self.mu_squared += mu * mu,
            Loss::Zcdp { rho } => self.rho += rho,
            Loss::Pure { epsilon } => {
                self.pure_epsilon += epsilon;
                self.pure_rho += loss.rho();
            }
            Loss::Infinite => self.rho = f64::INFINITY,
        }
    }

    /// Adds one loss `times` times. No number of releases costs less than a smaller one.
    pub fn add_times(&mut self, loss: Loss, times: u64) {
        let mut once = Self::default();
        once.add(loss);
        // Nothing, however often, is nothing; an infinite loss stays one.
        let scaled = |value: f64| if value == 0.0 || times == 0 { 0.0 } else { value * times as f64 };
        self.mu_squared += scaled(once.mu_squared);
        self.rho += scaled(once.rho);
        self.pure_epsilon += scaled(once.pure_epsilon);
        self.pure_rho += scaled(once.pure_rho);
    }

    /// Whether every kind of loss is at most `allowed`'s, rounding of sums aside.
    pub(crate) fn is_within(&self, allowed: &Self) -> bool {
        let within = |spent: f64, allowed: f64| spent <= allowed * (1.0 + 1e-9);
        within(self.mu_squared, allowed.mu_squared)
            && within(self.rho, allowed.rho)
            && within(self.pure_epsilon, allowed.pure_epsilon)
            && within(self.pure_rho, allowed.pure_rho)
    }

    /// ρ of everything, as zCDP.
    pub fn rho(&self) -> f64 {
        0.5 * self.mu_squared + self.rho + self.pure_rho
    }

    /// ε at `delta`. Exact for Gaussian losses alone, and Σε for pure losses that δ cannot help; otherwise the lesser
    /// of two upper bounds: all losses as ρ-zCDP, or the pure ones added to the ε of the others.
    ///
    /// # Errors
    /// `delta` outside (0, 1).
    pub fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        checked_delta(delta)?;
        let rho = self.rho();
        if !rho.is_finite() || !self.pure_epsilon.is_finite() {
            return Ok(f64::INFINITY);
        }
        if self.rho == 0.0 && self.pure_epsilon == 0.0 {
            return Ok(gdp_epsilon(self.mu_squared.sqrt(), delta));
        }
        let others = gdp_with_zcdp_epsilon(self.mu_squared, self.rho, delta);
        Ok(zcdp_epsilon(rho, delta).min(others + self.pure_epsilon))
    }
}
