//! Drives the built xtask in a made-up workspace whose binaries are a few lines each.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Prints its arguments and ends as FAKE says.
const CLI: &str = r#"
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    println!("asymflow {}", args.join(" "));
    match std::env::var("FAKE").as_deref() {
        Ok("claim") => std::process::exit(1),
        Ok("missing") => {
            eprintln!("error: no GPU here\nhelp: bring one");
            std::process::exit(3);
        }
        Ok("wait") => {
            std::fs::write("started", std::process::id().to_string()).unwrap();
            std::thread::sleep(std::time::Duration::from_secs(120));
        }
        _ => {}
    }
}
"#;

/// Plans 5 MiB for three threads, whatever it is asked to serve but a sealed model.
const ENCLAVED: &str = r###"
fn main() {
    if std::env::args().any(|argument| argument == "model.sealed") {
        eprintln!("error: this is no enclave");
        std::process::exit(3);
    }
    if std::env::args().nth(1).as_deref() == Some("plan") {
        println!(r##"{{"threads":3,"plan":{{"peak_bytes":5242880}}}}"##);
    }
}
"###;

const EXPERIMENT: &str = "schema = 1\ntitle = \"A title\"\nclaim = \"it works\"\nkind = \"train\"\n";

const TESTS: &str = r#"
#[test]
fn passes() {}

#[test]
fn needs_hardware() {
    println!("skipped: no enclave here");
}

#[cfg(feature = "broken")]
#[test]
fn fails() {
    assert_eq!(1, 2);
}
"#;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn package(root: &Path, name: &str, extra: &str) {
    let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{extra}");
    write(root, &format!("crates/{name}/Cargo.toml"), &manifest);
}

fn workspace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let manifest = "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n[workspace.metadata.layers]\n\
                    low = 0\nasymflow-cli = 5\nasymflow-enclaved = 5\nasymflow-worker = 5\nasymflow-server = 5\n";
    write(root, "Cargo.toml", manifest);
    for name in ["asymflow-enclaved", "asymflow-worker", "asymflow-server"] {
        package(root, name, "");
        write(root, &format!("crates/{name}/src/main.rs"), ENCLAVED);
    }
    package(root, "asymflow-cli", "[[bin]]\nname = \"asymflow\"\npath = \"src/main.rs\"\n");
    write(root, "crates/asymflow-cli/src/main.rs", CLI);
    package(root, "low", "[features]\nbroken = []\n");
    write(root, "crates/low/src/lib.rs", TESTS);
    for name in ["demo", "delta-cifar10"] {
        write(root, &format!("xtask/experiments/{name}.toml"), EXPERIMENT);
    }
    dir
}

fn xtask(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.current_dir(root).args(args);
    command.env("CARGO_TARGET_DIR", root.join("target")).env("CARGO_NET_OFFLINE", "true").env_remove("FAKE");
    command
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, text: &str) {
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{shown}");
    assert!(shown.contains(text), "{shown}");
}

#[test]
fn experiments_get_their_flags_and_pass_on_their_exit_code() {
    let dir = workspace();
    let flags = ["--set", "train.lr=0.1", "--set", "a=1", "--seeds", "3", "--smoke", "--json"];
    let run = xtask(dir.path(), &[&["run", "delta-cifar10"], &flags[..]].concat()).output().unwrap();
    let line = format!("asymflow run xtask/experiments/delta-cifar10.toml {}\n", flags.join(" "));
    assert_ends(&run, 0, &line);

    let resume = xtask(dir.path(), &["resume", "old", "--json"]).output().unwrap();
    let root = format!("{}/", dir.path().canonicalize().unwrap().display());
    assert_eq!(String::from_utf8_lossy(&resume.stdout).replace(&root, ""), "asymflow resume old --json\n");

    let by_path = xtask(dir.path(), &["run", "xtask/experiments/demo.toml", "--dry-run"]).output().unwrap();
    assert_ends(&by_path, 0, "demo.toml --dry-run\n");
    for (fake, code) in [("claim", 1), ("missing", 3)] {
        let demo = xtask(dir.path(), &["demo"]).env("FAKE", fake).output().unwrap();
        assert_ends(&demo, code, "asymflow run xtask/experiments/demo.toml\n");
    }
}

#[test]
fn bad_usage_ends_with_2_and_a_hint() {
    let dir = workspace();
    let typo = xtask(dir.path(), &["run", "delta-cifar"]).output().unwrap();
    assert_ends(&typo, 2, "error: unknown experiment `delta-cifar`\nhelp: did you mean `delta-cifar10`?\n");
    assert_ends(&xtask(dir.path(), &["run", "demo", "--sed", "a=1"]).output().unwrap(), 2, "--sed");
    write(dir.path(), "xtask/experiments/new.toml", &EXPERIMENT.replace("schema = 1", "schema = 9"));
    assert_ends(&xtask(dir.path(), &["list"]).output().unwrap(), 2, "schema 9 is unknown");
}

#[test]
fn list_shows_claims() {
    let dir = workspace();
    let list = xtask(dir.path(), &["list"]).output().unwrap();
    assert_ends(&list, 0, "delta-cifar10  train  A title  it works\n");
}

#[test]
fn tests_and_smoke_forms_are_counted_and_skips_explained() {
    let dir = workspace();
    let good = xtask(dir.path(), &["test"]).env("FAKE", "missing").output().unwrap();
    assert_ends(&good, 0, "test needs_hardware ... ok");
    let text = String::from_utf8(good.stdout).unwrap();
    // The test that said so, and both experiments.
    assert_eq!(text.lines().last(), Some("1 passed, 0 failed, 3 skipped"), "{text}");
    assert!(text.contains("needs_hardware                    no enclave here\n"), "{text}");
    assert!(text.contains("experiment demo --smoke           no GPU here\n"), "{text}");

    let claim = xtask(dir.path(), &["test"]).env("FAKE", "claim").output().unwrap();
    assert_ends(&claim, 1, "failed: experiment delta-cifar10 --smoke ended with exit code 1");
}

#[test]
fn a_failing_test_fails_the_run() {
    let dir = workspace();
    write(dir.path(), "crates/low/src/lib.rs", &TESTS.replace("#[cfg(feature = \"broken\")]", ""));
    let output = xtask(dir.path(), &["test", "--only", "low"]).output().unwrap();
    assert_ends(&output, 1, "failed: fails\n1 passed, 1 failed, 1 skipped\n");
    write(dir.path(), "crates/low/src/lib.rs", "not rust");
    let output = xtask(dir.path(), &["test", "--only", "low"]).output().unwrap();
    assert_ends(&output, 1, "0 passed, 1 failed, 0 skipped\n");
}

#[test]
fn an_interrupt_reaches_the_child_and_ends_with_130() {
    let dir = workspace();
    let started = dir.path().join("started");
    let mut demo =
        xtask(dir.path(), &["demo"]).env("FAKE", "wait").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(100);
    while !std::fs::read_to_string(&started).is_ok_and(|pid| !pid.is_empty()) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
    }
    let child = std::fs::read_to_string(&started).unwrap();
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    let is_alive = Command::new("kill").args(["-0", &child]).stderr(Stdio::null()).status().unwrap().success();
    assert!(!is_alive, "the child {child} still runs");
}

#[test]
fn check_fails_on_an_upward_dependency() {
    let dir = workspace();
    assert_ends(&xtask(dir.path(), &["check", "layers", "links"]).output().unwrap(), 0, "5 crates");
    package(dir.path(), "low", "[dependencies]\nasymflow-worker = { path = \"../asymflow-worker\" }\n");
    let output = xtask(dir.path(), &["check", "layers"]).output().unwrap();
    assert_ends(&output, 1, "low (layer 0) depends on asymflow-worker (layer 5), which is not below it");
}

/// Tells cargo to watch what cargo says of the package that runs, and counts how often it is run itself.
const WATCHER: &str = r#"
fn main() {
    for name in ["CARGO_PKG_NAME", "CARGO_PKG_VERSION", "CARGO_MANIFEST_DIR"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let mut runs = std::fs::read_to_string("../../runs").unwrap_or_default();
    runs.push('x');
    std::fs::write("../../runs", runs).unwrap();
}
"#;

#[test]
fn cargo_in_turn_with_xtask_builds_nothing_again() {
    let dir = workspace();
    write(dir.path(), "crates/asymflow-cli/build.rs", WATCHER);
    let mut plain = Command::new(env!("CARGO"));
    plain.args(["build", "--release", "--quiet", "--package", "asymflow-cli"]).current_dir(dir.path());
    plain.env("CARGO_TARGET_DIR", dir.path().join("target")).env("CARGO_NET_OFFLINE", "true");
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    {
        plain.env_remove(name);
    }
    for _ in 0..2 {
        assert!(plain.status().unwrap().success());
        let run = xtask(dir.path(), &["run", "demo"]).env("CARGO_PKG_NAME", "xtask").output().unwrap();
        assert_ends(&run, 0, "asymflow run xtask/experiments/demo.toml\n");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("runs")).unwrap(), "x", "the build script ran once");
}

#[test]
fn what_the_code_does_not_keep_to_is_found_and_may_only_become_less() {
    let dir = workspace();
    let enums = "pub enum Mode { A, B, C }\npub fn f(mode: &Mode) -> u8 {\n    match mode {\n        Mode::A => 1,\n        \
                 _ => 2,\n    }\n}\n";
    write(dir.path(), "crates/low/src/lib.rs", enums);
    let found = xtask(dir.path(), &["check", "wildcards"]).output().unwrap();
    assert_ends(&found, 1, "crates/low/src/lib.rs: 1 found, 0 allowed\n  crates/low/src/lib.rs:5\n");
    write(dir.path(), "xtask/ratchets.toml", "[wildcards]\n\"crates/low/src/lib.rs\" = 2\n");
    assert_ends(&xtask(dir.path(), &["check", "wildcards"]).output().unwrap(), 1, "lower it with --fix");
    assert_ends(&xtask(dir.path(), &["check", "wildcards", "--fix"]).output().unwrap(), 0, "1 left, in 1 places");
    assert_ends(&xtask(dir.path(), &["check", "wildcards"]).output().unwrap(), 0, "1 left, in 1 places");
    write(dir.path(), "crates/low/src/lib.rs", &enums.replace("_ =>", "Mode::B | Mode::C =>"));
    assert_ends(&xtask(dir.path(), &["check", "wildcards", "--fix"]).output().unwrap(), 0, "0 left, in 0 places");
    assert!(!std::fs::read_to_string(dir.path().join("xtask/ratchets.toml")).unwrap().contains("wildcards]"));
}

/// Writes what it is told into the manifest, as the real one does after more thought.
const MANIFEST_WRITER: &str =
    "fn main() { println!(\"plan {}\", std::io::read_to_string(std::io::stdin()).unwrap()); }";

/// The workspace with a crate that writes manifests, and a folder with programs that stand for Gramine's.
fn workspace_with_gramine() -> TempDir {
    let dir = workspace();
    let root = dir.path();
    package(root, "asymflow-enclave", "[features]\nhost-tools = []\n");
    write(root, "crates/asymflow-enclave/src/bin/asymflow-manifest.rs", MANIFEST_WRITER);
    let view =
        format!(r#"echo '{{"mr_enclave": "{}", "mr_signer": "{}", "isv_svn": 3}}'"#, "ab".repeat(32), "cd".repeat(32));
    let programs = [
        ("gramine-manifest", "cp \"$2\" \"$3\""),
        ("gramine-sgx-sign", "cp \"$2\" \"$4\" && touch asymflow-enclaved.sig"),
        ("gramine-sgx-sigstruct-view", &view),
        (
            "gramine-direct",
            "[ ! -e ../wait ] || { trap 'echo counters; exit 0' TERM; echo $$ > ../started; while :; do sleep 0.05; done; }; echo \"started $1\"; cat \"$1.manifest\"; [ ! -e ../fail ] || { cat ../fail >&2; exit 1; }",
        ),
    ];
    for (name, script) in programs {
        write(root, &format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        let program = root.join("bin").join(name);
        assert!(Command::new("chmod").arg("700").arg(program).status().unwrap().success());
    }
    dir
}

fn with_gramine(root: &Path, args: &[&str]) -> Output {
    let path = std::env::var_os("PATH").unwrap();
    let folders = std::iter::once(root.join("bin")).chain(std::env::split_paths(&path));
    xtask(root, args).env("PATH", std::env::join_paths(folders).unwrap()).output().unwrap()
}

#[test]
fn an_enclave_is_planned_signed_measured_and_started() {
    let dir = workspace_with_gramine();
    write(dir.path(), "model.bin", "weights");
    std::fs::create_dir(dir.path().join("ledger")).unwrap();
    let arguments = ["--", "serve", "--model", "model.bin", "--state", "ledger", "--listen", "[::]:1"];
    let manifest = ["enclave", "manifest", "--folder", "out", "--peak-mib", "3"];
    let planned = with_gramine(dir.path(), &[&manifest[..], &arguments].concat());
    assert_ends(&planned, 0, "model.bin is /app/data/model.bin inside\nledger is /state/ledger inside\n");
    let template = std::fs::read_to_string(dir.path().join("out/asymflow-enclaved.manifest.template")).unwrap();
    assert!(
        template.contains(r#"["serve","--model","/app/data/model.bin","--state","/state/ledger","--listen","[::]:1"]"#)
    );
    assert!(
        template.contains(r#""peak_bytes":3145728"#) && template.contains(r#""runtime":"gramine-sgx""#),
        "{template}"
    );

    assert_ends(&with_gramine(dir.path(), &["enclave", "measure", "--folder", "out"]), 2, "`cargo xtask enclave sign`");
    assert_ends(&with_gramine(dir.path(), &["enclave", "sign", "--folder", "out"]), 0, "");
    assert!(dir.path().join("out/asymflow-enclaved.manifest.sgx").is_file());
    let measured = with_gramine(dir.path(), &["enclave", "measure", "--folder", "out"]);
    assert_ends(&measured, 0, &format!("MRENCLAVE    {}\n", "ab".repeat(32)));

    let run = ["enclave", "run", "--runtime", "gramine-direct", "--folder", "out"];
    let started = with_gramine(dir.path(), &[&run[..], &arguments].concat());
    assert_ends(&started, 0, "started asymflow-enclaved\nplan {");
    assert_ends(&started, 0, "planned to hold 5 MiB at most, with 3 threads");
    assert_ends(&started, 0, r#""peak_bytes":5242880"#);
    assert_ends(&started, 0, r#""compute_threads":3"#);
    assert_ends(&started, 0, "INSECURE gramine-direct: ");
    write(dir.path(), "fail", "error: Cannot connect to AESM service\n");
    let failed = with_gramine(dir.path(), &run);
    assert_ends(&failed, 1, "no AESM: aesmd does not answer\nhelp: start aesmd");
}

/// Gramine ends at once on an interrupt, and passes a termination on to the program, which then says what it has counted.
#[test]
fn an_interrupt_reaches_what_gramine_runs_as_a_termination() {
    let dir = workspace_with_gramine();
    write(dir.path(), "target/wait", "");
    let path = std::env::var_os("PATH").unwrap();
    let folders = std::iter::once(dir.path().join("bin")).chain(std::env::split_paths(&path));
    let mut run = xtask(dir.path(), &["enclave", "run", "--runtime", "gramine-direct", "--peak-mib", "3"]);
    let run =
        run.env("PATH", std::env::join_paths(folders).unwrap()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let run = run.unwrap();
    let patience = Instant::now() + Duration::from_secs(100);
    // In the folder of the manifest's folder, target/enclave.
    while !dir.path().join("target/started").is_file() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    assert_ends(&output, 130, "counters\n");
}

#[test]
fn folders_for_jobs_are_mounted_and_a_manifest_without_sgx_is_filled_in() {
    let dir = workspace_with_gramine();
    for folder in ["photographs", "runs", "cache"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let folders = ["--data", "photographs", "--sealed", "runs", "--encrypted", "cache"];
    let manifest = ["enclave", "manifest", "--folder", "out", "--runtime", "gramine-direct"];
    let planned = with_gramine(dir.path(), &[&manifest[..], &folders].concat());
    assert_ends(&planned, 0, "");
    let filled = std::fs::read_to_string(dir.path().join("out/asymflow-enclaved.manifest")).unwrap();
    for (key, path) in [("trusted", "/data/photographs"), ("sealed", "/state/runs"), ("encrypted", "/state/cache")] {
        let folder = filled.split(&format!("\"{key}_folders\":[")).nth(1).unwrap().split(']').next().unwrap();
        assert!(folder.contains(&format!("\"path\":\"{path}\"")), "{key}: {filled}");
    }
}

/// A sealed model is read inside alone, so that nobody can plan for it outside.
#[test]
fn a_sealed_model_gets_a_manifest_and_the_flag_that_sizes_it_is_named() {
    let dir = workspace_with_gramine();
    write(dir.path(), "model.sealed", "sealed");
    let manifest = ["enclave", "manifest", "--folder", "out", "--runtime", "gramine-direct"];
    let serve = ["--", "serve", "--model", "model.sealed"];
    let planned = with_gramine(dir.path(), &[&manifest[..], &serve].concat());
    assert_ends(&planned, 0, "this is no enclave");
    assert_ends(&planned, 0, "; --peak-mib says otherwise");
    let filled = || std::fs::read_to_string(dir.path().join("out/asymflow-enclaved.manifest")).unwrap();
    assert!(filled().contains(r#""/app/data/model.sealed""#), "{}", filled());
    let sized = with_gramine(dir.path(), &[&manifest[..], &["--peak-mib", "7"], &serve].concat());
    assert_ends(&sized, 0, "");
    assert!(filled().contains(&format!(r#""peak_bytes":{}"#, 7 << 20)), "{}", filled());
}

#[test]
fn without_gramine_every_command_says_what_is_missing() {
    if std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join("gramine-manifest").is_file()) {
        println!("skipped: Gramine is installed here");
        return;
    }
    let dir = workspace();
    for args in [&["sign"][..], &["measure"], &["run", "--runtime", "gramine-direct"]] {
        let output = xtask(dir.path(), &[&["enclave"], args].concat()).output().unwrap();
        assert_ends(&output, 3, "help: install Gramine 1.9");
    }
    let sim = xtask(dir.path(), &["enclave", "run", "--runtime", "sim", "--", "serve"]).output().unwrap();
    assert_ends(&sim, 0, "INSECURE sim: ");
}
