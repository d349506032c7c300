#![doc = include_str!("../README.md")]

mod accountant;
mod boundary;
mod mechanism;
mod payload;

pub use accountant::{Accountant, AccountantError, ZcdpAccountant};
pub use boundary::{Private, Receipt, ReleaseError, Released, release};
pub use mechanism::{Gaussian, InsecureNone, Loss, Mechanism, MechanismError, Relation, Sensitivity};
pub use payload::{Payload, Precision};
