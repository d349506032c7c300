//! An accountant gives its leave to a door only.
use asymflow_privacy::records::{LedgerEntry, RecordAccountant};

fn smuggle(accountant: &mut RecordAccountant, entry: LedgerEntry) {
    let _permit = accountant.admit(&[0], entry);
}

fn main() {}
