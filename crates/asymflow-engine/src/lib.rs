#![doc = include_str!("../README.md")]

pub mod buffer;
pub mod engine;
mod error;
pub mod local;
pub mod ops;
pub mod params;
pub mod program;
pub mod quadratic;
pub mod shared_relu;
pub mod streamed;
pub mod timing;

pub use buffer::{Activation, Buffer, Pool};
pub use engine::{Convolver, Engine};
pub use error::EngineError;
pub use local::LocalConv;
pub use params::Params;
pub use program::{ConvNode, Program};
