//! Mode `shares`: a network that was trained in the trusted part, answered by two servers on secret shares of the image.
//!
//! Dealer, client and both servers are threads of this process, so that the protocol's bytes and logits are real and its
//! assurance is not; `asymflow-shares` has them as separate programs.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::streamed::ModelWeights;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::Door;
use asymflow_residual::backend::{SgdStep, WorkerStats};
use asymflow_shares::compile::{FixedModel, Options, Selection, compile};
use asymflow_shares::in_process::{Answer, InProcess, InProcessError};
use asymflow_shares::program::{Method, Ring, WeightPolicy, Z48};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use serde::{Deserialize, Serialize};

use super::error::SharesError;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharesSpec {
    /// Whether the servers hold shares of the weights instead of the weights.
    pub shared_weights: bool,
    /// The ring.
    pub ring: RingBits,
    /// How signs are decided about.
    pub method: Method,
}

impl Default for SharesSpec {
    fn default() -> Self {
        Self { shared_weights: false, ring: RingBits::default(), method: Method::Tables }
    }
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
        match spec.ring {
            RingBits::Bits64 => drop(compiled::<u64>(&network, weights, spec)?),
            RingBits::Bits48 => drop(compiled::<Z48>(&network, weights, spec)?),
        }
        let trained = TrustedOnly::with_weights(network, ModelWeights::Held(weights.clone()), par)?;
        Ok(Self { trained, spec, servers: None, stats: WorkerStats::default() })
    }

    /// The servers; `image` is the next to be asked.
    fn servers(&mut self, image: &[f32]) -> Result<&mut Box<dyn Pair>, ExecError> {
        match &mut self.servers {
            Some(servers) => Ok(servers),
            none => {
                let engine = self.trained.engine();
                let weights = Weights::unflatten(engine.network(), &engine.params().flat_values())?;
                Ok(none.insert(pair(engine.network(), &weights, self.spec, image)?))
            }
        }
    }
}

impl Mode for OnShares {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        let values = images.len() / records.len().max(1);
        let mut logits = Vec::new();
        for image in images.chunks_exact(values.max(1)) {
            let Answer { logits: answer, layers } = self.servers(image)?.ask(image).map_err(SharesError::from)?;
            let [first, second] = &layers;
            self.stats.busy_seconds += first.iter().map(|layer| layer.compute_seconds).sum::<f64>();
            self.stats.transfer_seconds += first.iter().map(|layer| layer.wait_seconds).sum::<f64>();
            self.stats.bytes_to_worker += first.iter().map(|layer| layer.bytes_sent).sum::<u64>();
            self.stats.bytes_from_worker += second.iter().map(|layer| layer.bytes_sent).sum::<u64>();
            logits.extend(answer);
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

/// Both servers and their dealer, whatever the ring.
trait Pair: Debug + Send {
    fn ask(&mut self, image: &[f32]) -> Result<Answer, InProcessError>;
}

impl<R: Ring> Pair for InProcess<R> {
    fn ask(&mut self, image: &[f32]) -> Result<Answer, InProcessError> {
        self.ask(image)
    }
}

fn compiled<R: Ring>(network: &Network, weights: &Weights, spec: SharesSpec) -> Result<FixedModel<R>, SharesError> {
    let policy = if spec.shared_weights { WeightPolicy::Shared } else { WeightPolicy::Public };
    let options = Options { method: Selection::Always(spec.method), ..Options::new::<R>(policy) };
    Ok(compile::<R>(network, weights, &options)?)
}

/// The servers with the model that these weights make, whose ranges are checked on `image`.
fn pair(network: &Network, weights: &Weights, spec: SharesSpec, image: &[f32]) -> Result<Box<dyn Pair>, SharesError> {
    Ok(match spec.ring {
        RingBits::Bits64 => Box::new(InProcess::<u64>::start(compiled(network, weights, spec)?, image)?),
        RingBits::Bits48 => Box::new(InProcess::<Z48>::start(compiled(network, weights, spec)?, image)?),
    })
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::{by_name, models::replace::replace_activations};

    use super::*;

    fn on_shares(name: &str, spec: SharesSpec) -> Result<OnShares, ExecError> {
        let network = by_name(name, 10, None).unwrap();
        OnShares::new(network.clone(), &Weights::init(&network, 3), spec, Par::Seq)
    }

    #[test]
    fn answers_are_those_of_the_trained_network_after_every_step() {
        for spec in [
            SharesSpec { shared_weights: true, ring: RingBits::Bits48, method: Method::Tables },
            SharesSpec { shared_weights: false, ring: RingBits::Bits64, method: Method::Keys },
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
        let network = by_name("demo-cnn", 10, None).unwrap();
        let smooth = replace_activations(&network, &"silu".parse().unwrap()).unwrap();
        let weights = Weights::init(&network, 3);
        let on_shares = |network| OnShares::new(network, &weights, SharesSpec::default(), Par::Seq);
        let error = on_shares(smooth).unwrap_err().to_string();
        assert!(error.contains("silu") && error.contains("a quadratic"), "{error}");
        assert!(on_shares(network).is_ok());
    }
}
