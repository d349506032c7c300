//! Completion recovers what ReLU left zeros in, and nothing where noise of the residual's own size lies over it.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::collections::BTreeMap;

use asymflow_audit::attack::{Budget, Public, Sight};
use asymflow_audit::attacks::{Completion, MaskedCompletion};
use asymflow_audit::tape::{Kind, Message, Tape};
use asymflow_audit::{Attack, Truth};
use asymflow_linalg::decompose::{BatchShape, by_name};
use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{ConvUnit, Pass, ResidualModel, Unit, UnitId};
use asymflow_zoo::network::Shape;
use asymflow_zoo::{Network, Weights};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StandardNormal};

const SHAPE: Shape = Shape::new(24, 8, 8);
const SAMPLES: usize = 2;
const RANK: usize = 3;
const BUDGET: Budget = Budget { tries: 600, epochs: 0, seed: 1 };

/// A rectified sum of a smooth part of few directions and a rough one.
fn activations() -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(5);
    let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| StandardNormal.sample(&mut rng)).collect() };
    (0..SAMPLES)
        .flat_map(|_| {
            let (a, v) = (normal(SHAPE.channels * RANK), normal(RANK * SHAPE.pixels()));
            let rough = normal(SHAPE.len());
            (0..SHAPE.len())
                .map(|i| {
                    let (channel, pixel) = (i / SHAPE.pixels(), i % SHAPE.pixels());
                    let smooth: f32 = (0..RANK).map(|p| a[channel * RANK + p] * v[p * SHAPE.pixels() + pixel]).sum();
                    (smooth + 0.4 * rough[i]).max(0.0)
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

struct Scene {
    x: Vec<f32>,
    residual: Vec<f32>,
    model: ResidualModel,
    network: Network,
    weights: Weights,
}

impl Scene {
    fn new() -> Self {
        let x = activations();
        let shape = BatchShape { samples: SAMPLES, channels: SHAPE.channels, pixels: SHAPE.pixels() };
        let (_, residual) = by_name("gram").unwrap().split(&x, shape, RANK).unwrap();
        let conv = ConvUnit { input: SHAPE, out_channels: 24, kernel: 3, stride: 1, padding: 1 };
        let model = ResidualModel { units: vec![Unit::Conv(conv.clone()), Unit::Conv(conv)] };
        let network = asymflow_zoo::by_name("demo-cnn", 10, None).unwrap();
        let weights = Weights::init(&network, 1);
        Self { x, residual, model, network, weights }
    }

    /// The figures (relative error, share of pixels) of an attack on messages.
    fn figures(&self, attack: &dyn Attack, messages: Vec<Message>) -> (f64, f64) {
        let (tape, public) = (Tape { messages }, Tape::default());
        let ranks = vec![RANK; 2];
        let public = Public {
            network: &self.network,
            weights: &self.weights,
            model: &self.model,
            ranks: &ranks,
            shares_basis: false,
            images: &[],
            labels: &[],
            tape: &public,
        };
        let guess = attack.guess(&Sight { tape: &tape, public }, BUDGET).unwrap();
        let activations = BTreeMap::from([(UnitId(1), (SHAPE, self.x.clone()))]);
        let truth = Truth { images: Vec::new(), shape: SHAPE, labels: Vec::new(), activations };
        let figures = truth.judge(attack.name(), &guess).unwrap();
        (figures[0].1.value, figures[1].1.value)
    }

    fn residual_alone(&self) -> f64 {
        let square = |values: &[f32]| values.iter().map(|v| f64::from(v * v)).sum::<f64>();
        (square(&self.residual) / square(&self.x)).sqrt()
    }
}

fn message(unit: u32, kind: Kind, values: Vec<f32>) -> Message {
    Message { unit: UnitId(unit), kind, values: Payload::F32(values), records: Vec::new(), labels: None }
}

#[test]
fn zeros_give_the_activation_back_and_noise_of_its_size_does_not() {
    let scene = Scene::new();
    let residual = || scene.residual.clone();
    let attack = Completion { unit: UnitId(1), repeats: 1 };
    let (error, share) = scene.figures(&attack, vec![message(1, Kind::Input(Pass::Inference), residual())]);
    assert!(share > 0.8 && error < 0.5 * scene.residual_alone(), "{share} of pixels, error {error}");

    let rms = (residual().iter().map(|v| f64::from(v * v)).sum::<f64>() / residual().len() as f64).sqrt();
    let mut rng = StdRng::seed_from_u64(9);
    let mut noised = || -> Vec<f32> {
        let noise = |rng: &mut StdRng| -> f32 { StandardNormal.sample(rng) };
        residual().iter().map(|v| v + rms as f32 * noise(&mut rng)).collect()
    };
    let attack = Completion { unit: UnitId(1), repeats: 1 };
    let (_, share) = scene.figures(&attack, vec![message(1, Kind::Input(Pass::Inference), noised())]);
    assert!(share < 0.01, "{share} of pixels under noise");

    // Fresh noise averages out.
    let repeats = 40_000;
    let mut sum = vec![0.0_f64; scene.residual.len()];
    (0..repeats).for_each(|_| sum.iter_mut().zip(noised()).for_each(|(s, v)| *s += f64::from(v)));
    let mean = sum.iter().map(|s| (s / f64::from(repeats)) as f32).collect();
    let attack = Completion { unit: UnitId(1), repeats: 1 };
    let (_, averaged) = scene.figures(&attack, vec![message(1, Kind::Input(Pass::Inference), mean)]);
    assert!(averaged > 0.3, "{averaged} of pixels after averaging");
}

#[test]
fn a_gradient_that_shows_the_zeros_leaves_nothing_to_guess() {
    let scene = Scene::new();
    let mut rng = StdRng::seed_from_u64(3);
    let gradient = scene.x.iter().map(|&x| if x > 0.0 { rng.random::<f32>() + 0.1 } else { 0.0 }).collect();
    let messages =
        vec![message(1, Kind::Input(Pass::Training), scene.residual.clone()), message(0, Kind::Gradient, gradient)];
    let attack = MaskedCompletion { unit: UnitId(1), before: UnitId(0) };
    let (error, share) = scene.figures(&attack, messages);
    assert!(share > 0.9 && error < 0.2, "{share} of pixels, error {error}");
}
