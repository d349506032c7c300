//! Where a client meets the servers: shares of the input, and the answer from shares of the output.

use std::fmt;

use thiserror::Error;

use crate::prg::{Prg, Purpose, Seed};
use crate::program::{Program, RingError, Server};
use crate::ring::{Ring, add, fixed_point, sub};

/// One server's share of an input.
pub struct InputShare<R> {
    pub(crate) query: u64,
    pub(crate) server: Server,
    pub(crate) values: Vec<R>,
}

/// One server's share of the logits.
pub struct OutputShare<R> {
    pub(crate) query: u64,
    pub(crate) server: Server,
    pub(crate) values: Vec<R>,
}

impl<R> fmt::Debug for InputShare<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InputShare(query {}, {:?})", self.query, self.server)
    }
}

impl<R> fmt::Debug for OutputShare<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutputShare(query {}, {:?})", self.query, self.server)
    }
}

/// Why an input cannot be shared or an output not be read.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ClientError {
    /// Another number of values than the program takes or gives.
    #[error("{got} values, expected {expected}")]
    Length {
        /// How many there are.
        got: usize,
        /// Expected.
        expected: usize,
    },
    /// Not a number, or beyond what values have room for.
    #[error("value {index} of the input is {value}, and must be below {limit} in magnitude")]
    Value {
        /// Index into the input.
        index: usize,
        /// The value.
        value: f32,
        /// What the program was compiled for.
        limit: f64,
    },
    /// Of another ring than the program.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Shares of two queries or twice of one server.
    #[error("output shares are not the two of one query")]
    Pair,
}

/// Shares of `input` (samples × channels × height × width) for the two servers. `seed` must be fresh for every query.
///
/// # Errors
/// The input has another length, or a value that is not finite or needs more integer bits than values have.
pub fn share_input<R: Ring>(
    program: &Program,
    query: u64,
    input: &[f32],
    seed: &Seed,
) -> Result<[InputShare<R>; 2], ClientError> {
    program.check_ring(R::BITS)?;
    let values = encode::<R>(program, input)?;
    let first = Prg::new(seed, &program.hash(), Purpose::InputShare, query, 0).words::<R>(values.len());
    let second = sub(&values, &first);
    Ok([(Server::First, first), (Server::Second, second)].map(|(server, values)| InputShare { query, server, values }))
}

pub(crate) fn encode<R: Ring>(program: &Program, input: &[f32]) -> Result<Vec<R>, ClientError> {
    let expected = program.input_len();
    if input.len() != expected {
        return Err(ClientError::Length { got: input.len(), expected });
    }
    let bits = program.fixed.activation_bits;
    let limit = program.value_limit();
    let one = |(index, &value): (usize, &f32)| {
        let wide = f64::from(value);
        let fixed = fixed_point::<R>(wide, bits).filter(|_| wide.abs() < limit);
        fixed.map(R::from_i64).ok_or(ClientError::Value { index, value, limit })
    };
    input.iter().enumerate().map(one).collect()
}

/// The logits (samples × classes) from both servers' shares.
///
/// # Errors
/// The shares are not the two of one query of `program`.
pub fn open_output<R: Ring>(program: &Program, shares: &[OutputShare<R>; 2]) -> Result<Vec<f32>, ClientError> {
    let [a, b] = shares;
    if a.query != b.query || a.server == b.server {
        return Err(ClientError::Pair);
    }
    let expected = program.output_len();
    if let Some(share) = shares.iter().find(|share| share.values.len() != expected) {
        return Err(ClientError::Length { got: share.values.len(), expected });
    }
    Ok(decode(&add(&a.values, &b.values), program.values[program.output].scale))
}

/// Numbers with `scale` fraction bits.
pub(crate) fn decode<R: Ring>(values: &[R], scale: u32) -> Vec<f32> {
    let unit = 2_f64.powi(-(scale as i32));
    values.iter().map(|value| (value.to_i64() as f64 * unit) as f32).collect()
}
