//! What launches an enclave program, and the conversation with it.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

use crate::Assurance;

/// Whether a runtime can launch here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Ready,
    /// It cannot.
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        fix: String,
    },
}

/// What is launched, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnclaveSpec {
    /// The enclave program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment; nothing else of the host's is passed on except `PATH`.
    pub environment: Vec<(OsString, OsString)>,
    /// The most heap that it is planned to hold, in bytes; an enclave whose manifest makes it smaller is not started.
    pub peak_bytes: Option<u64>,
}

impl EnclaveSpec {
    /// A program without arguments and environment.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new(), peak_bytes: None }
    }
}

/// Why nothing was launched.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The runtime cannot run here.
    #[error("{what} is missing")]
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        fix: String,
    },
    /// The program cannot be started.
    #[error("cannot start {program}: {error}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The manifest is for another program.
    #[error("{app} is no manifest for {program}")]
    OtherProgram {
        /// The program that was to be started.
        program: PathBuf,
        /// Path of the manifest without its extension.
        app: PathBuf,
    },
    /// Arguments or an environment besides those that the manifest fixes and the enclave's measurement covers.
    #[error("arguments and environment are part of the manifest of {app}; render it again to change them")]
    Measured {
        /// Path of the manifest without its extension.
        app: PathBuf,
    },
    /// The enclave would be smaller than what is planned for it.
    #[error("{path} makes an enclave of {enclave_bytes} bytes, of which the program is planned to take {peak_bytes}")]
    TooSmall {
        /// The manifest.
        path: PathBuf,
        /// Its size.
        enclave_bytes: u64,
        /// What is planned.
        peak_bytes: u64,
    },
    /// The runtime has ended and said why.
    #[error("{what} ({said})")]
    Runtime {
        /// What it said.
        said: String,
        /// What that means.
        what: String,
        /// What to do.
        fix: String,
    },
}

/// The two directions of a session: to the enclave program and from it.
pub type Streams = (Box<dyn Write + Send>, Box<dyn Read + Send>);

/// A way to run the enclave program. The same program runs under every runtime.
pub trait TrustedRuntime: Send + Sync + Debug {
    /// Name in configuration and reports.
    fn name(&self) -> &'static str;

    /// Whether it can launch here. Never panics.
    fn probe(&self) -> Availability;

    /// How far its results can be trusted.
    fn assurance(&self) -> Assurance;

    /// Starts the program.
    ///
    /// # Errors
    /// Something is missing, or the program cannot be started.
    fn launch(&self, spec: &EnclaveSpec) -> Result<Box<dyn TrustedSession>, LaunchError>;
}

/// A running enclave program. Dropping it ends the program.
pub trait TrustedSession: Send + Debug {
    /// The streams to and from the program, once.
    fn streams(&mut self) -> Option<Streams>;

    /// Waits for the program to end.
    ///
    /// # Errors
    /// The operating system cannot say.
    fn wait(&mut self) -> std::io::Result<ExitStatus>;

    /// Ends the program at once.
    ///
    /// # Errors
    /// The operating system refused.
    fn kill(&mut self) -> std::io::Result<()>;

    /// Why the runtime has ended the program or never started it, where it has ended and its words are known.
    fn failure(&mut self) -> Option<LaunchError> {
        None
    }
}
