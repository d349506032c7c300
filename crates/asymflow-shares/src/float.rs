//! Networks in floating point, activations replaced: what a client would like to have computed.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use asymflow_zoo::{Choice, Conv, Form, Grouping, Layer, Network, Quadratic, Shape, SharedRelu, Weights};

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
            Layer::Quadratic(quadratic) => self.quadratic(quadratic, shape, &x),
            Layer::SharedRelu(shared) if shared.decision != asymflow_zoo::Decision::Largest => {
                self.shared_relu(shared, shape, &x)
            }
            Layer::MaxPool { .. } | Layer::PRelu { .. } | Layer::SharedRelu(_) => {
                return Err(CompileError::Unsupported {
                    layer: format!("after {}", self.last),
                    reason: "it has no protocol",
                    replacement: "average pooling, or ReLU",
                });
            }
        })
    }

    /// From the definitions of the forms.
    fn quadratic(&self, quadratic: &Quadratic, shape: Shape, x: &[f64]) -> Vec<f64> {
        let weight = self.tensor(&quadratic.name, "weight");
        let value = |suffix: &str, c: usize| self.tensor(&quadratic.name, suffix)[c];
        let one = |(i, &x): (usize, &f64)| match (quadratic.form, weight.as_slice()) {
            (Form::Kervolution { .. }, [c, ..]) => (x + c).powi(2),
            (Form::Scaled { .. }, [a, c, ..]) => a * (x + c).powi(2),
            (Form::Free { .. }, [a, b, c, ..]) => a * x * x + b * x + c,
            _ => {
                let c = i / shape.pixels();
                let normal = |x: f64, name: &str| {
                    let variance = value(&format!("{name}_var"), c) + 1e-5;
                    (x - value(&format!("{name}_mean"), c)) / variance.sqrt()
                };
                let second = normal((x * x - 1.0) / 2_f64.sqrt(), "second") / (4.0 * PI).sqrt();
                weight[c] * (normal(x, "first") / 2.0 + second) + value("bias", c)
            }
        };
        x.iter().enumerate().map(one).collect()
    }

    fn shared_relu(&self, shared: &SharedRelu, shape: Shape, x: &[f64]) -> Vec<f64> {
        let choices = match &shared.grouping {
            Grouping::Choices(choices) => choices,
            Grouping::Blocks { channels, rows, columns } => {
                let decision = match shared.decision {
                    asymflow_zoo::Decision::Learned => {
                        Decision::Weights(self.tensor(&shared.name, "vote").iter().map(|&w| w as f32).collect())
                    }
                    decision => plain(decision),
                };
                return shared_blocks(shape, (*channels, *rows, *columns), &decision, x);
            }
        };
        let mut quadratics = self.rows(&shared.name, shared.quadratics()).into_iter();
        let plane = |channel: usize| &x[channel * shape.pixels()..][..shape.pixels()];
        let flat = Shape { channels: 1, ..shape };
        let gated = |x: &[f64], of: &[f64], rows: usize, columns: usize| -> Vec<f64> {
            // The prototype's decisions: 1 where it is kept.
            let kept = block_signs(flat, (1, rows, columns), &plain(shared.decision), of);
            x.iter().zip(kept).map(|(x, kept)| if kept { *x } else { 0.0 }).collect()
        };
        let mut y = Vec::with_capacity(x.len());
        for (channel, choice) in choices.iter().enumerate() {
            let x = plane(channel);
            match *choice {
                Choice::Block { rows, columns } => y.extend(gated(x, x, rows, columns)),
                Choice::Copy { of } => {
                    let Choice::Block { rows, columns } = choices[of] else { continue };
                    y.extend(gated(x, plane(of), rows, columns));
                }
                Choice::Quadratic => {
                    let [a, b, c] = quadratics.next().unwrap_or_default();
                    y.extend(x.iter().map(|x| a * x * x + b * x + c));
                }
                Choice::Identity => y.extend(x),
                Choice::Zero => y.extend(vec![0.0; x.len()]),
            }
        }
        y
    }

    /// Rows of coefficients, if there are any.
    fn rows(&self, name: &str, count: usize) -> Vec<[f64; 3]> {
        let values = if count > 0 { self.tensor(name, "quadratic") } else { Vec::new() };
        let (rows, _) = values.as_chunks::<3>();
        rows.to_vec()
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
            shared_blocks(shape, (*channels, block.0, block.1), decision, &x)
        }
    }
}

fn plain(decision: asymflow_zoo::Decision) -> Decision {
    match decision {
        asymflow_zoo::Decision::Corner => Decision::Corner,
        asymflow_zoo::Decision::Centre => Decision::Centre,
        _ => Decision::Mean,
    }
}

fn shared_blocks(shape: Shape, block: (usize, usize, usize), decision: &Decision, x: &[f64]) -> Vec<f64> {
    let kept = block_signs(shape, block, decision, x);
    x.iter().zip(kept).map(|(x, kept)| if kept { *x } else { 0.0 }).collect()
}

/// Whether each activation is kept.
fn block_signs(shape: Shape, block: (usize, usize, usize), decision: &Decision, x: &[f64]) -> Vec<bool> {
    let groups: Vec<_> = (0..x.len()).map(|i| group(shape, i, block, decision)).collect();
    let mut sums = BTreeMap::new();
    for (&(group, weight), v) in groups.iter().zip(x) {
        *sums.entry(group).or_insert(0.0) += weight * v;
    }
    groups.iter().map(|(group, _)| sums[group] > 0.0).collect()
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
