//! The plan of a whole job, and of a service.

use asymflow_residual::backend::Pass;

use super::work::weight_bytes;
use super::{Advice, MemoryError, MemoryPlan, Work};
use crate::job::{DataSpec, JobSpec, Task, TrainSpec};
use crate::modes::{ModeError, ModeSpec, Registry};
use crate::service::{Answers, ServedModel};

/// Images of the built-in set where a job names no number, and of a data set on disk, which is read whole.
const BUILT_IN: (usize, usize) = (5000, 1000);

impl MemoryPlan {
    /// What `job` is planned to take at most.
    ///
    /// A data set on disk counts as many bytes as it has there, which is too little where it is compressed.
    ///
    /// # Errors
    /// A job that cannot be done.
    pub fn of_job(job: &JobSpec, registry: &Registry) -> Result<Self, MemoryError> {
        let mode = registry.decode(&job.mode).map_err(no_mode)?;
        let of = |batch, passes| Work {
            network: &job.network,
            batch,
            passes,
            records: None,
            threads: job.threads,
            is_streamed: false,
            registry,
        };
        match &job.task {
            Task::Memory(spec) => {
                let is_streamed = spec.streamed.is_some();
                let passes = spec.passes();
                let mut plan = Work { is_streamed, ..of(spec.batch, &passes) }.plan(&*mode)?;
                // The batch, and a copy of it that is filled up.
                plan.data_bytes = 8 * (spec.batch * job.network.input.len()) as u64;
                if is_streamed {
                    // Made by seed, all of them, before they are sealed.
                    plan.startup_bytes += weight_bytes(&job.network);
                }
                Ok(plan.peaked())
            }
            Task::Speedup(spec) => {
                let passes =
                    [(spec.batch, Pass::Inference), (spec.batch, Pass::Training), (spec.batch, Pass::Training)];
                let passes = if spec.train { &passes[..] } else { &passes[..1] };
                let mut largest = Self::default();
                for timed in &spec.variants {
                    let mode = registry.decode(&timed.mode).map_err(no_mode)?;
                    let plan = of(spec.batch, passes).plan(&*mode)?;
                    largest = if plan.peak_bytes > largest.peak_bytes { plan } else { largest };
                }
                // The weights that every mode is made of stay.
                largest.state_bytes += weight_bytes(&job.network);
                Ok(largest.peaked())
            }
            Task::Train(spec) | Task::RankStudy(_, spec) | Task::SplitStudy(_, spec) => {
                Self::of_training(job, spec, &*mode, registry)
            }
        }
    }

    fn of_training(
        job: &JobSpec,
        spec: &TrainSpec,
        mode: &dyn ModeSpec,
        registry: &Registry,
    ) -> Result<Self, MemoryError> {
        let (train, test) = counts(&job.data);
        let rest = |images: usize| Some(images % spec.batch.max(1)).filter(|&rest| rest > 0);
        let (batch, tested) = (spec.batch.min(train), spec.batch.min(test));
        let step = (batch, Pass::Training);
        let mut passes = vec![step, step];
        passes.extend(rest(train).map(|rest| (rest, Pass::Training)));
        passes.push((tested, Pass::Inference));
        passes.extend(rest(test).map(|rest| (rest, Pass::Inference)));
        passes.push(step);
        let work = Work {
            network: &job.network,
            batch: spec.batch,
            passes: &passes,
            records: Some((train, test)),
            threads: job.threads,
            is_streamed: false,
            registry,
        };
        let mut plan = work.plan(mode)?;
        let weights = weight_bytes(&mode.stored_network(&job.network).map_err(no_mode)?);
        let record = job.network.input.len() as u64 + 4;
        let images = (train + test) as u64 * record;
        plan.data_bytes = images.max(disk_bytes(&job.data)) + (batch * (4 * job.network.input.len() + 8)) as u64;
        plan.startup_bytes += plan.data_bytes + weights;
        // Weights and momentum: flattened, as bytes, and as the file.
        plan.checkpoint_bytes += 6 * weights;
        Ok(plan.peaked())
    }

    /// What serving `model` with batches of up to `batch` images, of which it remembers `remembered` answers, is planned to
    /// take at most.
    ///
    /// # Errors
    /// A model that cannot be served.
    pub fn of_service(
        model: &ServedModel,
        (batch, threads): (usize, usize),
        is_streamed: bool,
        remembered: usize,
        registry: &Registry,
    ) -> Result<Self, MemoryError> {
        // Fewer images than a batch come as well.
        let mut passes: Vec<_> = (1..=batch).map(|samples| (samples, Pass::Inference)).collect();
        passes.push((batch, Pass::Inference));
        let mode = registry.decode(&model.mode).map_err(no_mode)?;
        let (network, passes) = (&model.network, &passes[..]);
        let batches = model.sampling.batch;
        let work = Work { network, batch: batches, passes, records: None, threads, is_streamed, registry };
        let mut plan = work.plan(&*mode)?;
        // Waiting images of four batches, and the batch as numbers, twice.
        plan.data_bytes = (12 * batch * model.network.input.len()) as u64;
        plan.answers_bytes = Answers::held_bytes(remembered, model.network.classes) as u64;
        plan.fixed_bytes += SERVING_BYTES;
        plan.startup_bytes += SERVING_BYTES + plan.answers_bytes;
        Ok(plan.peaked())
    }
}

/// The listener with its sessions' buffers and ledgers of a service that is not under siege.
const SERVING_BYTES: u64 = 4 << 20;

impl JobSpec {
    /// Refuses a job whose plan exceeds its limit.
    ///
    /// # Errors
    /// It does not fit, or cannot be planned.
    pub fn check_memory(&self, registry: &Registry) -> Result<(), MemoryError> {
        if self.memory_limit_bytes.is_none() {
            return Ok(());
        }
        let mode = registry.decode(&self.mode).map_err(no_mode)?;
        let advice =
            Advice { smaller_batch: true, other_mode: mode.computes_here() && mode.is_whole(), streaming: false };
        MemoryPlan::of_job(self, registry)?.check(self.memory_limit_bytes, advice)
    }
}

fn no_mode(error: ModeError) -> MemoryError {
    MemoryError::Mode(error.to_string())
}

fn counts(data: &DataSpec) -> (usize, usize) {
    (data.train.unwrap_or(BUILT_IN.0), data.test.unwrap_or(BUILT_IN.1))
}

/// Bytes of a data set on disk; zero for the built-in one, and where it cannot be read.
fn disk_bytes(data: &DataSpec) -> u64 {
    fn of(path: &std::path::Path) -> u64 {
        match std::fs::read_dir(path) {
            Ok(entries) => entries.flatten().map(|entry| of(&entry.path())).sum(),
            Err(_) => path.metadata().map_or(0, |meta| meta.len()),
        }
    }
    data.path.as_deref().map_or(0, of)
}
