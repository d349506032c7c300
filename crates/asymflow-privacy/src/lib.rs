#![doc = include_str!("../README.md")]

mod accountant;
mod bits;
mod boundary;
mod budget;
mod calibration;
mod clip;
mod door;
mod exact;
mod fourier;
mod gdp;
mod grid;
mod labels;
mod loss;
mod mechanism;
mod normal;
mod one_bit;
mod payload;
mod pld;
mod privacy_loss;
mod public;
mod rdp;
mod records;
mod search;
mod zcdp;

pub use accountant::{Accountant, AccountantError, Event, ZcdpAccountant};
pub use bits::{PackedBits, PackedBitsError};
pub use boundary::{Private, Released};
pub use budget::{Budget, BudgetError, RecordLedger};
pub use calibration::{
    CalibrationError, calibrate_losses, calibrate_sigma, gaussian_delta, gaussian_epsilon, gaussian_sigma,
    thesis_amplified_epsilon, thesis_local_epsilon, thesis_sigma,
};
pub use clip::{ClipError, clip_coordinates, clip_l2};
pub use door::{Door, Gate, ReleaseError, Source};
pub use grid::{DiscreteGaussian, Laplace};
pub use labels::RandomisedResponse;
pub use loss::{Loss, Relation, Sensitivity};
pub use mechanism::{InsecureFloatNoise, InsecureNone, Mechanism, MechanismError};
pub use one_bit::OneBit;
pub use payload::{Format, Payload, Precision};
pub use pld::PldAccountant;
pub use public::{InsecureLaplaceSign, InsecureSign};
pub use rdp::RdpAccountant;
pub use records::{Flow, LedgerEntry, RecordAccountant};
