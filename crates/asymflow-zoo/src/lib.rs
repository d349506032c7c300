#![doc = include_str!("../README.md")]

#[cfg(feature = "burn")]
pub mod burn_net;
pub mod cost;
pub mod data;
pub mod delta;
pub mod graph;
pub mod limits;
pub mod models;
pub mod network;
pub mod ops;
mod param;
mod pkn;
pub mod reference;
pub mod replace;
mod shape;
mod training;
pub mod weight_files;
pub mod weights;

#[cfg(feature = "burn")]
pub use burn_net::BurnNet;
pub use data::{DataError, DataSource, Dataset, Split};
pub use graph::Graph;
pub use models::by_name;
pub use network::{Layer, Network};
pub use ops::{
    Choice, Coefficients, Conv, Decision, Easing, Form, Gate, Grouping, Groups, Linear, Quadratic, RangePenalty,
    SharedRelu,
};
pub use param::{Init, ParamKind, ParamSpec, rate_factors};
pub use reference::Reference;
pub use replace::{Replacement, replace_activations};
pub use shape::{NetworkError, Shape};
pub use training::{Pass, SgdStep};
pub use weights::{WeightTensor, Weights, WeightsError};
