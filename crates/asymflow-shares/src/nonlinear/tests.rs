use asymflow_zoo::{
    network::Shape,
    ops::{Decision, SharedRelu},
};
use proptest::prelude::*;

use super::*;
use crate::groups::Grouping;
use crate::prg::{Prg, Purpose, Seed, ServerSeed};
use crate::program::{Method, Server};
use crate::ring::{Z48, add, sub};
use crate::source::{pack_bits, total};

/// Shares of `values`, and seeds of both servers.
fn shared<R: Ring>(values: &[R], seed: u8) -> ([Vec<R>; 2], [ServerSeed; 2]) {
    let masking = Seed::from_bytes([seed ^ 0x55; 32]);
    let first = Prg::new(&masking, &[0; 32], Purpose::InputShare, 0, 0).words::<R>(values.len());
    let seeds = [Server::First, Server::Second].map(|server| {
        let seed = Seed::from_bytes([(1 + server as u8) ^ seed.rotate_left(3); 32]);
        ServerSeed { session: [0; 16], model: [0; 32], server, seed }
    });
    ([first.clone(), sub(values, &first)], seeds)
}

fn halves<R: Ring>(deal: OpDeal<R>) -> [OpDeal<R>; 2] {
    [deal.first(), deal]
}

/// The masked decisions about what was opened.
fn decided<R: Ring>(shares: [&DecisionShare; 2], about: &[R]) -> Vec<u8> {
    let mut parts = shares.map(|share| share.begin(about));
    loop {
        let [(left, gates), (right, others)] = parts;
        assert_eq!(left.len(), right.len());
        let opened: Vec<u8> = left.iter().zip(&right).map(|(a, b)| a ^ b).collect();
        let (Some(gates), Some(others)) = (gates, others) else { return opened };
        parts = [shares[0].go_on(gates, &opened), shares[1].go_on(others, &opened)];
    }
}

/// Decisions and outputs of a rectification between both servers.
fn relu<R: Ring>(values: &[R], shift: u32, compare: Compare, groups: Option<&Groups>, seed: u8) -> (Vec<u8>, Vec<R>) {
    let (shares, seeds) = shared(values, seed);
    let sources = [0, 1].map(|server: usize| Source { seed: &seeds[server], query: 3, op: 4 });
    let len = values.len();
    let deal = deal_relu::<R>(sources, &total(sources, len), shift, compare, groups, 1);
    let decisions = deciding(values, groups, 1).len();
    let [first, second] = halves(deal);
    let first = ReluShare::expand(sources[0], first, true, (len, shift), (decisions, compare));
    let second = ReluShare::expand(sources[1], second, false, (len, shift), (decisions, compare));
    let opened = add(&add(&shares[0], &first.mask), &add(&shares[1], &second.mask));
    let about = deciding(&opened, groups, 1);
    let masked = decided([&first.decisions, &second.decisions], &about);
    let output = add(
        &first.select(true, shift, &opened, &masked, groups),
        &second.select(false, shift, &opened, &masked, groups),
    );
    // u, which only the dealer knows, takes the mask off the decisions.
    let flips = add(&first.words[..decisions], &second.words[..decisions]);
    let masked = unpack_bits(&masked, decisions);
    let decisions = masked.iter().zip(flips).map(|(a, b)| a ^ b.to_u64() as u8).collect();
    (decisions, output)
}

fn edges<R: Ring>() -> Vec<R> {
    let mut values = vec![0, (1 << (R::BITS - 2)) - 1];
    for power in 0..R::BITS - 2 {
        values.extend([-1, 0, 1].map(|near| (1_i64 << power) + near));
    }
    // Values reach 2^(ℓ−2), exclusive.
    values.retain(|v| *v < 1 << (R::BITS - 2));
    values.iter().flat_map(|&v| [R::from_i64(v), R::from_i64(-v)]).collect()
}

const METHODS: [Method; 2] = [Method::Keys, Method::Tables];

const fn exact<R: Ring>(shift: u32, method: Method) -> Compare {
    Compare { dropped: shift, width: R::BITS - shift, method }
}

/// Without truncation a rectification is max(x, 0), bit by bit.
fn exact_on_edges<R: Ring>() {
    let values = edges::<R>();
    for (seed, method) in (0..20).flat_map(|seed| METHODS.map(|method| (seed, method))) {
        let (decisions, output) = relu(&values, 0, exact::<R>(0, method), None, seed);
        for ((x, bit), y) in values.iter().zip(decisions).zip(output) {
            assert_eq!(bit, u8::from(x.to_i64() >= 0), "{x:?}");
            assert_eq!(y.to_i64(), x.to_i64().max(0), "{x:?}");
        }
    }
}

#[test]
fn decisions_are_exact_on_edges() {
    exact_on_edges::<u32>();
    exact_on_edges::<u64>();
    exact_on_edges::<Z48>();
}

#[test]
fn decisions_are_exact_in_the_whole_ring() {
    let mut values: Vec<u64> = edges();
    for near in [-2, -1, 0, 1] {
        values.extend([1_i64 << 62, -(1 << 62), i64::MAX, i64::MIN].map(|v| u64::from_i64(v.wrapping_add(near))));
    }
    values.extend(Prg::new(&Seed::from_bytes([6; 32]), &[0; 32], Purpose::Mask, 0, 0).words::<u64>(1000));
    for method in METHODS {
        let (decisions, _) = relu(&values, 0, exact::<u64>(0, method), None, 3);
        assert!(values.iter().zip(decisions).all(|(x, bit)| bit == u8::from(x.to_i64() >= 0)));
    }
}

/// `y` is ⌊x / 2^shift⌋ or one more.
fn truncated(x: i64, shift: u32, y: i64) -> bool {
    let floor = x >> shift;
    y == floor || (y == floor + 1 && x & ((1 << shift) - 1) != 0)
}

fn truncates<R: Ring>(values: &[R], shift: u32, seed: u8) {
    for method in METHODS {
        let (_, output) = relu(values, shift, exact::<R>(shift, method), None, seed);
        for (x, y) in values.iter().zip(output) {
            let (x, y) = (x.to_i64(), y.to_i64());
            assert!(if x >> shift >= 0 { truncated(x, shift, y) } else { y == 0 }, "{x} >> {shift} = {y}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rectification_truncates(
        wide in prop::collection::vec(-(1_i64 << 62) + 1..1 << 62, 1..80),
        middle in prop::collection::vec(-(1_i64 << 46) + 1..1 << 46, 1..80),
        narrow in prop::collection::vec(-(1_i64 << 30) + 1..1 << 30, 1..80),
        shift in 0u32..25, seed: u8,
    ) {
        truncates(&wide.iter().map(|&v| u64::from_i64(v)).collect::<Vec<_>>(), shift, seed);
        truncates(&middle.iter().map(|&v| Z48::from_i64(v)).collect::<Vec<_>>(), shift, seed);
        truncates(&narrow.iter().map(|&v| u32::from_i64(v)).collect::<Vec<_>>(), shift, seed);
        truncates(&edges::<u64>(), shift, seed);
        truncates(&edges::<Z48>(), shift, seed);
    }

    #[test]
    fn squares_are_of_truncated_values(
        values in prop::collection::vec(-(1_i64 << 62) + 1..1 << 62, 1..80), small in prop::collection::vec(-70000_i64..70000, 1..80),
        shift in 0u32..25, seed: u8,
    ) {
        let values: Vec<u64> = values.into_iter().chain(small).map(u64::from_i64).collect();
        let (shares, seeds) = shared(&values, seed);
        let sources = [0, 1].map(|server: usize| Source { seed: &seeds[server], query: 0, op: 1 });
        let [first, second] = halves(deal_square::<u64>(sources, &total(sources, values.len()), shift));
        let first = SquareShare::expand(sources[0], first, true, values.len(), shift);
        let second = SquareShare::expand(sources[1], second, false, values.len(), shift);
        let opened = add(&add(&shares[0], &first.mask), &add(&shares[1], &second.mask));
        let output = add(&first.square(true, shift, &opened), &second.square(false, shift, &opened));
        for (x, y) in values.iter().zip(output) {
            let square = |t: i64| u64::from_i64(t).times(u64::from_i64(t));
            let floor = x.to_i64() >> shift;
            prop_assert!(y == square(floor) || (shift > 0 && y == square(floor + 1)), "{x} {y}");
        }
    }

    #[test]
    fn a_window_decides_what_fits_it(width in 4u32..40, shift in 0u32..16, seed: u8) {
        let limit = 1_i64 << (width - 1 + shift);
        let values: Vec<i64> = edges::<u64>().into_iter().map(u64::to_i64)
            .filter(|v| v.abs() < limit - (1 << shift)).collect();
        for method in METHODS {
            let compare = Compare { dropped: shift, width, method };
            let (decisions, _) = relu(&values.iter().map(|&v| u64::from_i64(v)).collect::<Vec<_>>(), shift, compare, None, seed);
            for (x, bit) in values.iter().zip(decisions) {
                // What truncation may round to zero may go either way.
                if !(-(1 << shift)..0).contains(x) {
                    prop_assert_eq!(bit, u8::from(*x >= 0), "{}", x);
                }
            }
        }
    }

    #[test]
    fn bits_come_back(bits in prop::collection::vec(0u8..2, 0..70)) {
        prop_assert_eq!(unpack_bits(&pack_bits(&bits), bits.len()), bits);
    }
}

#[test]
fn beyond_a_window_decisions_are_wrong() {
    let value = u64::from_i64(1 << 30);
    for method in METHODS {
        let (decisions, _) = relu(&[value; 100], 12, Compare { dropped: 12, width: 19, method }, None, 1);
        assert_eq!(
            decisions,
            vec![0; 100],
            "2^30 is the least value that a window of 31 bits takes for a negative one"
        );
    }
}

#[test]
fn truncation_rounds_without_bias() {
    let count = 1 << 14;
    let x = (5 << 8) + 64;
    let (_, output) = relu(&vec![u64::from_i64(x); count], 8, exact::<u64>(8, Method::Tables), None, 2);
    let mean = output.iter().map(|y| y.to_i64() as f64).sum::<f64>() / count as f64;
    // Bernoulli of probability 64/256: five standard deviations.
    assert!((mean - 5.25).abs() < 5.0 * (0.25 * 0.75 / count as f64).sqrt(), "{mean}");
}

#[test]
fn a_group_follows_its_decision() {
    let shape = Shape::new(4, 6, 7);
    let values: Vec<i64> = Prg::new(&Seed::from_bytes([8; 32]), &[0; 32], Purpose::Mask, 0, 0)
        .words::<u64>(shape.len())
        .into_iter()
        .map(|v| v.to_i64() >> 24)
        .collect();
    let words: Vec<u64> = values.iter().map(|&v| u64::from_i64(v)).collect();
    let decisions = [Decision::Corner, Decision::Centre, Decision::Mean, Decision::Learned];
    for (decision, method) in decisions.into_iter().flat_map(|decision| METHODS.map(|method| (decision, method))) {
        let learned = if decision == Decision::Learned { 12 } else { 0 };
        let weights = (0..learned).map(|i| i * 37 % 256 - 100).collect();
        let blocks = asymflow_zoo::ops::Grouping::Blocks { channels: 2, rows: 3, columns: 2 };
        let layer = SharedRelu { name: String::new(), channels: 4, grouping: blocks, decision };
        let grouping = Grouping::Shared { layer, weights };
        let groups = grouping.groups(shape).unwrap();
        let compare = Compare { dropped: 12, width: 52, method };
        let (decisions, output) = relu(&words, 12, compare, Some(&groups), 5);
        let mut sums = vec![0; groups.count];
        for ((value, group), weight) in values.iter().zip(&groups.of).zip(&groups.weight) {
            sums[*group as usize] += value * weight;
        }
        assert_eq!(decisions, sums.iter().map(|&s| u8::from(s >= 0)).collect::<Vec<u8>>());
        for ((value, group), y) in values.iter().zip(&groups.of).zip(output) {
            let kept = decisions[*group as usize] == 1;
            assert!(if kept { truncated(*value, 12, y.to_i64()) } else { y == 0 });
        }
    }
}

#[test]
fn local_truncation_is_off_by_one_at_most() {
    let values: Vec<u64> = (0..1 << 14).map(|i: i64| u64::from_i64((i - 8000) * 123_457)).collect();
    let (shares, _) = shared(&values, 1);
    let output = add(&crate::party::truncate(true, 12, &shares[0]), &crate::party::truncate(false, 12, &shares[1]));
    for (x, y) in values.iter().zip(output) {
        assert!((y.to_i64() - (x.to_i64() >> 12)).abs() <= 1, "{x} {y}");
    }
}

#[test]
fn local_truncation_fails_as_often_as_it_says() {
    for sign in [1, -1] {
        // |x| = 2^28 of 2^32: one mask in sixteen.
        let count = 1 << 14;
        let values = vec![u32::from_i64(sign << 28); count];
        let (shares, _) = shared(&values, 7);
        let output = add(&crate::party::truncate(true, 8, &shares[0]), &crate::party::truncate(false, 8, &shares[1]));
        let wrong = output.iter().filter(|y| (y.to_i64() - (sign << 20)).abs() > 1).count() as f64 / count as f64;
        let probability = 2_f64.powi(28 - 32);
        // Five standard deviations.
        assert!((wrong - probability).abs() < 5.0 * (probability / count as f64).sqrt(), "{wrong}");
    }
}
