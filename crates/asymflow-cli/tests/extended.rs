//! A command of somebody else's has the whole command line, and what it added.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const EXPERIMENT: &str = r#"
schema = 1
title = "Parameters"
claim = "small networks have few"
kind = "count-parameters"
[model]
names = ["linear", "demo-cnn"]
[parameters]
most = 100000
"#;

fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name("examples").join("own_command");
    assert!(program.is_file(), "cargo builds examples with tests");
    program
}

fn own_command(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_kind_and_a_network_from_outside_are_run_reported_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("count.toml"), EXPERIMENT).unwrap();
    let output = own_command(at, &["run", "count.toml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("| linear   |      30730 |"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("parameters, allowed are 100000"), "{}", text(&output.stderr));

    let run = std::fs::read_dir(at.join("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(run.join("plots/parameters.svg").is_file());
    assert!(own_command(Path::new("/"), &["resume", run.to_str().unwrap()]).status.success());
    let out = ["--out", "results"];
    assert!(own_command(at, &[&["report", run.to_str().unwrap()], &out[..]].concat()).status.success());
    assert!(own_command(at, &[&["report", "--check"], &out[..]].concat()).status.success());
    assert!(
        std::fs::read_to_string(at.join("results/count.md")).unwrap().contains("![parameters](count-parameters.svg)")
    );

    for (set, code, message) in [
        ("parameters.most=100", 1, "parameters, allowed are 100"),
        ("parameters.most=0", 2, "parameters.most = 0 is out of range"),
        ("parameters.mots=1", 2, "help: did you mean `most`?"),
    ] {
        let output = own_command(at, &["run", "count.toml", "--set", set]);
        assert_eq!(output.status.code(), Some(code), "{set}");
        assert!(text(&output.stderr).contains(message), "{set}: {}", text(&output.stderr));
    }
    // A folder's name need not be text.
    let odd = OsStr::from_bytes(b"runs\xff");
    let output =
        Command::new(program()).current_dir(at).args(["run", "count.toml", "--runs"]).arg(odd).output().unwrap();
    assert!(output.status.success() && at.join(odd).is_dir(), "{}", text(&output.stderr));

    assert!(text(&own_command(at, &["models"]).stdout).lines().any(|name| name == "linear"));
}

const TRAINED: &str = r#"
schema = 1
title = "Bright and dark"
claim = "none"
kind = "train"
[data]
path = "numbers"
reader = "csv"
augment = false
[model]
names = ["linear"]
classes = 2
input = { channels = 1, height = 8, width = 8 }
[mode]
run = ["trusted-only"]
[train]
epochs = 3
batch = 16
learning_rate = 0.05
"#;

/// The trusted part reads them: it is a program of somebody else's too.
#[test]
fn data_from_outside_are_read_by_the_trusted_part() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("bright.toml"), TRAINED).unwrap();
    std::fs::create_dir(at.join("numbers")).unwrap();
    let line = |number: usize| {
        let level = if number.is_multiple_of(2) { 40 } else { 200 };
        let pixels = (0..64).map(|pixel| (level + (number * 7 + pixel * 3) % 31).to_string());
        format!("{},{}", number % 2, pixels.collect::<Vec<_>>().join(","))
    };
    let lines = |from: usize, to: usize| (from..to).map(|number| line(number) + "\n").collect::<String>();
    std::fs::write(at.join("numbers/train.csv"), lines(0, 64)).unwrap();
    std::fs::write(at.join("numbers/test.csv"), lines(64, 96)).unwrap();
    let output = own_command(at, &["run", "bright.toml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("64 training and 32 test images"), "{}", text(&output.stderr));
    let run = std::fs::read_dir(at.join("runs")).unwrap().next().unwrap().unwrap().path();
    let summary = std::fs::read_to_string(run.join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["results"]["train"]["runs"][0]["accuracy"]["test"], 1.0);

    let output = own_command(at, &["run", "bright.toml", "--set", "data.reader=cvs"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("data.reader \"cvs\": there are [\"csv\"]"), "{}", text(&output.stderr));
    std::fs::write(at.join("numbers/test.csv"), "1,2,x\n").unwrap();
    let output = own_command(at, &["run", "bright.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("line 1: no number up to 255"), "{}", text(&output.stderr));
}
