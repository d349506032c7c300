//! Tests of the orchestrator against the unsplit network, with a backend written from outside.

mod both;
mod parity;
mod toy_backend;
mod training;
