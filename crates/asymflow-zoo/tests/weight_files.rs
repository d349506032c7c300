//! Weight files against PyTorch; the golden files are written by scripts/golden.py.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixtures;

use std::path::Path;
use std::process::{Command, Stdio};

use asymflow_zoo::weights::Misfit;
use asymflow_zoo::weights::files::{self, WeightFault};
use asymflow_zoo::{Network, Weights, by_name, network::Layer, ops::GroupNorm, weights::WeightsError};
use safetensors::tensor::{Dtype, TensorView};

use crate::fixtures::{formula, golden, tiny, value};

#[test]
fn weight_files_of_pytorch_are_read() {
    for file in ["tiny.pth", "tiny-nested.pth", "tiny.safetensors"] {
        let weights = files::read(&golden(file), &tiny()).unwrap();
        assert_eq!(weights.tensors.len(), 7, "{file}");
        for (name, tensor) in &weights.tensors {
            let mut expected = value(name, tensor.data.len());
            if name == "bn1.running_var" {
                expected.iter_mut().for_each(|v| *v = v.abs());
            }
            assert_eq!(tensor.data, expected, "{file}: {name}");
        }
    }
}

/// As Opacus has it, which trains no batch normalisation.
fn tiny_of_groups() -> Network {
    let mut network = tiny();
    let norm = network.layers.iter_mut().find(|layer| matches!(layer, Layer::BatchNorm { .. })).unwrap();
    *norm = Layer::GroupNorm(GroupNorm { name: "bn1".to_owned(), channels: 4, groups: 4 });
    network
}

#[test]
fn weights_are_read_as_people_leave_them() {
    let all = std::fs::read_dir(golden("foreign")).unwrap().map(|entry| entry.unwrap().path());
    let is_whole = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["pth", "safetensors", "index.json"].iter().any(|end| name.ends_with(end)) && !name.contains("-of-")
    };
    let paths: Vec<_> = all.filter(is_whole).collect();
    assert_eq!(paths.len(), 20);
    let mut wrong = Vec::new();
    for path in paths {
        let tolerance = if path.to_string_lossy().contains("half") { 5e-4 } else { 0.0 };
        let tolerance = if path.to_string_lossy().contains("bfloat") { 4e-3 } else { tolerance };
        let network = if path.ends_with("opacus.pth") { tiny_of_groups() } else { tiny() };
        let weights = match files::read(&path, &network) {
            Ok(weights) => weights,
            Err(error) => {
                wrong.push(error.to_string());
                continue;
            }
        };
        for (name, tensor) in &weights.tensors {
            for (got, expected) in tensor.data.iter().zip(value(name, tensor.data.len())) {
                let expected = if name == "bn1.running_var" { expected.abs() } else { expected };
                if (got - expected).abs() > tolerance {
                    wrong.push(format!("{}: {name}: {got} and not {expected}", path.display()));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_index_names_files_beside_it_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    for (part, says) in
        [("../other", "does not lie beside"), ("/etc/passwd", "does not lie beside"), ("gone", "No such file")]
    {
        std::fs::write(&path, format!(r#"{{"weight_map": {{"fc.bias": "{part}"}}}}"#)).unwrap();
        let error = files::read(&path, &tiny()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    std::fs::copy(&path, folder.path().join("gone")).unwrap();
    assert!(files::read(&path, &tiny()).unwrap_err().to_string().contains("index within an index"));
}

#[test]
fn files_survive_writing_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = Weights::init(&tiny(), 3);
    for name in ["weights.safetensors", "weights.pth"] {
        let path = folder.path().join(name);
        files::write(&path, &tiny(), &weights).unwrap();
        assert_eq!(files::read(&path, &tiny()).unwrap(), weights);
        // The name says nothing.
        let other = folder.path().join("model.bin");
        std::fs::rename(&path, &other).unwrap();
        assert_eq!(files::read(&other, &tiny()).unwrap(), weights);
    }
    weights.tensors.remove("bn1.running_var");
    let error = files::write(&folder.path().join("w.pth"), &tiny(), &weights).unwrap_err().to_string();
    assert!(error.ends_with("w.pth: missing: bn1.running_var"), "{error}");
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
    files::write(&path, &network, &formula(&network)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_pytorch.py");
    let output = Command::new(python).args(["-B", script]).arg(&path).arg("resnet18").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "122 tensors", "{stderr}");
}

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let bytes = vec![0; 1 << 10];
    let view = |dtype: Dtype, shape: &[usize]| {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        TensorView::new(dtype, shape.to_vec(), &bytes[..len]).unwrap()
    };
    let views = tensors.iter().map(|&(name, dtype, shape)| (name, view(dtype, shape)));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn errors_name_the_file_and_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let fault = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = files::read(&path, &tiny()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        error.fault
    };
    let none = files::read(&folder.path().join("none.pth"), &tiny()).unwrap_err();
    assert!(matches!(none.fault, WeightFault::Io(_)), "{none}");
    let kinds: [&[u8]; 4] = [b"", b"garbage", b"version https://git-lfs.github.com/spec/v1", b"{\"fc.bias\": 1}"];
    for bytes in kinds {
        let fault = fault("other.bin", bytes);
        assert!(matches!(fault, WeightFault::Kind(_)), "{fault}");
    }
    let broken: [&[u8]; 3] =
        [&[0x80, 2, 0xff, 0xff, 0xff, 0xff, 0x2e], b"PK\x03\x04 and no archive", b"\x10\0\0\0\0\0\0\0{\"fc.bias\": 1"];
    for bytes in broken {
        let fault = fault("bad.pth", bytes);
        assert!(matches!(fault, WeightFault::Format(_)), "{fault}");
    }
}

/// All that is wrong is told at once, and nothing is dropped.
#[test]
fn tensors_are_those_of_the_network_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let f32 = Dtype::F32;
    let rest: [(&str, Dtype, &[usize]); 4] = [
        ("bn1.weight", f32, &[4]),
        ("bn1.bias", f32, &[4]),
        ("bn1.running_mean", f32, &[4]),
        ("conv1.weight", f32, &[4, 3, 3, 3]),
    ];
    let wrong: [(&str, Dtype, &[usize]); 4] = [
        ("fc.bias", f32, &[1, 2]),
        ("fc.weight", Dtype::I32, &[2, 4]),
        ("aux.weight", f32, &[1]),
        ("bn1.num_batches_tracked", Dtype::I64, &[]),
    ];
    write(&path, &[rest.as_slice(), &wrong].concat());
    let error = files::read(&path, &tiny()).unwrap_err();
    let text = error.to_string();
    let WeightFault::Misfit(misfit) = error.fault else { panic!("{text}") };
    let name = |name: &str| name.to_owned();
    let expected = Misfit {
        missing: vec![name("bn1.running_var")],
        left_over: vec![name("aux.weight")],
        wrong: vec![
            WeightsError::Type { name: name("fc.weight"), got: name("I32") },
            WeightsError::Shape { name: name("fc.bias"), expected: vec![2], got: vec![1, 2] },
        ],
    };
    assert_eq!(misfit, expected);
    let told = "w.safetensors: missing: bn1.running_var; left over: aux.weight; tensor fc.weight: expected f16, bf16, \
                f32 or f64, got I32, tensor fc.bias: expected shape [2], got [1, 2]";
    assert!(text.ends_with(told), "{text}");
}

/// A square root of it would be none.
#[test]
fn a_negative_variance_is_refused_by_name_in_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = Weights::init(&tiny(), 1);
    weights.tensors.get_mut("bn1.running_var").unwrap().data[2] = -0.01;
    let refused =
        [weights.flatten(&tiny()).unwrap_err().to_string(), files::encode(&tiny(), &weights).unwrap_err().to_string()];
    let path = folder.path().join("w.safetensors");
    weights.tensors.get_mut("bn1.running_var").unwrap().data[2] = 0.01;
    let mut bytes = files::encode(&tiny(), &weights).unwrap();
    let at = bytes.windows(4).position(|window| window == 0.01_f32.to_le_bytes()).unwrap();
    bytes[at + 3] |= 0x80;
    std::fs::write(&path, bytes).unwrap();
    let read = files::read(&path, &tiny()).unwrap_err().to_string();
    for error in refused.iter().chain([&read]) {
        assert!(
            error.contains("tensor bn1.running_var: value") && error.contains("no variance is negative"),
            "{error}"
        );
    }
}

/// Whatever stands before all names of a network; two networks in one file are refused.
#[test]
fn wrappers_are_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let network = tiny();
    let specs = network.parameters();
    for prefixes in [&["_orig_mod.module."] as &[&str], &["net."], &["model.", "ema."]] {
        let names: Vec<(String, &[usize])> = prefixes
            .iter()
            .flat_map(|prefix| specs.iter().map(move |spec| (format!("{prefix}{}", spec.name), spec.shape.as_slice())))
            .chain([("optimizer.0.momentum".to_owned(), [3].as_slice())])
            .collect();
        let bytes = vec![0; 1 << 10];
        let view = |(name, shape): &(String, &[usize])| {
            let len = 4 * shape.iter().product::<usize>();
            (name.clone(), TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..len]).unwrap())
        };
        std::fs::write(&path, safetensors::serialize(names.iter().map(view), None).unwrap()).unwrap();
        match files::read(&path, &network) {
            Ok(weights) => assert_eq!((weights.tensors.len(), prefixes.len()), (7, 1)),
            Err(error) => assert!(matches!(error.fault, WeightFault::Twice { .. }) && prefixes.len() == 2, "{error}"),
        }
    }
}

#[test]
fn every_cut_of_a_weight_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tiny.pth", "tiny.safetensors"] {
        let whole = std::fs::read(golden(file)).unwrap();
        for end in (0..whole.len()).step_by(37) {
            let path = folder.path().join(file);
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(files::read(&path, &tiny()).is_err(), "{file} cut at {end}");
        }
    }
}
