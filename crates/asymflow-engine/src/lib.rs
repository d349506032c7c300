#![doc = include_str!("../README.md")]

pub mod buffer;
pub mod convolver;
mod engine;
mod error;
mod ghost;
mod group_norm;
pub mod local;
pub mod loss;
mod max_pool;
mod ops;
mod params;
pub mod program;
mod quadratic;
mod shared_relu;
pub mod streamed;
pub mod timing;

pub use engine::Engine;
pub use error::EngineError;
pub use params::Params;
