#![doc = include_str!("../README.md")]

#[cfg(feature = "burn")]
pub mod burn_net;
pub mod cost;
pub mod data;
pub mod delta;
pub mod limits;
pub mod models;
pub mod network;
#[cfg(feature = "burn")]
mod pytorch_file;
#[cfg(feature = "burn")]
pub mod weight_files;
pub mod weights;

#[cfg(feature = "burn")]
pub use burn_net::{BurnNet, BurnNetError, Sgd};
pub use data::{DataError, DataSource, Dataset, Split};
pub use models::{ModelError, by_name};
pub use network::{Conv, Layer, Linear, Network, NetworkError, ParamKind, ParamSpec, Shape};
#[cfg(feature = "burn")]
pub use weight_files::WeightFileError;
pub use weights::{WeightTensor, Weights, WeightsError};
