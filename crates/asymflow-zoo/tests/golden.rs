//! Networks on burn against PyTorch; the golden files are written by scripts/golden.py.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixtures;

use asymflow_zoo::burn_net::download;
use asymflow_zoo::{
    Network, Weights,
    burn_net::BurnNet,
    by_name,
    graph::reference::Reference,
    network::{Layer, Shape},
    weights::SgdStep,
};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

use crate::fixtures::{formula, golden, tiny, value};

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Largest difference over the largest expected magnitude.
fn relative(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0f32, |m, (g, e)| m.max((g - e).abs())) / scale
}

/// Relative to the largest value. Measured: at most 3e-6 in inference; a training step adds batch statistics.
const INFERENCE: f32 = 2e-5;
const TRAINING: f32 = 2e-4;

#[test]
fn logits_are_torchvisions() {
    let golden = json("logits.json");
    for model in golden["models"].as_array().unwrap() {
        let name = model["model"].as_str().unwrap();
        let classes = model["classes"].as_u64().unwrap() as usize;
        let network = by_name(name, classes, None).unwrap();
        let mut net = BurnNet::new(&network, &formula(&network), &Device::flex()).unwrap();
        let x = net.batch(value("input", network.input.len())).unwrap();
        let logits = download(net.forward(x, false).unwrap()).unwrap();
        let expected = floats(&model["logits"]);
        let error = relative(&logits[..expected.len()], &expected);
        assert!(error < INFERENCE, "{name}: relative error {error}");
    }
}

/// The reference of every executor is itself PyTorch's function.
#[test]
fn the_references_logits_are_torchvisions() {
    let golden = json("logits.json");
    let is_small = |model: &&Value| model["model"].as_str().unwrap().ends_with("cifar");
    let small: Vec<&Value> = golden["models"].as_array().unwrap().iter().filter(is_small).collect();
    assert!(!small.is_empty());
    for model in small {
        let name = model["model"].as_str().unwrap();
        let network = by_name(name, model["classes"].as_u64().unwrap() as usize, None).unwrap();
        let reference = Reference::new(&network, &formula(&network).flatten(&network).unwrap()).unwrap();
        let x: Vec<f64> = value("input", network.input.len()).into_iter().map(f64::from).collect();
        let logits: Vec<f32> = reference.logits(&x).unwrap().into_iter().map(|v| v as f32).collect();
        let expected = floats(&model["logits"]);
        let error = relative(&logits[..expected.len()], &expected);
        assert!(error < INFERENCE, "{name}: relative error {error}");
    }
}

#[test]
fn two_training_steps_are_pytorchs() {
    let golden = json("training.json");
    let network = by_name("resnet18-cifar", 10, None).unwrap();
    let mut net = BurnNet::new(&network, &formula(&network), &Device::flex()).unwrap();
    for (step, expected) in golden["steps"].as_array().unwrap().iter().enumerate() {
        let x = net.batch(value(&format!("input{step}"), 4 * network.input.len())).unwrap();
        let dy = value(&format!("gradient{step}"), 40).iter().map(|v| v * 0.03125).collect();
        let dy = TensorData::new::<f32, _>(dy, [4, 10]);
        let logits = download(net.forward(x, true).unwrap()).unwrap();
        let dx = download(net.backward(Tensor::from_data(dy, &Device::flex())).unwrap()).unwrap();
        net.step(SgdStep::plain(0.01, 0.9, 5e-4)).unwrap();
        let error = relative(&logits, &floats(&expected["logits"]));
        assert!(error < TRAINING, "step {step}: logits differ by {error}");
        // In the second step a rounding of the first may flip a rectifier, which moves single gradients.
        if step == 0 {
            let error = relative(&dx[..64], &floats(&expected["input_gradient"]));
            assert!(error < 1e-3, "input gradients differ by {error}");
        }
        let weights = net.weights().unwrap();
        for (name, values) in expected["weights"].as_object().unwrap() {
            let error = relative(&weights.tensors[name].data[..8], &floats(values));
            assert!(error < TRAINING, "step {step}: {name} differs by {error}");
        }
    }
}

#[test]
fn bad_tensors_are_errors() {
    let network = tiny();
    let mut net = BurnNet::new(&network, &Weights::init(&network, 1), &Device::flex()).unwrap();
    let device = Device::flex();
    assert!(net.batch(vec![0.0; 7]).is_err());
    assert!(net.batch(Vec::new()).is_err());
    assert!(net.forward(Tensor::zeros([1, 3, 5, 4], &device), false).is_err());
    assert!(net.backward(Tensor::zeros([1, 2], &device)).is_err());
    assert!(net.step(SgdStep::plain(0.1, 0.0, 0.0)).is_err());
    net.forward(Tensor::zeros([2, 3, 4, 4], &device), true).unwrap();
    assert!(net.backward(Tensor::zeros([1, 2], &device)).is_err());
    net.backward(Tensor::zeros([2, 2], &device)).unwrap();
    assert!(net.set_weights(&[0.0]).is_err());
}

#[test]
fn dropout_keeps_the_mean_in_training_and_does_nothing_in_evaluation() {
    let layers = vec![Layer::Flatten, Layer::Dropout { p: 0.25 }];
    let network = Network { name: "dropout".to_owned(), input: Shape::new(1, 100, 100), classes: 10_000, layers };
    let mut net = BurnNet::new(&network, &Weights::default(), &Device::flex()).unwrap();
    let ones = || Tensor::<4>::ones([1, 1, 100, 100], &Device::flex());
    assert_eq!(download(net.forward(ones(), false).unwrap()).unwrap(), vec![1.0; 10_000]);
    let dropped = download(net.forward(ones(), true).unwrap()).unwrap();
    let zeros = dropped.iter().filter(|&&v| v == 0.0).count();
    assert!(dropped.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
    // Eight standard deviations of a binomial count around its mean of 2500.
    assert!((2150..2850).contains(&zeros), "{zeros}");
}
