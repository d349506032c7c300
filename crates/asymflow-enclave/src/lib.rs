#![doc = include_str!("../README.md")]

mod assurance;
#[cfg(any(feature = "attest", feature = "verify"))]
pub mod attest;
#[cfg(feature = "channel")]
pub mod channel;
pub mod codes;
pub mod manifest;
pub mod probe;
pub mod runtime;
#[cfg(feature = "seal")]
pub mod seal;

pub use assurance::Assurance;
