//! A float interpreter of the zoo's networks, independent of the crate, and both servers in one process.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside test functions")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asymflow_shares::{
    Activation, Dealer, Decision, FixedModel, LayerReport, Link, Party, PartyModel, Profile, Ring, Seed, Server,
    ServerSeed, Setup, WeightPolicy, channel_links, open_output, run, set_up, share_input,
};
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

pub fn image(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    (0..len).map(|_| 4.0 * rng.random::<f32>() - 2.0).collect()
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

/// Both servers' models, their seeds and the dealer.
pub struct Pair<R> {
    pub models: [Arc<PartyModel<R>>; 2],
    pub seeds: [ServerSeed; 2],
    pub dealer: Dealer<R>,
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn pair<R: Ring>(model: FixedModel<R>, seed: u8) -> Pair<R> {
    let [owner, dealing] = [1, 2].map(|half| Seed::from_bytes([half ^ seed.rotate_left(4); 32]));
    let both = [Server::First, Server::Second];
    if model.program().policy() == WeightPolicy::Public {
        let model = model.publish().unwrap();
        let dealer = Dealer::new(model.program().clone(), &dealing, HOUR);
        let seeds = both.map(|server| dealer.seed(server));
        return Pair { models: [Arc::clone(&model), model], seeds, dealer };
    }
    let [first, second] = model.share(&owner).unwrap();
    let dealer = Dealer::new(first.program().clone(), &dealing, HOUR);
    let seeds = both.map(|server| dealer.seed(server));
    let [mut left, mut right] = channel_links(Profile::LOOPBACK);
    let (first, second) = (Setup::new(first, &seeds[0]), Setup::new(second, &seeds[1]));
    let models = std::thread::scope(|scope| {
        let first = scope.spawn(|| set_up(first, &mut left).unwrap());
        let second = set_up(second, &mut right).unwrap();
        [first.join().unwrap(), second]
    });
    Pair { models, seeds, dealer }
}

/// One query over a link each; logits and the first server's report.
pub fn query_over<R: Ring, L: Link + Send>(
    pair: &mut Pair<R>,
    image: &[f32],
    links: [L; 2],
) -> (Vec<f32>, Vec<LayerReport>) {
    let [first, second] = pair.dealer.deal(SystemTime::now());
    let number = first.query();
    let program = pair.models[0].program();
    let [left, right] = share_input(program, number, image, &Seed::from_bytes([number as u8; 32])).unwrap();
    let [mut to_second, mut to_first] = links;
    let first = Party::new(Arc::clone(&pair.models[0]), &pair.seeds[0], first).unwrap();
    let second = Party::new(Arc::clone(&pair.models[1]), &pair.seeds[1], second).unwrap();
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| run(first, left, program, &mut to_second).unwrap());
        let second = run(second, right, program, &mut to_first).unwrap();
        (first.join().unwrap(), second)
    });
    (open_output(program, &[first.0, second.0]).unwrap(), first.1)
}

pub fn query<R: Ring>(pair: &mut Pair<R>, image: &[f32]) -> (Vec<f32>, Vec<LayerReport>) {
    query_over(pair, image, channel_links(Profile::LOOPBACK))
}

pub fn largest_difference(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}
