//! How shares travel between their owner and the servers. The channels must be encrypted.

use std::io::{Read, Write};
use std::sync::Arc;

use asymflow_wire::{Limits, WireError, read_frame, write_frame};
use thiserror::Error;

use crate::input::{InputShare, OutputShare};
use crate::model::WeightShare;
use crate::program::{Program, ProgramError, RingError, Server};
use crate::ring::Ring;

/// Longest encoding of a program.
const PROGRAM_BYTES: u64 = 1 << 22;
const HEADER_BYTES: u32 = 64;

/// Why a share could not be read.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The connection failed, or what came is no frame or too long.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The program that came with weights cannot be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Of another ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A part that is not as long as the program says.
    #[error("part {part} of a share has {got} bytes, expected {expected}")]
    Length {
        /// Its number.
        part: u32,
        /// Theirs.
        got: usize,
        /// Expected.
        expected: usize,
    },
    /// A part out of order.
    #[error("part {got} of a share, expected {expected}")]
    Order {
        /// Theirs.
        got: u32,
        /// Expected.
        expected: u32,
    },
}

fn write_values<R: Ring, H: serde::Serialize>(
    writer: &mut impl Write,
    header: &H,
    values: &[R],
) -> Result<u64, WireError> {
    let mut body = Vec::with_capacity(values.len() * R::BYTES);
    R::write(values, &mut body);
    write_frame(writer, header, &body)
}

/// A header and exactly `count` values.
fn read_values<R: Ring, H: serde::de::DeserializeOwned>(
    reader: &mut impl Read,
    part: u32,
    count: usize,
) -> Result<(H, Vec<R>), TransferError> {
    let expected = count * R::BYTES;
    let frame = read_frame(reader, Limits { header_bytes: HEADER_BYTES, body_bytes: expected as u64 })?;
    if frame.body.len() != expected {
        return Err(TransferError::Length { part, got: frame.body.len(), expected });
    }
    Ok((frame.header, R::read(&frame.body)))
}

impl<R: Ring> InputShare<R> {
    /// Writes one frame; returns its bytes.
    ///
    /// # Errors
    /// The writer failed.
    pub fn write_to(&self, writer: &mut impl Write) -> Result<u64, WireError> {
        write_values(writer, &(self.query, self.server), &self.values)
    }

    /// Reads a share of an input of `program`.
    ///
    /// # Errors
    /// The reader failed, or the share is of another ring or length.
    pub fn read_from(reader: &mut impl Read, program: &Program) -> Result<Self, TransferError> {
        program.check_ring(R::BITS)?;
        let ((query, server), values) = read_values(reader, 0, program.input_len())?;
        Ok(Self { query, server, values })
    }
}

impl<R: Ring> OutputShare<R> {
    /// Writes one frame; returns its bytes.
    ///
    /// # Errors
    /// The writer failed.
    pub fn write_to(&self, writer: &mut impl Write) -> Result<u64, WireError> {
        write_values(writer, &(self.query, self.server), &self.values)
    }

    /// Reads a share of the logits of `program`.
    ///
    /// # Errors
    /// The reader failed, or the share is of another ring or length.
    pub fn read_from(reader: &mut impl Read, program: &Program) -> Result<Self, TransferError> {
        program.check_ring(R::BITS)?;
        let ((query, server), values) = read_values(reader, 0, program.output_len())?;
        Ok(Self { query, server, values })
    }
}

impl<R: Ring> WeightShare<R> {
    /// Writes the program and this share of every layer; returns the bytes.
    ///
    /// # Errors
    /// The writer failed.
    pub fn write_to(&self, writer: &mut impl Write) -> Result<u64, WireError> {
        let mut written = write_frame(writer, &self.server, &self.program.to_bytes())?;
        for (part, (weight, bias)) in (0_u32..).zip(&self.layers) {
            written += write_values(writer, &part, weight)? + write_values(writer, &part, bias)?;
        }
        Ok(written)
    }

    /// Reads what [`WeightShare::write_to`] wrote.
    ///
    /// # Errors
    /// The reader failed, the program cannot be run, or a layer does not fit it.
    pub fn read_from(reader: &mut impl Read) -> Result<Self, TransferError> {
        let limits = Limits { header_bytes: HEADER_BYTES, body_bytes: PROGRAM_BYTES };
        let frame = read_frame::<Server>(reader, limits)?;
        let program = Program::from_bytes(&frame.body)?;
        program.check_ring(R::BITS)?;
        let mut layers = Vec::with_capacity(program.layers.len());
        for (expected, shape) in (0_u32..).zip(&program.layers) {
            let (first, weight) = read_values(reader, expected, shape.weight_len())?;
            let (second, bias) = read_values(reader, expected, shape.out_channels)?;
            if let Some(got) = [first, second].into_iter().find(|part| *part != expected) {
                return Err(TransferError::Order { got, expected });
            }
            layers.push((weight, bias));
        }
        Ok(Self { program: Arc::new(program), server: frame.header, layers })
    }
}
