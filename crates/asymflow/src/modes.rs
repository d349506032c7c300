//! The modes of execution behind one small trait: infer a batch, and train one step.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use asymflow_engine::streamed::ModelWeights;
use asymflow_engine::timing::Seconds;
use asymflow_engine::{Engine, LocalConv, ops};
use asymflow_privacy::{Loss, Precision};
use asymflow_residual::{Pass, ResidualBackend, SgdStep, WorkerStats};
use asymflow_zoo::data::Loader;
use asymflow_zoo::{Easing, Network, Weights};
use faer::Par;

use crate::ExecError;
use crate::accounting::RecordAccountant;
use crate::plan::Plan;
use crate::release::{Door, PrivacySpec};
use crate::split::{SplitConv, open_link};
use crate::teaching::Lesson;

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
    /// The augmentation pass that the images are of, as [`Phase::view`].
    pub view: u64,
    /// Records and optimiser of the step after this one, where it is of the same epoch, so that a worker that needs
    /// nothing of this step can go ahead.
    pub next: Option<(&'a [usize], SgdStep)>,
    /// What eases the activations of this step.
    pub easing: Easing,
    /// What a teacher says of the images.
    pub lesson: Option<Lesson<'a>>,
}

impl<'a> TrainBatch<'a> {
    /// A batch of one step by itself, seed 0, neither eased nor taught.
    pub fn new(images: &'a [f32], labels: &'a [u32], records: &'a [usize]) -> Self {
        let (easing, lesson) = (Easing::default(), None);
        Self { images, labels, records, dropout_seed: 0, view: 0, next: None, easing, lesson }
    }
}

/// What an epoch belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The epochs over which the learning rate follows its schedule.
    pub epochs: Range<usize>,
    /// The augmentation pass of the epoch's images: the same number gives the same views.
    pub view: u64,
}

/// The training records, as a mode may ask for them before an epoch.
#[derive(Debug)]
pub struct Records<'a> {
    /// Makes batches of them.
    pub loader: &'a Loader<'a>,
    /// How many there are.
    pub count: usize,
    /// How many to take at a time.
    pub batch: usize,
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
    /// What `epoch` of `epochs` belongs to.
    fn phase(&self, epoch: usize, epochs: usize) -> Phase {
        Phase { epochs: 0..epochs, view: epoch as u64 }
    }

    /// Draws what an epoch will release, without sending it; true where something was drawn. Then a checkpoint is left
    /// before [`Mode::begin_epoch`] sends it, so that a killed run sends the same again and cannot draw anew.
    ///
    /// # Errors
    /// A failed part or a refused release.
    fn draw(&mut self, _epoch: usize, _records: &Records<'_>) -> Result<bool, ExecError> {
        Ok(false)
    }

    /// Draws what records will be asked about with, without sending it, as [`Mode::draw`] does for training; true where
    /// anything was drawn.
    ///
    /// # Errors
    /// A failed part or a refused release.
    fn draw_queries(&mut self, _images: &[f32], _records: &[usize]) -> Result<bool, ExecError> {
        Ok(false)
    }

    /// What a training record and a test record may lose between one checkpoint and the next without being drawn before: a
    /// run that is killed there has to assume that they did.
    ///
    /// # Errors
    /// A mechanism that is not defined for its sensitivity.
    fn unkept_losses(&self) -> Result<Unkept, ExecError> {
        Ok(Unkept::default())
    }

    /// What has been released so far, as in [`TrainState::released`].
    ///
    /// # Errors
    /// It cannot be encoded.
    fn released(&mut self) -> Result<Vec<u8>, ExecError> {
        Ok(Vec::new())
    }

    /// Called before the first step of an epoch that this process runs.
    ///
    /// # Errors
    /// A failed part. After a lost worker it is called again.
    fn begin_epoch(&mut self, _epoch: usize) -> Result<(), ExecError> {
        Ok(())
    }

    /// Logits of a batch, samples × classes.
    ///
    /// # Errors
    /// Bad input or a failed part.
    fn infer(&mut self, images: &[f32], records: &[usize]) -> Result<Vec<f32>, ExecError>;

    /// Logits of `samples` records that clients ask about, in the order of `images`. The worker is sent a batch of `padded`
    /// records, whatever the samples, and what it is sent is drawn anew. Nothing is charged to a budget here.
    ///
    /// # Errors
    /// Bad input or a failed part. A worker that was lost has been opened again, so that others can be answered.
    fn answer(
        &mut self,
        images: &[f32],
        samples: usize,
        padded: usize,
        patience: Duration,
    ) -> Result<Vec<f32>, ExecError> {
        let mut images = images.to_vec();
        let sample = images.len() / samples.max(1);
        images.resize(sample * padded.max(samples), 0.0);
        match self.infer(&images, &vec![0; padded.max(samples)]) {
            Ok(mut logits) => {
                logits.truncate(logits.len() / padded.max(samples).max(1) * samples);
                Ok(logits)
            }
            Err(error) if error.is_worker_lost() => {
                self.recover(patience)?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// What the record of one [`Mode::answer`] loses, release by release.
    ///
    /// # Errors
    /// A mechanism that is not defined for its sensitivity.
    fn answer_losses(&self) -> Result<Vec<Loss>, ExecError> {
        Ok(Vec::new())
    }

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

    /// Standard deviation of the noise on what is released by design of the mode; absent where there is none.
    fn sigma(&self) -> Option<f64> {
        None
    }

    /// Seconds by convolution; empty where the accelerator computes all.
    fn seconds(&self) -> &[Seconds];
}

/// Losses between two checkpoints, which no released bits in a checkpoint witness.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unkept {
    /// Of a training record, in the steps of an epoch.
    pub train: Vec<Loss>,
    /// Of a test record, in an evaluation.
    pub test: Vec<Loss>,
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
    /// What has been released and must not be released anew, encoded by the mode; empty for most.
    pub released: Vec<u8>,
}

pub(crate) fn engine_state(engine: &Engine) -> TrainState {
    TrainState { weights: engine.params.flat_values(), momentum: engine.params.flat_momentum(), released: Vec::new() }
}

pub(crate) fn engine_restore(engine: &mut Engine, state: &TrainState) -> Result<(), ExecError> {
    let weights = Weights::unflatten(&engine.network, &state.weights)?;
    let mut params = asymflow_engine::Params::new(&engine.network, &weights)?;
    if state.momentum.len() == state.weights.len() {
        params.train();
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
        Self::with_weights(network, weights.clone().into(), par)
    }

    /// As [`TrustedOnly::new`], with weights that are moved in, or streamed: then it serves inference alone.
    ///
    /// # Errors
    /// A network or weights that do not fit.
    pub fn with_weights(network: Network, weights: ModelWeights, par: Par) -> Result<Self, ExecError> {
        let engine = Engine::with_weights(network, weights, par)?;
        let convolver = LocalConv::new(engine.program.convs, engine.pool.clone(), par);
        Ok(Self { engine, convolver })
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
        let samples = batch.labels.len();
        self.engine.set_easing(batch.easing);
        let logits =
            self.engine.forward(batch.images, samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(&self.engine.network, &logits, &batch);
        self.engine.backward(d_logits, samples, &mut self.convolver)?;
        self.engine.commit_moments();
        self.engine.params.step(sgd);
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

pub(crate) fn loss(network: &Network, logits: &[f32], batch: &TrainBatch<'_>) -> (StepReport, Vec<f32>) {
    let mut d_logits = vec![0.0; logits.len()];
    let (mut loss, correct) = ops::softmax_cross_entropy(logits, network.classes, batch.labels, &mut d_logits);
    if let Some(lesson) = &batch.lesson {
        lesson.blend(network.classes, logits, &mut loss, &mut d_logits);
    }
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
        Self::with_weights(network, weights.clone(), parts, par)
    }

    /// As [`AsymMl::new`], with weights that are moved in.
    ///
    /// # Errors
    /// As [`AsymMl::new`].
    pub fn with_weights(network: Network, weights: Weights, parts: AsymMlParts, par: Par) -> Result<Self, ModeError> {
        let engine = Engine::with_weights(network, weights.into(), par).map_err(ExecError::from)?;
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
        Ok(self.engine.forward(images, records.len(), Pass::Inference, 0, &mut self.convolver)?)
    }

    fn answer_losses(&self) -> Result<Vec<Loss>, ExecError> {
        self.convolver.inference_losses()
    }

    fn unkept_losses(&self) -> Result<Unkept, ExecError> {
        let test = self.convolver.inference_losses()?;
        // The input of every split convolution, and the gradient of its output.
        Ok(Unkept { train: [test.clone(), test.clone()].concat(), test })
    }

    fn step(&mut self, batch: TrainBatch<'_>, sgd: SgdStep) -> Result<StepReport, ExecError> {
        let samples = batch.labels.len();
        self.convolver.accountant.begin(batch.records.iter().copied());
        self.engine.set_easing(batch.easing);
        let logits =
            self.engine.forward(batch.images, samples, Pass::Training, batch.dropout_seed, &mut self.convolver)?;
        let (report, d_logits) = loss(&self.engine.network, &logits, &batch);
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
