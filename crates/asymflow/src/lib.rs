#![doc = include_str!("../README.md")]

pub mod checkpoint;
mod hex;
pub mod job;
mod link;
pub mod memory;
pub mod modes;
pub mod plan;
pub mod run;
pub mod serve;
pub mod service;
pub mod studies;
mod teaching;
pub mod train;

/// The recipes, whose examples are tests.
#[cfg(doctest)]
mod recipes {
    #[doc = include_str!("../../../docs/how-to/add-a-data-set.md")]
    struct AddADataSet;
    #[doc = include_str!("../../../docs/how-to/add-a-mode.md")]
    struct AddAMode;
    #[doc = include_str!("../../../docs/how-to/add-an-attack.md")]
    struct AddAnAttack;
    #[doc = include_str!("../../../docs/how-to/add-an-activation.md")]
    struct AddAnActivation;
}
