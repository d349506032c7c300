//! Two servers and a dealer in one process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asymflow_shares::client::{open_output, share_input};
use asymflow_shares::compile::{Options, compile};
use asymflow_shares::link::{Profile, channel_links};
use asymflow_shares::program::{Server, WeightPolicy};
use asymflow_shares::randomness::{DealStore, Dealer, Seed};
use asymflow_shares::server::run;
use asymflow_zoo::{Weights, by_name};

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let network = by_name("resnet8-cifar", 10, None)?;
    let options = Options::new::<u64>(WeightPolicy::Public);
    let image = vec![0.5; network.input.len()];
    let model = compile::<u64>(&network, &Weights::init(&network, 1), &options)?.publish(&image)?;

    // Before any input is known, the dealer sends each server a seed and what goes with it, and goes away.
    let mut dealer = Dealer::new(model.program().clone(), &Seed::random()?, Duration::from_secs(60))?;
    let store = |server| DealStore::new(Arc::clone(&model), dealer.seed(server), 0);
    let (mut first, mut second) = (store(Server::First)?, store(Server::Second)?);
    let now = SystemTime::now();
    let [for_first, for_second] = dealer.deal(now);
    let query = for_first.query();
    first.insert(for_first)?;
    second.insert(for_second)?;

    // The client shares its image between the servers, who answer with shares of the logits.
    let [left, right] = share_input(model.program(), query, &image, &Seed::random()?)?;
    let (first, second) = (first.party(query, now)?, second.party(query, now)?);
    let [mut to_second, mut to_first] = channel_links(Profile::LAN);
    let other = Arc::clone(&model);
    let server = std::thread::spawn(move || run(second, right, other.program(), &mut to_first));
    let (mine, layers) = run(first, left, model.program(), &mut to_second)?;
    let (theirs, _) = server.join().map_err(|_| "the second server failed")??;
    let logits = open_output(model.program(), &[mine, theirs])?;

    assert_eq!(logits.len(), 10);
    assert_eq!(layers.iter().map(|layer| layer.rounds).sum::<u64>(), 2 * 7); // two a layer of ReLUs
    Ok(())
}
