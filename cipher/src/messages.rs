//! What client and server exchange, and why they refuse.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::affine::CompileError;
use crate::scheme::SchemeError;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CipherError {
    /// The library below refuses.
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    /// The image or the program does not fit.
    #[error(transparent)]
    Program(#[from] CompileError),
    /// Of another program.
    #[error("{what} of another program")]
    Other {
        /// What it is that was sent.
        what: &'static str,
    },
    /// Bytes that are no message.
    #[error("{what} does not decode")]
    Decode {
        /// What it was to be.
        what: &'static str,
    },
    /// Too many, too few, too long or not fresh.
    #[error("{what}: {got}, expected {expected}")]
    Form {
        /// What is wrong.
        what: &'static str,
        /// How many or how long.
        got: usize,
        /// Expected, or at most.
        expected: usize,
    },
    /// A key is missing.
    #[error("the evaluation keys lack one that the program needs")]
    Keys,
    /// Under another key, or computed with more noise than the parameters hold.
    #[error(
        "the answer's noise leaves {left} bits of its budget, expected {least}: it is of another key, or not of the program's computation"
    )]
    Noise {
        /// Bits that are left.
        left: i64,
        /// Least.
        least: i64,
    },
}

/// What a server needs to compute on a client's ciphertexts, once a program: it decrypts nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationKeys {
    pub(crate) program: [u8; 32],
    /// Empty where nothing is relinearised.
    pub(crate) relinearisation: Vec<u8>,
    /// Empty where nothing is turned.
    pub(crate) turning: Vec<u8>,
}

/// Encrypted images.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    pub(crate) program: [u8; 32],
    /// For each plaintext modulus.
    pub(crate) ciphertexts: Vec<Vec<Vec<u8>>>,
}

/// An encrypted answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub(crate) program: [u8; 32],
    /// For each plaintext modulus.
    pub(crate) ciphertexts: Vec<Vec<Vec<u8>>>,
}

macro_rules! message {
    ($name:ident, $what:literal, $bytes:expr) => {
        impl $name {
            /// Bytes of keys or ciphertexts.
            pub fn bytes(&self) -> usize {
                let bytes: fn(&Self) -> usize = $bytes;
                bytes(self)
            }

            /// As it travels.
            pub fn to_bytes(&self) -> Vec<u8> {
                // Nothing in a message can fail to encode.
                postcard::to_stdvec(self).unwrap_or_default()
            }

            /// Reads one of somebody else; what is in it is looked at by whoever uses it.
            ///
            /// # Errors
            /// It is none.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, CipherError> {
                decoded(bytes, $what)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.bytes())
            }
        }
    };
}

fn decoded<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, CipherError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(CipherError::Decode { what }),
    }
}

message!(EvaluationKeys, "evaluation keys", |keys| keys.relinearisation.len() + keys.turning.len());
message!(Query, "query", |query| query.ciphertexts.iter().flatten().map(Vec::len).sum());
message!(Answer, "answer", |answer| answer.ciphertexts.iter().flatten().map(Vec::len).sum());

pub(crate) fn check(
    what: &'static str,
    got: usize,
    expected: std::ops::RangeInclusive<usize>,
) -> Result<(), CipherError> {
    if expected.contains(&got) { Ok(()) } else { Err(CipherError::Form { what, got, expected: *expected.end() }) }
}
