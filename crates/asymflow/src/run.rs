//! One job from beginning to end, as the enclave process runs it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use asymflow_residual::{OpenError, ResidualBackend};
use asymflow_zoo::Weights;
use asymflow_zoo::data::{self, Augment, Batch, DataSource, Loader, Normalization, Split};
use asymflow_zoo::delta::delta;
use faer::Par;

use crate::ExecError;
use crate::accounting::RecordAccountant;
use crate::checkpoint::{Checkpoint, from_f32_bytes};
use crate::delta::{Sampling, SplitStudyReport, SplitStudySpec, split_study};
use crate::job::{Body, DataSpec, EasingSpec, FromTrusted, JobReport, JobSpec, ModeKind, Task, TrainReport, TrainSpec};
use crate::memory::{MemoryPlan, MemoryUse};
use crate::memory_study::memory_study;
use crate::naive::{NaiveSpec, noised};
use crate::speedup::speedup;
use crate::study::{RankStudyReport, RankStudySpec, rank_study};
use crate::teaching::Teacher;
use crate::train::{Observer, Training};

mod build;
mod error;

pub use build::{Parts, Settings, build};
pub use error::RunError;

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
        let (what, got) = ("train.coefficient_rate", spec.coefficient_rate);
        return Err(RunError::OutOfRange { what, got, range: "0 to 1000" });
    }
    if !(spec.first_layer_rate > 0.0 && spec.first_layer_rate <= 1e3) {
        let (what, got) = ("train.first_layer_rate", spec.first_layer_rate);
        return Err(RunError::OutOfRange { what, got, range: "above 0 to 1000" });
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
