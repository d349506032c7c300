//! A log of sealed blocks: appending writes the block alone, and a log that has grown is written anew.
//!
//! A log is one file and an index in the [`SealedStore`], which names the file and its salt. The index is as fresh as the
//! store's guard makes it; so no file comes back that it no longer names.
//!
//! | part of a block | bytes |
//! |---|---|
//! | length of the content, little-endian | 4 |
//! | content under AES-256-GCM | up to 2²⁰ |
//! | tag | 16 |
//!
//! # Why no nonce repeats
//!
//! The key of a file is derived from the sealing key, the label, the context and a salt of 256 random bits; the nonce is
//! the number of the block in it. Only the process that has drawn the salt appends, and after a write that failed it begins
//! another file. What an earlier process has left is never appended to: a host could have cut it off.
//!
//! # After a crash
//!
//! Blocks are read up to the first that is not whole and authentic. What that means is the log's [`Durability`].

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use super::error::{SealError, WitnessError};
use super::guard::{Mark, Witness};
use super::store::SealedStore;

/// Most content of one block.
const BLOCK_MAX_BYTES: usize = 1 << 20;
const LENGTH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Everything of a block but its content.
const BLOCK_OVERHEAD_BYTES: u64 = (LENGTH_BYTES + TAG_BYTES) as u64;
const SALT_BYTES: usize = 32;
const CONTEXT_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;
const INDEX_BYTES: usize = CONTEXT_BYTES + 1 + SALT_BYTES + 8 + 8 + DIGEST_BYTES;

/// What a log promises of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A killed process loses none; a power cut and a host may take blocks from the end, which is counted where the index
    /// knows of them and is never an error.
    Relaxed,
    /// Once an append has returned, every process finds the block, or refuses to open the log. The number of blocks ever
    /// appended, and a MAC over all of them, are recorded by the store's guard with every append. A block whose append a crash
    /// has cut off is there or not.
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    slot: u8,
    pub(super) salt: [u8; SALT_BYTES],
    blocks: u64,
    bytes: u64,
}

/// What the index says: a file, the blocks that it began with, and what had been appended before, of a strict log.
#[derive(Clone, Copy)]
struct Listed {
    file: LogFile,
    base: Option<Mark>,
}

/// What a log held when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks that the index knows of and that are not there, or not as they were written.
    pub lost_blocks: u64,
}

/// A log in the folder of a [`SealedStore`], which every call is given.
#[derive(Debug)]
pub struct SealedLog {
    label: String,
    context: [u8; CONTEXT_BYTES],
    durability: Durability,
    spare_bytes: u64,
    pub(super) file: Option<LogFile>,
    /// Bytes at which the file is written anew.
    full_bytes: u64,
    /// The key of the file, where this process may append to it.
    open: Option<LessSafeKey>,
    /// Of a strict log: what is recorded, and what was to be recorded by an append that failed.
    head: Option<Mark>,
    attempted: Option<Mark>,
}

impl SealedLog {
    /// The log of `label`, whose blocks are given to `each` in order. A relaxed log of another `context`, or of another format, is
    /// begun anew. The log is written anew when `spare_bytes` more than twice its size at the last time have been reached.
    ///
    /// # Errors
    /// A file cannot be read, or the index is not authentic or older than what the guard knows; and where the log is strict, any
    /// block that was appended is missing.
    pub fn open(
        store: &mut SealedStore,
        label: &str,
        context: [u8; CONTEXT_BYTES],
        durability: Durability,
        spare_bytes: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(Self, Replayed), SealError> {
        let (label, file) = (label.to_owned(), None);
        let mut log = Self {
            label,
            context,
            durability,
            spare_bytes,
            file,
            full_bytes: 0,
            open: None,
            head: None,
            attempted: None,
        };
        let recorded = match durability {
            Durability::Strict => store.guard.latest(&log.tail())?,
            Durability::Relaxed => None,
        };
        let mut replayed = Replayed::default();
        if let Some(listed) = log.listed(store)? {
            let mut blocks = log.blocks(store, listed.file)?;
            let mut head = listed.base;
            loop {
                // The blocks that the file began with stand for everything before.
                let is_appended = blocks.read.blocks >= listed.file.blocks;
                let Some(block) = blocks.next()? else { break };
                if is_appended {
                    head = Some(log.after(store, head, block)?);
                }
                each(block);
            }
            let read = blocks.read;
            replayed.blocks = read.blocks;
            replayed.lost_blocks = listed.file.blocks.saturating_sub(read.blocks);
            log.file = Some(read);
            log.head = head;
        }
        if durability == Durability::Strict {
            if replayed.lost_blocks > 0 {
                return Err(SealError::Malformed { label: log.label, what: "a log that was cut off or altered" });
            }
            store.settle(&log.tail(), recorded, log.head)?;
        }
        Ok((log, replayed))
    }

    /// Appends one block, with the log's [`Durability`]. Where the log has grown too long, or belongs to an earlier process, it is
    /// begun anew with the blocks of `whole`, which say everything that later processes need to find.
    ///
    /// # Errors
    /// A block is too long or cannot be written. The next call begins the log anew.
    pub fn append(
        &mut self,
        store: &mut SealedStore,
        block: &[u8],
        whole: &mut dyn Iterator<Item = Result<Vec<u8>, SealError>>,
    ) -> Result<(), SealError> {
        let has_room = self.file.is_some_and(|file| file.bytes < self.full_bytes);
        // Taken out: a number whose block may have been written must not be used again.
        let key = match self.open.take().filter(|_| has_room) {
            Some(key) => key,
            None => self.begin(store, whole)?,
        };
        let mark = self.after(store, self.head, block)?;
        let label = &self.label;
        let file = self.file.as_mut().ok_or_else(|| SealError::Cipher { label: label.clone() })?;
        if self.durability == Durability::Strict {
            if store.guard.latest(&format!("{label}.tail"))? != self.head {
                return Err(SealError::Overtaken { label: label.clone() });
            }
            self.attempted = Some(mark);
        }
        write(store, label, &key, file, block)?;
        if self.durability == Durability::Strict {
            let path = path(store, label, file.slot);
            store.disk.sync(&path).map_err(|error| SealError::Io { path, error })?;
            store.guard.advance(&self.tail(), mark)?;
            self.head = Some(mark);
        }
        self.open = Some(key);
        Ok(())
    }

    /// What a client keeps of a strict log, to refuse an older one later; `None` where nothing was ever appended.
    pub fn witness(&self, store: &SealedStore) -> Option<Witness> {
        self.head.map(|mark| Witness::sign(&store.key, &self.tail(), mark))
    }

    /// Whether a strict log is at least as new as what a client has seen.
    ///
    /// # Errors
    /// It is older, it is another one of the same number, or the witness is forged.
    pub fn check_witness(&self, store: &SealedStore, witness: &Witness) -> Result<(), WitnessError> {
        store.compare_witness(&self.tail(), self.head, witness)
    }

    /// Begins a file with the blocks of `whole`.
    fn begin(
        &mut self,
        store: &mut SealedStore,
        whole: &mut dyn Iterator<Item = Result<Vec<u8>, SealError>>,
    ) -> Result<LessSafeKey, SealError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| SealError::Randomness(error.to_string()))?;
        // After a failure the index is the old one or the new: the file that it names is left alone.
        let slot = self.listed(store)?.map_or(0, |listed| 1 - listed.file.slot);
        let mut base = None;
        if self.durability == Durability::Strict {
            base = store.guard.latest(&self.tail())?;
            if base != self.head && base != self.attempted {
                return Err(SealError::Overtaken { label: self.label.clone() });
            }
        }
        let mut file = LogFile { slot, salt, blocks: 0, bytes: 0 };
        let key = self.key(store, &file)?;
        let path = path(store, &self.label, slot);
        let io = |error| SealError::Io { path: path.clone(), error };
        store.disk.write(&path, &[]).map_err(io)?;
        for block in whole {
            write(store, &self.label, &key, &mut file, &block?)?;
        }
        store.disk.sync(&path).map_err(io)?;
        store.save(&self.label, &encode(&self.context, &Listed { file, base }))?;
        (self.head, self.attempted) = (base, None);
        self.full_bytes = file.bytes.saturating_mul(2).saturating_add(self.spare_bytes);
        self.file = Some(file);
        Ok(key)
    }

    /// What the index says; `None` where there is none, or one of something else.
    fn listed(&self, store: &mut SealedStore) -> Result<Option<Listed>, SealError> {
        let Some(index) = store.load(&self.label)? else { return Ok(None) };
        match decode(&index, &self.context, self.durability) {
            None if self.durability == Durability::Strict => {
                Err(SealError::Malformed { label: self.label.clone(), what: "no index of this log" })
            }
            listed => Ok(listed),
        }
    }

    /// Reads the blocks of a file.
    fn blocks(&self, store: &SealedStore, listed: LogFile) -> Result<Blocks, SealError> {
        let path = path(store, &self.label, listed.slot);
        let file = store.disk.open(&path).map_err(|error| SealError::Io { path: path.clone(), error })?;
        let read = LogFile { blocks: 0, bytes: 0, ..listed };
        Ok(Blocks { file, path, key: self.key(store, &read)?, read, buffer: Vec::new() })
    }

    fn key(&self, store: &SealedStore, file: &LogFile) -> Result<LessSafeKey, SealError> {
        let parts = [self.label.as_bytes(), &self.context, &file.salt];
        let derived = store.key.derive(b"asymflow sealed log", &parts);
        let unbound = UnboundKey::new(&AES_256_GCM, derived.as_slice());
        Ok(LessSafeKey::new(unbound.map_err(|_| SealError::Cipher { label: self.label.clone() })?))
    }

    /// The mark that follows `before` when `block` is appended. A guard's file is for the host to read, so it holds a MAC.
    fn after(&self, store: &SealedStore, before: Option<Mark>, block: &[u8]) -> Result<Mark, SealError> {
        let (sequence, before) = before.map_or((0, [0; DIGEST_BYTES]), |mark| (mark.sequence, mark.digest));
        let sequence = sequence.checked_add(1).ok_or_else(|| SealError::Cipher { label: self.label.clone() })?;
        let mut chain = hmac::Context::with_key(&store.key.mac_key(b"asymflow sealed log"));
        chain.update(&before);
        chain.update(block);
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(chain.sign().as_ref());
        Ok(Mark { sequence, digest })
    }

    /// What the guard knows the blocks of a strict log by; no label of a store has a dot.
    fn tail(&self) -> String {
        format!("{}.tail", self.label)
    }
}

/// Seals a block behind the others of a file.
fn write(
    store: &mut SealedStore,
    label: &str,
    key: &LessSafeKey,
    file: &mut LogFile,
    content: &[u8],
) -> Result<(), SealError> {
    if content.len() > BLOCK_MAX_BYTES {
        return Err(SealError::TooLarge { label: label.to_owned(), limit_bytes: BLOCK_MAX_BYTES as u64 });
    }
    let mut block = Vec::with_capacity(LENGTH_BYTES + content.len() + TAG_BYTES);
    block.extend_from_slice(&(content.len() as u32).to_le_bytes());
    block.extend_from_slice(content);
    let (_, sealed) = block.split_at_mut(LENGTH_BYTES);
    let tag = key
        .seal_in_place_separate_tag(nonce(file.blocks), Aad::empty(), sealed)
        .map_err(|_| SealError::Cipher { label: label.to_owned() })?;
    block.extend_from_slice(tag.as_ref());
    let path = path(store, label, file.slot);
    store.disk.append(&path, &block).map_err(|error| SealError::Io { path, error })?;
    file.blocks += 1;
    file.bytes += block.len() as u64;
    Ok(())
}

/// The blocks of a file, up to the first that is not as it was written.
struct Blocks {
    /// `None` where there is no file.
    file: Option<Box<dyn Read>>,
    path: PathBuf,
    key: LessSafeKey,
    /// What was read so far.
    read: LogFile,
    buffer: Vec<u8>,
}

impl Blocks {
    fn next(&mut self) -> Result<Option<&[u8]>, SealError> {
        let Self { file, path, key, read, buffer } = self;
        let Some(file) = file else { return Ok(None) };
        let io = |error| SealError::Io { path: path.clone(), error };
        let mut length = [0; LENGTH_BYTES];
        match file.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(io)?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > BLOCK_MAX_BYTES {
            return Ok(None);
        }
        buffer.clear();
        // What is not there is not made room for.
        file.take((length + TAG_BYTES) as u64).read_to_end(buffer).map_err(io)?;
        match key.open_in_place(nonce(read.blocks), Aad::empty(), buffer) {
            Ok(content) if content.len() == length => {
                read.blocks += 1;
                read.bytes += length as u64 + BLOCK_OVERHEAD_BYTES;
                Ok(Some(content))
            }
            _ => Ok(None),
        }
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (low, _) = bytes.split_at_mut(8);
    low.copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn path(store: &SealedStore, label: &str, slot: u8) -> PathBuf {
    store.folder.join(format!("{label}.{slot}.log"))
}

fn encode(context: &[u8; CONTEXT_BYTES], listed: &Listed) -> Vec<u8> {
    let Listed { file, base } = listed;
    let base = base.unwrap_or(Mark { sequence: 0, digest: [0; DIGEST_BYTES] });
    let parts: [&[u8]; 6] =
        [context, &[file.slot], &file.salt, &file.blocks.to_le_bytes(), &base.sequence.to_le_bytes(), &base.digest];
    parts.concat()
}

/// `None` where it is no index, or one of another context.
fn decode(index: &[u8], context: &[u8; CONTEXT_BYTES], durability: Durability) -> Option<Listed> {
    let index: &[u8; INDEX_BYTES] = index.try_into().ok()?;
    let (found, rest) = index.split_first_chunk::<CONTEXT_BYTES>()?;
    let (&[slot], rest) = rest.split_first_chunk::<1>()?;
    let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>()?;
    let (blocks, rest) = rest.split_first_chunk::<8>()?;
    let (sequence, digest) = rest.split_first_chunk::<8>()?;
    let base = Mark { sequence: u64::from_le_bytes(*sequence), digest: digest.try_into().ok()? };
    let base = Some(base).filter(|base| durability == Durability::Strict && base.sequence > 0);
    let file = LogFile { slot, salt: *salt, blocks: u64::from_le_bytes(*blocks), bytes: 0 };
    (found == context && slot <= 1).then_some(Listed { file, base })
}
