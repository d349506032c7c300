#![doc = include_str!("../README.md")]

pub mod backend;

pub use backend::{
    Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualBackend, ResidualModel, ResidualSession,
    ResidualTraining, SgdStep, SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
};
