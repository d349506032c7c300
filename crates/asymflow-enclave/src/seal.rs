//! Files under the enclave's key: what the host stores, it can neither read nor change nor, as far as a guard reaches, put
//! back.
//!
//! ```rust
//! use asymflow_enclave::seal::{FileGuard, SealedStore, SealingKey};
//!
//! let folder = tempfile::tempdir().unwrap();
//! // In an enclave this is `SealingKey::gramine(Binding::Enclave)`.
//! let key = SealingKey::insecure_host_file(&folder.path().join("key")).unwrap();
//! let guard = FileGuard::open(&folder.path().join("guard"), &key).unwrap();
//! let mut store = SealedStore::open(&folder.path().join("state"), key, Box::new(guard)).unwrap();
//!
//! store.save("ledger", b"spent 1").unwrap();
//! let seen = store.witness("ledger").unwrap().unwrap();
//! store.save("ledger", b"spent 2").unwrap();
//! assert_eq!(store.load("ledger").unwrap().unwrap().as_slice(), b"spent 2");
//! store.check_witness("ledger", &seen).unwrap();
//! ```

mod disk;
mod error;
mod format;
mod guard;
mod key;
mod log;
#[cfg(test)]
mod log_tests;
mod store;
mod stream;
#[cfg(test)]
mod tests;

pub use error::{SealError, WitnessError};
pub use guard::{FileGuard, Guard, GuardError, Mark, Witness};
pub use key::{Binding, KeyError, SealingKey};
pub use log::{Durability, Replayed, SealedLog};
pub use store::SealedStore;
pub use stream::SealedReader;
