//! Failure drills on the real three processes. They need `asymflow-enclaved` and `asymflow-worker` beside
//! the command, where `cargo xtask test` builds them.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const EXPERIMENT: &str = r#"
schema = 1
title = "drill"
claim = "none"
kind = "train"
[data]
train = 192
test = 32
[model]
names = ["demo-cnn"]
[mode]
run = ["MODE"]
rank = "fixed:2"
[train]
epochs = 6
batch = 16
learning_rate = 0.05
[worker]
patience_seconds = 20
"#;

struct Drill {
    folder: tempfile::TempDir,
    mode: &'static str,
}

impl Drill {
    fn new() -> Self {
        Self::of("asymml")
    }

    fn of(mode: &'static str) -> Self {
        let command = Path::new(env!("CARGO_BIN_EXE_asymflow"));
        for program in ["asymflow-enclaved", "asymflow-worker"] {
            let beside = command.with_file_name(program);
            assert!(beside.is_file(), "{program} is not built: cargo build --release -p {program}");
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("drill.toml"), EXPERIMENT.replace("MODE", mode)).unwrap();
        Self { folder, mode }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(self.folder.path()).args(["run", "drill.toml"]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A run folder says everything; where one stands does not matter.
    fn resume(&self, run: &Path, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir("/").arg("resume").arg(run).args(flags).output().unwrap()
    }

    fn run(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    /// The one run folder.
    fn run_folder(&self) -> PathBuf {
        let mut runs: Vec<_> = std::fs::read_dir(self.folder.path().join("runs")).unwrap().collect();
        assert_eq!(runs.len(), 1);
        runs.remove(0).unwrap().path()
    }

    /// A file of the one job in a run folder.
    fn of_job(&self, run: &Path, file: &str) -> PathBuf {
        run.join(format!("{}-seed1", self.mode)).join(file)
    }

    fn losses(&self, run: &Path) -> Vec<String> {
        let metrics = std::fs::read_to_string(self.of_job(run, "metrics.jsonl")).unwrap();
        metrics.lines().filter(|line| line.starts_with("{\"Step\"")).map(str::to_owned).collect()
    }

    fn kill_worker(&self) {
        let log = std::fs::read_to_string(self.run_folder().join("log.txt")).unwrap();
        let pid: u32 = log.split("worker ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        signal(pid, "-KILL");
    }

    /// Waits until the run has made `steps` steps.
    fn wait_for_steps(&self, steps: usize) {
        let start = Instant::now();
        loop {
            let runs = self.folder.path().join("runs");
            let done = std::fs::read_dir(&runs).ok().and_then(|mut runs| runs.next()?.ok()).is_some_and(|run| {
                let metrics = self.of_job(&run.path(), "metrics.jsonl");
                std::fs::read_to_string(metrics).is_ok_and(|text| text.matches("\"Step\"").count() >= steps)
            });
            if done {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "no {steps} steps in two minutes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A run that is interrupted and resumed gives the same losses as a whole one; both folders.
fn interrupted_and_whole(mode: &'static str) -> (Drill, Drill) {
    let whole = Drill::of(mode);
    let output = whole.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected = whole.losses(&whole.run_folder());
    assert_eq!(expected.len(), 72);

    let drill = Drill::of(mode);
    let child = drill.command(&[]).spawn().unwrap();
    drill.wait_for_steps(15);
    signal(child.id(), "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let run = drill.run_folder();
    assert!(drill.losses(&run).len() < 72, "it was over before it was interrupted");
    for file in ["config.toml", "summary.json", "summary.md"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    assert!(drill.of_job(&run, "checkpoints/latest.safetensors").is_file());
    let output = drill.resume(&run, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(drill.losses(&run), expected);
    (drill, whole)
}

#[test]
fn ctrl_c_then_resume_gives_the_losses_of_an_uninterrupted_run() {
    let (drill, whole) = interrupted_and_whole("asymml");
    let (run, expected) = (drill.run_folder(), whole.losses(&whole.run_folder()));

    // The trained weights start another run, which is better from its first step on.
    let weights = run.join("asymml-seed1/weights.safetensors");
    let next = Drill::new();
    let output = next.run(&["--set", &format!("model.weights={}", weights.display()), "--set", "train.epochs=1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let loss = |line: &String| -> f64 {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["Step"]["loss"].as_f64().unwrap()
    };
    assert!(loss(&next.losses(&next.run_folder())[0]) < loss(&expected[0]));
}

/// In `clear` the worker holds weights and momentum.
#[test]
fn ctrl_c_then_resume_gives_the_losses_of_an_uninterrupted_clear_run() {
    interrupted_and_whole("clear");
}

#[test]
fn a_clear_run_whose_worker_is_killed_ends_with_the_same_weights() {
    let whole = Drill::of("clear");
    assert!(whole.run(&[]).status.success());
    let drill = Drill::of("clear");
    let child = drill.command(&[]).spawn().unwrap();
    drill.wait_for_steps(20);
    drill.kill_worker();
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("opened again, weights sent, step"), "{stderr}");
    let weights = |drill: &Drill| std::fs::read(drill.of_job(&drill.run_folder(), "weights.safetensors")).unwrap();
    assert!(weights(&drill) == weights(&whole), "{stderr}");
}

#[test]
fn a_worker_killed_in_the_middle_of_an_epoch_is_started_again_and_the_losses_stay() {
    let whole = Drill::new();
    assert!(whole.run(&[]).status.success());
    let drill = Drill::new();
    let child = drill.command(&[]).spawn().unwrap();
    drill.wait_for_steps(8);
    drill.kill_worker();
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("the worker ended"), "{stderr}");
    assert!(stderr.contains("opened again, weights sent, step done again"), "{stderr}");
    assert_eq!(drill.losses(&drill.run_folder()), whole.losses(&whole.run_folder()));
}

/// The losses are those of a run over TCP, and both workers' rings were to be had.
#[test]
fn a_worker_killed_under_shared_memory_is_started_again_and_the_losses_stay() {
    let whole = Drill::new();
    assert!(whole.run(&["--set", "worker.transport=tcp"]).status.success());
    let drill = Drill::new();
    let child = drill.command(&["--set", "worker.transport=shm"]).spawn().unwrap();
    drill.wait_for_steps(8);
    drill.kill_worker();
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("opened again, weights sent, step done again"), "{stderr}");
    assert!(!stderr.contains("no shared memory"), "{stderr}");
    assert_eq!(drill.losses(&drill.run_folder()), whole.losses(&whole.run_folder()));
}

#[test]
fn a_truncated_checkpoint_is_refused_and_left_alone() {
    let drill = Drill::new();
    let child = drill.command(&[]).spawn().unwrap();
    drill.wait_for_steps(13);
    signal(child.id(), "-INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let run = drill.run_folder();
    let checkpoint = run.join("asymml-seed1/checkpoints/latest.safetensors");
    let bytes = std::fs::read(&checkpoint).unwrap();
    std::fs::write(&checkpoint, &bytes[..bytes.len() - 100]).unwrap();
    let output = drill.resume(&run, &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("error: not a complete checkpoint"), "{stderr}");
    assert!(stderr.contains("help: resume another run"), "{stderr}");
    assert_eq!(std::fs::metadata(&checkpoint).unwrap().len() as usize, bytes.len() - 100);
}

#[test]
fn a_full_disk_ends_the_run_in_words_and_keeps_what_was_written() {
    let drill = Drill::new();
    let child = drill.command(&[]).spawn().unwrap();
    drill.wait_for_steps(13);
    signal(child.id(), "-INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let run = drill.run_folder();
    let checkpoint = run.join("asymml-seed1/checkpoints/latest.safetensors");
    let before = std::fs::read(&checkpoint).unwrap();
    // Writes to this device always fail as on a full disk.
    std::fs::remove_file(run.join("asymml-seed1/ledger.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/full", run.join("asymml-seed1/ledger.jsonl")).unwrap();
    let output = drill.resume(&run, &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("ledger.jsonl: No space left on device"), "{stderr}");
    assert!(stderr.contains("help: free some disk space and continue with `asymflow resume`"), "{stderr}");
    assert_eq!(std::fs::read(&checkpoint).unwrap(), before);
}

#[test]
fn a_wrong_token_is_an_error_at_once() {
    let drill = Drill::new();
    let program = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name("asymflow-worker");
    let mut worker = Command::new(program)
        .args(["--exit-with-parent", "--insecure-plaintext"])
        .env("ASYMFLOW_WORKER_TOKEN", "right")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(worker.stdout.take().unwrap()), &mut line).unwrap();
    let address = line.split("\"listening\":\"").nth(1).unwrap().split('"').next().unwrap();
    std::fs::write(drill.folder.path().join("token"), "wrong").unwrap();
    let output = drill.run(&[
        "--set",
        &format!("worker.address={address}"),
        "--set",
        "worker.token_file=token",
        "--set",
        "worker.insecure_plaintext=true",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&format!("error: worker {address} refused the token")), "{stderr}");
    assert!(stderr.contains("insecure_plaintext"), "{stderr}");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn images_that_make_the_network_overflow_stop_the_run_before_anything_wrong_is_kept() {
    for mode in ["asymml", "clear"] {
        let drill = Drill::of(mode);
        let output = drill.run(&["--set", "train.learning_rate=1e38"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = text(&output.stderr);
        let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.starts_with("error: layer ") && error.ends_with(": a value is not finite"), "{mode}: {stderr}");
        assert!(stderr.contains("lower train.learning_rate"), "{mode}: {stderr}");
        assert!(!drill.of_job(&drill.run_folder(), "checkpoints/latest.safetensors").exists());
    }
}

#[test]
fn wrong_usage_is_exit_2_with_a_help_line() {
    let drill = Drill::new();
    for (flags, message) in [
        (&["--set", "train.epoch=3"][..], "help: did you mean `epochs`?"),
        (&["--set", "model.names=[\"resnet19-cifar\"]"], "help: "),
        (&["--set", "mode.decomposition=svd"], "unknown decomposition \"svd\""),
        (&["--data", "no/such/folder"], "no/such/folder"),
        (&["--set", "model.weights=no-such-file"], "no-such-file"),
        (&["--set", "data.train=0"], "data.train = 0 is out of range"),
        (&["--set", "train.seed=1"], "help: did you mean `seeds`?"),
        (&["--set", "trian.epochs=1"], "help: did you mean `train`?"),
        (&["--seeds", "20261127"], "for that one seed: --set train.seeds=[20261127]"),
        (&["--set", "trusted.runtime=sgx"], "unknown trusted.runtime \"sgx\""),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let output = drill.run(flags);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(stderr.contains(message), "{flags:?}: {stderr}");
    }
    for (arguments, message) in [
        (&["classify", "x.png", "--timeout", "18446744073709551615"][..], "--timeout"),
        (&["load", "--seconds", "1e300"], "--seconds = 1"),
        (&["load", "--rate", "1e-300"], "--rate = 0.0"),
        (&["load", "--connections", "0"], "--connections = 0 is out of range"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        let output = command.arg("client").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
    let mut broken = std::fs::File::create(drill.folder.path().join("drill.toml")).unwrap();
    broken.write_all(b"schema = ").unwrap();
    assert_eq!(drill.run(&[]).status.code(), Some(2));
}

#[test]
fn a_device_that_is_not_built_in_is_exit_3() {
    let drill = Drill::new();
    let output = drill.run(&["--set", "worker.device=cuda"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

#[test]
fn a_worker_of_another_program_is_started_by_its_path_or_missed_by_name() {
    let drill = Drill::new();
    let worker = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name("asymflow-worker");
    let program = |program: &str| drill.run(&["--set", &format!("worker.program={program}")]);
    let output = program(worker.to_str().unwrap());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = program("no-such-worker");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no-such-worker"), "{}", text(&output.stderr));
}

#[test]
fn a_dry_run_shows_the_split_and_starts_nothing() {
    let drill = Drill::new();
    let output = drill.run(&["--dry-run"]);
    assert!(output.status.success());
    let stdout = text(&output.stdout);
    assert!(stdout.contains("| conv1"), "{stdout}");
    assert!(stdout.contains("split, rank 2"), "{stdout}");
    // The answer, and not the settings that lead to it.
    assert!(stdout.lines().count() < 40, "{stdout}");
    assert!(!drill.folder.path().join("runs").exists());
}

#[test]
fn the_published_results_are_rendered_from_their_data() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    let check = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.args(["report", "--check", "--out"]).arg(folder).output().unwrap()
    };
    let output = check(&results);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let changed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&results).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, changed.path().join(path.file_name().unwrap())).unwrap();
    }
    let table = changed.path().join("asymml-cifar10.md");
    let by_hand = std::fs::read_to_string(&table).unwrap().replace("| clear ", "| CLEAR ");
    std::fs::write(&table, by_hand).unwrap();
    assert_eq!(check(changed.path()).status.code(), Some(1));
}

#[test]
fn sealed_checkpoints_go_on_alike_and_cannot_be_read_put_back_or_begun_anew() {
    let whole = Drill::new();
    assert!(whole.run(&[]).status.success());
    let expected = whole.losses(&whole.run_folder());

    let drill = Drill::new();
    let seal = ["--set", "trusted.seal=true", "--set", "trusted.guard=guards"];
    let child = drill.command(&seal).spawn().unwrap();
    drill.wait_for_steps(15);
    signal(child.id(), "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("insecure_host_key"), "{}", text(&output.stderr));
    let run = drill.run_folder();
    let of_job = |file: &str| drill.of_job(&run, file);
    assert!(!of_job("checkpoints/latest.safetensors").exists(), "the host has no checkpoint");
    let sealed: Vec<_> = std::fs::read_dir(of_job("sealed")).unwrap().map(|e| e.unwrap().path()).collect();
    let sealed = sealed.into_iter().find(|path| path.file_name().is_some_and(|name| name != "host.key")).unwrap();
    let then = std::fs::read(&sealed).unwrap();

    let output = drill.resume(&run, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(drill.losses(&run), expected);
    let weights = |drill: &Drill| std::fs::read(drill.of_job(&drill.run_folder(), "weights.safetensors")).unwrap();
    assert_eq!(weights(&drill), weights(&whole));

    // The host takes the job for unfinished, in three ways.
    std::fs::remove_file(of_job("summary.json")).unwrap();
    let refused = || {
        let output = drill.resume(&run, &[]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let now = std::fs::read(&sealed).unwrap();
    std::fs::write(&sealed, &then).unwrap();
    assert!(refused().contains("rolled back"), "{}", refused());
    let mut changed = now.clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&sealed, &changed).unwrap();
    assert!(refused().contains("checkpoint"), "{}", refused());
    std::fs::write(&sealed, &now).unwrap();
    std::fs::remove_file(of_job("checkpoints/sealed")).unwrap();
    assert!(refused().contains("the vault holds a checkpoint"), "{}", refused());
}
