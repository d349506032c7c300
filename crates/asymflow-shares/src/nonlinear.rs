//! Rectification, squares and truncation on values that were opened under a mask of the dealer's.
//!
//! Servers open x̂ = x + r, where the dealer alone knows r. Truncation by f bits comes with it: with x' = x + 2^(ℓ−2),
//! which is known not to be negative for |x| < 2^(ℓ−2), x̂' = x' + r wraps around exactly where r has its top bit and x̂'
//! has not, so that ⌊x̂'/2^f⌋ − ρ is ⌊x'/2^f⌋ or one more, with ρ = ⌊r/2^f⌋ of r as unsigned where x̂' has its top bit,
//! and as signed where it has not. The one more happens with the probability of the fraction cut off: rounding
//! is unbiased, and nothing ever wraps. (The known-sign trick of Escudero, Ghosh, Keller, Rachuri, Scholl, Crypto 2020,
//! section 5, with the sign made known by an offset.)
//!
//! ρ as signed is ρ as unsigned less m·2^(ℓ−f), where m is the top bit of r. What is multiplied by 2^(ℓ−f) counts modulo 2^f, so that
//! beside ρ as unsigned f bits are dealt ([`Narrow`](crate::narrow)) and not a second ring element.
//!
//! The truncated value is t = P − ρ with P public. For a decision b = b̂ ⊕ u with b̂ opened and u the dealer's,
//! y = b·t is linear in shares of u, ρ and u·ρ; a square is linear in shares of ρ and ρ².

use rayon::prelude::*;

use crate::decide::{self, DecisionShare};
use crate::groups::Groups;
use crate::narrow::Narrow;
use crate::program::Compare;
use crate::ring::Ring;
use crate::source::{OpDeal, Source, correct, own_words, unpack_bits};

/// `2^(ℓ−2)`: values and their masks are used with this offset.
pub(crate) fn offset<R: Ring>() -> R {
    R::from_u64(1 << (R::BITS - 2))
}

/// P and whether ρ is that of the unsigned mask.
fn public_part<R: Ring>(opened: R, shift: u32) -> (R, bool) {
    let raised = opened.plus(offset());
    (raised.shifted_right(shift).minus(offset::<R>().shifted_right(shift)), raised.sign_bit())
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

/// The dealer's part of a rectification of values with `mask`.
pub(crate) fn deal_relu<R: Ring>(
    sources: [Source<'_>; 2],
    mask: &[R],
    shift: u32,
    compare: Compare,
    groups: Option<&Groups>,
    samples: usize,
) -> OpDeal<R> {
    let (mut deal, flips) = decide::deal(sources, compare, &deciding(mask, groups, samples));
    let flips: Vec<R> = flips.into_iter().map(|flip| R::from_u64(flip.into())).collect();
    let flip = |index: usize| flips[group_of(groups, index)];
    let rho = shifted(mask, shift);
    let flipped: Vec<R> = rho.iter().enumerate().map(|(index, rho)| rho.times(flip(index))).collect();
    let tops: Vec<[R; 2]> = mask.iter().enumerate().map(|(index, r)| [top(*r), top(*r).times(flip(index))]).collect();
    deal.bytes.extend(Narrow::new(shift).correct(sources[0], &tops));
    deal.corrections = correct(sources[0], [flips, rho, flipped].concat());
    deal
}

/// The dealer's part of a square of values with `mask`.
pub(crate) fn deal_square<R: Ring>(sources: [Source<'_>; 2], mask: &[R], shift: u32) -> OpDeal<R> {
    let rho = shifted(mask, shift);
    let squares: Vec<R> = rho.iter().map(|rho| rho.times(*rho)).collect();
    // (ρ − m·2^(ℓ−f))² − ρ², divided by 2^(ℓ−f).
    let wrap = R::from_u64(1).shifted_left(R::BITS - shift);
    let rest = |r: R, rho: R| top(r).times(wrap.minus(rho.shifted_left(1)));
    let tops: Vec<[R; 2]> = mask.iter().zip(&rho).map(|(r, rho)| [top(*r), rest(*r, *rho)]).collect();
    let bytes = Narrow::new(shift).correct(sources[0], &tops);
    OpDeal { bytes, corrections: correct(sources[0], [rho, squares].concat()), ..OpDeal::default() }
}

/// The dealer's part of a truncation of values with `mask`.
pub(crate) fn deal_rescale<R: Ring>(sources: [Source<'_>; 2], mask: &[R], shift: u32) -> OpDeal<R> {
    let tops: Vec<[R; 1]> = mask.iter().map(|r| [top(*r)]).collect();
    let bytes = Narrow::new(shift).correct(sources[0], &tops);
    OpDeal { bytes, corrections: correct(sources[0], shifted(mask, shift)), ..OpDeal::default() }
}

/// m of a mask, as a ring element.
fn top<R: Ring>(r: R) -> R {
    R::from_u64(r.sign_bit().into())
}

fn shifted<R: Ring>(mask: &[R], shift: u32) -> Vec<R> {
    mask.iter().map(|r| r.shifted_right(shift)).collect()
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
    pub(crate) decisions: DecisionShare,
    /// Shares of u, then ρ, u·ρ.
    words: Vec<R>,
    /// Shares of m and u·m.
    tops: Vec<[R; 2]>,
}

impl<R: Ring> ReluShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(
        source: Source<'_>,
        deal: OpDeal<R>,
        first: bool,
        (len, shift): (usize, u32),
        (decisions, compare): (usize, Compare),
    ) -> Self {
        Self {
            mask: source.mask(len),
            decisions: DecisionShare::expand(source, &deal, compare, first, decisions),
            tops: Narrow::new(shift).read(source, &deal.bytes, first, len),
            words: own_words(source, deal.corrections, first, decisions + 2 * len),
        }
    }

    /// This server's share of b·t; `decisions` are masked.
    pub(crate) fn select(
        &self,
        first: bool,
        shift: u32,
        opened: &[R],
        decisions: &[u8],
        groups: Option<&Groups>,
    ) -> Vec<R> {
        let len = opened.len();
        let (flips, rest) = self.words.split_at(self.words.len() - 2 * len);
        let (rhos, flipped) = rest.split_at(len);
        let decisions = unpack_bits(decisions, flips.len());
        let one = |index: usize| {
            let (public, is_unsigned) = public_part(opened[index], shift);
            let group = group_of(groups, index);
            let [top, flipped_top] = if is_unsigned { [R::ZERO; 2] } else { self.tops[index] };
            let kept = flips[group].times(public).minus(flipped[index]).plus(flipped_top);
            let rest = top.minus(rhos[index]);
            let whole = if first { public.plus(rest) } else { rest };
            if decisions[group] == 0 { kept } else { whole.minus(kept) }
        };
        (0..len).into_par_iter().with_min_len(1 << 13).map(one).collect()
    }
}

/// A server's randomness of one square.
pub(crate) struct SquareShare<R> {
    pub(crate) mask: Vec<R>,
    /// Shares of ρ, then ρ².
    words: Vec<R>,
    /// Shares of m, and of what ρ² is short of where ρ is signed.
    tops: Vec<[R; 2]>,
}

impl<R: Ring> SquareShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(source: Source<'_>, deal: OpDeal<R>, first: bool, len: usize, shift: u32) -> Self {
        let tops = Narrow::new(shift).read(source, &deal.bytes, first, len);
        Self { mask: source.mask(len), words: own_words(source, deal.corrections, first, 2 * len), tops }
    }

    /// This server's share of t².
    pub(crate) fn square(&self, first: bool, shift: u32, opened: &[R]) -> Vec<R> {
        let (rhos, squares) = self.words.split_at(opened.len());
        let one = |(index, &opened): (usize, &R)| {
            let (public, is_unsigned) = public_part(opened, shift);
            let [top, rest] = if is_unsigned { [R::ZERO; 2] } else { self.tops[index] };
            let cross = public.times(rhos[index].minus(top)).shifted_left(1);
            let share = squares[index].plus(rest).minus(cross);
            if first { share.plus(public.times(public)) } else { share }
        };
        opened.iter().enumerate().map(one).collect()
    }
}

/// A server's randomness of one truncation.
pub(crate) struct RescaleShare<R> {
    pub(crate) mask: Vec<R>,
    /// Of ρ, which is subtracted from what is public.
    words: Vec<R>,
    /// Of m, where the mask wraps around.
    tops: Vec<[R; 1]>,
}

impl<R: Ring> RescaleShare<R> {
    /// Expands seed and deal; `deal` is of the right size.
    pub(crate) fn expand(source: Source<'_>, deal: OpDeal<R>, first: bool, len: usize, shift: u32) -> Self {
        let tops = Narrow::new(shift).read(source, &deal.bytes, first, len);
        Self { mask: source.mask(len), words: own_words(source, deal.corrections, first, len), tops }
    }

    /// This server's share of t.
    pub(crate) fn rescale(&self, first: bool, shift: u32, opened: &[R]) -> Vec<R> {
        let one = |(index, &value): (usize, &R)| {
            let (public, is_unsigned) = public_part(value, shift);
            let [top] = if is_unsigned { [R::ZERO] } else { self.tops[index] };
            let rest = top.minus(self.words[index]);
            if first { public.plus(rest) } else { rest }
        };
        opened.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests;
