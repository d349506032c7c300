//! Every way to carry messages gives the same answer, and what is carried is bounded and checked.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::servers::{HOUR, Pair, image, pair, query, query_over};
use asymflow_shares::client::share_input;
use asymflow_shares::compile::{Activation, Options, compile};
use asymflow_shares::link::{DuplexLink, HalfDuplexLink, Link, LinkError, Profile, channel_links};
use asymflow_shares::program::WeightPolicy;
use asymflow_shares::randomness::{Deal, DealError, DealStore, Seed, SeedError, ServerSeed};
use asymflow_shares::server::{Message, Party, RunError, run};
use asymflow_zoo::{Network, Weights, by_name, network::Shape};
use proptest::prelude::*;

fn network() -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, 8, 8))).unwrap()
}

fn fixture(policy: WeightPolicy, seed: u8) -> Pair<u64> {
    pair(compile(&network(), &Weights::init(&network(), 1), &Options::new::<u64>(policy)).unwrap(), seed)
}

fn streams() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [client, listener.accept().unwrap().0]
}

#[test]
fn all_links_give_one_answer() {
    let mut pair = fixture(WeightPolicy::Shared, 1);
    let image = image(network().input.len(), 3);
    let (expected, report) = query(&mut pair, &image);
    let [a, b] = streams().map(|s| DuplexLink::new(s.try_clone().unwrap(), s, Profile::LOOPBACK));
    let duplex = query_over(&mut pair, &image, [a, b]);
    let [a, b] = streams();
    let half = query_over(&mut pair, &image, [HalfDuplexLink::new(a, true), HalfDuplexLink::new(b, false)]);
    let slow = Profile { latency: Duration::from_micros(300), bytes_per_second: 1e8 };
    let emulated = query_over(&mut pair, &image, channel_links(slow));
    let streams = streams().map(|s| DuplexLink::new(s.try_clone().unwrap(), s, slow));
    let emulated_stream = query_over(&mut pair, &image, streams);
    for (logits, other) in [duplex, half, emulated, emulated_stream] {
        // Each query rounds with masks of its own.
        assert!(logits.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.02), "{logits:?} {expected:?}");
        for (layer, other) in report.iter().zip(other) {
            assert_eq!((&layer.label, layer.bytes_sent, layer.rounds), (&other.label, other.bytes_sent, other.rounds));
        }
    }
    let cost = pair.models[0].program().cost();
    assert_eq!(report.iter().map(|layer| layer.rounds).sum::<u64>(), cost.rounds);
    assert_eq!(report.iter().map(|layer| layer.bytes_sent).sum::<u64>(), cost.online_bytes_per_server);
}

/// A party with its input, ready to run.
fn ready(pair: &mut Pair<u64>) -> (Party<u64>, asymflow_shares::client::InputShare<u64>) {
    let [first, _] = pair.dealer.deal(SystemTime::now());
    let program = pair.models[0].program();
    let image = image(program.input_len(), 1);
    let query = first.query();
    let [share, _] = share_input(program, query, &image, &Seed::from_bytes([3; 32])).unwrap();
    pair.stores[0].insert(first).unwrap();
    (pair.stores[0].party(query, SystemTime::now()).unwrap(), share)
}

#[test]
fn a_lost_server_and_garbage_are_errors() {
    let mut pair = fixture(WeightPolicy::Shared, 3);
    let program = pair.models[0].program().clone();
    let mut attempt = |answer: &'static [u8]| {
        let [mine, mut theirs] = streams();
        let answering = std::thread::spawn(move || {
            theirs.write_all(answer).unwrap();
            // The other end may have hung up already, which it does when it does not like the answer.
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            theirs.read_to_end(&mut Vec::new()).unwrap_or_default();
        });
        let (party, share) = ready(&mut pair);
        let mut link = DuplexLink::new(mine.try_clone().unwrap(), mine, Profile::LOOPBACK);
        let error = run(party, share, &program, &mut link).unwrap_err();
        // The other end reads until both handles are closed.
        drop(link);
        answering.join().unwrap();
        error
    };
    let error = attempt(b"");
    assert!(matches!(error, RunError::Link(LinkError::Wire(asymflow_wire::WireError::Closed))), "{error}");
    let error = attempt(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    assert!(matches!(error, RunError::Link(LinkError::Wire(asymflow_wire::WireError::Magic(_)))), "{error}");
    // A frame that announces more than the exchange has.
    let error = attempt(b"asyf\x01\x00\x10\x00\x00\x00\xff\xff\xff\xff\xff\x00\x00\x00");
    assert!(matches!(error, RunError::Link(LinkError::Wire(asymflow_wire::WireError::TooLarge { .. }))), "{error}");
    let [mut alone, gone] = channel_links(Profile::LOOPBACK);
    drop(gone);
    let (party, share) = ready(&mut pair);
    assert!(matches!(run(party, share, &program, &mut alone).unwrap_err(), RunError::Link(LinkError::Gone)));
}

/// Sends everything back.
struct Echo;

impl Link for Echo {
    fn exchange(&mut self, message: Message) -> Result<Message, LinkError> {
        Ok(message)
    }
}

#[test]
fn ones_own_message_is_refused() {
    let mut pair = fixture(WeightPolicy::Shared, 4);
    let program = pair.models[0].program().clone();
    let (party, share) = ready(&mut pair);
    let error = run(party, share, &program, &mut Echo).unwrap_err();
    assert_eq!(error.to_string(), "message comes from First, expected Second");
}

#[test]
fn randomness_is_used_once() {
    let mut pair = fixture(WeightPolicy::Public, 5);
    let now = SystemTime::UNIX_EPOCH + 10 * HOUR;
    let [store, _] = &mut pair.stores;
    let deals: Vec<Deal<u64>> = (0..5).map(|_| pair.dealer.deal(now)).map(|[first, _]| first).collect();
    let [zero, one, two, three, four] = deals.try_into().unwrap();
    store.insert(zero).unwrap();
    store.insert(two).unwrap();
    assert!(matches!(store.insert(one), Err(DealError::Reused { query: 1 })), "numbers rise");
    assert_eq!(store.party(0, now).unwrap().query(), 0);
    let again = store.party(0, now).unwrap_err();
    assert!(matches!(again, DealError::Reused { query: 0 }));
    assert_eq!(again.to_string(), "randomness of query 0 was used, withdrawn or superseded, and is never used again");
    assert!(matches!(store.party(3, now), Err(DealError::Missing { query: 3 })));
    let late = now + HOUR + Duration::from_secs(5);
    assert!(matches!(store.party(2, late), Err(DealError::Expired { query: 2, seconds: 5 })));
    assert!(matches!(store.party(2, now), Err(DealError::Reused { query: 2 })), "expired randomness is gone");
    store.insert(three).unwrap();
    assert_eq!(store.len(), 1);
    store.purge(late);
    assert!(store.is_empty());
    // A server that starts again goes on where it was.
    let mut store = DealStore::new(Arc::clone(&pair.models[0]), pair.seeds[0].clone(), 5).unwrap();
    assert!(matches!(store.insert(four), Err(DealError::Reused { query: 4 })));
    assert_eq!(store.next_number(), 5);
}

#[test]
fn deals_of_others_are_refused() {
    let mut pair = fixture(WeightPolicy::Public, 5);
    // A second dealer of the same program has other masks, and its deals are told apart.
    let [other, _] = fixture(WeightPolicy::Public, 6).dealer.deal(SystemTime::now());
    let error = pair.stores[0].insert(other).unwrap_err();
    assert!(matches!(error, DealError::Session { query: 0 }), "{error}");
    // So is the half of the other server.
    let [_, second] = pair.dealer.deal(SystemTime::now());
    let error = pair.stores[0].insert(second).unwrap_err();
    assert!(matches!(error, DealError::Session { query: 0 }), "{error}");
    // And what was dealt for another model.
    let shared = fixture(WeightPolicy::Shared, 7);
    let error = DealStore::new(Arc::clone(&pair.models[0]), shared.seeds[0].clone(), 0).unwrap_err();
    assert!(matches!(error, SeedError::Model { .. }), "{error}");
}

/// Both halves of a deal as they travel.
fn travelling(pair: &mut Pair<u64>) -> [Vec<u8>; 2] {
    pair.dealer.deal(SystemTime::now()).map(|deal| {
        let mut bytes = Vec::new();
        assert_eq!(deal.write_to(&mut bytes).unwrap(), bytes.len() as u64);
        bytes
    })
}

#[test]
fn deals_travel() {
    let mut pair = fixture(WeightPolicy::Shared, 8);
    let bytes = travelling(&mut pair);
    let program = pair.models[0].program();
    let image = image(program.input_len(), 2);
    let shares = share_input(program, 0, &image, &Seed::from_bytes([1; 32])).unwrap();
    let links = channel_links(Profile::LOOPBACK);
    let outputs = std::thread::scope(|scope| {
        let servers: Vec<_> = (0..2)
            .zip(shares)
            .zip(links)
            .zip(&mut pair.stores)
            .map(|(((side, share), mut link), store)| {
                let (model, bytes) = (&pair.models[side], &bytes[side]);
                scope.spawn(move || {
                    let query = store.read(&mut bytes.as_slice()).unwrap();
                    let party = store.party(query, SystemTime::now()).unwrap();
                    run(party, share, model.program(), &mut link).unwrap().0
                })
            })
            .collect();
        servers.into_iter().map(|server| server.join().unwrap()).collect::<Vec<_>>()
    });
    let logits = asymflow_shares::client::open_output(pair.models[0].program(), &outputs.try_into().unwrap()).unwrap();
    let (expected, _) = query(&mut pair, &image);
    assert!(logits.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.02), "{logits:?} {expected:?}");
}

#[test]
fn a_deal_in_pieces_is_the_same() {
    let [mut whole, mut pieces] = [(); 2].map(|()| fixture(WeightPolicy::Shared, 13));
    let now = SystemTime::UNIX_EPOCH;
    let [mut first, mut second] = [(); 2].map(|()| Vec::new());
    let (query, bytes) = pieces.dealer.deal_to(now, &mut first, &mut second).unwrap();
    assert_eq!((query, bytes), (0, [first.len() as u64, second.len() as u64]));
    for (deal, pieces) in whole.dealer.deal(now).iter().zip([first, second]) {
        let mut bytes = Vec::new();
        deal.write_to(&mut bytes).unwrap();
        assert!(bytes == pieces, "{deal:?}");
    }
    assert!(pieces.dealer.deal(now).iter().all(|deal| deal.query() == 1));
}

#[test]
fn a_damaged_deal_is_an_error() {
    let mut pair = fixture(WeightPolicy::Shared, 9);
    let [_, bytes] = travelling(&mut pair);
    let store = |side: usize| DealStore::new(Arc::clone(&pair.models[side]), pair.seeds[side].clone(), 0).unwrap();
    let read = |mut bytes: &[u8]| store(1).read(&mut bytes);
    read(&bytes).unwrap();
    for end in (0..200).chain((200..bytes.len()).step_by(9973)) {
        assert!(matches!(read(&bytes[..end]), Err(DealError::Wire(_))), "cut at {end}");
    }
    let error = store(0).read(&mut bytes.as_slice()).unwrap_err();
    assert!(matches!(error, DealError::Session { .. }), "{error}");
}

#[test]
fn seeds_travel() {
    let pair = fixture(WeightPolicy::Public, 10);
    for seed in &pair.seeds {
        let bytes = seed.to_bytes();
        assert_eq!(ServerSeed::from_bytes(bytes).unwrap().to_bytes(), bytes);
    }
    assert!(ServerSeed::from_bytes([7; ServerSeed::BYTES]).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_never_panics(at in 0usize..4000, flip in 1u8.., noise: Vec<u8>) {
        static DEAL: std::sync::OnceLock<(Pair<u64>, Vec<u8>)> = std::sync::OnceLock::new();
        let (pair, bytes) = DEAL.get_or_init(|| {
            let mut pair = fixture(WeightPolicy::Shared, 11);
            let [_, bytes] = travelling(&mut pair);
            (pair, bytes)
        });
        let mut damaged = bytes.clone();
        damaged[at] ^= flip;
        let mut store = DealStore::new(Arc::clone(&pair.models[1]), pair.seeds[1].clone(), 0).unwrap();
        let _ = store.read(&mut damaged.as_slice());
        let _ = store.read(&mut noise.as_slice());
        let _ = Message::read_from(&mut noise.as_slice(), 1 << 20);
    }
}

#[test]
fn models_with_other_activations_have_other_hashes() {
    let pair = fixture(WeightPolicy::Public, 12);
    let mut options = Options::new::<u64>(WeightPolicy::Public);
    options.activations = BTreeMap::from([("conv1.relu".to_owned(), Activation::Quadratic { a: 0.1, b: 0.5, c: 0.2 })]);
    let other =
        compile::<u64>(&network(), &Weights::init(&network(), 1), &options).unwrap().publish(&[0.5; 192]).unwrap();
    let error = DealStore::new(other, pair.seeds[0].clone(), 0).unwrap_err();
    assert!(matches!(error, SeedError::Model { .. }), "{error}");
}
