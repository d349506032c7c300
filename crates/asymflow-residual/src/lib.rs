#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "backend")]
mod burn_backend;
#[cfg(feature = "backend")]
mod burn_device;
#[cfg(feature = "backend")]
mod burn_network;
#[cfg(feature = "backend")]
mod burn_unit;
mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connection;
mod data_parallel;
#[cfg(feature = "identity")]
mod identity;
#[cfg(feature = "identity")]
mod mutual;
mod pin;
mod protocol;
mod queue;
mod received;
mod ring;
#[cfg(feature = "backend")]
mod serve;
#[cfg(feature = "backend")]
mod serve_session;
mod timed;
mod unit;

pub use backend::{
    Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualBackend, ResidualModel, ResidualSession,
    ResidualTraining, SgdStep, SharedValues, SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
};
#[cfg(feature = "backend")]
pub use burn_backend::{BurnBackend, DeviceChoice, DeviceChoiceError};
pub use client::{Notify, Protection, Tap, Transport, WorkerClient, WorkerConfig};
pub use data_parallel::DataParallel;
#[cfg(feature = "identity")]
pub use identity::{Identity, IdentityError};
pub use pin::{Fingerprint, FingerprintError, client_config};
pub use protocol::{PROTOCOL_VERSION, Token};
pub use ring::{RingLayout, RingLayoutError, RingName, RingNameError};
#[cfg(feature = "backend")]
pub use serve::{ServeConfig, ServeError, ServeLimits, Worker, WorkerHandle};
pub use timed::Timed;
