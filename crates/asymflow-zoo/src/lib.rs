#![doc = include_str!("../README.md")]

pub mod activation;
#[cfg(feature = "burn")]
pub mod burn_net;
pub mod cost;
pub mod data;
pub mod delta;
pub mod limits;
pub mod models;
pub mod network;
mod pkn;
pub mod replace;
mod training;
pub mod weight_files;
pub mod weights;

pub use activation::{
    Choice, Coefficients, Decision, Easing, Form, Gate, Grouping, Groups, Quadratic, RangePenalty, SharedRelu,
};
#[cfg(feature = "burn")]
pub use burn_net::{BurnNet, BurnNetError, Sgd};
pub use data::{DataError, DataSource, Dataset, Split};
pub use models::{ModelError, by_name};
pub use network::{Conv, Layer, Linear, Network, NetworkError, ParamKind, ParamSpec, Shape, rate_factors};
pub use replace::{Replacement, ReplacementError, replace_activations};
pub use training::{Pass, SgdStep};
pub use weights::{Misfit, WeightTensor, Weights, WeightsError};
