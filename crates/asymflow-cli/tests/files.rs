//! Networks and photographs of one's own, through the command. Needs `asymflow-enclaved` and `asymflow-worker` beside it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail by panicking, in its helpers as well")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_zoo::network::Shape;
use asymflow_zoo::weights::{Pass, files};
use asymflow_zoo::{Network, Weights};
use faer::Par;

/// Where the weights are.
const WEIGHTS: &str = "weights = \"net/weights.safetensors\"\n";

const EXPERIMENT: &str = r#"
schema = 1
title = "own"
claim = "none"
kind = "train"
[data]
path = "photographs"
augment = false
[data.resize]
shorter = 20
[model]
file = "net/network.json"
weights = "net/weights.safetensors"
[mode]
run = ["trusted-only"]
rank = "fixed:1"
[train]
epochs = 1
batch = 4
learning_rate = 0.01
"#;

fn asymflow(at: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_asymflow")).current_dir(at).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../asymflow-engine/tests/golden").join(file)
}

/// Two classes of photographs of many sizes, and a network out of an ONNX file.
fn of_ones_own() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (part, count) in [("train", 6), ("test", 3)] {
        for (class, tint) in [("day", 200_u8), ("night", 20)] {
            let place = at.join("photographs").join(part).join(class);
            std::fs::create_dir_all(&place).unwrap();
            for index in 0..count {
                let shape = asymflow_zoo::network::Shape::new(3, 20 + 7 * index, 31 - 2 * index);
                let pixels: Vec<u8> = (0..shape.len()).map(|i| tint.wrapping_add((i % 23) as u8)).collect();
                asymflow_zoo::data::write_png(&place.join(format!("{index}.png")), &pixels, shape).unwrap();
            }
        }
    }
    std::fs::write(at.join("photographs/train/day/readme.txt"), "none").unwrap();
    std::fs::write(at.join("own.toml"), EXPERIMENT).unwrap();
    let file = golden("small-17-norms.onnx");
    let output = asymflow(at, &["import", file.to_str().unwrap(), "--output", "net"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("model.file = \"net/network.json\""), "{}", text(&output.stdout));
    folder
}

#[test]
fn photographs_and_a_network_of_ones_own_go_through_every_mode_that_can_run_it() {
    let folder = of_ones_own();
    let modes = text(&asymflow(folder.path(), &["modes"]).stdout);
    std::fs::write(folder.path().join("fresh.toml"), EXPERIMENT.replace(WEIGHTS, "")).unwrap();
    let run = |file: &str, mode: &str| {
        let set = format!("mode.run=[\"{mode}\"]");
        let output = asymflow(folder.path(), &["run", file, "--set", &set, "--set", "delta.rank=1"]);
        let stderr = text(&output.stderr);
        if output.status.success() {
            let line = "12 training and 6 test images of image folders";
            assert!(stderr.contains(line) && stderr.contains("left out: 1 .txt"), "{mode}: {stderr}");
        }
        output.status.success().then_some(()).ok_or(stderr)
    };
    // By what it lacks, the program or a quadratic.
    let is_refused = |stderr: &str| {
        let lacks = ["asymflow-cipher, which is neither beside this program", "a network that decides about no sign"];
        lacks.iter().any(|what| stderr.contains(&format!("mode cipher needs {what}")))
    };
    let mut with_weights = 0;
    for mode in modes.lines() {
        match run("own.toml", mode) {
            Ok(()) => with_weights += 1,
            Err(stderr) if mode == "dp-sgd" => assert!(stderr.contains("use +group-norm:"), "{mode}: {stderr}"),
            Err(stderr) if mode == "cipher" => assert!(is_refused(&stderr), "{stderr}"),
            // Delta's three networks have weights of their own.
            Err(stderr) if mode != "shares" => {
                assert!(stderr.contains("weights.safetensors: missing: prelu1_.weight, main."), "{mode}: {stderr}");
            }
            Err(_) => {}
        }
        match run("fresh.toml", mode) {
            Ok(()) => {}
            Err(stderr) if mode == "dp-sgd" => assert!(stderr.contains("use +group-norm:"), "{mode}: {stderr}"),
            Err(stderr) if mode == "cipher" => assert!(is_refused(&stderr), "{stderr}"),
            // There is no protocol for trained slopes, and what is refused is named with what to take.
            Err(stderr) => {
                let refusal = "error: layer prelu1 cannot be computed on shares";
                let is_named = stderr.contains(refusal) && stderr.contains("use a ReLU");
                assert!(mode == "shares" && is_named, "{mode}: {stderr}");
            }
        }
    }
    assert!(with_weights >= 4 && modes.lines().count() >= 8, "{with_weights} of {modes}");
}

/// A run's weights, through every program's form and back.
#[test]
fn what_is_exported_is_what_was_trained() {
    let folder = of_ones_own();
    let at = folder.path();
    let output = asymflow(at, &["run", "own.toml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let run = std::fs::read_dir(at.join("runs")).unwrap().next().unwrap().unwrap().path().join("trusted-only-seed1");
    let network: Network = serde_json::from_slice(&std::fs::read(at.join("net/network.json")).unwrap()).unwrap();
    let trained = files::read(&run.join("weights.safetensors"), &network).unwrap();
    let model = run.join("model.asymflow");
    for file in ["own.onnx", "own.pth", "own.safetensors"] {
        let output = asymflow(at, &["export", model.to_str().unwrap(), "--output", file]);
        assert!(output.status.success(), "{file}: {}", text(&output.stderr));
    }
    assert_eq!(files::read(&at.join("own.pth"), &network).unwrap(), trained);
    assert_eq!(files::read(&at.join("own.safetensors"), &network).unwrap(), trained);
    let output = asymflow(at, &["import", "own.onnx", "--output", "again"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(files::read(&at.join("again/weights.safetensors"), &network).unwrap(), trained);

    for (arguments, message) in [
        (&["export", "net/network.json", "--output", "x.onnx"][..], "net/network.json: "),
        (&["import", "own.onnx", "--output", "again"], "again: File exists"),
        (&["import", "own.pth", "--output", "other"], "own.pth: "),
    ] {
        let output = asymflow(at, arguments);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
    others_read(at, &network, &trained);
}

/// onnxruntime and PyTorch, where Python has them, compute what the trusted engine does.
fn others_read(at: &Path, network: &Network, trained: &Weights) {
    let image: Vec<f32> = (0..network.input.len()).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    let mut engine = Engine::new(network.clone(), trained, Par::Seq).unwrap();
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
    let expected = engine.forward(&image, 1, Pass::Inference, 0, &mut convolver).unwrap();
    let Shape { channels, height, width } = network.input;
    for (module, script) in [
        (
            "onnxruntime",
            format!(
                "import json, numpy, onnxruntime\n\
                 x = numpy.array([((i * 7919) % 1009) / 504.5 - 1.0 for i in range({0})], numpy.float32)\n\
                 s = onnxruntime.InferenceSession('own.onnx', providers=['CPUExecutionProvider'])\n\
                 print(json.dumps(s.run(None, {{s.get_inputs()[0].name: x.reshape(1, {channels}, {height}, {width})}})[0][0].tolist()))",
                network.input.len()
            ),
        ),
        (
            "torch",
            "import json, torch\n\
             print(json.dumps([float(v.double().sum()) for v in torch.load('own.pth', weights_only=True).values()]))"
                .to_owned(),
        ),
    ] {
        let python = std::env::var("ASYMFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let run = |script: &str| Command::new(&python).current_dir(at).args(["-c", script]).output();
        if !run(&format!("import {module}")).is_ok_and(|output| output.status.success()) {
            println!("skipped: {python} has no {module}; ASYMFLOW_PYTHON names another");
            continue;
        }
        let output = run(&script).unwrap();
        assert!(output.status.success(), "{module}: {}", text(&output.stderr));
        let got: Vec<f64> = serde_json::from_slice(&output.stdout).unwrap();
        let sums = trained.tensors.values().map(|tensor| tensor.data.iter().map(|&v| f64::from(v)).sum());
        let expected: Vec<f64> =
            if module == "torch" { sums.collect() } else { expected.iter().map(|&v| f64::from(v)).collect() };
        let (mut got, mut expected) = (got, expected);
        if module == "torch" {
            got.retain(|sum| *sum != 0.0);
            expected.retain(|sum| *sum != 0.0);
            got.sort_by(f64::total_cmp);
            expected.sort_by(f64::total_cmp);
        }
        assert_eq!(got.len(), expected.len(), "{module}");
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{module}: {got} and not {expected}");
        }
    }
}

#[test]
fn what_does_not_fit_is_said_with_the_key_that_mends_it() {
    let folder = of_ones_own();
    let at = folder.path();
    let says = |set: &str, words: &[&str]| {
        let output = asymflow(at, &["run", "own.toml", "--set", set]);
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "{set}: {stderr}");
        words.iter().for_each(|word| assert!(stderr.contains(word), "{set}: {word} is not in {stderr}"));
    };
    says("data.resize.shorter=5", &["sides are from 1 to"]);
    says("data.resize.height=0", &["data.resize.height = 0 is out of range", "at least 1"]);
    says("data.resize.filter=lanczos", &["lanczos"]);
    std::fs::write(at.join("own.toml"), EXPERIMENT.replace("[data.resize]\nshorter = 20\n", "")).unwrap();
    says("train.batch=4", &["data.resize"]);
    let file = golden("grouped.onnx");
    let output = asymflow(at, &["import", file.to_str().unwrap(), "--output", "other"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("convolutions in 2 groups"), "{}", text(&output.stderr));
    assert!(!at.join("other").exists());
}
