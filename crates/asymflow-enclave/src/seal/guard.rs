//! What keeps a host from putting back an old state.

use std::array::from_fn;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};

use ring::hmac;
use thiserror::Error;

use super::disk::{Disk, OsDisk, replace};
use super::key::SealingKey;

/// Bytes of a digest and of a MAC.
const DIGEST_BYTES: usize = 32;
const MARK_BYTES: usize = 8 + DIGEST_BYTES;
const RECORD_BYTES: usize = MARK_BYTES + DIGEST_BYTES;

/// One state of a label: its number, and the SHA-256 of its sealed file.
///
/// The number alone would not do. A host can stop the enclave between writing and recording, and again get a file of the
/// same number with another content; the digest says which of the two counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// From 1.
    pub sequence: u64,
    /// SHA-256 of the sealed file.
    pub digest: [u8; DIGEST_BYTES],
}

impl Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Mark {
    fn to_bytes(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        let (sequence, digest) = bytes.split_at_mut(8);
        sequence.copy_from_slice(&self.sequence.to_le_bytes());
        digest.copy_from_slice(&self.digest);
        bytes
    }

    fn from_bytes(bytes: &[u8; MARK_BYTES]) -> Self {
        Self { sequence: u64::from_le_bytes(from_fn(|i| bytes[i])), digest: from_fn(|i| bytes[8 + i]) }
    }
}

/// Why a guard does not answer.
#[derive(Debug, Error)]
pub enum GuardError {
    /// Its file cannot be read or written.
    #[error("cannot use {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its record is no record of this key and label.
    #[error("{path} was altered, or belongs to another key")]
    Forged {
        /// The file.
        path: PathBuf,
    },
}

/// Remembers the latest state of every label. A monotonic counter in hardware or on another machine is one; so is
/// [`FileGuard`], as far as its folder can be trusted.
pub trait Guard: Send + Debug {
    /// The latest state, `None` where there was none yet.
    ///
    /// # Errors
    /// The guard cannot say.
    fn latest(&self, label: &str) -> Result<Option<Mark>, GuardError>;

    /// Remembers `mark`, for good when this returns.
    ///
    /// # Errors
    /// The guard may or may not have remembered.
    fn advance(&mut self, label: &str, mark: Mark) -> Result<(), GuardError>;
}

/// A guard in a folder: one file a label, with a MAC under the sealing key.
///
/// Nobody without the key can make it say another state, but whoever can write to the folder can put back what it said
/// before. It detects a host that rolls back the sealed folder *and not this one*: a restored backup, a volume snapshot,
/// a storage service that answers with old data. So put it on other storage than the sealed files. Against somebody who
/// rolls back both, or who runs two copies of both side by side, only a counter outside the machine or what clients have
/// seen ([`Witness`]) helps.
#[derive(Debug)]
pub struct FileGuard {
    folder: PathBuf,
    key: hmac::Key,
    disk: Box<dyn Disk>,
}

impl FileGuard {
    /// The guard in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path, key: &SealingKey) -> Result<Self, GuardError> {
        let made = OsDisk::make_folder(folder).map_err(|error| GuardError::Io { path: folder.to_owned(), error })?;
        Ok(Self::on(Box::new(OsDisk), made, key))
    }

    pub(super) fn on(disk: Box<dyn Disk>, folder: PathBuf, key: &SealingKey) -> Self {
        Self { folder, key: key.mac_key(b"asymflow guard"), disk }
    }

    fn file_name(label: &str) -> String {
        format!("{label}.guard")
    }
}

impl Guard for FileGuard {
    fn latest(&self, label: &str) -> Result<Option<Mark>, GuardError> {
        let path = self.folder.join(Self::file_name(label));
        let read = self.disk.read(&path, RECORD_BYTES as u64);
        let Some(record) = read.map_err(|error| GuardError::Io { path: path.clone(), error })? else {
            return Ok(None);
        };
        match record.split_first_chunk::<MARK_BYTES>() {
            Some((mark, mac)) if hmac::verify(&self.key, &labelled(mark, label), mac).is_ok() => {
                Ok(Some(Mark::from_bytes(mark)))
            }
            _ => Err(GuardError::Forged { path }),
        }
    }

    fn advance(&mut self, label: &str, mark: Mark) -> Result<(), GuardError> {
        let mark = mark.to_bytes();
        let mac = hmac::sign(&self.key, &labelled(&mark, label));
        let record = [mark.as_slice(), mac.as_ref()].concat();
        let name = Self::file_name(label);
        replace(self.disk.as_mut(), &self.folder, &name, &record)
            .map_err(|error| GuardError::Io { path: self.folder.join(name), error })
    }
}

/// What a client keeps of a state that it has seen, to refuse an older one later. 72 bytes, secret to nobody.
///
/// A host that rolls back everything it stores cannot roll back what clients hold. A client shows its witness at the
/// next visit, and an enclave with an older state refuses itself. What it does not detect: two copies of one state that go
/// on side by side, each with clients of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    mark: Mark,
    mac: [u8; DIGEST_BYTES],
}

impl Witness {
    /// Length of [`Witness::to_bytes`].
    pub const BYTES: usize = RECORD_BYTES;

    pub(super) fn sign(key: &SealingKey, label: &str, mark: Mark) -> Self {
        let tag = hmac::sign(&witness_key(key), &labelled(&mark.to_bytes(), label));
        let mut mac = [0; DIGEST_BYTES];
        mac.copy_from_slice(tag.as_ref());
        Self { mark, mac }
    }

    /// The state it is of, where this key has signed it for `label`.
    pub(super) fn verify(&self, key: &SealingKey, label: &str) -> Option<Mark> {
        let signed = labelled(&self.mark.to_bytes(), label);
        hmac::verify(&witness_key(key), &signed, &self.mac).ok().map(|()| self.mark)
    }

    /// The number of the state. Not yet verified.
    pub fn sequence(&self) -> u64 {
        self.mark.sequence
    }

    /// To send and keep.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (mark, mac) = bytes.split_at_mut(MARK_BYTES);
        mark.copy_from_slice(&self.mark.to_bytes());
        mac.copy_from_slice(&self.mac);
        bytes
    }

    /// From what was kept. Any bytes will do; checking the witness tells which were signed.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self { mark: Mark::from_bytes(&from_fn(|i| bytes[i])), mac: from_fn(|i| bytes[MARK_BYTES + i]) }
    }
}

fn witness_key(key: &SealingKey) -> hmac::Key {
    key.mac_key(b"asymflow witness")
}

/// The mark has a fixed length, so what follows it is the label and nothing else.
fn labelled(mark: &[u8; MARK_BYTES], label: &str) -> Vec<u8> {
    [mark.as_slice(), label.as_bytes()].concat()
}
