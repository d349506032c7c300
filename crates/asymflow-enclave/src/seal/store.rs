//! A folder of sealed files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use zeroize::Zeroizing;

use super::disk::{Disk, OsDisk, replace};
use super::error::{SealError, WitnessError};
use super::format;
use super::guard::{Guard, Mark, Witness};
use super::key::SealingKey;

/// How much one file holds where nothing else was asked for: 64 MiB.
const LIMIT_BYTES: u64 = 64 << 20;

/// A state that is authentic and fresh, and its content.
type State = (Mark, Zeroizing<Vec<u8>>);

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
    pub(super) folder: PathBuf,
    pub(super) key: SealingKey,
    pub(super) guard: Box<dyn Guard>,
    pub(super) disk: Box<dyn Disk>,
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

    pub(super) fn on(disk: Box<dyn Disk>, folder: PathBuf, key: SealingKey, guard: Box<dyn Guard>) -> Self {
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
        self.compare_witness(label, current, witness)
    }

    pub(super) fn compare_witness(
        &self,
        label: &str,
        current: Option<Mark>,
        witness: &Witness,
    ) -> Result<(), WitnessError> {
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

    fn read(&mut self, label: &str) -> Result<Option<State>, SealError> {
        let recorded = self.guard.latest(label)?;
        let path = self.folder.join(file_name(label));
        let file_limit_bytes = self.limit_bytes.saturating_add(format::OVERHEAD_MAX_BYTES);
        let read = self.disk.read(&path, file_limit_bytes).map_err(|error| SealError::Io { path, error })?;
        let Some(file) = read else {
            self.settle(label, recorded, None)?;
            return Ok(None);
        };
        if file.len() as u64 > file_limit_bytes {
            return Err(SealError::TooLarge { label: label.to_owned(), limit_bytes: self.limit_bytes });
        }
        let digest = digest_of(&file);
        let (sequence, content) = format::open(&self.key, label, file)?;
        let mark = Mark { sequence, digest };
        self.settle(label, recorded, Some(mark))?;
        Ok(Some((mark, content)))
    }

    /// Compares the state that was found with the one that the guard has recorded, and records it where a crash has cut the
    /// recording off.
    pub(super) fn settle(&mut self, label: &str, recorded: Option<Mark>, found: Option<Mark>) -> Result<(), SealError> {
        let number = |mark: Option<Mark>| mark.map_or(0, |mark| mark.sequence);
        let (at_least, sequence, label) = (number(recorded), number(found), label.to_owned());
        match (sequence.checked_sub(at_least), found) {
            (None, _) => Err(SealError::RolledBack { label, found: sequence, at_least }),
            (Some(0), _) if found == recorded => Ok(()),
            (Some(0), _) => Err(SealError::Forked { label, sequence }),
            (Some(1), Some(mark)) => Ok(self.guard.advance(&label, mark)?),
            (Some(_), _) => Err(SealError::GuardBehind { label, found: sequence, guard: at_least }),
        }
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

pub(super) fn file_name(label: &str) -> String {
    format!("{label}.sealed")
}
