use proptest::prelude::*;

use super::*;
use crate::decompose::fill_uniform;

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_uniform(&mut values, seed);
    values
}

/// `rows × columns` of rank `rank`.
fn of_rank(rows: usize, columns: usize, rank: usize, seed: u64) -> Vec<f32> {
    let (u, v) = (random(rows * rank, seed), random(rank * columns, seed + 1));
    let at = |i: usize, j: usize| (0..rank).map(|p| u[i * rank + p] * v[p * columns + j]).sum();
    (0..rows * columns).map(|k| at(k / columns, k % columns)).collect()
}

fn numerical_rank(x: &[f32], rows: usize, columns: usize) -> usize {
    let s = singular_values(x, rows, columns).unwrap();
    s.iter().filter(|value| **value > 1e-4 * s[0]).count()
}

/// k×k convolution with zero padding, `channels × side²` to `out × side²`.
fn convolve(x: &[f32], channels: usize, side: usize, weights: &[f32], out: usize, k: usize) -> Vec<f32> {
    let mut y = vec![0.0; out * side * side];
    for o in 0..out {
        for (at, y) in y[o * side * side..][..side * side].iter_mut().enumerate() {
            let (row, column) = (at / side, at % side);
            for c in 0..channels {
                for (tap, weight) in weights[(o * channels + c) * k * k..][..k * k].iter().enumerate() {
                    let (r, s) = (row + tap / k, column + tap % k);
                    let half = k / 2;
                    if (half..side + half).contains(&r) && (half..side + half).contains(&s) {
                        *y += weight * x[(c * side + r - half) * side + s - half];
                    }
                }
            }
        }
    }
    y
}

#[test]
fn singular_values_of_known_matrices() {
    let s = singular_values(&[3.0, 0.0, 0.0, 0.0, 4.0, 0.0], 2, 3).unwrap();
    assert!((s[0] - 4.0).abs() < 1e-6 && (s[1] - 3.0).abs() < 1e-6, "{s:?}");
    assert!((energy_kept(&s, 1) - 0.64).abs() < 1e-6);
    assert_eq!(energy_kept(&s, 2), 1.0);
    assert_eq!(energy_kept(&[0.0, 0.0], 1), 1.0);
    assert_eq!((rank_for_energy(&s, 0.6), rank_for_energy(&s, 0.7), rank_for_energy(&s, 1.0)), (1, 2, 2));
}

#[test]
fn bad_input_is_refused() {
    assert!(matches!(singular_values(&[1.0; 5], 2, 3), Err(SpectrumError::Length { expected: 6, got: 5, .. })));
    assert_eq!(singular_values(&[1.0, f32::NAN], 1, 2), Err(SpectrumError::NonFinite { index: 1 }));
}

#[test]
fn entropy_runs_from_zero_to_log_n() {
    assert_eq!(svd_channel_entropy(&[5.0, 0.0, 0.0]), 0.0);
    assert_eq!(svd_channel_entropy(&[]), 0.0);
    assert!((svd_channel_entropy(&[2.0; 16]) - 4.0).abs() < 1e-9);
}

proptest! {
    /// Lemma 1.
    #[test]
    fn entropy_is_bounded(s in prop::collection::vec(0.01f32..100.0, 1..40)) {
        let entropy = svd_channel_entropy(&s);
        prop_assert!(entropy >= -1e-9 && entropy <= (s.len() as f64).log2() + 1e-9, "{entropy}");
    }

    /// Theorem 1 with the bound that holds without rounding.
    #[test]
    fn entropy_rank_keeps_the_energy_of_geometric_spectra(n in 1usize..513, b in 0.01f64..0.9999, a in 0.1f64..10.0) {
        let s: Vec<f32> = (0..n).map(|j| (a * b.powi(j as i32)) as f32).collect();
        let rank = (svd_channel_entropy(&s).exp2() - 1e-6).ceil() as usize;
        let kept = energy_kept(&s, rank);
        prop_assert!(kept >= 0.969, "n {n} b {b}: rank {rank} keeps {kept}");
    }

    /// Theorem 2 as a statement on ranks.
    #[test]
    fn a_1x1_convolution_keeps_the_rank(rank in 1usize..5, out in 1usize..12, seed in 0u64..1000) {
        let x = of_rank(8, 36, rank, seed);
        let y = convolve(&x, 8, 6, &random(out * 8, seed + 7), out, 1);
        prop_assert!(numerical_rank(&y, out, 36) <= rank);
    }

    /// Theorem 3 as a statement on ranks.
    #[test]
    fn a_kxk_convolution_multiplies_the_rank_by_at_most_k_squared(rank in 1usize..3, seed in 0u64..1000) {
        let x = of_rank(6, 100, rank, seed);
        let y = convolve(&x, 6, 10, &random(24 * 6 * 9, seed + 7), 24, 3);
        let got = numerical_rank(&y, 24, 100);
        prop_assert!(got <= 9 * rank, "{got}");
        // The bound is no empty one: the rank does grow.
        prop_assert!(got > rank, "{got}");
    }

    /// Theorem 4 as a statement on ranks: scale and shift of each channel.
    #[test]
    fn batch_normalisation_adds_at_most_one(rank in 1usize..5, seed in 0u64..1000) {
        let (channels, pixels) = (10, 40);
        let mut x = of_rank(channels, pixels, rank, seed);
        let (scale, shift) = (random(channels, seed + 3), random(channels, seed + 4));
        for (j, row) in x.chunks_exact_mut(pixels).enumerate() {
            row.iter_mut().for_each(|value| *value = *value * scale[j] + shift[j]);
        }
        prop_assert!(numerical_rank(&x, channels, pixels) <= rank + 1);
    }

    /// Theorem 5 as a statement on ranks: 2×2 average pooling.
    #[test]
    fn average_pooling_keeps_the_rank(rank in 1usize..5, seed in 0u64..1000) {
        let (channels, side) = (8, 8);
        let x = of_rank(channels, side * side, rank, seed);
        let mut y = Vec::new();
        for channel in x.chunks_exact(side * side) {
            for at in 0..side * side / 4 {
                let corner = at / (side / 2) * 2 * side + at % (side / 2) * 2;
                y.push([0, 1, side, side + 1].iter().map(|step| channel[corner + step]).sum::<f32>() / 4.0);
            }
        }
        prop_assert!(numerical_rank(&y, channels, side * side / 4) <= rank);
    }
}
