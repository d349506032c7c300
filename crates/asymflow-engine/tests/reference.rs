//! The engine against the zoo's reference: every operation, forward, backward and in its statistics.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_zoo::{
    Network, Weights, by_name,
    graph::reference::Reference,
    network::{Layer, Shape},
    ops::{
        Choice, Conv, Decision, Easing, Form, GroupNorm, Grouping, Linear, Pointwise, Quadratic, RangePenalty,
        SharedRelu,
    },
    weights::Pass,
};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SAMPLES: usize = 3;

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Layers whose outputs are the logits.
fn network(input: Shape, layers: Vec<Layer>) -> Network {
    let classes = asymflow_zoo::network::output_of(&layers, input).unwrap().len();
    Network { name: "some".to_owned(), input, classes, layers: layers.into_iter().chain([Layer::Flatten]).collect() }
}

fn near(label: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{label}");
    let scale = expected.iter().fold(1e-3_f64, |most, v| most.max(v.abs()));
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(got) - expected).abs() < 5e-5 * scale, "{label}: value {i} is {got}, expected {expected}");
    }
}

/// Inference, a training pass, all its gradients and the running statistics after it.
fn check(network: &Network, easing: Easing) {
    let label = format!("{:?}, {easing:?}", network.layers);
    let mut flat = Weights::init(network, 1).flatten(network).unwrap();
    let noise = numbers(2, flat.len());
    flat.iter_mut().zip(&noise).for_each(|(w, noise)| *w += 0.2 * noise);
    let weights = Weights::unflatten(network, &flat).unwrap();
    let (x, dy) = (numbers(3, SAMPLES * network.input.len()), numbers(4, SAMPLES * network.classes));
    let mut engine = Engine::with_input_gradient(network.clone(), &weights, Par::Seq).unwrap();
    engine.set_easing(easing);
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
    let mut reference = Reference::new(network, &flat).unwrap();

    let y = engine.forward(&x, SAMPLES, Pass::Inference, 0, &mut convolver).unwrap();
    near(&format!("inference of {label}"), &y, &reference.logits(&wide(&x)).unwrap());
    let y = engine.forward(&x, SAMPLES, Pass::Training, 0, &mut convolver).unwrap();
    let tape = reference.train(&wide(&x), easing).unwrap();
    near(&format!("training of {label}"), &y, tape.logits());
    let dx = engine.backward(dy.clone(), SAMPLES, &mut convolver).unwrap().unwrap();
    let gradients = reference.backward(&tape, &wide(&dy)).unwrap();
    near(&format!("dx of {label}"), &dx, &gradients.input);
    engine.commit_moments();
    reference.commit(&tape);
    for (index, spec) in network.parameters().iter().enumerate() {
        let label = format!("{} of {label}", spec.name);
        near(&label, engine.params().values(index), &reference.params[index]);
        if spec.kind.is_trained() {
            near(&label, engine.params().gradient(index), &gradients.params[index]);
        }
    }
}

fn easings() -> [Easing; 4] {
    let range = Some(RangePenalty { limit: 0.45, weight: 0.01, exponent: 6 });
    [
        Easing::default(),
        Easing { sharing: 0.3, ..Easing::default() },
        Easing { straight_through: true, range, ..Easing::default() },
        Easing { sharing: 0.7, straight_through: true, range },
    ]
}

fn conv(name: &str, in_channels: usize, out_channels: usize, kernel: usize, stride: usize, bias: bool) -> Layer {
    let (name, padding) = (name.to_owned(), kernel / 2);
    Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride, padding, bias })
}

fn norm(name: &str, channels: usize) -> Layer {
    Layer::BatchNorm { name: name.to_owned(), channels }
}

fn groups(name: &str, channels: usize, groups: usize) -> Layer {
    Layer::GroupNorm(GroupNorm { name: name.to_owned(), channels, groups })
}

#[test]
fn layers_equal_the_reference() {
    let input = Shape::new(2, 9, 7);
    let linear = Layer::Linear(Linear { name: "fc".to_owned(), in_features: 18, out_features: 5 });
    let prelu = Layer::PRelu { name: "p".to_owned(), channels: 2 };
    let block = |relu: bool| {
        let main = vec![conv("m1", 2, 4, 3, 2, false), norm("n1", 4), Layer::Relu, conv("m2", 4, 4, 3, 1, true)];
        let shortcut = vec![conv("s", 2, 4, 1, 2, false), norm("sn", 4)];
        let inner = Layer::Residual { main: vec![norm("in", 4), Layer::Relu], shortcut: vec![Layer::Relu] };
        let mut layers = vec![Layer::Residual { main, shortcut }, inner];
        layers.extend(relu.then_some(Layer::Relu));
        layers.push(Layer::Residual { main: vec![norm("last", 4)], shortcut: Vec::new() });
        layers
    };
    for layers in [
        vec![conv("a", 2, 4, 3, 1, true), Layer::Relu],
        vec![conv("a", 2, 3, 3, 2, false), norm("n", 3), Layer::Relu, conv("b", 3, 2, 5, 1, true)],
        vec![groups("each", 2, 2), Layer::Relu],
        vec![Layer::Relu, norm("n", 2), prelu],
        vec![conv("a", 2, 6, 3, 1, true), groups("g", 6, 3), Layer::Relu, groups("one", 6, 1)],
        vec![Layer::MaxPool { kernel: 3, stride: 2, padding: 1 }, Layer::MaxPool { kernel: 2, stride: 2, padding: 0 }],
        vec![norm("n", 2), Layer::AdaptiveAvgPool { out: 3 }, Layer::Dropout { p: 0.0 }, Layer::Flatten, linear],
        Pointwise::ALL.map(Layer::Pointwise).to_vec(),
        block(true),
        block(false),
    ] {
        check(&network(input, layers), Easing::default());
    }
    check(&by_name("resnet8-cifar", 10, Some(Shape::new(3, 16, 16))).unwrap(), Easing::default());
}

#[test]
fn quadratics_equal_the_reference() {
    let shape = Shape::new(3, 5, 7);
    for form in [Form::Kervolution { c: 0.5 }, Form::RPKN, Form::REACT, Form::HERMITE, Form::Hermite { second: 0.3 }] {
        let one = |name: &str| Layer::Quadratic(Quadratic { name: name.to_owned(), channels: 3, form });
        for easing in easings() {
            check(&network(shape, vec![one("q")]), easing);
            check(&network(shape, vec![one("q"), Layer::Relu, one("r")]), easing);
        }
    }
}

#[test]
fn shared_decisions_equal_the_reference() {
    let shape = Shape::new(5, 5, 7);
    let block = |rows, columns| Choice::Block { rows, columns };
    let mut groupings: Vec<Grouping> =
        [[1, 1, 1], [1, 2, 2], [2, 2, 3], [3, 1, 1], [5, 5, 7], [1, 4, 1], [2, 9, 8], [8, 1, 3]]
            .map(|[channels, rows, columns]| Grouping::Blocks { channels, rows, columns })
            .into();
    groupings.extend([
        Grouping::Choices(vec![Choice::Copy { of: 2 }, Choice::Quadratic, block(2, 3), Choice::Identity, Choice::Zero]),
        Grouping::Choices(vec![Choice::Quadratic, block(1, 1), Choice::Quadratic, Choice::Copy { of: 1 }, block(3, 1)]),
        Grouping::Choices(vec![Choice::Quadratic, Choice::Identity, Choice::Identity, Choice::Zero, Choice::Quadratic]),
    ]);
    for grouping in groupings {
        for decision in [Decision::Corner, Decision::Centre, Decision::Mean, Decision::Largest, Decision::Learned] {
            if decision == Decision::Learned && matches!(grouping, Grouping::Choices(_)) {
                continue;
            }
            for easing in easings() {
                let grouping = grouping.clone();
                let shared = SharedRelu { name: "s".to_owned(), channels: 5, grouping, decision };
                check(&network(shape, vec![Layer::SharedRelu(shared)]), easing);
            }
        }
    }
}

/// Sums are in a fixed order: the number of threads changes nothing.
#[test]
fn threads_do_not_change_a_step_of_activations() {
    let shape = Shape::new(6, 8, 8);
    let blocks = Grouping::Blocks { channels: 2, rows: 2, columns: 2 };
    let shared = SharedRelu { name: "s".to_owned(), channels: 6, grouping: blocks, decision: Decision::Learned };
    let hermite = Quadratic { name: "q".to_owned(), channels: 6, form: Form::HERMITE };
    for layer in [Layer::SharedRelu(shared), Layer::Quadratic(hermite)] {
        let network = network(shape, vec![layer]);
        let weights = Weights::init(&network, 1);
        let gradients = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = Engine::with_input_gradient(network.clone(), &weights, Par::Seq).unwrap();
                let mut convolver = LocalConv::new(0, engine.pool().clone(), Par::Seq);
                let x = numbers(5, 16 * shape.len());
                let y = engine.forward(&x, 16, Pass::Training, 0, &mut convolver).unwrap();
                let dx = engine.backward(y, 16, &mut convolver).unwrap().unwrap().to_vec();
                let params: Vec<Vec<f32>> =
                    (0..engine.params().specs().len()).map(|i| engine.params().gradient(i).to_vec()).collect();
                (dx, params)
            })
        };
        assert_eq!(gradients(1), gradients(4));
    }
}
