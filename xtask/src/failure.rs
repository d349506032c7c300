//! Failures that have an exit code of their own.

use std::fmt;

/// Exit code when a check, test or claim failed.
pub const FAILED: u8 = 1;
/// Exit code when the user interrupted.
pub const INTERRUPTED: u8 = 130;

/// A failure that is not simply "it failed".
#[derive(Debug)]
pub enum Failure {
    /// Bad usage or configuration.
    Usage(String),
    /// Something this machine lacks.
    Missing {
        what: String,
        /// How to get it.
        fix: String,
    },
    Interrupted,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Missing { what, fix } => write!(f, "{what}\nhelp: {fix}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit code that `error` stands for.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Failure>() {
        Some(Failure::Usage(_)) => 2,
        Some(Failure::Missing { .. }) => 3,
        Some(Failure::Interrupted) => INTERRUPTED,
        None => FAILED,
    }
}
