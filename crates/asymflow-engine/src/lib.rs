#![doc = include_str!("../README.md")]

mod buffer;
mod engine;
mod error;
pub mod local;
mod loss;
mod ops;
mod params;
mod program;
mod quadratic;
mod shared_relu;
pub mod streamed;
pub mod timing;

pub use buffer::{Activation, Buffer, Pool};
pub use engine::{Convolver, Engine, check_finite};
pub use error::EngineError;
pub use local::LocalConv;
pub use loss::{argmax, softmax_cross_entropy};
pub use ops::add_assign;
pub use params::Params;
pub use program::{ConvNode, Program};
