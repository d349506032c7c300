//! Encrypted answers against the exact integer reference, and what is refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

use asymflow_cipher::messages::{Answer, EvaluationKeys, Query};
use asymflow_cipher::{Admitted, CipherError, Client, CompileError, Model, Options, Packing, Program, Server};
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::{Conv, Form, Linear, Quadratic};
use asymflow_zoo::{Network, Weights};

const ROWS: usize = 28;

fn conv() -> Layer {
    convolution("conv1", (1, 4), 7, 3, 0)
}

fn convolution(name: &str, io: (usize, usize), kernel: usize, stride: usize, padding: usize) -> Layer {
    let name = name.to_owned();
    Layer::Conv(Conv { name, in_channels: io.0, out_channels: io.1, kernel, stride, padding, bias: false })
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

/// Two convolutions with pooling between them, channels for two ciphertexts, and padding that makes a window start before its output.
fn grid() -> Network {
    let first = quadratic("act1", 3, Form::Free { a: 0.1, b: 0.5, c: 0.2 });
    let second = quadratic("act2", 10, Form::Kervolution { c: 1.0 });
    let layers = vec![
        convolution("conv1", (1, 3), 3, 1, 1),
        first,
        Layer::BatchNorm { name: "bn1".to_owned(), channels: 3 },
        Layer::AdaptiveAvgPool { out: 14 },
        convolution("conv2", (3, 10), 3, 1, 1),
        second,
        Layer::AdaptiveAvgPool { out: 2 },
        Layer::Flatten,
        linear("fc", 40, 5),
    ];
    Network { classes: 5, ..network("grid", layers) }
}

fn network(name: &str, layers: Vec<Layer>) -> Network {
    Network { name: name.to_owned(), input: Shape::new(1, ROWS, ROWS), classes: 10, layers }
}

fn image(seed: usize) -> Vec<f32> {
    (0..ROWS * ROWS).map(|i| ((i * (seed + 3)) as f32 * 0.037).sin() * 1.5 + 0.5).collect()
}

fn compiled(network: &Network, packing: Packing) -> Model {
    let options = Options { packing, ..Options::default() };
    Model::compile(network, &Weights::init(network, 1), &image(0), options).unwrap()
}

fn parties(model: &Model) -> (Client, Server, Admitted) {
    let client = Client::new(model.program().clone()).unwrap();
    let server = Server::new(model).unwrap();
    let keys = server.admit(&client.evaluation_keys().unwrap()).unwrap();
    (client, server, keys)
}

fn answers_are_the_reference(network: &Network, packing: Packing, queries: &[usize]) {
    let model = compiled(network, packing);
    let program = model.program();
    let (client, server, keys) = parties(&model);
    let weights = Weights::init(network, 1).flatten(network).unwrap();
    let float = asymflow_zoo::graph::reference::Reference::new(network, &weights).unwrap();
    let mut seeds = 0..;
    for &count in queries {
        let seeds: Vec<usize> = seeds.by_ref().take(count).collect();
        let images: Vec<f32> = seeds.iter().flat_map(|&seed| image(seed)).collect();
        let query = client.encrypt(&images).unwrap();
        let answer = server.answer(&keys, &query).unwrap();
        assert!(query.bytes() <= program.query_bytes() && answer.bytes() <= program.answer_bytes());
        let answers = client.decrypt(&answer, count).unwrap();
        assert_eq!(answers.len(), count);
        for (seed, integers) in seeds.into_iter().zip(&answers) {
            assert_eq!(*integers, model.reference(&program.integers(&image(seed)).unwrap()), "image {seed}");
            // The integers are near to the network: rounding to four and six bits, and no more.
            let values: Vec<f64> = image(seed).iter().map(|&v| f64::from(v)).collect();
            let expected = float.logits(&values).unwrap();
            let size = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            for (got, expected) in program.logits(integers).iter().zip(&expected) {
                assert!((got - expected).abs() < 0.25 * size + 0.05, "image {seed}: {got} {expected}");
            }
        }
    }
    assert!(client.encrypt(&image(0).repeat(program.images() + 1)).is_err());
}

#[test]
fn one_square() {
    answers_are_the_reference(&pkn(), Packing::Latency, &[1, 1, 1, 1]);
}

#[test]
fn two_squares() {
    answers_are_the_reference(&cnn(), Packing::Latency, &[1, 1]);
}

#[test]
fn a_convolution_between_two_squares() {
    answers_are_the_reference(&grid(), Packing::Latency, &[1, 1]);
}

/// What is measured when a model is compiled says what later answers have: noise does not depend on the image, and little on the key. Where the
/// server's factors are not centred, budgets of `cnn` differ by six bits.
#[test]
fn noise_budgets_differ_little() {
    for (network, packing) in [
        (pkn(), Packing::Latency),
        (cnn(), Packing::Latency),
        (grid(), Packing::Latency),
        (small(2), Packing::Throughput),
    ] {
        let model = compiled(&network, packing);
        let (program, mut budgets) = (model.program(), Vec::new());
        let (least, most) = program.input_range;
        let [least, most] = [least, most].map(|end| (end as f64 / program.input_scale) as f32);
        let alternating = (0..ROWS * ROWS).map(|i| if (i / 3) % 2 == 0 { least } else { most }).collect();
        let images = [vec![0.0; ROWS * ROWS], alternating, image(1)];
        for _ in 0..2 {
            let (client, server, keys) = parties(&model);
            for image in &images[usize::from(packing == Packing::Throughput) * 2..] {
                let answer = server.answer(&keys, &client.encrypt(image).unwrap()).unwrap();
                budgets.push(client.noise_budget(&answer).unwrap());
            }
        }
        let [fewest, largest] = [budgets.iter().min(), budgets.iter().max()].map(Option::unwrap);
        let asked = i64::from(Options::default().least_budget_bits);
        assert!(*fewest >= asked - 3 && largest - fewest <= 3, "{}: {budgets:?}", network.name);
    }
}

#[test]
fn thousands_of_images_a_query() {
    answers_are_the_reference(&small(2), Packing::Throughput, &[8192, 1]);
}

#[test]
fn three_squares_fit_with_few_bits() {
    let network = small(3);
    let options = Options { input_bits: 2, weight_bits: 3, packing: Packing::Throughput, ..Options::default() };
    let model = Model::compile(&network, &Weights::init(&network, 1), &image(0), options).unwrap();
    let (client, server, keys) = parties(&model);
    let answer = server.answer(&keys, &client.encrypt(&[image(1), image(2)].concat()).unwrap()).unwrap();
    let expected = [1, 2].map(|seed| model.reference(&model.program().integers(&image(seed)).unwrap()));
    assert_eq!(client.decrypt(&answer, 2).unwrap(), expected);
    // With more, the refusal says what is too much.
    let options = Options { packing: Packing::Throughput, ..Options::default() };
    let error = Model::compile(&network, &Weights::init(&network, 1), &image(0), options).unwrap_err();
    assert!(error.to_string().contains("more than 120 bits"), "{error}");
}

/// Small maps, and so many squares between them.
fn small(squares: usize) -> Network {
    let mut layers = vec![convolution("conv1", (1, 2), 7, 7, 0), Layer::Flatten];
    let mut features = 32;
    for index in 0..squares {
        layers.push(quadratic(&format!("act{index}"), features, Form::Free { a: 0.2, b: -0.3, c: 0.1 }));
        let outputs = if index + 1 < squares { 8 } else { 10 };
        layers.push(linear(&format!("fc{index}"), features, outputs));
        features = outputs;
    }
    network("small", layers)
}

#[test]
fn what_is_sent_says_nothing_of_the_image() {
    for packing in [Packing::Latency, Packing::Throughput] {
        let model = compiled(&small(1), packing);
        let (client, server, keys) = parties(&model);
        let [once, again, other] = [0, 0, 1].map(|seed| client.encrypt(&image(seed)).unwrap().to_bytes());
        for second in [&again, &other] {
            assert_eq!(once.len(), second.len());
            let equal = once.iter().zip(second).filter(|(a, b)| a == b).count();
            // Random bytes agree once in 256 places; headers and the hash of the program are the same.
            assert!(equal < once.len() / 128, "{equal} of {}", once.len());
        }
        let answered = |seed| server.answer(&keys, &client.encrypt(&image(seed)).unwrap()).unwrap();
        let [mine, theirs] = [0, 1].map(|seed| answered(seed).bytes());
        assert_eq!(mine, theirs);
    }
}

#[test]
fn slots_of_one_image_are_masked() {
    let (client, server, keys) = parties(&compiled(&pkn(), Packing::Latency));
    let query = client.encrypt(&image(0)).unwrap();
    let [first, second] = [(); 2].map(|()| server.answer(&keys, &query).unwrap());
    assert_ne!(first, second);
    assert_eq!(client.decrypt(&first, 1).unwrap(), client.decrypt(&second, 1).unwrap());
}

#[test]
fn another_key_is_an_error_and_the_own_one_is_taken_up_again() {
    let model = compiled(&pkn(), Packing::Latency);
    let (client, server, keys) = parties(&model);
    let query = client.encrypt(&image(0)).unwrap();
    let answer = server.answer(&keys, &query).unwrap();
    let (other, _, others_keys) = parties(&model);
    assert!(matches!(other.decrypt(&answer, 1), Err(CipherError::Noise { .. })));
    // A server that computes with another client's evaluation keys gives no answer either.
    let wrong = server.answer(&others_keys, &query).unwrap();
    assert!(matches!(client.decrypt(&wrong, 1), Err(CipherError::Noise { .. })));
    let secret = client.secret_bytes();
    let again = Client::with_secret(model.program().clone(), &secret).unwrap();
    assert_eq!(again.decrypt(&answer, 1).unwrap(), client.decrypt(&answer, 1).unwrap());
    let others = compiled(&small(1), Packing::Latency).program().clone();
    assert!(matches!(Client::with_secret(others, &secret), Err(CipherError::Other { what: "secret key" })));
    assert!(Client::with_secret(model.program().clone(), &secret[..40]).is_err());
}

#[test]
fn what_is_hostile_is_an_error_or_another_answer() {
    let model = compiled(&pkn(), Packing::Latency);
    let (client, server, keys) = parties(&model);
    let (sent, query) = (client.evaluation_keys().unwrap(), client.encrypt(&image(0)).unwrap());
    let answer = server.answer(&keys, &query).unwrap();
    let good = client.decrypt(&answer, 1).unwrap();
    let damaged = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 0x55;
        bytes
    };
    let (mut refused, mut wrong) = (0, 0);
    for at in (0..60).chain((0..40).map(|step| 60 + step * 9973)) {
        if let Ok(query) = Query::from_bytes(&damaged(&query.to_bytes(), at)) {
            match server.answer(&keys, &query) {
                Err(_) => refused += 1,
                Ok(answer) => wrong += usize::from(client.decrypt(&answer, 1).map_or(true, |got| got != good)),
            }
        }
        let _ = EvaluationKeys::from_bytes(&damaged(&sent.to_bytes(), at)).map(|keys| server.admit(&keys).is_ok());
        let _ = Answer::from_bytes(&damaged(&answer.to_bytes(), at)).map(|answer| client.decrypt(&answer, 1).is_ok());
        let _ = Program::from_bytes(&damaged(&model.program().to_bytes(), at)).map(|program| program.cost());
    }
    assert!(refused > 30 && wrong > 20, "{refused} {wrong}");
    // What belongs to another program, and no program at all.
    let (stranger, other, _) = parties(&compiled(&small(1), Packing::Latency));
    assert!(matches!(other.admit(&sent), Err(CipherError::Other { what: "evaluation keys" })));
    let strange = stranger.encrypt(&image(0)).unwrap();
    assert!(matches!(server.answer(&keys, &strange), Err(CipherError::Other { what: "query" })));
    assert!(matches!(stranger.decrypt(&answer, 1), Err(CipherError::Other { what: "answer" })));
    assert!(Program::from_bytes(&vec![0; 5 << 20]).is_err());
    let mut insecure = model.program().clone();
    insecure.parameters.moduli_bits = vec![60; 4];
    assert!(Client::new(insecure).unwrap_err().to_string().contains("not 128 bits of security"));
    // An answer is no query: it is not fresh.
    let misused = Query::from_bytes(&answer.to_bytes());
    assert!(misused.map_or(true, |query| server.answer(&keys, &query).is_err()));
}

#[test]
fn what_cannot_be_computed_is_refused_by_layer_and_depth() {
    let refused = |layers, packing| {
        let network = network("refused", layers);
        let options = Options { packing, ..Options::default() };
        Model::compile(&network, &Weights::init(&network, 1), &image(0), options).map(drop).unwrap_err()
    };
    let error = refused(vec![conv(), Layer::Relu, Layer::Flatten, linear("fc", 256, 10)], Packing::Latency);
    assert!(
        matches!(&error, CompileError::Unsupported { after: 0, .. }) && error.to_string().contains("quadratic"),
        "{error}"
    );
    let error = refused(small(3).layers, Packing::Latency);
    assert!(matches!(error, CompileError::Depth { squares: 3, most: 2, .. }), "{error}");
    assert!(error.to_string().contains("throughput packing takes three"), "{error}");
    let error = refused(small(4).layers, Packing::Throughput);
    assert!(matches!(error, CompileError::Depth { squares: 4, most: 3, .. }), "{error}");
    let flat = vec![Layer::Flatten, linear("fc", 784, 10)];
    assert!(matches!(refused(flat, Packing::Latency), CompileError::Depth { squares: 0, .. }));
    let wide =
        vec![Layer::Flatten, linear("fc1", 784, 5000), quadratic("a", 5000, Form::REACT), linear("fc2", 5000, 10)];
    let error = refused(wide, Packing::Latency);
    assert!(matches!(error, CompileError::Size { map: 0, got: 5000, most: 4096, .. }), "{error}");
    let flat =
        vec![conv(), quadratic("a", 4, Form::Free { a: 0.0, b: 1.0, c: 0.0 }), Layer::Flatten, linear("fc", 256, 10)];
    assert!(matches!(refused(flat, Packing::Latency), CompileError::Coefficient { channel: 0, .. }));
}

#[test]
fn costs_are_told_before_anything_is_computed() {
    let model = compiled(&pkn(), Packing::Latency);
    let (program, cost) = (model.program(), model.program().cost());
    assert_eq!((cost.turns, cost.plain_products, cost.squares, cost.relinearisations, cost.depth), (5, 3, 1, 0, 1));
    let (client, server, keys) = parties(&model);
    let sent = client.evaluation_keys().unwrap();
    assert!(sent.bytes() < program.evaluation_key_bytes());
    let query = client.encrypt(&image(0)).unwrap();
    let answer = server.answer(&keys, &query).unwrap();
    assert!(query.bytes() > answer.bytes());
    println!("{:?}: {cost:?}, {sent:?}, {query:?}, {answer:?}", program.parameters);
}
