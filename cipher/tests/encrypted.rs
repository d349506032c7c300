//! Encrypted answers against the exact integer reference, and what is refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

use asymflow_cipher::{Answer, CipherError, Client, CompileError, EvaluationKeys, Model, Options, Query, Server};
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::{Conv, Form, Linear, Quadratic};
use asymflow_zoo::{Network, Weights};

const ROWS: usize = 28;

fn conv() -> Layer {
    let name = "conv1".to_owned();
    Layer::Conv(Conv { name, in_channels: 1, out_channels: 4, kernel: 7, stride: 3, padding: 0, bias: false })
}

fn quadratic(name: &str, channels: usize, form: Form) -> Layer {
    Layer::Quadratic(Quadratic { name: name.to_owned(), channels, form })
}

fn linear(name: &str, in_features: usize, out_features: usize) -> Layer {
    Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
}

/// One kervolution with its normalisation, and one fully connected layer.
fn pkn() -> Network {
    let norm = Layer::BatchNorm { name: "bn1".to_owned(), channels: 4 };
    let layers =
        vec![conv(), quadratic("kerv", 4, Form::Kervolution { c: 1.0 }), norm, Layer::Flatten, linear("fc", 256, 10)];
    network("pkn", layers)
}

/// A convolution and two fully connected layers, quadratics of several signs between them.
fn cnn() -> Network {
    let first = quadratic("act1", 4, Form::Free { a: -0.1, b: 0.5, c: 0.2 });
    let second = quadratic("act2", 64, Form::Free { a: 0.2, b: -0.3, c: 0.1 });
    let layers = vec![conv(), first, Layer::Flatten, linear("fc1", 256, 64), second, linear("fc2", 64, 10)];
    network("cnn", layers)
}

fn network(name: &str, layers: Vec<Layer>) -> Network {
    Network { name: name.to_owned(), input: Shape::new(1, ROWS, ROWS), classes: 10, layers }
}

fn image(seed: usize) -> Vec<f32> {
    (0..ROWS * ROWS).map(|i| ((i * (seed + 3)) as f32 * 0.037).sin() * 1.5 + 0.5).collect()
}

fn compiled(network: &Network) -> Model {
    Model::compile(network, &Weights::init(network, 1), &image(0), Options::default()).unwrap()
}

fn pair(model: &Model) -> (Client, Server) {
    let client = Client::new(model.program().clone()).unwrap();
    let server = Server::new(model, &client.evaluation_keys().unwrap()).unwrap();
    (client, server)
}

fn answers_are_the_reference(network: &Network, images: usize) {
    let model = compiled(network);
    let program = model.program();
    let (client, server) = pair(&model);
    let weights = Weights::init(network, 1).flatten(network).unwrap();
    let float = asymflow_zoo::graph::reference::Reference::new(network, &weights).unwrap();
    for seed in 0..images {
        let answer = server.answer(&client.encrypt(&image(seed)).unwrap()).unwrap();
        let integers = client.decrypt(&answer).unwrap();
        assert_eq!(integers, model.reference(&program.integers(&image(seed)).unwrap()), "image {seed}");
        // The integers are near to the network: rounding to four and six bits, and no more.
        let values: Vec<f64> = image(seed).iter().map(|&v| f64::from(v)).collect();
        let expected = float.logits(&values).unwrap();
        let size = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        for (got, expected) in program.logits(&integers).iter().zip(&expected) {
            assert!((got - expected).abs() < 0.25 * size + 0.05, "image {seed}: {got} {expected}");
        }
    }
}

#[test]
fn one_square() {
    answers_are_the_reference(&pkn(), 4);
}

#[test]
fn two_squares() {
    answers_are_the_reference(&cnn(), 2);
}

#[test]
fn what_is_sent_says_nothing_of_the_image() {
    let model = compiled(&pkn());
    let (client, server) = pair(&model);
    let [once, again, other] =
        [0, 0, 1].map(|seed| postcard::to_stdvec(&client.encrypt(&image(seed)).unwrap()).unwrap());
    for second in [&again, &other] {
        assert_eq!(once.len(), second.len());
        let equal = once.iter().zip(second).filter(|(a, b)| a == b).count();
        // Random bytes agree once in 256 places; headers and the hash of the program are the same.
        assert!(equal < once.len() / 128, "{equal} of {}", once.len());
    }
    let [mine, theirs] = [0, 1].map(|seed| server.answer(&client.encrypt(&image(seed)).unwrap()).unwrap().bytes());
    assert_eq!(mine, theirs);
    // Slots are masked: two answers about one image share no ciphertext, and the same logits.
    let query = client.encrypt(&image(0)).unwrap();
    let [first, second] = [(); 2].map(|()| server.answer(&query).unwrap());
    assert_ne!(first, second);
    assert_eq!(client.decrypt(&first).unwrap(), client.decrypt(&second).unwrap());
}

#[test]
fn another_key_decrypts_to_something_else() {
    let model = compiled(&pkn());
    let ((client, server), (other, _)) = (pair(&model), pair(&model));
    let answer = server.answer(&client.encrypt(&image(0)).unwrap()).unwrap();
    assert_ne!(other.decrypt(&answer).unwrap(), client.decrypt(&answer).unwrap());
}

/// Bytes with one changed at `at`.
fn damaged<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T, at: usize) -> Option<T> {
    let mut bytes = postcard::to_stdvec(value).unwrap();
    let len = bytes.len();
    bytes[at % len] ^= 0x55;
    postcard::from_bytes(&bytes).ok()
}

#[test]
fn what_is_hostile_is_an_error_or_another_answer() {
    let model = compiled(&pkn());
    let (client, server) = pair(&model);
    let (keys, query) = (client.evaluation_keys().unwrap(), client.encrypt(&image(0)).unwrap());
    let answer = server.answer(&query).unwrap();
    let good = client.decrypt(&answer).unwrap();
    let (mut refused, mut wrong) = (0, 0);
    for at in (0..60).chain((0..40).map(|step| 60 + step * 9973)) {
        if let Some(query) = damaged(&query, at) {
            match server.answer(&query) {
                Err(_) => refused += 1,
                Ok(answer) => wrong += usize::from(client.decrypt(&answer).unwrap() != good),
            }
        }
        let _ = damaged::<EvaluationKeys>(&keys, at).map(|keys| Server::new(&model, &keys).is_ok());
        let _ = damaged::<Answer>(&answer, at).map(|answer| client.decrypt(&answer).is_ok());
    }
    assert!(refused > 30 && wrong > 20, "{refused} {wrong}");
    // What belongs to another program.
    let other = compiled(&cnn());
    assert!(matches!(Server::new(&other, &keys), Err(CipherError::Program { what: "evaluation keys" })));
    let (stranger, _) = pair(&other);
    assert!(matches!(
        server.answer(&stranger.encrypt(&image(0)).unwrap()),
        Err(CipherError::Program { what: "query" })
    ));
    assert!(matches!(stranger.decrypt(&answer), Err(CipherError::Program { what: "answer" })));
    // An answer is no query: it is not fresh.
    let bytes = postcard::to_stdvec(&answer).unwrap();
    assert!(postcard::from_bytes::<Query>(&bytes).map_or(true, |query| server.answer(&query).is_err()));
}

#[test]
fn what_cannot_be_computed_is_refused_by_layer_and_depth() {
    let refused = |layers| {
        let network = network("refused", layers);
        let model = Model::compile(&network, &Weights::init(&network, 1), &image(0), Options::default());
        model.map(drop).unwrap_err()
    };
    let error = refused(vec![conv(), Layer::Relu, Layer::Flatten, linear("fc", 256, 10)]);
    assert!(
        matches!(&error, CompileError::Unsupported { after: 0, .. }) && error.to_string().contains("quadratic"),
        "{error}"
    );
    let react = |name, channels| quadratic(name, channels, Form::REACT);
    let deep = vec![
        conv(),
        react("a", 4),
        Layer::Flatten,
        linear("fc1", 256, 16),
        react("b", 16),
        linear("fc2", 16, 16),
        react("c", 16),
        linear("fc3", 16, 10),
    ];
    assert!(matches!(refused(deep), CompileError::Depth { squares: 3, most: 2, .. }));
    assert!(matches!(refused(vec![Layer::Flatten, linear("fc", 784, 10)]), CompileError::Depth { squares: 0, .. }));
    let wide = vec![Layer::Flatten, linear("fc1", 784, 5000), react("a", 5000), linear("fc2", 5000, 10)];
    assert!(matches!(refused(wide), CompileError::Size { map: 0, got: 5000, most: 4096 }));
    let flat =
        vec![conv(), quadratic("a", 4, Form::Free { a: 0.0, b: 1.0, c: 0.0 }), Layer::Flatten, linear("fc", 256, 10)];
    assert!(matches!(refused(flat), CompileError::Coefficient { channel: 0, .. }));
}

#[test]
fn costs_are_told_before_anything_is_computed() {
    let model = compiled(&pkn());
    let cost = model.program().cost();
    assert_eq!((cost.turns, cost.plain_products, cost.squares, cost.relinearisations, cost.depth), (5, 3, 1, 0, 1));
    let (client, server) = pair(&model);
    let keys = client.evaluation_keys().unwrap();
    assert!(keys.bytes() < model.program().evaluation_key_bytes());
    let query = client.encrypt(&image(0)).unwrap();
    assert!(query.bytes() > server.answer(&query).unwrap().bytes());
    println!("{:?}: {cost:?}, {keys:?}, {query:?}", model.program().parameters);
}
