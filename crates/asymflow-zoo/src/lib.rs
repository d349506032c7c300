#![doc = include_str!("../README.md")]

#[cfg(feature = "burn")]
pub mod burn_net;
pub mod data;
pub mod graph;
pub mod models;
pub mod network;
pub mod ops;
mod param;
mod shape;
mod training;
pub mod weights;

pub use models::by_name;
pub use network::Network;
pub use weights::Weights;
