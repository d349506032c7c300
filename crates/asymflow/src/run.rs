//! One job from beginning to end, as the enclave process runs it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use asymflow_linalg::{Decomposer, by_name};
use asymflow_privacy::Precision;
use asymflow_residual::{OpenError, ResidualBackend};
use asymflow_zoo::data::{self, Augment, Batch, DataError, DataSource, Loader, Normalization, Split};
use asymflow_zoo::delta::{DeltaError, delta};
use asymflow_zoo::{Network, Weights, WeightsError};
use faer::Par;
use thiserror::Error;

use crate::accounting::RecordAccountant;
use crate::checkpoint::{Checkpoint, CheckpointError, from_f32_bytes};
use crate::clear::Clear;
use crate::delta::{
    Delta, DeltaParts, DeltaSpec, DoorError, Labels, Sampling, SplitStudyReport, SplitStudySpec, Variant, split_study,
};
use crate::job::{
    Body, DataSpec, EasingSpec, Failure, FailureCode, FromTrusted, JobReport, JobSpec, ModeKind, SharesSpec, Task,
    TrainReport, TrainSpec,
};
use crate::memory::{MemoryError, MemoryPlan, MemoryUse};
use crate::memory_study::memory_study;
use crate::modes::{AsymMl, AsymMlParts, Mode, ModeError, TrustedOnly};
use crate::naive::{NaiveError, NaiveSpec, noised};
use crate::plan::{Plan, PlanError, SplitSpec};
use crate::release::PrivacySpec;
use crate::speedup::speedup;
use crate::streamed::{ModelWeights, StreamError};
use crate::study::{RankStudyReport, RankStudySpec, rank_study};
use crate::teaching::{Teacher, TeacherError};
use crate::train::{HostGone, Observer, TrainError, Training};
use crate::trusted::{ExecError, Program};

/// Why a job failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data does not fit the network.
    #[error("images of {images:?} with {classes} classes do not fit network {network}")]
    Fit {
        /// Shape of the images.
        images: asymflow_zoo::Shape,
        /// Classes of the data.
        classes: usize,
        /// The network.
        network: String,
    },
    /// The split cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No decomposition of that name.
    #[error("unknown decomposition {0:?}")]
    Decomposition(String),
    /// The spectrum of an activation could not be computed.
    #[error("layer {layer}: {error}")]
    Spectrum {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: asymflow_linalg::spectrum::SpectrumError,
    },
    /// Delta's networks cannot be made.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// Images could not be noised.
    #[error(transparent)]
    Naive(#[from] NaiveError),
    /// A mode lacks the settings it needs.
    #[error("mode {mode} needs {what}")]
    Settings {
        /// The mode.
        mode: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// A setting of no use.
    #[error("{what} of {got} is out of range {range}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Its value.
        got: f32,
        /// What it may be.
        range: &'static str,
    },
    /// There is no teacher.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// A mode that this program was built without.
    #[error("mode {mode} is not built in: it needs the feature {feature}")]
    NotBuilt {
        /// The mode.
        mode: &'static str,
        /// The feature that has it.
        feature: &'static str,
    },
    /// A mode that needs a worker has none.
    #[error("mode {0} needs a worker")]
    NoWorker(&'static str),
    /// The given weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The mode cannot be set up.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The checkpoint is unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A number in the job is out of range.
    #[error("{what} must be at least 1")]
    Zero {
        /// Which number.
        what: &'static str,
    },
    /// It would take more memory than it may.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host is gone.
    #[error(transparent)]
    Host(#[from] HostGone),
}

impl From<ExecError> for RunError {
    fn from(error: ExecError) -> Self {
        Self::Mode(error.into())
    }
}

impl RunError {
    /// What the host may know of this failure.
    pub fn failure(&self) -> Failure {
        let exec = match self {
            Self::Mode(ModeError::Exec(exec)) | Self::Train(TrainError::Exec(exec)) => Some(exec),
            _ => None,
        };
        if let Some(layer) = exec.and_then(ExecError::non_finite_layer) {
            // The index would say where in a private tensor the value stands.
            let detail = format!("layer {layer}: a value is not finite");
            return Failure { code: FailureCode::NonFinite, detail };
        }
        let code = match (self, exec) {
            (_, Some(ExecError::Release { layer, .. })) => {
                let detail = format!("layer {layer}: a release was refused; nothing left");
                return Failure { code: FailureCode::Release, detail };
            }
            (_, Some(ExecError::Decompose { layer, .. })) => {
                let detail = format!("layer {layer}: a batch could not be decomposed");
                return Failure { code: FailureCode::NonFinite, detail };
            }
            (_, Some(ExecError::Split(_) | ExecError::Door(DoorError::Clip(_)))) => {
                let detail = "features: a value is not finite".to_owned();
                return Failure { code: FailureCode::NonFinite, detail };
            }
            (_, Some(ExecError::Budget(_) | ExecError::Door(DoorError::Release(_)))) => FailureCode::Release,
            (_, Some(ExecError::Open(_) | ExecError::Submit { .. } | ExecError::Collect { .. })) => FailureCode::Worker,
            (Self::Data(_) | Self::Fit { .. }, _) => FailureCode::Data,
            (Self::Checkpoint(_) | Self::Train(TrainError::Checkpoint(_)), _) => FailureCode::Checkpoint,
            (Self::Host(_) | Self::Train(TrainError::Host(_)), _) => FailureCode::Host,
            _ => FailureCode::Job,
        };
        Failure { code, detail: self.to_string() }
    }
}

/// Opens the backend that a job's worker section names.
pub type OpenBackend<'a> = &'a dyn Fn(&JobSpec) -> Result<Arc<dyn ResidualBackend>, OpenError>;

/// Runs one job.
///
/// # Errors
/// Whatever stops it; [`RunError::failure`] says what of it the host may know.
pub fn run(
    job: &JobSpec,
    body: Body,
    bytes: Vec<u8>,
    open: OpenBackend<'_>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<JobReport, RunError> {
    job.check_memory()?;
    let threads = NonZeroUsize::new(job.threads).ok_or(RunError::Zero { what: "trusted.threads" })?;
    let par = if threads.get() == 1 { Par::Seq } else { Par::rayon(threads.get()) };
    job.network.validate().map_err(ExecError::from)?;
    let runner = Runner { job, open, stop, par };
    match &job.task {
        Task::Train(spec) => runner.train(spec, body, bytes, observer),
        Task::Speedup(spec) => {
            let weights = Weights::init(&job.network, spec.seed);
            let backend = open(job).map_err(ExecError::from)?;
            Ok(JobReport::Speedup(speedup(job, spec, &weights, &backend, par)?))
        }
        Task::Memory(spec) => Ok(JobReport::Memory(memory_study(job, spec, open, par)?)),
        Task::RankStudy(study, spec) => runner.study(study, spec, body, bytes, observer),
        Task::SplitStudy(study, spec) => runner.split_study(study, spec, body, bytes, observer),
    }
}

struct Runner<'a> {
    job: &'a JobSpec,
    open: OpenBackend<'a>,
    stop: &'a AtomicBool,
    par: Par,
}

impl Runner<'_> {
    fn train(
        &self,
        spec: &TrainSpec,
        body: Body,
        bytes: Vec<u8>,
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        check_train(self.job.mode, spec)?;
        let (weights, checkpoint) = start_from(self.job, spec.seed, body, bytes)?;
        let data = load(&self.job.data)?;
        fits(self.job, &data)?;
        Ok(JobReport::Train(Box::new(self.train_on(&data, spec, weights, checkpoint, observer)?.0)))
    }

    fn train_on(
        &self,
        data: &Split,
        spec: &TrainSpec,
        weights: Weights,
        checkpoint: Option<Checkpoint>,
        observer: &mut dyn Observer,
    ) -> Result<(TrainReport, Vec<f32>), RunError> {
        let job = self.job;
        let backend = job.settings().needs_worker().then(|| (self.open)(job)).transpose().map_err(ExecError::from)?;
        let records = data.train.len() + data.test.len();
        let spent = checkpoint.as_ref().map(|c| c.spent.clone()).filter(|spent| spent.len() == records);
        let accountant = spent.map_or_else(|| RecordAccountant::new(records), RecordAccountant::resume);
        let mut accountant = accountant.with_budget(job.budget());
        let noised = self.noised(data, &mut accountant)?;
        let (data, naive_sigma) = noised.as_ref().map_or((data, None), |(data, sigma)| (data, Some(*sigma)));
        let sampling = Sampling { batch: spec.batch, records: data.train.len() };
        let (epochs, split) = (spec.epochs, job.split.clone());
        let parts = Parts { split, epochs, sampling, accountant, shares: job.shares };
        let (mut mode, plan) = build(job.settings(), weights.into(), parts, backend.as_ref(), self.par)?;
        let (train_images, test_images) = (data.train.len(), data.test.len());
        observer.tell(FromTrusted::Planned { train_images, test_images, plan: plan.clone() }, &[])?;
        let training = Training {
            spec,
            augment: job.data.augment,
            delta: job.privacy.delta,
            patience: Duration::from_secs(job.worker.as_ref().map_or(0, |w| w.patience_seconds)),
            network: &job.network.name,
            mode_name: job.mode.name(),
            data,
            stop: self.stop,
        };
        let (input, classes) = (job.network.input.len(), job.network.classes);
        let teacher = spec.teacher.as_ref().map(|spec| Teacher::read(spec, input, classes, self.par)).transpose()?;
        let mut report = training.run(&mut *mode, checkpoint, teacher, observer)?;
        if let Some(plan) = &plan {
            for (layer, conv) in report.layers.iter_mut().zip(&plan.convs) {
                layer.0.clone_from(&conv.layer);
            }
        }
        report.plan = plan;
        report.normalization = Normalization::of(&data.train);
        report.class_names = data.train.class_names().to_vec();
        report.sigma = naive_sigma.or(mode.sigma());
        let weights = mode.state()?.weights;
        report.memory_plan = MemoryPlan::of_job(job).ok();
        report.memory = MemoryUse::now();
        Ok((report, weights))
    }

    /// The data with noise on every image, for the mode that has it.
    fn noised(&self, data: &Split, accountant: &mut RecordAccountant) -> Result<Option<(Split, f64)>, RunError> {
        let job = self.job;
        if job.mode != ModeKind::NaiveDp {
            return Ok(None);
        }
        let missing = |what| RunError::Settings { mode: job.mode.name(), what };
        let spec = NaiveSpec {
            epsilon: job.naive_epsilon.ok_or(missing("an epsilon"))?,
            delta: job.privacy.delta,
            clip: job.privacy.clip.ok_or(missing("privacy.clip"))?,
            relation: job.privacy.relation,
        };
        Ok(Some(noised(data, spec, accountant)?))
    }

    fn study(
        &self,
        study: &RankStudySpec,
        spec: &TrainSpec,
        body: Body,
        bytes: Vec<u8>,
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        let trained = self.trained(spec, study.samples, body, bytes, observer)?;
        let samples = trained.samples;
        let layers = rank_study(&self.job.network, &trained.weights, &trained.images, samples, study, self.par)?;
        Ok(JobReport::RankStudy(RankStudyReport {
            network: self.job.network.name.clone(),
            samples,
            test_accuracy: trained.test_accuracy,
            layers,
        }))
    }

    fn split_study(
        &self,
        study: &SplitStudySpec,
        spec: &TrainSpec,
        body: Body,
        bytes: Vec<u8>,
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        let missing = RunError::Settings { mode: self.job.mode.name(), what: "a delta section" };
        let shape = &self.job.delta.as_ref().ok_or(missing)?.shape;
        let trained = self.trained(spec, study.samples, body, bytes, observer)?;
        let network = &self.job.network;
        let energies = split_study(network, &trained.weights, shape, &trained.images, study, self.par)?;
        Ok(JobReport::SplitStudy(SplitStudyReport {
            network: network.name.clone(),
            samples: trained.samples,
            test_accuracy: trained.test_accuracy,
            channels: delta(network, shape)?.features.channels,
            block: shape.block,
            energies,
        }))
    }

    /// A trained network and the first test images, for a study.
    fn trained(
        &self,
        spec: &TrainSpec,
        samples: usize,
        body: Body,
        bytes: Vec<u8>,
        observer: &mut dyn Observer,
    ) -> Result<Trained, RunError> {
        check_train(self.job.mode, spec)?;
        let (weights, checkpoint) = start_from(self.job, spec.seed, body, bytes)?;
        let data = load(&self.job.data)?;
        fits(self.job, &data)?;
        let (report, trained) = self.train_on(&data, spec, weights, checkpoint, observer)?;
        let weights = Weights::unflatten(&self.job.settings().stored_network()?, &trained)?;
        let samples = samples.min(data.test.len());
        let loader = Loader::new(&data.test, &Normalization::of(&data.train), Augment::NONE, spec.seed);
        let mut batch = Batch::default();
        let indices: Vec<u32> = (0..samples as u32).collect();
        loader.gather(None, &indices, &mut batch);
        Ok(Trained { weights, images: batch.images, samples, test_accuracy: report.test_accuracy.unwrap_or(0.0) })
    }
}

/// What a study looks at.
struct Trained {
    weights: Weights,
    images: Vec<f32>,
    samples: usize,
    test_accuracy: f64,
}

fn check_train(mode: ModeKind, spec: &TrainSpec) -> Result<(), RunError> {
    for (what, value) in [("train.epochs", spec.epochs), ("train.batch", spec.batch)] {
        if value == 0 {
            return Err(RunError::Zero { what });
        }
    }
    if let Some(clip) = spec.clip_norm
        && (clip.is_nan() || clip <= 0.0)
    {
        return Err(RunError::OutOfRange { what: "train.clip_norm", got: clip, range: "above 0" });
    }
    if !(0.0..=1e3).contains(&spec.coefficient_rate) {
        return Err(RunError::OutOfRange {
            what: "train.coefficient_rate",
            got: spec.coefficient_rate,
            range: "0 to 1000",
        });
    }
    if let Some(limit) = spec.easing.range_limit
        && !(limit.is_finite() && limit > 0.0)
    {
        return Err(RunError::OutOfRange { what: "train.easing.range_limit", got: limit, range: "above 0" });
    }
    if mode == ModeKind::Delta && (spec.easing != EasingSpec::default() || spec.teacher.is_some()) {
        return Err(RunError::Settings { mode: mode.name(), what: "labels alone and activations as they are" });
    }
    Ok(())
}

fn start_from(job: &JobSpec, seed: u64, body: Body, bytes: Vec<u8>) -> Result<(Weights, Option<Checkpoint>), RunError> {
    let network = job.settings().stored_network()?;
    Ok(match body {
        Body::Empty => (Weights::init(&network, seed), None),
        Body::Weights => (Weights::unflatten(&network, &from_f32_bytes(&bytes))?, None),
        Body::Checkpoint => (Weights::init(&network, seed), Some(Checkpoint::decode(&bytes)?)),
    })
}

fn load(spec: &DataSpec) -> Result<Split, RunError> {
    let source = match &spec.path {
        Some(path) => DataSource::Files { path: path.clone(), resize: None },
        None => DataSource::Synthetic {
            train: spec.train.unwrap_or(5000),
            test: spec.test.unwrap_or(1000),
            seed: spec.seed,
        },
    };
    let mut split = data::load(&source)?;
    if let Some(n) = spec.train.filter(|&n| n < split.train.len()) {
        split.train = split.train.subset(n, spec.seed)?;
    }
    if let Some(n) = spec.test.filter(|&n| n < split.test.len()) {
        split.test = split.test.subset(n, spec.seed)?;
    }
    Ok(split)
}

fn fits(job: &JobSpec, data: &Split) -> Result<(), RunError> {
    let (images, classes) = (data.train.shape(), data.train.classes());
    if images == job.network.input && classes <= job.network.classes {
        return Ok(());
    }
    Err(RunError::Fit { images, classes, network: job.network.name.clone() })
}

/// What is executed and under which guard; part of a job, and of a model that is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// How the network is executed.
    pub mode: ModeKind,
    /// The network.
    pub network: &'a Network,
    /// What guards releases.
    pub privacy: &'a PrivacySpec,
    /// How it is run as Delta; for that mode.
    pub delta: Option<&'a DeltaSpec>,
    /// Precision of what is sent to the worker.
    pub precision: Precision,
}

impl Settings<'_> {
    /// Whether a worker takes part.
    pub fn needs_worker(&self) -> bool {
        self.mode.needs_worker() && (self.mode != ModeKind::Delta || self.delta.is_some_and(DeltaSpec::needs_worker))
    }

    /// A network with the parameters that are trained, in the order of their state. For Delta it lists the layers of all
    /// three networks and cannot be executed.
    ///
    /// # Errors
    /// A network that cannot be executed, or made into Delta's three.
    pub fn stored_network(&self) -> Result<Network, DeltaError> {
        self.network.validate()?;
        match self.delta {
            Some(spec) if self.mode == ModeKind::Delta => {
                Ok(delta(self.network, &spec.shape)?.all_layers(spec.needs_worker()))
            }
            _ => Ok(self.network.clone()),
        }
    }
}

/// What a mode is built from beside the settings.
#[derive(Clone, Debug)]
pub struct Parts {
    /// How it splits.
    pub split: SplitSpec,
    /// All epochs of training.
    pub epochs: usize,
    /// Samples in a batch, for the plan's costs, and records in the training set.
    pub sampling: Sampling,
    /// Who has lost how much so far.
    pub accountant: RecordAccountant,
    /// How two servers answer.
    pub shares: SharesSpec,
}

/// Builds a mode and its plan. Weights may be streamed in `trusted-only`.
///
/// # Errors
/// Unusable settings, no worker where one is needed, or one that cannot be opened.
pub fn build(
    settings: Settings<'_>,
    weights: ModelWeights,
    parts: Parts,
    backend: Option<&Arc<dyn ResidualBackend>>,
    par: Par,
) -> Result<(Box<dyn Mode>, Option<Plan>), RunError> {
    let network = settings.network.clone();
    let worker = || backend.map(Arc::clone).ok_or(RunError::NoWorker(settings.mode.name()));
    let program = Program::new(&network).map_err(ExecError::from)?;
    if settings.mode == ModeKind::TrustedOnly {
        let mode = TrustedOnly::with_weights(network, weights, par)?;
        return Ok((Box::new(mode), Some(Plan::trusted_only(&program))));
    }
    let ModelWeights::Held(weights) = weights else {
        return Err(ExecError::from(StreamError::InferenceOnly).into());
    };
    Ok(match settings.mode {
        ModeKind::Clear | ModeKind::NaiveDp => {
            let is_public = settings.mode == ModeKind::NaiveDp;
            (Box::new(Clear::new(network, &weights, worker()?, parts.accountant, is_public)?), None)
        }
        ModeKind::TrustedOnly | ModeKind::Asymml => {
            let plan = Plan::asymml(&program, &parts.split, parts.sampling.batch)?;
            let parts = AsymMlParts {
                plan: plan.clone(),
                decomposer: decomposer(&parts.split.decomposition)?,
                privacy: settings.privacy.clone(),
                precision: settings.precision,
                backend: worker()?,
                accountant: parts.accountant,
            };
            (Box::new(AsymMl::with_weights(network, weights, parts, par)?), Some(plan))
        }
        ModeKind::Delta => (Box::new(build_delta(settings, weights, parts, backend, par)?), None),
        #[cfg(feature = "shares")]
        ModeKind::Shares => (Box::new(crate::on_shares::OnShares::new(network, &weights, parts.shares, par)?), None),
        #[cfg(not(feature = "shares"))]
        ModeKind::Shares => return Err(RunError::NotBuilt { mode: "shares", feature: "shares" }),
    })
}

fn decomposer(name: &str) -> Result<Box<dyn Decomposer>, RunError> {
    by_name(name).ok_or_else(|| RunError::Decomposition(name.to_owned()))
}

fn build_delta(
    settings: Settings<'_>,
    weights: Weights,
    parts: Parts,
    backend: Option<&Arc<dyn ResidualBackend>>,
    par: Par,
) -> Result<Delta, RunError> {
    let missing = |what| RunError::Settings { mode: settings.mode.name(), what };
    let spec = settings.delta.cloned().ok_or(missing("a delta section"))?;
    if spec.decomposition == "shared-basis" {
        // One basis for a batch would let a record's residual depend on the others, which no bound on one covers.
        return Err(missing("a decomposition of each record by itself"));
    }
    if (spec.variant == Variant::ReleasedCode) != spec.shape.mean_residual {
        return Err(missing("the channel mean of residuals for variant released-code, and for no other"));
    }
    if spec.variant == Variant::ReleasedCode && spec.labels != Labels::Public {
        return Err(missing("public labels for variant released-code, whose gradients tell them"));
    }
    if spec.needs_worker() && backend.is_none() {
        return Err(RunError::NoWorker(settings.mode.name()));
    }
    let networks = delta(settings.network, &spec.shape)?;
    let parts = DeltaParts {
        decomposer: decomposer(&spec.decomposition)?,
        relation: settings.privacy.relation,
        delta: settings.privacy.delta,
        sampling: parts.sampling,
        epochs: parts.epochs,
        backend: backend.filter(|_| spec.needs_worker()).map(Arc::clone),
        accountant: parts.accountant,
        spec,
    };
    Ok(Delta::new(networks, weights, parts, par)?)
}
