//! Why something cannot be sealed, loaded or accepted.

use std::path::PathBuf;

use thiserror::Error;

use super::guard::GuardError;

/// Why something cannot be sealed or loaded.
#[derive(Debug, Error)]
pub enum SealError {
    /// A label that makes no file name.
    #[error("label {label:?} is not 1 to 64 of a-z, 0-9, - and _")]
    Label {
        /// The label.
        label: String,
    },
    /// Content that could not be made.
    #[error("what is to be sealed cannot be written: {0}")]
    Content(String),
    /// More than one file may hold.
    #[error("{label} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The label.
        label: String,
        /// The limit, see [`SealedStore::with_limit`](super::SealedStore::with_limit).
        limit_bytes: u64,
    },
    /// The folder cannot be used.
    #[error("cannot use {path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no sealed file, or part of one.
    #[error("the file of {label} is {what}")]
    Malformed {
        /// The label.
        label: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A format that this program does not read.
    #[error("the file of {label} has format version {found}, this program reads {want}")]
    Version {
        /// The label.
        label: String,
        /// The version of the file.
        found: u16,
        /// The version of this program.
        want: u16,
    },
    /// Sealed under a key of another kind, say by another runtime.
    #[error("the file of {label} was sealed under a key with another binding")]
    OtherBinding {
        /// The label.
        label: String,
    },
    /// Another file under this name.
    #[error("the file of {want} holds {found:?}")]
    OtherLabel {
        /// What the file says it is, escaped.
        found: String,
        /// What it should be.
        want: String,
    },
    /// Another key, or something was changed.
    #[error("the file of {label} was altered, or sealed under another key")]
    Unauthentic {
        /// The label.
        label: String,
    },
    /// An older state than the guard knows of.
    #[error("{label} was rolled back to state {found}; it has been at {at_least} (0: no state at all)")]
    RolledBack {
        /// The label.
        label: String,
        /// Number of the state that is there, 0 where there is none.
        found: u64,
        /// The number that the guard knows of.
        at_least: u64,
    },
    /// Another state under the number that the guard knows of.
    #[error("{label} has another state {sequence} than the one that was recorded")]
    Forked {
        /// The label.
        label: String,
        /// The number.
        sequence: u64,
    },
    /// The guard knows less than it has been told: it was rolled back or emptied.
    #[error("{label} is at state {found}, and the guard only knows of {guard} (0: of none): it was rolled back")]
    GuardBehind {
        /// The label.
        label: String,
        /// Number of the state that is there.
        found: u64,
        /// The number that the guard knows of, 0 where it knows of none.
        guard: u64,
    },
    /// Somebody else has saved since this store last did. One process owns a store.
    #[error("another process has saved {label}")]
    Overtaken {
        /// The label.
        label: String,
    },
    /// The guard does not answer.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The operating system has no randomness.
    #[error("no randomness to seal with: {0}")]
    Randomness(String),
    /// The content is longer than the cipher can take, or all numbers have been used.
    #[error("{label} cannot be sealed any more")]
    Cipher {
        /// The label.
        label: String,
    },
}

/// Why a witness does not fit the state.
#[derive(Debug, Error)]
pub enum WitnessError {
    /// This key has signed no such witness for this label.
    #[error("the witness of {label} is forged, or of another enclave")]
    Forged {
        /// The label.
        label: String,
    },
    /// The state is older than what the client has seen.
    #[error("{label} is at state {found}, and a client has seen {seen}: it was rolled back")]
    RolledBack {
        /// The label.
        label: String,
        /// Number of the state, 0 where there is none.
        found: u64,
        /// The number that the client has seen.
        seen: u64,
    },
    /// The client has seen another state of the same number.
    #[error("{label} has another state {sequence} than the one that a client has seen")]
    Forked {
        /// The label.
        label: String,
        /// The number.
        sequence: u64,
    },
    /// The state itself cannot be loaded.
    #[error(transparent)]
    Seal(#[from] SealError),
}
