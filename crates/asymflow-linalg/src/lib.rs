#![doc = include_str!("../README.md")]

pub mod conv;
pub mod decompose;

pub use decompose::{BatchShape, DecomposeError, Decomposer, ExactSvd, Gram, LowRank, SharedBasis, by_name};
