//! What the host asks of the trusted part, and what it hears back: the messages of their protocol.

use std::path::PathBuf;

use asymflow_engine::timing::Seconds;
use asymflow_privacy::records::LedgerEntry;
use asymflow_zoo::Network;
use asymflow_zoo::data::{Normalization, Preparation};
use serde::{Deserialize, Serialize};

use crate::memory::{MemoryPlan, MemoryUse};
use crate::modes::{ModeRef, PrivacyTerms};
use crate::plan::Plan;

/// Where the data comes from. The trusted part reads it itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSpec {
    /// A folder or archive in a known format; the built-in procedural set without it.
    pub path: Option<PathBuf>,
    /// Name of a registered reader for what lies there ([`Registry::with_data`](crate::modes::Registry::with_data)).
    #[serde(default)]
    pub reader: Option<String>,
    /// Training images used: a class-balanced subset of a data set, or as many as are made.
    pub train: Option<usize>,
    /// Test images used.
    pub test: Option<usize>,
    /// Seed of the procedural set and of subsets.
    pub seed: u64,
    /// Random crops and flips.
    pub augment: bool,
    /// What is done to every image before anything else.
    #[serde(default)]
    pub prepare: Preparation,
}

/// How the learning rate moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Half a cosine from the initial rate to zero over all steps.
    #[default]
    Cosine,
}

/// How a network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// Passes over the training images.
    pub epochs: usize,
    /// Samples in a step.
    pub batch: usize,
    /// Initial learning rate.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
    /// l2 penalty.
    pub weight_decay: f32,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Seed of weights, order, augmentation and dropout.
    pub seed: u64,
    /// The test images are classified after every so many epochs, and after the last.
    pub evaluate_every: usize,
    /// The largest l2 norm of a step's gradient; none for no limit.
    #[serde(default)]
    pub clip_norm: Option<f32>,
    /// Factor of the learning rate of coefficients and votes of activations.
    #[serde(default = "one")]
    pub coefficient_rate: f32,
    /// Factor of the learning rate of the first layer; that of the last is 1, those between grow geometrically.
    #[serde(default = "one")]
    pub first_layer_rate: f32,
    /// What eases activations made for secret shares.
    #[serde(default)]
    pub easing: EasingSpec,
    /// A trained network whose answers are learned beside the labels.
    #[serde(default)]
    pub teacher: Option<TeacherSpec>,
    /// Whether a value that stops being finite ends the run with a report instead of an error.
    #[serde(default)]
    pub keep_diverged: bool,
}

impl TrainSpec {
    /// Whether the test images are classified after `epoch`, counted from 0.
    pub fn is_evaluated(&self, epoch: usize) -> bool {
        epoch + 1 == self.epochs || (epoch + 1).is_multiple_of(self.evaluate_every.max(1))
    }

    /// How often the test images are classified.
    pub fn evaluations(&self) -> usize {
        self.epochs.div_ceil(self.evaluate_every.max(1))
    }
}

const fn one() -> f32 {
    1.0
}

/// How activations are eased into what they are to be, as [`asymflow_zoo::ops::Easing`] defines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EasingSpec {
    /// Epochs over which shared decisions grow from none (plain ReLU) to all.
    pub anneal_epochs: usize,
    /// Whether decisions pass a gradient to their votes.
    pub straight_through: bool,
    /// Magnitude beyond which inputs of quadratics are penalised; none for no penalty.
    pub range_limit: Option<f32>,
    /// Weight of that penalty.
    pub range_weight: f32,
}

/// A network to learn from (Hinton, Vinyals and Dean, 2015): its loss beside the labels' is
/// T²·KL(softmax(teacher / T) ‖ softmax(student / T)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherSpec {
    /// A model file, as a run leaves it; its weights are public.
    pub model: PathBuf,
    /// T.
    pub temperature: f32,
    /// Share of the teacher's loss, in [0, 1]; the labels' has the rest.
    pub weight: f32,
}

/// What tensors travel through between the trusted part and the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerTransport {
    /// The connection.
    #[default]
    Tcp,
    /// Shared memory, with a worker on the same host; where there is none, the connection.
    Shm,
}

/// Where the worker is and how it is trusted to be the right one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// `host:port`.
    pub address: String,
    /// SHA-256 of its certificate, in hex; absent only with `insecure_plaintext`.
    pub fingerprint: Option<String>,
    /// The shared secret.
    pub token: String,
    /// No TLS.
    pub insecure_plaintext: bool,
    /// What tensors travel through.
    pub transport: WorkerTransport,
    /// Longest wait for one answer.
    pub timeout_seconds: u64,
    /// Longest wait for a lost worker to come back.
    pub patience_seconds: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// Train, and evaluate.
    Train(TrainSpec),
    /// Measure something ([`Study::task`](crate::studies::Study::task)).
    Study(StudyRef),
}

/// A study and its settings as they travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudyRef {
    /// Its name.
    pub name: String,
    /// Samples of the largest batch that is sent to a worker.
    pub batch: usize,
    /// Its settings in postcard.
    pub settings: Vec<u8>,
}

/// One job of the trusted part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// How the network is executed.
    pub mode: ModeRef,
    /// The network.
    pub network: Network,
    /// The data.
    pub data: DataSpec,
    /// What every ε is said of.
    pub terms: PrivacyTerms,
    /// The worker, for the modes that have one.
    pub worker: Option<WorkerSpec>,
    /// Where checkpoints are sealed; the host gets them without one.
    pub vault: Option<VaultSpec>,
    /// Threads of the trusted part.
    pub threads: usize,
    /// The most heap that the trusted part may be planned to take; a job above it is refused before it begins.
    pub memory_limit_bytes: Option<u64>,
    /// What is to be done.
    pub task: Task,
}

/// Where a job's checkpoints are sealed instead of being given to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultSpec {
    /// Folder of the sealed checkpoint. It belongs to one job and its resumptions.
    pub folder: PathBuf,
    /// Folder that keeps the checkpoint's number, on other storage.
    pub guard: PathBuf,
}

/// What the body of a [`ToTrusted::Start`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Nothing: weights are initialised by seed.
    Empty,
    /// Flattened f32 weights, little-endian.
    Weights,
    /// A checkpoint to continue from; an empty one is the latest of the job's vault.
    Checkpoint,
}

/// From the host to the trusted part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToTrusted {
    /// Start a job.
    Start(Box<JobSpec>, Body),
    /// Finish the step, send a checkpoint and end.
    Stop,
}

/// Something the user should know and a log should keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// No policy holds the job to anything: the host decides what is released.
    HostDecides,
    /// Something that is done otherwise than it was asked for, in words.
    Said(String),
    /// The worker was lost and opened again, and steps are done again.
    WorkerReopened {
        /// Epoch, from 0.
        epoch: usize,
        /// Step within it, from 0.
        step: usize,
        /// The step of this epoch that training goes on from: that one, or an earlier one where the worker took steps
        /// with it that it alone knew.
        from: usize,
        /// Why it was lost.
        reason: String,
    },
}

/// What one epoch measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// All epochs.
    pub epochs: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Share of training samples classified correctly while training.
    pub train_accuracy: f64,
    /// Share of test images classified correctly, where they were.
    pub test_accuracy: Option<f64>,
    /// ε of the record that lost most; absent where nothing is released, infinite where there is no guarantee.
    pub epsilon: Option<f64>,
    /// Wall-clock seconds of training in this epoch.
    pub train_seconds: f64,
    /// Wall-clock seconds of evaluation.
    pub evaluate_seconds: f64,
}

/// Bytes between the trusted part and the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// To the worker.
    pub to_worker: u64,
    /// From it.
    pub from_worker: u64,
}

/// What a finished training measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Whether it ended because a value was no longer finite.
    pub diverged: bool,
    /// Training images used.
    pub train_images: usize,
    /// Test images used.
    pub test_images: usize,
    /// Share of test images classified correctly at the end.
    pub test_accuracy: Option<f64>,
    /// Mean training loss of the last epoch.
    pub loss: f64,
    /// ε of the record that lost most; absent where nothing is released.
    pub epsilon: Option<f64>,
    /// Samples trained, counting each epoch, in this process.
    pub trained_samples: u64,
    /// Samples classified in this process.
    pub inferred_samples: u64,
    /// Bytes of training.
    pub train_traffic: Traffic,
    /// Bytes of evaluation.
    pub inference_traffic: Traffic,
    /// Wall-clock seconds of training.
    pub train_seconds: f64,
    /// Wall-clock seconds of evaluation.
    pub inference_seconds: f64,
    /// Seconds by part, over all convolutions.
    pub parts: Seconds,
    /// Seconds by convolution.
    pub layers: Vec<(String, Seconds)>,
    /// How often the worker was opened again.
    pub reopened: usize,
    /// Where each convolution was computed; absent in `clear` and `delta`.
    pub plan: Option<Plan>,
    /// How images were normalised: statistics of the training images.
    pub normalization: Normalization,
    /// Names of the classes.
    pub class_names: Vec<String>,
    /// The most memory that the process held.
    pub memory: MemoryUse,
    /// What was planned.
    pub memory_plan: Option<MemoryPlan>,
}

/// What a finished job measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobReport {
    /// Of [`Task::Train`].
    Train(Box<TrainReport>),
    /// Of [`Task::Study`], in postcard ([`Study::report`](crate::studies::Study::report)).
    Study(Vec<u8>),
}

/// Coarse kinds of failure: what crosses the boundary says no more than the host may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureCode {
    /// The job cannot be done as it is described.
    Job,
    /// The data cannot be read.
    Data,
    /// A value was not finite. Which one is not said: it is private.
    NonFinite,
    /// The worker could not be opened or did not come back.
    Worker,
    /// A release was refused; nothing left.
    Release,
    /// The checkpoint is unusable.
    Checkpoint,
    /// The connection to the host failed.
    Host,
}

/// A failed job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub code: FailureCode,
    /// In words, from public facts: names of layers, paths, addresses, limits; never values of data.
    pub detail: String,
}

/// From the trusted part to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromTrusted {
    /// It runs and speaks this protocol.
    Ready,
    /// The data is read and the plan made.
    Planned {
        /// Training images.
        train_images: usize,
        /// Test images.
        test_images: usize,
        /// What they were read from.
        data: String,
        /// The plan; absent in `clear`.
        plan: Option<Plan>,
    },
    /// One training step.
    Step {
        /// Epoch, from 0.
        epoch: usize,
        /// Step within it, from 0.
        step: usize,
        /// Its loss.
        loss: f64,
    },
    /// One epoch.
    Epoch(EpochReport),
    /// Receipts absorbed since the last such message.
    Ledger(Vec<LedgerEntry>),
    /// The body is a checkpoint, or empty where it was sealed.
    Checkpoint {
        /// Whole epochs done.
        epoch: usize,
        /// Steps done of the next.
        step: usize,
    },
    /// The body is the weights of the latest checkpoint, flattened f32, little-endian; for jobs that seal theirs.
    Weights,
    /// Something to know.
    Notice(Notice),
    /// The job is done.
    Done(Box<JobReport>),
    /// The job failed.
    Failed(Failure),
}
