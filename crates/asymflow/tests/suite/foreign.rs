//! Networks out of ONNX files in the modes that split them, against onnxruntime's logits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use asymflow::modes::Mode;
use asymflow::plan::Plan;
use asymflow_engine::program::Program;
use asymflow_privacy::payload::Precision;
use asymflow_zoo::models::onnx;
use asymflow_zoo::{Network, Weights, network::Layer};

use crate::both::{asymml, relative};
use crate::toy_backend::ToyBackend;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../asymflow-engine/tests/golden").join(file)
}

/// Every network, with the image that onnxruntime was asked about and what it answered.
fn networks() -> Vec<(Network, Weights, Vec<f32>, Vec<f32>)> {
    let expected: BTreeMap<String, Vec<f32>> =
        serde_json::from_slice(&std::fs::read(golden("onnx.json")).unwrap()).unwrap();
    let read = |(file, expected): (String, Vec<f32>)| {
        let (network, weights) = onnx::read(&golden(&file), &file).unwrap();
        let image = (0..network.input.len()).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        (network, weights, image, expected)
    };
    expected.into_iter().map(read).collect()
}

#[test]
fn split_onnx_networks_answer_as_onnxruntime_does() {
    for (network, weights, image, expected) in networks() {
        let plan = Plan::split_all(&Program::new(&network).unwrap(), 2);
        let mut mode = asymml(&network, &weights, plan, "gram", Precision::F32, Arc::new(ToyBackend::default()));
        let logits = mode.infer(&image, &[0]).unwrap();
        let off = relative(&logits, &expected);
        assert!(off < 1e-3, "{}: off by {off}", network.name);
    }
}

/// The same layers with ReLU in place of PReLU.
#[cfg(feature = "shares")]
fn without_slopes(layers: &[Layer]) -> Vec<Layer> {
    let layer = |layer: &Layer| match layer {
        Layer::PRelu { .. } => Layer::Relu,
        Layer::Residual { main, shortcut } => {
            Layer::Residual { main: without_slopes(main), shortcut: without_slopes(shortcut) }
        }
        other => other.clone(),
    };
    layers.iter().map(layer).collect()
}

#[cfg(feature = "shares")]
fn on_shares<R: asymflow_shares::program::Ring>(network: &Network, weights: &Weights, image: &[f32]) -> Vec<f32> {
    use asymflow_shares::{compile, in_process::InProcess, program::WeightPolicy};

    let options = compile::Options::new::<R>(WeightPolicy::Shared);
    let model = compile::compile::<R>(network, weights, &options).unwrap();
    InProcess::start(model, image).unwrap().ask(image).unwrap().logits
}

/// torchvision's and timm's classifiers as onnxruntime does, maximum pooling included. Trained slopes, for which there is no protocol, are
/// refused with what to take in their place, and with that the answers are those in double precision.
#[cfg(feature = "shares")]
#[test]
fn onnx_networks_on_shares_answer_as_onnxruntime_does() {
    use asymflow_shares::compile::{Options, compile, float_logits};
    use asymflow_shares::program::{WeightPolicy, Z48};

    let options = Options::new::<u64>(WeightPolicy::Shared);
    for (mut network, weights, image, mut expected) in networks() {
        if network.name.starts_with("small") {
            let error = compile::<u64>(&network, &weights, &options).map(drop).unwrap_err().to_string();
            assert!(error.contains("prelu1 ") && error.contains("a ReLU"), "{}: {error}", network.name);
            network.layers = without_slopes(&network.layers);
            let logits = float_logits(&network, &weights, &options.activations, &image).unwrap();
            expected = logits.iter().map(|&v| v as f32).collect();
        }
        let off = relative(&on_shares::<u64>(&network, &weights, &image), &expected);
        let narrow = relative(&on_shares::<Z48>(&network, &weights, &image), &expected);
        println!("{}: off by {off:.1e}, over 48 bits by {narrow:.1e}", network.name);
        assert!(off < 3e-3 && narrow < 8e-3, "{}: off by {off}, over 48 bits by {narrow}", network.name);
    }
}
