#![doc = include_str!("../README.md")]

pub mod accounting;
#[cfg(feature = "shares")]
pub mod budget_study;
pub mod checkpoint;
pub mod clear;
pub mod delta;
mod exec_error;
pub mod job;
pub mod link;
pub mod memory;
pub mod memory_study;
pub mod modes;
pub mod naive;
#[cfg(feature = "shares")]
pub mod on_shares;
pub mod plan;
pub mod release;
pub mod run;
pub mod serve;
pub mod service;
pub mod speedup;
pub mod split;
pub mod study;
pub mod teaching;
pub mod train;
pub mod weights_file;

pub use exec_error::ExecError;
