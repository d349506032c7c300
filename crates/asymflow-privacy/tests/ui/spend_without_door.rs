//! What a record has lost cannot be written past the accountant.
use asymflow_privacy::records::{RecordAccountant, RecordLedger};

fn forget(accountant: &mut RecordAccountant) {
    accountant.spent()[0] = RecordLedger::default();
}

fn main() {}
