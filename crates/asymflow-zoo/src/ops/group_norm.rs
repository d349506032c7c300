//! Group normalisation.

use serde::{Deserialize, Serialize};

use super::NORM_EPSILON;
use super::norm::{affine, scale_shift, scale_shift_backward};
use super::operation::{At, Gradient, Operation};
use crate::param::ParamSpec;
use crate::shape::{NetworkError, Shape};

/// Normalisation of groups of channels of each sample by itself, as PyTorch defines it (Wu and He 2018); weight γ and bias β of
/// each channel. No sample depends on another, so that each has a gradient of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// Parameter prefix.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Groups that they are divided into, evenly.
    pub groups: usize,
}

/// Values after it and 1/√(variance + ε) of each.
struct Normal {
    values: Vec<f64>,
    inverse_std: Vec<f64>,
}

impl GroupNorm {
    /// Values that are normalised together lie side by side: channels of a group, all their pixels.
    fn together(&self, at: &At<'_>) -> usize {
        (at.input.len() / self.groups.max(1)).max(1)
    }

    fn normal(&self, at: &At<'_>, x: &[f64]) -> Normal {
        let (mut values, mut inverse_std) = (Vec::new(), Vec::new());
        for group in x.chunks(self.together(at)) {
            let count = group.len() as f64;
            let mean = group.iter().sum::<f64>() / count;
            let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + f64::from(NORM_EPSILON)).sqrt();
            values.extend(group.iter().map(|x| (x - mean) * scale));
            inverse_std.extend(group.iter().map(|_| scale));
        }
        Normal { values, inverse_std }
    }
}

impl Operation for GroupNorm {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        if self.groups == 0 || !self.channels.is_multiple_of(self.groups) {
            return Err(NetworkError::OutOfRange { layer: self.name.clone(), what: "number of groups" });
        }
        input.expect_channels(&self.name, self.channels)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        affine(&self.name, self.channels).to_vec()
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        scale_shift(at, &self.normal(at, inputs[0]).values)
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let normal = self.normal(at, inputs[0]);
        let (d_normal, [scale, shift]) = scale_shift_backward(at, &normal.values, dy);
        let size = self.together(at);
        let mut dx = Vec::new();
        let groups = d_normal.chunks(size).zip(normal.values.chunks(size)).zip(normal.inverse_std.chunks(size));
        for ((dy, x), scale) in groups {
            let count = dy.len() as f64;
            let plain = dy.iter().sum::<f64>() / count;
            let with = dy.iter().zip(x).map(|(dy, x)| dy * x).sum::<f64>() / count;
            dx.extend(dy.iter().zip(x).zip(scale).map(|((dy, x), scale)| scale * (dy - plain - x * with)));
        }
        Gradient { inputs: vec![dx], params: vec![scale, shift] }
    }
}
