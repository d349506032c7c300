//! What `docs/how-to/add-a-backend.md` says.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use asymflow_residual::client::{Protection, Token, WorkerClient, WorkerConfig};
use asymflow_residual::conformance::{Part, check};

#[expect(dead_code, reason = "its main is that of a program")]
#[path = "../examples/own_backend.rs"]
mod own_backend;

#[test]
fn the_example_conforms() {
    check(&own_backend::backend(), &[Part::Convolutions]).unwrap();
}

#[test]
fn the_how_to_shows_the_example() {
    let how_to = include_str!("../../../docs/how-to/add-a-backend.md");
    let example = include_str!("../examples/own_backend.rs");
    assert!(how_to.contains(&format!("```rust,ignore\n{example}```\n")));
}

#[test]
fn a_program_of_ones_own_has_the_whole_command_line() {
    // Beside the tests, once `cargo test` or `cargo build --examples` has built it.
    let program = std::env::current_exe().unwrap().with_file_name("../examples/own_backend");
    for (device, told) in
        [("loops", "loops (CPU)"), ("native", "native (CPU)"), ("loops,native", "loops (CPU) + native (CPU)")]
    {
        let mut child = Command::new(&program)
            .args(["--device", device, "--exit-with-parent"])
            .env("ASYMFLOW_WORKER_TOKEN", "secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["device"], told);
        let pinned = Protection::Pinned(ready["fingerprint"].as_str().unwrap().parse().unwrap());
        let address = ready["listening"].as_str().unwrap();
        let client = WorkerClient::new(WorkerConfig::new(address, Token::new("secret"), pinned));
        check(&client, &[Part::Convolutions]).unwrap();
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let unknown = Command::new(&program).args(["--device", "abacus"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let told = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(told.contains("unknown device \"abacus\"") && told.contains("loops"), "{told}");
}
