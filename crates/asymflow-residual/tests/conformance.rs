//! Every way to reach a device passes the same suite.

use std::sync::Arc;

use asymflow_residual::conformance::{convolutions, networks};
use asymflow_residual::{
    BurnBackend, DeviceChoice, Protection, ResidualBackend, ServeConfig, ServeLimits, Token, Worker, WorkerClient,
    WorkerConfig, WorkerHandle,
};

fn serve(plaintext: bool) -> (WorkerHandle, WorkerClient) {
    let config =
        ServeConfig { token: Token::new("secret"), insecure_plaintext: plaintext, limits: ServeLimits::default() };
    let backend = Arc::new(BurnBackend::new(DeviceChoice::Flex));
    let worker = Worker::bind("127.0.0.1:0", backend, config).unwrap().start().unwrap();
    let protection = worker.fingerprint().map_or(Protection::InsecurePlaintext, Protection::Pinned);
    let config = WorkerConfig::new(worker.address().to_string(), Token::new("secret"), protection);
    (worker, WorkerClient::new(config))
}

fn conforms(backend: &dyn ResidualBackend) {
    convolutions(backend).unwrap();
    networks(backend).unwrap();
}

#[test]
fn flex_conforms() {
    conforms(&BurnBackend::new(DeviceChoice::Flex));
}

#[test]
fn a_worker_over_tls_conforms() {
    let (_worker, client) = serve(false);
    conforms(&client);
}

#[test]
fn a_worker_in_plaintext_conforms() {
    let (_worker, client) = serve(true);
    conforms(&client);
}
