//! Both servers in one process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asymflow_shares::client::{open_output, share_input};
use asymflow_shares::compile::FixedModel;
use asymflow_shares::link::{Link, Profile, channel_links};
use asymflow_shares::program::{Ring, Server, WeightPolicy};
use asymflow_shares::randomness::{DealStore, Dealer, Seed, ServerSeed};
use asymflow_shares::server::{LayerReport, PartyModel, Setup, run, set_up};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

pub fn image(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    (0..len).map(|_| 4.0 * rng.random::<f32>() - 2.0).collect()
}

/// Both servers with their seeds, and the dealer.
pub struct Pair<R> {
    pub models: [Arc<PartyModel<R>>; 2],
    pub seeds: [ServerSeed; 2],
    pub stores: [DealStore<R>; 2],
    pub dealer: Dealer<R>,
}

fn pair_of<R: Ring>(models: [Arc<PartyModel<R>>; 2], dealer: Dealer<R>) -> Pair<R> {
    let seeds = [Server::First, Server::Second].map(|server| dealer.seed(server));
    let store = |side: usize| DealStore::new(Arc::clone(&models[side]), seeds[side].clone(), 0).unwrap();
    Pair { stores: [store(0), store(1)], models, seeds, dealer }
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn pair<R: Ring>(model: FixedModel<R>, seed: u8) -> Pair<R> {
    let [owner, dealing] = [1, 2].map(|half| Seed::from_bytes([half ^ seed.rotate_left(4); 32]));
    let both = [Server::First, Server::Second];
    let likely = image(model.program().input_len(), 0);
    if model.program().policy() == WeightPolicy::Public {
        let model = model.publish(&likely).unwrap();
        let dealer = Dealer::new(model.program().clone(), &dealing, HOUR).unwrap();
        return pair_of([Arc::clone(&model), model], dealer);
    }
    let [first, second] = model.share(&owner, &likely).unwrap();
    let dealer = Dealer::new(first.program().clone(), &dealing, HOUR).unwrap();
    let seeds = both.map(|server| dealer.seed(server));
    let [mut left, mut right] = channel_links(Profile::LOOPBACK);
    let (first, second) = (Setup::new(first, &seeds[0]).unwrap(), Setup::new(second, &seeds[1]).unwrap());
    let models = std::thread::scope(|scope| {
        let first = scope.spawn(|| set_up(first, &mut left).unwrap());
        let second = set_up(second, &mut right).unwrap();
        [first.join().unwrap(), second]
    });
    pair_of(models, dealer)
}

/// One query over a link each; logits and the first server's report.
pub fn query_over<R: Ring, L: Link + Send>(
    pair: &mut Pair<R>,
    image: &[f32],
    links: [L; 2],
) -> (Vec<f32>, Vec<LayerReport>) {
    let [first, second] = pair.dealer.deal(SystemTime::now());
    let number = first.query();
    let program = pair.models[0].program();
    let [left, right] = share_input(program, number, image, &Seed::from_bytes([number as u8; 32])).unwrap();
    let [mut to_second, mut to_first] = links;
    let [left_store, right_store] = &mut pair.stores;
    left_store.insert(first).unwrap();
    right_store.insert(second).unwrap();
    let now = SystemTime::now();
    let (first, second) = (left_store.party(number, now).unwrap(), right_store.party(number, now).unwrap());
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| run(first, left, program, &mut to_second).unwrap());
        let second = run(second, right, program, &mut to_first).unwrap();
        (first.join().unwrap(), second)
    });
    (open_output(program, &[first.0, second.0]).unwrap(), first.1)
}

pub fn query<R: Ring>(pair: &mut Pair<R>, image: &[f32]) -> (Vec<f32>, Vec<LayerReport>) {
    query_over(pair, image, channel_links(Profile::LOOPBACK))
}
