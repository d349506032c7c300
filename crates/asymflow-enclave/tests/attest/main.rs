//! Attestation from both ends: real quotes, simulated ones in every state, whole handshakes, and hostile bytes.
#![cfg(feature = "verify")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg_attr(feature = "simulated", expect(clippy::panic, reason = "a test fails by panicking"))]

mod real;

#[cfg(feature = "simulated")]
mod common;
#[cfg(feature = "simulated")]
mod handshake;
#[cfg(feature = "simulated")]
mod hostile;
#[cfg(feature = "simulated")]
mod simulated;
