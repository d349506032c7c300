#![doc = include_str!("../README.md")]

pub mod attack;
pub mod attacks;
pub mod epsilon;
pub mod figures;
mod fit;
mod judge;
pub mod membership;
mod picture;
pub mod tape;
pub mod traffic;

pub use attack::{Attack, AuditError};
pub use judge::Truth;
