#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "burn")]
pub mod burn_backend;
#[cfg(feature = "burn")]
mod burn_device;
#[cfg(feature = "burn")]
mod burn_network;
#[cfg(feature = "burn")]
mod burn_unit;
pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connection;
pub mod data_parallel;
#[cfg(feature = "serve")]
pub mod modelled;
mod protocol;
mod rates;
mod received;
mod ring;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "serve")]
mod serve_session;
pub mod session;
mod unit;
pub mod units;

pub use backend::ResidualBackend;
