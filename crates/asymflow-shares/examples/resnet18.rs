//! Cost of ResNet-18 (CIFAR form, random weights) between two servers in one process over loopback TCP.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use asymflow_shares::client::{open_output, share_input};
use asymflow_shares::compile::{Comparison, Options, Selection, compile};
use asymflow_shares::link::{DuplexLink, Profile};
use asymflow_shares::program::{Method, Ring, Server, WeightPolicy, Z48};
use asymflow_shares::randomness::{Deal, DealStore, Dealer, Seed, ServerSeed};
use asymflow_shares::server::{LayerReport, Party, PartyModel, Setup, run, set_up};
use asymflow_zoo::{Network, Weights, by_name};

fn links(profile: Profile) -> [DuplexLink<TcpStream>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    [client, server].map(|stream| {
        stream.set_nodelay(true).unwrap();
        DuplexLink::new(stream.try_clone().unwrap(), stream, profile)
    })
}

struct Servers<R> {
    models: [Arc<PartyModel<R>>; 2],
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
    /// Each server has one of the two cores.
    pools: [rayon::ThreadPool; 2],
}

fn both<A: Send, B: Send>(
    pools: &[rayon::ThreadPool; 2],
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| pools[0].install(a));
        let second = pools[1].install(b);
        (first.join().unwrap(), second)
    })
}

fn start<R: Ring>(network: &Network, options: &Options) -> Servers<R> {
    let model = compile::<R>(network, &Weights::init(network, 1), options).unwrap();
    let image = vec![0.5; model.program().input_len()];
    let fresh = || Seed::random().unwrap();
    let sides = [Server::First, Server::Second];
    let pools = [(); 2].map(|()| rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    if options.policy == WeightPolicy::Public {
        let model = model.publish(&image).unwrap();
        let dealer = Dealer::new(model.program().clone(), &fresh(), Duration::from_secs(600)).unwrap();
        let seeds = sides.map(|side| dealer.seed(side));
        return Servers { models: [Arc::clone(&model), model], seeds, dealer, pools };
    }
    let [first, second] = model.share(&fresh(), &image).unwrap();
    let dealer = Dealer::new(first.program().clone(), &fresh(), Duration::from_secs(600)).unwrap();
    let seeds = sides.map(|side| dealer.seed(side));
    let [mut left, mut right] = links(Profile::LOOPBACK);
    let (first, second) = (Setup::new(first, &seeds[0]).unwrap(), Setup::new(second, &seeds[1]).unwrap());
    let started = Instant::now();
    println!("  setup: {:.1} MB sent by each server, once a model", first.message().body_bytes() as f64 * 1e-6);
    let (first, second) = both(&pools, || set_up(first, &mut left).unwrap(), || set_up(second, &mut right).unwrap());
    println!("  setup: {:.2} s", started.elapsed().as_secs_f64());
    Servers { models: [first, second], seeds, dealer, pools }
}

fn ready<R: Ring>(model: &Arc<PartyModel<R>>, seed: &ServerSeed, deal: Deal<R>) -> Party<R> {
    let query = deal.query();
    let mut store = DealStore::new(Arc::clone(model), seed.clone(), 0).unwrap();
    store.insert(deal).unwrap();
    store.party(query, SystemTime::now()).unwrap()
}

fn measure<R: Ring>(network: &Network, options: &Options, profile: Profile, queries: usize) {
    let mut servers = start::<R>(network, options);
    let program = servers.models[0].program().clone();
    let cost = program.cost();
    println!(
        "  a query: {} rounds, {:.2} MB online (both servers), {:.1} + {:.1} MB from the dealer, {} decisions",
        cost.rounds,
        2e-6 * cost.online_bytes_per_server as f64,
        1e-6 * cost.dealer_bytes_first as f64,
        1e-6 * cost.dealer_bytes_second as f64,
        cost.decisions,
    );
    let mut best: Option<(f64, Vec<LayerReport>)> = None;
    for _ in 0..queries {
        let started = Instant::now();
        let [first, second] = servers.dealer.deal(SystemTime::now());
        let dealt = started.elapsed().as_secs_f64();
        let image = vec![0.5; program.input_len()];
        let [left, right] = share_input::<R>(&program, first.query(), &image, &Seed::random().unwrap()).unwrap();
        let started = Instant::now();
        let (models, seeds) = (&servers.models, &servers.seeds);
        let (first, second) =
            both(&servers.pools, || ready(&models[0], &seeds[0], first), || ready(&models[1], &seeds[1], second));
        let prepared = started.elapsed().as_secs_f64();
        let [mut to_second, mut to_first] = links(profile);
        let started = Instant::now();
        let (first, second) = both(
            &servers.pools,
            || run(first, left, &program, &mut to_second).unwrap(),
            || run(second, right, &program, &mut to_first).unwrap(),
        );
        let seconds = started.elapsed().as_secs_f64();
        println!("  offline: deal {dealt:.3} s, prepare {prepared:.3} s; online {seconds:.3} s");
        open_output(&program, &[first.0, second.0]).unwrap();
        if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
            best = Some((seconds, first.1));
        }
    }
    if std::env::args().any(|arg| arg == "layers") {
        for layer in best.iter().flat_map(|(_, layers)| layers) {
            let LayerReport { label, rounds, bytes_sent, compute_seconds, wait_seconds, .. } = layer;
            let (compute, wait) = (1e3 * compute_seconds, 1e3 * wait_seconds);
            println!("    {label:28} {rounds} rounds {bytes_sent:8} B {compute:7.2} ms work {wait:7.2} ms wait");
        }
    }
}

/// Deals `queries` ahead, a file each at the second server, which gets more.
fn ahead<R: Ring>(network: &Network, queries: usize, folder: &str) {
    let mut servers = start::<R>(network, &Options::new::<R>(WeightPolicy::Shared));
    let (started, mut bytes) = (Instant::now(), [0; 2]);
    for number in 0..queries {
        let path = std::path::Path::new(folder).join(format!("{number}.deal"));
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
        let (_, dealt) = servers.dealer.deal_to(SystemTime::now(), &mut std::io::sink(), &mut file).unwrap();
        file.into_inner().unwrap().sync_all().unwrap();
        bytes = [bytes[0] + dealt[0], bytes[1] + dealt[1]];
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} bits: {queries} queries dealt in {seconds:.1} s: {bytes:?} bytes to each server", R::BITS);
}

fn main() {
    let network = by_name("resnet18-cifar", 10, None).unwrap();
    if let [_, command, queries, folder] = std::env::args().collect::<Vec<_>>().as_slice()
        && command == "ahead"
    {
        ahead::<u64>(&network, queries.parse().unwrap(), folder);
        return ahead::<Z48>(&network, queries.parse().unwrap(), folder);
    }
    let shared = |method| Options { method, ..Options::new::<u64>(WeightPolicy::Shared) };
    let shared48 = |method| Options { method, ..Options::new::<Z48>(WeightPolicy::Shared) };
    let links = [("loopback", Profile::LOOPBACK), ("LAN", Profile::LAN), ("WAN", Profile::WAN)];
    for (name, profile) in links {
        let queries = if profile == Profile::WAN { 2 } else { 5 };
        for method in [Selection::Always(Method::Keys), Selection::Always(Method::Tables), Selection::Auto(profile)] {
            println!("{name}, {method:?}, 64 bits");
            measure::<u64>(&network, &shared(method), profile, queries);
            println!("{name}, {method:?}, 48 bits");
            measure::<Z48>(&network, &shared48(method), profile, queries);
        }
    }
    let window = Comparison::Window { bits: 22 };
    println!("loopback, tables, 48 bits, decisions on 22 bits");
    measure::<Z48>(
        &network,
        &Options { comparison: window, ..shared48(Selection::Always(Method::Tables)) },
        Profile::LOOPBACK,
        5,
    );
}
