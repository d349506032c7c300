//! Model files, checkpoints, weights and what a service keeps.

use std::hint::black_box;
use std::sync::LazyLock;

use asymflow::checkpoint::Checkpoint;
use asymflow::modes::Registry;
use asymflow::modes::delta::ReleasedCache;
use asymflow::service::{
    AccountLimits, ClientId, Ledgers, Promise, Query, ServedModel, Service, ServiceSettings, sha256_hex,
};
use asymflow_wire::decode_header;
use asymflow_zoo::graph::cost::total_cost;
use asymflow_zoo::{
    Network,
    network::{Layer, Shape},
    ops::{Choice, Conv, Decision, Form, Grouping, Linear, Quadratic, SharedRelu},
    weights::files,
};
use faer::Par;

/// Networks that cost more are made ready and not executed.
const MAX_MACS: u64 = 1 << 22;
/// Models whose weights the input does not bring have fewer.
const MAX_WEIGHTS: usize = 1 << 18;

/// A network of a few weights with a layer of every kind, and blocks within blocks.
pub static NETWORK: LazyLock<Network> = LazyLock::new(|| {
    let conv = |name: &str, in_channels, out_channels, kernel, bias| {
        let name = name.to_owned();
        Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride: 1, padding: kernel / 2, bias })
    };
    let norm = |name: &str, channels| Layer::BatchNorm { name: name.to_owned(), channels };
    let quadratic = |name: &str, form| Layer::Quadratic(Quadratic { name: name.to_owned(), channels: 4, form });
    let shared = |name: &str, grouping, decision| {
        Layer::SharedRelu(SharedRelu { name: name.to_owned(), channels: 4, grouping, decision })
    };
    let choices =
        vec![Choice::Block { rows: 2, columns: 3 }, Choice::Copy { of: 0 }, Choice::Quadratic, Choice::Identity];
    Network {
        name: "small".to_owned(),
        input: Shape::new(1, 8, 8),
        classes: 2,
        layers: vec![
            conv("conv1", 1, 4, 3, true),
            norm("bn1", 4),
            Layer::Relu,
            Layer::Residual {
                main: vec![conv("a.conv1", 4, 4, 3, false), norm("a.bn1", 4)],
                shortcut: vec![conv("a.downsample.0", 4, 4, 1, false)],
            },
            Layer::Residual {
                main: vec![Layer::Residual { main: vec![Layer::Relu], shortcut: Vec::new() }],
                shortcut: Vec::new(),
            },
            Layer::PRelu { name: "prelu".to_owned(), channels: 4 },
            Layer::Residual {
                main: vec![quadratic("hermite", Form::HERMITE), quadratic("kerv", Form::Kervolution { c: 1.0 })],
                shortcut: vec![quadratic("react", Form::REACT), quadratic("scaled", Form::RPKN)],
            },
            shared("blocks", Grouping::Blocks { channels: 2, rows: 2, columns: 2 }, Decision::Learned),
            shared("choices", Grouping::Choices(choices), Decision::Centre),
            Layer::MaxPool { kernel: 2, stride: 2, padding: 0 },
            Layer::AdaptiveAvgPool { out: 2 },
            Layer::Flatten,
            Layer::Dropout { p: 0.5 },
            Layer::Linear(Linear { name: "fc".to_owned(), in_features: 16, out_features: 2 }),
        ],
    }
});

/// A model file, or the header of one, to which weights of the right number are given; made into a service that answers
/// a question where that is cheap.
pub fn model(input: &[u8]) {
    let registry = Registry::default();
    let made = decode_header::<ServedModel>(input).ok().and_then(|model| with_zeros(model, &registry));
    let file = made.as_deref().unwrap_or(input);
    let Ok((model, weights)) = ServedModel::decode(file, &registry) else { return };
    let settings = ServiceSettings { batch: 1, ..ServiceSettings::default() };
    let Ok(mut service) = Service::new(model, &weights, None, settings, (&registry, Par::Seq)) else { return };
    let promise = Promise::of(&service, &settings, &sha256_hex(input), "sim").encode().expect("a promise");
    let _ = black_box(Promise::decode(&promise));
    let network = &service.model().network;
    let cost = total_cost(network).expect("the cost of a network that is served");
    if cost.macs + cost.activations < MAX_MACS {
        let image = vec![128; network.input.len()];
        let _ = black_box(service.answer(&[Query { client: ClientId::of(&[1; 32]), image }]));
    }
}

/// The file of a model whose weights are zero, where they are few.
fn with_zeros(model: ServedModel, registry: &Registry) -> Option<Vec<u8>> {
    let network = model.stored_network(registry).ok()?;
    let weights = network.parameters().iter().try_fold(0_usize, |sum, parameter| {
        let product = parameter.shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
        sum.checked_add(product?).filter(|&sum| sum < MAX_WEIGHTS)
    });
    model.encode(&vec![0.0; weights?], registry).ok()
}

/// A checkpoint.
pub fn checkpoint(input: &[u8]) {
    let Ok(checkpoint) = Checkpoint::decode(input) else { return };
    checkpoint.spent.iter().take(8).for_each(|spent| drop(black_box(spent.epsilon(1e-5))));
    let again = Checkpoint::decode(&checkpoint.encode().expect("it was decoded")).expect("it was encoded");
    assert_eq!(again.state, checkpoint.state);
}

/// A promise.
pub fn promise(input: &[u8]) {
    if let Ok(promise) = Promise::decode(input) {
        // Clients make room for an image of this shape.
        assert!(promise.input.len() < 1 << 30);
        let _ = black_box(promise.encode());
    }
}

/// The losses of clients.
pub fn ledgers(input: &[u8]) {
    let mut ledgers = Ledgers::new(AccountLimits::default());
    if ledgers.recall(input).is_ok() {
        let _ = black_box(ledgers.spent(&ClientId::of(&[1; 32])).epsilon(1e-5));
        let mut again = Ledgers::new(AccountLimits::default());
        ledgers.blocks().for_each(|block| again.recall(&block.expect("it was read")).expect("it was written"));
    }
}

/// What Delta has released.
pub fn released_cache(input: &[u8]) {
    if let Ok(cache) = ReleasedCache::decode(input) {
        let _ = black_box(cache.encode());
    }
}

/// A network and weights in an ONNX file.
pub fn onnx(input: &[u8]) {
    if let Ok((network, weights)) = asymflow_zoo::models::onnx::decode(input, None, "x") {
        assert!(network.validate().is_ok() && weights.fit(&network).is_ok());
    }
}

/// An index of weights in parts, and a part of that name.
pub fn index(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("index.json");
    std::fs::write(&path, input).expect("a file in it");
    std::fs::write(folder.path().join("part"), input).expect("a file in it");
    if let Ok(weights) = files::read(&path, &NETWORK) {
        assert!(weights.validate(&NETWORK).is_ok());
    }
}

/// Weights as safetensors.
pub fn weights(input: &[u8]) {
    if let Ok(weights) = files::decode(&NETWORK, input) {
        assert!(weights.validate(&NETWORK).is_ok());
    }
}
