//! One setting after the other: dealer, client and both servers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use asymflow_shares::client::{OutputShare, open_output, share_input};
use asymflow_shares::compile::{FixedModel, Options, Selection, compile, float_logits};
use asymflow_shares::link::Profile;
use asymflow_shares::program::{Method, Ring, Server, WeightPolicy, Z48};
use asymflow_shares::randomness::{Deal, DealStore, Dealer, Seed, ServerSeed};
use asymflow_shares::server::{LayerReport, Party, PartyModel, Setup, run, set_up};
use asymflow_zoo::data::{Augment, Batch, Loader, Normalization};
use asymflow_zoo::{Network, Weights};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::ends::{ends, failed};
use super::found::SharesRun;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::shares_section::{ActivationName, ComparisonName, LinkName, RingName, Setting};

/// Most images that ranges are found with, and most that they are checked with.
const RANGED: usize = 16;
/// Bits of a range beyond what was found.
const MARGIN_BITS: u32 = 2;

pub struct Labelled {
    pub images: Vec<Vec<f32>>,
    pub labels: Vec<u32>,
}

/// What settings are measured with.
pub struct Bench<'a> {
    network: &'a Network,
    weights: &'a Weights,
    images: Labelled,
    queries: usize,
    threads: usize,
    /// Each server has threads of its own.
    pools: [rayon::ThreadPool; 2],
    /// Logits in double precision of the activation before.
    expected: Option<(ActivationName, Vec<Vec<f64>>)>,
}

/// Whether the user wants it to end.
type Ended<'a> = &'a (dyn Fn() -> bool + Sync);

impl<'a> Bench<'a> {
    /// At least `repeats` queries, and one for each image; there must be an image.
    pub fn new(
        network: &'a Network,
        weights: &'a Weights,
        images: Labelled,
        repeats: usize,
        threads: usize,
    ) -> Result<Self, CliError> {
        if images.images.is_empty() {
            return Err(CliError::usage("no image to ask about", "set shares.images to at least 1"));
        }
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(failed);
        let (queries, pools) = (repeats.max(images.images.len()), [pool()?, pool()?]);
        Ok(Self { network, weights, images, queries, threads, pools, expected: None })
    }

    /// `None` where it was asked to end, which it is before every query and every image of the reference.
    pub fn run(&mut self, setting: Setting, is_ended: Ended<'_>) -> Result<Option<SharesRun>, CliError> {
        match setting.ring {
            RingName::U64 => self.measure::<u64>(setting, is_ended),
            RingName::Z48 => self.measure::<Z48>(setting, is_ended),
            RingName::U32 => self.measure::<u32>(setting, is_ended),
        }
    }

    /// Logits of every image in double precision; none where it was asked to end.
    fn expected(&mut self, activation: ActivationName, is_ended: Ended<'_>) -> Result<Option<Vec<Vec<f64>>>, CliError> {
        if let Some((known, logits)) = &self.expected
            && *known == activation
        {
            return Ok(Some(logits.clone()));
        }
        let replaced = activation.of(self.network).map_err(failed)?;
        let reference = |image: &Vec<f32>| {
            (!is_ended()).then(|| float_logits(self.network, self.weights, &replaced, image).map_err(failed))
        };
        let logits: Option<Result<Vec<_>, _>> = self.images.images.par_iter().map(reference).collect();
        let logits = logits.transpose()?;
        self.expected = logits.clone().map(|logits| (activation, logits));
        Ok(logits)
    }

    fn measure<R: Ring>(&mut self, setting: Setting, is_ended: Ended<'_>) -> Result<Option<SharesRun>, CliError> {
        // The compiler says best what it refuses, so it comes first.
        let mut servers = self.start::<R>(setting)?;
        let Some(expected) = self.expected(setting.activation, is_ended)? else { return Ok(None) };
        let cost = servers.models[0].program().cost();
        let mut found = SharesRun {
            setting,
            comparison: setting.comparison,
            measured_link: servers.link.map(|link| [2e3 * link.latency.as_secs_f64(), 1e-6 * link.bytes_per_second]),
            dealt_megabytes: 0.0,
            total_megabytes: 0.0,
            decisions: cost.decisions,
            rounds: cost.rounds,
            threads: self.threads,
            load_average: load_average(),
            online_bytes: [0; 2],
            dealt_bytes: [0; 2],
            setup_bytes: servers.setup_bytes,
            setup_seconds: servers.setup_seconds,
            deal_seconds: Vec::new(),
            prepare_seconds: Vec::new(),
            online_seconds: Vec::new(),
            images: self.images.images.len(),
            largest_error: 0.0,
            largest_logit: 0.0,
            changed: 0,
            correct: [0; 2],
        };
        for query in 0..self.queries {
            if is_ended() {
                return Ok(None);
            }
            let logits = self.query(&mut servers, &self.images.images[query % self.images.images.len()], &mut found)?;
            let Some(expected) = expected.get(query) else { continue };
            for (got, wanted) in logits.iter().zip(expected) {
                found.largest_error = found.largest_error.max((f64::from(*got) - wanted).abs());
                found.largest_logit = found.largest_logit.max(wanted.abs());
            }
            let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
            found.changed += usize::from(class(&logits) != class(expected));
            let label = self.images.labels.get(query).map(|&label| label as usize);
            for (correct, logits) in found.correct.iter_mut().zip([&logits, expected]) {
                *correct += usize::from(class(logits) == label);
            }
        }
        let megabytes = |bytes: [u64; 2]| 1e-6 * bytes.iter().sum::<u64>() as f64;
        found.dealt_megabytes = megabytes(found.dealt_bytes);
        found.total_megabytes = found.dealt_megabytes + megabytes(found.online_bytes);
        Ok(Some(found))
    }

    /// The model that a setting says; where its link chooses how signs are decided about, what the link is.
    fn model<R: Ring>(&self, setting: Setting) -> Result<(FixedModel<R>, Option<Profile>), CliError> {
        let model = compiled::<R>(self.network, self.weights, setting)?;
        let model = if setting.checked_ranges {
            model.narrowed(&self.alternate(0), MARGIN_BITS).map_err(failed)?
        } else {
            model
        };
        if setting.comparison != ComparisonName::Auto {
            return Ok((model, None));
        }
        let [mut left, mut right] = ends(setting.link)?;
        let (link, _) = self.both(
            || Profile::measured(&mut left.link, Server::First).map_err(failed),
            || Profile::measured(&mut right.link, Server::Second).map_err(failed),
        )?;
        Ok((model.decided_by(Selection::Auto(link)), Some(link)))
    }

    /// Every other image, beginning with this one.
    fn alternate(&self, from: usize) -> Vec<f32> {
        self.images.images.iter().skip(from).step_by(2).take(RANGED).flatten().copied().collect()
    }

    /// Gives the model to the servers, and each server its seed from a dealer.
    fn start<R: Ring>(&self, setting: Setting) -> Result<Servers<R>, CliError> {
        let (model, link) = self.model::<R>(setting)?;
        // Ranges are checked on images that they were not found with, where there are others.
        let checked = if setting.checked_ranges { self.alternate(1) } else { Vec::new() };
        let image = if checked.is_empty() { self.images.images.first().cloned().unwrap_or_default() } else { checked };
        let fresh = || Seed::random().map_err(failed);
        let deals_for = |program: &asymflow_shares::program::Program| {
            let dealer = Dealer::new(program.clone(), &fresh()?, Duration::from_secs(3600)).map_err(failed)?;
            let seeds = [Server::First, Server::Second].map(|server| dealer.seed(server));
            Ok::<_, CliError>((dealer, seeds))
        };
        let none = Duration::ZERO.as_secs_f64();
        if setting.policy == WeightPolicy::Public {
            let model = model.publish(&image).map_err(failed)?;
            let (dealer, seeds) = deals_for(model.program())?;
            let models = [Arc::clone(&model), model];
            return Ok(Servers { models, seeds, dealer, link, setup_bytes: [0; 2], setup_seconds: none });
        }
        let [first, second] = model.share(&fresh()?, &image).map_err(failed)?;
        let (dealer, seeds) = deals_for(first.program())?;
        let [mut left, mut right] = ends(LinkName::Loopback)?;
        let started = Instant::now();
        let (first, second) = self.both(
            || set_up(Setup::new(first, &seeds[0]).map_err(failed)?, &mut left.link).map_err(failed),
            || set_up(Setup::new(second, &seeds[1]).map_err(failed)?, &mut right.link).map_err(failed),
        )?;
        let setup_seconds = started.elapsed().as_secs_f64();
        let setup_bytes = [left.close(), right.close()];
        Ok(Servers { models: [first, second], seeds, dealer, link, setup_bytes, setup_seconds })
    }

    /// One query: deal, prepare, and answer over a connection of its own.
    fn query<R: Ring>(
        &self,
        servers: &mut Servers<R>,
        image: &[f32],
        found: &mut SharesRun,
    ) -> Result<Vec<f32>, CliError> {
        let started = Instant::now();
        let [first, second] = servers.dealer.deal(SystemTime::now());
        found.deal_seconds.push(started.elapsed().as_secs_f64());
        found.dealt_bytes = [first.bytes(), second.bytes()];
        let (models, seeds) = (&servers.models, &servers.seeds);
        let program = models[0].program();
        let seed = Seed::random().map_err(failed)?;
        let [left, right] = share_input::<R>(program, first.query(), image, &seed).map_err(failed)?;
        let started = Instant::now();
        let (first, second) =
            self.both(|| ready(&models[0], &seeds[0], first), || ready(&models[1], &seeds[1], second))?;
        found.prepare_seconds.push(started.elapsed().as_secs_f64());
        let [mut to_second, mut to_first] = ends(found.setting.link)?;
        let started = Instant::now();
        let (first, second): (Answer<R>, Answer<R>) = self.both(
            || run(first, left, program, &mut to_second.link).map_err(failed),
            || run(second, right, program, &mut to_first.link).map_err(failed),
        )?;
        found.online_seconds.push(started.elapsed().as_secs_f64());
        found.online_bytes = [to_second.close(), to_first.close()];
        found.rounds = first.1.iter().map(|layer| layer.rounds).sum();
        open_output(program, &[first.0, second.0]).map_err(failed)
    }

    /// Runs both servers, each on its own threads.
    fn both<A: Send, B: Send>(
        &self,
        first: impl FnOnce() -> Result<A, CliError> + Send,
        second: impl FnOnce() -> Result<B, CliError> + Send,
    ) -> Result<(A, B), CliError> {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| self.pools[0].install(first));
            let second = self.pools[1].install(second);
            let first = first.join().map_err(|_| failed("the first server stopped"))?;
            Ok((first?, second?))
        })
    }
}

type Answer<R> = (OutputShare<R>, Vec<LayerReport>);

/// Test images, normalised by the training set.
pub fn images(experiment: &Experiment, network: &Network) -> Result<Labelled, CliError> {
    let seed = experiment.data.seed;
    let split = experiment.load(1000, experiment.shares.images)?;
    if split.test.shape() != network.input {
        let message =
            format!("images of {:?} do not fit {}, which takes {:?}", split.test.shape(), network.name, network.input);
        return Err(CliError::usage(message, "set model.input, or take other data"));
    }
    let normalization = Normalization::of(&split.train);
    let mut batch = Batch::default();
    let indices: Vec<u32> = (0..split.test.len() as u32).collect();
    Loader::new(&split.test, &normalization, Augment::NONE, seed).gather(None, &indices, &mut batch);
    let images = batch.images.chunks_exact(network.input.len()).map(<[f32]>::to_vec).collect();
    Ok(Labelled { images, labels: batch.labels })
}

/// The model that a setting says, at its owner.
pub fn compiled<R: Ring>(network: &Network, weights: &Weights, setting: Setting) -> Result<FixedModel<R>, CliError> {
    let refused = |e: asymflow_shares::compile::CompileError| {
        CliError::usage(format!("{setting}: {e}"), "take another model or setting")
    };
    let activations = setting.activation.of(network).map_err(refused)?;
    let method = match setting.comparison {
        ComparisonName::Keys => Method::Keys,
        // Measured links choose later.
        ComparisonName::Tables | ComparisonName::Auto => Method::Tables,
    };
    let method = Selection::Always(method);
    compile::<R>(network, weights, &Options { activations, method, ..Options::new::<R>(setting.policy) })
        .map_err(refused)
}

/// Over the last minute, as Linux tells it.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Index of the largest logit.
fn class(logits: &[f64]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

struct Servers<R> {
    models: [Arc<PartyModel<R>>; 2],
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
    link: Option<Profile>,
    setup_bytes: [u64; 2],
    setup_seconds: f64,
}

/// Takes a server's deal, and does all work that needs no input.
fn ready<R: Ring>(model: &Arc<PartyModel<R>>, seed: &ServerSeed, deal: Deal<R>) -> Result<Party<R>, CliError> {
    let query = deal.query();
    let mut store = DealStore::new(Arc::clone(model), seed.clone(), query).map_err(failed)?;
    store.insert(deal).map_err(failed)?;
    store.party(query, SystemTime::now()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use asymflow_zoo::by_name;

    use super::*;

    fn measured(activation: ActivationName, policy: WeightPolicy, link: LinkName) -> SharesRun {
        let (ring, comparison, checked_ranges) = (RingName::Z48, ComparisonName::Tables, false);
        asked(Setting { policy, ring, activation, link, comparison, checked_ranges })
    }

    fn asked(setting: Setting) -> SharesRun {
        asked_until(setting, usize::MAX).unwrap()
    }

    /// As many queries and images of the reference at most.
    fn asked_until(setting: Setting, most: usize) -> Option<SharesRun> {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let weights = Weights::init(&network, 1);
        let image = |phase: f32| (0..3072).map(|i| (i as f32 * 0.1 + phase).sin()).collect();
        let mut bench =
            Bench::new(&network, &weights, Labelled { images: vec![image(0.0), image(1.0)], labels: vec![0, 0] }, 3, 1)
                .unwrap();
        let asked = AtomicUsize::new(0);
        let is_ended = || asked.fetch_add(1, Relaxed) >= most;
        bench.run(setting, &is_ended).unwrap()
    }

    #[test]
    fn a_measurement_ends_before_its_next_image_or_query() {
        let (policy, ring, activation) = (WeightPolicy::Shared, RingName::Z48, ActivationName::Quadratic);
        let (link, comparison, checked_ranges) = (LinkName::Loopback, ComparisonName::Tables, false);
        let setting = Setting { policy, ring, activation, link, comparison, checked_ranges };
        // Two images, three queries.
        assert!((0..5).all(|most| asked_until(setting, most).is_none()));
        assert!(asked_until(setting, 5).is_some());
    }

    #[test]
    fn queries_are_right_and_counted() {
        let settings = [(ActivationName::Relu, LinkName::Tls), (ActivationName::Quadratic, LinkName::Loopback)];
        for (activation, link) in settings {
            let run = measured(activation, WeightPolicy::Shared, link);
            let network = by_name("resnet8-cifar", 10, None).unwrap();
            let model = compiled::<Z48>(&network, &Weights::init(&network, 1), run.setting).unwrap();
            let cost = model.program().cost();
            assert_eq!((run.decisions, run.rounds), (cost.decisions, cost.rounds));
            assert_eq!(run.dealt_bytes, [cost.dealer_bytes_first, cost.dealer_bytes_second]);
            for bytes in run.online_bytes {
                // A frame and a header around every message.
                let around = bytes - cost.online_bytes_per_server;
                assert!((cost.rounds..200 * cost.rounds).contains(&around), "{around}");
            }
            assert_eq!(run.online_seconds.len(), 3);
            assert!(run.largest_error > 0.0 && run.largest_error < 0.02, "{}", run.largest_error);
            assert_eq!((run.images, run.changed), (2, 0));
            assert!(run.setup_bytes[0] > 6 * 70_000 && run.setup_bytes[0] == run.setup_bytes[1]);
        }
        let public = measured(ActivationName::Relu, WeightPolicy::Public, LinkName::Loopback);
        assert_eq!(public.setup_bytes, [0; 2]);
    }

    #[test]
    fn every_comparison_is_right_and_says_what_it_costs() {
        let run = |comparison, checked_ranges, link| {
            let (policy, ring, activation) = (WeightPolicy::Shared, RingName::Z48, ActivationName::Relu);
            let run = asked(Setting { policy, ring, activation, link, comparison, checked_ranges });
            assert_eq!((run.changed, run.comparison), (0, comparison));
            assert!(run.largest_error < 0.02, "{}", run.largest_error);
            let online = 1e-6 * run.online_bytes.iter().sum::<u64>() as f64;
            assert!((run.total_megabytes - run.dealt_megabytes - online).abs() < 1e-9);
            run
        };
        let keys = run(ComparisonName::Keys, false, LinkName::Loopback);
        let tables = run(ComparisonName::Tables, false, LinkName::Loopback);
        let narrow = run(ComparisonName::Tables, true, LinkName::Loopback);
        assert!(narrow.dealt_megabytes < tables.dealt_megabytes);
        assert!(
            9.0 * tables.dealt_megabytes < keys.dealt_megabytes,
            "{} {}",
            tables.dealt_megabytes,
            keys.dealt_megabytes
        );
        let auto = run(ComparisonName::Auto, false, LinkName::Wan);
        let [milliseconds, megabytes] = auto.measured_link.unwrap();
        // 40 ms there and back and 12.5 MB a second, on a machine that does other things as well.
        assert!(
            (40.0..200.0).contains(&milliseconds) && (1.0..14.0).contains(&megabytes),
            "{milliseconds} {megabytes}"
        );
        assert!((keys.rounds..=tables.rounds).contains(&auto.rounds));
    }

    #[test]
    fn another_class_shows() {
        assert_eq!(class(&[0.0, 2.0, 1.0]), Some(1));
        assert_ne!(class(&[-1.0, -2.0]), class(&[-2.0, -1.0]));
    }
}
