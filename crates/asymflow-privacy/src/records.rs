//! Which record has lost how much, and who may lose more.

use serde::{Deserialize, Serialize};

use crate::accountant::{AccountantError, checked_delta};
use crate::boundary::Released;
pub use crate::budget::{Budget, BudgetError, RecordLedger};
use crate::door::ReleaseError;
use crate::loss::{Loss, Relation};

/// Which way a release goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// A residual, or a whole image, forward.
    Residual,
    /// A gradient, backward.
    Gradient,
    /// A label.
    Label,
    /// Weights that were trained on the records.
    Weights,
}

/// One release as the ledger lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Layer whose input or gradient was released.
    pub layer: String,
    /// What was released.
    #[serde(rename = "released")]
    pub flow: Flow,
    /// Name of the mechanism.
    pub mechanism: String,
    /// Loss of each record.
    pub loss: Loss,
    /// Records in the release.
    pub records: usize,
    /// The relation the loss holds for.
    pub relation: Relation,
}

/// What holds releases back.
#[derive(Clone, Debug, PartialEq)]
enum Limit {
    None,
    /// ε of a record at a δ.
    Budget(Budget),
    /// What was charged elsewhere beforehand.
    Prepaid(RecordLedger),
}

/// Composes losses record by record: releases of different records compose in parallel, releases of one record add up. ε is that
/// of the record that has lost most.
///
/// Only a [`Door`](crate::Door) spends from it, so nothing is released that was not asked for and counted.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordAccountant {
    spent: Vec<RecordLedger>,
    limit: Limit,
    ledger: Vec<LedgerEntry>,
}

impl RecordAccountant {
    /// An accountant of `records` records, none released yet.
    pub fn new(records: usize) -> Self {
        Self::resume(vec![RecordLedger::default(); records])
    }

    /// Continues with the losses of an earlier run.
    pub const fn resume(spent: Vec<RecordLedger>) -> Self {
        Self { spent, limit: Limit::None, ledger: Vec::new() }
    }

    /// An accountant of `records` records for each of which `losses` were charged elsewhere before: a release beyond them is
    /// refused.
    pub fn prepaid(records: usize, losses: &[Loss]) -> Self {
        let mut allowed = RecordLedger::default();
        losses.iter().for_each(|&loss| allowed.add(loss));
        Self { limit: Limit::Prepaid(allowed), ..Self::new(records) }
    }

    /// Sets the most that any record may lose, the losses so far included; no limit with `None`.
    #[must_use]
    pub const fn with_budget(mut self, budget: Option<Budget>) -> Self {
        self.limit = match budget {
            Some(budget) => Limit::Budget(budget),
            None => Limit::None,
        };
        self
    }

    /// Sets the most that any record may lose, the losses so far included, to what a plan comes to, where the plan is within the limit
    /// so far, which else stays: comparing counts of losses takes no time, composing them numerically does.
    #[must_use]
    pub fn with_plan(mut self, plan: RecordLedger) -> Self {
        let is_within = match &self.limit {
            Limit::None => true,
            Limit::Budget(budget) => plan.epsilon(budget.delta).is_ok_and(|epsilon| epsilon <= budget.epsilon),
            Limit::Prepaid(prepaid) => plan.is_within(prepaid),
        };
        if is_within {
            self.limit = Limit::Prepaid(plan);
        }
        self
    }

    /// Losses so far, by record.
    pub fn spent(&self) -> &[RecordLedger] {
        &self.spent
    }

    /// Losses so far, with `train` more for the first `count` records, and `others` more for those after them.
    pub fn spent_with(&self, count: usize, train: &[Loss], others: &[Loss]) -> Vec<RecordLedger> {
        let mut spent = self.spent.clone();
        for (record, spent) in spent.iter_mut().enumerate() {
            let more = if record < count { train } else { others };
            more.iter().for_each(|&loss| spent.add(loss));
        }
        spent
    }

    /// ε of the record that has lost most.
    ///
    /// # Errors
    /// A δ that is none.
    pub fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        checked_delta(delta)?;
        let mut seen: Vec<RecordLedger> = Vec::new();
        let mut most = 0.0_f64;
        for spent in &self.spent {
            if !seen.contains(spent) {
                most = most.max(spent.epsilon(delta)?);
                seen.push(*spent);
            }
        }
        Ok(most)
    }

    /// The ledger entries since the last call.
    pub fn take_ledger(&mut self) -> Vec<LedgerEntry> {
        std::mem::take(&mut self.ledger)
    }

    /// Whether every one of `records` has lost anything.
    ///
    /// # Errors
    /// The first that has not, or that does not exist.
    pub(crate) fn have_lost(&self, records: &[usize]) -> Result<(), ReleaseError> {
        for &record in records {
            let spent = self.spent.get(record).ok_or(ReleaseError::Record { record, records: self.spent.len() })?;
            if *spent == RecordLedger::default() {
                return Err(ReleaseError::NeverReleased { record });
            }
        }
        Ok(())
    }

    /// Asks whether `records` may lose as `entry` says, each as often as it occurs. Nothing has been charged before the permit
    /// is used.
    ///
    /// # Errors
    /// A record that does not exist, or one whose limit would be passed.
    pub(crate) fn admit<'a>(
        &'a mut self,
        records: &'a [usize],
        entry: LedgerEntry,
    ) -> Result<Permit<'a>, ReleaseError> {
        let mut sorted = records.to_vec();
        sorted.sort_unstable();
        let mut admitted: Option<(RecordLedger, usize)> = None;
        for same in sorted.chunk_by(|a, b| a == b) {
            let record = same.first().copied().unwrap_or_default();
            let spent = *self.spent.get(record).ok_or(ReleaseError::Record { record, records: self.spent.len() })?;
            // Most records of a batch have lost the same.
            if admitted == Some((spent, same.len())) {
                continue;
            }
            let mut after = spent;
            same.iter().for_each(|_| after.add(entry.loss));
            self.check(&spent, &after)?;
            admitted = Some((spent, same.len()));
        }
        Ok(Permit { accountant: self, records, entry })
    }

    fn check(&self, spent: &RecordLedger, after: &RecordLedger) -> Result<(), BudgetError> {
        match &self.limit {
            Limit::None => Ok(()),
            Limit::Prepaid(allowed) if after.is_within(allowed) => Ok(()),
            Limit::Prepaid(allowed) => Err(BudgetError::Prepaid { rho: after.rho(), allowed: allowed.rho() }),
            Limit::Budget(budget) => budget.admit(spent, after),
        }
    }
}

/// Leave to release once: what is released is made from it, and charged as it is made.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    accountant: &'a mut RecordAccountant,
    records: &'a [usize],
    entry: LedgerEntry,
}

impl Permit<'_> {
    /// Charges the records and lets `value` out.
    pub(crate) fn release<T>(self, value: T) -> Released<T> {
        for &record in self.records {
            if let Some(spent) = self.accountant.spent.get_mut(record) {
                spent.add(self.entry.loss);
            }
        }
        self.accountant.ledger.push(self.entry);
        Released::new(value)
    }
}
