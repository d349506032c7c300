#![doc = include_str!("../README.md")]

pub mod conv;
pub mod dct;
pub mod decompose;
mod gemm;
mod parallel;
pub mod rank;
mod simd;
pub mod spectrum;

/// Threads of a computation, and memory that a caller owns: what faer's functions take.
pub use faer::{Par, dyn_stack};

pub use decompose::{Decomposer, LowRank};
pub use rank::RankPolicy;
