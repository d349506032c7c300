//! Each primitive of both servers, in one process: what one of them costs, and how grouping decisions changes it.
//!
//! Bytes and rounds are facts of the protocol and printed once; times are a server's work online, in batches of 65,536
//! activations (the first layers of a ResNet-18 on CIFAR), divided by their number through `Throughput`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a bench that cannot run stops, and says what it measures"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use asymflow_shares::client::{InputShare, share_input};
use asymflow_shares::compile::{Activation, Decision, Options, compile};
use asymflow_shares::program::{Ring, Server, WeightPolicy, Z48};
use asymflow_shares::randomness::{Deal, DealStore, Dealer, Seed, ServerSeed};
use asymflow_shares::server::{Message, Party, PartyModel, Progress};
use asymflow_zoo::{
    Network, Weights,
    network::{Layer, Shape},
    ops::Conv,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const MAP: Shape = Shape::new(64, 32, 32);

struct Servers<R> {
    model: Arc<PartyModel<R>>,
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
}

fn conv(name: &str, in_channels: usize, kernel: usize) -> Layer {
    let (name, padding) = (name.to_owned(), kernel / 2);
    Layer::Conv(Conv { name, in_channels, out_channels: MAP.channels, kernel, stride: 1, padding, bias: false })
}

/// An activation after a convolution of one channel, which is cheap and gives it the scale that it has in networks.
fn activated<R: Ring>(activation: Activation) -> Servers<R> {
    let activations = BTreeMap::from([("lift.relu".to_owned(), activation)]);
    servers(Shape { channels: 1, ..MAP }, vec![conv("lift", 1, 1), Layer::Relu], activations)
}

fn servers<R: Ring>(input: Shape, layers: Vec<Layer>, activations: BTreeMap<String, Activation>) -> Servers<R> {
    let layers = layers.into_iter().chain([Layer::Flatten]).collect();
    let network = Network { name: "layer".to_owned(), input, classes: MAP.len(), layers };
    let options = Options { activations, ..Options::new::<R>(WeightPolicy::Public) };
    let model = compile::<R>(&network, &Weights::init(&network, 1), &options)
        .unwrap()
        .publish(&vec![0.25; input.len()])
        .unwrap();
    let dealer = Dealer::new(model.program().clone(), &Seed::random().unwrap(), Duration::from_secs(600)).unwrap();
    let seeds = [Server::First, Server::Second].map(|server| dealer.seed(server));
    Servers { model, seeds, dealer }
}

impl<R: Ring> Servers<R> {
    fn parties(&mut self) -> ([Party<R>; 2], [InputShare<R>; 2]) {
        let [first, second] = self.dealer.deal(SystemTime::now());
        let image = vec![0.25; self.model.program().input_len()];
        let shares = share_input(self.model.program(), first.query(), &image, &Seed::random().unwrap()).unwrap();
        let party = |side: usize, deal: Deal<R>| {
            let query = deal.query();
            let mut store = DealStore::new(Arc::clone(&self.model), self.seeds[side].clone(), 0).unwrap();
            store.insert(deal).unwrap();
            store.party(query, SystemTime::now()).unwrap()
        };
        ([party(0, first), party(1, second)], shares)
    }

    /// Seconds that the first server works.
    fn online(&mut self) -> Duration {
        let ([mut first, mut second], [left, right]) = self.parties();
        let mut worked = Duration::ZERO;
        let mut time = |work: &mut dyn FnMut() -> Progress<R>| {
            let started = Instant::now();
            let progress = work();
            worked += started.elapsed();
            progress
        };
        let mut left = Some(left);
        let mut mine = time(&mut || first.start(left.take().unwrap()).unwrap());
        let mut theirs = second.start(right).unwrap();
        while let (Some(to_second), Some(to_first)) = (message(&mine), message(&theirs)) {
            let (to_second, to_first) = (to_second.clone(), to_first.clone());
            mine = time(&mut || first.receive(&to_first).unwrap());
            theirs = second.receive(&to_second).unwrap();
        }
        worked
    }
}

fn message<R>(progress: &Progress<R>) -> Option<&Message> {
    if let Progress::Exchange(message) = progress { Some(message) } else { None }
}

fn online<R: Ring>(c: &mut Criterion, group: &str, name: &str, elements: usize, mut servers: Servers<R>) {
    let cost = servers.model.program().cost();
    let each = |bytes: u64| bytes as f64 / elements as f64;
    eprintln!(
        "{group}/{name}: {} rounds, {:.3} B online a server, {:.1} and {:.1} B dealt, each of {elements}",
        cost.rounds,
        each(cost.online_bytes_per_server),
        each(cost.dealer_bytes_first),
        each(cost.dealer_bytes_second),
    );
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(elements as u64)).sample_size(10);
    group.bench_function(BenchmarkId::new("online", name), |b| {
        b.iter_custom(|count| (0..count).map(|_| servers.online()).sum());
    });
    group.finish();
}

fn activations(c: &mut Criterion) {
    online::<u64>(c, "relu", "64 bits", MAP.len(), activated(Activation::Relu));
    online::<Z48>(c, "relu", "48 bits", MAP.len(), activated(Activation::Relu));
    online::<u32>(c, "relu", "32 bits", MAP.len(), activated(Activation::Relu));
    for side in [1, 2, 4, 8] {
        let activation = Activation::SharedRelu { block: (side, side), channels: 1, decision: Decision::Mean };
        let name = format!("64 bits, groups of {}", side * side);
        online::<u64>(c, "relu", &name, MAP.len(), activated(activation));
    }
    let square = Activation::Quadratic { a: 1.0, b: 0.0, c: 0.0 };
    online::<u64>(c, "square", "64 bits", MAP.len(), activated(square));
}

fn conv3<R: Ring>() -> Servers<R> {
    servers(MAP, vec![conv("conv", MAP.channels, 3)], BTreeMap::new())
}

fn convolutions(c: &mut Criterion) {
    let multiplications = MAP.channels * 9 * MAP.len();
    online::<u64>(c, "conv 3x3 64x64 32x32", "64 bits", multiplications, conv3());
    online::<Z48>(c, "conv 3x3 64x64 32x32", "48 bits", multiplications, conv3());
    online::<u32>(c, "conv 3x3 64x64 32x32", "32 bits", multiplications, conv3());
}

fn dealing(c: &mut Criterion) {
    let mut servers = activated::<u64>(Activation::Relu);
    let mut group = c.benchmark_group("relu");
    group.throughput(Throughput::Elements(MAP.len() as u64)).sample_size(10);
    group.bench_function(BenchmarkId::new("deal", "64 bits"), |b| {
        b.iter(|| servers.dealer.deal(SystemTime::now()));
    });
    group.finish();
}

criterion_group!(benches, activations, convolutions, dealing);
criterion_main!(benches);
