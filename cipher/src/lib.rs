#![doc = include_str!("../README.md")]

mod affine;
mod bfv;
mod latency;
mod model;
mod parameters;
mod party;
mod scheme;

pub use affine::CompileError;
pub use model::{Model, Options, Program};
pub use parameters::{Parameters, ParametersError, SECURITY_TABLE};
pub use party::{Answer, CipherError, Client, EvaluationKeys, Query, Server};

/// What one query costs, counted before anything is computed.
pub mod cost {
    pub use crate::latency::Cost;
}
