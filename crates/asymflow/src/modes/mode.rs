//! How a mode runs: infer a batch, train one step, and go on after a loss.

use std::ops::Range;
use std::time::Duration;

use asymflow_engine::streamed::{ModelWeights, StreamError};
use asymflow_engine::timing::Seconds;
use asymflow_engine::{Engine, EngineError, loss::softmax_cross_entropy};
use asymflow_privacy::{Door, Loss, records::RecordAccountant};
use asymflow_residual::backend::{SgdStep, WorkerStats};
use asymflow_zoo::data::Loader;
use asymflow_zoo::{Network, Weights, ops::Easing};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use super::lesson::Lesson;
use super::{ExecError, ModeError};

/// A batch for one training step: as many images, labels and record numbers as there are samples.
#[derive(Clone, Copy, Debug)]
pub struct TrainBatch<'a> {
    images: &'a [f32],
    labels: &'a [u32],
    records: &'a [usize],
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
    /// A batch of one step by itself, seed 0, neither eased nor taught. `images` are samples × input shape, row-major; `labels`
    /// are below the number of classes; `records` are the samples' numbers, for the accountant.
    ///
    /// # Errors
    /// Not as many labels as records, or images that do not divide among them.
    pub fn new(images: &'a [f32], labels: &'a [u32], records: &'a [usize]) -> Result<Self, ExecError> {
        if records.is_empty() {
            return Err(ExecError::Records { images: images.len(), labels: labels.len(), records: 0 });
        }
        Self::sampled(images, labels, records)
    }

    /// As [`TrainBatch::new`], of records that were drawn one by one: there may be none.
    ///
    /// # Errors
    /// As [`TrainBatch::new`].
    pub fn sampled(images: &'a [f32], labels: &'a [u32], records: &'a [usize]) -> Result<Self, ExecError> {
        if labels.len() != records.len() || !images.len().is_multiple_of(records.len().max(1)) {
            let (images, labels, records) = (images.len(), labels.len(), records.len());
            return Err(ExecError::Records { images, labels, records });
        }
        let (easing, lesson) = (Easing::default(), None);
        Ok(Self { images, labels, records, dropout_seed: 0, view: 0, next: None, easing, lesson })
    }

    /// Samples × input shape, row-major.
    pub const fn images(&self) -> &'a [f32] {
        self.images
    }

    /// One a sample.
    pub const fn labels(&self) -> &'a [u32] {
        self.labels
    }

    /// Numbers of the records, one a sample.
    pub const fn records(&self) -> &'a [usize] {
        self.records
    }

    /// How many there are.
    pub const fn samples(&self) -> usize {
        self.records.len()
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
///
/// Whatever is released for more than one step is drawn, kept, then sent: [`Mode::draw`] and [`Mode::draw_queries`] draw it, a
/// checkpoint with [`Mode::released`] keeps it, and only then it is sent. What is drawn for one step alone is charged to the
/// checkpoint before it, by [`Mode::unkept_losses`].
pub trait Mode: Send {
    /// What `epoch` of `epochs` belongs to.
    fn phase(&self, epoch: usize, epochs: usize) -> Phase {
        Phase { epochs: 0..epochs, view: epoch as u64 }
    }

    /// Probability with which every record takes part in a step of `epoch` by itself, which only the trusted part sees: batches are then of any
    /// size, none included. Absent where an epoch takes each record once.
    fn sampling_rate(&self, _epoch: usize) -> Option<f64> {
        None
    }

    /// Draws what an epoch will release, without sending it; true where something was drawn.
    ///
    /// # Errors
    /// A failed part or a refused release.
    fn draw(&mut self, _epoch: usize, _records: &Records<'_>) -> Result<bool, ExecError> {
        Ok(false)
    }

    /// Draws what records will be asked about with, without sending it; true where anything was drawn.
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

    /// The door by which everything leaves; absent where nothing does.
    fn door(&mut self) -> Option<&mut Door>;

    /// Counters of the worker; absent where there is none.
    fn worker(&self) -> Option<WorkerStats>;

    /// Seconds by convolution; empty where the accelerator computes all.
    fn seconds(&self) -> &[Seconds];

    /// How clients are answered; absent where they are not.
    fn answering(&mut self) -> Option<&mut dyn Answering> {
        None
    }
}

/// Answers for clients.
pub trait Answering {
    /// Logits of `samples` records that clients ask about, in the order of `images`. The worker is sent a batch of `padded`
    /// records, whatever the samples, and what it is sent is drawn anew. The door counts them as records from 0 on.
    ///
    /// # Errors
    /// Bad input or a failed part. A worker that was lost has been opened again, so that others can be answered.
    fn answer(
        &mut self,
        images: &[f32],
        samples: usize,
        padded: usize,
        patience: Duration,
    ) -> Result<Vec<f32>, ExecError>;
}

/// Answers by an inference of the whole batch, filled up with blank images.
pub(super) fn answer_padded(
    mode: &mut dyn Mode,
    images: &[f32],
    samples: usize,
    padded: usize,
    patience: Duration,
) -> Result<Vec<f32>, ExecError> {
    let padded = padded.max(samples).max(1);
    let mut images = images.to_vec();
    images.resize(images.len() / samples.max(1) * padded, 0.0);
    let records: Vec<usize> = (0..padded).collect();
    match mode.infer(&images, &records) {
        Ok(mut logits) => {
            logits.truncate(logits.len() / padded * samples);
            Ok(logits)
        }
        Err(error) => {
            if error.is_worker_lost() {
                mode.recover(patience)?;
            }
            Err(error)
        }
    }
}

/// A door whose noise comes of the operating system's randomness.
///
/// # Errors
/// There is none to be had.
pub(super) fn open_door(accountant: RecordAccountant) -> Result<Door, ModeError> {
    Ok(Door::new(accountant, secret_rng()?))
}

/// A generator seeded by the operating system.
///
/// # Errors
/// There is no randomness to be had.
pub(crate) fn secret_rng() -> Result<ChaCha20Rng, ModeError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| ModeError::Randomness(e.to_string()))?;
    Ok(ChaCha20Rng::from_seed(seed))
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

impl TrainState {
    /// Whether every weight and its momentum is finite.
    pub fn is_finite(&self) -> bool {
        self.weights.iter().chain(&self.momentum).all(|value| value.is_finite())
    }
}

/// The weights of a mode that cannot stream them.
pub(super) fn held(weights: ModelWeights) -> Result<Weights, ModeError> {
    match weights {
        ModelWeights::Held(weights) => Ok(weights),
        ModelWeights::Streamed(..) => Err(EngineError::from(StreamError::InferenceOnly).into()),
    }
}

pub(crate) fn engine_state(engine: &Engine) -> TrainState {
    let params = engine.params();
    TrainState { weights: params.flat_values(), momentum: params.flat_momentum(), released: Vec::new() }
}

pub(crate) fn engine_restore(engine: &mut Engine, state: &TrainState) -> Result<(), ExecError> {
    let params = engine.params_mut();
    params.set_flat_values(&state.weights)?;
    Ok(params.set_flat_momentum(&state.momentum)?)
}

pub(crate) fn loss(
    network: &Network,
    logits: &[f32],
    batch: &TrainBatch<'_>,
) -> Result<(StepReport, Vec<f32>), EngineError> {
    let mut d_logits = vec![0.0; logits.len()];
    let (mut loss, correct) = softmax_cross_entropy(logits, network.classes, batch.labels, &mut d_logits)?;
    if let Some(lesson) = &batch.lesson {
        lesson.blend(network.classes, logits, &mut loss, &mut d_logits);
    }
    Ok((StepReport { loss, correct }, d_logits))
}
