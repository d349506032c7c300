#![doc = include_str!("../README.md")]

pub mod cost;
pub mod data;
pub mod models;
pub mod network;
pub mod weights;

pub use data::{DataError, DataSource, Dataset, Split};
pub use models::{ModelError, by_name};
pub use network::{Conv, Layer, Linear, Network, NetworkError, ParamKind, ParamSpec, Shape};
pub use weights::{WeightTensor, Weights, WeightsError};
