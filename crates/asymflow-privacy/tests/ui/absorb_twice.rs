//! A receipt counts once.
use asymflow_privacy::{Accountant, Receipt, ZcdpAccountant};

fn count(accountant: &mut ZcdpAccountant, receipt: Receipt) {
    accountant.absorb(receipt);
    accountant.absorb(receipt);
}

fn main() {}
