//! Freivalds' check of what a worker answers (Freivalds 1979; for inference Tramèr and Boneh, "Slalom", ICLR 2019).
//!
//! All three products of a convolution are linear in what they answer with. For a secret s over the channels of an answer, s·Y is
//! the convolution of X by the one kernel s·W: 1/M of the layer's operations (M output channels), 1/N of them for both gradients (N
//! input channels). s is drawn afresh for every answer, uniformly of unit variance, and never leaves; so an answer that is off by a
//! multiple d of the tolerance passes with a probability of at most about 0.8/d, whatever the worker knows, and far less where the error
//! is not the same in every pixel up to a factor.
//!
//! The weight gradient needs X, which is not kept: of each training pass t·X is, for a secret t over its channels.

use std::collections::HashMap;

use asymflow_engine::local::Scratch;
use asymflow_linalg::conv::{self, ConvError, ConvShape};
use asymflow_privacy::payload::Precision;
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use thiserror::Error;

use crate::modes::ModeError;

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum VerifyError {
    /// It is further from the right one than rounding explains.
    #[error(
        "the worker's {what} are wrong: sample {sample} is off by {distance:.1e} of its norm, {tolerance:.0e} is allowed in {precision:?}"
    )]
    Wrong {
        /// Outputs or gradients.
        what: &'static str,
        /// Index in the batch; 0 for the gradient of the weights, which is the whole batch's.
        sample: usize,
        /// l2 norm of the projected error over that of the answer.
        distance: f64,
        /// The most that is allowed.
        tolerance: f64,
        /// What travels.
        precision: Precision,
    },
    /// Nothing was kept of the forward pass.
    #[error("no forward pass to verify a gradient of weights by")]
    NoForward,
    /// The check itself could not be computed.
    #[error(transparent)]
    Conv(#[from] ConvError),
}

/// Relative distance that rounding explains, with a factor of ten to spare: that of f32 is what Winograd's sums lose, that of f16 what
/// encoding the answer does.
const fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2e-5,
        Precision::F16 => 2e-3,
    }
}

/// What a number may be off by however small it is: half the least binary16.
const fn floor(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 0.0,
        Precision::F16 => 1.0 / (1_u64 << 25) as f64,
    }
}

/// What an answer of items × channels × pixels is to be, seen through a secret.
#[derive(Debug)]
pub(super) struct Sketch {
    what: &'static str,
    secret: Vec<f32>,
    channels: usize,
    pixels: usize,
    expected: Vec<f32>,
    /// Squared norms that answers of these operands have where their terms are incoherent: one for each group of items.
    scales: Vec<f64>,
}

/// What is kept of the input of a training pass.
struct Kept {
    secret: Vec<f32>,
    seen: Vec<f32>,
    /// ‖X‖², of the whole batch.
    squares: f64,
}

/// Checks the answers of a worker; see the module.
pub(super) struct Verifier {
    rng: ChaCha12Rng,
    precision: Precision,
    par: Par,
    scratch: Scratch,
    kept: HashMap<usize, Kept>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier with a seed of the operating system.
    pub(super) fn new(precision: Precision, par: Par) -> Result<Self, ModeError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| ModeError::Randomness(e.to_string()))?;
        let (rng, scratch, kept) = (ChaCha12Rng::from_seed(seed), Scratch::default(), HashMap::new());
        Ok(Self { rng, precision, par, scratch, kept })
    }

    /// Drops what was kept of forward passes.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    /// Uniform in ±√3, so of unit variance.
    pub(super) fn secret(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.rng.random::<f32>() - 0.5) * 12.0_f32.sqrt()).collect()
    }

    /// What the outputs of the convolution `shape` are to be of inputs x and weights w. With `keep` the gradients of the weights
    /// of convolution number `index` can be told later.
    pub(super) fn outputs(
        &mut self,
        shape: ConvShape,
        (x, w): (&[f32], &[f32]),
        keep: Option<usize>,
    ) -> Result<Sketch, VerifyError> {
        let ConvShape { samples, in_channels, out_channels, kernel, .. } = shape;
        let (taps, pixels) = (kernel * kernel, shape.height * shape.width);
        let secret = self.secret(out_channels);
        // s·W, in_channels × taps, and as rows: taps × in_channels, then t.
        let kernels = self.mix(&secret, 1, w, (1, out_channels, in_channels * taps))?;
        let mut rows: Vec<f32> = (0..taps).flat_map(|tap| kernels.iter().skip(tap).step_by(taps).copied()).collect();
        let keeps = if keep.is_some() { self.secret(in_channels) } else { Vec::new() };
        rows.extend_from_slice(&keeps);
        let planes = self.mix(&rows, taps + usize::from(keep.is_some()), x, (samples, in_channels, pixels))?;
        let of_sample = planes.len() / samples;
        let out_pixels = shape.out_height() * shape.out_width();
        let mut expected = vec![0.0; samples * out_pixels];
        let by_sample = expected.par_chunks_mut(out_pixels).zip(planes.par_chunks(of_sample));
        by_sample.for_each(|(out, planes)| gather(shape, planes, out));
        let squares: Vec<f64> = x.par_chunks(in_channels * pixels).map(sum_of_squares).collect();
        let factor = sum_of_squares(w) * out_pixels as f64 / (pixels * in_channels) as f64;
        let scales = squares.iter().map(|squares| squares * factor).collect();
        if let Some(index) = keep {
            let seen = planes.chunks(of_sample).flat_map(|planes| &planes[taps * pixels..]).copied().collect();
            self.kept.insert(index, Kept { secret: keeps, seen, squares: squares.iter().sum() });
        }
        Ok(Sketch { what: "outputs", secret, channels: out_channels, pixels: out_pixels, expected, scales })
    }

    /// What the gradient of the inputs is to be, of that of the outputs and weights w.
    pub(super) fn input_gradient(&mut self, shape: ConvShape, dy: &[f32], w: &[f32]) -> Result<Sketch, VerifyError> {
        let ConvShape { samples, in_channels, out_channels, kernel, .. } = shape;
        let (taps, pixels) = (kernel * kernel, shape.height * shape.width);
        let out_pixels = shape.out_height() * shape.out_width();
        let secret = self.secret(in_channels);
        // W·s, out_channels × taps, and as rows.
        let kernels = self.mix(&secret, 1, w, (out_channels, in_channels, taps))?;
        let rows: Vec<f32> = (0..taps).flat_map(|tap| kernels.iter().skip(tap).step_by(taps).copied()).collect();
        let planes = self.mix(&rows, taps, dy, (samples, out_channels, out_pixels))?;
        let mut expected = vec![0.0; samples * pixels];
        let by_sample = expected.par_chunks_mut(pixels).zip(planes.par_chunks(taps * out_pixels));
        by_sample.for_each(|(out, planes)| scatter(shape, planes, out));
        let squares = dy.par_chunks(out_channels * out_pixels).map(sum_of_squares);
        let factor = sum_of_squares(w) / out_channels as f64;
        let scales = squares.map(|squares| squares * factor).collect();
        Ok(Sketch { what: "gradients of inputs", secret, channels: in_channels, pixels, expected, scales })
    }

    /// What the gradient of the weights is to be, of that of the outputs and the forward pass that was kept of convolution number `index`.
    pub(super) fn weight_gradient(
        &mut self,
        shape: ConvShape,
        dy: &[f32],
        index: usize,
    ) -> Result<Sketch, VerifyError> {
        let Kept { secret, seen, squares } = self.kept.remove(&index).ok_or(VerifyError::NoForward)?;
        let taps = shape.kernel * shape.kernel;
        let one = ConvShape { in_channels: 1, ..shape };
        let mut expected = vec![0.0; shape.out_channels * taps];
        let stack = self.scratch.stack(conv::weight_gradient_scratch(one, self.par));
        conv::weight_gradient(one, &seen, dy, &mut expected, self.par, stack)?;
        let of_batch = (shape.samples * shape.height * shape.width) as f64;
        let scales = vec![squares * sum_of_squares(dy) * taps as f64 / of_batch];
        Ok(Sketch { what: "gradients of weights", secret, channels: shape.in_channels, pixels: taps, expected, scales })
    }

    /// Holds an answer to its sketch.
    pub(super) fn check(&mut self, sketch: &Sketch, answer: &[f32]) -> Result<(), VerifyError> {
        let Sketch { what, secret, channels, pixels, expected, scales } = sketch;
        let (items, groups) = (expected.len() / pixels, scales.len());
        let seen = self.mix(secret, 1, answer, (items, *channels, *pixels))?;
        let (values, numbers) = (answer.len() / groups, expected.len() / groups);
        let (tolerance, floor) = (tolerance(self.precision), floor(self.precision));
        let distance = |sample: usize| {
            let part = |all: &[f32], len: usize| all.get(sample * len..(sample + 1) * len).unwrap_or_default().to_vec();
            let off: f64 =
                part(&seen, numbers).iter().zip(&part(expected, numbers)).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let norm = sum_of_squares(answer.get(sample * values..(sample + 1) * values).unwrap_or_default());
            let scale = norm.max(scales.get(sample).copied().unwrap_or_default());
            let allowed = tolerance.powi(2) * scale + floor.powi(2) * values as f64;
            (off > allowed).then(|| (off / scale).sqrt())
        };
        let wrong =
            (0..groups).into_par_iter().find_map_first(|sample| distance(sample).map(|distance| (sample, distance)));
        match wrong {
            None => Ok(()),
            Some((sample, distance)) => {
                Err(VerifyError::Wrong { what, sample, distance, tolerance, precision: self.precision })
            }
        }
    }

    /// `rows` sums over the channels of every item: items × rows × pixels.
    fn mix(
        &mut self,
        weights: &[f32],
        rows: usize,
        values: &[f32],
        (items, channels, pixels): (usize, usize, usize),
    ) -> Result<Vec<f32>, ConvError> {
        let shape = ConvShape {
            samples: items,
            in_channels: channels,
            height: 1,
            width: pixels,
            out_channels: rows,
            kernel: 1,
            stride: 1,
            padding: 0,
        };
        let mut out = vec![0.0; shape.output_len()];
        let stack = self.scratch.stack(conv::forward_scratch(shape, self.par));
        conv::forward(shape, values, weights, &mut out, self.par, stack)?;
        Ok(out)
    }
}

/// Calls `f` for each run of output pixels in a row under one tap: the tap, the first input pixel, the first output pixel and their
/// number; input pixels are a stride apart.
fn each_run(shape: ConvShape, mut f: impl FnMut(usize, usize, usize, usize)) {
    let ConvShape { height, width, kernel, stride, padding, .. } = shape;
    // Outputs whose input under an offset lies inside.
    let inside = |offset: usize, side: usize, outputs: usize| {
        let first = padding.saturating_sub(offset).div_ceil(stride);
        let end = (side + padding).saturating_sub(offset).div_ceil(stride).min(outputs);
        first..end.max(first)
    };
    for tap in 0..kernel * kernel {
        let (row, column) = (tap / kernel, tap % kernel);
        let columns = inside(column, width, shape.out_width());
        if columns.is_empty() {
            continue;
        }
        for y in inside(row, height, shape.out_height()) {
            let from = (y * stride + row - padding) * width + columns.start * stride + column - padding;
            f(tap, from, y * shape.out_width() + columns.start, columns.len());
        }
    }
}

/// A convolution of one channel by way of its planes, one a tap: out[p] = Σ_tap plane_tap[p·stride + tap − padding].
fn gather(shape: ConvShape, planes: &[f32], out: &mut [f32]) {
    let pixels = shape.height * shape.width;
    each_run(shape, |tap, from, to, len| {
        let plane = planes.get(tap * pixels + from..).unwrap_or_default();
        let out = out.get_mut(to..to + len).unwrap_or_default();
        if shape.stride == 1 {
            out.iter_mut().zip(plane).for_each(|(out, value)| *out += value);
        } else {
            out.iter_mut().zip(plane.iter().step_by(shape.stride)).for_each(|(out, value)| *out += value);
        }
    });
}

/// The adjoint of [`gather`].
fn scatter(shape: ConvShape, planes: &[f32], out: &mut [f32]) {
    let out_pixels = shape.out_height() * shape.out_width();
    each_run(shape, |tap, from, to, len| {
        let plane = planes.get(tap * out_pixels + to..).unwrap_or_default().iter().take(len);
        let out = out.get_mut(from..).unwrap_or_default();
        if shape.stride == 1 {
            out.iter_mut().zip(plane).for_each(|(out, value)| *out += value);
        } else {
            out.iter_mut().step_by(shape.stride).zip(plane).for_each(|(out, value)| *out += value);
        }
    });
}

fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let of = |values: &[f32]| {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v * v);
        }
        sums.iter().chain(rest.iter().map(|v| v * v).collect::<Vec<_>>().iter()).map(|&sum| f64::from(sum)).sum::<f64>()
    };
    let quick: f64 = values.chunks(1 << 12).map(of).sum();
    // Where squares leave the range of f32, and nowhere else, they are worth the time of f64.
    if (1e-20..1e30).contains(&quick) { quick } else { values.iter().map(|&v| f64::from(v).powi(2)).sum() }
}
