#![doc = include_str!("../README.md")]

mod affine;
mod batch;
mod bfv;
mod blocks;
mod client;
mod expected;
mod grid;
mod grid_weights;
mod layout;
pub mod messages;
mod model;
pub mod parameters;
mod program;
mod scheme;
mod server;

pub use affine::CompileError;
pub use client::Client;
pub use expected::Expected;
pub use layout::{Cost, Packing};
pub use messages::CipherError;
pub use model::{Model, Options};
pub use program::Program;
pub use server::{Admitted, Server};
