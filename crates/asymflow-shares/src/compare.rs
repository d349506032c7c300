//! Comparison with a secret: keys that give two parties shares of 1{x < α} for a public x, where the dealer alone knows α.
//!
//! A distributed comparison function over GGM trees (Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, "Function
//! Secret Sharing for Mixed-Mode and Fixed-Point Secure Computation", Eurocrypt 2021, figure 1) with the output group
//! Z₂, in which the value of a node and its control bit are two bits of its seed. The last seven levels are one
//! block of 128 values.
//!
//! A node is a block of 128 bits: 125 of seed and, in the lowest bits while it is expanded, the branch to take. The
//! same bits of what comes out are control bit and value. A correction word holds the correction of the seed, that of
//! the control bit of the left branch ([`CONTROL`]), that of the value ([`VALUE`]), and in [`BRANCH`] by how much the
//! correction of the right control bit differs.

use rayon::prelude::*;

use crate::hash::Hash;

#[cfg(target_arch = "x86_64")]
mod wide;

/// Instances that go through a tree together.
const LANES: usize = 32;
/// Levels that the final block replaces.
const LEAF_LEVELS: u32 = 7;

const CONTROL: u128 = 1;
const VALUE: u128 = 2;
const BRANCH: u128 = 4;
const LOW: u128 = 7;
/// Added to a node when it becomes a final block, so that no input of the hash serves twice.
const LEAF: u128 = 2;

/// Levels of a tree over points of `bits` bits.
pub(crate) const fn depth(bits: u32) -> usize {
    bits.saturating_sub(LEAF_LEVELS) as usize
}

/// Blocks of 16 bytes in one key: one for each level, and the final one.
pub(crate) const fn key_blocks(bits: u32) -> usize {
    depth(bits) + 1
}

/// Keys for `alphas`, all below 2^bits: the correction words, which both parties get.
///
/// `roots` are the parties' secrets: uniform and independent, one each a key. `tree_key` is public, and must serve one
/// call: with it and their number, [`LANES`] trees at a time have a hash of their own.
pub(crate) fn generate(tree_key: u128, bits: u32, alphas: &[u64], roots: [&[u128]; 2]) -> Vec<u128> {
    let mut words = vec![0; alphas.len() * key_blocks(bits)];
    words
        .par_chunks_mut(LANES * key_blocks(bits))
        .zip(alphas.par_chunks(LANES))
        .zip(roots[0].par_chunks(LANES).zip(roots[1].par_chunks(LANES)))
        .enumerate()
        .for_each(|(batch, ((words, alphas), (left, right)))| {
            generate_lanes(tree_key ^ batch as u128, bits, alphas, [left, right], words);
        });
    words
}

/// Party's shares of 1{x < α} for each of `points`, as whole bits: their exclusive or over the parties is the comparison.
pub(crate) fn evaluate(
    party: usize,
    tree_key: u128,
    bits: u32,
    words: &[u128],
    roots: &[u128],
    points: &[u64],
) -> Vec<u8> {
    let mut shares = vec![0; points.len()];
    shares
        .par_chunks_mut(LANES)
        .zip(words.par_chunks(LANES * key_blocks(bits)))
        .zip(roots.par_chunks(LANES).zip(points.par_chunks(LANES)))
        .enumerate()
        .for_each(|(batch, ((shares, words), (roots, points)))| {
            Lanes { tree_key: tree_key ^ batch as u128, bits, words, roots, points }.evaluate(party, shares);
        });
    shares
}

/// Keys of at most [`LANES`] instances, level after level, each with one word an instance.
fn generate_lanes(tree_key: u128, bits: u32, alphas: &[u64], roots: [&[u128]; 2], words: &mut [u128]) {
    #[cfg(target_arch = "x86_64")]
    if crate::hash::wide::available() {
        // SAFETY: the processor has these instructions.
        unsafe { wide::generate(tree_key, bits, alphas, roots, words) };
        return;
    }
    Generation::new(tree_key, bits, alphas, roots).run(words);
}

/// What a party looks up in at most [`LANES`] trees.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    tree_key: u128,
    bits: u32,
    words: &'a [u128],
    roots: &'a [u128],
    points: &'a [u64],
}

impl Lanes<'_> {
    fn evaluate(self, party: usize, shares: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if crate::hash::wide::available() {
            // SAFETY: the processor has these instructions.
            unsafe { wide::evaluate(party, self, shares) };
            return;
        }
        evaluate_portable(party, self, shares);
    }
}

/// All ones where `bit` is set.
const fn spread(bit: u128) -> u128 {
    (bit & 1).wrapping_neg()
}

/// Bit `level` of `point` from the top, `levels` of which are above the final block.
const fn branch(point: u64, bits: u32, level: usize) -> u128 {
    ((point >> (bits as usize - 1 - level)) & 1) as u128
}

/// Position in the final block.
const fn position(point: u64) -> u32 {
    (point & ((1 << LEAF_LEVELS) - 1)) as u32
}

fn evaluate_portable(party: usize, Lanes { tree_key, bits, words, roots, points }: Lanes<'_>, shares: &mut [u8]) {
    let hash = Hash::new(tree_key);
    let lanes = points.len();
    let mut node = [0_u128; LANES];
    let mut control = [spread(party as u128); LANES];
    let mut value = [0_u128; LANES];
    let mut hashed = [0_u128; LANES];
    for (node, root) in node.iter_mut().zip(roots) {
        *node = root & !LOW;
    }
    let mut levels = words.chunks_exact(lanes);
    for (level, words) in levels.by_ref().take(depth(bits)).enumerate() {
        for ((hashed, node), &point) in hashed.iter_mut().zip(&node).zip(points) {
            *hashed = node | branch(point, bits, level);
        }
        hash.blocks(&mut hashed[..lanes]);
        for lane in 0..lanes {
            let right = branch(points[lane], bits, level);
            let word = words[lane] & control[lane];
            let next = hashed[lane] ^ word;
            control[lane] = spread(next ^ (right & (word >> 2)));
            value[lane] ^= next;
            node[lane] = next & !LOW;
        }
    }
    for (hashed, node) in hashed.iter_mut().zip(&node) {
        *hashed = node | LEAF;
    }
    hash.blocks(&mut hashed[..lanes]);
    let last = levels.next().unwrap_or_default();
    for (lane, (share, &word)) in shares.iter_mut().zip(last).enumerate() {
        let block = hashed[lane] ^ (word & control[lane]);
        *share = ((block >> position(points[lane])) as u8 ^ (value[lane] >> 1) as u8) & 1;
    }
}

/// The dealer's walk along α in the trees of both parties at once.
struct Generation<'a> {
    hash: Hash,
    bits: u32,
    alphas: &'a [u64],
    node: [[u128; LANES]; 2],
    control: [[u128; LANES]; 2],
    /// Sum of both parties' values along the path.
    value: [u128; LANES],
}

impl<'a> Generation<'a> {
    fn new(tree_key: u128, bits: u32, alphas: &'a [u64], roots: [&[u128]; 2]) -> Self {
        let mut node = [[0; LANES]; 2];
        for (node, roots) in node.iter_mut().zip(roots) {
            for (node, root) in node.iter_mut().zip(roots) {
                *node = root & !LOW;
            }
        }
        let control = [[0; LANES], [u128::MAX; LANES]];
        Self { hash: Hash::new(tree_key), bits, alphas, node, control, value: [0; LANES] }
    }

    /// Writes level after level, each with one word a lane.
    fn run(mut self, words: &mut [u128]) {
        let lanes = self.alphas.len();
        let mut levels = words.chunks_exact_mut(lanes);
        for (level, words) in levels.by_ref().take(depth(self.bits)).enumerate() {
            self.descend(level, words);
        }
        for nodes in &mut self.node {
            for node in nodes.iter_mut() {
                *node |= LEAF;
            }
            self.hash.blocks(&mut nodes[..lanes]);
        }
        for (lane, word) in levels.next().into_iter().flatten().enumerate() {
            let below = (1_u128 << position(self.alphas[lane])) - 1;
            *word = self.node[0][lane] ^ self.node[1][lane] ^ below ^ spread(self.value[lane]);
        }
    }

    fn descend(&mut self, level: usize, words: &mut [u128]) {
        let lanes = words.len();
        // children[party][branch]
        let mut children = [[self.node[0]; 2], [self.node[1]; 2]];
        for [left, right] in &mut children {
            right[..lanes].iter_mut().for_each(|node| *node |= 1);
            self.hash.blocks(&mut left[..lanes]);
            self.hash.blocks(&mut right[..lanes]);
        }
        for (lane, word) in words.iter_mut().enumerate() {
            let keep = branch(self.alphas[lane], self.bits, level) as usize;
            let [left, right] = [0, 1].map(|side| children[0][side][lane] ^ children[1][side][lane]);
            let lost = if keep == 0 { right } else { left };
            // Whoever leaves the path to the left is smaller than α.
            let value = (lost >> 1) ^ self.value[lane] ^ keep as u128;
            // Off the path the control bits agree, on it they differ.
            let controls = [left ^ keep as u128 ^ 1, right ^ keep as u128];
            *word = (lost & !LOW)
                | (controls[0] & CONTROL)
                | ((value << 1) & VALUE)
                | (((controls[0] ^ controls[1]) << 2) & BRANCH);
            let control_word = controls[keep];
            self.value[lane] ^= ([left, right][keep] >> 1) ^ value;
            for (party, children) in children.iter().enumerate() {
                let child = children[keep][lane];
                let control = self.control[party][lane];
                self.node[party][lane] = (child ^ (*word & control)) & !LOW;
                self.control[party][lane] = spread(child ^ (control_word & control));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prg::{Prg, Purpose, Seed};

    fn roots(seed: u8, count: usize) -> [Vec<u128>; 2] {
        let seed = Seed::from_bytes([seed; 32]);
        [0, 1].map(|party| Prg::new(&seed, &[0; 32], Purpose::Root, 0, party).blocks(count))
    }

    /// 1{x < α} from both parties' shares.
    fn compare(bits: u32, alphas: &[u64], points: &[u64], seed: u8) -> Vec<u8> {
        let (roots, tree_key) = (roots(seed, alphas.len()), u128::from(seed));
        let words = generate(tree_key, bits, alphas, [&roots[0], &roots[1]]);
        assert_eq!(words.len(), alphas.len() * key_blocks(bits));
        let [left, right] = [0, 1].map(|party| evaluate(party, tree_key, bits, &words, &roots[party], points));
        left.iter().zip(&right).map(|(a, b)| a ^ b).collect()
    }

    #[test]
    fn all_points_of_small_domains() {
        for bits in [1, 3, 7, 8, 9] {
            let (alphas, points): (Vec<u64>, Vec<u64>) =
                (0..1 << bits).flat_map(|a| (0..1 << bits).map(move |x| (a, x))).unzip();
            let expected: Vec<u8> = alphas.iter().zip(&points).map(|(a, x)| u8::from(x < a)).collect();
            assert_eq!(compare(bits, &alphas, &points, bits as u8), expected, "{bits} bits");
        }
    }

    proptest! {
        #[test]
        fn random_and_neighbouring_points(bits in 1u32..64, seed: u8, values in prop::collection::vec((any::<u64>(), any::<u64>()), 1..150)) {
            let mask = (1 << bits) - 1;
            let mut alphas = Vec::new();
            let mut points = Vec::new();
            for (alpha, point) in values {
                for point in [point, alpha, alpha.wrapping_sub(1), alpha.wrapping_add(1), 0, mask] {
                    alphas.push(alpha & mask);
                    points.push(point & mask);
                }
            }
            let expected: Vec<u8> = alphas.iter().zip(&points).map(|(a, x)| u8::from(x < a)).collect();
            prop_assert_eq!(compare(bits, &alphas, &points, seed), expected);
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let seed = Seed::from_bytes([5; 32]);
        for (bits, count) in [(63, 1), (51, 31), (51, LANES), (19, 7), (7, 13), (1, 3)] {
            let (roots, tree_key) = (roots(5, count), 7 << 100 | u128::from(bits));
            let mask = (1_u64 << bits) - 1;
            let [alphas, points] = [2, 3].map(|index| {
                let words: Vec<u64> = Prg::new(&seed, &[0; 32], Purpose::Mask, 0, index).words(count);
                words.into_iter().map(|word| word & mask).collect::<Vec<u64>>()
            });
            let [mut portable, mut native] = [(); 2].map(|()| vec![0; count * key_blocks(bits)]);
            Generation::new(tree_key, bits, &alphas, [&roots[0], &roots[1]]).run(&mut portable);
            generate_lanes(tree_key, bits, &alphas, [&roots[0], &roots[1]], &mut native);
            assert!(portable == native, "{bits} bits, {count} keys");
            for (party, roots) in roots.iter().enumerate() {
                let [mut portable, mut other] = [(); 2].map(|()| vec![0; count]);
                let lanes = Lanes { tree_key, bits, words: &native, roots, points: &points };
                evaluate_portable(party, lanes, &mut portable);
                lanes.evaluate(party, &mut other);
                assert_eq!(portable, other, "{bits} bits, {count} keys");
            }
        }
    }

    /// Trees of one secret and one α differ with the tweak, and from batch to batch.
    #[test]
    fn no_two_batches_share_a_hash() {
        let roots = [1, 2].map(|root: u128| vec![root << 64; 2 * LANES]);
        let words = |tree_key| generate(tree_key, 51, &[1 << 40; 2 * LANES], [&roots[0], &roots[1]]);
        let (one, other) = (words(0), words(2));
        let (first, second) = one.split_at(one.len() / 2);
        for others in [second, &other[..first.len()]] {
            assert!(first.iter().zip(others).all(|(a, b)| a != b));
        }
        assert_eq!(one, words(0));
    }

    #[test]
    fn one_share_says_nothing() {
        let count = 1 << 14;
        let roots = roots(3, count);
        let alphas = vec![1 << 40; count];
        let words = generate(9, 51, &alphas, [&roots[0], &roots[1]]);
        for point in [0, (1 << 40) - 1, 1 << 40, 1 << 50] {
            for (party, roots) in roots.iter().enumerate() {
                let shares = evaluate(party, 9, 51, &words, roots, &vec![point; count]);
                let ones = shares.iter().map(|&bit| f64::from(bit)).sum::<f64>();
                // Five standard deviations of a fair coin.
                assert!((ones - count as f64 / 2.0).abs() < 5.0 * (count as f64 / 4.0).sqrt(), "{ones} of {count}");
            }
        }
    }
}
