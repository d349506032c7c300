//! Tests of the orchestrator against the unsplit network, with a backend written from outside.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail by panicking, in its helpers as well"
)]

mod audit;
mod both;
mod dp_sgd;
mod foreign;
mod lies;
mod parity;
mod plans;
mod policy;
mod promises;
mod toy_backend;
mod toy_units;
mod training;
