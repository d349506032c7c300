//! Seeds, and the pseudorandom streams that both a party and the dealer expand from them.

use std::fmt;

use aes::Aes128;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt, KeyInit};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

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

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A seed for `purpose`, independent of all others.
    pub(crate) fn derive(&self, purpose: Purpose, index: u32) -> Self {
        let mut bytes = [0; 32];
        Prg::new(self, purpose, 0, index).fill(&mut bytes);
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

/// What a stream is for. Streams of one seed that differ in purpose, query or index are independent.
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
}

/// AES-128 in counter mode under a key derived from a seed and a domain by SHA-256.
pub(crate) struct Prg {
    cipher: Aes128,
    counter: u64,
}

/// Blocks encrypted at once.
const BATCH: usize = 32;

impl Prg {
    pub(crate) fn new(seed: &Seed, purpose: Purpose, query: u64, index: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(b"asymflow-shares stream v1")
            .chain_update(seed.0)
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
        let words = |purpose, query, index| Prg::new(&seed, purpose, query, index).words::<u64>(100);
        let base = words(Purpose::Mask, 1, 1);
        assert_eq!(base, words(Purpose::Mask, 1, 1));
        for other in [words(Purpose::Root, 1, 1), words(Purpose::Mask, 2, 1), words(Purpose::Mask, 1, 2)] {
            assert!(base.iter().zip(&other).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn a_seed_is_not_printed() {
        assert_eq!(format!("{:?}", Seed::from_bytes([0xab; 32])), "Seed(..)");
        assert_eq!(format!("{:?}", Prg::new(&Seed::from_bytes([0xab; 32]), Purpose::Mask, 0, 0)), "Prg(..)");
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(Seed::random().unwrap().bytes(), Seed::random().unwrap().bytes());
    }
}
