//! Rectification, squares and truncation on values that were opened under a mask of the dealer's.
//!
//! Servers open x̂ = x + r, where the dealer alone knows r. Truncation by f bits comes with it: with x' = x + 2^(ℓ−2),
//! which is known not to be negative for |x| < 2^(ℓ−2), x̂' = x' + r wraps around exactly where r has its top bit and x̂'
//! has not, so that ⌊x̂'/2^f⌋ − ρ is ⌊x'/2^f⌋ or one more, with ρ = ⌊r/2^f⌋ of r as unsigned where x̂' has its top bit,
//! and as signed where it has not. The one more happens with the probability of the fraction cut off: rounding
//! is unbiased, and nothing ever wraps. (The known-sign trick of Escudero, Ghosh, Keller, Rachuri, Scholl, Crypto 2020,
//! section 5, with the sign made known by an offset.)
//!
//! The truncated value is t = P − ρ with P public. For a decision b = b̂ ⊕ u with b̂ opened and u the dealer's,
//! y = b·t is linear in shares of u, ρ and u·ρ; a square is linear in shares of ρ and ρ².

use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::compare;
use crate::groups::Groups;
use crate::prg::{Prg, Purpose, ServerSeed};
use crate::program::Compare;
use crate::ring::{Ring, sub};

/// What the dealer sends for one operation.
#[derive(Debug, Default)]
pub(crate) struct OpDeal<R> {
    /// Correction words, for both servers.
    pub(crate) common: Arc<Vec<u128>>,
    /// The second server's halves of what depends on both seeds.
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
    fn stream(&self, purpose: Purpose) -> Prg {
        self.seed.stream(purpose, self.query, self.op)
    }

    /// The key of the permutation of this operation's trees: public, and of no other dealing, query or operation.
    fn tree_key(&self) -> u128 {
        let digest = Sha256::new()
            .chain_update(b"asymflow-shares trees v2")
            .chain_update(self.seed.session)
            .chain_update(self.seed.model)
            .chain_update(self.query.to_le_bytes())
            .chain_update(self.op.to_le_bytes())
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        u128::from_le_bytes(key)
    }

    pub(crate) fn mask<R: Ring>(&self, count: usize) -> Vec<R> {
        self.stream(Purpose::Mask).words(count)
    }

    /// Masks of decisions, one bit each.
    fn decision_masks(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count.div_ceil(8)];
        self.stream(Purpose::DecisionMask).fill(&mut bytes);
        unpack_bits(&bytes, count)
    }
}

/// `2^(ℓ−2)`: values and their masks are used with this offset.
pub(crate) fn offset<R: Ring>() -> R {
    R::from_u64(1 << (R::BITS - 2))
}

/// P and whether ρ is that of the unsigned mask.
fn public_part<R: Ring>(opened: R, shift: u32) -> (R, bool) {
    let raised = opened.plus(offset());
    (raised.shifted_right(shift).minus(offset::<R>().shifted_right(shift)), raised.sign_bit())
}

/// Bit i of byte j is value 8j + i.
pub(crate) fn unpack_bits(bytes: &[u8], count: usize) -> Vec<u8> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)).take(count).collect()
}

/// The inverse of [`unpack_bits`].
pub(crate) fn pack_bits(bits: &[u8]) -> Vec<u8> {
    bits.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | (bit & 1) << i)).collect()
}

/// What decisions look at: each value itself, or one weighted sum a group.
pub(crate) fn deciding<R: Ring>(values: &[R], groups: Option<&Groups>, samples: usize) -> Vec<R> {
    let Some(groups) = groups else { return values.to_vec() };
    let mut sums = vec![R::ZERO; samples * groups.count];
    for (values, sums) in values.chunks_exact(groups.of.len()).zip(sums.chunks_exact_mut(groups.count)) {
        for ((value, group), weight) in values.iter().zip(&groups.of).zip(&groups.weight) {
            let sum = &mut sums[*group as usize];
            *sum = sum.plus(value.times(R::from_i64(*weight)));
        }
    }
    sums
}

impl Compare {
    /// The window's sign bit and what is below it.
    fn split<R: Ring>(self, value: R) -> (u8, u64) {
        let window = value.shifted_right(self.dropped).to_u64();
        let below = self.width - 1;
        ((window >> below & 1) as u8, window & ((1 << below) - 1))
    }
}

/// The dealer's part of a rectification of `len` values.
pub(crate) fn deal_relu<R: Ring>(
    sources: [Source<'_>; 2],
    len: usize,
    shift: u32,
    compare: Compare,
    groups: Option<&Groups>,
    samples: usize,
) -> OpDeal<R> {
    let mask = total::<R>(sources, len);
    let (signs, alphas): (Vec<u8>, Vec<u64>) =
        deciding(&mask, groups, samples).into_iter().map(|r| compare.split(r)).unzip();
    let decisions = signs.len();
    let roots = sources.map(|source| source.stream(Purpose::Root).blocks(decisions));
    let common = compare::generate(sources[0].tree_key(), compare.width - 1, &alphas, [&roots[0], &roots[1]]);
    let [left, right] = sources.map(|source| source.decision_masks(decisions));
    let flips: Vec<R> =
        signs.iter().zip(&left).zip(&right).map(|((a, b), c)| R::from_u64(u64::from(a ^ b ^ c))).collect();
    let [unsigned, signed] = shifted(&mask, shift);
    let flipped = |values: &[R]| -> Vec<R> {
        let flip = |index: usize| flips[group_of(groups, index)];
        values.iter().enumerate().map(|(index, value)| value.times(flip(index))).collect()
    };
    let (flipped_unsigned, flipped_signed) = (flipped(&unsigned), flipped(&signed));
    let corrections = correct(sources[0], [flips, unsigned, signed, flipped_unsigned, flipped_signed].concat());
    OpDeal { common: Arc::new(common), corrections }
}

/// The dealer's part of a square of `len` values.
pub(crate) fn deal_square<R: Ring>(sources: [Source<'_>; 2], len: usize, shift: u32) -> OpDeal<R> {
    let [unsigned, signed] = shifted(&total::<R>(sources, len), shift);
    let squares = |values: &[R]| values.iter().map(|v| v.times(*v)).collect::<Vec<R>>();
    let (unsigned_squares, signed_squares) = (squares(&unsigned), squares(&signed));
    let corrections = correct(sources[0], [unsigned, signed, unsigned_squares, signed_squares].concat());
    OpDeal { common: Arc::default(), corrections }
}

/// The dealer's part of a truncation of `len` values.
pub(crate) fn deal_rescale<R: Ring>(sources: [Source<'_>; 2], len: usize, shift: u32) -> OpDeal<R> {
    let corrections = correct(sources[0], shifted(&total::<R>(sources, len), shift).concat());
    OpDeal { common: Arc::default(), corrections }
}

/// The sum of both servers' masks.
pub(crate) fn total<R: Ring>(sources: [Source<'_>; 2], len: usize) -> Vec<R> {
    let [left, right] = sources.map(|source| source.mask::<R>(len));
    crate::ring::add(&left, &right)
}

/// The second server's share of `values`, where the first one's comes from its seed.
pub(crate) fn correct<R: Ring>(first: Source<'_>, values: Vec<R>) -> Vec<R> {
    let share = first.stream(Purpose::Corrected).words::<R>(values.len());
    sub(&values, &share)
}

fn shifted<R: Ring>(mask: &[R], shift: u32) -> [Vec<R>; 2] {
    [
        mask.iter().map(|r| r.shifted_right(shift)).collect(),
        mask.iter().map(|r| r.shifted_right_signed(shift)).collect(),
    ]
}

/// Index of the decision about value `index`, all samples counted through.
pub(crate) fn group_of(groups: Option<&Groups>, index: usize) -> usize {
    match groups {
        None => index,
        // Division is slow, and most queries have one sample.
        Some(g) if index < g.of.len() => g.of[index] as usize,
        Some(g) => index / g.of.len() * g.count + g.of[index % g.of.len()] as usize,
    }
}

/// A server's randomness of one rectification.
pub(crate) struct ReluShare<R> {
    pub(crate) mask: Vec<R>,
    tree_key: u128,
    roots: Vec<u128>,
    decision_masks: Vec<u8>,
    keys: Arc<Vec<u128>>,
    /// Shares of u, then ρ unsigned, ρ signed, u·ρ unsigned, u·ρ signed.
    words: Vec<R>,
}

impl<R: Ring> ReluShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(source: Source<'_>, deal: OpDeal<R>, first: bool, len: usize, decisions: usize) -> Self {
        Self {
            mask: source.mask(len),
            tree_key: source.tree_key(),
            roots: source.stream(Purpose::Root).blocks(decisions),
            decision_masks: source.decision_masks(decisions),
            keys: deal.common,
            words: own_words(source, deal.corrections, first, decisions + 4 * len),
        }
    }

    #[cfg(test)]
    pub(crate) fn secrets(&self) -> &[u128] {
        &self.roots
    }

    /// This server's shares of the masked decisions about what was opened.
    pub(crate) fn decide(&self, party: usize, compare: Compare, deciding: &[R]) -> Vec<u8> {
        let (signs, points): (Vec<u8>, Vec<u64>) = deciding.iter().map(|&x| compare.split(x)).unzip();
        let mut shares = compare::evaluate(party, self.tree_key, compare.width - 1, &self.keys, &self.roots, &points);
        for ((share, sign), mask) in shares.iter_mut().zip(signs).zip(&self.decision_masks) {
            // The public part of the decision, 1 ⊕ sign, is the first server's.
            *share ^= mask ^ if party == 0 { 1 ^ sign } else { 0 };
        }
        shares
    }

    /// This server's share of b·t.
    pub(crate) fn select(
        &self,
        first: bool,
        shift: u32,
        opened: &[R],
        decisions: &[u8],
        groups: Option<&Groups>,
    ) -> Vec<R> {
        let len = opened.len();
        let (flips, rest) = self.words.split_at(decisions.len());
        let (unsigned, rest) = rest.split_at(len);
        let (signed, rest) = rest.split_at(len);
        let (flipped_unsigned, flipped_signed) = rest.split_at(len);
        let one = |index: usize| {
            let (public, is_unsigned) = public_part(opened[index], shift);
            let group = group_of(groups, index);
            let (rho, flipped) = if is_unsigned {
                (unsigned[index], flipped_unsigned[index])
            } else {
                (signed[index], flipped_signed[index])
            };
            let kept = flips[group].times(public).minus(flipped);
            let whole = if first { public.minus(rho) } else { R::ZERO.minus(rho) };
            if decisions[group] == 0 { kept } else { whole.minus(kept) }
        };
        (0..len).into_par_iter().with_min_len(1 << 13).map(one).collect()
    }
}

/// A server's randomness of one square.
pub(crate) struct SquareShare<R> {
    pub(crate) mask: Vec<R>,
    /// Shares of ρ unsigned, ρ signed and their squares.
    words: Vec<R>,
}

impl<R: Ring> SquareShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(source: Source<'_>, deal: OpDeal<R>, first: bool, len: usize) -> Self {
        Self { mask: source.mask(len), words: own_words(source, deal.corrections, first, 4 * len) }
    }

    /// This server's share of t².
    pub(crate) fn square(&self, first: bool, shift: u32, opened: &[R]) -> Vec<R> {
        let len = opened.len();
        let (rhos, squares) = self.words.split_at(2 * len);
        let one = |(index, &opened): (usize, &R)| {
            let (public, is_unsigned) = public_part(opened, shift);
            let at = if is_unsigned { index } else { index + len };
            let cross = public.times(rhos[at]).shifted_left(1);
            let share = squares[at].minus(cross);
            if first { share.plus(public.times(public)) } else { share }
        };
        opened.iter().enumerate().map(one).collect()
    }
}

/// A server's randomness of one truncation.
pub(crate) struct RescaleShare<R> {
    pub(crate) mask: Vec<R>,
    /// Shares of ρ unsigned and ρ signed.
    words: Vec<R>,
}

impl<R: Ring> RescaleShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(source: Source<'_>, deal: OpDeal<R>, first: bool, len: usize) -> Self {
        Self { mask: source.mask(len), words: own_words(source, deal.corrections, first, 2 * len) }
    }

    /// This server's share of t.
    pub(crate) fn rescale(&self, first: bool, shift: u32, opened: &[R]) -> Vec<R> {
        let one = |(index, &value): (usize, &R)| {
            let (public, is_unsigned) = public_part(value, shift);
            let rho = self.words[if is_unsigned { index } else { index + opened.len() }];
            if first { public.minus(rho) } else { R::ZERO.minus(rho) }
        };
        opened.iter().enumerate().map(one).collect()
    }
}

/// A server's half of corrected words: from its seed, or what was dealt.
pub(crate) fn own_words<R: Ring>(source: Source<'_>, corrections: Vec<R>, first: bool, count: usize) -> Vec<R> {
    if first { source.stream(Purpose::Corrected).words(count) } else { corrections }
}

#[cfg(test)]
mod tests;
