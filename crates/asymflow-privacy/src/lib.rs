#![doc = include_str!("../README.md")]

mod accountant;
mod bits;
mod boundary;
mod budget;
pub mod calibration;
mod clip;
mod codewords;
pub mod door;
mod exact;
mod fourier;
mod gdp;
mod grid;
mod labels;
mod loss;
mod mechanism;
mod normal;
mod one_bit;
pub mod payload;
mod pld;
mod privacy_loss;
mod public;
mod rdp;
pub mod records;
mod residual_noise;
mod search;
mod shuffle;
mod zcdp;

pub use boundary::{Private, Released};
pub use door::Door;
pub use loss::Loss;

/// What one release loses, and what many lose together.
pub mod accountants {
    pub use crate::accountant::{Accountant, AccountantError, Event, ZcdpAccountant};
    pub use crate::loss::{Relation, Sensitivity};
    pub use crate::pld::PldAccountant;
    pub use crate::rdp::RdpAccountant;
    pub use crate::shuffle::{ShuffleError, shuffled};
}

/// What makes a release of a private value: clips, noise, one bit a value, randomised response.
pub mod mechanisms {
    pub use crate::clip::{ClipError, clip_coordinates, clip_l2};
    pub use crate::codewords::Codewords;
    pub use crate::grid::{DiscreteGaussian, Laplace};
    pub use crate::labels::RandomisedResponse;
    pub use crate::mechanism::{InsecureFloatNoise, InsecureNone, Mechanism, MechanismError};
    pub use crate::one_bit::OneBit;
    pub use crate::public::{InsecureLaplaceSign, InsecureSign};
    pub use crate::residual_noise::ResidualNoise;
}
