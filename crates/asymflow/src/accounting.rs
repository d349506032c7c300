//! Which record has lost how much: receipts absorbed for the records of the batch they came from.

use asymflow_privacy::{Accountant, AccountantError, Budget, BudgetError, Loss, Receipt, RecordLedger, Relation};
use serde::{Deserialize, Serialize};

/// Which way a release went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Released {
    /// A residual, forward.
    Residual,
    /// A gradient, backward.
    Gradient,
    /// A label.
    Label,
}

/// One receipt as it lands in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Layer whose input or gradient was released.
    pub layer: String,
    /// What was released.
    pub released: Released,
    /// Name of the mechanism.
    pub mechanism: String,
    /// Loss of each record.
    pub loss: Loss,
    /// Records in the release.
    pub records: usize,
    /// The relation the loss holds for.
    pub relation: Relation,
}

/// Composes losses record by record: releases of different records compose in parallel, releases of one
/// record add up. ε is that of the record that has lost most.
#[derive(Clone, Debug)]
pub struct RecordAccountant {
    spent: Vec<RecordLedger>,
    budget: Option<Budget>,
    current: Vec<usize>,
    ledger: Vec<LedgerEntry>,
    label: Option<(String, Released)>,
}

impl RecordAccountant {
    /// An accountant of `records` records, none released yet.
    pub fn new(records: usize) -> Self {
        Self::resume(vec![RecordLedger::default(); records])
    }

    /// Continues with the losses of an earlier run.
    pub const fn resume(spent: Vec<RecordLedger>) -> Self {
        Self { spent, budget: None, current: Vec::new(), ledger: Vec::new(), label: None }
    }

    /// Sets the most that any record may lose, the losses so far included.
    #[must_use]
    pub const fn with_budget(mut self, budget: Option<Budget>) -> Self {
        self.budget = budget;
        self
    }

    /// Losses so far, by record.
    pub fn spent(&self) -> &[RecordLedger] {
        &self.spent
    }

    /// Losses so far, with more for the records of `train`, the first ones, and for the others.
    pub fn spent_with(&self, train: usize, more: &[Loss], others: &[Loss]) -> Vec<RecordLedger> {
        let mut spent = self.spent.clone();
        for (record, spent) in spent.iter_mut().enumerate() {
            let more = if record < train { more } else { others };
            more.iter().for_each(|&loss| spent.add(loss));
        }
        spent
    }

    /// Declares the records whose data the following releases carry.
    pub fn begin(&mut self, records: impl IntoIterator<Item = usize>) {
        self.current.clear();
        self.current.extend(records);
    }

    /// Checks, before a release, that its loss fits the budget of every record declared by [`RecordAccountant::begin`].
    ///
    /// # Errors
    /// A record's budget would be exceeded. Nothing has changed, and nothing may be released.
    pub fn admit(&self, loss: Loss) -> Result<(), BudgetError> {
        let Some(Budget { epsilon: limit, delta }) = self.budget else { return Ok(()) };
        let no_budget = |_| BudgetError::Budget { epsilon: limit, delta };
        let mut admitted: Option<RecordLedger> = None;
        for spent in self.current.iter().filter_map(|&record| self.spent.get(record)) {
            // Most records of a batch have lost the same.
            if admitted.as_ref() == Some(spent) {
                continue;
            }
            let mut after = *spent;
            after.add(loss);
            let asked = after.epsilon(delta).map_err(no_budget)?;
            if asked.is_nan() || asked > limit {
                return Err(BudgetError::Exhausted {
                    spent: spent.epsilon(delta).map_err(no_budget)?,
                    asked,
                    limit,
                    delta,
                });
            }
            admitted = Some(*spent);
        }
        Ok(())
    }

    /// Absorbs a receipt and notes which layer it belongs to.
    pub fn absorb_for(&mut self, layer: &str, released: Released, receipt: Receipt) {
        self.label = Some((layer.to_owned(), released));
        self.absorb(receipt);
    }

    /// The ledger entries since the last call.
    pub fn take_ledger(&mut self) -> Vec<LedgerEntry> {
        std::mem::take(&mut self.ledger)
    }
}

impl Accountant for RecordAccountant {
    fn absorb(&mut self, receipt: Receipt) {
        for &record in &self.current {
            if let Some(spent) = self.spent.get_mut(record) {
                spent.add(receipt.loss());
            }
        }
        let (layer, released) = self.label.take().unwrap_or_else(|| (String::new(), Released::Residual));
        self.ledger.push(LedgerEntry {
            layer,
            released,
            mechanism: receipt.mechanism().to_owned(),
            loss: receipt.loss(),
            records: self.current.len(),
            relation: receipt.sensitivity().relation(),
        });
    }

    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
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
}
