#![doc = include_str!("../README.md")]

pub mod conv;
pub mod dct;
pub mod decompose;
pub mod rank;
pub mod spectrum;

/// Threads of a computation, and memory that a caller owns: what faer's functions take.
pub use faer::{Par, dyn_stack};

pub use dct::BlockDct;
pub use decompose::{
    Alternating, BatchShape, DecomposeError, Decomposer, ExactSvd, Gram, LowRank, RandomRange, by_name,
};
pub use rank::RankPolicy;
