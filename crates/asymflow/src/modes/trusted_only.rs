//! Baseline: everything in the trusted part. Nothing is released.

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::streamed::ModelWeights;
use asymflow_engine::timing::Seconds;
use asymflow_engine::{Engine, local::LocalConv, program::Program};
use asymflow_privacy::Door;
use asymflow_residual::backend::{Pass, SgdStep, WorkerStats};
use asymflow_zoo::{Network, Weights};
use faer::Par;

use super::mode::{answer_padded, engine_restore, engine_state, loss};
use super::{
    Answering, Asked, ExecError, Facts, Guard, Losses, Macs, Mode, ModeError, ModeFamily, ModeSpec, Parts, Purpose,
    Recovered, Serving, StepReport, TrainBatch, TrainState,
};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::plan::Plan;

#[derive(Debug)]
pub(super) struct Family;

impl ModeFamily for Family {
    fn names(&self) -> &'static [&'static str] {
        &["trusted-only"]
    }

    fn spec(&self, _asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError> {
        Ok(Arc::new(TrustedOnlySpec))
    }

    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error> {
        serde_json::from_str::<()>(settings).map(|()| Arc::new(TrustedOnlySpec) as Arc<dyn ModeSpec>)
    }
}

/// It has no settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedOnlySpec;

impl ModeSpec for TrustedOnlySpec {
    fn name(&self) -> &'static str {
        "trusted-only"
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&())
    }

    fn needs_worker(&self) -> bool {
        false
    }

    fn is_whole(&self) -> bool {
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
        Ok(Serving::Served { losses: Vec::new(), guard: None, can_stream: true })
    }

    fn plan(&self, network: &Network, _batch: usize, _pass: Pass) -> Result<Option<Plan>, ModeError> {
        Ok(Some(Plan::trusted_only(&Program::new(network)?)))
    }

    fn macs(&self, network: &Network, _batch: usize) -> Result<Macs, ModeError> {
        Ok(Macs { trusted: Macs::of(network), worker: 0 })
    }

    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError> {
        work.whole_network()
    }

    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError> {
        Ok(Box::new(TrustedOnly::with_weights(parts.network, parts.weights, parts.par)?))
    }
}

/// See the module.
#[derive(Debug)]
pub struct TrustedOnly {
    engine: Engine,
    convolver: LocalConv,
}

impl TrustedOnly {
    /// The mode for `network` on the threads of `par`.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn new(network: Network, weights: &Weights, par: Par) -> Result<Self, ExecError> {
        Self::with_weights(network, weights.clone().into(), par)
    }

    /// As [`TrustedOnly::new`], with weights that are moved in, or streamed: then it serves inference alone.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn with_weights(network: Network, weights: ModelWeights, par: Par) -> Result<Self, ExecError> {
        let engine = Engine::with_weights(network, weights, par)?;
        let convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
        Ok(Self { engine, convolver })
    }

    /// The trusted engine and what computes its convolutions.
    pub(super) const fn parts_mut(&mut self) -> (&mut Engine, &mut LocalConv) {
        (&mut self.engine, &mut self.convolver)
    }

    /// The trusted engine, for inspection.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Mode for TrustedOnly {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        Ok(self.engine.forward(images, records.len(), Pass::Inference, 0, &mut self.convolver)?)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.samples();
        self.engine.set_easing(batch.easing);
        let logits =
            self.engine.forward(batch.images(), samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(self.engine.network(), &logits, &batch)?;
        self.engine.backward(d_logits, samples, &mut self.convolver)?;
        self.engine.commit_moments();
        self.engine.params_mut().step(sgd);
        Ok(report)
    }

    fn recover(&mut self, _patience: Duration) -> Result<Recovered, ExecError> {
        Ok(Recovered::Here)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        self.engine.needs_all_weights()?;
        Ok(engine_state(&self.engine))
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        engine_restore(&mut self.engine, state)
    }

    fn door(&mut self) -> Option<&mut Door> {
        None
    }

    fn worker(&self) -> Option<WorkerStats> {
        None
    }

    fn seconds(&self) -> &[Seconds] {
        self.convolver.seconds()
    }

    fn answering(&mut self) -> Option<&mut dyn Answering> {
        Some(self)
    }
}

impl Answering for TrustedOnly {
    fn answer(
        &mut self,
        images: &[f32],
        samples: usize,
        padded: usize,
        patience: Duration,
    ) -> Result<Vec<f32>, ExecError> {
        answer_padded(self, images, samples, padded, patience)
    }
}
