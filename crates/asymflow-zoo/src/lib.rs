#![doc = include_str!("../README.md")]

pub mod network;
pub mod weights;

pub use network::{Conv, Layer, Linear, Network, NetworkError, ParamKind, ParamSpec, Shape};
pub use weights::{WeightTensor, Weights, WeightsError};
