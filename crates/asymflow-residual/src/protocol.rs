//! What travels between client and worker: one request, one response, in order.
//!
//! Headers are postcard inside the frames of asymflow-wire; bodies are raw little-endian numbers,
//! or JSON for a model, whose parser bounds the nesting. Lengths are checked before memory is
//! allocated, values on the receiver's own copy; numbers are encoded and decoded a few at a time, so that no copy of all their bytes is made.

use std::borrow::Cow;

use asymflow_privacy::payload::{Payload, Precision};
use asymflow_wire::Limits;
use asymflow_zoo::ops::Easing;
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
#[cfg(feature = "serve")]
use subtle::ConstantTimeEq;

use crate::backend::{Pass, SgdStep, Wanted};
use crate::ring::{Offer, RingLayout};

/// Version of the messages; the other side must speak the same.
pub const PROTOCOL_VERSION: u16 = 6;

/// Longest text taken from the other side.
const MAX_TEXT: usize = 400;

/// The secret that a client shows to a worker. `Debug` is redacted; comparison takes constant time.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token(Vec<u8>);

impl Token {
    /// A token of these bytes. Use at least 16 random ones.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Whether there is nothing in it; a worker accepts no empty token.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client's token is the worker's, in constant time.
    #[cfg(feature = "serve")]
    pub(crate) fn matches(&self, other: &Self) -> bool {
        !self.is_empty() && bool::from(self.0.ct_eq(&other.0))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// First message of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub version: u16,
    pub token: Token,
}

/// The worker's answer to [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Welcome {
    /// `modelled` where answers are no results.
    Ready {
        device: String,
        modelled: bool,
    },
    Missing {
        what: String,
        fix: String,
    },
    Token,
    Version {
        expected: u16,
    },
}

/// Opens the session; the body is the model as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Open {
    /// Precision of outputs and input gradients; weights and their gradients are always binary32.
    pub answers: Precision,
    /// The ring that the client would like bodies to travel through.
    pub ring: Option<RingLayout>,
}

/// The worker's answer to [`Open`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Opened {
    Ready,
    Model {
        unit: u32,
        reason: String,
    },
    Failed {
        reason: String,
    },
    Busy {
        sessions: u32,
    },
    /// Ready, with a ring; the client answers with [`Mapped`].
    Ring(Offer),
    /// Ready, but there is no ring.
    NoRing {
        reason: String,
    },
}

/// The client's answer to [`Opened::Ring`]: whether it has opened it. If it has, every header from here on stands
/// behind an `Option<Place>`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mapped(pub bool);

/// How a body encodes the numbers of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Encoding {
    Float(Precision),
    /// Packed bits, the lowest first; their number is not that of the bytes.
    Bits {
        values: u64,
    },
}

impl Encoding {
    pub fn of(payload: &Payload) -> Self {
        match payload {
            Payload::F32(_) => Self::Float(Precision::F32),
            Payload::F16(_) => Self::Float(Precision::F16),
            Payload::Bits(bits) => Self::Bits { values: bits.len() as u64 },
        }
    }
}

/// One request of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RequestHeader {
    Forward {
        unit: u32,
        pass: Pass,
        encoding: Encoding,
    },
    Gradient {
        unit: u32,
        wanted: Wanted,
        precision: Precision,
    },
    SetWeights {
        unit: u32,
    },
    AddWeights {
        unit: u32,
        precision: Precision,
    },
    Step {
        unit: u32,
        sgd: SgdStep,
    },
    Ease {
        unit: u32,
        easing: Easing,
    },
    Weights {
        unit: u32,
    },
    Momentum {
        unit: u32,
    },
    SetMomentum {
        unit: u32,
    },
    Reset,
    /// The body holds `samples` samples of packed bits, each of whole bytes, then as many labels or none.
    Store {
        unit: u32,
        first: u32,
        samples: u32,
        labelled: bool,
    },
    /// The body holds numbers of records.
    ForwardStored {
        unit: u32,
        pass: Pass,
    },
    /// The body holds numbers of records.
    TrainStored {
        unit: u32,
        sgd: SgdStep,
    },
}

/// The answer to one request. The body holds `values` numbers, then binary32 weight gradients.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ResponseHeader {
    Done { busy_seconds: f64, values: u64, precision: Precision },
    Failed { reason: String },
    Lost { reason: String },
    NonFinite { reason: String },
}

/// Limits of a message without a body.
pub(crate) const BARE: Limits = Limits { header_bytes: 4096, body_bytes: 0 };

/// Limits of a message with at most `body_bytes` of body.
pub(crate) const fn with_body(body_bytes: u64) -> Limits {
    Limits { header_bytes: 4096, body_bytes }
}

/// Text for the other side or from it: bounded, without control characters.
pub(crate) fn text(raw: &str) -> String {
    raw.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// Numbers that are encoded at a time: as many bytes as a core's own cache holds twice.
const PIECE_VALUES: usize = 1 << 13;
/// Numbers that are sent at a time from where they lie.
const RUN_VALUES: usize = 1 << 22;

/// Part of a body, encoded little-endian as it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    /// To be sent in binary16.
    #[cfg(any(feature = "serve", test))]
    Narrow(&'a [f32]),
    F16(&'a [f16]),
    Bytes(&'a [u8]),
    /// So many bytes of zeros.
    Zeros(u64),
}

impl<'a> Numbers<'a> {
    pub fn of(payload: &'a Payload) -> Self {
        match payload {
            Payload::F32(values) => Self::F32(values),
            Payload::F16(values) => Self::F16(values),
            Payload::Bits(bits) => Self::Bytes(bits.as_bytes()),
        }
    }

    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32(values) => 4 * values.len() as u64,
            #[cfg(any(feature = "serve", test))]
            Self::Narrow(values) => 2 * values.len() as u64,
            Self::F16(values) => 2 * values.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(bytes) => bytes,
        }
    }

    /// Its bytes: where they lie, or made a few at a time.
    pub fn pieces(self) -> Box<dyn Iterator<Item = Cow<'a, [u8]>> + 'a> {
        match self {
            Self::F32(values) => Box::new(values.chunks(RUN_VALUES).map(|run| little_endian(run, f32::to_le_bytes))),
            Self::F16(values) => {
                let runs = values.reinterpret_cast().chunks(RUN_VALUES);
                Box::new(runs.map(|run| little_endian(run, u16::to_le_bytes)))
            }
            #[cfg(any(feature = "serve", test))]
            Self::Narrow(values) => Box::new(values.chunks(PIECE_VALUES).map(|piece| {
                let mut narrow = [f16::ZERO; PIECE_VALUES];
                let narrow = narrow.get_mut(..piece.len()).unwrap_or_default();
                narrow.convert_from_f32_slice(piece);
                Cow::Owned(little_endian(narrow.reinterpret_cast(), u16::to_le_bytes).into_owned())
            })),
            Self::Bytes(bytes) => Box::new(std::iter::once(Cow::Borrowed(bytes))),
            Self::Zeros(bytes) => {
                static ZEROS: [u8; 1 << 15] = [0; 1 << 15];
                let piece = move |from: u64| ZEROS.get(..(bytes - from).min(ZEROS.len() as u64) as usize);
                let pieces = (0..bytes).step_by(ZEROS.len()).map(move |from| piece(from).unwrap_or_default());
                Box::new(pieces.map(Cow::Borrowed))
            }
        }
    }
}

/// Numbers as they travel: where they lie, on a machine that stores them so.
fn little_endian<T: bytemuck::NoUninit, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|&value| bytes(value)).collect())
    }
}

/// Overwrites `out` with numbers out of their little-endian bytes, as many as both hold.
pub(crate) fn widen(bytes: &[u8], precision: Precision, out: &mut [f32]) {
    match precision {
        Precision::F32 => bytes.as_chunks().0.iter().zip(out).for_each(|(b, v)| *v = f32::from_le_bytes(*b)),
        Precision::F16 => {
            let mut narrow = [f16::ZERO; PIECE_VALUES];
            for (piece, out) in bytes.as_chunks().0.chunks(PIECE_VALUES).zip(out.chunks_mut(PIECE_VALUES)) {
                narrow.iter_mut().zip(piece).for_each(|(v, b)| *v = f16::from_le_bytes(*b));
                let both = piece.len().min(out.len());
                if let (Some(narrow), Some(out)) = (narrow.get(..both), out.get_mut(..both)) {
                    narrow.convert_to_f32_slice(out);
                }
            }
        }
    }
}

/// Appends the little-endian bytes of labels or numbers of records.
pub(crate) fn put_u32(values: &[u32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

/// Whole numbers out of their little-endian bytes; `None` when the length does not fit.
#[cfg(feature = "serve")]
pub(crate) fn take_u32(bytes: &[u8]) -> Option<Vec<u32>> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| numbers.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests;
