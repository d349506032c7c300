//! The whole suite, in this process and behind a worker.

use std::sync::Arc;

use asymflow_native::NativeBackend;
use asymflow_residual::conformance::{Part, check};
use asymflow_residual::{
    ResidualBackend,
    client::{Protection, Token, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker},
};

#[test]
fn native_conforms_on_any_number_of_threads() {
    for threads in [0, 1, 3] {
        check(&NativeBackend { threads }, &Part::ALL).unwrap();
    }
}

#[test]
fn a_native_worker_conforms() {
    let config = ServeConfig {
        token: Token::new("secret"),
        insecure_plaintext: false,
        identity: None,
        ring_name: None,
        limits: ServeLimits::default(),
    };
    let backend: Arc<dyn ResidualBackend> = Arc::new(NativeBackend::default());
    let worker = Worker::bind("127.0.0.1:0", backend, config).unwrap().start().unwrap();
    let pinned = Protection::Pinned(worker.fingerprint().unwrap());
    let config = WorkerConfig::new(worker.address().to_string(), Token::new("secret"), pinned);
    check(&WorkerClient::new(config), &Part::ALL).unwrap();
}
