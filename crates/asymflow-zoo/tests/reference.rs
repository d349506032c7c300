//! The reference against itself: every gradient is the derivative of what is computed, by central differences.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use asymflow_zoo::ops::Op;
use asymflow_zoo::{
    Network, Weights, by_name,
    graph::{Graph, reference::Reference},
    network::{Layer, Shape},
    ops::{
        Choice, Conv, Decision, Easing, Form, Gate, GroupNorm, Grouping, Linear, Pointwise, Quadratic, RangePenalty,
        SharedRelu,
    },
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SAMPLES: usize = 3;
const STEP: f64 = 1e-5;

fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f64>() * 4.0 - 2.0).collect()
}

/// Layers between an input and logits, which are the values that they put out.
fn network(input: Shape, layers: Vec<Layer>) -> Network {
    let classes = asymflow_zoo::network::output_of(&layers, input).unwrap().len();
    Network { name: "some".to_owned(), input, classes, layers: layers.into_iter().chain([Layer::Flatten]).collect() }
}

fn conv(name: &str, stride: usize, bias: bool) -> Layer {
    let (name, padding) = (name.to_owned(), 1);
    Layer::Conv(Conv { name, in_channels: 3, out_channels: 3, kernel: 3, stride, padding, bias })
}

fn norm(name: &str) -> Layer {
    Layer::BatchNorm { name: name.to_owned(), channels: 3 }
}

fn quadratic(name: &str, form: Form) -> Layer {
    Layer::Quadratic(Quadratic { name: name.to_owned(), channels: 3, form })
}

fn shared(name: &str, grouping: Grouping, decision: Decision) -> Layer {
    Layer::SharedRelu(SharedRelu { name: name.to_owned(), channels: 3, grouping, decision })
}

fn choices() -> Grouping {
    Grouping::Choices(vec![Choice::Copy { of: 2 }, Choice::Quadratic, Choice::Block { rows: 2, columns: 3 }])
}

fn groups(groups: usize) -> Layer {
    Layer::GroupNorm(GroupNorm { name: format!("groups{groups}"), channels: 3, groups })
}

/// Every operation, in one of the networks at least.
fn networks() -> Vec<Network> {
    let input = Shape::new(3, 5, 4);
    let blocks = Grouping::Blocks { channels: 2, rows: 2, columns: 3 };
    let linear = Layer::Linear(Linear { name: "fc".to_owned(), in_features: 12, out_features: 4 });
    let prelu = Layer::PRelu { name: "prelu".to_owned(), channels: 3 };
    let mut networks = vec![
        network(input, vec![conv("a", 2, true), norm("n"), Layer::Relu, Layer::Dropout { p: 0.0 }]),
        network(input, vec![groups(1), conv("a", 2, true), Layer::Relu, groups(3)]),
        network(input, vec![prelu, Layer::MaxPool { kernel: 3, stride: 2, padding: 1 }, norm("n")]),
        network(input, vec![Layer::AdaptiveAvgPool { out: 2 }, Layer::Flatten, linear, Layer::Relu]),
        network(
            input,
            vec![
                Layer::Residual { main: vec![conv("a", 2, false), norm("n")], shortcut: vec![conv("b", 2, true)] },
                Layer::Residual { main: vec![norm("m"), quadratic("q", Form::REACT)], shortcut: Vec::new() },
            ],
        ),
    ];
    let forms = [Form::Kervolution { c: 0.5 }, Form::RPKN, Form::REACT, Form::HERMITE, Form::Hermite { second: 0.3 }];
    networks.extend(forms.map(|form| network(input, vec![quadratic("q", form), norm("n")])));
    networks.extend(Pointwise::ALL.map(|function| network(input, vec![Layer::Pointwise(function), norm("n")])));
    for decision in [Decision::Corner, Decision::Centre, Decision::Mean, Decision::Largest] {
        networks.push(network(input, vec![shared("s", blocks.clone(), decision), norm("n")]));
        networks.push(network(input, vec![shared("s", choices(), decision)]));
    }
    networks
}

fn reference(network: &Network) -> Reference {
    let weights = Weights::init(network, 1).flatten(network).unwrap();
    let noise = numbers(2, weights.len());
    let weights: Vec<f32> = weights.iter().zip(noise).map(|(w, noise)| w + 0.04 * noise as f32).collect();
    Reference::new(network, &weights).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// weight · Σ |x / limit|^exponent, straight beyond saturation; the mean over samples.
fn penalty(range: RangePenalty, x: &[f64]) -> f64 {
    let (limit, saturation) = (f64::from(range.limit), f64::from(RangePenalty::SATURATION));
    let value = |x: &f64| {
        let ratio = (x / limit).abs();
        let inside = ratio.min(saturation);
        inside.powi(range.exponent) + f64::from(range.exponent) * saturation.powi(range.exponent - 1) * (ratio - inside)
    };
    f64::from(range.weight) * x.iter().map(value).sum::<f64>() / SAMPLES as f64
}

fn differences(at: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut moved = at.to_vec();
    let one = |i: usize| {
        moved[i] = at[i] + STEP;
        let above = f(&moved);
        moved[i] = at[i] - STEP;
        let below = f(&moved);
        moved[i] = at[i];
        (above - below) / (2.0 * STEP)
    };
    (0..at.len()).map(one).collect()
}

fn near(label: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{label}");
    let scale = expected.iter().fold(1e-2_f64, |most, v| most.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() < 1e-6 * scale, "{label}: value {i} is {got}, expected {expected}");
    }
}

#[test]
fn every_gradient_is_the_derivative_of_what_is_computed() {
    let range = Some(RangePenalty { limit: 0.45, weight: 0.01, exponent: 6 });
    let mut seen = BTreeSet::new();
    for network in networks() {
        seen.extend(Graph::new(&network).unwrap().nodes.iter().map(|node| kind(&node.op)));
        // The penalty is on the input, where the quadratic comes first.
        let is_first = matches!(network.layers[0], Layer::Quadratic(_));
        let easings =
            [Easing::default(), Easing { sharing: 0.3, range: range.filter(|_| is_first), ..Easing::default() }];
        for easing in easings {
            let label = format!("{:?}, {easing:?}", network.layers);
            let reference = reference(&network);
            let x = numbers(3, SAMPLES * network.input.len());
            let dy = numbers(4, SAMPLES * network.classes);
            let loss = |reference: &Reference, x: &[f64]| {
                let penalty = easing.range.map_or(0.0, |range| penalty(range, x));
                dot(reference.train(x, easing).unwrap().logits(), &dy) + penalty
            };
            let tape = reference.train(&x, easing).unwrap();
            let gradients = reference.backward(&tape, &dy).unwrap();
            near(&format!("dx of {label}"), &gradients.input, &differences(&x, |x| loss(&reference, x)));
            for (index, spec) in network.parameters().iter().enumerate().filter(|(_, spec)| spec.kind.is_trained()) {
                let mut moved = reference.clone();
                let expected = differences(&reference.params[index], |values| {
                    moved.params[index] = values.to_vec();
                    loss(&moved, &x)
                });
                near(&format!("{} of {label}", spec.name), &gradients.params[index], &expected);
            }
        }
    }
    assert_eq!(seen.len(), 14, "an operation without a test: {seen:?}");
}

/// A name for every operation, so that a new one has to be among the networks here.
fn kind(op: &Op) -> &'static str {
    match op {
        Op::Conv(_) => "conv",
        Op::Norm(_) => "norm",
        Op::GroupNorm(_) => "group-norm",
        Op::Relu => "relu",
        Op::PRelu(_) => "prelu",
        Op::Pointwise(_) => "pointwise",
        Op::Quadratic(_) => "quadratic",
        Op::SharedRelu(_) => "shared",
        Op::MaxPool(_) => "max",
        Op::AvgPool(_) => "average",
        Op::Linear(_) => "linear",
        Op::Dropout(_) => "dropout",
        Op::Flatten => "flatten",
        Op::Add => "add",
    }
}

/// What a straight-through gradient adds is the derivative of clamp(vote/2 + 1/2, 0, 1) times the activation as it was.
#[test]
fn a_straight_through_gradient_is_that_of_a_clamped_vote() {
    let shape = Shape::new(3, 5, 4);
    let blocks = Grouping::Blocks { channels: 2, rows: 2, columns: 3 };
    for (grouping, decision) in [
        (blocks.clone(), Decision::Mean),
        (blocks.clone(), Decision::Centre),
        (blocks, Decision::Learned),
        (choices(), Decision::Corner),
        (choices(), Decision::Mean),
    ] {
        let layer = SharedRelu { name: "s".to_owned(), channels: 3, grouping, decision };
        let network = network(shape, vec![Layer::SharedRelu(layer.clone())]);
        let reference = reference(&network);
        let (x, dy) = (numbers(5, shape.len()), numbers(6, shape.len()));
        let groups = layer.groups(shape);
        let soft = |weights: &[f64], x_now: &[f64]| -> f64 {
            let vote = |voters: &Vec<(u32, u32)>| {
                let values = voters.iter().map(|&(i, place)| (x_now[i as usize], place as usize));
                match decision {
                    Decision::Learned => values.map(|(x, place)| x * weights[place]).sum::<f64>(),
                    _ => values.map(|(x, _)| x).sum::<f64>() / voters.len() as f64,
                }
            };
            let clamped: Vec<f64> =
                groups.voters.iter().map(|voters| (vote(voters) / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
            let of = |(i, gate): (usize, &Gate)| match gate {
                Gate::Group(group) => 0.7 * dy[i] * x[i] * clamped[*group as usize],
                _ => 0.0,
            };
            groups.gates.iter().enumerate().map(of).sum()
        };
        let easing = Easing { sharing: 0.7, straight_through: true, range: None };
        let tape = reference.train(&x, easing).unwrap();
        let eased = reference.backward(&tape, &dy).unwrap();
        let first = if decision == Decision::Learned { reference.params[0].clone() } else { Vec::new() };
        // With decisions held constant: where the layer kept an activation, and the ReLU beside it.
        let kept = |i: usize| match groups.gates[i] {
            Gate::Group(_) => {
                let rest = 0.3 * x[i].max(0.0);
                if (tape.logits()[i] - rest).abs() > 1e-4 { 0.7 } else { 0.0 }
            }
            _ => f64::NAN,
        };
        let added: Vec<f64> =
            (0..x.len()).map(|i| eased.input[i] - dy[i] * (kept(i) + if x[i] > 0.0 { 0.3 } else { 0.0 })).collect();
        let expected = differences(&x, |x| soft(&first, x));
        for i in (0..x.len()).filter(|&i| kept(i).is_finite()) {
            assert!(
                (added[i] - expected[i]).abs() < 1e-6,
                "{decision:?}: value {i} gets {}, {}",
                added[i],
                expected[i]
            );
        }
        if decision == Decision::Learned {
            near("votes", &eased.params[0], &differences(&first, |weights| soft(weights, &x)));
        }
    }
}

#[test]
fn nodes_are_named_after_the_layer_of_weights_before_them() {
    let graph = Graph::new(&by_name("resnet8-cifar", 10, None).unwrap()).unwrap();
    let names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    for name in ["conv1", "conv1.relu", "layer1.0.conv1.relu", "layer2.0.conv2.residual", "layer2.0.conv2.relu", "fc"] {
        assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name} in {names:?}");
    }
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
}

#[test]
fn bad_batches_and_weights_are_errors() {
    let network = by_name("demo-cnn", 10, None).unwrap();
    assert!(Reference::new(&network, &[0.0]).is_err());
    let reference = reference(&network);
    assert!(reference.logits(&[]).is_err() && reference.logits(&[0.0; 7]).is_err());
    let tape = reference.train(&vec![0.5; network.input.len()], Easing::default()).unwrap();
    assert!(reference.backward(&tape, &[0.0; 9]).is_err());
}
