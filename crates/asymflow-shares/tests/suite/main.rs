//! What the crate promises to those who use it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside test functions")]

mod decisions;
mod float;
mod links;
mod networks;
mod servers;
mod trained;
mod transfer;
