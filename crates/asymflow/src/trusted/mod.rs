//! The trusted part: a network executed on the CPU, with the convolutions left to a [`Convolver`].

pub mod buffer;
pub mod engine;
mod error;
pub mod ops;
pub mod params;
pub mod program;
pub mod quadratic;
pub mod shared_relu;

pub use buffer::{Activation, Buffer, Pool};
pub use engine::{Convolver, Engine};
pub use error::ExecError;
pub use params::Params;
pub use program::{ConvNode, Program};
