//! Mutations of a corpus: the usual ones, deterministic in a seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 16] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Makes inputs of a corpus.
pub struct Mutator<'a> {
    rng: ChaCha8Rng,
    corpus: Vec<&'a [u8]>,
}

impl<'a> Mutator<'a> {
    pub fn new(seed: u64, corpus: Vec<&'a [u8]>) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), corpus }
    }

    /// An input of the corpus with a few changes.
    pub fn next(&mut self, most_bytes: usize) -> Vec<u8> {
        let mut input = self.seed().to_vec();
        for _ in 0..1 << self.rng.random_range(0..4) {
            self.change(&mut input);
            input.truncate(most_bytes);
        }
        input
    }

    fn seed(&mut self) -> &'a [u8] {
        let index = self.rng.random_range(0..self.corpus.len());
        self.corpus[index]
    }

    /// A place in `input` or its end. Headers stand at the beginning, so half of all places are near it.
    fn place(&mut self, input: &[u8]) -> usize {
        let end = if self.rng.random() { input.len() } else { input.len().min(96) };
        self.rng.random_range(0..=end)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.place(input);
        let kind = self.rng.random_range(0..10);
        match (kind, input.get_mut(at)) {
            (0, Some(byte)) => *byte ^= 1 << self.rng.random_range(0..8),
            (1, Some(byte)) => *byte = self.rng.random(),
            (2, Some(byte)) => *byte = byte.wrapping_add(if self.rng.random() { 1 } else { 255 }),
            (3, _) => self.number(input, at),
            (4, _) => self.variable_number(input, at),
            (5, _) => input.truncate(at),
            (6, _) => {
                let end = self.place(input).max(at);
                input.drain(at..end.min(at + 64));
            }
            (7, _) => self.repeat(input, at),
            (8, _) => self.splice(input, at),
            _ => {
                let byte = self.rng.random();
                input.insert(at, byte);
            }
        }
    }

    /// Writes a number at an edge in a fixed width over what is there.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let edge = EDGES[self.rng.random_range(0..EDGES.len())];
        let width = 1 << self.rng.random_range(0..4);
        let (little, big) = (edge.to_le_bytes(), edge.to_be_bytes());
        let bytes = if self.rng.random() { &little[..width] } else { &big[8 - width..] };
        input[at..].iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Puts a number at an edge in place of a byte, seven bits a byte as postcard has it, or in digits as JSON does.
    fn variable_number(&mut self, input: &mut Vec<u8>, at: usize) {
        let mut edge = EDGES[self.rng.random_range(0..EDGES.len())];
        let mut bytes = Vec::new();
        if input.get(at).is_some_and(u8::is_ascii_digit) {
            bytes = edge.to_string().into_bytes();
        } else {
            while edge >= 0x80 {
                bytes.push(edge as u8 | 0x80);
                edge >>= 7;
            }
            bytes.push(edge as u8);
        }
        let end = input.len().min(at + 1);
        input.splice(at..end, bytes);
    }

    /// Repeats a short run many times, so that what nests nests deeply.
    fn repeat(&mut self, input: &mut Vec<u8>, at: usize) {
        let end = input.len().min(at + self.rng.random_range(1..24));
        let times = 1 << self.rng.random_range(0..14);
        let run = input[at..end].repeat(times);
        input.splice(at..at, run);
    }

    /// Goes on with the rest of another input, or with some of it.
    fn splice(&mut self, input: &mut Vec<u8>, at: usize) {
        let other = self.seed();
        let from = self.place(other);
        let to = if self.rng.random() { other.len() } else { other.len().min(from + 32) };
        if self.rng.random() {
            input.truncate(at);
        }
        input.splice(at..at, other[from..to].iter().copied());
    }
}
