//! The modes of execution behind one small trait: infer a batch, and train one step.

use std::sync::Arc;
use std::time::Duration;

use asymflow_privacy::Precision;
use asymflow_residual::{
    Batch, CollectError, Pass, ResidualBackend, ResidualModel, SgdStep, SubmitError, Unit, UnitId, Wanted, WorkerStats,
};
use asymflow_zoo::{Network, Weights};
use faer::Par;

use crate::accounting::{RecordAccountant, Released};
use crate::link::Link;
use crate::local::LocalConv;
use crate::plan::Plan;
use crate::release::{Door, PrivacySpec};
use crate::split::{SplitConv, open_link};
use crate::timing::{Seconds, timed};
use crate::trusted::{Engine, ExecError, ops};

/// A batch for one training step.
#[derive(Clone, Copy, Debug)]
pub struct TrainBatch<'a> {
    /// Samples × input shape, row-major.
    pub images: &'a [f32],
    /// One label a sample, below the number of classes.
    pub labels: &'a [u32],
    /// Numbers of the records, for the accountant.
    pub records: &'a [usize],
    /// Seed of this step's dropout.
    pub dropout_seed: u64,
}

/// What one training step measured before it moved the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy of the batch.
    pub loss: f64,
    /// Samples classified correctly.
    pub correct: usize,
}

/// A way to execute one network.
///
/// A step that fails with a lost worker can be done again after [`Mode::recover`], which says whether steps before it
/// must be as well.
pub trait Mode: Send {
    /// Logits of a batch, samples × classes.
    ///
    /// # Errors
    /// Bad input or a failed part.
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError>;

    /// One step of training.
    ///
    /// # Errors
    /// Bad input or a failed part.
    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError>;

    /// Opens the worker again after a loss and sends it what it needs.
    ///
    /// # Errors
    /// The worker stayed away for longer than `patience`.
    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError>;

    /// Weights and optimiser state, each in the order of the network's parameters.
    ///
    /// # Errors
    /// The worker that holds them is lost.
    fn state(&mut self) -> Result<TrainState, ExecError>;

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of another network, or a lost worker.
    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError>;

    /// Who has lost how much; absent where nothing is released.
    fn accountant(&mut self) -> Option<&mut RecordAccountant>;

    /// Counters of the worker; absent where there is none.
    fn worker(&self) -> Option<WorkerStats>;

    /// Seconds by convolution; empty where the accelerator computes all.
    fn seconds(&self) -> &[Seconds];
}

/// Where training stands after [`Mode::recover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// Where it was: a failed step has changed nothing.
    Here,
    /// At the state that [`Mode::state`] or [`Mode::restore`] handled last: the worker took later steps with it.
    AtState,
}

/// What training needs to go on exactly where it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    /// Weights, flattened.
    pub weights: Vec<f32>,
    /// Momentum, flattened; empty for none yet.
    pub momentum: Vec<f32>,
}

fn engine_state(engine: &Engine) -> TrainState {
    TrainState { weights: engine.params.flat_values(), momentum: engine.params.momentum.concat() }
}

fn engine_restore(engine: &mut Engine, state: &TrainState) -> Result<(), ExecError> {
    let weights = Weights::unflatten(&engine.network, &state.weights)?;
    let mut params = crate::trusted::Params::new(&engine.network, &weights)?;
    if state.momentum.len() == state.weights.len() {
        let mut rest = &state.momentum[..];
        for momentum in &mut params.momentum {
            let (head, tail) = rest.split_at(momentum.len());
            momentum.copy_from_slice(head);
            rest = tail;
        }
    }
    engine.params = params;
    Ok(())
}

/// Baseline: everything in the trusted part.
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
        let engine = Engine::new(network, weights, par)?;
        let convolver = LocalConv::new(engine.program.convs, engine.pool.clone(), par);
        Ok(Self { engine, convolver })
    }
}

impl Mode for TrustedOnly {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.engine.forward(images, records.len(), Pass::Inference, 0, &mut self.convolver)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.labels.len();
        let logits =
            self.engine.forward(batch.images, samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(&self.engine.network, &logits, batch.labels);
        self.engine.backward(d_logits, samples, &mut self.convolver)?;
        self.engine.commit_moments();
        self.engine.params.step(sgd);
        Ok(report)
    }

    fn recover(&mut self, _patience: Duration) -> Result<Recovered, ExecError> {
        Ok(Recovered::Here)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        Ok(engine_state(&self.engine))
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        engine_restore(&mut self.engine, state)
    }

    fn accountant(&mut self) -> Option<&mut RecordAccountant> {
        None
    }

    fn worker(&self) -> Option<WorkerStats> {
        None
    }

    fn seconds(&self) -> &[Seconds] {
        &self.convolver.seconds
    }
}

fn loss(network: &Network, logits: &[f32], labels: &[u32]) -> (StepReport, Vec<f32>) {
    let mut d_logits = vec![0.0; logits.len()];
    let (loss, correct) = ops::softmax_cross_entropy(logits, network.classes, labels, &mut d_logits);
    (StepReport { loss, correct }, d_logits)
}

/// AsymML: the low-rank part of every convolution trusted, its residual on the worker.
#[derive(Debug)]
pub struct AsymMl {
    engine: Engine,
    convolver: SplitConv,
}

/// What [`AsymMl`] needs beside the network.
#[derive(Debug)]
pub struct AsymMlParts {
    /// Where each convolution is computed.
    pub plan: Plan,
    /// How activations are split.
    pub decomposer: Box<dyn asymflow_linalg::Decomposer>,
    /// What guards the releases.
    pub privacy: PrivacySpec,
    /// Precision on the wire.
    pub precision: Precision,
    /// The worker.
    pub backend: Arc<dyn ResidualBackend>,
    /// Who has lost how much so far.
    pub accountant: RecordAccountant,
}

/// Why a mode could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// The network, its weights or the worker.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The privacy settings.
    #[error(transparent)]
    Privacy(#[from] crate::release::PrivacySpecError),
}

impl AsymMl {
    /// Opens the worker and sends it the weights of the split convolutions.
    ///
    /// # Errors
    /// Unusable settings, or a worker that cannot be opened.
    pub fn new(network: Network, weights: &Weights, parts: AsymMlParts, par: Par) -> Result<Self, ModeError> {
        let engine = Engine::new(network, weights, par)?;
        let door = Door::new(&parts.privacy, parts.precision)?;
        let placements = parts.plan.placements();
        let link = open_link(parts.backend, &engine.program.conv_nodes(), &placements).map_err(ExecError::from)?;
        let pool = engine.pool.clone();
        let convolver = SplitConv::new(placements, parts.decomposer, door, link, parts.accountant, pool, par);
        let mut mode = Self { engine, convolver };
        mode.send_weights()?;
        Ok(mode)
    }

    fn send_weights(&mut self) -> Result<(), ExecError> {
        self.convolver.send_weights(&self.engine.program.conv_nodes(), &self.engine.params)
    }

    /// The trusted engine, for inspection.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Mode for AsymMl {
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.convolver.accountant.begin(records.iter().copied());
        self.engine.forward(images, records.len(), Pass::Inference, 0, &mut self.convolver)
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.labels.len();
        self.convolver.accountant.begin(batch.records.iter().copied());
        let logits =
            self.engine.forward(batch.images, samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(&self.engine.network, &logits, batch.labels);
        self.engine.backward(d_logits, samples, &mut self.convolver)?;
        self.engine.commit_moments();
        let before = self.convolver.weights_before(&self.engine.program.conv_nodes(), &self.engine.params);
        self.engine.params.step(sgd);
        let nodes = self.engine.program.conv_nodes();
        match self.convolver.sync_weights(&nodes, &before, &mut self.engine.params) {
            // The step is done; a worker lost here gets all weights when it is opened again.
            Err(error) if error.is_worker_lost() => Ok(report),
            other => other.map(|()| report),
        }
    }

    fn recover(&mut self, patience: Duration) -> Result<Recovered, ExecError> {
        self.convolver.forget();
        self.convolver.link.reopen(patience)?;
        self.send_weights()?;
        Ok(Recovered::Here)
    }

    fn state(&mut self) -> Result<TrainState, ExecError> {
        Ok(engine_state(&self.engine))
    }

    fn restore(&mut self, state: &TrainState) -> Result<(), ExecError> {
        engine_restore(&mut self.engine, state)?;
        self.send_weights()
    }

    fn accountant(&mut self) -> Option<&mut RecordAccountant> {
        Some(&mut self.convolver.accountant)
    }

    fn worker(&self) -> Option<WorkerStats> {
        Some(self.convolver.link.stats())
    }

    fn seconds(&self) -> &[Seconds] {
        self.convolver.seconds()
    }
}

/// Baseline: everything on the accelerator, which sees images, logits and gradients as they are, and keeps weights and
/// momentum.
#[derive(Debug)]
pub struct Clear {
    network: Network,
    link: Link,
    door: Door,
    accountant: RecordAccountant,
    /// The state that was sent or fetched last.
    state: TrainState,
    /// Whether the worker may have stepped since.
    has_stepped: bool,
    seconds: Seconds,
}

const WHOLE: UnitId = UnitId(0);

impl Clear {
    /// Opens the worker and sends it the network.
    ///
    /// # Errors
    /// A network or weights that do not fit, or a worker that cannot be opened.
    pub fn new(
        network: Network,
        weights: &Weights,
        backend: Arc<dyn ResidualBackend>,
        accountant: RecordAccountant,
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
        };
        let door = Door::new(&everything, Precision::F32)?;
        let state = TrainState { weights, momentum: Vec::new() };
        let mut mode = Self { network, link, door, accountant, state, has_stepped: false, seconds: Seconds::default() };
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
        Ok(())
    }

    fn forward(&mut self, images: &[f32], samples: usize, pass: Pass) -> Result<Vec<f32>, ExecError> {
        crate::trusted::engine::check_finite("input", images)?;
        let released = self
            .door
            .release(images.to_vec(), samples, "input", Released::Residual, &mut self.accountant)
            .map_err(|error| ExecError::Release { layer: "input".to_owned(), error })?;
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
        // From its forward pass on, which moves the running statistics.
        self.has_stepped = true;
        let logits = self.forward(batch.images, samples, Pass::Training)?;
        let (report, d_logits) = loss(&self.network, &logits, batch.labels);
        let released = self
            .door
            .release(d_logits, samples, "logits", Released::Gradient, &mut self.accountant)
            .map_err(|error| ExecError::Release { layer: "logits".to_owned(), error })?;
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
            self.state = TrainState { weights, momentum };
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
