//! A float interpreter of the zoo's networks, independent of the crate.

use std::collections::BTreeMap;

use asymflow_shares::{Activation, Decision};
use asymflow_zoo::{Conv, Layer, Network, Shape, Weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// Weights with lively normalisation, as after training.
pub fn lively(network: &Network, seed: u64) -> Weights {
    let mut weights = Weights::init(network, seed);
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    for (name, tensor) in &mut weights.tensors {
        let normalised = tensor.shape.len() == 1 && (name.contains("bn") || name.contains("downsample.1"));
        for value in tensor.data.iter_mut().filter(|_| normalised) {
            *value = match name.rsplit('.').next() {
                Some("weight") => 0.5 + rng.random::<f32>(),
                Some("running_var") => 0.5 + 1.5 * rng.random::<f32>(),
                _ => rng.random::<f32>() - 0.5,
            };
        }
    }
    weights
}

/// The network in f64, activations replaced as in the options.
pub fn float_logits(
    network: &Network,
    weights: &Weights,
    activations: &BTreeMap<String, Activation>,
    image: &[f32],
) -> Vec<f64> {
    let x = image.iter().map(|&v| f64::from(v)).collect();
    let mut float = Float { weights, activations, last: "input".to_owned() };
    float.layers(&network.layers, network.input, x).1
}

struct Float<'a> {
    weights: &'a Weights,
    activations: &'a BTreeMap<String, Activation>,
    last: String,
}

impl Float<'_> {
    fn tensor(&self, name: &str, suffix: &str) -> Vec<f64> {
        self.weights.tensors[&format!("{name}.{suffix}")].data.iter().map(|&v| f64::from(v)).collect()
    }

    fn layers(&mut self, layers: &[Layer], mut shape: Shape, mut x: Vec<f64>) -> (Shape, Vec<f64>) {
        for layer in layers {
            x = self.layer(layer, shape, x);
            shape = layer.output(shape).unwrap();
        }
        (shape, x)
    }

    fn layer(&mut self, layer: &Layer, shape: Shape, x: Vec<f64>) -> Vec<f64> {
        match layer {
            Layer::Conv(conv) => {
                self.last.clone_from(&conv.name);
                self.conv(conv, shape, &x)
            }
            Layer::BatchNorm { name, .. } => {
                let [scale, shift, mean, var] =
                    ["weight", "bias", "running_mean", "running_var"].map(|suffix| self.tensor(name, suffix));
                let norm = |(i, v): (usize, &f64)| {
                    let c = i / shape.pixels();
                    (v - mean[c]) / (var[c] + 1e-5).sqrt() * scale[c] + shift[c]
                };
                x.iter().enumerate().map(norm).collect()
            }
            Layer::Relu => {
                let name = format!("{}.relu", self.last);
                activate(self.activations.get(&name).unwrap_or(&Activation::Relu), shape, &x)
            }
            Layer::AdaptiveAvgPool { out } => average(shape, *out, &x),
            Layer::Linear(linear) => {
                self.last.clone_from(&linear.name);
                let (weight, bias) = (self.tensor(&linear.name, "weight"), self.tensor(&linear.name, "bias"));
                let row = |(w, b): (&[f64], &f64)| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + b;
                weight.chunks(x.len()).zip(&bias).map(row).collect()
            }
            Layer::Residual { main, shortcut } => {
                let before = self.last.clone();
                let right = self.layers(shortcut, shape, x.clone()).1;
                self.last = before;
                let left = self.layers(main, shape, x).1;
                left.iter().zip(right).map(|(a, b)| a + b).collect()
            }
            Layer::Flatten | Layer::Dropout { .. } => x,
            other => panic!("{other:?}"),
        }
    }

    fn conv(&self, conv: &Conv, shape: Shape, x: &[f64]) -> Vec<f64> {
        let weight = self.tensor(&conv.name, "weight");
        let out = Layer::Conv(conv.clone()).output(shape).unwrap();
        let bias = if conv.bias { self.tensor(&conv.name, "bias") } else { vec![0.0; conv.out_channels] };
        let mut y = Vec::new();
        for o in 0..out.channels {
            for (oy, ox) in (0..out.height).flat_map(|oy| (0..out.width).map(move |ox| (oy, ox))) {
                let mut sum = bias[o];
                for c in 0..shape.channels {
                    for (ky, kx) in (0..conv.kernel).flat_map(|ky| (0..conv.kernel).map(move |kx| (ky, kx))) {
                        let iy = (oy * conv.stride + ky).wrapping_sub(conv.padding);
                        let ix = (ox * conv.stride + kx).wrapping_sub(conv.padding);
                        if iy < shape.height && ix < shape.width {
                            sum += weight[((o * shape.channels + c) * conv.kernel + ky) * conv.kernel + kx]
                                * x[(c * shape.height + iy) * shape.width + ix];
                        }
                    }
                }
                y.push(sum);
            }
        }
        y
    }
}

fn average(shape: Shape, out: usize, x: &[f64]) -> Vec<f64> {
    let window = |side: usize, i: usize| i * side / out..((i + 1) * side).div_ceil(out);
    let mut y = Vec::new();
    for channel in x.chunks(shape.pixels()) {
        for (oy, ox) in (0..out).flat_map(|oy| (0..out).map(move |ox| (oy, ox))) {
            let values: Vec<f64> = window(shape.height, oy)
                .flat_map(|iy| window(shape.width, ox).map(move |ix| channel[iy * shape.width + ix]))
                .collect();
            y.push(values.iter().sum::<f64>() / values.len() as f64);
        }
    }
    y
}

fn activate(activation: &Activation, shape: Shape, x: &[f64]) -> Vec<f64> {
    match activation {
        Activation::Relu => x.iter().map(|v| v.max(0.0)).collect(),
        Activation::Identity => x.to_vec(),
        Activation::Quadratic { a, b, c } => x.iter().map(|v| a * v * v + b * v + c).collect(),
        Activation::SharedRelu { block: (rows, columns), channels, decision } => {
            let key = |i: usize| {
                let (c, y, x) = (i / shape.pixels(), i / shape.width % shape.height, i % shape.width);
                ((c / channels, y / rows, x / columns), ((c % channels), (y % rows), (x % columns)))
            };
            let mut sums = BTreeMap::new();
            for (i, v) in x.iter().enumerate() {
                let (group, (c, y, x)) = key(i);
                let weight = match decision {
                    Decision::Mean => 1.0,
                    Decision::Corner => f64::from(u8::from((c, y, x) == (0, 0, 0))),
                    Decision::Centre => f64::from(u8::from((c, y, x) == (0, rows / 2, columns / 2))),
                    Decision::Weights(w) => f64::from(w[(c * rows + y) * columns + x]),
                };
                *sums.entry(group).or_insert(0.0) += weight * v;
            }
            x.iter().enumerate().map(|(i, v)| if sums[&key(i).0] >= 0.0 { *v } else { 0.0 }).collect()
        }
    }
}

pub fn largest_difference(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}
