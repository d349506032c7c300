//! Networks of quadratics and shared decisions: the trusted engine against burn.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_residual::backend::{Pass, SgdStep};
use asymflow_zoo::burn_net::download;
use asymflow_zoo::{
    Network, Weights,
    burn_net::BurnNet,
    by_name,
    models::replace::{map_activations, replace_activations},
    network::Layer,
    ops::{Choice, Decision, Easing, Grouping, RangePenalty, SharedRelu, rate_factors},
};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SAMPLES: usize = 4;
/// Relative, in the l2 norm. Measured: at most 5e-6.
const OF_OUTPUTS: f64 = 1e-4;
/// Of all gradients together and of each tensor: one activation within rounding of zero moves the gradient of a ReLU.
const OF_GRADIENTS: f64 = 5e-3;
const OF_ONE: f64 = 2e-2;

/// Without dropout, whose randomness is everybody's own.
fn undropped(layers: &mut [Layer]) {
    for layer in layers {
        match layer {
            Layer::Dropout { p } => *p = 0.0,
            Layer::Residual { main, shortcut } => {
                undropped(main);
                undropped(shortcut);
            }
            _ => {}
        }
    }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    off / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-3 * (b.len() as f64).sqrt())
}

/// A plain step, and one with everything that a step may have.
const STEPS: [SgdStep; 2] = {
    let plain = SgdStep::plain(0.01, 0.9, 5e-4);
    [plain, SgdStep { clip_norm: 0.5, coefficient_rate: 0.3, first_layer_rate: 0.05, ..plain }]
};

/// Two steps of both, from the same state: outputs, weights, running statistics and momentum, and for each of them that a
/// weight moves along its momentum at its own rate.
fn check(mut network: Network, label: &str, easing: Easing) {
    undropped(&mut network.layers);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut numbers = |len: usize| (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect::<Vec<f32>>();
    let weights = Weights::init(&network, 3);
    let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
    engine.set_easing(easing);
    let device = Default::default();
    let mut net = BurnNet::new(&network, &weights, &device).unwrap();
    net.set_easing(easing);
    let x = numbers(SAMPLES * network.input.len());
    let near = |what: &str, ours: &[f32], burn: &[f32], tolerance: f64| {
        let off = relative(ours, burn);
        assert!(off < tolerance, "{label}, {easing:?}: {what} off by {off:e}");
    };
    let burn = download(net.forward(net.batch(x.clone()).unwrap(), false).unwrap()).unwrap();
    near("inference", &engine.forward(&x, SAMPLES, Pass::Inference, 0, &mut convolver).unwrap(), &burn, OF_OUTPUTS);
    for (step, sgd) in STEPS.into_iter().enumerate() {
        let before: Vec<Vec<f32>> =
            (0..engine.params().specs().len()).map(|i| engine.params().values(i).to_vec()).collect();
        net.set_weights(&engine.params().flat_values()).unwrap();
        net.set_momentum(&engine.params().flat_momentum()).unwrap();
        let x = numbers(SAMPLES * network.input.len());
        let of_burn = net.forward(net.batch(x.clone()).unwrap(), true).unwrap();
        let logits = engine.forward(&x, SAMPLES, Pass::Training, 0, &mut convolver).unwrap();
        near(&format!("training pass {step}"), &logits, &download(of_burn.clone()).unwrap(), OF_OUTPUTS);
        // The gradient of the mean of their squares.
        let gradient = of_burn / SAMPLES as f64;
        let same = download(gradient.clone()).unwrap();
        net.backward(gradient).unwrap();
        net.step(sgd).unwrap();
        engine.backward(same, SAMPLES, &mut convolver).unwrap();
        engine.params_mut().step(sgd);
        engine.commit_moments();
        near(
            &format!("gradients {step}"),
            &engine.params().flat_momentum(),
            &net.flat_momentum().unwrap(),
            OF_GRADIENTS,
        );
        let burn = net.weights().unwrap();
        let momenta = [engine.params().flat_momentum(), net.flat_momentum().unwrap()];
        let (specs, mut at) = (engine.params().specs(), 0);
        let factors = rate_factors(specs, sgd.coefficient_rate, sgd.first_layer_rate);
        for (i, (spec, factor)) in specs.iter().zip(factors).enumerate() {
            let ends = [engine.params().values(i), &burn.tensors[&spec.name].data[..]];
            near(&format!("{} after step {step}", spec.name), ends[0], ends[1], OF_ONE);
            for (end, momentum) in ends.into_iter().zip(&momenta).filter(|_| spec.kind.is_trained()) {
                let moved: Vec<f32> = end.iter().zip(&before[i]).map(|(b, a)| (b - a) / sgd.learning_rate).collect();
                let expected: Vec<f32> = momentum[at..at + spec.len()].iter().map(|m| -factor * m).collect();
                near(&format!("move of {} in step {step}", spec.name), &moved, &expected, OF_ONE);
            }
            at += spec.len();
        }
    }
}

fn easings() -> [Easing; 3] {
    let range = Some(RangePenalty { limit: 2.0, weight: 0.02, exponent: 6 });
    [
        Easing::default(),
        Easing { sharing: 0.4, straight_through: false, range },
        Easing { sharing: 0.8, straight_through: true, range },
    ]
}

fn in_place_of_relu(activation: &str) -> Network {
    replace_activations(&by_name("resnet8-cifar", 10, None).unwrap(), &activation.parse().unwrap()).unwrap()
}

#[test]
fn kervolutions_equal_burn() {
    for easing in easings() {
        check(by_name("pkn-resnet10", 10, None).unwrap(), "pkn-resnet10", easing);
    }
}

#[test]
fn quadratics_equal_burn() {
    for activation in ["react", "hermite", "hermite:0.3", "scaled:0.1:0.5"] {
        for easing in easings() {
            check(in_place_of_relu(activation), activation, easing);
        }
    }
}

#[test]
fn shared_decisions_equal_burn() {
    for decision in ["1x4x4", "2x2x2:learned", "1x2x2:centre", "4x1x1:corner", "2x3x3:largest"] {
        let activation = format!("shared-relu:{decision}");
        for easing in easings() {
            check(in_place_of_relu(&activation), &activation, easing);
        }
    }
}

/// As a budget makes them.
#[test]
fn choices_for_each_channel_equal_burn() {
    let network = by_name("resnet8-cifar", 10, None).unwrap();
    let network = map_activations(&network, &|name, shape| {
        let choice = |channel: usize| match channel % 6 {
            0 => Choice::Block { rows: 2, columns: 2 },
            1 => Choice::Copy { of: channel - 1 },
            2 => Choice::Quadratic,
            3 => Choice::Identity,
            4 => Choice::Zero,
            _ => Choice::Block { rows: 1, columns: 1 },
        };
        let grouping = Grouping::Choices((0..shape.channels).map(choice).collect());
        Layer::SharedRelu(SharedRelu { name, channels: shape.channels, grouping, decision: Decision::Mean })
    })
    .unwrap();
    for easing in easings() {
        check(network.clone(), "choices", easing);
    }
}
