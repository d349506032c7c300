//! What units compute, written as plainly as possible in f64.

use asymflow_zoo::{Decision, Form, Gate, Layer, Network, Quadratic, Shape, SharedRelu};

use crate::backend::ConvUnit;

/// Gradients of a convolution, or outputs and both gradients, flattened.
pub(super) struct ConvReference {
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dw: Vec<f64>,
}

/// Every multiplication of the convolution as (index into x, into w, into y).
fn taps(c: &ConvUnit, samples: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let Shape { channels, height, width } = c.input;
    let (k, s, p) = (c.kernel, c.stride, c.padding);
    let (out_h, out_w) = ((height + 2 * p - k) / s + 1, (width + 2 * p - k) / s + 1);
    for n in 0..samples {
        for o in 0..c.out_channels {
            for (oy, ox) in (0..out_h).flat_map(|oy| (0..out_w).map(move |ox| (oy, ox))) {
                let y = ((n * c.out_channels + o) * out_h + oy) * out_w + ox;
                for i in 0..channels {
                    for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
                        let (iy, ix) = (oy * s + ky, ox * s + kx);
                        if iy >= p && ix >= p && iy < height + p && ix < width + p {
                            let x = ((n * channels + i) * height + iy - p) * width + ix - p;
                            visit(x, ((o * channels + i) * k + ky) * k + kx, y);
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn conv(c: &ConvUnit, x: &[f32], w: &[f32], dy: &[f32]) -> ConvReference {
    let samples = x.len() / c.input.len();
    let mut r = ConvReference { y: vec![0.0; dy.len()], dx: vec![0.0; x.len()], dw: vec![0.0; w.len()] };
    taps(c, samples, |xi, wi, yi| {
        r.y[yi] += f64::from(x[xi]) * f64::from(w[wi]);
        r.dx[xi] += f64::from(dy[yi]) * f64::from(w[wi]);
        r.dw[wi] += f64::from(x[xi]) * f64::from(dy[yi]);
    });
    r
}

/// Forward pass of a network in f64 with its weights in the order of [`Network::parameters`].
pub(super) struct NetworkReference<'a> {
    pub network: &'a Network,
    pub train: bool,
    /// Updated running statistics, written over the weights by a training pass.
    pub weights: Vec<f64>,
}

impl NetworkReference<'_> {
    pub fn forward(&mut self, x: &[f64], samples: usize) -> Vec<f64> {
        let mut at = 0;
        self.layers(&self.network.layers.clone(), self.network.input, x.to_vec(), samples, &mut at).0
    }

    fn layers(
        &mut self,
        layers: &[Layer],
        mut shape: Shape,
        mut x: Vec<f64>,
        samples: usize,
        at: &mut usize,
    ) -> (Vec<f64>, Shape) {
        for layer in layers {
            let Ok(out) = layer.output(shape) else { return (Vec::new(), shape) };
            x = self.layer(layer, shape, out, x, samples, at);
            shape = out;
        }
        (x, shape)
    }

    fn layer(
        &mut self,
        layer: &Layer,
        shape: Shape,
        out: Shape,
        x: Vec<f64>,
        samples: usize,
        at: &mut usize,
    ) -> Vec<f64> {
        match layer {
            Layer::Conv(c) => {
                let weights = c.out_channels * c.in_channels * c.kernel * c.kernel;
                let w = self.weights[*at..*at + weights].to_vec();
                *at += weights;
                let unit = ConvUnit {
                    input: shape,
                    out_channels: c.out_channels,
                    kernel: c.kernel,
                    stride: c.stride,
                    padding: c.padding,
                };
                let mut y = vec![0.0; samples * out.len()];
                if c.bias {
                    y.iter_mut().enumerate().for_each(|(i, y)| {
                        *y = self.weights[*at + i / out.pixels() % c.out_channels];
                    });
                    *at += c.out_channels;
                }
                taps(&unit, samples, |xi, wi, yi| y[yi] += x[xi] * w[wi]);
                y
            }
            Layer::BatchNorm { channels, .. } => self.batch_norm(*channels, shape.pixels(), x, at),
            Layer::Relu => x.into_iter().map(|v| v.max(0.0)).collect(),
            Layer::PRelu { channels, .. } => {
                let slopes = &self.weights[*at..*at + channels];
                *at += channels;
                let slope = |i: usize| slopes[i / shape.pixels() % channels];
                x.into_iter().enumerate().map(|(i, v)| if v < 0.0 { v * slope(i) } else { v }).collect()
            }
            Layer::Quadratic(quadratic) => self.quadratic(quadratic, shape.pixels(), x, at),
            Layer::SharedRelu(shared) => self.shared_relu(shared, shape, &x, at),
            Layer::MaxPool { kernel, stride, padding } => max_pool(*kernel, *stride, *padding, shape, out, &x),
            Layer::AdaptiveAvgPool { .. } => avg_pool(shape, out, &x),
            Layer::Flatten | Layer::Dropout { .. } => x,
            Layer::Linear(l) => {
                let (w, b) = (*at, *at + l.in_features * l.out_features);
                *at = b + l.out_features;
                let row = |n: usize, o: usize| -> f64 {
                    let products =
                        (0..l.in_features).map(|i| x[n * l.in_features + i] * self.weights[w + o * l.in_features + i]);
                    products.sum::<f64>() + self.weights[b + o]
                };
                (0..samples).flat_map(|n| (0..l.out_features).map(move |o| (n, o))).map(|(n, o)| row(n, o)).collect()
            }
            Layer::Residual { main, shortcut } => {
                let (a, _) = self.layers(main, shape, x.clone(), samples, at);
                let (b, _) = self.layers(shortcut, shape, x, samples, at);
                a.iter().zip(&b).map(|(a, b)| a + b).collect()
            }
        }
    }

    /// Batch normalisation as PyTorch defines it: ε 1e-5, momentum 0.1, unbiased running variance.
    fn batch_norm(&mut self, channels: usize, pixels: usize, mut x: Vec<f64>, at: &mut usize) -> Vec<f64> {
        let channel = |i: usize| i / pixels % channels;
        for c in 0..channels {
            let (scale, shift) = (self.weights[*at + c], self.weights[*at + channels + c]);
            let (factor, offset) = self.normal(channels, pixels, &x, c, *at + 2 * channels);
            x.iter_mut()
                .enumerate()
                .filter(|(i, _)| channel(*i) == c)
                .for_each(|(_, v)| *v = (*v * factor + offset) * scale + shift);
        }
        *at += 4 * channels;
        x
    }

    /// Factor and offset that normalise channel `c`, by running statistics that begin at `first` or by those of the batch, which
    /// then move them.
    fn normal(&mut self, channels: usize, pixels: usize, x: &[f64], c: usize, first: usize) -> (f64, f64) {
        let (mean_at, var_at) = (first + c, first + channels + c);
        let (mut mean, mut var) = (self.weights[mean_at], self.weights[var_at]);
        if self.train {
            let mine: Vec<f64> = (0..x.len()).filter(|i| i / pixels % channels == c).map(|i| x[i]).collect();
            let n = mine.len() as f64;
            mean = mine.iter().sum::<f64>() / n;
            var = mine.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            self.weights[mean_at] += 0.1 * (mean - self.weights[mean_at]);
            self.weights[var_at] += 0.1 * (var * n / (n - 1.0) - self.weights[var_at]);
        }
        let factor = 1.0 / (var + 1e-5).sqrt();
        (factor, -mean * factor)
    }

    fn quadratic(&mut self, layer: &Quadratic, pixels: usize, x: Vec<f64>, at: &mut usize) -> Vec<f64> {
        let channels = layer.channels;
        let w = self.weights[*at..].to_vec();
        if let Form::Hermite { second } = layer.form {
            let gains = [0.5, f64::from(second) / (4.0 * std::f64::consts::PI).sqrt()];
            let bases = [x.clone(), x.iter().map(|x| (x * x - 1.0) / 2_f64.sqrt()).collect()];
            let mut y = vec![0.0; x.len()];
            for (number, (basis, gain)) in bases.iter().zip(gains).enumerate() {
                let first = *at + 2 * channels * (number + 1);
                for c in 0..channels {
                    let (factor, offset) = self.normal(channels, pixels, basis, c, first);
                    for i in (0..x.len()).filter(|i| i / pixels % channels == c) {
                        y[i] += gain * (basis[i] * factor + offset);
                    }
                }
            }
            *at += 6 * channels;
            let of = |i: usize| i / pixels % channels;
            return y.iter().enumerate().map(|(i, y)| y * w[of(i)] + w[channels + of(i)]).collect();
        }
        *at += layer.form.initial().len();
        let value = |x: f64| match layer.form {
            Form::Kervolution { .. } => (x + w[0]).powi(2),
            Form::Scaled { .. } => w[0] * (x + w[1]).powi(2),
            _ => w[0] * x * x + w[1] * x + w[2],
        };
        x.into_iter().map(value).collect()
    }

    fn shared_relu(&mut self, layer: &SharedRelu, shape: Shape, x: &[f64], at: &mut usize) -> Vec<f64> {
        let groups = layer.groups(shape);
        let votes = self.weights[*at..*at + layer.places() * usize::from(layer.decision == Decision::Learned)].to_vec();
        *at += votes.len();
        let w = self.weights[*at..*at + 3 * layer.quadratics()].to_vec();
        *at += w.len();
        let mut y = Vec::with_capacity(x.len());
        for x in x.chunks(shape.len()) {
            let vote = |voters: &Vec<(u32, u32)>| {
                let of = |&(i, place): &(u32, u32)| (x[i as usize], place as usize);
                match layer.decision {
                    Decision::Largest => voters
                        .iter()
                        .map(|v| of(v).0)
                        .fold(0.0, |most: f64, v| if v.abs() > most.abs() { v } else { most }),
                    Decision::Learned => voters.iter().map(|v| of(v).0 * votes[of(v).1]).sum(),
                    _ => voters.iter().map(|v| of(v).0).sum(),
                }
            };
            let kept: Vec<bool> = groups.voters.iter().map(|voters| vote(voters) > 0.0).collect();
            y.extend(x.iter().zip(&groups.gates).map(|(&x, gate)| match *gate {
                Gate::Group(group) if kept[group as usize] => x,
                Gate::Keep => x,
                Gate::Quadratic(at) => {
                    let at = 3 * at as usize;
                    w[at] * x * x + w[at + 1] * x + w[at + 2]
                }
                Gate::Group(_) | Gate::Drop => 0.0,
            }));
        }
        y
    }
}

fn max_pool(kernel: usize, stride: usize, padding: usize, shape: Shape, out: Shape, x: &[f64]) -> Vec<f64> {
    let planes = x.len() / shape.pixels();
    let mut y = vec![f64::NEG_INFINITY; planes * out.pixels()];
    for (plane, (oy, ox)) in
        (0..planes).flat_map(|p| (0..out.height).flat_map(move |y| (0..out.width).map(move |x| (p, (y, x)))))
    {
        let target = (plane * out.height + oy) * out.width + ox;
        for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
            let (iy, ix) = (oy * stride + ky, ox * stride + kx);
            if iy >= padding && ix >= padding && iy < shape.height + padding && ix < shape.width + padding {
                let value = x[(plane * shape.height + iy - padding) * shape.width + ix - padding];
                y[target] = f64::max(y[target], value);
            }
        }
    }
    y
}

/// Means over PyTorch's adaptive windows, from ⌊i·n/out⌋ to ⌈(i+1)·n/out⌉.
fn avg_pool(shape: Shape, out: Shape, x: &[f64]) -> Vec<f64> {
    let planes = x.len() / shape.pixels();
    let window = |i: usize, n: usize, out: usize| (i * n / out, ((i + 1) * n).div_ceil(out));
    let mut y = Vec::with_capacity(planes * out.pixels());
    for plane in 0..planes {
        for (oy, ox) in (0..out.height).flat_map(|y| (0..out.width).map(move |x| (y, x))) {
            let ((y0, y1), (x0, x1)) = (window(oy, shape.height, out.height), window(ox, shape.width, out.width));
            let sum: f64 = (y0..y1)
                .flat_map(|iy| (x0..x1).map(move |ix| (iy, ix)))
                .map(|(iy, ix)| x[(plane * shape.height + iy) * shape.width + ix])
                .sum();
            y.push(sum / ((y1 - y0) * (x1 - x0)) as f64);
        }
    }
    y
}
