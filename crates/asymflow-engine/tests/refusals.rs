//! Bad input is an error, and nothing private comes out in place of logits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use asymflow_engine::{
    Engine, EngineError,
    buffer::{Activation, Buffer, Pool},
    convolver::Convolver,
    local::LocalConv,
    program::ConvNode,
};
use asymflow_zoo::{
    Network, Weights, by_name,
    network::{Layer, Shape},
    ops::{Conv, Linear},
    weights::{Pass, WeightsError},
};
use faer::Par;

fn demo() -> (Network, Engine, LocalConv) {
    let network = by_name("demo-cnn", 10, Some(Shape::new(3, 16, 16))).unwrap();
    let engine = Engine::new(network.clone(), &Weights::init(&network, 1), Par::Seq).unwrap();
    let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
    (network, engine, convolver)
}

fn images(network: &Network, samples: usize) -> Vec<f32> {
    (0..samples * network.input.len()).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Panics at the second convolution, as long as it is told to.
struct Panics {
    local: LocalConv,
    is_armed: bool,
}

impl Convolver for Panics {
    type Error = EngineError;

    fn forward(&mut self, node: &ConvNode, x: &Activation, weight: &[f32], pass: Pass) -> Result<Buffer, EngineError> {
        assert!(!self.is_armed || node.index == 0, "a convolver that panics");
        self.local.forward(node, x, weight, pass)
    }

    fn backward(
        &mut self,
        node: &ConvNode,
        dy: Buffer,
        samples: usize,
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Result<Option<Buffer>, EngineError> {
        self.local.backward(node, dy, samples, weight, d_weight)
    }
}

#[test]
fn after_a_caught_panic_the_engine_computes_the_network() {
    let (network, mut engine, local) = demo();
    let images = images(&network, 2);
    let mut convolver = Panics { local, is_armed: false };
    let expected = engine.forward(&images, 2, Pass::Inference, 0, &mut convolver).unwrap();
    convolver.is_armed = true;
    let caught = catch_unwind(AssertUnwindSafe(|| engine.forward(&images, 2, Pass::Training, 0, &mut convolver)));
    assert!(caught.is_err());
    convolver.is_armed = false;
    let refused = engine.backward(vec![0.0; 20], 2, &mut convolver).unwrap_err();
    assert!(matches!(refused, EngineError::NoForward { .. }), "{refused}");
    assert_eq!(engine.forward(&images, 2, Pass::Inference, 0, &mut convolver).unwrap(), expected);
}

#[test]
fn a_convolver_of_another_size_computes_all_the_same() {
    let (network, mut engine, mut convolver) = demo();
    let images = images(&network, 2);
    let expected = engine.forward(&images, 2, Pass::Inference, 0, &mut convolver).unwrap();
    let mut one = LocalConv::new(1, engine.pool().clone(), Par::Seq);
    assert_eq!(engine.forward(&images, 2, Pass::Inference, 0, &mut one).unwrap(), expected);
    assert_eq!(one.seconds().len(), 4);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (network, mut engine, mut convolver) = demo();
    let x = images(&network, 2);
    for (len, samples) in [(0, 0), (x.len(), 3), (x.len() - 1, 2), (x.len(), usize::MAX)] {
        let error = engine.forward(&x[..len], samples, Pass::Inference, 0, &mut convolver).unwrap_err();
        assert!(matches!(error, EngineError::Batch { .. }), "{error}");
    }
    let error = engine.backward(vec![0.0; 20], 2, &mut convolver).unwrap_err();
    assert!(matches!(error, EngineError::NoForward { .. }), "{error}");
    engine.forward(&x, 2, Pass::Training, 0, &mut convolver).unwrap();
    assert!(matches!(engine.backward(vec![0.0; 10], 1, &mut convolver), Err(EngineError::NoForward { .. })));
    let error = engine.backward(vec![0.0; 19], 2, &mut convolver).unwrap_err();
    assert_eq!(error.to_string(), "gradient of the logits of 19 values, expected 20");
    engine.backward(vec![0.0; 20], 2, &mut convolver).unwrap();
    assert!(engine.backward(vec![0.0; 20], 2, &mut convolver).is_err(), "a pass is differentiated once");
    assert!(engine.measure(2, Pass::Inference, &mut convolver).is_err(), "there are values to compute with");
    let mut measuring = Engine::measuring(network, false, Par::Seq).unwrap();
    assert!(measuring.forward(&x, 2, Pass::Inference, 0, &mut convolver).is_err(), "there are no values");
}

#[test]
fn parameters_are_replaced_whole_or_not_at_all() {
    let (_, mut engine, _) = demo();
    let before = engine.params().flat_values();
    let params = engine.params_mut();
    assert!(matches!(params.set_flat_values(&before[1..]), Err(WeightsError::Length { .. })));
    let mut bad = before.clone();
    let last = bad.len() - 1;
    bad[last] = f32::NAN;
    assert!(matches!(params.set_flat_values(&bad), Err(WeightsError::NonFinite { .. })));
    assert!(matches!(params.set_flat_momentum(&before[1..]), Err(WeightsError::Length { .. })));
    assert!(params.values(usize::MAX).is_empty() && params.values_mut(999).is_empty());
    params.set_flat_momentum(&before).unwrap();
    assert_eq!((params.flat_values(), params.flat_momentum()), (before.clone(), before));
}

#[test]
fn another_pools_buffers_are_of_no_harm() {
    let (network, mut engine, _) = demo();
    let images = images(&network, 2);
    let mut elsewhere = LocalConv::new(4, Pool::default(), Par::Seq);
    let mut lengths = LocalConv::new(4, Pool::measuring(), Par::Seq);
    engine.forward(&images, 2, Pass::Training, 0, &mut elsewhere).unwrap();
    engine.backward(vec![0.1; 20], 2, &mut elsewhere).unwrap();
    // What has no values is no activation.
    let got = catch_unwind(AssertUnwindSafe(|| engine.forward(&images, 2, Pass::Inference, 0, &mut lengths)));
    assert!(matches!(got, Ok(Err(_))), "{got:?}");
}

/// Where sums overflow, every rectification and pooling passes NaN on, and the layer where it appeared is named.
#[test]
fn nan_stays_nan_and_its_layer_is_named() {
    let conv = |name: &str| {
        let name = name.to_owned();
        Layer::Conv(Conv { name, in_channels: 2, out_channels: 2, kernel: 1, stride: 1, padding: 0, bias: false })
    };
    let norm = Layer::BatchNorm { name: "norm".to_owned(), channels: 2 };
    let fc = Layer::Linear(Linear { name: "fc".to_owned(), in_features: 2, out_features: 3 });
    let prelu = Layer::PRelu { name: "prelu".to_owned(), channels: 2 };
    let pool = Layer::MaxPool { kernel: 2, stride: 2, padding: 0 };
    let shared = |decision: &str| {
        let of = Network {
            name: "n".to_owned(),
            input: Shape::new(2, 4, 4),
            classes: 32,
            layers: vec![Layer::Relu, Layer::Flatten],
        };
        let text = format!("shared-relu:1x2x2:{decision}");
        asymflow_zoo::models::replace::replace_activations(&of, &text.parse().unwrap()).unwrap().layers.remove(0)
    };
    let residual = Layer::Residual { main: vec![Layer::Relu], shortcut: Vec::new() };
    for after in [
        vec![Layer::Relu],
        vec![norm, Layer::Relu],
        vec![prelu],
        vec![pool],
        vec![residual, Layer::Relu],
        vec![shared("mean")],
        vec![shared("corner")],
        vec![shared("largest")],
    ] {
        let mut layers = vec![conv("first"), conv("second")];
        layers.extend(after.clone());
        layers.extend([Layer::AdaptiveAvgPool { out: 1 }, Layer::Flatten, fc.clone()]);
        let network = Network { name: "n".to_owned(), input: Shape::new(2, 4, 4), classes: 3, layers };
        let mut weights = Weights::init(&network, 1);
        // ∞ − ∞ in the second convolution.
        weights.tensors.get_mut("first.weight").unwrap().data = vec![3e38, 0.0, 0.0, 3e38];
        weights.tensors.get_mut("second.weight").unwrap().data = vec![3e38, -3e38, 3e38, -3e38];
        let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(2, engine.pool().clone(), Par::Seq);
        for pass in [Pass::Inference, Pass::Training] {
            let error = engine.forward(&vec![1.0; 2 * 32], 2, pass, 0, &mut convolver).unwrap_err();
            let EngineError::NonFinite { layer, .. } = &error else { panic!("{after:?}: {error}") };
            assert_eq!(layer, "second", "{after:?}");
            assert!(engine.backward(vec![0.0; 6], 2, &mut convolver).is_err());
        }
    }
}
