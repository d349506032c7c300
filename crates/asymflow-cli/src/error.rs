//! Errors as the user sees them: one line of what, one `help:` line, and an exit code.

use std::fmt;
use std::path::Path;

use crate::text::escaped_lines;

/// Exit codes of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A claim or a run failed.
    Failed = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// A required capability is missing.
    Missing = 3,
    /// Interrupted, with valid artefacts.
    Interrupted = 130,
}

/// An error with its remedy.
#[derive(Debug)]
pub struct CliError {
    message: String,
    help: String,
    exit: Exit,
}

impl CliError {
    /// Bad usage or configuration.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), exit: Exit::Usage }
    }

    /// Something that is needed is not there.
    pub fn missing(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), exit: Exit::Missing }
    }

    /// A run that failed.
    pub fn failed(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), exit: Exit::Failed }
    }

    /// The same error, of a file.
    pub(crate) fn within(self, path: &Path) -> Self {
        Self { message: format!("{}: {}", path.display(), self.message), ..self }
    }

    /// The message without its remedy, to be told within another line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The remedy.
    #[cfg(test)]
    pub fn help(&self) -> &str {
        &self.help
    }

    /// The exit code.
    pub const fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", escaped_lines(&self.message))?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "\nhelp: {}", escaped_lines(&self.help)) }
    }
}

impl std::error::Error for CliError {}
