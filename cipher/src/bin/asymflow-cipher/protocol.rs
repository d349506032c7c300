//! What server and client say to each other, in frames over TLS.
//!
//! The client says hello and hears which program is served. It names its evaluation keys, uploads them where the server does not know them, and
//! sends one query after the other. Bodies are the library's messages.

use std::time::Duration;

use asymflow_cipher::Program;
use asymflow_wire::{Frame, Limits, WireError, read_frame, tls::Stream, write_frame};
use asymflow_zoo::data::Normalization;
use asymflow_zoo::network::Shape;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Version of this protocol.
pub(crate) const VERSION: u16 = 1;
/// Most bytes of a program's frame.
pub(crate) const PROGRAM_LIMITS: Limits = Limits { header_bytes: 1 << 16, body_bytes: 4 << 20 };
/// Most bytes of a frame without body.
pub(crate) const LIMITS: Limits = Limits { header_bytes: 1 << 16, body_bytes: 0 };

/// Names evaluation keys.
pub(crate) type KeysName = [u8; 32];

pub(crate) fn name_of(keys: &[u8]) -> KeysName {
    Sha256::digest(keys).into()
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    Hello {
        version: u16,
    },
    /// Computes with these keys from here on.
    Use {
        keys: KeysName,
    },
    /// The body is evaluation keys.
    Keys,
    /// The body is a query.
    Query,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The body is the program.
    Served(Images),
    /// The keys are not here: they are to be sent.
    Unknown,
    /// The keys are used.
    Admitted,
    /// The body is the answer.
    Answer,
    Refused(Refusal),
}

/// What an image has to look like before it is encrypted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Images {
    pub(crate) shape: Shape,
    pub(crate) mean: Vec<f32>,
    pub(crate) std: Vec<f32>,
    pub(crate) class_names: Vec<String>,
}

impl Images {
    /// Whether the images are those of `program`, and everything is a number.
    pub(crate) fn fit(&self, program: &Program) -> bool {
        let Shape { channels, height, width } = self.shape;
        let is_small = [channels, height, width].iter().all(|side| (1..=4096).contains(side));
        let finite = self.mean.iter().chain(&self.std).all(|value| value.is_finite());
        is_small
            && self.shape.len() == program.inputs
            && finite
            && self.mean.len() == channels
            && self.std.len() == channels
            && self.std.iter().all(|std| *std > 0.0)
    }

    pub(crate) fn normalization(&self) -> Normalization {
        Normalization { mean: self.mean.clone(), std: self.std.clone() }
    }
}

/// Why a server does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub(crate) enum Refusal {
    #[error("the server speaks version {expected}, this client {got}")]
    Version { got: u16, expected: u16 },
    #[error("the server has {most} conversations going on, the most allowed")]
    Busy { most: usize },
    #[error("the server refuses what was sent: {0}")]
    Sent(String),
    #[error("the server expected {0}")]
    Order(String),
}

/// Why a conversation ended.
#[derive(Debug, Error)]
pub(crate) enum ProtocolError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the other side says {0}, which is not its turn to say")]
    Unexpected(String),
}

/// Says one thing within `timeout`.
pub(crate) fn say<H: Serialize>(
    stream: &mut Stream,
    header: &H,
    body: &[u8],
    timeout: Duration,
) -> Result<(), ProtocolError> {
    stream.set_timeout(timeout);
    write_frame(stream, header, body)?;
    Ok(())
}

/// Hears one thing within `timeout`.
pub(crate) fn hear<H: DeserializeOwned>(
    stream: &mut Stream,
    limits: Limits,
    timeout: Duration,
) -> Result<Frame<H>, ProtocolError> {
    stream.set_timeout(timeout);
    Ok(read_frame(stream, limits)?)
}
