//! Batch normalisation.

use super::operation::{At, Gradient, Operation};
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

/// ε of every normalisation, as in PyTorch.
pub const NORM_EPSILON: f32 = 1e-5;
/// Weight of the new batch in running statistics, as in PyTorch.
pub const NORM_MOMENTUM: f32 = 0.1;

/// Batch normalisation over channels as PyTorch defines it: weight γ, bias β, running mean and variance, the latter unbiased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Parameter prefix.
    pub name: String,
    /// Channels.
    pub channels: usize,
}

/// The specifications of running statistics.
pub(super) fn running(name: &str, [mean, variance]: [&str; 2], channels: usize) -> [ParamSpec; 2] {
    [
        ParamSpec::new(name, mean, vec![channels], ParamKind::RunningMean, Init::constant(0.0)),
        ParamSpec::new(name, variance, vec![channels], ParamKind::RunningVar, Init::constant(1.0)),
    ]
}

/// The specifications of a scale and a shift for each channel.
pub(super) fn affine(name: &str, channels: usize) -> [ParamSpec; 2] {
    [
        ParamSpec::new(name, "weight", vec![channels], ParamKind::NormScale, Init::constant(1.0)),
        ParamSpec::new(name, "bias", vec![channels], ParamKind::NormShift, Init::constant(0.0)),
    ]
}

/// Channels brought to mean 0 and variance 1.
pub(super) struct Normal {
    /// Values after it.
    pub values: Vec<f64>,
    inverse_std: Vec<f64>,
    mean: Vec<f64>,
    unbiased_variance: Vec<f64>,
}

impl Normal {
    /// By the batch's statistics in training, else by the running ones.
    pub fn new(at: &At<'_>, x: &[f64], running: &[Vec<f64>]) -> Self {
        let (mut mean, mut variance) = (running[0].clone(), running[1].clone());
        let count = (x.len() / at.input.channels) as f64;
        if at.is_training {
            mean = at.by_channel(x.iter().copied()).iter().map(|sum| sum / count).collect();
            let squares = x.iter().enumerate().map(|(i, x)| (x - mean[at.channel(i)]).powi(2));
            variance = at.by_channel(squares).iter().map(|sum| sum / count).collect();
        }
        let inverse_std: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(NORM_EPSILON)).sqrt()).collect();
        let of = |(i, x): (usize, &f64)| (x - mean[at.channel(i)]) * inverse_std[at.channel(i)];
        let values = x.iter().enumerate().map(of).collect();
        let unbiased_variance = variance.iter().map(|v| v * count / (count - 1.0).max(1.0)).collect();
        Self { values, inverse_std, mean, unbiased_variance }
    }

    /// Gradient of what was normalised, of that of the values after it.
    pub fn backward(&self, at: &At<'_>, dy: &[f64]) -> Vec<f64> {
        let count = (dy.len() / at.input.channels) as f64;
        let (mut plain, mut with) = (vec![0.0; at.input.channels], vec![0.0; at.input.channels]);
        if at.is_training {
            plain = at.by_channel(dy.iter().copied());
            with = at.by_channel(dy.iter().zip(&self.values).map(|(dy, x)| dy * x));
        }
        let one = |(i, (dy, x)): (usize, (&f64, &f64))| {
            let c = at.channel(i);
            self.inverse_std[c] * (dy - plain[c] / count - x * with[c] / count)
        };
        dy.iter().zip(&self.values).enumerate().map(one).collect()
    }

    /// Running mean and variance moved towards the batch's.
    pub fn moved(&self, running: &[Vec<f64>]) -> [Vec<f64>; 2] {
        let moved = |old: &[f64], new: &[f64]| {
            old.iter().zip(new).map(|(old, new)| old + f64::from(NORM_MOMENTUM) * (new - old)).collect()
        };
        [moved(&running[0], &self.mean), moved(&running[1], &self.unbiased_variance)]
    }
}

/// γ·x + β by channel.
pub(super) fn scale_shift(at: &At<'_>, x: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| at.params[0][at.channel(i)] * x + at.params[1][at.channel(i)]).collect()
}

/// Gradients of [`scale_shift`]: of x, γ and β.
pub(super) fn scale_shift_backward(at: &At<'_>, x: &[f64], dy: &[f64]) -> (Vec<f64>, [Vec<f64>; 2]) {
    let dx = dy.iter().enumerate().map(|(i, dy)| at.params[0][at.channel(i)] * dy).collect();
    (dx, [at.by_channel(x.iter().zip(dy).map(|(x, dy)| x * dy)), at.by_channel(dy.iter().copied())])
}

impl Operation for Norm {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        input.expect_channels(&self.name, self.channels)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        let running = running(&self.name, ["running_mean", "running_var"], self.channels);
        affine(&self.name, self.channels).into_iter().chain(running).collect()
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        scale_shift(at, &Normal::new(at, inputs[0], &at.params[2..]).values)
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let normal = Normal::new(at, inputs[0], &at.params[2..]);
        let (dx, [scale, shift]) = scale_shift_backward(at, &normal.values, dy);
        Gradient { inputs: vec![normal.backward(at, &dx)], params: vec![scale, shift, Vec::new(), Vec::new()] }
    }

    fn statistics(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<(usize, Vec<f64>)> {
        let [mean, variance] = Normal::new(at, inputs[0], &at.params[2..]).moved(&at.params[2..]);
        vec![(2, mean), (3, variance)]
    }
}
