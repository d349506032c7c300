//! Attestation: a server proves which enclave it is and what it promises, and a client decides whether that will do.
//!
//! A server (feature `attest`) has an `AttestedIdentity`: a TLS key made inside the enclave, in a certificate with a DCAP
//! quote over the key and over a *promise*, which is opaque bytes here. The format is that of RA-TLS: the extension
//! [`EVIDENCE_OID`] holds CBOR tag 60000 around `[quote, claims]`, and the quote's report data are SHA-256 of the claims, then
//! zeros. A client (feature `verify`) has a `Verifier` with a `Policy` and Intel's `Collateral`, and gets what was verified or a
//! typed `Refusal`. The feature `simulated` adds quotes that take the same path and prove nothing.

mod evidence;
mod fresh;
#[cfg(feature = "attest")]
mod identity;
#[cfg(feature = "attest")]
mod quoter;
#[cfg(feature = "simulated")]
mod simulated;
mod tcb;

#[cfg(feature = "verify")]
mod collateral;
#[cfg(feature = "verify")]
mod policy;
#[cfg(feature = "verify")]
mod refusal;
#[cfg(feature = "verify")]
mod tls;
#[cfg(feature = "verify")]
mod verifier;

pub use evidence::{Claims, EVIDENCE_OID, Evidence, EvidenceError, MAX_PROMISE_BYTES, MAX_QUOTE_BYTES};
pub use fresh::{EXPORTER_LABEL, fresh_report_data, session_exporter};
#[cfg(feature = "attest")]
pub use identity::{AttestedIdentity, IdentityError};
#[cfg(feature = "attest")]
pub use quoter::{GramineQuoter, QuoteError, Quoter};
#[cfg(all(feature = "simulated", feature = "verify"))]
pub use simulated::simulated_collateral;
#[cfg(feature = "simulated")]
pub use simulated::{SIMULATED_ROOT_KEY_PEM, SimulatedMeasurement, SimulatedQuoter, SimulationError, simulated_root};
pub use tcb::TcbStatus;

#[cfg(feature = "verify")]
pub use collateral::{Collateral, CollateralError, MAX_COLLATERAL_BYTES};
#[cfg(feature = "verify")]
pub use policy::{Policy, PolicyError, TcbPolicy};
#[cfg(feature = "verify")]
pub use refusal::Refusal;
#[cfg(feature = "verify")]
pub use tls::{Clock, client_config, refusal_of, refusal_of_io};
#[cfg(feature = "verify")]
pub use verifier::{Measurement, Verified, VerifiedQuote, Verifier};

/// The public key of the simulated root, SEC1 uncompressed. Known to every verifier, so that it can name what it refuses.
pub const SIMULATED_ROOT_PUBLIC_KEY: [u8; 65] = [
    0x04, 0x9d, 0xdf, 0x4a, 0xf4, 0x57, 0x7f, 0xf1, 0x79, 0xf3, 0x80, 0x81, 0xeb, 0xdd, 0x66, 0x00, 0x01, 0x4b, 0xfe,
    0x4d, 0x35, 0x30, 0x63, 0x73, 0x55, 0x8a, 0x38, 0xb3, 0x3e, 0x1a, 0xcd, 0x18, 0x81, 0xa3, 0x36, 0x85, 0x39, 0xc3,
    0xfc, 0x7a, 0x58, 0x09, 0x21, 0x0c, 0x15, 0xfd, 0x40, 0xb8, 0x6e, 0x12, 0x99, 0x34, 0x39, 0x63, 0x42, 0x87, 0x82,
    0x4d, 0xa6, 0xc3, 0x69, 0xcd, 0xa1, 0x1e, 0xaa,
];
