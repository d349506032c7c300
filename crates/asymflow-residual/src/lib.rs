#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "burn")]
mod burn_backend;
#[cfg(feature = "burn")]
mod burn_device;
#[cfg(feature = "burn")]
mod burn_network;
#[cfg(feature = "burn")]
mod burn_unit;
mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connection;
mod data_parallel;
#[cfg(feature = "serve")]
mod modelled;
mod protocol;
mod received;
mod ring;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_session;
pub mod session;
mod unit;
pub mod units;

pub use backend::{
    Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualBackend, ResidualModel, ResidualSession,
    ResidualTraining, SgdStep, SharedValues, SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
};
#[cfg(feature = "burn")]
pub use burn_backend::{BurnBackend, DeviceChoice, DeviceChoiceError};
pub use client::{Notify, Protection, Tap, Transport, WorkerClient, WorkerConfig};
pub use data_parallel::DataParallel;
#[cfg(feature = "serve")]
pub use modelled::{ModelledBackend, ModelledBackendError};
pub use protocol::{PROTOCOL_VERSION, Token};
pub use ring::{RingLayout, RingLayoutError, RingName, RingNameError};
#[cfg(feature = "serve")]
pub use serve::{ServeConfig, ServeError, ServeLimits, Worker, WorkerHandle};
