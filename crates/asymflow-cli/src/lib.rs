#![doc = include_str!("../README.md")]

mod client;
mod command;
mod entry;
mod error;
pub mod experiment;
mod explain;
mod extensions;
mod folder;
mod host;
mod inside;
mod kind;
mod kinds;
mod machine;
mod memory;
mod output;
mod page;
pub mod plot;
mod progress;
mod promise;
mod report;
mod run;
mod shares_section;
mod summary;
mod tables;
mod text;
mod worker;

pub use command::main_with;
pub use error::CliError;
pub use extensions::Extensions;
pub use kind::{Ended, ExperimentKind, Verdict};
pub use run::Run;
pub use text::markdown;
