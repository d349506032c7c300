//! The layers between the convolutions: normalisation, ReLU, pooling, fully connected. NaN stays NaN.
//!
//! All batches are NCHW, row-major. Parallel loops run over planes or channels and every sum has a fixed
//! order, so results do not depend on the number of threads.

use asymflow_zoo::network::Shape;
use asymflow_zoo::ops::{AvgPool, MaxPool, Pointwise};
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
    let count = (x.len() / shape.channels) as f64;
    (0..shape.channels)
        .into_par_iter()
        .map(|c| {
            let sum: f64 = planes(x, shape, c).map(|p| sum_lanes(p.len(), |i| basis(p[i]))).sum();
            let mean = sum / count;
            let m = mean as f32;
            let square = |x: f32| (basis(x) - m) * (basis(x) - m);
            let squares: f64 = planes(x, shape, c).map(|p| sum_lanes(p.len(), |i| square(p[i]))).sum();
            (m, (squares / count) as f32)
        })
        .unzip()
}

/// y = x·scale\[c\] + shift\[c\], then ReLU where asked, into `y`.
pub fn scale_shift(x: &[f32], y: &mut [f32], shape: Shape, scale: &[f32], shift: &[f32], relu: bool) {
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    y.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels())).enumerate().for_each(
        |(plane, (y, x))| {
            let (a, b) = (scale[plane % shape.channels], shift[plane % shape.channels]);
            for (y, &x) in y.iter_mut().zip(x) {
                let value = x * a + b;
                *y = if value <= floor { floor } else { value };
            }
        },
    );
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
    if let Some(y) = y {
        relu_backward(y, dy);
    }
    let count = (x.len() / shape.channels) as f32;
    let sums: Vec<(f32, f32)> = (0..shape.channels)
        .into_par_iter()
        .map(|c| {
            let mean = saved.mean[c];
            let (mut with_x, mut plain) = (0.0, 0.0);
            for (x, dy) in planes(x, shape, c).zip(planes(dy, shape, c)) {
                with_x += sum_lanes(x.len(), |i| (x[i] - mean) * dy[i]);
                plain += sum_lanes(x.len(), |i| dy[i]);
            }
            ((with_x * f64::from(saved.inverse_std[c])) as f32, plain as f32)
        })
        .collect();
    dy.par_chunks_exact_mut(shape.pixels()).zip(x.par_chunks_exact(shape.pixels())).enumerate().for_each(
        |(plane, (dy, x))| {
            let c = plane % shape.channels;
            let (mean, inverse_std) = (saved.mean[c], saved.inverse_std[c]);
            let (d_scale, d_shift) = sums[c];
            let (gain, per_x, offset) = (scale[c] * inverse_std, d_scale * inverse_std / count, d_shift / count);
            for (dy, &x) in dy.iter_mut().zip(x) {
                *dy = gain * (*dy - offset - (x - mean) * per_x);
            }
        },
    );
    sums.into_iter().unzip()
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
    dy.par_chunks_mut(1 << 14).zip(y.par_chunks(1 << 14)).for_each(|(dy, y)| {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy = if y > 0.0 { *dy } else { 0.0 };
        }
    });
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

/// Max-pooling of every plane; `argmax` receives the index of each maximum within its input plane.
pub fn max_pool(x: &[f32], input: Shape, y: &mut [f32], output: Shape, window: MaxPool, argmax: &mut [u32]) {
    y.par_chunks_exact_mut(output.pixels())
        .zip(argmax.par_chunks_exact_mut(output.pixels()))
        .zip(x.par_chunks_exact(input.pixels()))
        .for_each(|((y, argmax), x)| {
            for row in 0..output.height {
                for column in 0..output.width {
                    let (index, value) = window_max(x, input, window, row, column);
                    y[row * output.width + column] = value;
                    argmax[row * output.width + column] = index;
                }
            }
        });
}

fn window_max(x: &[f32], input: Shape, window: MaxPool, row: usize, column: usize) -> (u32, f32) {
    let range = |at: usize, side: usize| {
        let start = (at * window.stride).saturating_sub(window.padding);
        let end = (at * window.stride + window.kernel).saturating_sub(window.padding).min(side);
        start..end
    };
    let mut best = (0, f32::NEG_INFINITY);
    for i in range(row, input.height) {
        for j in range(column, input.width) {
            let value = x[i * input.width + j];
            if value > best.1 || value.is_nan() {
                best = ((i * input.width + j) as u32, value);
            }
        }
    }
    best
}

/// Backward of [`max_pool`]: routes every gradient to its maximum.
pub fn max_pool_backward(dy: &[f32], output: Shape, argmax: &[u32], dx: &mut [f32], input: Shape) {
    dx.par_chunks_exact_mut(input.pixels())
        .zip(dy.par_chunks_exact(output.pixels()))
        .zip(argmax.par_chunks_exact(output.pixels()))
        .for_each(|((dx, dy), argmax)| {
            dx.fill(0.0);
            for (&index, &dy) in argmax.iter().zip(dy) {
                dx[index as usize] += dy;
            }
        });
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
