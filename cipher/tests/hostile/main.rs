//! Hostile bytes: mutations of what honest parties send.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

mod targets;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use targets::PARTIES;

/// Runs `target` on bytes that differ from `honest` in a few places, where messages are structured more often than elsewhere.
fn mutated(honest: &[u8], target: fn(&[u8]), count: u64) {
    target(honest);
    for seed in 0..count {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = honest.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let end = if rng.random_bool(0.7) { bytes.len().min(160) } else { bytes.len() };
            if end == 0 {
                break;
            }
            let at = rng.random_range(0..end);
            match rng.random_range(0..5) {
                0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
                1 => bytes[at] ^= 1 << rng.random_range(0..8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, rng.random()),
                _ => drop(bytes.remove(at)),
            }
        }
        target(&bytes);
    }
}

#[test]
fn hostile_programs() {
    mutated(&PARTIES.program, targets::program, 2000);
}

#[test]
fn hostile_keys() {
    mutated(&PARTIES.keys, targets::keys, 60);
}

#[test]
fn hostile_queries() {
    mutated(&PARTIES.query, targets::query, 150);
}

#[test]
fn hostile_answers() {
    mutated(&PARTIES.answer, targets::answer, 150);
}
