use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack};

use super::subspace::fill_uniform;
use super::*;

/// Decomposes with fresh memory.
pub(super) fn run(
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

fn noise(shape: BatchShape, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; shape.len()];
    fill_uniform(&mut x, seed);
    x
}

/// A·V + residual against x, in f64, relative to the largest value.
fn reconstruction_error(x: &[f32], shape: BatchShape, low_rank: &LowRank, residual: &[f32]) -> f64 {
    let BatchShape { samples, channels, pixels } = shape;
    let rank = low_rank.rank;
    let largest = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs()))).max(f64::MIN_POSITIVE);
    let mut worst = 0.0f64;
    for s in 0..samples {
        let a = if low_rank.shared { 0 } else { s * channels * rank };
        for j in 0..channels {
            for i in 0..pixels {
                let at = (s * channels + j) * pixels + i;
                let mut sum = f64::from(residual[at]);
                for p in 0..rank {
                    sum += f64::from(low_rank.coefficients[a + j * rank + p])
                        * f64::from(low_rank.principal[(s * rank + p) * pixels + i]);
                }
                worst = worst.max((sum - f64::from(x[at])).abs() / largest);
            }
        }
    }
    worst
}

#[test]
fn every_decomposer_splits_every_shape() {
    for name in ["exact-svd", "gram", "shared-basis"] {
        let decomposer = by_name(name).unwrap();
        for (samples, channels, pixels) in
            [(1, 1, 1), (3, 4, 16), (2, 16, 4), (5, 8, 8), (1, 1, 9), (2, 9, 1), (4, 40, 100)]
        {
            let shape = BatchShape { samples, channels, pixels };
            let x = noise(shape, 7);
            for rank in 1..=channels.min(pixels) {
                for par in [Par::Seq, Par::rayon(2)] {
                    let (low_rank, residual) = run(&*decomposer, &x, shape, rank, par).unwrap();
                    let error = reconstruction_error(&x, shape, &low_rank, &residual);
                    assert!(error < 5e-6, "{name} {shape:?} rank {rank}: {error}");
                }
            }
        }
    }
}
