//! Runs that are interrupted, killed, out of disk, listed and gone on with. Needs `asymflow-enclaved` and `asymflow-worker` beside
//! the command.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const EXPERIMENT: &str = r#"
schema = 1
title = "runs"
claim = "none"
kind = "train"
[data]
train = 64
test = 32
[model]
names = ["demo-cnn"]
[mode]
run = [RUN]
rank = "fixed:2"
[delta]
stage1_epochs = 1
labels = "public"
[trusted]
threads = 2
[train]
epochs = 2
batch = 16
learning_rate = 0.05
"#;

/// Training without a worker, with one that is lent its work, one that holds the weights, and one that trains by itself. Noise, that on
/// labels too, is drawn from the system's randomness, so only without it are two runs the same.
const MODES: &str = r#""trusted-only", "asymml", "clear", "delta@inf""#;

struct Runs(tempfile::TempDir);

impl Runs {
    fn of(modes: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("runs.toml"), EXPERIMENT.replace("RUN", modes)).unwrap();
        Self(folder)
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn asymflow(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// The one run that can be gone on with, where one has come so far.
    fn folder(&self) -> Option<PathBuf> {
        let runs = std::fs::read_dir(self.0.path().join("runs")).ok()?;
        let mut runs = runs.map(|run| run.unwrap().path()).filter(|run| run.join("config.toml").is_file());
        let run = runs.next();
        assert!(runs.next().is_none());
        run
    }

    /// Starts the run, or goes on with it.
    fn go_on(&self) -> Child {
        match self.folder() {
            Some(run) => self.start(&["resume", run.to_str().unwrap()]),
            None => self.start(&["run", "runs.toml"]),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The trained weights by job.
fn weights(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let jobs = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let jobs = jobs.filter(|path| path.join("weights.safetensors").is_file());
    jobs.map(|job| {
        let name = job.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(job.join("weights.safetensors")).unwrap())
    })
    .collect()
}

/// The weights of a run that nothing disturbs.
fn undisturbed(modes: &str) -> BTreeMap<String, Vec<u8>> {
    let whole = Runs::of(modes);
    let output = whole.asymflow(&["run", "runs.toml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    weights(&whole.folder().unwrap())
}

#[test]
fn a_signal_at_any_moment_loses_and_mixes_nothing() {
    let expected = undisturbed(MODES);
    assert_eq!(expected.len(), 4);
    for (signal, codes) in [("-TERM", [Some(130), Some(0)]), ("-INT", [Some(130), Some(0)]), ("-KILL", [None, Some(0)])]
    {
        let runs = Runs::of(MODES);
        let mut signals = 0;
        let (mut pause, mut output) = (20, None);
        while output.is_none() {
            let child = runs.go_on();
            std::thread::sleep(Duration::from_millis(pause));
            // One that has ended by now hears nothing.
            let _ = Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status();
            let ended = child.wait_with_output().unwrap();
            assert!(codes.contains(&ended.status.code()), "{signal} after {pause} ms: {}", text(&ended.stderr));
            signals += u32::from(!ended.status.success());
            output = ended.status.success().then_some(ended);
            pause *= 3;
        }
        assert!(signals >= 3, "{signal}: {signals}");
        let run = runs.folder().unwrap();
        for (job, weights) in weights(&run) {
            assert!(expected[&job] == weights, "{signal}: {job}");
        }
        assert_eq!(weights(&run).len(), 4);
    }
}

/// Every file is at most so long, as on a disk that is full from there on.
#[test]
fn a_full_disk_is_an_error_with_the_file_and_loses_nothing() {
    let expected = undisturbed(MODES);
    for kibibytes in [1, 4, 64, 300] {
        let runs = Runs::of(MODES);
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" run runs.toml", 2 * kibibytes);
        let mut limited = Command::new("sh");
        limited.current_dir(runs.0.path()).args(["-c", &script, env!("CARGO_BIN_EXE_asymflow")]);
        let output = limited.stdin(Stdio::null()).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{kibibytes} KiB: {stderr}");
        let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains("cannot write ") && error.contains("File too large"), "{kibibytes} KiB: {stderr}");
        let output = runs.go_on().wait_with_output().unwrap();
        assert!(output.status.success(), "{kibibytes} KiB: {}", text(&output.stderr));
        assert!(weights(&runs.folder().unwrap()) == expected, "{kibibytes} KiB");
    }
}

#[test]
fn the_same_number_of_threads_gives_the_same_weights_in_every_mode() {
    // All but those that draw noise, and `shares`, which trains as `trusted-only`.
    let modes = format!("{MODES}, \"main-only\"");
    let (first, second) = (undisturbed(&modes), undisturbed(&modes));
    assert_eq!(first.len(), 5);
    for (job, weights) in &first {
        assert!(second[job] == *weights, "{job}");
    }
}

/// Within an epoch: a bar on a terminal, and no control characters anywhere else.
#[test]
fn a_bar_moves_on_a_terminal_and_nowhere_else() {
    let runs = Runs::of("\"trusted-only\"");
    let long = ["run", "runs.toml", "--set", "data.train=2048", "--set", "train.epochs=1"];
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
    command.current_dir(runs.0.path()).args(long).stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    // Else this process holds the other end open.
    drop(command);
    let mut said = Vec::new();
    // A terminal whose other end is closed is an error to read.
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut said);
    assert!(child.wait().unwrap().success());
    let said = text(&said);
    let bars: Vec<_> = said.split('\r').filter(|bar| bar.contains("/128  loss ")).collect();
    let is_whole =
        |bar: &str| bar.chars().filter(|mark| "━╌".contains(*mark)).count() == 20 && bar.ends_with("\u{1b}[K");
    assert!(bars.len() >= 2 && bars.iter().all(|bar| is_whole(bar)), "{said:?}");
    assert!(bars.first() != bars.last() && said.contains("epoch 1/1  loss "), "{said:?}");

    let output = runs.asymflow(&long);
    assert!(output.status.success());
    assert!(!text(&output.stderr).contains(['\r', '\u{1b}', '━']), "{:?}", text(&output.stderr));
}

#[test]
fn where_there_are_no_runs_that_is_said_and_nothing_is_written() {
    let runs = Runs(tempfile::tempdir().unwrap());
    for (command, message) in [("report", "error: docs/results is not here"), ("list", "error: cannot read runs: ")] {
        let output = runs.asymflow(&[command]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with(message) && stderr.contains("\nhelp: name "), "{command}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(runs.0.path()).unwrap().count(), 0);
}

#[test]
fn runs_are_listed_shown_and_gone_on_with_by_one_process_at_a_time() {
    let runs = Runs::of("\"trusted-only\"");
    let child = runs.start(&["run", "runs.toml", "--set", "train.epochs=200"]);
    let run = loop {
        match runs.folder().filter(|run| run.join("trusted-only-seed1/metrics.jsonl").is_file()) {
            Some(run) => break run,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let name = run.file_name().unwrap().to_str().unwrap();
    let shown = |arguments: &[&str]| {
        let output = runs.asymflow(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert!(shown(&["list"]).contains(&format!("| {name} | train |")) && shown(&["list"]).contains("running"));
    let second = runs.asymflow(&["resume", run.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second.stderr).contains("is being run by another process"), "{}", text(&second.stderr));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));

    assert!(shown(&["list"]).contains("interrupted"), "{}", shown(&["list"]));
    let text = shown(&["show", run.to_str().unwrap()]);
    for part in ["runs (train), interrupted", "| trusted-only-seed1 |", "`asymflow resume /"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Mode `cipher` needs a program of another workspace: here one that says what it was asked.
#[test]
fn a_program_on_path_classifies_the_test_images_of_mode_cipher() {
    use std::os::unix::fs::PermissionsExt;

    let runs = Runs::of("\"trusted-only\", \"cipher\"");
    let program = runs.0.path().join("asymflow-cipher");
    let with_path = |said: &str| {
        std::fs::write(
            &program,
            format!("#!/bin/sh\n[ -s \"$3\" ] && [ -s \"$5\" ] || exit 9\necho \"$@\" > asked\n{said}\n"),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", runs.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(runs.0.path()).env("PATH", path);
        let set = ["model.names=[\"pkn-lenet\"]", "cipher.images=7", "train.epochs=1"];
        command.args(["run", "runs.toml"]).args(set.iter().flat_map(|set| ["--set", set])).output().unwrap()
    };
    let summary = r#"echo '{"summary":{"images":7,"accuracy":{"test":0.5,"reference":0.5,"float":0.6},"cost":{"images":2},"bytes":{"query":10,"answer":4}}}'"#;
    let output = with_path(summary);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let asked = std::fs::read_to_string(runs.0.path().join("asked")).unwrap();
    for part in ["evaluate --network ", "--packing latency", "--images 7", "--train 64 --test 32 --seed "] {
        assert!(asked.contains(part), "{asked}");
    }
    let folder = runs.folder().unwrap();
    let of = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(run).join("summary.json")).unwrap()).unwrap()
    };
    let (plain, encrypted) = (of("trusted-only-seed1"), of("cipher-seed1"));
    assert_eq!((&encrypted["accuracy"]["test"], &encrypted["accuracy"]["reference"]), (&0.5.into(), &0.5.into()));
    assert_eq!(encrypted["accuracy"]["trusted_only"], plain["accuracy"]["test"], "the same network");
    assert_eq!(encrypted["data"]["test"], 7);
    assert_eq!(encrypted["inference_bytes_per_sample"]["to_worker"], 5, "a query has two images");
    assert!(plain["accuracy"].get("reference").is_none());
    // What it complains of is told, with its remedy.
    std::fs::remove_dir_all(&folder).unwrap();
    let output = with_path("echo 'error: too deep' >&2; echo 'help: train a flat one' >&2; exit 1");
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("error: asymflow-cipher: too deep") && stderr.contains("help: train a flat one"),
        "{stderr}"
    );
    // A network with signs is refused before it is trained.
    let output = runs.asymflow(&["run", "runs.toml", "--set", "mode.run=[\"cipher\"]"]);
    assert!(text(&output.stderr).contains("mode cipher needs "), "{}", text(&output.stderr));
}
