//! Where the randomness of one operation comes from: both servers' seeds, and what the dealer adds.

use std::sync::Arc;

use crate::prg::{Prg, Purpose, ServerSeed};
use crate::ring::{Ring, add, sub};

/// What the dealer sends for one operation.
#[derive(Debug, Default)]
pub(crate) struct OpDeal<R> {
    /// Correction words, for both servers.
    pub(crate) common: Arc<Vec<u128>>,
    /// The second server's halves of tables, then of narrow words.
    pub(crate) bytes: Vec<u8>,
    /// The second server's halves of ring elements that depend on both seeds.
    pub(crate) corrections: Vec<R>,
}

/// Where the streams of an operation come from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) seed: &'a ServerSeed,
    pub(crate) query: u64,
    pub(crate) op: u32,
}

impl Source<'_> {
    pub(crate) fn stream(&self, purpose: Purpose) -> Prg {
        self.seed.stream(purpose, self.query, self.op)
    }

    pub(crate) fn mask<R: Ring>(&self, count: usize) -> Vec<R> {
        self.stream(Purpose::Mask).words(count)
    }
}

/// The sum of both servers' masks.
pub(crate) fn total<R: Ring>(sources: [Source<'_>; 2], len: usize) -> Vec<R> {
    let [left, right] = sources.map(|source| source.mask::<R>(len));
    add(&left, &right)
}

/// The second server's share of `values`, where the first one's comes from its seed.
pub(crate) fn correct<R: Ring>(first: Source<'_>, values: Vec<R>) -> Vec<R> {
    let share = first.stream(Purpose::Corrected).words::<R>(values.len());
    sub(&values, &share)
}

/// A server's half of corrected words: from its seed, or what was dealt.
pub(crate) fn own_words<R: Ring>(source: Source<'_>, corrections: Vec<R>, first: bool, count: usize) -> Vec<R> {
    if first { source.stream(Purpose::Corrected).words(count) } else { corrections }
}

/// Bit i of byte j is value 8j + i.
pub(crate) fn unpack_bits(bytes: &[u8], count: usize) -> Vec<u8> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)).take(count).collect()
}

/// The inverse of [`unpack_bits`].
pub(crate) fn pack_bits(bits: &[u8]) -> Vec<u8> {
    bits.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | (bit & 1) << i)).collect()
}
