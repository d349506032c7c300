//! The program that writes manifests.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn write_manifest(folder: &Path, plan: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_asymflow-manifest"));
    program.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    child.stdin.take().unwrap().write_all(plan.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const PLAN: &str = r#"{"program": "server", "compute_threads": 2, "io_threads": 2, "peak_bytes": 1000000,
    "trusted_files": [{"host": "model", "path": "/app/data/model"}, {"host": "away", "path": "/app/data/away"}],
    "insecure": ["debug-enclave"]}"#;

#[test]
fn files_that_are_there_are_hashed_and_what_is_insecure_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model"), "abc").unwrap();
    let output = write_manifest(folder.path(), PLAN);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    // The SHA-256 of "abc" from FIPS 180-2.
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(text.contains(&format!(r#"{{ uri = "file:model", sha256 = "{hash}" }}"#)), "{text}");
    assert!(text.contains("  \"file:away\",\n") && text.contains("  \"file:server\",\n"), "{text}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "INSECURE debug-enclave: the host can read the enclave's memory\n");
}

/// As `cargo xtask enclave manifest --insecure fixed-key=HEX` gives it on.
#[test]
fn a_fixed_key_is_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let option = format!("fixed-key={}", "ab".repeat(16));
    let output = write_manifest(folder.path(), &PLAN.replace("debug-enclave", &option));
    let (text, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.contains(&format!("fs.insecure__keys.default = \"{}\"", "ab".repeat(16))), "{text}");
    assert!(told.starts_with("INSECURE fixed-key: "), "{told}");
}

#[test]
fn a_bad_plan_ends_with_2_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let ends = |plan: &str, text: &str| {
        let output = write_manifest(folder.path(), plan);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(text), "{told}");
        assert!(output.stdout.is_empty());
    };
    ends("{", "the plan is no plan");
    ends(&PLAN.replace("peak_bytes", "peak"), "the plan is no plan: unknown field `peak`");
    ends(&PLAN.replace("/app/data/away", "away"), "\"away\" is no absolute path");
    ends(&PLAN.replace("debug-enclave", "fixed-key"), "there are debug-enclave and fixed-key=HEX");
    ends(&PLAN.replace("debug-enclave", "fixed-key=12"), "not 32 hexadecimal digits");
}
