//! A counted stream of frames, whose bodies may travel through a ring.

use std::io::{self, Read, Write};
use std::time::Duration;

use asymflow_wire::tls::Stream;
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame_in_pieces};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::client::Tap;
use crate::protocol::put_f32;
use crate::ring::{Place, Ring, RingError};

/// Numbers that are encoded at a time where a copy of all of them is not wanted.
const PIECE_VALUES: usize = 1 << 14;

/// Why a frame could not be sent or received.
#[derive(Debug, Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A connection that carries frames.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    tap: Option<Tap>,
    ring: Option<Ring>,
    /// Plaintext bytes written and read so far, those through the ring included.
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Connection {
    pub const fn new(stream: Stream, tap: Option<Tap>) -> Self {
        Self { stream, tap, ring: None, sent_bytes: 0, received_bytes: 0 }
    }

    /// Everything until the next call must be over within `timeout`.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.stream.set_timeout(timeout);
    }

    /// From the next frame on, long bodies travel through `ring`.
    pub fn use_ring(&mut self, ring: Ring) {
        self.ring = Some(ring);
    }

    /// Writes one frame.
    pub fn send<H: Serialize>(&mut self, header: &H, body: &[u8]) -> Result<(), ExchangeError> {
        self.send_pieces(header, body.len() as u64, &|| std::iter::once(body))
    }

    /// Writes one frame whose body is these numbers, one after the other; no copy of all of them is made.
    pub fn send_values<H: Serialize>(&mut self, header: &H, values: &[Vec<f32>]) -> Result<(), ExchangeError> {
        let bytes = values.iter().map(|part| 4 * part.len() as u64).sum();
        let encoded = |piece: &[f32]| {
            let mut out = Vec::new();
            put_f32(piece, &mut out);
            out
        };
        self.send_pieces(header, bytes, &|| values.iter().flat_map(|part| part.chunks(PIECE_VALUES)).map(encoded))
    }

    fn send_pieces<H: Serialize, B: AsRef<[u8]>, I: Iterator<Item = B>>(
        &mut self,
        header: &H,
        bytes: u64,
        body: &dyn Fn() -> I,
    ) -> Result<(), ExchangeError> {
        let Some(ring) = &mut self.ring else { return self.send_here(header, bytes, body()) };
        let place = ring.put(bytes, body());
        if let Some(place) = place {
            self.sent_bytes += place.bytes;
            if let Some(tap) = &self.tap {
                // As a frame, so that whoever takes the bytes apart finds the body where all others are.
                let mut seen = Vec::new();
                write_frame_in_pieces(&mut seen, &place, bytes, body())?;
                tap.call(&seen);
            }
        }
        match place {
            Some(_) => self.send_here(&(place, header), 0, std::iter::empty::<B>()),
            None => self.send_here(&(place, header), bytes, body()),
        }
    }

    fn send_here<H: Serialize, B: AsRef<[u8]>>(
        &mut self,
        header: &H,
        bytes: u64,
        body: impl Iterator<Item = B>,
    ) -> Result<(), ExchangeError> {
        let mut buffered = io::BufWriter::with_capacity(1 << 14, self);
        write_frame_in_pieces(&mut buffered, header, bytes, body)?;
        Ok(())
    }

    /// Reads one frame.
    pub fn receive<H: DeserializeOwned>(&mut self, limits: Limits) -> Result<Frame<H>, ExchangeError> {
        if self.ring.is_none() {
            return Ok(read_frame(self, limits)?);
        }
        let Frame { header: (place, header), body } = read_frame::<(Option<Place>, H)>(self, limits)?;
        let (Some(ring), Some(place)) = (&mut self.ring, place) else { return Ok(Frame { header, body }) };
        if !body.is_empty() {
            return Err(RingError::Both { bytes: body.len() }.into());
        }
        if place.bytes > limits.body_bytes {
            return Err(WireError::TooLarge { part: "body", bytes: place.bytes, limit: limits.body_bytes }.into());
        }
        let body = ring.take(place)?;
        self.received_bytes += place.bytes;
        Ok(Frame { header, body })
    }
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buf)?;
        self.received_bytes += n as u64;
        Ok(n)
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.stream.write(buf)?;
        self.sent_bytes += n as u64;
        if let (Some(tap), Some(sent)) = (&self.tap, buf.get(..n)) {
            tap.call(sent);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
