//! `cargo xtask test`: the tests, the smoke form of every experiment, and what was skipped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::binaries::{self, CLI, ENCLAVED, SERVER, WORKER};
use crate::doctor::gpu;
use crate::experiments;
use crate::failure::{FAILED, INTERRUPTED};
use crate::process;
use crate::table::table;
use crate::workspace::Workspace;

/// The backend that software Vulkan can test; `vulkan` (SPIR-V) crashes on it.
const WGPU: &str = "asymflow-residual/wgpu";

/// Devices of other machines. They bring a network stack that nothing else needs, and a second build of burn with it.
const REMOTE: &str = "asymflow-residual/remote";
/// A host to test them with.
const REMOTE_HOST: &str = "remote_host";

/// Parsers on hostile bytes. Built with a profile of its own, in which arithmetic that overflows is no longer silent.
const FUZZ: &str = "asymflow-fuzz";

/// A worker on PyTorch: a workspace of its own, for what it links is not on every machine.
const TORCH: &str = "asymflow-torch";

/// What computes on ciphertexts, in a workspace of its own.
const CIPHER: &str = "asymflow-cipher";

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only the tests of this crate, without the experiments
    #[arg(long, value_name = "CRATE")]
    only: Option<String>,
    /// Devices of other machines as well: compiles burn a second time, and 140 crates more
    #[arg(long)]
    remote: bool,
    /// Only tests whose name contains this, without the experiments
    filter: Option<String>,
}

/// Runs the tests; prints skipped ones and a closing line `N passed, N failed, N skipped`.
pub fn run(workspace: &Workspace, args: &TestArgs) -> Result<u8> {
    let mut tally = Tally::default();
    // The drills of the command run all programs.
    if args.only.as_deref() == Some(CLI) && binaries::build(workspace, &[ENCLAVED, WORKER, SERVER, CLI], &[])? != 0 {
        tally.fail("the binaries for the drills do not build".to_owned());
    }
    run_tests(workspace, args, &mut tally)?;
    if !process::was_interrupted() {
        fuzz(workspace, args, &mut tally)?;
    }
    if !process::was_interrupted() {
        test_remote(workspace, args, &mut tally)?;
    }
    if !process::was_interrupted() {
        test_torch(workspace, args, &mut tally)?;
        test_cipher(workspace, args, &mut tally)?;
    }
    if args.only.is_none() && args.filter.is_none() && !process::was_interrupted() {
        run_smoke_forms(workspace, &mut tally)?;
    }
    print!("\n{}", tally.report());
    Ok(match (process::was_interrupted(), tally.failed) {
        (true, _) => INTERRUPTED,
        (false, 0) => 0,
        (false, _) => FAILED,
    })
}

fn run_tests(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    if args.only.as_deref().is_some_and(|only| [FUZZ, TORCH, CIPHER].contains(&only)) {
        return Ok(());
    }
    let features = features(workspace, args.only.as_deref(), tally);
    let cargo = |words: &[&str]| {
        let mut cargo = process::cargo();
        cargo.current_dir(workspace.root()).args(words).arg("--release");
        match &args.only {
            Some(name) => cargo.args(["--package", name]),
            None if workspace.has(FUZZ) => cargo.args(["--workspace", "--exclude", FUZZ]),
            None => cargo.arg("--workspace"),
        };
        cargo.args(features.iter().map(|feature| format!("--features={feature}")));
        cargo
    };
    // Programs for the drills and experiments, of what the tests are built of: nothing is compiled twice.
    if args.only.is_none() && process::run(&mut cargo(&["build", "--bins", "--tests"]))? != 0 {
        tally.fail("the programs for the drills and experiments do not build".to_owned());
    }
    count_tests(cargo(&["test", "--no-fail-fast"]).args(&args.filter), tally)
}

/// Runs every parser on its corpus and on mutations of it, for less than a minute.
fn fuzz(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    if !workspace.has(FUZZ) || args.only.as_deref().is_some_and(|only| only != FUZZ) {
        return Ok(());
    }
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["test", "--profile", "fuzz", "--no-fail-fast", "--package", FUZZ]);
    cargo.args(&args.filter);
    count_tests(&mut cargo, tally)
}

/// Tests devices of other machines against a host on this one, where that is asked for.
fn test_remote(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    let Some((package, feature)) = REMOTE.split_once('/').filter(|(package, _)| workspace.has(package)) else {
        return Ok(());
    };
    if !args.remote {
        if args.only.as_deref().is_none_or(|only| only == package) {
            tally.skip(REMOTE, "compiles burn a second time; `cargo xtask test --remote` does it");
        }
        return Ok(());
    }
    let features = format!("conformance,serve,{feature}");
    let cargo = |command: &str| {
        let mut cargo = process::cargo();
        cargo.current_dir(workspace.root()).args([command, "--release", "--package", package, "--features", &features]);
        cargo
    };
    if process::run(cargo("build").args(["--example", REMOTE_HOST]))? != 0 {
        tally.fail(format!("the example {REMOTE_HOST} does not build"));
        return Ok(());
    }
    count_tests(cargo("test").args(["--test", "conformance", feature]), tally)
}

/// Tests what computes on ciphertexts.
fn test_cipher(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    let manifest = workspace.cipher_manifest();
    if !manifest.is_file() || args.only.as_deref().is_some_and(|only| only != CIPHER) {
        return Ok(());
    }
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["test", "--release", "--no-fail-fast", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(workspace.cipher_target()).args(&args.filter);
    count_tests(&mut cargo, tally)
}

/// Tests the worker on PyTorch where Python has the PyTorch that it links.
fn test_torch(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    let manifest = workspace.root().join("torch/Cargo.toml");
    if !manifest.is_file() || args.only.as_deref().is_some_and(|only| only != TORCH) {
        return Ok(());
    }
    const FIND: &str = "import torch; print(torch.__version__ + ' ' + torch.__path__[0])";
    let found = process::captured(Command::new("python3").args(["-c", FIND]).stderr(Stdio::null()));
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let Some((_, folder)) = found.split_once(' ').filter(|(version, _)| version.starts_with("2.11.")) else {
        let found = if found.is_empty() { "no PyTorch" } else { &found };
        tally.skip(TORCH, &format!("{found} in python3; it needs PyTorch 2.11 (`pip install torch==2.11.0`)"));
        return Ok(());
    };
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["test", "--release", "--no-fail-fast", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(&workspace.target_directory).args(&args.filter);
    let paths = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    cargo.env("LIBTORCH_USE_PYTORCH", "1").env("LD_LIBRARY_PATH", format!("{folder}/lib:{paths}"));
    count_tests(&mut cargo, tally)
}

/// Runs `cargo test` and adds what it says to the tally.
fn count_tests(cargo: &mut Command, tally: &mut Tally) -> Result<()> {
    cargo.args(["--", "--show-output"]);
    let failed_before = tally.failed;
    let code = stream(cargo, |line| {
        if tally.read(line) {
            println!("{line}");
        }
    })?;
    if code != 0 && tally.failed == failed_before {
        tally.fail(format!("cargo test ended with exit code {code}: a build failed or a test process died"));
    }
    Ok(())
}

/// The features to test with: those that tests need, and the wgpu backend where there is a Vulkan driver.
fn features(workspace: &Workspace, only: Option<&str>, tally: &mut Tally) -> Vec<String> {
    let is_tested = |package: &str| workspace.has(package) && only.is_none_or(|only| only == package);
    let mut features = workspace.required_features();
    if gpu::has_vulkan_driver() {
        features.push(WGPU.to_owned());
    } else if WGPU.split_once('/').is_some_and(|(package, _)| is_tested(package)) {
        tally.skip(WGPU, "no Vulkan driver found; mesa-vulkan-drivers has one that needs no GPU");
    }
    features.retain(|feature| feature.split_once('/').is_some_and(|(package, _)| is_tested(package)));
    features
}

/// Runs every experiment's smoke form; an experiment that says a capability is missing counts as skipped.
fn run_smoke_forms(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let paths = experiments::all(workspace)?;
    if paths.is_empty() {
        return Ok(());
    }
    let runs = workspace.target_directory.join("smoke-runs");
    for path in paths {
        let name = format!("experiment {} --smoke", experiments::name_of(&path));
        println!("\n{name}");
        let mut asymflow = experiments::asymflow(workspace);
        asymflow.arg("run").arg(path.strip_prefix(workspace.root()).unwrap_or(&path));
        let (code, error) = run_and_keep_error(asymflow.arg("--smoke").arg("--runs").arg(&runs))?;
        match code {
            0 => tally.passed += 1,
            3 => tally.skip(&name, &error),
            INTERRUPTED => return Ok(()),
            code => tally.fail(format!("{name} ended with exit code {code}: {error}")),
        }
    }
    Ok(())
}

/// Runs `command` with our terminal; gives its exit code and the `error:` that it wrote to standard error.
fn run_and_keep_error(command: &mut Command) -> Result<(u8, String)> {
    let mut child = process::spawn(command.stderr(Stdio::piped()))?;
    let stderr = child.stderr.take().context("the child has no standard error")?;
    let mut error = String::new();
    for_each_line(stderr, |line| {
        eprintln!("{line}");
        if let Some(message) = line.strip_prefix("error: ") {
            message.clone_into(&mut error);
        }
    })?;
    Ok((process::wait(&mut child)?, error))
}

/// Runs `command` and hands every line of its standard output to `read` as it comes.
fn stream(command: &mut Command, read: impl FnMut(&str)) -> Result<u8> {
    let mut child = process::spawn(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    for_each_line(stdout, read)?;
    process::wait(&mut child)
}

fn for_each_line(output: impl Read, mut read: impl FnMut(&str)) -> Result<()> {
    for line in BufReader::new(output).split(b'\n') {
        read(&String::from_utf8_lossy(&line.context("cannot read the child's output")?));
    }
    Ok(())
}

/// What the tests said so far.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Name and reason of everything that was skipped.
    skipped: Vec<(String, String)>,
    failures: Vec<String>,
    /// Skipped tests of the test binary whose output is being read; its own counts call them passed.
    pending: BTreeMap<String, String>,
    /// The test whose output is being read.
    current: String,
    /// Whether the output of passing tests is being read.
    in_successes: bool,
}

impl Tally {
    /// Reads one line of the output of `cargo test -- --show-output`; says whether a user wants to see it.
    /// What passing tests print is read for skips only.
    fn read(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            self.in_successes = false;
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            name.clone_into(&mut self.current);
        } else if line == "failures:" {
            self.current.clear();
        } else if let Some(reason) = line.trim_start().strip_prefix("skipped:") {
            self.read_skip(reason.trim());
        } else if let Some(test) = line.strip_prefix("test ") {
            self.read_outcome(test);
        }
        !self.in_successes
    }

    fn read_skip(&mut self, reason: &str) {
        self.pending
            .entry(self.current.clone())
            .and_modify(|reasons| *reasons = format!("{reasons}; {reason}"))
            .or_insert_with(|| reason.to_owned());
    }

    /// Reads what follows `test `: the outcome of one test, or the counts at the end of a test binary.
    fn read_outcome(&mut self, test: &str) {
        if let Some(counts) = test.strip_prefix("result: ") {
            self.passed += count(counts, "passed").saturating_sub(self.pending.len());
            self.failed += count(counts, "failed");
            self.skipped.extend(std::mem::take(&mut self.pending));
            self.current.clear();
        } else if let Some(name) = test.strip_suffix(" ... FAILED") {
            self.failures.push(name.to_owned());
            self.pending.remove(name);
        } else if let Some((name, reason)) = test.split_once(" ... ignored") {
            self.skip(name, reason.trim_start_matches([',', ' ']));
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        self.skipped.push((name.to_owned(), reason.to_owned()));
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// The tables of what was skipped and what failed, and the closing line.
    fn report(&self) -> String {
        let mut text = String::new();
        if !self.skipped.is_empty() {
            let rows: Vec<_> = self.skipped.iter().map(|(test, why)| vec![test.clone(), why.clone()]).collect();
            text.push_str(&table(&["skipped", "why"], &rows));
            text.push('\n');
        }
        for failure in &self.failures {
            text.push_str(&format!("failed: {failure}\n"));
        }
        text + &format!("{} passed, {} failed, {} skipped\n", self.passed, self.failed, self.skipped.len())
    }
}

/// The number before `what` in a line such as `ok. 5 passed; 0 failed; 1 ignored; …`.
fn count(counts: &str, what: &str) -> usize {
    let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        for line in output.lines() {
            tally.read(line);
        }
        tally
    }

    const OUTPUT: &str = "\
running 4 tests
test gpu::matmul ... ok
test gpu::conv ... ok
test slow ... ignored, needs an hour
test plain ... ok

successes:

---- gpu::matmul stdout ----
skipped: no Vulkan driver
---- gpu::conv stdout ----
skipped: no Vulkan driver
skipped: no f16 either

successes:
    gpu::conv
    gpu::matmul
    plain

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn skipped_tests_count_as_skipped_and_not_as_passed() {
        let tally = tally(OUTPUT);
        assert_eq!((tally.passed, tally.failed, tally.skipped.len()), (1, 0, 3));
        assert!(tally.skipped.contains(&("gpu::conv".into(), "no Vulkan driver; no f16 either".into())));
        assert!(tally.skipped.contains(&("slow".into(), "needs an hour".into())));
    }

    #[test]
    fn what_passing_tests_print_is_not_shown() {
        let mut tally = Tally::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| tally.read(line)).collect();
        assert_eq!(shown.len(), 7, "{shown:?}");
        assert!(shown[6].starts_with("test result: ok."), "{shown:?}");
    }

    #[test]
    fn counts_of_several_binaries_add_up() {
        let tally = tally(&format!("{OUTPUT}{OUTPUT}"));
        assert_eq!((tally.passed, tally.skipped.len()), (2, 6));
    }

    #[test]
    fn a_test_that_fails_after_it_said_skipped_is_a_failure() {
        let tally = tally(
            "test a ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a stdout ----\nassertion failed\n\nfailures:\n    a\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.failures, ["a"]);
    }

    #[test]
    fn the_closing_line_stands_alone() {
        let report = tally(OUTPUT).report();
        assert_eq!(report.lines().last(), Some("1 passed, 0 failed, 3 skipped"));
        assert!(report.starts_with("skipped      why\n"), "{report}");
    }
}
