//! TLS 1.3 over TCP between processes that know each other by the fingerprint of a self-signed certificate (feature `tls`;
//! with `identity`, such a certificate of one's own).

#[cfg(feature = "identity")]
mod identity;
#[cfg(feature = "identity")]
mod mutual;
mod pin;
mod stream;
mod timed;

#[cfg(feature = "identity")]
pub use identity::{Identity, IdentityError};
pub use pin::{Fingerprint, FingerprintError, client_config};
pub use stream::{Stream, dial};
