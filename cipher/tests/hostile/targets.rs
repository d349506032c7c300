//! What reads bytes from outside, for the tests and for the guided fuzzer: whatever the bytes are, nothing panics.

use std::sync::LazyLock;

use asymflow_cipher::messages::{Answer, EvaluationKeys, Query};
use asymflow_cipher::{Admitted, Client, Model, Options, Program, Server};
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::{Form, Linear, Quadratic};
use asymflow_zoo::{Network, Weights};

/// Both sides of a small program that turns and relinearises, and what they sent each other.
pub struct Parties {
    pub client: Client,
    pub server: Server,
    pub admitted: Admitted,
    pub program: Vec<u8>,
    pub keys: Vec<u8>,
    pub query: Vec<u8>,
    pub answer: Vec<u8>,
}

pub static PARTIES: LazyLock<Parties> = LazyLock::new(|| {
    let linear = |name: &str, in_features, out_features| {
        Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
    };
    let square =
        |name: &str, channels| Layer::Quadratic(Quadratic { name: name.to_owned(), channels, form: Form::REACT });
    let layers =
        vec![linear("fc1", 4, 1024), square("a", 1024), linear("fc2", 1024, 2), square("b", 2), linear("fc3", 2, 2)];
    let network = Network {
        name: "small".to_owned(),
        input: Shape::new(1, 2, 2),
        classes: 2,
        layers: [vec![Layer::Flatten], layers].concat(),
    };
    let image = [0.5, -1.0, 1.0, 0.0];
    let model = Model::compile(&network, &Weights::init(&network, 1), &image, Options::default()).unwrap();
    let client = Client::new(model.program().clone()).unwrap();
    let server = Server::new(&model).unwrap();
    let keys = client.evaluation_keys().unwrap();
    let admitted = server.admit(&keys).unwrap();
    let query = client.encrypt(&image).unwrap();
    let answer = server.answer(&admitted, &query).unwrap().to_bytes();
    let (program, keys, query) = (model.program().to_bytes(), keys.to_bytes(), query.to_bytes());
    Parties { client, server, admitted, program, keys, query, answer }
});

/// A server reads a client's keys.
pub fn keys(bytes: &[u8]) {
    if let Ok(keys) = EvaluationKeys::from_bytes(bytes) {
        let _ = PARTIES.server.admit(&keys);
    }
}

/// A server computes on a client's query.
pub fn query(bytes: &[u8]) {
    if let Ok(query) = Query::from_bytes(bytes) {
        let _ = PARTIES.server.answer(&PARTIES.admitted, &query);
    }
}

/// A client decrypts a server's answer.
pub fn answer(bytes: &[u8]) {
    if let Ok(answer) = Answer::from_bytes(bytes) {
        let _ = PARTIES.client.decrypt(&answer, 1);
    }
}

/// A client takes up a server's program.
pub fn program(bytes: &[u8]) {
    if let Ok(program) = Program::from_bytes(bytes) {
        let _ = (program.cost(), program.evaluation_key_bytes(), program.memory_bytes());
        // Keys take seconds where they are many.
        if program.cost().turning_keys < 4
            && program.cost().ciphertexts < 4
            && program.parameters.plaintext_moduli.len() < 3
        {
            let image = vec![0.5; program.inputs];
            let _ = Client::new(program).and_then(|client| client.encrypt(&image));
        }
    }
}
