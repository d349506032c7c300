//! Seeds, and the pseudorandom streams that both a party and the dealer expand from them. A stream is that of a seed, a
//! model, a purpose, a query and an index: nothing that is drawn for one serves another.

use std::fmt;

use aes::Aes128;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt, KeyInit};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroize;

use crate::program::{ModelHash, Server};
use crate::ring::Ring;

/// 256 secret bits. Its `Debug` shows nothing; its memory is zeroised on drop.
#[derive(Clone)]
pub struct Seed([u8; 32]);

impl Seed {
    /// A fresh seed from the operating system.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A given seed. Anything but bytes from a cryptographic source makes every share readable.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A seed for `purpose` with `model`, independent of all others.
    pub(crate) fn derive(&self, model: &ModelHash, purpose: Purpose, index: u32) -> Self {
        let mut bytes = [0; 32];
        Prg::new(self, model, purpose, 0, index).fill(&mut bytes);
        Self(bytes)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// Which dealing a message or deal belongs to.
pub(crate) type Session = [u8; 16];

/// What a server gets of the dealer once: a seed that all its randomness for one model comes from. Keep it as secret as the
/// inputs.
#[derive(Clone)]
pub struct ServerSeed {
    pub(crate) session: Session,
    pub(crate) model: ModelHash,
    pub(crate) server: Server,
    pub(crate) seed: Seed,
}

impl fmt::Debug for ServerSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerSeed({:?}, ..)", self.server)
    }
}

/// Randomness that was dealt for something else. Nothing has been opened with it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SeedError {
    /// For another model.
    #[error("the randomness is for another model: it was dealt for {}, and this is {}", Hex(.dealt), Hex(.got))]
    Model {
        /// Hash of the program that it was dealt for.
        dealt: ModelHash,
        /// Hash of the program here.
        got: ModelHash,
    },
    /// For the other server.
    #[error("the randomness is the {dealt:?} server's, and this is the other one")]
    Server {
        /// Whose it is.
        dealt: Server,
    },
    /// Of another dealing than the masks of the weights.
    #[error("the randomness is of another dealing than the masks of the weights")]
    Dealing,
}

/// A hash as hexadecimal digits.
struct Hex<'a>(&'a ModelHash);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ServerSeed {
    /// Length of [`ServerSeed::to_bytes`].
    pub const BYTES: usize = 1 + 16 + 32 + 32;

    /// Which dealing it belongs to; public.
    pub const fn session(&self) -> Session {
        self.session
    }

    /// Hash of the program that it was dealt for.
    pub const fn model(&self) -> ModelHash {
        self.model
    }

    /// Whose it is.
    pub const fn server(&self) -> Server {
        self.server
    }

    /// Checks that it is for `server` and the model with the hash `got`.
    ///
    /// # Errors
    /// It is for another model or the other server.
    pub fn check(&self, got: ModelHash, server: Server) -> Result<(), SeedError> {
        if self.model != got {
            return Err(SeedError::Model { dealt: self.model, got });
        }
        if self.server != server {
            return Err(SeedError::Server { dealt: self.server });
        }
        Ok(())
    }

    pub(crate) fn stream(&self, purpose: Purpose, query: u64, index: u32) -> Prg {
        Prg::new(&self.seed, &self.model, purpose, query, index)
    }

    /// For an encrypted channel to the server.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.server as u8;
        bytes[1..17].copy_from_slice(&self.session);
        bytes[17..49].copy_from_slice(&self.model);
        bytes[49..].copy_from_slice(&self.seed.0);
        bytes
    }

    /// The inverse of [`ServerSeed::to_bytes`]; `None` where the bytes name neither server.
    pub fn from_bytes(mut bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [server, rest @ ..] = &bytes;
        let server = match server {
            0 => Server::First,
            1 => Server::Second,
            _ => return None,
        };
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (model, seed) = rest.split_first_chunk::<32>()?;
        let found = Self { session: *session, model: *model, server, seed: Seed(*seed.first_chunk()?) };
        bytes.zeroize();
        Some(found)
    }
}

/// What a stream is for. Streams of one seed that differ in model, purpose, query or index are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    PartySeed = 1,
    Session,
    WeightShare,
    WeightMask,
    InputShare,
    /// Masks of values that are opened.
    Mask,
    /// Roots of comparison trees.
    Root,
    /// Masks of decisions that are opened.
    DecisionMask,
    /// Party 0's half of what the dealer corrects for party 1.
    Corrected,
    ModelTag,
    /// Party 0's half of tables and of products of masks.
    Table,
    /// Masks of gates' inputs.
    GateMask,
    /// Party 0's half of narrow words.
    Narrow,
}

/// AES-128 in counter mode under a key derived from a seed and a domain by SHA-256.
pub(crate) struct Prg {
    cipher: Aes128,
    counter: u64,
}

/// Blocks encrypted at once.
const BATCH: usize = 32;

impl Prg {
    pub(crate) fn new(seed: &Seed, model: &ModelHash, purpose: Purpose, query: u64, index: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(b"asymflow-shares stream v3")
            .chain_update(seed.0)
            .chain_update(model)
            .chain_update([purpose as u8])
            .chain_update(query.to_le_bytes())
            .chain_update(index.to_le_bytes())
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self { cipher: Aes128::new(&key.into()), counter: 0 }
    }

    /// The next bytes of the stream; each call begins at a block of 16.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        let mut blocks = [GenericArray::from([0; 16]); BATCH];
        for part in bytes.chunks_mut(16 * BATCH) {
            let used = &mut blocks[..part.len().div_ceil(16)];
            for block in used.iter_mut() {
                *block = u128::from(self.counter).to_le_bytes().into();
                self.counter += 1;
            }
            self.cipher.encrypt_blocks(used);
            for (to, from) in part.chunks_mut(16).zip(used) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }

    /// The next `count` ring elements.
    pub(crate) fn words<R: Ring>(&mut self, count: usize) -> Vec<R> {
        let mut bytes = vec![0; count * R::BYTES];
        self.fill(&mut bytes);
        R::read(&bytes)
    }

    /// The next `count` blocks of 128 bits.
    pub(crate) fn blocks(&mut self, count: usize) -> Vec<u128> {
        let mut bytes = vec![0; count * 16];
        self.fill(&mut bytes);
        let (whole, _) = bytes.as_chunks();
        whole.iter().map(|&block| u128::from_le_bytes(block)).collect()
    }
}

impl fmt::Debug for Prg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prg(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_domain() {
        let seed = Seed::from_bytes([7; 32]);
        let words =
            |model, purpose, query, index| Prg::new(&seed, &[model; 32], purpose, query, index).words::<u64>(100);
        let base = words(1, Purpose::Mask, 1, 1);
        assert_eq!(base, words(1, Purpose::Mask, 1, 1));
        for other in [
            words(2, Purpose::Mask, 1, 1),
            words(1, Purpose::Root, 1, 1),
            words(1, Purpose::Mask, 2, 1),
            words(1, Purpose::Mask, 1, 2),
        ] {
            assert!(base.iter().zip(&other).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn a_seed_is_not_printed() {
        assert_eq!(format!("{:?}", Seed::from_bytes([0xab; 32])), "Seed(..)");
        let stream = Prg::new(&Seed::from_bytes([0xab; 32]), &[0; 32], Purpose::Mask, 0, 0);
        assert_eq!(format!("{stream:?}"), "Prg(..)");
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(Seed::random().unwrap().0, Seed::random().unwrap().0);
    }
}
