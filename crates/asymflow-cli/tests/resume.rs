//! What was told at the start of a run is what resumes.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const EXPERIMENT: &str = r#"
schema = 1
title = "resumed"
claim = "none"
kind = "train"
[data]
train = 64
test = 32
[model]
file = "nets/small.json"
weights = "start.safetensors"
[mode]
run = ["trusted-only"]
[train]
epochs = 2
batch = 16
learning_rate = 0.05
[trusted]
seal = true
guard = "guards"
"#;

fn asymflow(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_asymflow")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn runs(folder: &Path) -> Vec<PathBuf> {
    let mut runs: Vec<_> = std::fs::read_dir(folder.join("runs")).unwrap().map(|run| run.unwrap().path()).collect();
    runs.sort();
    runs
}

/// Every file below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

/// A folder with an experiment, whose paths are relative, and one whole run of it.
fn one_run() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut network = asymflow_zoo::by_name("demo-cnn", 10, None).unwrap();
    network.name = "small".to_owned();
    std::fs::create_dir(at.join("nets")).unwrap();
    std::fs::write(at.join("nets/small.json"), serde_json::to_string(&network).unwrap()).unwrap();
    let weights = asymflow_zoo::Weights::init(&network, 5);
    std::fs::write(at.join("start.safetensors"), asymflow_zoo::weights::files::encode(&network, &weights).unwrap())
        .unwrap();
    std::fs::write(at.join("mine.toml"), EXPERIMENT).unwrap();
    let output = asymflow(at, &["run", "mine.toml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let run = runs(at).remove(0);
    (folder, run)
}

#[test]
fn a_run_folder_needs_nothing_else_and_takes_nothing_else_that_matters() {
    let (folder, run) = one_run();
    let before = contents(&run);
    let resume = ["resume", run.to_str().unwrap()];
    for (flags, message) in [
        (&["--set", "train.learning_rate=0.5"][..], "train.learning_rate=0.5: a resumed run"),
        (&["--set", "data.test=40"], "data.test=40: a resumed run"),
        (&["--set", "worker={device=\"cuda\"}"], "a resumed run"),
        (&["--set", "worker.precision=f16"], "a resumed run"),
        (&["--data", "elsewhere"], "--data"),
        (&["--seeds", "2"], "--seeds"),
        (&["--smoke"], "--smoke"),
        (&["mine.toml"], "unexpected argument"),
    ] {
        let output = asymflow(folder.path(), &[&resume[..], flags].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(text(&output.stderr).contains(message), "{flags:?}: {}", text(&output.stderr));
    }
    assert!(contents(&run) == before);

    // The network and the data are those of the start, whatever lies there now and wherever one stands.
    std::fs::remove_file(folder.path().join("nets/small.json")).unwrap();
    let output = asymflow(Path::new("/"), &[&resume[..], &["--set", "worker.timeout_seconds=9"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("mine: resumed\n") && text(&output.stderr).contains("done before"));
    for (path, bytes) in &before {
        // The summaries and the page say which command rendered them.
        if !["summary.json", "summary.md", "trade-off.html"].iter().any(|name| path.ends_with(name)) {
            assert_eq!(&std::fs::read(path).unwrap(), bytes, "{}", path.display());
        }
    }
    let config: toml::Table = text(&before[&run.join("config.toml")]).parse().unwrap();
    for (section, key) in [("model", "file"), ("model", "weights"), ("trusted", "guard"), ("trusted", "app")] {
        let path = config[section][key].as_str().unwrap();
        assert!(Path::new(path).is_absolute(), "{section}.{key} = {path}");
    }
}

#[test]
fn every_run_has_a_folder_of_its_own() {
    let (folder, _) = one_run();
    let at = folder.path();
    let children: Vec<_> = ["0.05", "0.01", "0.02"]
        .map(|rate| {
            let rate = format!("train.learning_rate={rate}");
            let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
            command.current_dir(at).args(["run", "mine.toml", "--set", &rate]).spawn().unwrap()
        })
        .into();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let rate = |run: &PathBuf| {
        let config: toml::Table = std::fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
        let summary = std::fs::read_to_string(run.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        let told = config["train"]["learning_rate"].as_float().unwrap();
        let used = summary["results"]["train"]["runs"][0]["train"]["learning_rate"].as_f64().unwrap();
        assert!((told - used).abs() < 1e-6, "{told} {used}");
        (1e3 * told).round() as u32
    };
    let mut rates: Vec<u32> = runs(at).iter().map(rate).collect();
    rates.sort_unstable();
    assert_eq!(rates, [10, 20, 50, 50]);
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_asymflow")).arg("models").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: cannot write the results: "), "{}", text(&output.stderr));
}
