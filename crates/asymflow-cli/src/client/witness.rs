//! What this client has seen of each service's state, so that a service that was put back is noticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use asymflow::service::hex;

use crate::error::CliError;

/// Witnesses by address, in a file beside the account.
pub struct Witnesses {
    path: PathBuf,
}

impl Witnesses {
    /// The file beside the account in `account`.
    pub fn beside(account: &Path) -> Self {
        let mut path = account.as_os_str().to_owned();
        path.push(".witnesses.json");
        Self { path: path.into() }
    }

    fn read(&self) -> BTreeMap<String, String> {
        // A client without its witnesses is one that comes for the first time.
        std::fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// The witness of the service at an address.
    pub fn of(&self, address: &str) -> Option<Vec<u8>> {
        let text = self.read().remove(address)?;
        let digit = |d: u8| char::from(d).to_digit(16);
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        pairs.iter().map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
    }

    pub fn keep(&self, address: &str, witness: &[u8]) -> Result<(), CliError> {
        let mut all = self.read();
        all.insert(address.to_owned(), hex(witness));
        let failed = |e: String| {
            CliError::failed(
                format!("cannot write {}: {e}", self.path.display()),
                "without it a rollback goes unnoticed",
            )
        };
        let text = serde_json::to_vec_pretty(&all).map_err(|e| failed(e.to_string()))?;
        let temporary = self.path.with_extension("new");
        std::fs::write(&temporary, text).map_err(|e| failed(e.to_string()))?;
        std::fs::rename(&temporary, &self.path).map_err(|e| failed(e.to_string()))
    }
}
