//! Budgets: losses are charged before data leaves, and refused when they would exceed a limit.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::accountant::{Accountant, AccountantError, Event, checked_delta};
use crate::gdp::gdp_epsilon;
use crate::loss::Loss;
use crate::pld::PldAccountant;
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
/// Gaussian losses compose exactly (μ² adds up; Dong, Roth and Su 2022, corollary 3.3), ρ adds up, and so do ε and δ. Uses of
/// one sampled sum are counted, and composed numerically; another sum beside it is taken for one that is not sampled. Mixed, the ε given is the least of several upper bounds, [`RecordLedger::epsilon`] says which.
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
    /// Σδ of (ε, δ) losses, whose ε are among the pure ones.
    delta: f64,
    /// Uses of a sampled sum.
    sampled: Option<SampledUses>,
}

/// So many uses of one sampled sum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct SampledUses {
    loss: Loss,
    times: u64,
}

/// `None` is infinite, for which JSON has no number.
#[derive(Serialize, Deserialize)]
struct StoredLedger {
    mu_squared: Option<f64>,
    rho: Option<f64>,
    pure_epsilon: Option<f64>,
    pure_rho: Option<f64>,
    delta: Option<f64>,
    sampled: Option<SampledUses>,
}

impl From<StoredLedger> for RecordLedger {
    fn from(stored: StoredLedger) -> Self {
        let loss = |value: Option<f64>| value.filter(|&v| v >= 0.0).unwrap_or(f64::INFINITY);
        Self {
            mu_squared: loss(stored.mu_squared),
            rho: loss(stored.rho),
            pure_epsilon: loss(stored.pure_epsilon),
            pure_rho: loss(stored.pure_rho),
            delta: loss(stored.delta),
            sampled: stored.sampled,
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
            delta: stored(ledger.delta),
            sampled: ledger.sampled,
        }
    }
}

impl RecordLedger {
    /// Adds one loss.
    pub fn add(&mut self, loss: Loss) {
        self.add_times(loss, 1);
    }

    /// Adds one loss `times` times. No number of releases costs less than a smaller one.
    pub fn add_times(&mut self, loss: Loss, times: u64) {
        // Nothing, however often, is nothing; an infinite loss stays one.
        let all = |value: f64| if value == 0.0 || times == 0 { 0.0 } else { value * times as f64 };
        match loss.checked() {
            Loss::Gaussian { mu } => self.mu_squared += all(mu * mu),
            Loss::Zcdp { rho } => self.rho += all(rho),
            Loss::Pure { epsilon } => {
                self.pure_epsilon += all(epsilon);
                self.pure_rho += all(loss.rho());
            }
            Loss::Approximate { epsilon, delta } => {
                self.add_times(Loss::Pure { epsilon }, times);
                self.delta += all(delta);
            }
            sampled @ Loss::Sampled { .. } => match &mut self.sampled {
                Some(uses) if uses.loss == sampled => uses.times = uses.times.saturating_add(times),
                None if times > 0 => self.sampled = Some(SampledUses { loss: sampled, times }),
                None => {}
                Some(_) => self.mu_squared += all(2.0 * sampled.rho()),
            },
            Loss::Infinite => self.rho += all(f64::INFINITY),
        }
    }

    /// Whether every kind of loss is at most `allowed`'s, rounding of sums aside.
    pub(crate) fn is_within(&self, allowed: &Self) -> bool {
        let within = |spent: f64, allowed: f64| spent <= allowed * (1.0 + 1e-9);
        within(self.mu_squared, allowed.mu_squared)
            && within(self.rho, allowed.rho)
            && within(self.pure_epsilon, allowed.pure_epsilon)
            && within(self.pure_rho, allowed.pure_rho)
            && within(self.delta, allowed.delta)
            && self.sampled.is_none_or(|uses| {
                allowed.sampled.is_some_and(|allowed| allowed.loss == uses.loss && uses.times <= allowed.times)
            })
    }

    /// ρ of everything, as zCDP but for the δ of (ε, δ) losses, and as if nothing were sampled.
    pub fn rho(&self) -> f64 {
        let sampled = self.sampled.map_or(0.0, |uses| uses.loss.rho() * uses.times as f64);
        0.5 * self.mu_squared + self.rho + self.pure_rho + sampled
    }

    /// ε at `delta`. Exact for Gaussian losses alone, and Σε for pure losses that δ cannot help; numerical where a sampled
    /// sum is among them ([`PldAccountant`]); otherwise the lesser of two upper bounds: all losses as ρ-zCDP, or the pure ones
    /// added to the ε of the others. (ε, δ) losses leave the others so much less of δ.
    ///
    /// # Errors
    /// `delta` outside (0, 1), or beyond the precision of the numerical composition.
    pub fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        let delta = checked_delta(delta)? - self.delta;
        if delta.is_nan() || delta <= 0.0 {
            return Ok(f64::INFINITY);
        }
        if let Some(uses) = self.sampled {
            return self.with_sampled(uses, delta);
        }
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

    fn with_sampled(&self, uses: SampledUses, delta: f64) -> Result<f64, AccountantError> {
        let mut all = PldAccountant::default();
        let others = [
            (Loss::Gaussian { mu: self.mu_squared.sqrt() }, 1),
            (Loss::Zcdp { rho: self.rho }, 1),
            (Loss::Pure { epsilon: self.pure_epsilon }, 1),
            (uses.loss, uses.times),
        ];
        for (loss, times) in others.into_iter().filter(|(loss, _)| loss.rho() > 0.0) {
            match Event::of_loss(loss) {
                Some(event) => all.compose(event, times)?,
                None => return Ok(f64::INFINITY),
            }
        }
        all.epsilon(delta)
    }
}
