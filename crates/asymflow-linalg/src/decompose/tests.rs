use faer::dyn_stack::{MemBuffer, MemStack};
use faer::{Mat, Par};
use proptest::prelude::*;

use super::*;

/// Decomposes with fresh memory.
fn run(
    decomposer: &dyn Decomposer,
    x: &[f32],
    shape: BatchShape,
    rank: usize,
    par: Par,
) -> Result<(LowRank, Vec<f32>), DecomposeError> {
    let mut low_rank = LowRank::default();
    let mut residual = vec![f32::NAN; x.len()];
    let mut memory = MemBuffer::new(decomposer.scratch(shape, rank, par));
    decomposer.decompose(x, shape, rank, &mut low_rank, &mut residual, par, MemStack::new(&mut memory))?;
    Ok((low_rank, residual))
}

fn all() -> Vec<Box<dyn Decomposer>> {
    let alternating = |initialisation| Alternating { initialisation, ..Alternating::default() };
    let mut all: Vec<Box<dyn Decomposer>> = NAMES.iter().map(|name| by_name(name).unwrap()).collect();
    all.push(Box::new(alternating(Initialisation::MeanStart)));
    all.push(Box::new(alternating(Initialisation::RandomStart { seed: 3 })));
    all
}

fn noise(shape: BatchShape, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; shape.len()];
    fill_uniform(&mut x, seed);
    x
}

/// Samples whose singular values fall about as `decay^p`.
fn decaying(shape: BatchShape, decay: f32, seed: u64) -> Vec<f32> {
    let BatchShape { samples, channels, pixels } = shape;
    let mut x = vec![0.0; shape.len()];
    for (s, sample) in x.chunks_exact_mut(channels * pixels).enumerate() {
        for p in 0..channels.min(pixels) {
            let mut factors = vec![0.0; channels + pixels];
            fill_uniform(&mut factors, seed + (s * samples.max(97) + p) as u64);
            let (u, v) = factors.split_at(channels);
            for (row, u) in sample.chunks_exact_mut(pixels).zip(u) {
                row.iter_mut().zip(v).for_each(|(value, v)| *value += decay.powi(p as i32) * u * v);
            }
        }
    }
    x
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// Largest |A·V + residual − x|, computed in f64, relative to the largest |x|.
fn reconstruction_error(x: &[f32], shape: BatchShape, low_rank: &LowRank, residual: &[f32]) -> f64 {
    let BatchShape { samples, channels, pixels } = shape;
    let rank = low_rank.rank;
    assert_eq!(low_rank.principal.len(), samples * rank * pixels);
    assert_eq!(low_rank.coefficients.len(), if low_rank.shared { 1 } else { samples } * channels * rank);
    let largest = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let mut worst = 0.0f64;
    for s in 0..samples {
        let a = if low_rank.shared { 0 } else { s * channels * rank };
        for j in 0..channels {
            for i in 0..pixels {
                let at = (s * channels + j) * pixels + i;
                let product = |p: usize| {
                    f64::from(low_rank.coefficients[a + j * rank + p])
                        * f64::from(low_rank.principal[(s * rank + p) * pixels + i])
                };
                let sum = f64::from(residual[at]) + (0..rank).map(product).sum::<f64>();
                worst = worst.max((sum - f64::from(x[at])).abs());
            }
        }
    }
    if largest > 0.0 { worst / largest } else { worst }
}

/// Smallest residual energy of any rank-`rank` parts, one for each sample, from an SVD in f64.
fn optimal_energy(x: &[f32], shape: BatchShape, rank: usize) -> f64 {
    let sample = |values: &[f32]| {
        let m = Mat::from_fn(shape.channels, shape.pixels, |j, i| f64::from(values[j * shape.pixels + i]));
        m.singular_values().unwrap().iter().skip(rank).map(|s| s * s).sum::<f64>()
    };
    x.chunks_exact(shape.channels * shape.pixels).map(sample).sum()
}

/// The same for one basis shared by the batch: the SVD of the samples side by side.
fn optimal_shared_energy(x: &[f32], shape: BatchShape, rank: usize) -> f64 {
    let BatchShape { samples, channels, pixels } = shape;
    let m = Mat::from_fn(channels, samples * pixels, |j, i| {
        f64::from(x[(i / pixels * channels + j) * pixels + i % pixels])
    });
    m.singular_values().unwrap().iter().skip(rank).map(|s| s * s).sum()
}

const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (3, 4, 16), (2, 16, 4), (5, 8, 8), (1, 1, 9), (2, 9, 1), (4, 40, 100), (1, 100, 40), (3, 33, 17)];

#[test]
fn every_decomposer_splits_every_shape() {
    for decomposer in all() {
        for (samples, channels, pixels) in SHAPES {
            let shape = BatchShape { samples, channels, pixels };
            let x = noise(shape, 7);
            for rank in 1..=channels.min(pixels) {
                for par in [Par::Seq, Par::rayon(2), Par::rayon(3)] {
                    let (low_rank, residual) = run(&*decomposer, &x, shape, rank, par).unwrap();
                    assert_eq!((low_rank.rank, low_rank.shared), (rank, decomposer.shares_basis()));
                    let error = reconstruction_error(&x, shape, &low_rank, &residual);
                    assert!(error < 1e-5, "{decomposer:?} {shape:?} rank {rank}: {error}");
                }
            }
        }
    }
}

/// A lone sample large enough that its products are shared out.
#[test]
fn a_large_lone_sample_is_split() {
    let shape = BatchShape { samples: 1, channels: 24, pixels: 12_000 };
    let x = decaying(shape, 0.5, 2);
    for decomposer in all() {
        let (low_rank, residual) = run(&*decomposer, &x, shape, 4, Par::rayon(2)).unwrap();
        assert!(reconstruction_error(&x, shape, &low_rank, &residual) < 1e-5, "{decomposer:?}");
        let share = (energy(&residual) / energy(&x)).sqrt();
        assert!(share < 0.15, "{decomposer:?}: {share}");
    }
}

/// Bounds on ‖residual‖ / smallest possible ‖residual‖, on noise (the hardest spectrum) and on falling spectra.
#[test]
fn residuals_are_near_the_optimum() {
    let bounds =
        [("exact-svd", 1.0001), ("gram", 1.02), ("random-range", 1.05), ("alternating", 1.35), ("per-sample", 1.3)];
    for (samples, channels, pixels) in [(3, 64, 256), (2, 128, 16), (2, 48, 48), (2, 16, 400)] {
        let shape = BatchShape { samples, channels, pixels };
        for (decay, x) in [(1.0, noise(shape, 5)), (0.9, decaying(shape, 0.9, 6)), (0.6, decaying(shape, 0.6, 7))] {
            for rank in [1, 2, 4, 8] {
                let optimal = optimal_energy(&x, shape, rank);
                for (name, bound) in bounds {
                    let (_, residual) = run(&*by_name(name).unwrap(), &x, shape, rank, Par::Seq).unwrap();
                    let ratio = (energy(&residual) / optimal).sqrt();
                    assert!(ratio < bound && ratio > 0.9999, "{name} {shape:?} decay {decay} rank {rank}: {ratio}");
                }
                let optimal = optimal_shared_energy(&x, shape, rank);
                let (_, residual) = run(&SharedBasis::default(), &x, shape, rank, Par::Seq).unwrap();
                let ratio = (energy(&residual) / optimal).sqrt();
                assert!(ratio < 1.01 && ratio > 0.9999, "shared {shape:?} decay {decay} rank {rank}: {ratio}");
            }
        }
    }
}

#[test]
fn an_exactly_low_rank_batch_leaves_no_residual() {
    let shape = BatchShape { samples: 3, channels: 40, pixels: 90 };
    let mut x = decaying(shape, 0.5, 11);
    for (s, sample) in x.chunks_exact_mut(40 * 90).enumerate() {
        let mut factors = vec![0.0; 3 * (40 + 90)];
        fill_uniform(&mut factors, s as u64);
        let (u, v) = factors.split_at(3 * 40);
        for (at, value) in sample.iter_mut().enumerate() {
            *value = (0..3).map(|p| u[at / 90 * 3 + p] * v[p * 90 + at % 90]).sum();
        }
    }
    for name in ["gram", "random-range", "exact-svd", "per-sample"] {
        for rank in [3, 5] {
            let (_, residual) = run(&*by_name(name).unwrap(), &x, shape, rank, Par::Seq).unwrap();
            let share = (energy(&residual) / energy(&x)).sqrt();
            assert!(share < 1e-4, "{name} rank {rank}: {share}");
        }
    }
}

#[test]
fn the_orthonormal_factor_is_orthonormal() {
    let shape = BatchShape { samples: 2, channels: 64, pixels: 100 };
    for decay in [1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0] {
        let x = decaying(shape, decay, 3);
        for name in ["gram", "shared-basis", "random-range", "per-sample"] {
            let (low_rank, _) = run(&*by_name(name).unwrap(), &x, shape, 8, Par::Seq).unwrap();
            for a in low_rank.coefficients.chunks_exact(64 * 8) {
                for (p, q) in (0..8).flat_map(|p| (0..=p).map(move |q| (p, q))) {
                    let product: f32 = a.chunks_exact(8).map(|row| row[p] * row[q]).sum();
                    let expected = if p == q { 1.0 } else { 0.0 };
                    assert!((product - expected).abs() < 1e-3, "{name} decay {decay} {p} {q}: {product}");
                }
            }
        }
    }
}

#[test]
fn zeros_and_extreme_scales_are_split() {
    let shape = BatchShape { samples: 2, channels: 40, pixels: 60 };
    for scale in [0.0, 1e-38, 1e-30, 1e30, 1e37] {
        let x: Vec<f32> = decaying(shape, 0.7, 1).iter().map(|value| value * scale).collect();
        for decomposer in all() {
            let (low_rank, residual) = run(&*decomposer, &x, shape, 6, Par::Seq).unwrap();
            let error = reconstruction_error(&x, shape, &low_rank, &residual);
            assert!(error < 1e-5, "{decomposer:?} scale {scale}: {error}");
            let share = (energy(&residual) / energy(&x).max(f64::MIN_POSITIVE)).sqrt();
            assert!(share < if low_rank.shared { 0.9 } else { 0.3 }, "{decomposer:?} scale {scale}: {share}");
        }
    }
}

#[test]
fn dead_channels_do_not_waste_components() {
    let shape = BatchShape { samples: 1, channels: 8, pixels: 30 };
    let mut x = noise(shape, 2);
    x[..4 * 30].fill(0.0);
    for decomposer in all() {
        let (_, residual) = run(&*decomposer, &x, shape, 4, Par::Seq).unwrap();
        let share = energy(&residual) / energy(&x);
        assert!(share < 0.05, "{decomposer:?}: {share}");
    }
}

#[test]
fn results_depend_on_the_sample_alone() {
    let shape = BatchShape { samples: 5, channels: 24, pixels: 50 };
    let x = noise(shape, 9);
    for decomposer in all().iter().filter(|decomposer| !decomposer.shares_basis()) {
        let (whole, _) = run(&**decomposer, &x, shape, 4, Par::rayon(2)).unwrap();
        let alone = BatchShape { samples: 1, ..shape };
        for (s, sample) in x.chunks_exact(24 * 50).enumerate() {
            let (one, _) = run(&**decomposer, sample, alone, 4, Par::Seq).unwrap();
            let same = whole.coefficients[s * 24 * 4..][..24 * 4].iter().zip(&one.coefficients);
            assert!(same.clone().all(|(a, b)| (a - b).abs() < 1e-5), "{decomposer:?} sample {s}");
        }
    }
}

#[test]
fn energy_stop_uses_only_the_components_it_needs() {
    let shape = BatchShape { samples: 3, channels: 20, pixels: 64 };
    let x = decaying(shape, 0.6, 4);
    let mut last = 0;
    for stop in [0.5, 0.1, 0.01, 0.0] {
        let decomposer = Alternating { energy_stop: Some(stop), ..Alternating::default() };
        let (low_rank, residual) = run(&decomposer, &x, shape, 12, Par::rayon(2)).unwrap();
        assert!(reconstruction_error(&x, shape, &low_rank, &residual) < 1e-5);
        let share = energy(&residual) / energy(&x);
        assert!(low_rank.rank == 12 || share <= f64::from(stop), "{stop}: rank {} leaves {share}", low_rank.rank);
        assert!(low_rank.rank > last, "{stop}: {}", low_rank.rank);
        // The same components as without a stop, and no fewer would have done.
        let plain = Alternating::default();
        let (_, longer) = run(&plain, &x, shape, low_rank.rank, Par::Seq).unwrap();
        assert!((energy(&longer) / energy(&x) - share).abs() < 1e-5);
        if low_rank.rank > 1 {
            let (_, shorter) = run(&plain, &x, shape, low_rank.rank - 1, Par::Seq).unwrap();
            assert!(energy(&shorter) / energy(&x) > f64::from(stop));
        }
        last = low_rank.rank;
    }
    assert_eq!(last, 12);
}

#[test]
fn more_iterations_and_power_iterations_help() {
    let shape = BatchShape { samples: 2, channels: 32, pixels: 200 };
    let x = decaying(shape, 0.95, 8);
    let share = |decomposer: &dyn Decomposer| energy(&run(decomposer, &x, shape, 4, Par::Seq).unwrap().1);
    assert!(share(&Alternating { iterations: 8, ..Alternating::default() }) < share(&Alternating::default()));
    let plain = RandomRange { oversample: 2, power_iterations: 0, seed: 1 };
    assert!(share(&RandomRange { power_iterations: 3, ..plain }) < share(&plain));
    let plain = Gram { oversample: 0, steps: 0 };
    assert!(share(&Gram { steps: 3, ..plain }) < share(&plain));
}

#[test]
fn memory_is_reused_between_shapes() {
    let decomposer = by_name(DEFAULT).unwrap();
    let big = BatchShape { samples: 4, channels: 40, pixels: 64 };
    let small = BatchShape { samples: 2, channels: 20, pixels: 30 };
    let mut low_rank = LowRank::default();
    let mut memory = MemBuffer::new(decomposer.scratch(big, 8, Par::Seq));
    for shape in [big, small, big] {
        let x = noise(shape, 1);
        let mut residual = vec![0.0; x.len()];
        let stack = MemStack::new(&mut memory);
        decomposer.decompose(&x, shape, 8, &mut low_rank, &mut residual, Par::Seq, stack).unwrap();
        let (fresh, fresh_residual) = run(&*decomposer, &x, shape, 8, Par::Seq).unwrap();
        assert_eq!((&low_rank, &residual), (&fresh, &fresh_residual));
    }
}

#[test]
fn names_are_known() {
    for name in NAMES {
        assert_eq!(by_name(name).unwrap().name(), name);
    }
    assert!(NAMES.contains(&DEFAULT));
    assert!(by_name("svd").is_none());
}

#[test]
fn bad_input_is_refused() {
    let shape = BatchShape { samples: 2, channels: 20, pixels: 5 };
    let good = noise(shape, 1);
    for decomposer in all() {
        let error = |x: &[f32], shape, rank| run(&*decomposer, x, shape, rank, Par::rayon(2)).unwrap_err();
        let empty = BatchShape { samples: 0, ..shape };
        assert_eq!(error(&[], empty, 1), DecomposeError::Empty { samples: 0, channels: 20, pixels: 5 });
        let short = DecomposeError::Length { what: "x", expected: 200, got: 199 };
        assert_eq!(error(&good[1..], shape, 1), short);
        assert_eq!(error(&good, shape, 0), DecomposeError::Rank { rank: 0, max: 5 });
        assert_eq!(error(&good, shape, 6), DecomposeError::Rank { rank: 6, max: 5 });
        for (index, bad) in [(0, f32::NAN), (120, f32::INFINITY), (199, f32::NEG_INFINITY)] {
            let mut x = good.clone();
            x[index] = bad;
            assert_eq!(error(&x, shape, 2), DecomposeError::NonFinite { index }, "{decomposer:?}");
        }
        let (mut low_rank, mut residual) = (LowRank::default(), vec![0.0; 200]);
        let mut refused = |residual: &mut [f32], stack: &mut MemStack| {
            decomposer.decompose(&good, shape, 2, &mut low_rank, residual, Par::Seq, stack).unwrap_err()
        };
        let mut memory = MemBuffer::new(decomposer.scratch(shape, 2, Par::Seq));
        let short = DecomposeError::Length { what: "residual", expected: 200, got: 100 };
        assert_eq!(refused(&mut residual[..100], MemStack::new(&mut memory)), short);
        let none = refused(&mut residual, MemStack::new(&mut []));
        assert!(matches!(none, DecomposeError::Scratch { got_bytes: 0, needed_bytes: 1.. }), "{none}");
    }
}

proptest! {
    #[test]
    fn any_batch_is_split(
        samples in 1usize..4, channels in 1usize..50, pixels in 1usize..50, rank in 1usize..50, threads in 1usize..4,
        decay in 0.0f32..1.0, seed in any::<u64>(),
    ) {
        let shape = BatchShape { samples, channels, pixels };
        let rank = rank.min(channels).min(pixels);
        let x = decaying(shape, decay, seed >> 1);
        let optimal = optimal_energy(&x, shape, rank);
        for decomposer in all() {
            let (low_rank, residual) = run(&*decomposer, &x, shape, rank, Par::rayon(threads)).unwrap();
            let error = reconstruction_error(&x, shape, &low_rank, &residual);
            prop_assert!(error < 1e-5, "{:?}: {}", decomposer, error);
            // No residual beats the optimum, none exceeds the input.
            let got = energy(&residual);
            prop_assert!(got >= optimal * 0.999 - 1e-10 * energy(&x), "{:?}: {} {}", decomposer, got, optimal);
            prop_assert!(got <= energy(&x) * 1.001, "{:?}: {} {}", decomposer, got, energy(&x));
        }
    }

    #[test]
    fn gram_is_within_two_percent_of_the_optimum(
        channels in 1usize..80, pixels in 1usize..80, rank in 1usize..20, decay in 0.5f32..1.0, seed in any::<u64>(),
    ) {
        let shape = BatchShape { samples: 1, channels, pixels };
        let rank = rank.min(channels).min(pixels);
        let x = decaying(shape, decay, seed >> 1);
        let (_, residual) = run(&Gram::default(), &x, shape, rank, Par::Seq).unwrap();
        let (got, optimal) = (energy(&residual).sqrt(), optimal_energy(&x, shape, rank).sqrt());
        // The Gram matrix resolves singular values down to about 3e-4 of the largest.
        prop_assert!(got <= 1.02 * optimal + 1e-3 * energy(&x).sqrt(), "{} {}", got, optimal);
    }
}

#[test]
fn factors_are_found_and_put_together_again() {
    let shape = BatchShape { samples: 3, channels: 4, pixels: 5 };
    let x: Vec<f32> = (0..shape.len()).map(|i| (i as f32 * 0.7).sin()).collect();
    for name in super::NAMES {
        let (low_rank, residual) = super::by_name(name).unwrap().split(&x, shape, 2).unwrap();
        let main = low_rank.reconstruct(shape).unwrap();
        let off = main.iter().zip(&residual).zip(&x).map(|((m, r), x)| (m + r - x).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{name}: {off}");
        let (a, v) = low_rank.factors(shape, 2).unwrap();
        assert_eq!((a.len(), v.len()), (4 * low_rank.rank, low_rank.rank * 5), "{name}");
        assert!(low_rank.factors(shape, 3).is_none());
        let other = BatchShape { samples: 2, ..shape };
        assert!(low_rank.factors(other, 0).is_none() && low_rank.reconstruct(other).is_err(), "{name}");
    }
}

#[test]
fn a_basis_serves_for_other_batches() {
    let shape = BatchShape { samples: 3, channels: 21, pixels: 53 };
    for decomposer in all().iter().filter(|decomposer| decomposer.serves() > 1) {
        assert!(decomposer.shares_basis(), "{decomposer:?}");
        let (learned, _) = run(&**decomposer, &noise(shape, 3), shape, 6, Par::Seq).unwrap();
        let x = noise(shape, 4);
        let (mut low_rank, mut residual) = (LowRank::default(), vec![0.0; x.len()]);
        project(&learned.coefficients, &x, shape, &mut low_rank, &mut residual, Par::rayon(2)).unwrap();
        assert_eq!(low_rank.coefficients, learned.coefficients);
        assert!(reconstruction_error(&x, shape, &low_rank, &residual) < 1e-5);
        // What is left is orthogonal to the basis.
        for (s, left) in residual.chunks_exact(21 * 53).enumerate() {
            let product = |p: usize, i: usize| -> f32 {
                (0..21).map(|j| learned.coefficients[j * 6 + p] * left[j * 53 + i]).sum()
            };
            assert!((0..6).all(|p| (0..53).all(|i| product(p, i).abs() < 1e-5)), "sample {s}");
        }
        let mut bad = x.clone();
        bad[100] = f32::NAN;
        let error = project(&learned.coefficients, &bad, shape, &mut low_rank, &mut residual, Par::Seq);
        assert_eq!(error, Err(DecomposeError::NonFinite { index: 100 }));
        let error = project(&learned.coefficients[1..], &x, shape, &mut low_rank, &mut residual, Par::Seq);
        assert!(matches!(error, Err(DecomposeError::Length { what: "the basis", .. })), "{error:?}");
    }
}
