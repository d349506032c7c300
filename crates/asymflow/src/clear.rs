//! The baseline without protection: everything on the accelerator.

use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::timing::{Seconds, timed};
use asymflow_privacy::Precision;
use asymflow_residual::{
    Batch, CollectError, Pass, ResidualBackend, ResidualModel, SgdStep, SubmitError, Unit, UnitId, Wanted, WorkerStats,
};
use asymflow_zoo::{Easing, Network, Weights};

use crate::ExecError;
use crate::accounting::{RecordAccountant, Released};
use crate::link::Link;
use crate::modes::{Mode, ModeError, Recovered, StepReport, TrainBatch, TrainState, loss};
use crate::release::{Door, PrivacySpec};

/// Baseline: everything on the accelerator, which sees images, logits and gradients as they are, and keeps weights and
/// momentum.
#[derive(Debug)]
pub struct Clear {
    network: Network,
    link: Link,
    door: Door,
    accountant: RecordAccountant,
    /// Whether images and labels are public already, so that sending them costs nothing.
    is_public: bool,
    /// The state that was sent or fetched last.
    state: TrainState,
    /// Whether the worker may have stepped since.
    has_stepped: bool,
    /// What the worker eases.
    easing: Easing,
    seconds: Seconds,
}

const WHOLE: UnitId = UnitId(0);

impl Clear {
    /// Opens the worker and sends it the network. With `is_public`, images were released before and labels are public:
    /// what the accountant holds of them stays as it is.
    ///
    /// # Errors
    /// A network or weights that do not fit, or a worker that cannot be opened.
    pub fn new(
        network: Network,
        weights: &Weights,
        backend: Arc<dyn ResidualBackend>,
        accountant: RecordAccountant,
        is_public: bool,
    ) -> Result<Self, ModeError> {
        let weights = weights.flatten(&network).map_err(ExecError::from)?;
        let model = ResidualModel { units: vec![Unit::Network(network.clone())] };
        let link = Link::open(backend, model).map_err(ExecError::from)?;
        let everything = PrivacySpec {
            mechanism: "insecure_none".to_owned(),
            sigma: None,
            clip: None,
            relation: asymflow_privacy::Relation::Remove,
            delta: 1e-5,
            budget_epsilon: None,
        };
        let door = Door::new(&everything, Precision::F32)?;
        let state = TrainState { weights, ..TrainState::default() };
        let seconds = Seconds::default();
        let (has_stepped, easing) = (false, Easing::default());
        let mut mode = Self { network, link, door, accountant, is_public, state, has_stepped, easing, seconds };
        mode.send_state()?;
        Ok(mode)
    }

    fn send_state(&mut self) -> Result<(), ExecError> {
        self.link.session().set_weights(WHOLE, &self.state.weights).map_err(submit)?;
        // A new session has none.
        if !self.state.momentum.is_empty() {
            self.link.session().set_momentum(WHOLE, &self.state.momentum).map_err(submit)?;
        }
        self.has_stepped = false;
        self.easing = Easing::default();
        Ok(())
    }

    fn release(
        &mut self,
        values: Vec<f32>,
        samples: usize,
        layer: &str,
        what: Released,
    ) -> Result<asymflow_privacy::Released<asymflow_privacy::Payload>, ExecError> {
        let mut nobody = RecordAccountant::new(0);
        let accountant = if self.is_public { &mut nobody } else { &mut self.accountant };
        self.door
            .release(values, samples, layer, what, accountant)
            .map_err(|error| ExecError::Release { layer: layer.to_owned(), error })
    }

    fn forward(&mut self, images: &[f32], samples: usize, pass: Pass) -> Result<Vec<f32>, ExecError> {
        asymflow_engine::engine::check_finite("input", images)?;
        let released = self.release(images.to_vec(), samples, "input", Released::Residual)?;
        let ticket = self.link.session().submit(WHOLE, released, pass).map_err(submit)?;
        match timed(&mut self.seconds.wait, || self.link.session().collect(ticket)).map_err(collect)? {
            Batch::Outputs(logits) if logits.len() == samples * self.network.classes => Ok(logits),
            _ => Err(collect(CollectError::Malformed { reason: "expected one logit a class".to_owned() })),
        }
    }
}

fn submit(error: SubmitError) -> ExecError {
    ExecError::Submit { layer: "network".to_owned(), error }
}

fn collect(error: CollectError) -> ExecError {
    ExecError::Collect { layer: "network".to_owned(), error }
}

impl Mode for Clear {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.accountant.begin(records.iter().copied());
        self.forward(images, records.len(), Pass::Inference)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.labels.len();
        self.accountant.begin(batch.records.iter().copied());
        if batch.easing != self.easing {
            self.link.session().ease(WHOLE, batch.easing).map_err(submit)?;
            self.easing = batch.easing;
        }
        // From its forward pass on, which moves the running statistics.
        self.has_stepped = true;
        let logits = self.forward(batch.images, samples, Pass::Training)?;
        let (report, d_logits) = loss(&self.network, &logits, &batch);
        let released = self.release(d_logits, samples, "logits", Released::Gradient)?;
        let wanted = Wanted { input: false, weights: false };
        let ticket = self.link.session().submit_gradient(WHOLE, released, wanted).map_err(submit)?;
        timed(&mut self.seconds.wait, || self.link.session().collect(ticket)).map_err(collect)?;
        self.link.session().step(WHOLE, sgd).map_err(submit)?;
        Ok(report)
    }

    /// The worker's weights and momentum are lost with it, and so is what it did since they were fetched.
    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        let recovered = if self.has_stepped { Recovered::AtState } else { Recovered::Here };
        self.link.reopen(patience)?;
        self.send_state()?;
        Ok(recovered)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        if self.has_stepped {
            let session = self.link.session();
            let weights = session.weights(WHOLE).map_err(collect)?;
            let momentum = session.momentum(WHOLE).map_err(collect)?;
            self.state = TrainState { weights, momentum, released: Vec::new() };
            self.has_stepped = false;
        }
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        Weights::unflatten(&self.network, &state.weights)?;
        self.state.clone_from(state);
        self.state.momentum.resize(state.weights.len(), 0.0);
        self.send_state()
    }

    fn accountant(&mut self) -> Option<&mut RecordAccountant> {
        Some(&mut self.accountant)
    }

    fn worker(&self) -> Option<WorkerStats> {
        Some(self.link.stats())
    }

    fn seconds(&self) -> &[Seconds] {
        std::slice::from_ref(&self.seconds)
    }
}
