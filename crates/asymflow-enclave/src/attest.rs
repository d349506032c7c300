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

pub use evidence::{
    Claims, EVIDENCE_OID, Evidence, EvidenceError, MAX_PROMISE_BYTES, MAX_QUOTE_BYTES, SIMULATED_ROOT_PUBLIC_KEY,
};
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
pub use verifier::{Measurement, QuoteVerifier, Verified, VerifiedQuote, Verifier};
