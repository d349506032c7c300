//! Experiment files: TOML in, jobs out.

use std::path::{Path, PathBuf};

use asymflow::budget_study::BudgetSpec;
use asymflow::job::{DataSpec, EasingSpec, ModeKind, Schedule, TrainSpec, WorkerTransport};
use asymflow::plan::SplitSpec;
use asymflow::release::PrivacySpec;
use asymflow_privacy::{Precision, Relation};
use asymflow_zoo::Shape;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::delta_section::{DeltaSection, LabelPolicy};
use crate::entry::Entry;
use crate::error::CliError;
use crate::memory::MemorySection;
use crate::serve_experiment::ServeSection;
use crate::shares_experiment::SharesSection;

/// What an experiment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Trains and evaluates one network in every mode.
    Train,
    /// Times every mode, layer by layer.
    Speedup,
    /// Measures how low the rank of activations is.
    RankStudy,
    /// Measures what Delta's split leaves to the residual.
    RankDctStudy,
    /// Loads a service of every mode with clients.
    Serve,
    /// Measures how much memory the trusted part takes.
    MemoryStudy,
    /// Measures queries to two servers on secret shares.
    Shares,
    /// Chooses what each channel computes on secret shares within a budget.
    ActivationBudget,
}

/// A whole experiment file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Version of this format: 1.
    pub schema: u32,
    /// One line.
    pub title: String,
    /// What it is to show.
    pub claim: String,
    /// What it does.
    pub kind: Kind,
    /// The data.
    #[serde(default)]
    pub data: DataSection,
    /// The networks.
    pub model: ModelSection,
    /// The modes and how they split.
    #[serde(default)]
    pub mode: ModeSection,
    /// What guards releases.
    #[serde(default)]
    pub privacy: PrivacySection,
    /// How a network is run as Delta.
    #[serde(default)]
    pub delta: DeltaSection,
    /// The trusted part.
    #[serde(default)]
    pub trusted: TrustedSection,
    /// The worker.
    #[serde(default)]
    pub worker: WorkerSection,
    /// Training.
    #[serde(default)]
    pub train: TrainSection,
    /// For `kind = "speedup"`.
    #[serde(default)]
    pub speedup: SpeedupSection,
    /// For `kind = "rank-study"` and `kind = "rank-dct-study"`.
    #[serde(default)]
    pub study: StudySection,
    /// For `kind = "serve"`.
    #[serde(default)]
    pub serve: ServeSection,
    /// For `kind = "memory-study"`.
    #[serde(default)]
    pub memory: MemorySection,
    /// For `kind = "shares"`.
    #[serde(default)]
    pub shares: SharesSection,
    /// For `kind = "activation-budget"`.
    #[serde(default)]
    pub budget: BudgetSpec,
    /// What decides whether the claim holds.
    #[serde(default)]
    pub report: ReportSection,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// A data set on disk; the built-in procedural set without it. `--data` sets it.
    pub path: Option<PathBuf>,
    /// Training images.
    pub train: Option<usize>,
    /// Test images.
    pub test: Option<usize>,
    /// Seed of the procedural set and of subsets.
    pub seed: u64,
    /// Random crops and flips.
    pub augment: bool,
}

impl Default for DataSection {
    fn default() -> Self {
        Self { path: None, train: None, test: None, seed: 1, augment: true }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Names in the zoo, each with `+ACTIVATION` where it is to have another activation than its own; more than one only for
    /// `train`, `speedup` and `memory-study`.
    pub names: Vec<String>,
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
    pub run: Vec<Entry>,
    /// Name of the decomposition.
    pub decomposition: String,
    /// Rank policy.
    pub rank: String,
    /// Whether the first convolution is split instead of trusted.
    pub split_first: bool,
}

impl Default for ModeSection {
    fn default() -> Self {
        Self {
            run: [ModeKind::Clear, ModeKind::TrustedOnly, ModeKind::Asymml].map(Entry::of).to_vec(),
            decomposition: "gram".to_owned(),
            rank: "fixed:8".to_owned(),
            split_first: false,
        }
    }
}

/// `[privacy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacySection {
    /// `discrete_gaussian`, `insecure_float_noise` or `insecure_none`; for asymml.
    pub mechanism: String,
    /// Standard deviation of the noise on every released value.
    pub sigma: Option<f64>,
    /// l2 norm to which each record's release is clipped.
    pub clip: Option<f64>,
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
        Self { mechanism, sigma: None, clip: None, relation: Relation::Remove, delta: 1e-5, budget_epsilon: None }
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
    /// Device of the worker process that is started: `flex`, `wgpu`, `vulkan` or `cuda`.
    pub device: String,
    /// A worker that runs already, `host:port`, instead of one that is started.
    pub address: Option<String>,
    /// SHA-256 of that worker's certificate.
    pub fingerprint: Option<String>,
    /// File with that worker's token.
    pub token_file: Option<PathBuf>,
    /// Precision on the wire: `f32` or `f16`.
    pub precision: Precision,
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
    /// What tensors travel through. A worker that is started here is on this host.
    pub fn transport(&self) -> WorkerTransport {
        let default = if self.address.is_some() { WorkerTransport::Tcp } else { WorkerTransport::Shm };
        self.transport.unwrap_or(default)
    }
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            device: "flex".to_owned(),
            address: None,
            fingerprint: None,
            token_file: None,
            precision: Precision::F32,
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
            easing: EasingSpec::default(),
            teacher: None,
            teacher_temperature: 4.0,
            teacher_weight: 0.5,
            keep_diverged: false,
        }
    }
}

/// `[speedup]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeedupSection {
    /// Samples in a batch.
    pub batch: usize,
    /// Timed repetitions.
    pub repeats: usize,
    /// Decompositions AsymML is timed with.
    pub decompositions: Vec<String>,
    /// Whether training steps are timed.
    pub train: bool,
}

impl Default for SpeedupSection {
    fn default() -> Self {
        let decompositions = vec!["gram".to_owned(), "shared-basis".to_owned()];
        Self { batch: 32, repeats: 5, decompositions, train: true }
    }
}

/// `[study]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudySection {
    /// Test images measured.
    pub samples: usize,
    /// Ranks.
    pub ranks: Vec<usize>,
    /// Decompositions; for `rank-study`.
    pub methods: Vec<String>,
    /// Sides of the low frequencies kept of a block; for `rank-dct-study`.
    pub kept: Vec<usize>,
}

impl Default for StudySection {
    fn default() -> Self {
        let methods = ["exact-svd", "gram", "alternating", "shared-basis"].map(str::to_owned).to_vec();
        Self { samples: 64, ranks: vec![1, 2, 4, 8, 16, 32], methods, kept: vec![2, 4, 8, 12, 16] }
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
    /// The claim fails when the median of such queries takes longer.
    pub max_online_seconds: Option<f64>,
}

/// Reads an experiment file, applies its `[smoke]` table where asked, then the overrides.
pub fn read(path: &Path, smoke: bool, overrides: &[String]) -> Result<Experiment, CliError> {
    let mut table = read_table(path)?;
    if let Some(base) = table.remove("extends") {
        let Some(name) = base.as_str() else {
            return Err(CliError::usage("extends must be the name of a file", "write extends = \"base.toml\""));
        };
        let mut merged = read_table(&path.with_file_name(name))?;
        if merged.contains_key("extends") {
            return Err(CliError::usage(format!("{name} extends another file"), "extend once only"));
        }
        merge(&mut merged, table);
        table = merged;
    }
    if let Some(Value::Table(changes)) = table.remove("smoke")
        && smoke
    {
        merge(&mut table, changes);
    }
    for item in overrides {
        set(&mut table, item)?;
    }
    check(table, path)
}

fn read_table(path: &Path) -> Result<Table, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage(format!("cannot read {}: {e}", path.display()), "`cargo xtask list` shows the experiments")
    })?;
    text.parse().map_err(|e| CliError::usage(format!("{}: {e}", path.display()), "mend the TOML"))
}

fn check(table: Table, path: &Path) -> Result<Experiment, CliError> {
    let experiment: Experiment =
        Value::Table(table).try_into().map_err(|e: toml::de::Error| unknown_key(path, e.message()))?;
    if experiment.schema != 1 {
        let message = format!("{}: schema {} is not known", path.display(), experiment.schema);
        return Err(CliError::usage(message, "this version reads schema = 1"));
    }
    if experiment.model.names.is_empty() || experiment.mode.run.is_empty() || experiment.train.seeds.is_empty() {
        return Err(CliError::usage(
            format!("{}: model.names, mode.run and train.seeds need at least one entry", path.display()),
            "add one",
        ));
    }
    let takes_several = matches!(experiment.kind, Kind::Train | Kind::Speedup | Kind::MemoryStudy);
    if !takes_several && experiment.model.names.len() > 1 {
        let message = format!("{}: only train, speedup and memory-study take several models", path.display());
        return Err(CliError::usage(message, "name one model"));
    }
    Ok(experiment)
}

/// Turns serde's list of expected keys into the nearest one.
fn unknown_key(path: &Path, message: &str) -> CliError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let help = match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown") => known
            .iter()
            .min_by_key(|name| strsim::damerau_levenshtein(unknown, name))
            .map_or_else(String::new, |nearest| format!("did you mean `{nearest}`?")),
        _ => "see the keys in crates/asymflow-cli/README.md".to_owned(),
    };
    CliError::usage(format!("{}: {}", path.display(), message.trim()), help)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Applies `section.key=value`; the value is TOML, or a bare string.
fn set(table: &mut Table, item: &str) -> Result<(), CliError> {
    let usage = || CliError::usage(format!("--set {item}: not of the form key=value"), "e.g. --set train.epochs=3");
    let (key, value) = item.split_once('=').ok_or_else(usage)?;
    let parsed: Table = format!("value = {value}")
        .parse()
        .unwrap_or_else(|_| Table::from_iter([("value".to_owned(), Value::String(value.to_owned()))]));
    let value = parsed.into_iter().next().map(|(_, value)| value).ok_or_else(usage)?;
    let mut change = value;
    for part in key.trim().rsplit('.') {
        change = Value::Table(Table::from_iter([(part.to_owned(), change)]));
    }
    match change {
        Value::Table(change) => merge(table, change),
        _ => return Err(usage()),
    }
    Ok(())
}

impl Experiment {
    /// The data a job reads.
    pub fn data_spec(&self) -> DataSpec {
        let DataSection { path, train, test, seed, augment } = self.data.clone();
        DataSpec { path, train, test, seed, augment }
    }

    /// How a network is split.
    pub fn split_spec(&self) -> SplitSpec {
        let ModeSection { decomposition, rank, split_first, .. } = self.mode.clone();
        SplitSpec { decomposition, rank, split_first }
    }

    /// What guards releases.
    pub fn privacy_spec(&self) -> PrivacySpec {
        let PrivacySection { mechanism, sigma, clip, relation, delta, budget_epsilon } = self.privacy.clone();
        PrivacySpec { mechanism, sigma, clip, relation, delta, budget_epsilon }
    }

    /// How a network is trained with `seed`.
    pub fn train_spec(&self, seed: u64) -> TrainSpec {
        let t = &self.train;
        TrainSpec {
            epochs: t.epochs,
            batch: t.batch,
            learning_rate: t.learning_rate,
            momentum: t.momentum,
            weight_decay: t.weight_decay,
            schedule: t.schedule,
            seed,
            evaluate_every: t.evaluate_every,
            clip_norm: t.clip_norm,
            coefficient_rate: t.coefficient_rate,
            easing: t.easing,
            teacher: None,
            keep_diverged: t.keep_diverged,
        }
    }

    /// The insecure settings in force for an entry.
    pub fn insecure(&self, entry: Entry) -> Vec<&'static str> {
        let mut insecure = Vec::new();
        match entry.kind {
            ModeKind::Clear => insecure.push("insecure_none"),
            // The noise is sampled in floating point, which the guarantee does not cover, or there is none.
            ModeKind::Asymml => {
                let names = ["insecure_none", "insecure_float_noise"];
                insecure.extend(names.into_iter().find(|name| *name == self.privacy.mechanism));
            }
            ModeKind::Delta if entry.needs_worker() => {
                if entry.epsilon.or(self.delta.epsilon).is_none_or(f64::is_infinite) {
                    insecure.push("insecure_sign");
                }
                insecure.extend(self.delta.variant.insecure_name());
                if self.delta.labels == LabelPolicy::Public {
                    insecure.push("public_labels");
                }
            }
            ModeKind::NaiveDp => insecure.push("public_labels"),
            ModeKind::TrustedOnly | ModeKind::Shares | ModeKind::Delta => {}
        }
        if self.trusted.seal && self.trusted.runtime == "sim" {
            insecure.push("insecure_host_key");
        }
        if entry.needs_worker() && self.worker.insecure_plaintext {
            insecure.push("insecure_plaintext");
        }
        insecure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        "schema = 1\ntitle = \"t\"\nclaim = \"c\"\nkind = \"train\"\n[model]\nnames = [\"demo-cnn\"]\n";

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let (_folder, path) = write(&format!("{MINIMAL}[train]\nepoch = 3\n"));
        let error = read(&path, false, &[]).unwrap_err();
        assert_eq!(error.help(), "did you mean `epochs`?");
    }

    #[test]
    fn overrides_win_over_smoke_and_smoke_over_the_file() {
        let (_folder, path) =
            write(&format!("{MINIMAL}[train]\nepochs = 9\nbatch = 7\n[smoke.train]\nepochs = 2\nbatch = 3\n"));
        assert_eq!(read(&path, false, &[]).unwrap().train.epochs, 9);
        let experiment = read(&path, true, &["train.batch=5".to_owned()]).unwrap();
        assert_eq!((experiment.train.epochs, experiment.train.batch), (2, 5));
    }

    #[test]
    fn a_file_extends_another_once() {
        let (folder, path) = write("extends = \"base.toml\"\n[train]\nbatch = 4\n");
        std::fs::write(folder.path().join("base.toml"), format!("{MINIMAL}[train]\nepochs = 6\n")).unwrap();
        let experiment = read(&path, false, &[]).unwrap();
        assert_eq!((experiment.train.epochs, experiment.train.batch), (6, 4));
    }

    #[test]
    fn shared_memory_is_for_a_worker_that_is_started_here() {
        let (_folder, path) = write(MINIMAL);
        let transport = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|&item| item.to_owned()).collect();
            read(&path, false, &set).map(|experiment| experiment.worker.transport())
        };
        assert_eq!(transport(&[]).unwrap(), WorkerTransport::Shm);
        assert_eq!(transport(&["worker.address=10.0.0.1:1"]).unwrap(), WorkerTransport::Tcp);
        assert_eq!(transport(&["worker.transport=tcp"]).unwrap(), WorkerTransport::Tcp);
        assert_eq!(transport(&["worker.address=127.0.0.1:1", "worker.transport=shm"]).unwrap(), WorkerTransport::Shm);
        assert!(transport(&["worker.transport=udp"]).is_err());
    }

    #[test]
    fn strings_may_be_set_without_quotes() {
        let (_folder, path) = write(MINIMAL);
        let experiment = read(&path, false, &["mode.rank=fixed:4".to_owned()]).unwrap();
        assert_eq!(experiment.mode.rank, "fixed:4");
        assert!(read(&path, false, &["nonsense".to_owned()]).is_err());
    }
}
