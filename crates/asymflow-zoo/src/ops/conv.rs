//! Convolutions.

use serde::{Deserialize, Serialize};

use super::operation::{At, Gradient, OpCost, Operation};
use crate::network::limits;
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

/// A square 2-D convolution without dilation or groups; weight `out × in × kernel × kernel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv {
    /// Parameter prefix, e.g. `layer1.0.conv1`.
    pub name: String,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on every side.
    pub padding: usize,
    /// Whether `name.bias` exists.
    pub bias: bool,
}

impl Conv {
    const fn weights(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel * self.kernel
    }

    /// Every multiplication over a batch, as (index into x, into W, into y).
    fn taps(&self, at: &At<'_>, mut visit: impl FnMut(usize, usize, usize)) {
        let (k, s, p) = (self.kernel, self.stride, self.padding);
        let (Shape { height, width, .. }, output) = (at.input, at.output);
        for (n, o) in (0..at.samples).flat_map(|n| (0..self.out_channels).map(move |o| (n, o))) {
            for (oy, ox) in output.places() {
                let y = ((n * self.out_channels + o) * output.height + oy) * output.width + ox;
                for i in 0..self.in_channels {
                    for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
                        let (iy, ix) = (oy * s + ky, ox * s + kx);
                        if iy >= p && ix >= p && iy < height + p && ix < width + p {
                            let x = ((n * self.in_channels + i) * height + iy - p) * width + ix - p;
                            visit(x, ((o * self.in_channels + i) * k + ky) * k + kx, y);
                        }
                    }
                }
            }
        }
    }
}

impl Operation for Conv {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        let settings = [self.in_channels, self.out_channels, self.kernel, self.stride, self.padding];
        limits::check_settings(&self.name, &settings)?;
        input.expect_channels(&self.name, self.in_channels)?;
        if self.out_channels == 0 {
            return Err(NetworkError::out_of_range(&self.name, "out_channels"));
        }
        input.windows(&self.name, self.out_channels, self.kernel, self.stride, self.padding)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        let shape = vec![self.out_channels, self.in_channels, self.kernel, self.kernel];
        // He et al. (2015) by fan-out, as torchvision.
        let fan_out = self.out_channels.saturating_mul(self.kernel).saturating_mul(self.kernel);
        let init = Init::Normal { std: (2.0 / fan_out as f32).sqrt() };
        let mut specs = vec![ParamSpec::new(&self.name, "weight", shape, ParamKind::ConvWeight, init)];
        if self.bias {
            let (shape, init) = (vec![self.out_channels], Init::constant(0.0));
            specs.push(ParamSpec::new(&self.name, "bias", shape, ParamKind::Bias, init));
        }
        specs
    }

    fn cost(&self, _: Shape, output: Shape) -> OpCost {
        OpCost { macs: (self.weights() * output.pixels()) as u64, ..OpCost::default() }
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let mut y = vec![0.0; at.samples * at.output.len()];
        if let Some(bias) = at.params.get(1) {
            y.chunks_exact_mut(at.output.pixels()).zip(bias.iter().cycle()).for_each(|(plane, &b)| plane.fill(b));
        }
        self.taps(at, |x, w, to| y[to] += inputs[0][x] * at.params[0][w]);
        y
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let (mut dx, mut dw) = (vec![0.0; inputs[0].len()], vec![0.0; self.weights()]);
        self.taps(at, |x, w, y| {
            dx[x] += dy[y] * at.params[0][w];
            dw[w] += dy[y] * inputs[0][x];
        });
        let mut params = vec![dw];
        if self.bias {
            let mut bias = vec![0.0; self.out_channels];
            for (plane, dy) in dy.chunks_exact(at.output.pixels()).enumerate() {
                bias[plane % self.out_channels] += dy.iter().sum::<f64>();
            }
            params.push(bias);
        }
        Gradient { inputs: vec![dx], params }
    }
}
