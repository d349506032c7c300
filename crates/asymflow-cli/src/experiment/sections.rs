//! The sections of an experiment file.

use std::path::PathBuf;

use asymflow::job::{EasingSpec, Schedule, WorkerTransport};
use asymflow::memory::parse_bytes;
use asymflow_privacy::{accountants::Relation, payload::Precision};
use asymflow_zoo::data::Filter;
use asymflow_zoo::network::Shape;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// A data set on disk; the built-in procedural set without it. `--data` sets it.
    pub path: Option<PathBuf>,
    /// What reads the data at `path`, where a program has registered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<String>,
    /// Training images.
    pub train: Option<usize>,
    /// Test images.
    pub test: Option<usize>,
    /// Seed of the procedural set and of subsets.
    pub seed: u64,
    /// Random crops and flips.
    pub augment: bool,
    /// Brings all images to one size, `{}` to that of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<ResizeSection>,
}

/// `[data.resize]`, as Pillow and torchvision resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResizeSection {
    /// Rows; the network's without it.
    pub height: Option<usize>,
    /// Columns; the network's without it.
    pub width: Option<usize>,
    /// Pixels to which the shorter side is brought before the centre is cut out; images are stretched without it.
    pub shorter: Option<usize>,
    /// `nearest`, `bilinear` or `bicubic`.
    pub filter: Filter,
}

impl Default for DataSection {
    fn default() -> Self {
        Self { path: None, reader: None, train: None, test: None, seed: 1, augment: true, resize: None }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Names, each with `+ACTIVATION` where it is to have another activation than its own: of the zoo, of networks that a program
    /// registered, and that of `file`. More than one only for kinds that compare networks.
    #[serde(default)]
    pub names: Vec<String>,
    /// A network of one's own, JSON or TOML as [`Network`](asymflow_zoo::Network) is written; `names` is its name where it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Classes.
    #[serde(default = "ten")]
    pub classes: usize,
    /// Shape of the images, where the model leaves it open.
    #[serde(default)]
    pub input: Option<Shape>,
    /// A safetensors file to start from instead of weights made by seed.
    #[serde(default)]
    pub weights: Option<PathBuf>,
}

const fn ten() -> usize {
    10
}

/// `[mode]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModeSection {
    /// Modes to run, in order.
    pub run: Vec<String>,
    /// Name of the decomposition.
    pub decomposition: String,
    /// Rank policy, or `auto`: what pays by measurement on this machine.
    pub rank: String,
    /// Whether the first convolution is split instead of trusted.
    pub split_first: bool,
}

impl Default for ModeSection {
    fn default() -> Self {
        Self {
            run: ["clear", "trusted-only", "asymml"].map(str::to_owned).to_vec(),
            decomposition: "per-sample".to_owned(),
            rank: "fixed:8".to_owned(),
            split_first: false,
        }
    }
}

/// `[privacy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacySection {
    /// `discrete_gaussian`, `residual_noise`, `insecure_float_noise` or `insecure_none`; for asymml.
    pub mechanism: String,
    /// Standard deviation of the noise on every released value.
    pub sigma: Option<f64>,
    /// l2 norm to which each record's release is clipped.
    pub clip: Option<f64>,
    /// Standard deviation of the noise in multiples of the size of what is released; for `residual_noise`.
    pub kappa: Option<f64>,
    /// `remove` or `replace`.
    pub relation: Relation,
    /// δ at which ε is reported.
    pub delta: f64,
    /// The largest ε that any record may lose; a release beyond it is refused.
    pub budget_epsilon: Option<f64>,
}

impl Default for PrivacySection {
    fn default() -> Self {
        let mechanism = "insecure_none".to_owned();
        Self {
            mechanism,
            sigma: None,
            clip: None,
            kappa: None,
            relation: Relation::Remove,
            delta: 1e-5,
            budget_epsilon: None,
        }
    }
}

/// `[trusted]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustedSection {
    /// `sim`, `gramine-direct` or `gramine-sgx`.
    pub runtime: String,
    /// For Gramine: the program beside its manifest, as `cargo xtask enclave manifest` leaves it.
    pub app: PathBuf,
    /// Seals checkpoints under the trusted part's key, so that the host can neither read nor change them.
    pub seal: bool,
    /// Folder that keeps the numbers of sealed checkpoints, on other storage than the runs; beside them without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<PathBuf>,
    /// Threads; 0 takes one a core.
    pub threads: usize,
    /// The most heap that a job may be planned to take, e.g. `2GiB`; one above it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
}

impl Default for TrustedSection {
    fn default() -> Self {
        let app = "target/enclave/asymflow-enclaved".into();
        Self { runtime: "sim".to_owned(), app, seal: false, guard: None, threads: 0, memory_limit: None }
    }
}

/// `[worker]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSection {
    /// Device of the worker process that is started: `native`, `flex`, `wgpu`, `vulkan`,
    /// `cuda` or `remote:KEY@IP:PORT`; for experiments of speed also `null` and `model:TFLOPS:GB/s:µs`.
    pub device: String,
    /// The program of that process, which may know more devices: a path, or a name beside this program or on PATH.
    pub program: PathBuf,
    /// A worker that runs already, `host:port`, instead of one that is started.
    pub address: Option<String>,
    /// SHA-256 of that worker's certificate.
    pub fingerprint: Option<String>,
    /// File with that worker's token.
    pub token_file: Option<PathBuf>,
    /// Precision on the wire: `f32` or `f16`.
    pub precision: Precision,
    /// Whether `asymml` verifies every answer.
    pub verify: bool,
    /// Whether two halves of a batch leapfrog through the layers of an inference by `asymml`: one is computed on while the worker has
    /// the other.
    pub leapfrog: bool,
    /// No TLS to the worker.
    pub insecure_plaintext: bool,
    /// What tensors travel through: `tcp`, or `shm` with a worker on the same host, which without this is taken for a worker
    /// that is started here.
    pub transport: Option<WorkerTransport>,
    /// Threads of a CPU device; 0 takes one a core.
    pub threads: usize,
    /// Longest wait for one answer.
    pub timeout_seconds: u64,
    /// Longest wait for a lost worker to come back.
    pub patience_seconds: u64,
}

impl WorkerSection {
    /// What tensors travel through. A worker that is started here is on this host; an enclave sees no memory of the host that its
    /// manifest does not name.
    pub fn transport(&self, runtime: &str) -> WorkerTransport {
        let is_shared = self.address.is_none() && runtime == "sim";
        let default = if is_shared { WorkerTransport::Shm } else { WorkerTransport::Tcp };
        self.transport.unwrap_or(default)
    }
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            device: "native".to_owned(),
            program: "asymflow-worker".into(),
            address: None,
            fingerprint: None,
            token_file: None,
            precision: Precision::F32,
            verify: true,
            leapfrog: false,
            insecure_plaintext: false,
            transport: None,
            threads: 0,
            timeout_seconds: 300,
            patience_seconds: 60,
        }
    }
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
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
    /// `constant` or `cosine`.
    pub schedule: Schedule,
    /// Seeds; each is a run of its own. `--seeds N` takes 1 to N.
    pub seeds: Vec<u64>,
    /// Evaluate after every so many epochs.
    pub evaluate_every: usize,
    /// The largest l2 norm of a step's gradient; without it there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f32>,
    /// Factor of the learning rate of coefficients and votes of activations.
    pub coefficient_rate: f32,
    /// Factor of the learning rate of the first layer; that of the last is 1, those between grow geometrically.
    pub first_layer_rate: f32,
    /// What eases activations made for secret shares.
    pub easing: EasingSpec,
    /// A network of `model.names` that those after it learn from beside the labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Temperature of the teacher's and the student's answers.
    pub teacher_temperature: f32,
    /// Share of the teacher's loss; the labels' has the rest.
    pub teacher_weight: f32,
    /// Whether a network whose values stop being finite is reported as diverged instead of ending the experiment.
    pub keep_diverged: bool,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: 5,
            batch: 128,
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: Schedule::Cosine,
            seeds: vec![1],
            evaluate_every: 1,
            clip_norm: None,
            coefficient_rate: 1.0,
            first_layer_rate: 1.0,
            easing: EasingSpec::default(),
            teacher: None,
            teacher_temperature: 4.0,
            teacher_weight: 0.5,
            keep_diverged: false,
        }
    }
}

/// `[report]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSection {
    /// The claim fails when `asymml` is less accurate than `clear` by more than this share.
    pub max_accuracy_gap: Option<f64>,
    /// The claim fails when a query to two servers (full ReLU, shared weights, loopback) moves more than so many 10⁶ bytes.
    pub max_online_megabytes: Option<f64>,
    /// `shares`: most megabytes of a query online and dealt, of the same setting.
    pub max_total_megabytes: Option<f64>,
    /// `shares`: the same where ranges are checked.
    pub max_checked_megabytes: Option<f64>,
    /// The claim fails when the median of such queries takes longer.
    pub max_online_seconds: Option<f64>,
}

/// A size of the experiment file.
pub fn size(key: &str, text: &str) -> Result<u64, CliError> {
    parse_bytes(text).map_err(|e| CliError::usage(format!("{key}: {e}"), "e.g. \"2GiB\""))
}
