//! Networks in floating point, activations replaced: what a client would like to have computed.

use std::collections::BTreeMap;

use asymflow_zoo::{Conv, Layer, Network, Shape, Weights};

use crate::compile::{Activation, CompileError};
use crate::conv::{ConvShape, float_conv};
use crate::groups::Decision;

/// Logits of one image (channels × height × width) in double precision, activations replaced as by [`compile`](fn@crate::compile).
/// Straight from the definitions, and slow: it shares nothing with the programs that it is compared with.
///
/// # Errors
/// Weights or image do not fit, or a layer has no protocol.
pub fn float_logits(
    network: &Network,
    weights: &Weights,
    activations: &BTreeMap<String, Activation>,
    image: &[f32],
) -> Result<Vec<f64>, CompileError> {
    network.validate()?;
    weights.validate(network)?;
    let (got, expected) = (image.len() as u64, network.input.len() as u64);
    if got != expected {
        return Err(CompileError::Options {
            what: "number of values of an image",
            got,
            least: expected,
            most: expected,
        });
    }
    let empty = |activation: &Activation| matches!(activation, Activation::SharedRelu { block: (rows, columns), channels, .. } if [rows, columns, channels].contains(&&0));
    if let Some((name, _)) = activations.iter().find(|(_, activation)| empty(activation)) {
        return Err(CompileError::Activation { name: name.clone(), what: "side of a block" });
    }
    let x = image.iter().map(|&v| f64::from(v)).collect();
    let mut float = Float { weights, activations, last: "input".to_owned() };
    Ok(float.layers(&network.layers, network.input, x)?.1)
}

struct Float<'a> {
    /// Validated: every tensor of the network is there.
    weights: &'a Weights,
    activations: &'a BTreeMap<String, Activation>,
    last: String,
}

impl Float<'_> {
    fn tensor(&self, name: &str, suffix: &str) -> Vec<f64> {
        self.weights.tensors[&format!("{name}.{suffix}")].data.iter().map(|&v| f64::from(v)).collect()
    }

    fn layers(
        &mut self,
        layers: &[Layer],
        mut shape: Shape,
        mut x: Vec<f64>,
    ) -> Result<(Shape, Vec<f64>), CompileError> {
        for layer in layers {
            x = self.layer(layer, shape, x)?;
            shape = layer.output(shape)?;
        }
        Ok((shape, x))
    }

    fn layer(&mut self, layer: &Layer, shape: Shape, x: Vec<f64>) -> Result<Vec<f64>, CompileError> {
        Ok(match layer {
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
                activate(self.activations.get(&name).unwrap_or(&Activation::Relu), shape, x)
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
                let right = self.layers(shortcut, shape, x.clone())?.1;
                self.last = before;
                let left = self.layers(main, shape, x)?.1;
                left.iter().zip(right).map(|(a, b)| a + b).collect()
            }
            Layer::Flatten | Layer::Dropout { .. } => x,
            Layer::MaxPool { .. } | Layer::PRelu { .. } | Layer::Quadratic(_) | Layer::SharedRelu(_) => {
                return Err(CompileError::Unsupported {
                    layer: format!("after {}", self.last),
                    reason: "it has no protocol",
                    replacement: "average pooling, or ReLU",
                });
            }
        })
    }

    fn conv(&self, conv: &Conv, shape: Shape, x: &[f64]) -> Vec<f64> {
        let weight = self.tensor(&conv.name, "weight");
        let bias = if conv.bias { self.tensor(&conv.name, "bias") } else { vec![0.0; conv.out_channels] };
        let shape = ConvShape {
            in_channels: conv.in_channels,
            out_channels: conv.out_channels,
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
            height: shape.height,
            width: shape.width,
        };
        float_conv(shape, &weight, &bias, x)
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

fn activate(activation: &Activation, shape: Shape, x: Vec<f64>) -> Vec<f64> {
    match activation {
        Activation::Relu => x.iter().map(|v| v.max(0.0)).collect(),
        Activation::Identity => x,
        Activation::Quadratic { a, b, c } => x.iter().map(|v| a * v * v + b * v + c).collect(),
        Activation::SharedRelu { block, channels, decision } => {
            let groups: Vec<_> =
                (0..x.len()).map(|i| group(shape, i, (*channels, block.0, block.1), decision)).collect();
            let mut sums = BTreeMap::new();
            for (&(group, weight), v) in groups.iter().zip(&x) {
                *sums.entry(group).or_insert(0.0) += weight * v;
            }
            x.iter().zip(&groups).map(|(v, (group, _))| if sums[group] >= 0.0 { *v } else { 0.0 }).collect()
        }
    }
}

/// Group of activation `i`, and what the activation adds to the group's decision.
fn group(
    shape: Shape,
    i: usize,
    (channels, rows, columns): (usize, usize, usize),
    decision: &Decision,
) -> ((usize, usize, usize), f64) {
    let (c, y, x) = (i / shape.pixels(), i / shape.width % shape.height, i % shape.width);
    let (group, place) = ((c / channels, y / rows, x / columns), (c % channels, y % rows, x % columns));
    // Blocks at the edge are smaller, and so their middle lies elsewhere.
    let middle = (rows.min(shape.height - y / rows * rows) / 2, columns.min(shape.width - x / columns * columns) / 2);
    let weight = match decision {
        Decision::Mean => 1.0,
        Decision::Corner => f64::from(u8::from(place == (0, 0, 0))),
        Decision::Centre => f64::from(u8::from(place == (0, middle.0, middle.1))),
        Decision::Weights(w) => w.get((place.0 * rows + place.1) * columns + place.2).map_or(0.0, |&w| f64::from(w)),
    };
    (group, weight)
}
