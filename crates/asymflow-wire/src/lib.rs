#![doc = include_str!("../README.md")]

use std::io::{ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

#[cfg(feature = "tls")]
pub mod tls;

/// Version of the frame layout; the other side must speak the same.
const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"asyf";
/// Bytes before the header: magic, version, header length, body length.
pub const PREFIX_BYTES: usize = 4 + 2 + 4 + 8;

/// Upper bounds that are checked before memory is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest header.
    pub header_bytes: u32,
    /// Largest body.
    pub body_bytes: u64,
}

impl Default for Limits {
    /// 1 MiB of header, 1 GiB of body.
    fn default() -> Self {
        Self { header_bytes: 1 << 20, body_bytes: 1 << 30 }
    }
}

/// One message: a typed header and raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<H> {
    /// The decoded header.
    pub header: H,
    /// The raw body.
    pub body: Vec<u8>,
}

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum WireError {
    /// The connection ended between two frames.
    #[error("connection closed")]
    Closed,
    /// Reading or writing failed.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The first bytes are not ours.
    #[error("not a frame: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// The other side speaks another version.
    #[error("frame version {got}, expected {expected}")]
    Version {
        /// Theirs.
        got: u16,
        /// Ours.
        expected: u16,
    },
    /// A length beyond the limit.
    #[error("frame {part} of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// `header` or `body`.
        part: &'static str,
        /// Announced length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The header does not decode to the expected type.
    #[error("malformed frame header: {0}")]
    Header(postcard::Error),
}

/// Writes one frame and flushes. Returns the bytes written.
///
/// # Errors
/// The writer failed, or the header cannot be encoded or is longer than 4 GiB.
pub fn write_frame<H: Serialize>(writer: &mut impl Write, header: &H, body: &[u8]) -> Result<u64, WireError> {
    write_frame_in_pieces(writer, header, body.len() as u64, std::iter::once(body))
}

/// As [`write_frame`], of a body of `body_bytes` bytes that is made piece by piece.
///
/// # Errors
/// As [`write_frame`]; pieces of another length in all, after which the stream is of no more use.
pub fn write_frame_in_pieces<H: Serialize, B: AsRef<[u8]>>(
    writer: &mut impl Write,
    header: &H,
    body_bytes: u64,
    body: impl Iterator<Item = B>,
) -> Result<u64, WireError> {
    let header = postcard::to_stdvec(header).map_err(WireError::Header)?;
    let header_len = u32::try_from(header.len()).map_err(|_| WireError::TooLarge {
        part: "header",
        bytes: header.len() as u64,
        limit: u64::from(u32::MAX),
    })?;
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..4].copy_from_slice(&MAGIC);
    prefix[4..6].copy_from_slice(&VERSION.to_le_bytes());
    prefix[6..10].copy_from_slice(&header_len.to_le_bytes());
    prefix[10..].copy_from_slice(&body_bytes.to_le_bytes());
    writer.write_all(&prefix)?;
    writer.write_all(&header)?;
    let mut written = 0;
    for piece in body {
        writer.write_all(piece.as_ref())?;
        written += piece.as_ref().len() as u64;
    }
    if written != body_bytes {
        return Err(std::io::Error::from(ErrorKind::InvalidInput).into());
    }
    writer.flush()?;
    Ok((PREFIX_BYTES + header.len()) as u64 + body_bytes)
}

/// What stands before a frame's header, for readers that do not block. Others use [`read_frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Length of the header.
    pub header_bytes: u32,
    /// Length of the body.
    pub body_bytes: u64,
}

impl Prefix {
    /// Reads it, checking each length against `limits`.
    ///
    /// # Errors
    /// A foreign magic, another version, or a length beyond its limit.
    pub fn parse(prefix: [u8; PREFIX_BYTES], limits: Limits) -> Result<Self, WireError> {
        let [m0, m1, m2, m3, v0, v1, h0, h1, h2, h3, rest @ ..] = prefix;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(WireError::Magic([m0, m1, m2, m3]));
        }
        let got = u16::from_le_bytes([v0, v1]);
        if got != VERSION {
            return Err(WireError::Version { got, expected: VERSION });
        }
        let header_bytes = u32::from_le_bytes([h0, h1, h2, h3]);
        if header_bytes > limits.header_bytes {
            let (bytes, limit) = (u64::from(header_bytes), u64::from(limits.header_bytes));
            return Err(WireError::TooLarge { part: "header", bytes, limit });
        }
        let body_bytes = u64::from_le_bytes(rest);
        if body_bytes > limits.body_bytes {
            return Err(WireError::TooLarge { part: "body", bytes: body_bytes, limit: limits.body_bytes });
        }
        Ok(Self { header_bytes, body_bytes })
    }
}

/// Reads a header's bytes.
///
/// # Errors
/// They do not decode to `H`.
pub fn decode_header<H: DeserializeOwned>(header: &[u8]) -> Result<H, WireError> {
    postcard::from_bytes(header).map_err(WireError::Header)
}

/// Reads one frame, checking each length against `limits` before allocating, and growing the body only
/// as bytes arrive.
///
/// # Errors
/// [`WireError::Closed`] at a clean end between frames; otherwise what is wrong with the frame.
pub fn read_frame<H: DeserializeOwned>(reader: &mut impl Read, limits: Limits) -> Result<Frame<H>, WireError> {
    let mut prefix = [0; PREFIX_BYTES];
    read_prefix(reader, &mut prefix)?;
    let Prefix { header_bytes, body_bytes } = Prefix::parse(prefix, limits)?;
    let header = decode_header(&read_exactly(reader, u64::from(header_bytes))?)?;
    Ok(Frame { header, body: read_exactly(reader, body_bytes)? })
}

fn read_prefix(reader: &mut impl Read, prefix: &mut [u8]) -> Result<(), WireError> {
    let mut filled = 0;
    while filled < prefix.len() {
        match reader.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Err(WireError::Closed),
            Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Reads `len` bytes. The first allocation is at most 64 MiB, so that a lying length costs little.
fn read_exactly(reader: &mut impl Read, len: u64) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::with_capacity(len.min(64 << 20) as usize);
    let got = reader.by_ref().take(len).read_to_end(&mut bytes)?;
    if (got as u64) < len {
        return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
