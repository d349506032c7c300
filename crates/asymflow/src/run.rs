//! One job from beginning to end, as the enclave process runs it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use asymflow_privacy::records::RecordAccountant;
use asymflow_zoo::data::{self, Augment, Batch, DataError, DataSource, Loaded, Loader, Normalization, Split};
use asymflow_zoo::graph::{Graph, Node};
use asymflow_zoo::ops::Op;
use asymflow_zoo::{Network, Weights};
use faer::Par;

use crate::checkpoint::{Checkpoint, Identity, from_f32_bytes};
use crate::job::{Body, DataSpec, EasingSpec, FromTrusted, JobReport, JobSpec, Task, TrainReport, TrainSpec};
use crate::memory::{MemoryPlan, MemoryUse};
use crate::modes::{Facts, ModeError, ModeSpec, Parts, Registry, Sampling};
use crate::studies::{self, AnyStudy, Bench, OpenBackend, Trained, opened};
use crate::teaching::Teacher;
use crate::train::{Observer, Training};

mod error;

pub use error::RunError;

/// Runs one job.
///
/// # Errors
/// Whatever stops it; [`RunError::failure`] says what of it the host may know.
pub fn run(
    job: &JobSpec,
    (body, bytes): (Body, Vec<u8>),
    registry: &Registry,
    open: OpenBackend<'_>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<JobReport, RunError> {
    job.check_memory(registry)?;
    let threads = NonZeroUsize::new(job.threads).ok_or(RunError::Zero { what: "trusted.threads" })?;
    let par = if threads.get() == 1 { Par::Seq } else { Par::rayon(threads.get()) };
    job.network.validate().map_err(ModeError::from)?;
    let mode = registry.decode(&job.mode)?;
    let runner = Runner { job, mode, registry, open, stop, par };
    match &job.task {
        Task::Train(spec) => runner.train(spec, body, bytes, observer),
        Task::Study(study) => runner.study(&*studies::decode(study)?, body, bytes, observer),
    }
}

struct Runner<'a> {
    job: &'a JobSpec,
    mode: Arc<dyn ModeSpec>,
    registry: &'a Registry,
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
        check_train(&*self.mode, spec)?;
        let data = load(&self.job.data, self.registry)?;
        fits(self.job, &data.split)?;
        Ok(JobReport::Train(Box::new(self.train_on(&data, spec, (body, bytes), observer)?.0)))
    }

    /// What a run of `spec` on `data` is, so that a checkpoint of another one is not gone on from.
    fn identity(&self, data: &Split, spec: &TrainSpec) -> Result<Identity, RunError> {
        Ok(Identity::of(data, self.job, spec)?)
    }

    /// Weights to start from, and the checkpoint to go on from.
    fn start_from(
        &self,
        seed: u64,
        (body, bytes): (Body, Vec<u8>),
        identity: &Identity,
    ) -> Result<(Weights, Option<Checkpoint>), RunError> {
        let network = self.mode.stored_network(&self.job.network)?;
        Ok(match body {
            Body::Empty => (Weights::init(&network, seed), None),
            Body::Weights => (Weights::unflatten(&network, &from_f32_bytes(&bytes))?, None),
            Body::Checkpoint => {
                let checkpoint = Checkpoint::decode(&bytes)?;
                checkpoint.belongs_to(identity)?;
                (Weights::init(&network, seed), Some(checkpoint))
            }
        })
    }

    /// Who has lost how much before. An accountant never begins anew because something did not fit.
    fn accountant(
        &self,
        facts: &Facts<'_>,
        records: usize,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<RecordAccountant, RunError> {
        let losses = self.mode.losses(facts)?;
        let is_silent = losses.train.is_empty() && losses.test.is_empty();
        let accountant = match checkpoint {
            None => RecordAccountant::new(records),
            Some(kept) if kept.spent.is_empty() && is_silent => RecordAccountant::new(records),
            Some(kept) => RecordAccountant::resume(kept.losses_of(records)?.to_vec()),
        };
        let budget = self.job.terms.budget(&*self.mode);
        if let Some(budget) = budget {
            losses.fit(budget)?;
        }
        Ok(accountant.with_budget(budget))
    }

    fn train_on(
        &self,
        Loaded { split: data, about }: &Loaded,
        spec: &TrainSpec,
        start: (Body, Vec<u8>),
        observer: &mut dyn Observer,
    ) -> Result<(TrainReport, Vec<f32>), RunError> {
        let (job, mode) = (self.job, &*self.mode);
        let identity = self.identity(data, spec)?;
        let (weights, checkpoint) = self.start_from(spec.seed, start, &identity)?;
        let sampling = Sampling { batch: spec.batch, records: data.train.len() };
        check_last_batch(&job.network, sampling)?;
        let evaluations = spec.evaluations();
        let (network, terms, registry) = (&job.network, &job.terms, self.registry);
        let facts = Facts { network, terms, sampling, epochs: spec.epochs, evaluations, registry };
        mode.check(&facts)?;
        let accountant = self.accountant(&facts, data.train.len() + data.test.len(), checkpoint.as_ref())?;
        let parts = Parts {
            network: network.clone(),
            weights: weights.into(),
            terms: *terms,
            sampling,
            epochs: spec.epochs,
            accountant,
            backend: opened(mode, job, self.open)?,
            registry,
            par: self.par,
        };
        let mut built = mode.build(parts)?;
        let plan = mode.plan(network, spec.batch, facts.pass())?;
        let (train_images, test_images) = (data.train.len(), data.test.len());
        let (about, told) = (about.clone(), plan.clone());
        observer.tell(FromTrusted::Planned { train_images, test_images, data: about, plan: told }, &[])?;
        let training = Training {
            spec,
            augment: job.data.augment,
            delta: terms.delta,
            patience: Duration::from_secs(job.worker.as_ref().map_or(0, |w| w.patience_seconds)),
            identity: &identity,
            data,
            stop: self.stop,
        };
        let (input, classes) = (network.input.len(), network.classes);
        let read = |spec| Teacher::read(spec, (input, classes), registry, self.par);
        let teacher = spec.teacher.as_ref().map(read).transpose()?;
        let mut report = training.run(&mut *built, checkpoint, teacher, observer)?;
        if let Some(plan) = &plan {
            for (layer, conv) in report.layers.iter_mut().zip(&plan.convs) {
                layer.0.clone_from(&conv.layer);
            }
        }
        report.plan = plan;
        report.normalization = Normalization::of(&data.train);
        report.class_names = data.train.class_names().to_vec();
        let weights = built.state()?.weights;
        report.memory_plan = MemoryPlan::of_job(job, registry).ok();
        report.memory = MemoryUse::now();
        Ok((report, weights))
    }

    fn study(
        &self,
        study: &dyn AnyStudy,
        body: Body,
        bytes: Vec<u8>,
        observer: &mut dyn Observer,
    ) -> Result<JobReport, RunError> {
        let mut start = Some((body, bytes));
        let mut train = |spec: &TrainSpec, samples| {
            self.trained(spec, samples, start.take().unwrap_or((Body::Empty, Vec::new())), observer)
        };
        let Self { job, registry, open, par, .. } = *self;
        study.run(&mut Bench { job, mode: &*self.mode, registry, open, par, train: &mut train })
    }

    /// A trained network and the first test images, for a study.
    fn trained(
        &self,
        spec: &TrainSpec,
        samples: usize,
        start: (Body, Vec<u8>),
        observer: &mut dyn Observer,
    ) -> Result<Trained, RunError> {
        check_train(&*self.mode, spec)?;
        let data = load(&self.job.data, self.registry)?;
        fits(self.job, &data.split)?;
        let (report, trained) = self.train_on(&data, spec, start, observer)?;
        let weights = Weights::unflatten(&self.mode.stored_network(&self.job.network)?, &trained)?;
        let data = data.split;
        let samples = samples.min(data.test.len());
        let loader = Loader::new(&data.test, &Normalization::of(&data.train), Augment::NONE, spec.seed);
        let mut batch = Batch::default();
        let indices: Vec<u32> = (0..samples as u32).collect();
        loader.gather(None, &indices, &mut batch);
        let test_accuracy = report.test_accuracy.unwrap_or(0.0);
        Ok(Trained { weights, images: batch.images, samples, test_accuracy, report, data })
    }
}

/// Refuses a last batch of one image for a network that normalises maps of one pixel.
fn check_last_batch(network: &Network, Sampling { batch, records }: Sampling) -> Result<(), RunError> {
    if records % batch.max(1) != 1 && batch != 1 {
        return Ok(());
    }
    let graph = Graph::new(network).map_err(ModeError::from)?;
    let is_single = |node: &&Node| matches!(node.op, Op::Norm(_)) && node.input.pixels() == 1;
    match graph.nodes.iter().find(is_single) {
        Some(node) => Err(RunError::LastBatch { layer: node.name.clone(), records, batch }),
        None => Ok(()),
    }
}

fn check_train(mode: &dyn ModeSpec, spec: &TrainSpec) -> Result<(), RunError> {
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
    if !mode.takes_lessons() && (spec.easing != EasingSpec::default() || spec.teacher.is_some()) {
        let what = "labels alone and activations as they are";
        return Err(ModeError::Settings { mode: mode.name(), what }.into());
    }
    Ok(())
}

/// The data that a job names, or as many of the built-in images as it asks for.
///
/// # Errors
/// They cannot be read.
pub fn load(spec: &DataSpec, registry: &Registry) -> Result<Loaded, RunError> {
    let Loaded { mut split, about } = match (&spec.reader, spec.path.clone()) {
        (Some(reader), Some(path)) => {
            let unread = |reason| RunError::Reader { reader: reader.clone(), reason };
            let read = registry.data(reader).map_err(|known| unread(format!("there are {known:?}")))?;
            let split = read(&path).map_err(|e| unread(format!("{}: {e}", path.display())))?;
            Loaded { split, about: format!("{} by {reader}", path.display()) }
        }
        (Some(reader), None) => {
            let reason = "data.path says where it is to read".to_owned();
            return Err(RunError::Reader { reader: reader.clone(), reason });
        }
        (None, Some(path)) => data::load_described(&DataSource::Files { path, prepare: spec.prepare })?,
        (None, None) => {
            let (train, test) = (spec.train.unwrap_or(5000), spec.test.unwrap_or(1000));
            data::load_described(&DataSource::Synthetic { train, test, seed: spec.seed })?
        }
    };
    let (train, test) = (split.train.shape(), split.test.shape());
    if train != test {
        return Err(DataError::SplitShapes { train, test }.into());
    }
    if let Some(n) = spec.train.filter(|&n| n < split.train.len()) {
        split.train = split.train.subset(n, spec.seed)?;
    }
    if let Some(n) = spec.test.filter(|&n| n < split.test.len()) {
        split.test = split.test.subset(n, spec.seed)?;
    }
    Ok(Loaded { split, about })
}

fn fits(job: &JobSpec, data: &Split) -> Result<(), RunError> {
    let (images, classes) = (data.train.shape(), data.train.classes());
    if images == job.network.input && classes <= job.network.classes {
        return Ok(());
    }
    let (network, input) = (job.network.name.clone(), job.network.input);
    Err(RunError::Fit { images, classes, network, input, expected: job.network.classes })
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::network::{Layer, Shape};
    use asymflow_zoo::ops::Linear;

    use super::*;

    #[test]
    fn one_value_of_a_channel_is_refused_before_training() {
        let linear = |name: &str, in_features, out_features| {
            Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
        };
        let norm = Layer::BatchNorm { name: "bn1".to_owned(), channels: 3 };
        let layers = vec![Layer::Flatten, linear("fc1", 4, 3), norm, linear("fc2", 3, 2)];
        let network = Network { name: "n".to_owned(), input: Shape::new(1, 2, 2), classes: 2, layers };
        for (batch, records, refused) in [(4, 9, true), (1, 8, true), (4, 8, false), (4, 10, false), (16, 1, true)] {
            let checked = check_last_batch(&network, Sampling { batch, records });
            assert_eq!(checked.is_err(), refused, "{records} in batches of {batch}");
        }
        let error = check_last_batch(&network, Sampling { batch: 4, records: 9 }).unwrap_err().to_string();
        assert!(error.starts_with("layer bn1: the last of 9 training images"), "{error}");
    }
}
