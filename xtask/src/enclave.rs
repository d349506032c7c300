//! `cargo xtask enclave`.

// One table and one set of probes for the crate and for this program, which may use none of our crates.
#[path = "../../crates/asymflow-enclave/src/codes.rs"]
pub mod codes;
#[path = "../../crates/asymflow-enclave/src/probe.rs"]
pub mod probe;
