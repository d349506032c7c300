//! What servers, dealer and client of secret shares say to each other.

use std::hint::black_box;
use std::io::sink;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use asymflow_shares::client::{InputShare, OutputShare, share_input};
use asymflow_shares::compile::{FixedModel, Options, WeightShare, compile};
use asymflow_shares::net::{FromDealer, FromServer, Hello, LIMITS, PROGRAM_LIMITS, PROOF_LIMITS, ToServer};
use asymflow_shares::program::{Program, Server, WeightPolicy};
use asymflow_shares::randomness::{Deal, DealStore, Dealer, Seed, ServerSeed};
use asymflow_shares::server::{Message, Party, PartyModel, Progress};
use asymflow_wire::{decode_header, read_frame};
use asymflow_zoo::{
    Network, Weights,
    network::{Layer, Shape},
    ops::{Conv, Linear},
};

/// A first frame of a caller, of client, dealer or server, or the header of one, or a program.
pub fn share_frames(input: &[u8]) {
    let _ = black_box((decode_header::<Hello>(input), decode_header::<ToServer>(input)));
    let _ = black_box((decode_header::<FromDealer>(input), decode_header::<FromServer>(input)));
    let _ = black_box((read_frame::<Hello>(&mut &*input, LIMITS), read_frame::<ToServer>(&mut &*input, LIMITS)));
    let _ = black_box(read_frame::<FromDealer>(&mut &*input, PROOF_LIMITS));
    let welcome = read_frame::<FromServer>(&mut &*input, PROGRAM_LIMITS);
    for bytes in [input, welcome.as_ref().map_or(&[], |frame| &frame.body)] {
        if let Ok(program) = Program::from_bytes(bytes) {
            assert_eq!(Program::from_bytes(&program.to_bytes()).as_ref(), Ok(&program));
            let _ = black_box((program.cost(), program.hash()));
        }
    }
}

/// Shares of weights, as their owner writes them for a server.
pub fn weight_share(mut input: &[u8]) {
    let _ = black_box(WeightShare::<u64>::read_from(&mut input).map(|share| share.program().cost()));
}

/// A deal and then the messages of the other server, as a server reads them; each alone; shares of an image or of logits.
pub fn shares(input: &[u8]) {
    let setup = &*SETUP;
    let (program, seed) = (setup.model.program(), &setup.seed);
    // Each part alone, or hardly a mutation gets as far as the later ones.
    let _ = black_box(Deal::<u64>::read_from(&mut &*input, program, seed));
    let _ = black_box(InputShare::<u64>::read_from(&mut &*input, program));
    let _ = black_box(OutputShare::<u64>::read_from(&mut &*input, program));
    converse(party(), input);
    let mut rest = input;
    let mut store = DealStore::new(Arc::clone(&setup.model), seed.clone(), 0).expect("its own seed");
    if let Ok(deal) = Deal::read_from(&mut rest, program, seed)
        && let query = deal.query()
        && store.insert(deal).is_ok()
        && let Ok(party) = store.party(query, SystemTime::UNIX_EPOCH)
    {
        assert!(store.party(query, SystemTime::UNIX_EPOCH).is_err(), "randomness was used twice");
        converse(party, rest);
    }
}

/// A query to its end, or to the first message that is refused; then it takes nothing any more.
fn converse(mut party: Party<u64>, mut messages: &[u8]) {
    let Ok(mut progress) = party.start(input_share()) else { return };
    while let Progress::Exchange(message) = progress {
        let Ok(received) = Message::read_from(&mut messages, message.body_bytes() as u64) else { return };
        match party.receive(&received) {
            Ok(next) => progress = next,
            Err(_) => {
                assert!(party.receive(&received).is_err(), "a query went on after it was refused a message");
                return;
            }
        }
    }
}

struct Setup {
    model: Arc<PartyModel<u64>>,
    /// The second server's, and its deal: what is dealt for tables, squares and truncation.
    seed: ServerSeed,
    deal: Vec<u8>,
}

/// A network of every kind of exchange, and randomness that is the same in every process.
static SETUP: LazyLock<Setup> = LazyLock::new(|| {
    let (model, mut dealer) = dealt();
    let mut deal = Vec::new();
    dealer.deal_to(SystemTime::UNIX_EPOCH, &mut sink(), &mut deal).expect("a deal");
    Setup { model, seed: dealer.seed(Server::Second), deal }
});

fn network() -> Network {
    let conv =
        Conv { name: "conv".to_owned(), in_channels: 1, out_channels: 2, kernel: 3, stride: 1, padding: 1, bias: true };
    let quadratic = asymflow_zoo::ops::Quadratic {
        name: "square".to_owned(),
        channels: 3,
        form: asymflow_zoo::ops::Form::Kervolution { c: 1.0 },
    };
    let linear = |name: &str, in_features, out_features| {
        Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
    };
    Network {
        name: "exchanges".to_owned(),
        input: Shape::new(1, 4, 4),
        classes: 2,
        layers: vec![
            Layer::Conv(conv),
            Layer::Relu,
            Layer::Flatten,
            linear("first", 32, 3),
            Layer::Quadratic(quadratic),
            linear("second", 3, 2),
        ],
    }
}

fn compiled(policy: WeightPolicy) -> FixedModel<u64> {
    let network = network();
    compile(&network, &Weights::init(&network, 1), &Options::new::<u64>(policy)).expect("a program")
}

fn dealt() -> (Arc<PartyModel<u64>>, Dealer<u64>) {
    let model = compiled(WeightPolicy::Public).publish(&[0.5; 16]).expect("public weights");
    let (seed, lifetime) = (Seed::from_bytes([5; 32]), Duration::from_secs(1 << 20));
    let dealer = Dealer::new(model.program().clone(), &seed, lifetime).expect("a dealer");
    (model, dealer)
}

fn input_share() -> InputShare<u64> {
    let shares = share_input::<u64>(SETUP.model.program(), 0, &[0.5; 16], &Seed::from_bytes([6; 32]));
    let [_, second] = shares.expect("shares of an image");
    second
}

/// The second server in the query.
fn party() -> Party<u64> {
    let Setup { model, seed, deal } = &*SETUP;
    let mut store = DealStore::new(Arc::clone(model), seed.clone(), 0).expect("its own seed");
    store.read(&mut deal.as_slice()).expect("its own deal");
    store.party(0, SystemTime::UNIX_EPOCH).expect("its own randomness")
}

/// For the corpus: a deal of the second server, the messages that the first one sends it, the share of an image, and a share
/// of weights.
pub fn files() -> [Vec<u8>; 4] {
    let (model, mut dealer) = dealt();
    let mut theirs = Vec::new();
    dealer.deal_to(SystemTime::UNIX_EPOCH, &mut theirs, &mut sink()).expect("a deal");
    let mut store = DealStore::new(Arc::clone(&model), dealer.seed(Server::First), 0).expect("its own seed");
    store.read(&mut theirs.as_slice()).expect("the first server's deal");
    let mut first = store.party(0, SystemTime::UNIX_EPOCH).expect("its randomness");
    let [left, right] =
        share_input::<u64>(model.program(), 0, &[0.5; 16], &Seed::from_bytes([6; 32])).expect("shares of an image");
    let (mut second, mut messages, mut image) = (party(), Vec::new(), Vec::new());
    right.write_to(&mut image).expect("a share");
    let mut steps = [first.start(left).expect("a query"), second.start(right).expect("a query")];
    while let [Progress::Exchange(mine), Progress::Exchange(other)] = &steps {
        mine.write_to(&mut messages).expect("a message");
        steps = [first.receive(other).expect("an answer"), second.receive(mine).expect("an answer")];
    }
    let mut weights = Vec::new();
    let [share, _] =
        compiled(WeightPolicy::Shared).share(&Seed::from_bytes([7; 32]), &[0.5; 16]).expect("shares of weights");
    share.write_to(&mut weights).expect("a share of weights");
    [SETUP.deal.clone(), messages, image, weights]
}
