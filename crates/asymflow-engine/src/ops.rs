//! The layers between the convolutions: normalisation, ReLU, pooling, fully connected. NaN stays NaN.
//!
//! All batches are NCHW, row-major. Parallel loops run over planes or channels and every sum has a fixed
//! order, so results do not depend on the number of threads.

use asymflow_zoo::network::Shape;
use asymflow_zoo::ops::{AvgPool, NORM_EPSILON, Pointwise};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

const LANES: usize = 16;

/// Σ f(x) over a slice in a fixed, vectorisable order.
pub(crate) fn sum_lanes(len: usize, f: impl Fn(usize) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    let tail: f64 = (whole..len).map(|i| f64::from(f(i))).sum();
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + tail
}

/// The planes of channel `c` in an NCHW batch.
pub(crate) fn planes(x: &[f32], shape: Shape, c: usize) -> impl Iterator<Item = &[f32]> {
    let pixels = shape.pixels();
    x.chunks_exact(pixels).skip(c).step_by(shape.channels)
}

/// Mean and biased variance of every channel.
pub fn channel_moments(x: &[f32], shape: Shape) -> (Vec<f32>, Vec<f32>) {
    moments_of(x, shape, |x| x)
}

/// Mean and biased variance of `basis` of every channel.
pub(crate) fn moments_of(x: &[f32], shape: Shape, basis: impl Fn(f32) -> f32 + Sync) -> (Vec<f32>, Vec<f32>) {
    (0..shape.channels).into_par_iter().map(|c| channel_moments_of(x, shape, c, &basis)).unzip()
}

fn channel_moments_of(x: &[f32], shape: Shape, c: usize, basis: impl Fn(f32) -> f32) -> (f32, f32) {
    let count = (x.len() / shape.channels) as f64;
    let sum: f64 = planes(x, shape, c).map(|p| sum_lanes(p.len(), |i| basis(p[i]))).sum();
    let mean = (sum / count) as f32;
    let square = |x: f32| (basis(x) - mean) * (basis(x) - mean);
    let squares: f64 = planes(x, shape, c).map(|p| sum_lanes(p.len(), |i| square(p[i]))).sum();
    (mean, (squares / count) as f32)
}

/// The planes of an NCHW batch, to be written, those of one channel one behind the other.
fn planes_by_channel(x: &mut [f32], shape: Shape) -> Vec<&mut [f32]> {
    let mut samples: Vec<_> = x.chunks_exact_mut(shape.len()).map(|x| x.chunks_exact_mut(shape.pixels())).collect();
    let mut planes = Vec::with_capacity(samples.len() * shape.channels);
    (0..shape.channels).for_each(|_| planes.extend(samples.iter_mut().filter_map(Iterator::next)));
    planes
}

/// x·scale + shift, then ReLU where asked.
fn scaled(x: f32, scale: f32, shift: f32, relu: bool) -> f32 {
    let value = x * scale + shift;
    if relu && value <= 0.0 { 0.0 } else { value }
}

/// 1/√(variance + ε).
pub fn inverse_std(variance: f32) -> f32 {
    1.0 / (variance + NORM_EPSILON).sqrt()
}

/// Factor and summand of a normalisation by mean and variance.
fn scale_and_shift([gamma, beta]: [f32; 2], mean: f32, variance: f32) -> (f32, f32) {
    let scale = gamma * inverse_std(variance);
    (scale, beta - mean * scale)
}

/// Normalises by the statistics `running` (mean and variance of each channel), then scales and shifts by `affine`, then ReLU
/// where asked; in place.
pub fn norm_by(x: &mut [f32], shape: Shape, affine: [&[f32]; 2], running: [&[f32]; 2], relu: bool) {
    x.par_chunks_exact_mut(shape.pixels()).enumerate().for_each(|(plane, x)| {
        let c = plane % shape.channels;
        let (scale, shift) = scale_and_shift(affine.map(|v| v[c]), running[0][c], running[1][c]);
        x.iter_mut().for_each(|x| *x = scaled(*x, scale, shift, relu));
    });
}

/// As [`norm_by`] the statistics of `x` itself, into `y`; returns mean and biased variance of every channel. Channel by
/// channel, so that a plane is still in the cache when it is read again.
pub fn norm(x: &[f32], y: &mut [f32], shape: Shape, affine: [&[f32]; 2], relu: bool) -> (Vec<f32>, Vec<f32>) {
    let mut y = planes_by_channel(y, shape);
    let each = |(c, y): (usize, &mut [&mut [f32]])| {
        let (mean, variance) = channel_moments_of(x, shape, c, |x| x);
        if let [Some(&gamma), Some(&beta)] = affine.map(|v| v.get(c)) {
            let (scale, shift) = scale_and_shift([gamma, beta], mean, variance);
            for (y, x) in y.iter_mut().zip(planes(x, shape, c)) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = scaled(x, scale, shift, relu));
            }
        }
        (mean, variance)
    };
    y.par_chunks_mut((x.len() / shape.len()).max(1)).enumerate().map(each).unzip()
}

/// x + bias\[c\], then ReLU where asked, in place.
pub fn add_bias(x: &mut [f32], shape: Shape, bias: &[f32], relu: bool) {
    x.par_chunks_exact_mut(shape.pixels()).enumerate().for_each(|(plane, x)| {
        let bias = bias[plane % shape.channels];
        x.iter_mut().for_each(|x| *x = scaled(*x, 1.0, bias, relu));
    });
}

/// Backward of [`add_bias`], with the ReLU where its output `y` is given: cuts `dy` in place and returns ∂bias.
pub fn bias_backward(y: Option<&[f32]>, dy: &mut [f32], shape: Shape) -> Vec<f32> {
    let pixels = shape.pixels();
    let planes = dy.par_chunks_exact_mut(pixels).enumerate();
    let sum = |(plane, dy): (usize, &mut [f32])| {
        if let Some(y) = y {
            cut(&y[plane * pixels..][..pixels], dy);
        }
        sum_lanes(dy.len(), |i| dy[i])
    };
    let sums: Vec<f64> = planes.map(sum).collect();
    (0..shape.channels).map(|c| sums.iter().skip(c).step_by(shape.channels).sum::<f64>() as f32).collect()
}

/// What the backward pass of a batch normalisation needs.
#[derive(Debug)]
pub struct NormSaved {
    /// Mean of each channel over the batch.
    pub mean: Vec<f32>,
    /// 1/√(variance + ε) of each channel.
    pub inverse_std: Vec<f32>,
}

/// Backward of batch normalisation with batch statistics, with the ReLU after it where `y` is given
/// (its output, zero where the activation was cut). Turns `dy` into dx in place and returns
/// (∂scale, ∂shift).
pub fn norm_backward(
    x: &[f32],
    y: Option<&[f32]>,
    dy: &mut [f32],
    shape: Shape,
    scale: &[f32],
    saved: &NormSaved,
) -> (Vec<f32>, Vec<f32>) {
    let count = (x.len() / shape.channels) as f32;
    let mut dy = planes_by_channel(dy, shape);
    let each = |(c, dy): (usize, &mut [&mut [f32]])| {
        let (mean, inverse_std) = (saved.mean[c], saved.inverse_std[c]);
        let (mut with_x, mut plain) = (0.0, 0.0);
        let mut cut_by = y.into_iter().flat_map(|y| planes(y, shape, c));
        for (x, dy) in planes(x, shape, c).zip(dy.iter_mut()) {
            if let Some(y) = cut_by.next() {
                cut(y, dy);
            }
            with_x += sum_lanes(x.len(), |i| (x[i] - mean) * dy[i]);
            plain += sum_lanes(x.len(), |i| dy[i]);
        }
        let (d_scale, d_shift) = ((with_x * f64::from(inverse_std)) as f32, plain as f32);
        let scale = scale.get(c).copied().unwrap_or_default();
        let (gain, per_x, offset) = (scale * inverse_std, d_scale * inverse_std / count, d_shift / count);
        for (x, dy) in planes(x, shape, c).zip(dy) {
            dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy = gain * (*dy - offset - (x - mean) * per_x));
        }
        (d_scale, d_shift)
    };
    dy.par_chunks_mut((x.len() / shape.len()).max(1)).enumerate().map(each).unzip()
}

/// max(x, 0) that keeps NaN, which [`f32::max`] does not.
#[inline]
pub fn rectified(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// Cuts negative values in place.
pub fn relu(x: &mut [f32]) {
    x.par_chunks_mut(1 << 14).for_each(|chunk| chunk.iter_mut().for_each(|v| *v = rectified(*v)));
}

/// Zeroes `dy` wherever the output `y` of a ReLU is zero.
pub fn relu_backward(y: &[f32], dy: &mut [f32]) {
    dy.par_chunks_mut(1 << 14).zip(y.par_chunks(1 << 14)).for_each(|(dy, y)| cut(y, dy));
}

fn cut(y: &[f32], dy: &mut [f32]) {
    dy.iter_mut().zip(y).for_each(|(dy, &y)| *dy = if y > 0.0 { *dy } else { 0.0 });
}

/// y = f(x), in double precision.
pub fn pointwise(function: Pointwise, x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = function.value(f64::from(x)) as f32);
    });
}

/// Turns `dy` into dx in place.
pub fn pointwise_backward(function: Pointwise, x: &[f32], dy: &mut [f32]) {
    dy.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14)).for_each(|(dy, x)| {
        dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= function.slope(f64::from(x)) as f32);
    });
}

/// y = x where x is not negative, else x·slope\[c\].
pub fn prelu(x: &[f32], y: &mut [f32], shape: Shape, slopes: &[f32]) {
    y.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels())).enumerate().for_each(
        |(plane, (y, x))| {
            let slope = slopes[plane % shape.channels];
            for (y, &x) in y.iter_mut().zip(x) {
                *y = if x < 0.0 { x * slope } else { x };
            }
        },
    );
}

/// Backward of [`prelu`] for its input `x`: turns `dy` into dx in place and returns the gradient of the slopes.
pub fn prelu_backward(x: &[f32], dy: &mut [f32], shape: Shape, slopes: &[f32]) -> Vec<f32> {
    let gradient = |c: usize| {
        let sums = planes(x, shape, c).zip(planes(dy, shape, c));
        sums.map(|(x, dy)| sum_lanes(x.len(), |i| x[i].min(0.0) * dy[i])).sum::<f64>() as f32
    };
    let d_slopes = (0..shape.channels).into_par_iter().map(gradient).collect();
    dy.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels())).enumerate().for_each(
        |(plane, (dy, x))| {
            let slope = slopes[plane % shape.channels];
            for (dy, &x) in dy.iter_mut().zip(x) {
                *dy = if x < 0.0 { *dy * slope } else { *dy };
            }
        },
    );
    d_slopes
}

/// Adaptive average pooling of every plane to `out × out`.
pub fn avg_pool(x: &[f32], input: Shape, y: &mut [f32], pool: AvgPool) {
    let out = pool.out;
    y.par_chunks_exact_mut(out * out).zip(x.par_chunks_exact(input.pixels())).for_each(|(y, x)| {
        for (at, y) in y.iter_mut().enumerate() {
            let rows = pool.window(at / out, input.height);
            let columns = pool.window(at % out, input.width);
            let count = (rows.len() * columns.len()) as f32;
            let sum: f32 = rows.map(|i| x[i * input.width..][columns.clone()].iter().sum::<f32>()).sum();
            *y = sum / count;
        }
    });
}

/// Backward of [`avg_pool`].
pub fn avg_pool_backward(dy: &[f32], pool: AvgPool, dx: &mut [f32], input: Shape) {
    let out = pool.out;
    dx.par_chunks_exact_mut(input.pixels()).zip(dy.par_chunks_exact(out * out)).for_each(|(dx, dy)| {
        dx.fill(0.0);
        for (at, &dy) in dy.iter().enumerate() {
            let rows = pool.window(at / out, input.height);
            let columns = pool.window(at % out, input.width);
            let share = dy / (rows.len() * columns.len()) as f32;
            for i in rows {
                dx[i * input.width..][columns.clone()].iter_mut().for_each(|v| *v += share);
            }
        }
    });
}

/// Zeroes what is not kept and scales the rest by 1/(1 − p).
pub fn drop_out(values: &mut [f32], keep: &[bool], p: f32) {
    let gain = 1.0 / (1.0 - p);
    for (value, &keep) in values.iter_mut().zip(keep) {
        *value = if keep { *value * gain } else { 0.0 };
    }
}

/// Dimensions of a fully connected layer over a batch.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Samples.
    pub samples: usize,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
}

fn rows(data: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(data, rows, columns)
}

fn rows_mut(data: &mut [f32], rows: usize, columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(data, rows, columns)
}

/// y = x·Wᵀ + b; x `samples × inputs`, W `outputs × inputs`.
pub fn linear(s: LinearShape, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32], par: Par) {
    y.chunks_exact_mut(s.outputs).for_each(|row| row.copy_from_slice(bias));
    let (x, w) = (rows(x, s.samples, s.inputs), rows(weight, s.outputs, s.inputs));
    matmul(rows_mut(y, s.samples, s.outputs), Accum::Add, x, w.transpose(), 1.0, par);
}

/// Gradients of [`linear`]: dW = dyᵀ·x, db = Σ dy, dx = dy·W.
pub fn linear_backward(
    s: LinearShape,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
    dx: &mut [f32],
    par: Par,
) {
    let dy_rows = rows(dy, s.samples, s.outputs);
    let d_weight = rows_mut(d_weight, s.outputs, s.inputs);
    matmul(d_weight, Accum::Replace, dy_rows.transpose(), rows(x, s.samples, s.inputs), 1.0, par);
    let dx = rows_mut(dx, s.samples, s.inputs);
    matmul(dx, Accum::Replace, dy_rows, rows(weight, s.outputs, s.inputs), 1.0, par);
    d_bias.fill(0.0);
    for row in dy.chunks_exact(s.outputs) {
        d_bias.iter_mut().zip(row).for_each(|(sum, &v)| *sum += v);
    }
}
