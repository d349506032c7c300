//! What this client has seen of each service's state, so that a service that was put back is noticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// What is shown to a service at the next visit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// When the client's account was opened there; part of the account.
    pub generation: Option<u64>,
    /// A witness of the latest state that answered.
    pub witness: Option<Vec<u8>>,
}

/// What was seen, by address, in a file beside the account.
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

    fn read(&self) -> BTreeMap<String, Seen> {
        // A client without its witnesses is one that comes for the first time.
        std::fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// What was seen of the service at an address.
    pub fn of(&self, address: &str) -> Seen {
        self.read().remove(address).unwrap_or_default()
    }

    pub fn keep(&self, address: &str, seen: &Seen) -> Result<(), CliError> {
        let mut all = self.read();
        all.insert(address.to_owned(), seen.clone());
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
