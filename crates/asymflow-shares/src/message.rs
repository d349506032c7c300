//! What servers send each other, bound to session, model, query and step.

use std::io::{Read, Write};

use asymflow_wire::{Limits, WireError, read_frame, write_frame};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::prg::Session;
use crate::program::{ModelHash, Server};

/// The step of the one message outside queries: masked weights.
pub(crate) const SETUP: u32 = u32::MAX;
/// The step of messages that measure a link.
pub(crate) const PROBE: u32 = u32::MAX - 1;

/// What a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub(crate) session: Session,
    pub(crate) model: ModelHash,
    pub(crate) query: u64,
    pub(crate) step: u32,
    pub(crate) from: Server,
}

/// One message between the servers: masked values, which alone say nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Header { query, step, from, .. } = self.header;
        write!(f, "Message(query {query}, step {step}, from {from:?}, {} bytes)", self.body.len())
    }
}

/// Why a message was refused. No error says what a message or a share held.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Of another dealing.
    #[error("message belongs to another session")]
    Session,
    /// Of another model, program or format.
    #[error("message belongs to another model")]
    Model,
    /// From the wrong server: a message of one's own that came back, for instance.
    #[error("message comes from {got:?}, expected {expected:?}")]
    Sender {
        /// Theirs.
        got: Server,
        /// Expected.
        expected: Server,
    },
    /// Of another query.
    #[error("message belongs to query {got}, expected {expected}")]
    Query {
        /// Theirs.
        got: u64,
        /// Expected.
        expected: u64,
    },
    /// Replayed, lost or out of order.
    #[error("message is step {got}, expected {expected}")]
    Step {
        /// Theirs.
        got: u32,
        /// Expected.
        expected: u32,
    },
    /// Too short or too long.
    #[error("message of step {step} has {got} bytes, expected {expected}")]
    Length {
        /// The step.
        step: u32,
        /// Theirs.
        got: usize,
        /// Expected.
        expected: usize,
    },
}

impl Message {
    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// The masked values, little-endian: what the other server sees.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Exchange of its query that it belongs to.
    pub const fn step(&self) -> u32 {
        self.header.step
    }

    /// Writes one frame; returns its bytes.
    ///
    /// # Errors
    /// The writer failed.
    pub fn write_to(&self, writer: &mut impl Write) -> Result<u64, WireError> {
        write_frame(writer, &self.header, &self.body)
    }

    /// Reads one frame of at most `body_bytes` of body.
    ///
    /// # Errors
    /// The reader failed, or it is no frame or too long.
    pub fn read_from(reader: &mut impl Read, body_bytes: u64) -> Result<Self, WireError> {
        let frame = read_frame(reader, Limits { header_bytes: 256, body_bytes })?;
        Ok(Self { header: frame.header, body: frame.body })
    }

    /// Checks that it is the one `expected`, with `bytes` of body.
    pub(crate) fn check(&self, expected: &Header, bytes: usize) -> Result<(), MessageError> {
        let got = &self.header;
        if got.session != expected.session {
            return Err(MessageError::Session);
        }
        if got.model != expected.model {
            return Err(MessageError::Model);
        }
        if got.from != expected.from {
            return Err(MessageError::Sender { got: got.from, expected: expected.from });
        }
        if got.query != expected.query {
            return Err(MessageError::Query { got: got.query, expected: expected.query });
        }
        if got.step != expected.step {
            return Err(MessageError::Step { got: got.step, expected: expected.step });
        }
        if self.body.len() != bytes {
            return Err(MessageError::Length { step: got.step, got: self.body.len(), expected: bytes });
        }
        Ok(())
    }
}
