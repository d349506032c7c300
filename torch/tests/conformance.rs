//! The whole suite on the processor, in this process and behind a worker, and on CUDA where there is a device.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests stop at what is wrong and say what they skip")]

use std::sync::Arc;

use asymflow_residual::conformance::{Part, check, check_rounded};
use asymflow_residual::{
    ResidualBackend,
    backend::Availability,
    client::{Protection, Token, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker},
};
use asymflow_torch::TorchBackend;

/// What the arithmetics are allowed: the spacing of their numbers over that of the tolerance of products in binary32.
const SLACK: [(&str, f64); 4] = [("f32", 1.0), ("tf32", 200.0), ("f16", 200.0), ("bf16", 1600.0)];

fn backend(device: &str) -> TorchBackend {
    TorchBackend { device: device.parse().unwrap() }
}

fn conforms(place: &str, arithmetic: &str) {
    let backend = backend(&format!("{place}{arithmetic}"));
    if let Availability::Missing { what, .. } = backend.probe() {
        println!("skipped: {what}");
        return;
    }
    let slack = SLACK.iter().find(|(name, _)| *name == arithmetic).unwrap().1;
    check_rounded(&backend, &Part::ALL, slack).unwrap();
}

#[test]
fn the_processor_conforms() {
    conforms("", "f32");
}

#[test]
fn the_processor_conforms_in_f16() {
    conforms("", "f16");
}

#[test]
fn the_processor_conforms_in_bf16() {
    conforms("", "bf16");
}

#[test]
fn cuda_conforms() {
    conforms("cuda:", "f32");
}

#[test]
fn cuda_conforms_in_tf32() {
    conforms("cuda:", "tf32");
}

#[test]
fn cuda_conforms_in_f16() {
    conforms("cuda:", "f16");
}

#[test]
fn cuda_conforms_in_bf16() {
    conforms("cuda:", "bf16");
}

#[test]
fn a_worker_conforms() {
    let config = ServeConfig {
        token: Token::new("secret"),
        insecure_plaintext: false,
        identity: None,
        ring_name: None,
        limits: ServeLimits::default(),
    };
    let worker = Worker::bind("127.0.0.1:0", Arc::new(backend("")), config).unwrap().start().unwrap();
    let pinned = Protection::Pinned(worker.fingerprint().unwrap());
    let config = WorkerConfig::new(worker.address().to_string(), Token::new("secret"), pinned);
    check(&WorkerClient::new(config), &Part::ALL).unwrap();
}
