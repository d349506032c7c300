//! Group normalisation: each sample by itself, channels of a group together.

use asymflow_zoo::network::Shape;
use asymflow_zoo::ops::NORM_EPSILON;
use rayon::prelude::*;

use crate::ops::sum_lanes;

/// Mean and 1/√(variance + ε) of values that are normalised together.
fn moments(x: &[f32]) -> (f32, f32) {
    let count = x.len() as f64;
    let mean = (sum_lanes(x.len(), |i| x[i]) / count) as f32;
    let variance = sum_lanes(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / count;
    (mean, (1.0 / (variance + f64::from(NORM_EPSILON)).sqrt()) as f32)
}

/// y = γ·(x − mean)/√(variance + ε) + β, by channel, into `y`.
pub(crate) fn forward(x: &[f32], y: &mut [f32], shape: Shape, groups: usize, (scale, shift): (&[f32], &[f32])) {
    let (pixels, channels) = (shape.pixels(), shape.channels / groups);
    let together = y.par_chunks_exact_mut(channels * pixels).zip(x.par_chunks_exact(channels * pixels)).enumerate();
    together.for_each(|(group, (y, x))| {
        let (mean, inverse_std) = moments(x);
        let first = group % groups * channels;
        for (c, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
            let a = scale[first + c] * inverse_std;
            let b = shift[first + c] - mean * a;
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * a + b);
        }
    });
}

/// Turns `dy` into dx in place, and returns the gradients of γ and β for each channel of each sample.
pub(crate) fn backward(x: &[f32], dy: &mut [f32], shape: Shape, groups: usize, scale: &[f32]) -> Vec<[f64; 2]> {
    let (pixels, channels) = (shape.pixels(), shape.channels / groups);
    let together = dy.par_chunks_exact_mut(channels * pixels).zip(x.par_chunks_exact(channels * pixels)).enumerate();
    // Σ dy·x̂ and Σ dy.
    together
        .flat_map_iter(|(group, (dy, x))| {
            let (mean, inverse_std) = moments(x);
            let scale = &scale[group % groups * channels..][..channels];
            let normal = |x: f32| (x - mean) * inverse_std;
            let planes = || dy.chunks_exact(pixels).zip(x.chunks_exact(pixels));
            let of =
                |(dy, x): (&[f32], &[f32])| [sum_lanes(pixels, |i| dy[i] * normal(x[i])), sum_lanes(pixels, |i| dy[i])];
            let sums: Vec<[f64; 2]> = planes().map(of).collect();
            let count = (channels * pixels) as f64;
            let mean_of = |at: usize| {
                (sums.iter().zip(scale).map(|(sum, &scale)| sum[at] * f64::from(scale)).sum::<f64>() / count) as f32
            };
            let (with, plain) = (mean_of(0), mean_of(1));
            for ((dy, x), &scale) in dy.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).zip(scale) {
                let one = |(dy, &x): (&mut f32, &f32)| *dy = inverse_std * (*dy * scale - plain - normal(x) * with);
                dy.iter_mut().zip(x).for_each(one);
            }
            sums
        })
        .collect()
}

/// Gradients of γ and β, of those of each sample.
pub(crate) fn totals(sums: &[[f64; 2]], channels: usize) -> [Vec<f32>; 2] {
    let total = |at: usize| {
        let of = |c: usize| sums.iter().skip(c).step_by(channels).map(|sum| sum[at]).sum::<f64>() as f32;
        (0..channels).map(of).collect()
    };
    [total(0), total(1)]
}
