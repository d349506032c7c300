//! Ways to run the enclave program. The same program runs under every one.

mod gramine;
mod launch;
mod sim;

pub use gramine::Gramine;
pub use launch::{Availability, EnclaveSpec, LaunchError, Streams, TrustedRuntime, TrustedSession};
pub use sim::Sim;
