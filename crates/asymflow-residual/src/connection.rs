//! A counted stream of frames, whose bodies may travel through a ring.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::Duration;

use asymflow_privacy::payload::Precision;
use asymflow_wire::tls::Stream;
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame_in_pieces};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::client::Tap;
use crate::protocol::{Numbers, widen};
use crate::ring::{Located, Place, Ring, RingError, RingLayout};

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

    /// Of the ring that long bodies travel through.
    pub fn ring_layout(&self) -> Option<RingLayout> {
        self.ring.as_ref().map(Ring::layout)
    }

    /// Writes one frame.
    pub fn send<H: Serialize>(&mut self, header: &H, body: &[u8]) -> Result<(), ExchangeError> {
        self.send_numbers(header, &[Numbers::Bytes(body)])
    }

    /// Writes one frame whose body is these numbers, one after the other; no copy of all of them is made.
    pub fn send_numbers<H: Serialize>(&mut self, header: &H, parts: &[Numbers<'_>]) -> Result<(), ExchangeError> {
        let bytes = parts.iter().map(|part| part.bytes()).sum();
        let body = || parts.iter().flat_map(|part| part.pieces());
        let Some(ring) = &mut self.ring else { return self.send_here(header, bytes, body()) };
        let place = if let &[Numbers::Zeros(bytes)] = parts { ring.put_zeros(bytes) } else { ring.put(bytes, body()) };
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
            Some(_) => self.send_here(&(place, header), 0, std::iter::empty::<Vec<u8>>()),
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

    /// Reads one frame. A body in the ring stays there until the next frame is sent.
    pub fn receive<H: DeserializeOwned>(&mut self, limits: Limits) -> Result<(H, Body), ExchangeError> {
        if self.ring.is_none() {
            let Frame { header, body } = read_frame(self, limits)?;
            return Ok((header, Body::Here(body)));
        }
        let Frame { header: (place, header), body } = read_frame::<(Option<Place>, H)>(self, limits)?;
        let (Some(ring), Some(place)) = (&mut self.ring, place) else { return Ok((header, Body::Here(body))) };
        if !body.is_empty() {
            return Err(RingError::Both { bytes: body.len() }.into());
        }
        if place.bytes > limits.body_bytes {
            return Err(WireError::TooLarge { part: "body", bytes: place.bytes, limit: limits.body_bytes }.into());
        }
        let located = ring.locate(place)?;
        self.received_bytes += place.bytes;
        Ok((header, Body::Ring(located)))
    }

    /// The bytes of a body.
    #[cfg(feature = "serve")]
    pub fn bytes(&self, body: Body) -> Result<Vec<u8>, ExchangeError> {
        match body {
            Body::Here(bytes) => Ok(bytes),
            Body::Ring(located) => Ok(self.mapped(located)?.read(located)?),
        }
    }

    /// The numbers in `range` of the bytes of a body, which is cut to what there is.
    pub fn numbers(&self, body: &Body, range: Range<usize>, precision: Precision) -> Result<Vec<f32>, ExchangeError> {
        let range = range.start.min(body.len())..range.end.min(body.len());
        match body {
            Body::Here(bytes) => {
                let mut numbers = vec![0.0; range.len() / precision.bytes()];
                widen(bytes.get(range).unwrap_or_default(), precision, &mut numbers);
                Ok(numbers)
            }
            Body::Ring(located) => {
                let widen = |bytes: &[u8], numbers: &mut [f32]| widen(bytes, precision, numbers);
                Ok(self.mapped(*located)?.read_numbers(*located, range, precision.bytes(), widen)?)
            }
        }
    }

    fn mapped(&self, located: Located) -> Result<&Ring, RingError> {
        self.ring.as_ref().ok_or(RingError::Length { bytes: located.bytes as u64, slot_bytes: 0 })
    }
}

/// The body of a frame.
#[derive(Debug)]
pub(crate) enum Body {
    Here(Vec<u8>),
    Ring(Located),
}

impl Body {
    pub const fn len(&self) -> usize {
        match self {
            Self::Here(bytes) => bytes.len(),
            Self::Ring(located) => located.bytes,
        }
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
