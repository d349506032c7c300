//! Networks and weight files against PyTorch; the golden files are written by scripts/golden.py.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "burn")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use asymflow_zoo::burn_net::download;
use asymflow_zoo::{
    BurnNet, Layer, Linear, Network, ParamKind, Sgd, Shape, WeightFileError, WeightTensor, Weights, WeightsError,
    by_name, weight_files,
};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// `count` numbers in [-1, 1): splitmix64 of the name's FNV-1a hash plus the index, upper 24 bits.
fn value(name: &str, count: usize) -> Vec<f32> {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let one = |index: u64| {
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
    };
    (1..=count as u64).map(one).collect()
}

/// The weights of scripts/golden.py.
fn formula(network: &Network) -> Weights {
    let mut weights = Weights::default();
    for spec in network.parameters() {
        let raw = value(&spec.name, spec.len());
        let data = match spec.kind {
            ParamKind::ConvWeight | ParamKind::LinearWeight => {
                let scale = (6.0 / (spec.len() / spec.shape[0]) as f64).sqrt() as f32;
                raw.into_iter().map(|v| scale * v).collect()
            }
            ParamKind::NormScale | ParamKind::RunningVar => raw.into_iter().map(|v| 1.0 + 0.25 * v).collect(),
            ParamKind::Bias
            | ParamKind::NormShift
            | ParamKind::RunningMean
            | ParamKind::Slope
            | ParamKind::Coefficient(_)
            | ParamKind::Vote => raw.into_iter().map(|v| 0.1 * v).collect(),
        };
        weights.tensors.insert(spec.name, WeightTensor { shape: spec.shape, data });
    }
    weights
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
        net.step(Sgd::plain(0.01, 0.9, 5e-4)).unwrap();
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

fn tiny() -> Network {
    let conv = asymflow_zoo::Conv {
        name: "conv1".to_owned(),
        in_channels: 3,
        out_channels: 4,
        kernel: 3,
        stride: 1,
        padding: 1,
        bias: false,
    };
    let layers = vec![
        Layer::Conv(conv),
        Layer::BatchNorm { name: "bn1".to_owned(), channels: 4 },
        Layer::AdaptiveAvgPool { out: 1 },
        Layer::Flatten,
        Layer::Linear(Linear { name: "fc".to_owned(), in_features: 4, out_features: 2 }),
    ];
    Network { name: "tiny".to_owned(), input: Shape::new(3, 4, 4), classes: 2, layers }
}

#[test]
fn weight_files_of_pytorch_are_read() {
    for file in ["tiny.pth", "tiny-nested.pth", "tiny.safetensors"] {
        let weights = weight_files::read(&golden(file), &tiny()).unwrap();
        assert_eq!(weights.tensors.len(), 7, "{file}");
        for (name, tensor) in &weights.tensors {
            assert_eq!(tensor.data, value(name, tensor.data.len()), "{file}: {name}");
        }
    }
}

#[test]
fn safetensors_survive_writing_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let weights = Weights::init(&tiny(), 3);
    weight_files::write_safetensors(&path, &weights).unwrap();
    assert_eq!(weight_files::read(&path, &tiny()).unwrap(), weights);
}

#[test]
fn pytorch_files_survive_writing_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    let mut weights = Weights::init(&tiny(), 3);
    weight_files::write_pytorch(&path, &tiny(), &weights).unwrap();
    assert_eq!(weight_files::read(&path, &tiny()).unwrap(), weights);
    weights.tensors.remove("bn1.running_var");
    let error = weight_files::write_pytorch(&path, &tiny(), &weights).unwrap_err().to_string();
    assert!(error.ends_with("weights.pth: no tensor named bn1.running_var"), "{error}");
}

#[test]
fn pytorch_loads_what_is_written() {
    let python = std::env::var("ASYMFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import torch, torchvision"]).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("skipped: {python} has no torch and torchvision; ASYMFLOW_PYTHON names one that has");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet18.pth");
    let network = by_name("resnet18-imagenet", 1000, None).unwrap();
    weight_files::write_pytorch(&path, &network, &formula(&network)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_pytorch.py");
    let output = Command::new(python).args(["-B", script]).arg(&path).arg("resnet18").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "122 tensors", "{stderr}");
}

#[test]
fn errors_name_the_file_and_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let read = |path: &PathBuf| weight_files::read(path, &tiny()).unwrap_err();
    assert!(matches!(read(&folder.path().join("none.pth")), WeightFileError::Io { .. }));
    assert!(matches!(read(&write("weights.bin", b"")), WeightFileError::Extension { .. }));
    for name in ["bad.pth", "bad.safetensors"] {
        for content in [b"".as_slice(), b"garbage", &[0x80, 2, 0xff, 0xff, 0xff, 0xff, 0x2e], &[0xff; 64]] {
            let error = read(&write(name, content));
            assert!(error.to_string().contains(name), "{error}");
        }
    }
    let mut weights = Weights::init(&tiny(), 3);
    let path = folder.path().join("w.safetensors");
    weights.tensors.get_mut("fc.bias").unwrap().shape = vec![1, 2];
    weight_files::write_safetensors(&path, &weights).unwrap();
    let error = read(&path).to_string();
    assert!(error.ends_with("w.safetensors: tensor fc.bias: expected shape [2], got [1, 2]"), "{error}");
    weights.tensors.remove("fc.bias");
    weight_files::write_safetensors(&path, &weights).unwrap();
    let missing = read(&path);
    assert!(matches!(missing, WeightFileError::Weights { source: WeightsError::Missing { .. }, .. }), "{missing}");
}

#[test]
fn every_cut_of_a_weight_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tiny.pth", "tiny.safetensors"] {
        let whole = std::fs::read(golden(file)).unwrap();
        for end in (0..whole.len()).step_by(37) {
            let path = folder.path().join(file);
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(weight_files::read(&path, &tiny()).is_err(), "{file} cut at {end}");
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
    assert!(net.step(Sgd::plain(0.1, 0.0, 0.0)).is_err());
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
