//! The walks of `compare` with four instances a register (AVX-512 and VAES).
//!
//! Here a node keeps control bit and value in its lowest bits until it is hashed again.

use std::arch::x86_64::*;

use super::{LANES, LEAF, LOW, Lanes, VALUE, depth, key_blocks, position};
use crate::hash::wide::{Keys, hash, keys, load, store};

/// Registers of all instances.
const REGISTERS: usize = LANES / 4;
/// Registers of a generation that are in flight, with four hashes each.
const FLIGHT: usize = 2;

/// `block` in each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn splat(block: u128) -> __m512i {
    _mm512_broadcast_i64x2(_mm_set_epi64x((block >> 64) as i64, block as i64))
}

/// The mask of blocks whose lowest bit is set.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn lowest(blocks: __m512i) -> __mmask8 {
    _mm512_test_epi64_mask(_mm512_unpacklo_epi64(blocks, blocks), _mm512_set1_epi64(1))
}

/// Blocks with the seeds of `blocks` and the low bits of `low`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn with_low(blocks: __m512i, low: __m512i) -> __m512i {
    _mm512_or_si512(_mm512_andnot_si512(splat(LOW), blocks), low)
}

/// `points` as the low halves of 128-bit blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn blocks_of(points: &[u64]) -> [__m512i; REGISTERS] {
    let mut wide = [0_u128; LANES];
    for (wide, point) in wide.iter_mut().zip(points) {
        *wide = u128::from(*point);
    }
    registers(&wide)
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn registers(blocks: &[u128]) -> [__m512i; REGISTERS] {
    let mut registers = [_mm512_setzero_si512(); REGISTERS];
    for (register, blocks) in registers.iter_mut().zip(blocks.chunks(4)) {
        *register = load(blocks);
    }
    registers
}

/// The branch that each point takes at `level`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn branch(points: __m512i, bits: u32, level: usize) -> __m512i {
    let count = _mm_cvtsi64_si128(i64::from(bits) - 1 - level as i64);
    _mm512_and_si512(_mm512_srl_epi64(points, count), splat(1))
}

#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
pub(super) fn evaluate(party: usize, Lanes { tree_key, bits, words, roots, points }: Lanes<'_>, shares: &mut [u8]) {
    let lanes = points.len();
    let keys = keys(tree_key);
    let points_wide = blocks_of(points);
    let mut node = registers(roots);
    for node in &mut node {
        *node = with_low(*node, splat(party as u128));
    }
    let mut value = [_mm512_setzero_si512(); REGISTERS];
    let mut levels = words.chunks_exact(lanes);
    for (level, words) in levels.by_ref().take(depth(bits)).enumerate() {
        let mut right = [_mm512_setzero_si512(); REGISTERS];
        let mut input = [_mm512_setzero_si512(); REGISTERS];
        for register in 0..REGISTERS {
            right[register] = branch(points_wide[register], bits, level);
            input[register] = with_low(node[register], right[register]);
        }
        // The keys of the next instances come from memory while these are hashed.
        for ahead in words.chunks(4) {
            let next = ahead.as_ptr().wrapping_add(key_blocks(bits) * lanes);
            _mm_prefetch::<_MM_HINT_T0>(next.cast());
        }
        let hashed = hash(input, &keys);
        let words = registers(words);
        for register in 0..REGISTERS {
            let control = lowest(node[register]);
            let differs = _mm512_and_si512(_mm512_srli_epi64::<2>(words[register]), right[register]);
            let word = _mm512_xor_si512(words[register], differs);
            node[register] = _mm512_mask_xor_epi64(hashed[register], control, hashed[register], word);
            value[register] = _mm512_xor_si512(value[register], node[register]);
        }
    }
    let mut input = node;
    for input in &mut input {
        *input = with_low(*input, splat(LEAF));
    }
    let mut last = hash(input, &keys);
    let words = registers(levels.next().unwrap_or_default());
    let (mut blocks, mut values) = ([0_u128; LANES], [0_u128; LANES]);
    for register in 0..REGISTERS {
        let control = lowest(node[register]);
        last[register] = _mm512_mask_xor_epi64(last[register], control, last[register], words[register]);
        store(&mut blocks[4 * register..], last[register]);
        store(&mut values[4 * register..], value[register]);
    }
    for (share, ((block, value), &point)) in shares.iter_mut().zip(blocks.iter().zip(values).zip(points)) {
        *share = ((block >> position(point)) as u8 ^ u8::from(value & VALUE != 0)) & 1;
    }
}

#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
pub(super) fn generate(tree_key: u128, bits: u32, alphas: &[u64], roots: [&[u128]; 2], words: &mut [u128]) {
    let lanes = alphas.len();
    let keys = keys(tree_key);
    let alphas_wide = blocks_of(alphas);
    let mut nodes = [registers(roots[0]), registers(roots[1])];
    for (party, nodes) in nodes.iter_mut().enumerate() {
        for node in nodes {
            *node = with_low(*node, splat(party as u128));
        }
    }
    let mut value = [_mm512_setzero_si512(); REGISTERS];
    let mut levels = words.chunks_exact_mut(lanes);
    for (level, words) in levels.by_ref().take(depth(bits)).enumerate() {
        for (flight, words) in words.chunks_mut(4 * FLIGHT).enumerate() {
            let first = flight * FLIGHT;
            let keep: [__m512i; FLIGHT] = std::array::from_fn(|i| branch(alphas_wide[first + i], bits, level));
            let state = std::array::from_fn(|i| State {
                nodes: [nodes[0][first + i], nodes[1][first + i]],
                value: value[first + i],
            });
            let (state, found) = descend(state, keep, &keys);
            for (i, words) in words.chunks_mut(4).enumerate() {
                store(words, found[i]);
            }
            for (i, state) in state.into_iter().enumerate() {
                nodes[0][first + i] = state.nodes[0];
                nodes[1][first + i] = state.nodes[1];
                value[first + i] = state.value;
            }
        }
    }
    let leaf = |node| with_low(node, splat(LEAF));
    let [left, right] = nodes.map(|nodes| hash(nodes.map(leaf), &keys));
    let (mut blocks, mut values) = ([0_u128; LANES], [0_u128; LANES]);
    for register in 0..REGISTERS {
        store(&mut blocks[4 * register..], _mm512_xor_si512(left[register], right[register]));
        store(&mut values[4 * register..], value[register]);
    }
    for (lane, word) in levels.next().into_iter().flatten().enumerate() {
        let below = (1_u128 << position(alphas[lane])) - 1;
        *word = blocks[lane] ^ below ^ super::spread(values[lane]);
    }
}

/// Where the walk along α stands, in both parties' trees.
#[derive(Clone, Copy)]
struct State {
    nodes: [__m512i; 2],
    /// Sum of both parties' values, in the lowest bit.
    value: __m512i,
}

/// One level, as `Generation::descend`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,vaes,aes")]
fn descend(mut state: [State; FLIGHT], keep: [__m512i; FLIGHT], keys: &Keys) -> ([State; FLIGHT], [__m512i; FLIGHT]) {
    let (one, low) = (splat(1), splat(LOW));
    let mut input = [_mm512_setzero_si512(); 4 * FLIGHT];
    for (i, state) in state.iter().enumerate() {
        for party in 0..2 {
            let seed = _mm512_andnot_si512(low, state.nodes[party]);
            input[4 * i + 2 * party] = seed;
            input[4 * i + 2 * party + 1] = _mm512_or_si512(seed, one);
        }
    }
    let hashed = hash(input, keys);
    let mut words = [_mm512_setzero_si512(); FLIGHT];
    for (i, state) in state.iter_mut().enumerate() {
        let [left0, right0, left1, right1] = [0, 1, 2, 3].map(|child| hashed[4 * i + child]);
        let (left, right) = (_mm512_xor_si512(left0, left1), _mm512_xor_si512(right0, right1));
        let keeps_right = lowest(keep[i]);
        let lost = _mm512_mask_mov_epi64(right, keeps_right, left);
        let kept = _mm512_mask_mov_epi64(left, keeps_right, right);
        let value_of = |blocks| _mm512_and_si512(_mm512_srli_epi64::<1>(blocks), one);
        let value = _mm512_xor_si512(_mm512_xor_si512(value_of(lost), state.value), keep[i]);
        let control_left = _mm512_and_si512(_mm512_xor_si512(_mm512_xor_si512(left, keep[i]), one), one);
        let control_right = _mm512_and_si512(_mm512_xor_si512(right, keep[i]), one);
        let differ = _mm512_xor_si512(control_left, control_right);
        let seed = _mm512_andnot_si512(low, lost);
        let bits = _mm512_or_si512(_mm512_slli_epi64::<1>(value), _mm512_slli_epi64::<2>(differ));
        words[i] = _mm512_or_si512(_mm512_or_si512(seed, control_left), bits);
        state.value = _mm512_xor_si512(state.value, _mm512_xor_si512(value_of(kept), value));
        let correction = _mm512_or_si512(seed, _mm512_mask_mov_epi64(control_left, keeps_right, control_right));
        for (node, children) in state.nodes.iter_mut().zip([[left0, right0], [left1, right1]]) {
            let child = _mm512_mask_mov_epi64(children[0], keeps_right, children[1]);
            *node = _mm512_mask_xor_epi64(child, lowest(*node), child, correction);
        }
    }
    (state, words)
}
