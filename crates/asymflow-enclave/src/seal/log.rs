//! A bounded log of sealed blocks: appending writes the block alone, and the oldest blocks go first.
//!
//! A log is up to [`SEGMENTS`] files and an index in the [`SealedStore`], which lists them in order, with their salts. The
//! index is as fresh as the store's guard makes it; so no file comes back that it no longer lists.
//!
//! | part of a block | bytes |
//! |---|---|
//! | length of the content, little-endian | 4 |
//! | content under AES-256-GCM | up to 2²⁰ |
//! | tag | 16 |
//!
//! # Why no nonce repeats
//!
//! The key of a segment is derived from the sealing key, the label, the context and a salt of 256 random bits; the nonce is
//! the number of the block in it. Only the process that has drawn the salt appends, and after a write that failed it draws
//! another. What an earlier process has left is never appended to: a host could have cut it off.
//!
//! # After a crash
//!
//! Blocks are read up to the first that is not whole and authentic. A killed process loses none that was appended, a power
//! cut those that the system had not yet written out. So a log is for what may be lost: each loss is counted where the index
//! knows of it, and none is an error.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{SealError, SealedStore};

/// Most content of one block.
const BLOCK_MAX_BYTES: usize = 1 << 20;
const LENGTH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Everything of a block but its content.
const BLOCK_OVERHEAD_BYTES: u64 = (LENGTH_BYTES + TAG_BYTES) as u64;
/// Segments that are kept; blocks of the others may be forgotten.
const SEGMENTS: usize = 5;
const SALT_BYTES: usize = 32;
const CONTEXT_BYTES: usize = 32;
const ENTRY_BYTES: usize = 1 + SALT_BYTES + 8;

/// A file of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    slot: u8,
    pub(super) salt: [u8; SALT_BYTES],
    /// Blocks that it holds; as the index has it, those that it held when the index was written.
    blocks: u64,
    /// Their length in the file; not in the index.
    bytes: u64,
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
    segment_bytes: u64,
    pub(super) segments: Vec<Segment>,
    /// The key of the last segment, where this process may append to it.
    open: Option<LessSafeKey>,
}

impl SealedLog {
    /// The log of `label`, whose blocks are given to `each` in order. It keeps at least the latest `4 * segment_bytes` of
    /// them, and never more than a quarter above. One of another `context` is begun anew.
    ///
    /// # Errors
    /// A file cannot be read, or the index is not authentic or older than what the guard knows.
    pub fn open(
        store: &mut SealedStore,
        label: &str,
        context: [u8; CONTEXT_BYTES],
        segment_bytes: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(Self, Replayed), SealError> {
        let index = store.load(label)?;
        let segments = match index.as_deref() {
            Some(index) => decode(index, &context)
                .ok_or_else(|| SealError::Malformed { label: label.to_owned(), what: "no index of a log" })?,
            None => Vec::new(),
        };
        let mut log = Self { label: label.to_owned(), context, segment_bytes, segments, open: None };
        let mut replayed = Replayed::default();
        for at in 0..log.segments.len() {
            let Some(listed) = log.segments.get(at).copied() else { break };
            let mut blocks = log.blocks(store, listed)?;
            while let Some(block) = blocks.next()? {
                each(block);
            }
            let read = blocks.read;
            replayed.blocks += read.blocks;
            replayed.lost_blocks += listed.blocks.saturating_sub(read.blocks);
            log.segments.iter_mut().filter(|segment| segment.slot == listed.slot).for_each(|segment| *segment = read);
        }
        Ok((log, replayed))
    }

    /// Appends one block. When this returns it outlives this process; a power cut may still take it.
    ///
    /// # Errors
    /// It is too long or cannot be written. The next call begins a new segment.
    pub fn append(&mut self, store: &mut SealedStore, content: &[u8]) -> Result<(), SealError> {
        if content.len() > BLOCK_MAX_BYTES {
            return Err(SealError::TooLarge { label: self.label.clone(), limit_bytes: BLOCK_MAX_BYTES as u64 });
        }
        let has_room = self.segments.last().is_some_and(|segment| segment.bytes < self.segment_bytes);
        // Taken out: a number whose block may have been written must not be used again.
        let key = match self.open.take().filter(|_| has_room) {
            Some(key) => key,
            None => self.begin(store)?,
        };
        let label = &self.label;
        let segment = self.segments.last_mut().ok_or_else(|| SealError::Cipher { label: label.clone() })?;
        write(store, label, &key, segment, content)?;
        self.open = Some(key);
        Ok(())
    }

    /// Begins a segment. One that is not full, which another process has left, is copied into it.
    fn begin(&mut self, store: &mut SealedStore) -> Result<LessSafeKey, SealError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| SealError::Randomness(error.to_string()))?;
        let is_free = |slot: &u8| self.segments.iter().all(|segment| segment.slot != *slot);
        let slot = (0..=SEGMENTS as u8).find(is_free).unwrap_or_default();
        let mut segment = Segment { slot, salt, blocks: 0, bytes: 0 };
        let key = self.key(store, &segment)?;
        let path = path(store, &self.label, slot);
        let io = |error| SealError::Io { path: path.clone(), error };
        store.disk.write(&path, &[]).map_err(io)?;

        let mut segments = self.segments.clone();
        if let Some(left) = segments.pop_if(|last| last.bytes < self.segment_bytes) {
            let mut blocks = self.blocks(store, left)?;
            while let Some(block) = blocks.next()? {
                write(store, &self.label, &key, &mut segment, block)?;
            }
        } else if let Some(full) = segments.last() {
            let full = self::path(store, &self.label, full.slot);
            store.disk.sync(&full).map_err(|error| SealError::Io { path: full, error })?;
        }
        store.disk.sync(&path).map_err(io)?;
        segments.push(segment);
        segments.drain(..segments.len().saturating_sub(SEGMENTS));
        store.save(&self.label, &encode(&self.context, &segments))?;
        self.segments = segments;
        Ok(key)
    }

    /// Reads the blocks of a segment.
    fn blocks(&self, store: &SealedStore, listed: Segment) -> Result<Blocks, SealError> {
        let path = path(store, &self.label, listed.slot);
        let file = store.disk.open(&path).map_err(|error| SealError::Io { path: path.clone(), error })?;
        let read = Segment { blocks: 0, bytes: 0, ..listed };
        Ok(Blocks { file, path, key: self.key(store, &read)?, read, buffer: Vec::new() })
    }

    fn key(&self, store: &SealedStore, segment: &Segment) -> Result<LessSafeKey, SealError> {
        let parts = [self.label.as_bytes(), &self.context, &segment.salt];
        let derived = store.key.derive(b"asymflow sealed log", &parts);
        let unbound = UnboundKey::new(&AES_256_GCM, derived.as_slice());
        Ok(LessSafeKey::new(unbound.map_err(|_| SealError::Cipher { label: self.label.clone() })?))
    }
}

/// Seals a block behind the others of a segment.
fn write(
    store: &mut SealedStore,
    label: &str,
    key: &LessSafeKey,
    segment: &mut Segment,
    content: &[u8],
) -> Result<(), SealError> {
    let mut block = Vec::with_capacity(LENGTH_BYTES + content.len() + TAG_BYTES);
    block.extend_from_slice(&(content.len() as u32).to_le_bytes());
    block.extend_from_slice(content);
    let (_, sealed) = block.split_at_mut(LENGTH_BYTES);
    let tag = key
        .seal_in_place_separate_tag(nonce(segment.blocks), Aad::empty(), sealed)
        .map_err(|_| SealError::Cipher { label: label.to_owned() })?;
    block.extend_from_slice(tag.as_ref());
    let path = path(store, label, segment.slot);
    store.disk.append(&path, &block).map_err(|error| SealError::Io { path, error })?;
    segment.blocks += 1;
    segment.bytes += block.len() as u64;
    Ok(())
}

/// The blocks of a segment, up to the first that is not as it was written.
struct Blocks {
    /// `None` where there is no file.
    file: Option<Box<dyn Read>>,
    path: PathBuf,
    key: LessSafeKey,
    /// What was read so far.
    read: Segment,
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

/// Context and segments.
fn encode(context: &[u8; CONTEXT_BYTES], segments: &[Segment]) -> Vec<u8> {
    let mut bytes = context.to_vec();
    for segment in segments {
        bytes.push(segment.slot);
        bytes.extend_from_slice(&segment.salt);
        bytes.extend_from_slice(&segment.blocks.to_le_bytes());
    }
    bytes
}

/// The segments of an index, none of them where it is of another context; `None` where it is no index.
fn decode(index: &[u8], context: &[u8; CONTEXT_BYTES]) -> Option<Vec<Segment>> {
    let (found, rest) = index.split_first_chunk::<CONTEXT_BYTES>()?;
    let (entries, rest) = rest.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() || entries.len() > SEGMENTS {
        return None;
    }
    if found != context {
        return Some(Vec::new());
    }
    let segment = |entry: &[u8; ENTRY_BYTES]| {
        let (&slot, rest) = entry.split_first()?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>()?;
        let (blocks, _) = rest.split_first_chunk::<8>()?;
        Some(Segment { slot, salt: *salt, blocks: u64::from_le_bytes(*blocks), bytes: 0 })
    };
    entries.iter().map(segment).collect()
}
