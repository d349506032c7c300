//! One job from beginning to end, as the enclave process runs it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use asymflow_linalg::by_name;
use asymflow_residual::{OpenError, ResidualBackend};
use asymflow_zoo::data::{self, Augment, Batch, DataError, DataSource, Loader, Normalization, Split};
use asymflow_zoo::{Weights, WeightsError};
use faer::Par;
use thiserror::Error;

use crate::accounting::RecordAccountant;
use crate::checkpoint::{Checkpoint, CheckpointError, from_f32_bytes};
use crate::job::{
    Body, DataSpec, Failure, FailureCode, FromTrusted, JobReport, JobSpec, ModeKind, Task, TrainReport, TrainSpec,
};
use crate::modes::{AsymMl, AsymMlParts, Clear, Mode, ModeError, TrustedOnly};
use crate::plan::{Plan, PlanError, SplitSpec};
use crate::speedup::speedup;
use crate::study::{RankStudyReport, RankStudySpec, rank_study};
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
    bytes: &[u8],
    open: OpenBackend<'_>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<JobReport, RunError> {
    let threads = NonZeroUsize::new(job.threads).ok_or(RunError::Zero { what: "trusted.threads" })?;
    let par = if threads.get() == 1 { Par::Seq } else { Par::rayon(threads.get()) };
    let runner = Runner { job, open, stop, par };
    match &job.task {
        Task::Train(spec) => runner.train(spec, body, bytes, observer),
        Task::Speedup(spec) => {
            let weights = Weights::init(&job.network, spec.seed);
            let backend = open(job).map_err(ExecError::from)?;
            Ok(JobReport::Speedup(speedup(job, spec, &weights, &backend, par)?))
        }
        Task::RankStudy(study, spec) => runner.study(study, spec, body, bytes, observer),
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
        bytes: &[u8],
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        check_train(spec)?;
        let (weights, checkpoint) = start_from(self.job, spec.seed, body, bytes)?;
        let data = load(&self.job.data)?;
        fits(self.job, &data)?;
        Ok(JobReport::Train(Box::new(self.train_on(&data, spec, &weights, checkpoint, observer)?.0)))
    }

    fn train_on(
        &self,
        data: &Split,
        spec: &TrainSpec,
        weights: &Weights,
        checkpoint: Option<Checkpoint>,
        observer: &mut dyn Observer,
    ) -> Result<(TrainReport, Vec<f32>), RunError> {
        let job = self.job;
        let backend = job.mode.needs_worker().then(|| (self.open)(job)).transpose().map_err(ExecError::from)?;
        let records = data.train.len() + data.test.len();
        let rho = checkpoint.as_ref().map(|c| c.rho.clone()).filter(|rho| rho.len() == records);
        let parts = Parts { kind: job.mode, split: job.split.clone(), batch: spec.batch, records, rho };
        let (mut mode, plan) = build(job, weights, parts, backend.as_ref(), self.par)?;
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
        let mut report = training.run(&mut *mode, checkpoint, observer)?;
        if let Some(plan) = &plan {
            for (layer, conv) in report.layers.iter_mut().zip(&plan.convs) {
                layer.0.clone_from(&conv.layer);
            }
        }
        report.plan = plan;
        Ok((report, mode.state()?.weights))
    }

    fn study(
        &self,
        study: &RankStudySpec,
        spec: &TrainSpec,
        body: Body,
        bytes: &[u8],
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        check_train(spec)?;
        let (weights, checkpoint) = start_from(self.job, spec.seed, body, bytes)?;
        let data = load(&self.job.data)?;
        fits(self.job, &data)?;
        let (report, trained) = self.train_on(&data, spec, &weights, checkpoint, observer)?;
        let weights = Weights::unflatten(&self.job.network, &trained)?;
        let samples = study.samples.min(data.test.len());
        let loader = Loader::new(&data.test, &Normalization::of(&data.train), Augment::NONE, spec.seed);
        let mut batch = Batch::default();
        let indices: Vec<u32> = (0..samples as u32).collect();
        loader.gather(None, &indices, &mut batch);
        let layers = rank_study(&self.job.network, &weights, &batch.images, samples, study, self.par)?;
        Ok(JobReport::RankStudy(RankStudyReport {
            network: self.job.network.name.clone(),
            samples,
            test_accuracy: report.test_accuracy.unwrap_or(0.0),
            layers,
        }))
    }
}

fn check_train(spec: &TrainSpec) -> Result<(), RunError> {
    for (what, value) in [("train.epochs", spec.epochs), ("train.batch", spec.batch)] {
        if value == 0 {
            return Err(RunError::Zero { what });
        }
    }
    Ok(())
}

fn start_from(job: &JobSpec, seed: u64, body: Body, bytes: &[u8]) -> Result<(Weights, Option<Checkpoint>), RunError> {
    Ok(match body {
        Body::Empty => (Weights::init(&job.network, seed), None),
        Body::Weights => (Weights::unflatten(&job.network, &from_f32_bytes(bytes))?, None),
        Body::Checkpoint => (Weights::init(&job.network, seed), Some(Checkpoint::decode(bytes)?)),
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

/// What a mode is built from beside the job.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Which mode.
    pub kind: ModeKind,
    /// How it splits.
    pub split: SplitSpec,
    /// Samples in a batch, for the plan's costs.
    pub batch: usize,
    /// Records whose losses are accounted.
    pub records: usize,
    /// Losses of an earlier run.
    pub rho: Option<Vec<f64>>,
}

/// Builds a mode and its plan.
///
/// # Errors
/// Unusable settings, no worker where one is needed, or one that cannot be opened.
pub fn build(
    job: &JobSpec,
    weights: &Weights,
    parts: Parts,
    backend: Option<&Arc<dyn ResidualBackend>>,
    par: Par,
) -> Result<(Box<dyn Mode>, Option<Plan>), RunError> {
    let network = job.network.clone();
    let accountant = match parts.rho {
        Some(rho) => RecordAccountant::resume(rho),
        None => RecordAccountant::new(parts.records),
    };
    let worker = || backend.map(Arc::clone).ok_or(RunError::NoWorker(parts.kind.name()));
    let program = Program::new(&network).map_err(ExecError::from)?;
    Ok(match parts.kind {
        ModeKind::Clear => (Box::new(Clear::new(network, weights, worker()?, accountant)?), None),
        ModeKind::TrustedOnly => {
            (Box::new(TrustedOnly::new(network, weights, par)?), Some(Plan::trusted_only(&program)))
        }
        ModeKind::Asymml => {
            let name = &parts.split.decomposition;
            let decomposer = by_name(name).ok_or_else(|| RunError::Decomposition(name.clone()))?;
            let plan = Plan::asymml(&program, &parts.split, parts.batch)?;
            let parts = AsymMlParts {
                plan: plan.clone(),
                decomposer,
                privacy: job.privacy.clone(),
                precision: job.precision,
                backend: worker()?,
                accountant,
            };
            (Box::new(AsymMl::new(network, weights, parts, par)?), Some(plan))
        }
    })
}
