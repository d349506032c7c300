//! Files under the enclave's key: what the host stores, it can neither read nor change nor, as far as a guard reaches, put
//! back.

pub(crate) mod disk;
mod format;
mod key;
mod log;
#[cfg(test)]
mod log_tests;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::guard::{Guard, GuardError, Mark, Witness};
use disk::{Disk, OsDisk, replace};
pub use key::{Binding, KeyError, SealingKey};
pub use log::{Replayed, SealedLog};
pub use stream::SealedReader;

/// How much one file holds where nothing else was asked for: 64 MiB.
const LIMIT_BYTES: u64 = 64 << 20;

/// A state that is authentic and fresh, and its content.
type State = (Mark, Zeroizing<Vec<u8>>);

/// Why something cannot be sealed or loaded.
#[derive(Debug, Error)]
pub enum SealError {
    /// A label that makes no file name.
    #[error("label {label:?} is not 1 to 64 of a-z, 0-9, - and _")]
    Label {
        /// The label.
        label: String,
    },
    /// More than one file may hold.
    #[error("{label} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The label.
        label: String,
        /// The limit, see [`SealedStore::with_limit`].
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

/// A folder of sealed files, one a label.
///
/// * **Confidential and authentic**: AES-256-GCM under a key of its own for every write; label, number and format are
///   authenticated with the content.
/// * **Atomic**: after a crash at any point a label has its old content or the new one.
/// * **Fresh**, as far as the [`Guard`] and the clients' [`Witness`]es reach: every accepted state is the one that the
///   guard has recorded, or its direct successor, whose recording a crash has cut off.
///
/// # The order of writing
///
/// First the state, then the guard. The other way round, a crash between the two would leave a guard that asks for a state
/// which never was, and an honest machine could not start again. This way it leaves a state that is one ahead, which loading
/// accepts and records. Until [`SealedStore::save`] returns, a host may choose between the state before and the one being
/// saved; so **act on a state only after saving it**. That choice ends with the next load or save, because the guard also
/// keeps the digest of the file: a file of the same number that was sealed and never recorded is refused.
///
/// One process owns the folder. Another one that saves is noticed at the next save, unless both write at the same moment.
#[derive(Debug)]
pub struct SealedStore {
    folder: PathBuf,
    key: SealingKey,
    guard: Box<dyn Guard>,
    disk: Box<dyn Disk>,
    limit_bytes: u64,
    /// The states that are known to be on the disk and recorded; `None` where there is none yet.
    known: BTreeMap<String, Option<Mark>>,
}

impl SealedStore {
    /// The store in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path, key: SealingKey, guard: Box<dyn Guard>) -> Result<Self, SealError> {
        let made = OsDisk::make_folder(folder).map_err(|error| SealError::Io { path: folder.to_owned(), error })?;
        Ok(Self::on(Box::new(OsDisk), made, key, guard))
    }

    fn on(disk: Box<dyn Disk>, folder: PathBuf, key: SealingKey, guard: Box<dyn Guard>) -> Self {
        Self { folder, key, guard, disk, limit_bytes: LIMIT_BYTES, known: BTreeMap::new() }
    }

    /// Refuses content of more than `limit_bytes`, 64 MiB where nothing is said. No more than that is ever read.
    #[must_use]
    pub fn with_limit(mut self, limit_bytes: u64) -> Self {
        self.limit_bytes = limit_bytes;
        self
    }

    /// Seals `content` under `label`, in place of what it held. When this returns, it is on the disk and recorded.
    ///
    /// # Errors
    /// It cannot be written or recorded, and then the label holds its old content or the new one; or what is there already
    /// cannot be loaded, and then nothing is overwritten.
    pub fn save(&mut self, label: &str, content: &[u8]) -> Result<(), SealError> {
        check_label(label)?;
        if content.len() as u64 > self.limit_bytes {
            return Err(SealError::TooLarge { label: label.to_owned(), limit_bytes: self.limit_bytes });
        }
        // Taken out: after a failure it is not known what is on the disk, and a number must not be used again before that
        // is known.
        let before = match self.known.remove(label) {
            Some(known) => known,
            None => self.read(label)?.map(|(mark, _)| mark),
        };
        if self.guard.latest(label)? != before {
            return Err(SealError::Overtaken { label: label.to_owned() });
        }
        let sequence = before.map_or(0, |mark| mark.sequence).checked_add(1);
        let sequence = sequence.ok_or_else(|| SealError::Cipher { label: label.to_owned() })?;
        let file = format::seal(&self.key, label, sequence, content)?;
        let mark = Mark { sequence, digest: digest_of(&file) };
        let name = file_name(label);
        replace(self.disk.as_mut(), &self.folder, &name, &file)
            .map_err(|error| SealError::Io { path: self.folder.join(name), error })?;
        self.guard.advance(label, mark)?;
        self.known.insert(label.to_owned(), Some(mark));
        Ok(())
    }

    /// What was last saved under `label`; `None` where nothing ever was.
    ///
    /// # Errors
    /// There is no sealed file where there should be one, it is not authentic, or it is older than what the guard knows.
    pub fn load(&mut self, label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        check_label(label)?;
        self.known.remove(label);
        let read = self.read(label)?;
        self.known.insert(label.to_owned(), read.as_ref().map(|(mark, _)| *mark));
        Ok(read.map(|(_, content)| content))
    }

    /// What a client keeps of the state of `label`, to refuse an older one later; `None` where there is no state.
    ///
    /// # Errors
    /// The state cannot be loaded.
    pub fn witness(&mut self, label: &str) -> Result<Option<Witness>, SealError> {
        Ok(self.current(label)?.map(|mark| Witness::sign(&self.key, label, mark)))
    }

    /// Whether the state of `label` is at least as new as what a client has seen.
    ///
    /// # Errors
    /// It is older, it is another one of the same number, the witness is forged, or the state cannot be loaded.
    pub fn check_witness(&mut self, label: &str, witness: &Witness) -> Result<(), WitnessError> {
        let current = self.current(label)?;
        let Some(seen) = witness.verify(&self.key, label) else {
            return Err(WitnessError::Forged { label: label.to_owned() });
        };
        let found = current.map_or(0, |mark| mark.sequence);
        if found < seen.sequence {
            return Err(WitnessError::RolledBack { label: label.to_owned(), found, seen: seen.sequence });
        }
        if found == seen.sequence && current != Some(seen) {
            return Err(WitnessError::Forked { label: label.to_owned(), sequence: found });
        }
        Ok(())
    }

    fn current(&mut self, label: &str) -> Result<Option<Mark>, SealError> {
        if !self.known.contains_key(label) {
            self.load(label)?;
        }
        Ok(self.known.get(label).copied().flatten())
    }

    /// Reads a label, compares it with the guard, and records it where a crash has cut the recording off.
    fn read(&mut self, label: &str) -> Result<Option<State>, SealError> {
        let guard = self.guard.latest(label)?;
        let at_least = guard.map_or(0, |mark| mark.sequence);
        let path = self.folder.join(file_name(label));
        let file_limit_bytes = self.limit_bytes.saturating_add(format::OVERHEAD_MAX_BYTES);
        let read = self.disk.read(&path, file_limit_bytes).map_err(|error| SealError::Io { path, error })?;
        let Some(file) = read else {
            return match at_least {
                0 => Ok(None),
                _ => Err(SealError::RolledBack { label: label.to_owned(), found: 0, at_least }),
            };
        };
        if file.len() as u64 > file_limit_bytes {
            return Err(SealError::TooLarge { label: label.to_owned(), limit_bytes: self.limit_bytes });
        }
        let digest = digest_of(&file);
        let (found, content) = format::open(&self.key, label, file)?;
        let mark = Mark { sequence: found, digest };
        if found < at_least {
            return Err(SealError::RolledBack { label: label.to_owned(), found, at_least });
        }
        if found - at_least > 1 {
            return Err(SealError::GuardBehind { label: label.to_owned(), found, guard: at_least });
        }
        if found > at_least {
            self.guard.advance(label, mark)?;
        } else if guard != Some(mark) {
            return Err(SealError::Forked { label: label.to_owned(), sequence: found });
        }
        Ok(Some((mark, content)))
    }
}

fn digest_of(file: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, file).as_ref());
    bytes
}

/// Labels become file names, so they say neither `/` nor `..`.
fn check_label(label: &str) -> Result<(), SealError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    match (1..=format::LABEL_MAX_BYTES).contains(&label.len()) && label.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(SealError::Label { label: label.to_owned() }),
    }
}

fn file_name(label: &str) -> String {
    format!("{label}.sealed")
}
