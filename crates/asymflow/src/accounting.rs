//! Which record has lost how much: receipts absorbed for the records of the batch they came from.

use asymflow_privacy::{Accountant, AccountantError, Loss, Receipt, Relation, ZcdpAccountant};
use serde::{Deserialize, Serialize};

/// Which way a release went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Released {
    /// A residual, forward.
    Residual,
    /// A gradient, backward.
    Gradient,
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
    /// Loss of each record in ρ-zCDP; absent when there is no guarantee.
    pub rho: Option<f64>,
    /// Records in the release.
    pub records: usize,
    /// The relation the loss holds for.
    pub relation: Relation,
}

/// Composes losses record by record: releases of different records compose in parallel, releases of one
/// record add up. ε is that of the record that has lost most.
#[derive(Clone, Debug)]
pub struct RecordAccountant {
    rho: Vec<f64>,
    current: Vec<usize>,
    ledger: Vec<LedgerEntry>,
    label: Option<(String, Released)>,
}

impl RecordAccountant {
    /// An accountant of `records` records, none released yet.
    pub fn new(records: usize) -> Self {
        Self { rho: vec![0.0; records], current: Vec::new(), ledger: Vec::new(), label: None }
    }

    /// Continues with the losses of an earlier run.
    pub fn resume(rho: Vec<f64>) -> Self {
        Self { rho, current: Vec::new(), ledger: Vec::new(), label: None }
    }

    /// Losses so far, ρ by record.
    pub fn rho(&self) -> &[f64] {
        &self.rho
    }

    /// Declares the records whose data the following releases carry.
    pub fn begin(&mut self, records: impl IntoIterator<Item = usize>) {
        self.current.clear();
        self.current.extend(records);
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
        let rho = match receipt.loss() {
            Loss::Zcdp { rho } => rho,
            Loss::Infinite => f64::INFINITY,
        };
        for &record in &self.current {
            if let Some(total) = self.rho.get_mut(record) {
                *total += rho;
            }
        }
        let (layer, released) = self.label.take().unwrap_or_else(|| (String::new(), Released::Residual));
        self.ledger.push(LedgerEntry {
            layer,
            released,
            mechanism: receipt.mechanism().to_owned(),
            rho: rho.is_finite().then_some(rho),
            records: self.current.len(),
            relation: receipt.sensitivity().relation(),
        });
    }

    fn epsilon(&self, delta: f64) -> Result<f64, AccountantError> {
        ZcdpAccountant::resume(self.rho.iter().copied().fold(0.0, f64::max)).epsilon(delta)
    }
}
