//! What travels between client and worker: one request, one response, in order.
//!
//! Headers are postcard inside the frames of asymflow-wire; bodies are raw little-endian numbers,
//! or JSON for a model, whose parser bounds the nesting. Lengths are checked before memory is
//! allocated, values on the receiver's own copy.

#[cfg(feature = "serve")]
use asymflow_privacy::payload::PackedBits;
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

/// Appends the little-endian bytes of `values`. Whole chunks are written, which compiles to a copy.
pub(crate) fn put_f32(values: &[f32], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + values.len() * 4, 0);
    let target = out.get_mut(start..).unwrap_or_default();
    target.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(bytes, v)| *bytes = v.to_le_bytes());
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

/// Little-endian bytes of a payload.
pub(crate) fn put_payload(payload: &Payload) -> Vec<u8> {
    match payload {
        Payload::F32(values) => {
            let mut out = Vec::new();
            put_f32(values, &mut out);
            out
        }
        Payload::F16(values) => {
            let mut out = vec![0; values.len() * 2];
            out.as_chunks_mut::<2>().0.iter_mut().zip(values).for_each(|(bytes, v)| *bytes = v.to_le_bytes());
            out
        }
        Payload::Bits(bits) => bits.as_bytes().to_vec(),
    }
}

/// The values as f32, by the processor's own conversion of whole slices.
pub(crate) fn widen(payload: Payload) -> Vec<f32> {
    match payload {
        Payload::F32(values) => values,
        Payload::F16(values) => values.to_f32_vec(),
        bits @ Payload::Bits(_) => bits.into_f32(),
    }
}

/// A payload out of the bytes of a body; `None` when the length does not fit.
#[cfg(feature = "serve")]
pub(crate) fn take_encoded(bytes: Vec<u8>, encoding: Encoding) -> Option<Payload> {
    match encoding {
        Encoding::Float(precision) => take_payload(&bytes, precision),
        Encoding::Bits { values } => {
            PackedBits::from_bytes(bytes, usize::try_from(values).ok()?).ok().map(Payload::Bits)
        }
    }
}

/// Numbers out of their little-endian bytes; `None` when the length does not fit.
pub(crate) fn take_payload(bytes: &[u8], precision: Precision) -> Option<Payload> {
    match precision {
        Precision::F32 => {
            let (numbers, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| Payload::F32(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        }
        Precision::F16 => {
            let (numbers, rest) = bytes.as_chunks::<2>();
            rest.is_empty().then(|| Payload::F16(numbers.iter().map(|b| f16::from_le_bytes(*b)).collect()))
        }
    }
}

#[cfg(test)]
mod tests;
