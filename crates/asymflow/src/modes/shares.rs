//! Mode `shares`: a network that was trained in the trusted part, answered by two servers on secret shares of the image.
//!
//! Dealer, client and both servers are threads of this process, so that the protocol's bytes and logits are real and its
//! assurance is not; `asymflow-shares` has them as separate programs.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use asymflow_engine::streamed::ModelWeights;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::Door;
use asymflow_residual::{SgdStep, WorkerStats};
use asymflow_shares::{
    CompileError, DealStore, Dealer, LayerReport, Options, OutputShare, PartyModel, Profile, Ring, Seed, Server,
    ServerSeed, Setup, WeightPolicy, Z48, channel_links, compile, open_output, run, set_up, share_input,
};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::mode::held;
use super::{
    Asked, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose, Recovered,
    Serving, StepReport, TrainBatch, TrainState, TrustedOnly,
};
use crate::memory::{MemoryError, MemoryPlan, Work};

#[derive(Debug)]
pub(super) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["shares"]
    }

    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        Ok(Arc::new(asked.sections.get::<SharesSpec>("shares")?))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<SharesSpec>(settings).map(|spec| Arc::new(spec) as Arc<dyn ModeSpec>)
    }
}

/// Integers that shares are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RingBits {
    /// Modulo 2⁴⁸.
    #[default]
    Bits48,
    /// Modulo 2⁶⁴.
    Bits64,
}

/// How two servers answer on secret shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharesSpec {
    /// Whether the servers hold shares of the weights instead of the weights.
    pub shared_weights: bool,
    /// The ring.
    pub ring: RingBits,
}

impl ModeSpec for SharesSpec {
    fn name(&self) -> &'static str {
        "shares"
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn needs_worker(&self) -> bool {
        false
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn evaluates_once(&self) -> bool {
        true
    }

    fn losses(&self, _facts: &Facts<'_>) -> Result<Losses, ModeError> {
        Ok(Losses::default())
    }

    fn guard(&self, _facts: &Facts<'_>) -> Result<Option<Guard>, ModeError> {
        Ok(None)
    }

    fn insecure(&self, _purpose: Purpose) -> Vec<String> {
        Vec::new()
    }

    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        Ok(Serving::Refused { what: "mode shares".to_owned(), why: "two servers of their own answer it" })
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: 0, worker: Macs::of(network) })
    }

    /// The shares of one query are not counted: they are the servers', which are elsewhere in a deployment.
    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        work.whole_network()
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        Ok(Box::new(OnShares::new(parts.network, &held(parts.weights)?, *self, parts.par)?))
    }
}

/// Longer than any one query takes.
const EXPIRY: Duration = Duration::from_secs(3600);

/// Why two servers gave no answer.
#[derive(Debug, Error)]
pub enum SharesError {
    /// The network has a layer that cannot be computed on shares.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The protocol, the dealer or a server failed.
    #[error("on shares: {0}")]
    Protocol(String),
}

fn protocol(error: impl ToString) -> SharesError {
    SharesError::Protocol(error.to_string())
}

/// Training in the trusted part, inference by two servers on shares.
#[derive(Debug)]
pub struct OnShares {
    trained: TrustedOnly,
    spec: SharesSpec,
    /// Made of the weights at hand when they are first needed, and again after they moved.
    servers: Option<Box<dyn Pair>>,
    stats: WorkerStats,
}

impl OnShares {
    /// The mode for `network` on the threads of `par`.
    ///
    /// # Errors
    /// A network or weights that do not fit, or a layer that cannot be computed on shares, by its name and with what would do
    /// in its place.
    pub fn new(network: Network, weights: &Weights, spec: SharesSpec, par: Par) -> Result<Self, ExecError> {
        // Refused before it is trained, not after.
        drop(pair(&network, weights, spec)?);
        let trained = TrustedOnly::with_weights(network, ModelWeights::Held(weights.clone()), par)?;
        Ok(Self { trained, spec, servers: None, stats: WorkerStats::default() })
    }

    fn servers(&mut self) -> Result<&mut Box<dyn Pair>, ExecError> {
        if self.servers.is_none() {
            let engine = self.trained.engine();
            let weights = Weights::unflatten(engine.network(), &engine.params().flat_values())?;
            self.servers = Some(pair(engine.network(), &weights, self.spec)?);
        }
        self.servers.as_mut().ok_or_else(|| protocol("no servers").into())
    }
}

impl Mode for OnShares {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        let values = images.len() / records.len().max(1);
        let mut logits = Vec::new();
        for image in images.chunks_exact(values.max(1)) {
            let answer = self.servers()?.ask(image)?;
            self.stats.busy_seconds += answer.compute_seconds;
            self.stats.transfer_seconds += answer.wait_seconds;
            self.stats.bytes_to_worker += answer.sent_bytes[0];
            self.stats.bytes_from_worker += answer.sent_bytes[1];
            logits.extend(answer.logits);
        }
        Ok(logits)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        self.servers = None;
        self.trained.step(batch, sgd)
    }

    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.trained.recover(patience)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        self.trained.state()
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        self.servers = None;
        self.trained.restore(state)
    }

    fn door(&mut self) -> Option<&mut Door> {
        None
    }

    /// Bytes between the servers: from the first to the second, and back. Seconds are the first server's.
    fn worker(&self) -> Option<WorkerStats> {
        Some(self.stats)
    }

    fn seconds(&self) -> &[Seconds] {
        self.trained.seconds()
    }
}

/// What one query gave and cost.
#[derive(Debug)]
struct Answer {
    logits: Vec<f32>,
    /// Payload of the first server and of the second.
    sent_bytes: [u64; 2],
    compute_seconds: f64,
    wait_seconds: f64,
}

/// Both servers and their dealer, whatever the ring.
trait Pair: Debug + Send {
    fn ask(&mut self, image: &[f32]) -> Result<Answer, SharesError>;
}

fn pair(network: &Network, weights: &Weights, spec: SharesSpec) -> Result<Box<dyn Pair>, SharesError> {
    Ok(match spec.ring {
        RingBits::Bits64 => Box::new(Servers::<u64>::start(network, weights, spec)?),
        RingBits::Bits48 => Box::new(Servers::<Z48>::start(network, weights, spec)?),
    })
}

#[derive(Debug)]
struct Servers<R: Ring> {
    models: [Arc<PartyModel<R>>; 2],
    seeds: [ServerSeed; 2],
    dealer: Dealer<R>,
}

impl<R: Ring> Servers<R> {
    fn start(network: &Network, weights: &Weights, spec: SharesSpec) -> Result<Self, SharesError> {
        let policy = if spec.shared_weights { WeightPolicy::Shared } else { WeightPolicy::Public };
        let model = compile::<R>(network, weights, &Options::new::<R>(policy))?;
        let fresh = || Seed::random().map_err(protocol);
        let dealer = |program: &asymflow_shares::Program| {
            let dealer = Dealer::new(program.clone(), &fresh()?, EXPIRY).map_err(protocol)?;
            let seeds = [Server::First, Server::Second].map(|server| dealer.seed(server));
            Ok::<_, SharesError>((dealer, seeds))
        };
        if !spec.shared_weights {
            let model = model.publish().map_err(protocol)?;
            let (dealer, seeds) = dealer(model.program())?;
            return Ok(Self { models: [Arc::clone(&model), model], seeds, dealer });
        }
        let [first, second] = model.share(&fresh()?).map_err(protocol)?;
        let (dealer, seeds) = dealer(first.program())?;
        let [mut to_second, mut to_first] = channel_links(Profile::LOOPBACK);
        let (first, second) = both(
            || set_up(Setup::new(first, &seeds[0]), &mut to_second).map_err(protocol),
            || set_up(Setup::new(second, &seeds[1]), &mut to_first).map_err(protocol),
        )?;
        Ok(Self { models: [first, second], seeds, dealer })
    }
}

type Ran<R> = (OutputShare<R>, Vec<LayerReport>);

impl<R: Ring> Pair for Servers<R> {
    fn ask(&mut self, image: &[f32]) -> Result<Answer, SharesError> {
        let [first, second] = self.dealer.deal(SystemTime::now());
        let query = first.query();
        let program = self.models[0].program();
        let seed = Seed::random().map_err(protocol)?;
        let [left, right] = share_input::<R>(program, query, image, &seed).map_err(protocol)?;
        let ready = |server: usize, deal| {
            let mut store = DealStore::new(Arc::clone(&self.models[server]), self.seeds[server].clone(), query);
            store.insert(deal).map_err(protocol)?;
            store.party(query, SystemTime::now()).map_err(protocol)
        };
        let (first, second) = both(|| ready(0, first), || ready(1, second))?;
        let [mut to_second, mut to_first] = channel_links(Profile::LOOPBACK);
        let started = Instant::now();
        let (first, second): (Ran<R>, Ran<R>) = both(
            || run(first, left, program, &mut to_second).map_err(protocol),
            || run(second, right, program, &mut to_first).map_err(protocol),
        )?;
        let sum = |layers: &[LayerReport], of: fn(&LayerReport) -> u64| layers.iter().map(of).sum();
        let sent_bytes = [sum(&first.1, |layer| layer.bytes_sent), sum(&second.1, |layer| layer.bytes_sent)];
        let wait_seconds: f64 = first.1.iter().map(|layer| layer.wait_seconds).sum();
        let compute_seconds = (started.elapsed().as_secs_f64() - wait_seconds).max(0.0);
        let logits = open_output(program, &[first.0, second.0]).map_err(protocol)?;
        Ok(Answer { logits, sent_bytes, compute_seconds, wait_seconds })
    }
}

/// Runs both servers at once.
fn both<A: Send, B: Send>(
    first: impl FnOnce() -> Result<A, SharesError> + Send,
    second: impl FnOnce() -> Result<B, SharesError> + Send,
) -> Result<(A, B), SharesError> {
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join().map_err(|_| protocol("the first server stopped"))?;
        Ok((first?, second?))
    })
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::{by_name, replace_activations};

    use super::*;

    fn on_shares(name: &str, spec: SharesSpec) -> Result<OnShares, ExecError> {
        let network = by_name(name, 10, None).unwrap();
        OnShares::new(network.clone(), &Weights::init(&network, 3), spec, Par::Seq)
    }

    #[test]
    fn answers_are_those_of_the_trained_network_after_every_step() {
        for spec in [
            SharesSpec { shared_weights: true, ring: RingBits::Bits48 },
            SharesSpec { shared_weights: false, ring: RingBits::Bits64 },
        ] {
            let mut mode = on_shares("resnet8-cifar", spec).unwrap();
            let images: Vec<f32> = (0..2 * 3072).map(|i| (i as f32 * 0.37).sin()).collect();
            for _ in 0..2 {
                let expected = mode.trained.infer(&images, &[0, 1]).unwrap();
                let got = mode.infer(&images, &[0, 1]).unwrap();
                let largest = got.iter().zip(&expected).map(|(g, e)| (g - e).abs()).fold(0.0, f32::max);
                assert!(got.len() == 20 && largest < 0.02, "{largest}");
                let batch = TrainBatch::new(&images, &[1, 2], &[0, 1]).unwrap();
                mode.step(batch, SgdStep::plain(0.05, 0.9, 0.0)).unwrap();
                let moved = mode.trained.infer(&images, &[0, 1]).unwrap();
                assert!(moved.iter().zip(&expected).any(|(m, e)| (m - e).abs() > 0.1), "the step moves the answers");
            }
            let stats = mode.worker().unwrap();
            assert!(stats.bytes_to_worker > 4 * 73_728 && stats.bytes_to_worker == stats.bytes_from_worker);
        }
    }

    #[test]
    fn a_network_without_a_protocol_is_refused_before_it_is_trained() {
        let error = on_shares("demo-cnn", SharesSpec::default()).unwrap_err().to_string();
        assert!(error.contains("max-pool") && error.contains("average pooling"), "{error}");
        let network = by_name("demo-cnn", 10, None).unwrap();
        let network = replace_activations(&network, &"average-pool".parse().unwrap()).unwrap();
        let weights = Weights::init(&network, 3);
        assert!(OnShares::new(network, &weights, SharesSpec::default(), Par::Seq).is_ok());
    }
}
