//! Bodies of frames through memory that both processes map, for a worker on the same host.
//!
//! A file in `/dev/shm` holds a page with a nonce and then, for each direction, slots of a page (sequence and length)
//! and a body. The connection stays the doorbell: the header of a frame whose body lies in a slot says which slot, which
//! sequence and which length. Only those numbers are used. What the slot itself says is compared with them and nothing
//! else, so a peer that rewrites it gains nothing; each byte of a body is copied out once, and looked at in the copy.

mod file;
mod memory;

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(feature = "serve")]
pub(crate) use file::Named;
pub use file::RingName;
use memory::Memory;

const PAGE: u64 = 4096;
const NONCE_BYTES: usize = 32;
const MAX_SLOTS: u32 = 64;
const MAX_SLOT_BYTES: u64 = 1 << 30;

/// Size of a ring. Each direction has its own slots, and one body takes one slot; a body that is longer than a slot
/// travels on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLayout {
    /// Slots of each direction: as many requests of a session are under way at a time.
    pub slots: u32,
    /// Bytes of a slot: whole pages of 4096.
    pub slot_bytes: u64,
    /// Shorter bodies travel on the connection, behind their header.
    pub threshold_bytes: u64,
}

impl Default for RingLayout {
    /// Two slots of 16 MiB each way, for bodies from 8 KiB on: below, the connection is as fast.
    fn default() -> Self {
        Self { slots: 2, slot_bytes: 16 << 20, threshold_bytes: 8 << 10 }
    }
}

impl RingLayout {
    /// Bytes of the whole file.
    ///
    /// # Errors
    /// No slots or more than 64; a slot of no bytes, of more than 1 GiB, or not of whole pages.
    pub fn bytes(self) -> Result<u64, RingLayoutError> {
        let Self { slots, slot_bytes, .. } = self;
        let whole = slot_bytes.is_multiple_of(PAGE) && (PAGE..=MAX_SLOT_BYTES).contains(&slot_bytes);
        if !(1..=MAX_SLOTS).contains(&slots) || !whole {
            return Err(RingLayoutError { slots, slot_bytes });
        }
        Ok(PAGE + 2 * u64::from(slots) * (PAGE + slot_bytes))
    }

    /// As this, of slots that hold bodies of `bytes`, where a ring of them may be had.
    #[must_use]
    pub fn holding(self, bytes: u64) -> Self {
        let most = (MAX_SLOT_BYTES / (2 * u64::from(self.slots.max(1)))).saturating_sub(2 * PAGE);
        Self { slot_bytes: bytes.min(most).next_multiple_of(PAGE).max(self.slot_bytes), ..self }
    }

    /// As this, with slots of half the length; none below a page.
    #[cfg(feature = "serve")]
    pub(crate) fn halved(self) -> Option<Self> {
        let slot_bytes = (self.slot_bytes / 2).next_multiple_of(PAGE);
        (slot_bytes < self.slot_bytes).then_some(Self { slot_bytes, ..self })
    }

    /// Where a slot begins.
    fn at(self, direction: Direction, slot: u32) -> u64 {
        let before = direction as u64 * u64::from(self.slots) + u64::from(slot);
        PAGE + before * (PAGE + self.slot_bytes)
    }
}

/// A ring of impossible size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a ring of {slots} slots of {slot_bytes} bytes; allowed are 1 to {MAX_SLOTS} of {PAGE} to {MAX_SLOT_BYTES} bytes, whole pages"
)]
pub struct RingLayoutError {
    slots: u32,
    slot_bytes: u64,
}

/// A text that is no [`RingName`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} names no ring: /dev/shm/asymflow-ring-NAME, NAME of up to 64 letters, digits, - or _")]
pub struct RingNameError(String);

/// Why a ring cannot be had, or a body not be taken from it.
#[derive(Debug, Error)]
pub(crate) enum RingError {
    #[error(transparent)]
    Layout(#[from] RingLayoutError),
    #[cfg(feature = "serve")]
    #[error("a ring of {bytes} bytes exceeds the limit of {limit}")]
    Limit { bytes: u64, limit: u64 },
    #[error("the ring's file: {0}")]
    File(io::Error),
    #[cfg(feature = "serve")]
    #[error("no {bytes} bytes in /dev/shm: {error}")]
    Memory { bytes: u64, error: io::Error },
    #[error("the ring's file is no plain file")]
    NoFile,
    #[error("the ring's file has {bytes} bytes, expected {expected}")]
    Size { bytes: u64, expected: u64 },
    #[error("the ring's file has mode {mode:03o}, expected 600")]
    Mode { mode: u32 },
    #[error("the ring's file is another one than the worker made")]
    Nonce,
    #[error("slot {slot} of a ring of {slots}")]
    Slot { slot: u32, slots: u32 },
    #[error("a body of {bytes} bytes in a slot of {slot_bytes}")]
    Length { bytes: u64, slot_bytes: u64 },
    #[error("slot sequence {got}, expected {expected}")]
    Sequence { got: u64, expected: u64 },
    #[error("a slot says sequence {sequence} and {bytes} bytes, its frame {place:?}")]
    Disagrees { sequence: u64, bytes: u64, place: Place },
    #[error("a body of {bytes} bytes beside one in a slot")]
    Both { bytes: usize },
}

/// A ring that a worker has made, as it tells the client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub name: RingName,
    /// Bytes of a slot: what was asked for, or what there is room for.
    pub slot_bytes: u64,
    /// Stands at the beginning of the file: proof that both sides opened the same.
    pub nonce: [u8; NONCE_BYTES],
}

/// Where the body of a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub slot: u32,
    /// Counts the bodies of a direction from 1.
    pub sequence: u64,
    pub bytes: u64,
}

/// A body in this side's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    at: usize,
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToWorker,
    ToClient,
}

/// One side's view of a ring.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: Memory,
    layout: RingLayout,
    outgoing: Direction,
    incoming: Direction,
    sent: u64,
    received: u64,
    /// Bytes of each outgoing slot that are zero since its last body.
    zeros: Vec<u64>,
}

impl Ring {
    /// Makes a ring under this name, or under one that nobody can guess. The name is gone with the second value.
    #[cfg(feature = "serve")]
    pub fn create(name: Option<&RingName>, layout: RingLayout, limit: u64) -> Result<(Self, Named, Offer), RingError> {
        let bytes = layout.bytes()?;
        if bytes > limit {
            return Err(RingError::Limit { bytes, limit });
        }
        let name = name.map_or_else(RingName::random, |name| Ok(name.clone()))?;
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce)?;
        let (file, named) = file::create(&name, bytes)?;
        let memory = Memory::map(&file, size(bytes)?).map_err(RingError::File)?;
        memory.write(0, &nonce).ok_or(RingError::Nonce)?;
        let (outgoing, incoming) = (Direction::ToClient, Direction::ToWorker);
        let offer = Offer { name, slot_bytes: layout.slot_bytes, nonce };
        Ok((Self::new(memory, layout, (outgoing, incoming)), named, offer))
    }

    /// Opens the ring that a worker offers for this layout, or for one of shorter slots.
    pub fn open(offer: &Offer, layout: RingLayout) -> Result<Self, RingError> {
        let layout = RingLayout { slot_bytes: offer.slot_bytes.min(layout.slot_bytes), ..layout };
        let bytes = layout.bytes()?;
        let file = file::open(&offer.name, bytes)?;
        let memory = Memory::map(&file, size(bytes)?).map_err(RingError::File)?;
        if memory.read(0, NONCE_BYTES).as_deref() != Some(&offer.nonce) {
            return Err(RingError::Nonce);
        }
        let (outgoing, incoming) = (Direction::ToWorker, Direction::ToClient);
        Ok(Self::new(memory, layout, (outgoing, incoming)))
    }

    fn new(memory: Memory, layout: RingLayout, (outgoing, incoming): (Direction, Direction)) -> Self {
        Self { memory, layout, outgoing, incoming, sent: 0, received: 0, zeros: vec![0; layout.slots as usize] }
    }

    /// How many bodies of a direction, and of how many bytes, lie in it at a time.
    pub const fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Puts a body of `bytes` bytes into the next slot; `None` for one that travels on the connection.
    pub fn put<B: AsRef<[u8]>>(&mut self, bytes: u64, body: impl Iterator<Item = B>) -> Option<Place> {
        let (place, mut to) = self.next(bytes)?;
        *self.zeros.get_mut(place.slot as usize)? = 0;
        let end = to + size(bytes).ok()?;
        for piece in body {
            let piece = piece.as_ref();
            self.memory.write(to, piece.get(..piece.len().min(end - to))?)?;
            to += piece.len();
        }
        self.sent = place.sequence;
        Some(place)
    }

    /// As [`Ring::put`], of zeros: what is zero already is not written.
    pub fn put_zeros(&mut self, bytes: u64) -> Option<Place> {
        let (place, mut to) = self.next(bytes)?;
        let zeros = self.zeros.get_mut(place.slot as usize)?;
        let known = (*zeros).min(bytes);
        *zeros = bytes.max(*zeros);
        to += size(known).ok()?;
        for piece in crate::protocol::Numbers::Zeros(bytes - known).pieces() {
            self.memory.write(to, &piece)?;
            to += piece.len();
        }
        self.sent = place.sequence;
        Some(place)
    }

    /// The next slot, which says what it will hold, and where its body begins.
    fn next(&self, bytes: u64) -> Option<(Place, usize)> {
        if bytes == 0 || bytes < self.layout.threshold_bytes || bytes > self.layout.slot_bytes {
            return None;
        }
        let sequence = self.sent + 1;
        let slot = u32::try_from(sequence % u64::from(self.layout.slots)).ok()?;
        let at = usize::try_from(self.layout.at(self.outgoing, slot)).ok()?;
        self.memory.write(at, &sequence.to_le_bytes())?;
        self.memory.write(at + 8, &bytes.to_le_bytes())?;
        Some((Place { slot, sequence, bytes }, at + PAGE as usize))
    }

    /// Finds a body in its slot, where it stays until the other side is told to go on.
    pub fn locate(&mut self, place: Place) -> Result<Located, RingError> {
        let RingLayout { slots, slot_bytes, .. } = self.layout;
        let Place { slot, sequence, bytes } = place;
        if slot >= slots {
            return Err(RingError::Slot { slot, slots });
        }
        let too_long = || RingError::Length { bytes, slot_bytes };
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= slot_bytes).ok_or_else(too_long)?;
        let expected = self.received + 1;
        if sequence != expected {
            return Err(RingError::Sequence { got: sequence, expected });
        }
        let at = size(self.layout.at(self.incoming, slot))?;
        let words = self.memory.read(at, 16).unwrap_or_default();
        let word = |i: usize| words.as_chunks::<8>().0.get(i).map_or(0, |word| u64::from_le_bytes(*word));
        if (word(0), word(1)) != (sequence, bytes) {
            return Err(RingError::Disagrees { sequence: word(0), bytes: word(1), place });
        }
        self.received = expected;
        Ok(Located { at: at + PAGE as usize, bytes: length })
    }

    /// A copy of a body, as it stands there now.
    #[cfg(any(feature = "serve", test))]
    pub fn read(&self, body: Located) -> Result<Vec<u8>, RingError> {
        let bytes = body.bytes as u64;
        self.memory.read(body.at, body.bytes).ok_or(RingError::Length { bytes, slot_bytes: bytes })
    }

    /// The numbers in `range` of the bytes of a body, `width` bytes each: `widen` makes them out of private copies of a few at a
    /// time, on all threads.
    pub fn read_numbers(
        &self,
        body: Located,
        range: Range<usize>,
        width: usize,
        widen: impl Fn(&[u8], &mut [f32]) + Sync,
    ) -> Result<Vec<f32>, RingError> {
        let within = range.start <= range.end && range.end <= body.bytes;
        let at = body.at.checked_add(range.start).filter(|_| within);
        let numbers = at.and_then(|at| self.memory.read_numbers(at, range.len() / width, width, widen));
        numbers.ok_or(RingError::Length { bytes: range.end as u64, slot_bytes: body.bytes as u64 })
    }
}

#[cfg(feature = "serve")]
fn fill(random: &mut [u8]) -> Result<(), RingError> {
    getrandom::fill(random).map_err(|e| RingError::File(io::Error::other(e.to_string())))
}

fn size(bytes: u64) -> Result<usize, RingError> {
    usize::try_from(bytes).map_err(|_| RingError::Length { bytes, slot_bytes: MAX_SLOT_BYTES })
}

#[cfg(test)]
mod tests;
