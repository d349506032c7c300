//! Networks out of ONNX files in the trusted engine, against onnxruntime; the files are written by asymflow-zoo's
//! scripts/check_onnx.py.

use std::collections::BTreeMap;
use std::path::PathBuf;

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_zoo::models::onnx;
use asymflow_zoo::models::replace::replace_activations;
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::weights::Pass;
use asymflow_zoo::{Network, Weights, by_name};
use faer::Par;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// The image of scripts/check_onnx.py.
fn image(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

#[test]
fn logits_are_those_of_onnxruntime() {
    let expected: BTreeMap<String, Vec<f32>> =
        serde_json::from_slice(&std::fs::read(golden("onnx.json")).unwrap()).unwrap();
    assert_eq!(expected.len(), 16);
    for (file, expected) in expected {
        let (network, weights) = onnx::read(&golden(&file), "small").unwrap_or_else(|e| panic!("{file}: {e}"));
        let (side, classes) = if file.starts_with("small") { (16, 5) } else { (224, 10) };
        assert_eq!((network.input, network.classes), (Shape::new(3, side, side), classes), "{file}");
        let has_blocks = network.layers.iter().any(|layer| matches!(layer, Layer::Residual { .. }));
        assert_eq!(has_blocks, !file.starts_with("vgg") && file != "alexnet.onnx", "{file}");
        let image = image(network.input.len());
        let mut engine = Engine::new(network, &weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        let logits = engine.forward(&image, 1, Pass::Inference, 0, &mut convolver).unwrap();
        for (got, expected) in logits.iter().zip(&expected) {
            assert!(
                (got - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{file}: {logits:?} and not {expected:?}"
            );
        }
    }
}

#[test]
fn what_has_no_counterpart_is_refused_by_the_name_of_its_node() {
    for (file, words) in [
        ("grouped.onnx", ["Conv", "2 groups"]),
        ("concatenated.onnx", ["Concat", "not supported"]),
        ("sigmoid.onnx", ["Sigmoid", "not supported"]),
        ("dilated.onnx", ["Conv", "dilated"]),
        ("opset11.onnx", ["opset 11", "13 to 21"]),
        // Samples are not what comes first, or not alone.
        ("turned.onnx", ["Reshape", "[4, -1]: only flattening"]),
        ("split.onnx", ["Mul", "not supported"]),
    ] {
        let error = onnx::read(&golden(file), "x").unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{file}: {word} is not in {error}"));
    }
}

#[test]
fn damaged_files_are_errors() {
    let bytes = std::fs::read(golden("small-13.onnx")).unwrap();
    for share in 0..40 {
        assert!(onnx::decode(&bytes[..bytes.len() * share / 40], None, "x").is_err());
    }
    for at in (0..bytes.len()).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        // Damage within weights is another network's weights; nothing panics.
        let _ = onnx::decode(&damaged, None, "x");
    }
}

#[test]
fn what_is_written_is_read_again() {
    for name in ["demo-cnn", "resnet8-cifar", "resnet18-cifar", "vgg11-cifar"] {
        let network = by_name(name, 10, None).unwrap();
        let weights = Weights::init(&network, 5);
        let (again, values) = onnx::decode(&onnx::encode(&network, &weights).unwrap(), None, name).unwrap();
        assert_eq!(values, weights, "{name}");
        let without =
            |network: Network| network.layers.into_iter().filter(|layer| !matches!(layer, Layer::Dropout { .. }));
        assert!(without(again).eq(without(network)), "{name}");
    }
    let (network, weights) = onnx::read(&golden("small-17-norms.onnx"), "small").unwrap();
    let written = onnx::decode(&onnx::encode(&network, &weights).unwrap(), None, "small").unwrap();
    assert_eq!(written, (network, weights));
    let other = by_name("demo-cnn", 10, None).unwrap();
    let other = replace_activations(&other, &"hermite".parse().unwrap()).unwrap();
    let error = onnx::encode(&other, &Weights::init(&other, 1)).unwrap_err().to_string();
    assert!(error.contains("ONNX has no such activation"), "{error}");
}
