//! Trained quadratics, forward and backward.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use asymflow_zoo::{
    network::Shape,
    ops::{Coefficients, Form, Quadratic, RangePenalty},
};
use rayon::prelude::*;

use crate::buffer::Activation;
use crate::ops::{self, NormSaved, planes, sum_lanes};

/// A quadratic and where its parameters begin.
#[derive(Clone, Debug)]
pub struct QuadraticNode {
    /// Its definition.
    pub layer: Quadratic,
    /// Index of its first parameter.
    pub first: usize,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct QuadraticSaved {
    /// The input.
    pub x: Activation,
    /// What the two bases of [`Form::Hermite`] were normalised by.
    pub moments: Option<[NormSaved; 2]>,
    /// A penalty on the input, with its weight divided by samples and layers.
    pub range: Option<RangePenalty>,
}

/// Mean and biased variance of each basis of [`Form::Hermite`] in every channel.
pub fn basis_moments(x: &[f32], shape: Shape) -> [(Vec<f32>, Vec<f32>); 2] {
    [ops::channel_moments(x, shape), ops::moments_of(x, shape, second_basis)]
}

/// (x² − 1) / √2.
fn second_basis(x: f32) -> f32 {
    (x * x - 1.0) * FRAC_1_SQRT_2
}

/// y = a x² + b x + c with one triple for each channel, or one for all.
pub fn forward(x: &[f32], y: &mut [f32], shape: Shape, coefficients: &[Coefficients]) {
    let planes = y.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels()));
    planes.enumerate().for_each(|(plane, (y, x))| {
        let Coefficients { a, b, c } = coefficients[plane % shape.channels % coefficients.len()];
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (a * x + b) * x + c;
        }
    });
}

/// Backward of a form without normalisations, whose trained weight is `weight`: turns `dy` into dx in place and returns the
/// gradient of the weight.
pub fn backward(form: Form, coefficients: Coefficients, weight: &[f32], x: &[f32], dy: &mut [f32]) -> Vec<f32> {
    let [second, first, zeroth] = powers(x, dy);
    let Coefficients { a, b, .. } = coefficients;
    let (twice, chunk) = (2.0 * a, 1 << 14);
    dy.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(dy, x)| {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy *= twice * x + b;
        }
    });
    let exact: Vec<f64> = match (form, weight) {
        (Form::Kervolution { .. }, [c]) => vec![2.0 * (first + f64::from(*c) * zeroth)],
        (Form::Scaled { .. }, [a, c]) => {
            let (a, c) = (f64::from(*a), f64::from(*c));
            vec![second + 2.0 * c * first + c * c * zeroth, 2.0 * a * (first + c * zeroth)]
        }
        (Form::Kervolution { .. } | Form::Scaled { .. } | Form::Free { .. } | Form::Hermite { .. }, _) => {
            vec![second, first, zeroth]
        }
    };
    exact.into_iter().map(|v| v as f32).collect()
}

/// Σ x²·dy, Σ x·dy and Σ dy.
pub(crate) fn powers(x: &[f32], dy: &[f32]) -> [f64; 3] {
    let chunk = 1 << 14;
    let parts: Vec<[f64; 3]> = x
        .par_chunks(chunk)
        .zip(dy.par_chunks(chunk))
        .map(|(x, dy)| {
            let len = x.len();
            let second = sum_lanes(len, |i| x[i] * x[i] * dy[i]);
            [second, sum_lanes(len, |i| x[i] * dy[i]), sum_lanes(len, |i| dy[i])]
        })
        .collect();
    // In order, whatever the threads.
    parts.iter().fold([0.0; 3], |sum, part| std::array::from_fn(|i| sum[i] + part[i]))
}

/// Backward of [`Form::Hermite`] with its [`Form::bases`] and the batch's statistics: turns `dy` into dx in place and returns
/// the gradients of γ and β.
pub fn hermite_backward(
    x: &[f32],
    dy: &mut [f32],
    shape: Shape,
    gamma: &[f32],
    (bases, moments): ([f32; 2], &[NormSaved; 2]),
) -> (Vec<f32>, Vec<f32>) {
    let count = (x.len() / shape.channels) as f32;
    let [one, two] = moments;
    let normals = |c: usize| {
        let (m1, s1, m2, s2) = (one.mean[c], one.inverse_std[c], two.mean[c], two.inverse_std[c]);
        (move |x: f32| (x - m1) * s1, move |x: f32| (second_basis(x) - m2) * s2)
    };
    let sums: Vec<[f32; 3]> = (0..shape.channels)
        .into_par_iter()
        .map(|c| {
            let (first, second) = normals(c);
            let mut sums = [0.0; 3];
            for (x, dy) in planes(x, shape, c).zip(planes(dy, shape, c)) {
                sums[0] += sum_lanes(x.len(), |i| dy[i]);
                sums[1] += sum_lanes(x.len(), |i| first(x[i]) * dy[i]);
                sums[2] += sum_lanes(x.len(), |i| second(x[i]) * dy[i]);
            }
            sums.map(|sum| sum as f32)
        })
        .collect();
    dy.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels())).enumerate().for_each(
        |(plane, (dy, x))| {
            let c = plane % shape.channels;
            let (first, second) = normals(c);
            let [plain, with_first, with_second] = sums[c].map(|sum| sum / count);
            let gain_first = gamma[c] * bases[0] * one.inverse_std[c];
            // The second basis has the derivative √2·x.
            let gain_second = gamma[c] * bases[1] * two.inverse_std[c] * SQRT_2;
            for (dy, &x) in dy.iter_mut().zip(x) {
                let centred = *dy - plain;
                *dy = gain_first * (centred - first(x) * with_first)
                    + gain_second * x * (centred - second(x) * with_second);
            }
        },
    );
    let [first, second] = bases;
    sums.iter().map(|[plain, one, two]| (first * one + second * two, *plain)).unzip()
}

/// Adds the gradient of a penalty on `x` to `dx`.
pub fn add_penalty(range: RangePenalty, x: &[f32], dx: &mut [f32]) {
    let chunk = 1 << 14;
    dx.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(dx, x)| {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx += range.gradient(x);
        }
    });
}
