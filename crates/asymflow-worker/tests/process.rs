//! The binary as its parents see it.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use asymflow_residual::{
    ResidualBackend,
    backend::{Availability, ConvUnit, OpenError, ResidualModel, Unit, UnitId},
    client::RingLayout,
    client::{Notify, Protection, Token, Transport, WorkerClient, WorkerConfig},
};
use asymflow_zoo::network::Shape;

fn worker(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow-worker"));
    command.args(args).env_remove("ASYMFLOW_WORKER_TOKEN");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Ready {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    line: serde_json::Value,
}

fn start(args: &[&str]) -> Ready {
    let mut child = worker(args).env("ASYMFLOW_WORKER_TOKEN", "secret").spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    Ready { child, stdout, line: serde_json::from_str(&line).unwrap() }
}

fn client(ready: &Ready, token: &str) -> WorkerClient {
    let protection = ready.line["fingerprint"]
        .as_str()
        .map_or(Protection::InsecurePlaintext, |f| Protection::Pinned(f.parse().unwrap()));
    let address = ready.line["listening"].as_str().unwrap();
    WorkerClient::new(WorkerConfig::new(address, Token::new(token), protection))
}

fn model() -> ResidualModel {
    let unit = ConvUnit { input: Shape::new(1, 4, 4), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    ResidualModel { units: vec![Unit::Conv(unit)] }
}

#[test]
fn one_line_says_how_to_reach_it_and_it_goes_with_its_parent() {
    let mut ready = start(&["--exit-with-parent", "--threads", "1"]);
    assert_eq!(ready.line["device"], "native (CPU)");
    let mut session = client(&ready, "secret").open(&model()).unwrap();
    session.set_weights(UnitId(0), &[2.0]).unwrap();
    assert_eq!(session.weights(UnitId(0)).unwrap(), [2.0]);
    assert!(matches!(client(&ready, "guess").open(&model()), Err(OpenError::Token { .. })));
    drop(ready.child.stdin.take());
    assert_eq!(ready.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    ready.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "exactly one line");
}

#[test]
fn plaintext_has_no_fingerprint_and_warns() {
    let mut ready = start(&["--insecure-plaintext", "--exit-with-parent", "--devices", "flex,flex"]);
    assert!(ready.line["fingerprint"].is_null());
    let Availability::Ready { device } = client(&ready, "secret").probe() else { unreachable!("it listens") };
    assert!(device.starts_with("flex (CPU) + flex (CPU) at "), "{device}");
    drop(ready.child.stdin.take());
    let mut stderr = String::new();
    ready.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.starts_with("warning: insecure_plaintext"), "{stderr}");
    assert_eq!(ready.child.wait().unwrap().code(), Some(0));
}

/// Its answers are never taken for results where nobody asked for times alone.
#[test]
fn a_worker_that_computes_nothing_is_refused_unless_it_is_asked_for() {
    for (name, told) in
        [("null", "null (answers zeros"), ("model:11.2:12:20", "modelled card of 11.2 TFLOPS, 12 GB/s, 20 µs")]
    {
        let ready = start(&["--exit-with-parent", "--device", name]);
        let refused = client(&ready, "secret").open(&model()).map(drop).unwrap_err();
        let OpenError::Modelled { device, .. } = &refused else { unreachable!("{refused}") };
        assert!(device.starts_with(told), "{device}");
        let protection = Protection::Pinned(ready.line["fingerprint"].as_str().unwrap().parse().unwrap());
        let mut config = WorkerConfig::new(ready.line["listening"].as_str().unwrap(), Token::new("secret"), protection);
        config.takes_modelled = true;
        let mut session = WorkerClient::new(config).open(&model()).unwrap();
        session.set_weights(UnitId(0), &[2.0]).unwrap();
        assert_eq!(session.weights(UnitId(0)).unwrap(), [0.0]);
    }
}

fn refused(mut command: Command, code: i32) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(code));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_missing_device_exits_with_3_and_help() {
    let mut command = worker(&["--device", "cuda"]);
    command.env("ASYMFLOW_WORKER_TOKEN", "secret");
    let stderr = refused(command, 3);
    assert!(stderr.starts_with("error: device cuda is not built in\nhelp: build it in with"), "{stderr}");
}

#[test]
fn bad_usage_says_what_to_do() {
    assert!(refused(worker(&["--device", "abacus"]), 2).contains("expected one of native, "));
    assert!(refused(worker(&["--shm", "/tmp/ring"]), 2).contains("/dev/shm/asymflow-ring-NAME"));
    assert!(refused(worker(&[]), 1).contains("give --token-file or set ASYMFLOW_WORKER_TOKEN"));
    assert!(refused(worker(&["--token-file", "/nonexistent"]), 1).contains("cannot read /nonexistent"));
    let mut command = worker(&["--listen", "256.0.0.1:1"]);
    command.env("ASYMFLOW_WORKER_TOKEN", "secret");
    assert!(refused(command, 1).contains("cannot serve on 256.0.0.1:1"));
}

/// Two processes, one name, one session after the other; nothing stays behind.
#[test]
fn memory_is_shared_under_the_name_given() {
    let name = format!("/dev/shm/asymflow-ring-process-{}", std::process::id());
    let ready = start(&["--exit-with-parent", "--threads", "1", "--shm", &name]);
    let protection = Protection::Pinned(ready.line["fingerprint"].as_str().unwrap().parse().unwrap());
    let mut config = WorkerConfig::new(ready.line["listening"].as_str().unwrap(), Token::new("secret"), protection);
    config.transport = Transport::SharedMemory(RingLayout { threshold_bytes: 1, ..RingLayout::default() });
    config.notify = Some(Notify::new(|notice| unreachable!("{notice}")));
    for _ in 0..2 {
        std::fs::write(&name, "left behind").unwrap();
        let mut session = WorkerClient::new(config.clone()).open(&model()).unwrap();
        session.set_weights(UnitId(0), &[2.0]).unwrap();
        assert_eq!(session.weights(UnitId(0)).unwrap(), [2.0]);
        assert!(!std::path::Path::new(&name).exists());
    }
}

#[cfg(unix)]
#[test]
fn termination_is_clean() {
    let mut ready = start(&[]);
    let killed = Command::new("kill").args(["-INT", &ready.child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(ready.child.wait().unwrap().code(), Some(130));
}
