use proptest::prelude::*;

use super::*;
use crate::prg::{Prg, Seed, ServerSeed};
use crate::program::Server;

fn seeds(seed: u8) -> [ServerSeed; 2] {
    [Server::First, Server::Second].map(|server| {
        let seed = Seed::from_bytes([seed.wrapping_mul(2) ^ server as u8; 32]);
        ServerSeed { session: [0; 16], model: [0; 32], server, seed }
    })
}

/// What is opened, exchange by exchange, and 1{x < α}.
fn compared(bits: u32, alphas: &[u64], points: &[u64], seed: u8) -> (Vec<Vec<u8>>, Vec<bool>) {
    let seeds = seeds(seed);
    let sources = [0, 1].map(|server: usize| Source { seed: &seeds[server], query: 1, op: 2 });
    let layout = Layout::new(bits);
    let dealt = deal(&layout, sources, alphas);
    assert_eq!(dealt.len(), layout.dealt_planes() * alphas.len().div_ceil(8));
    let dealt = [None, Some(dealt.as_slice())];
    let parties =
        [0, 1].map(|party: usize| TableShare::expand(layout.clone(), sources[party], dealt[party], alphas.len()));
    let mut runs = parties.each_ref().map(|party| party.look_up(points));
    let mut exchanges = Vec::new();
    let together = |[a, b]: [Vec<u8>; 2]| a.iter().zip(b).map(|(a, b)| a ^ b).collect::<Vec<u8>>();
    while parties[0].result(&runs[0]).is_none() {
        let opened = together([0, 1].map(|party: usize| parties[party].opening(&runs[party])));
        parties.iter().zip(&mut runs).for_each(|(party, run)| party.join(run, &opened));
        exchanges.push(opened);
    }
    assert_eq!(exchanges.len(), layout.levels());
    assert_eq!(exchanges.iter().map(Vec::len).sum::<usize>(), layout.opened_planes() * alphas.len().div_ceil(8));
    let result = together([0, 1].map(|party: usize| parties[party].result(&runs[party]).unwrap()));
    (exchanges, (0..alphas.len()).map(|index| result[index / 8] >> (index % 8) & 1 == 1).collect())
}

#[test]
fn all_points_of_small_domains() {
    for bits in 1..=9 {
        let (alphas, points): (Vec<u64>, Vec<u64>) =
            (0..1 << bits).flat_map(|a| (0..1 << bits).map(move |x| (a, x))).unzip();
        let expected: Vec<bool> = alphas.iter().zip(&points).map(|(a, x)| x < a).collect();
        assert_eq!(compared(bits, &alphas, &points, bits as u8).1, expected, "{bits} bits");
    }
}

proptest! {
    #[test]
    fn random_and_neighbouring_points(bits in 1_u32..64, seed: u8, values in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u32..63), 1..60)) {
        let mask = (1 << bits) - 1;
        let (mut alphas, mut points) = (Vec::new(), Vec::new());
        for (alpha, point, bit) in values {
            // Equal above a bit, so that every block decides.
            let near = alpha ^ (point >> bit);
            for point in [point, near, alpha, alpha.wrapping_sub(1), alpha.wrapping_add(1), alpha ^ 1 << bit, 0, mask] {
                alphas.push(alpha & mask);
                points.push(point & mask);
            }
        }
        let expected: Vec<bool> = alphas.iter().zip(&points).map(|(a, x)| x < a).collect();
        prop_assert_eq!(compared(bits, &alphas, &points, seed).1, expected);
    }
}

#[test]
fn layouts_are_as_small_as_is_said() {
    // Bits compared: exchanges, bits dealt, bits opened by each server.
    let expected =
        [(63, 2, 328, 33), (47, 2, 204, 33), (43, 2, 181, 31), (27, 2, 89, 18), (23, 2, 96, 11), (16, 1, 75, 6)];
    for (bits, levels, dealt, opened) in expected {
        let layout = Layout::new(bits);
        assert_eq!((layout.levels(), layout.dealt_planes(), layout.opened_planes()), (levels, dealt, opened), "{bits}");
    }
    for bits in 1..64 {
        let layout = Layout::new(bits);
        assert_eq!(layout.blocks.iter().sum::<u32>(), bits);
        assert!(layout.levels() <= 2);
    }
}

/// Largest deviation of the share of ones of a plane from one half, in standard deviations.
fn deviation(bytes: &[u8], count: usize) -> f64 {
    let planes = bytes.chunks_exact(count / 8);
    let one = |plane: &[u8]| {
        let ones: u32 = plane.iter().map(|byte| byte.count_ones()).sum();
        (f64::from(ones) - count as f64 / 2.0).abs() / (count as f64 / 4.0).sqrt()
    };
    planes.map(one).fold(0.0, f64::max)
}

#[test]
fn what_is_dealt_and_opened_is_uniform_whatever_is_compared() {
    // Each plane by itself, within 5 standard deviations: of some 2,000 planes one beyond it has a probability of 10^-3.
    let count = 1 << 14;
    let random = |index| -> Vec<u64> {
        let stream = Prg::new(&Seed::from_bytes([9; 32]), &[0; 32], Purpose::Mask, 0, index);
        { stream }.words::<u64>(count).into_iter().map(|word| word >> 21).collect()
    };
    for (alphas, points) in [(vec![0; count], vec![0; count]), (vec![5; count], random(1)), (random(2), random(2))] {
        let seeds = seeds(3);
        let sources = [0, 1].map(|server: usize| Source { seed: &seeds[server], query: 1, op: 2 });
        let dealt = deal(&Layout::new(43), sources, &alphas);
        assert!(deviation(&dealt, count) < 5.0, "{}", deviation(&dealt, count));
        for opened in compared(43, &alphas, &points, 3).0 {
            assert!(deviation(&opened, count) < 5.0, "{}", deviation(&opened, count));
        }
    }
    // A table without its share fails.
    let zero = vec![0; count / 8];
    assert!(deviation(&zero, count) > 5.0);
}

#[test]
fn no_two_queries_open_the_same() {
    let alphas: Vec<u64> = (0..4096).collect();
    let [once, again] = [1, 2].map(|seed| compared(43, &alphas, &alphas, seed).0.concat());
    let equal = once.iter().zip(&again).filter(|(a, b)| a == b).count();
    // Random bytes agree once in 256 places.
    assert!(equal < once.len() / 200, "{equal} of {}", once.len());
}
