//! The plan of a training.

use asymflow_residual::backend::Pass;

use super::work::weight_bytes;
use super::{MemoryError, MemoryPlan, Work};
use crate::job::{DataSpec, JobSpec, TrainSpec};
use crate::modes::Registry;

/// Images of the built-in set where a job names no number, and of a data set on disk, which is read whole.
const BUILT_IN: (usize, usize) = (5000, 1000);

impl<'a> Work<'a> {
    /// What the mode of `job` is to do in `passes`, planned for batches of `batch` samples.
    pub(crate) const fn of(
        job: &'a JobSpec,
        (batch, passes): (usize, &'a [(usize, Pass)]),
        registry: &'a Registry,
    ) -> Self {
        let (network, threads) = (&job.network, job.threads);
        Self { network, batch, passes, records: None, threads, is_streamed: false, registry }
    }
}

impl MemoryPlan {
    /// What training as `spec` says in the mode and on the data of `job` is planned to take at most.
    pub(crate) fn of_training(job: &JobSpec, spec: &TrainSpec, registry: &Registry) -> Result<Self, MemoryError> {
        let mode = registry.decode(&job.mode).map_err(MemoryError::job)?;
        let (train, test) = counts(&job.data);
        let rest = |images: usize| Some(images % spec.batch.max(1)).filter(|&rest| rest > 0);
        let (batch, tested) = (spec.batch.min(train), spec.batch.min(test));
        let step = (batch, Pass::Training);
        let mut passes = vec![step, step];
        passes.extend(rest(train).map(|rest| (rest, Pass::Training)));
        passes.push((tested, Pass::Inference));
        passes.extend(rest(test).map(|rest| (rest, Pass::Inference)));
        passes.push(step);
        let work = Work { records: Some((train, test)), ..Work::of(job, (spec.batch, &passes), registry) };
        let mut plan = work.plan(&*mode)?;
        let weights = weight_bytes(&mode.stored_network(&job.network).map_err(MemoryError::job)?);
        let record = job.network.input.len() as u64 + 4;
        let images = (train + test) as u64 * record;
        plan.data_bytes = images.max(disk_bytes(&job.data)) + (batch * (4 * job.network.input.len() + 8)) as u64;
        plan.startup_bytes += plan.data_bytes + weights;
        // Weights and momentum: flattened, as bytes, and as the file.
        plan.checkpoint_bytes += 6 * weights;
        Ok(plan.peaked())
    }
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
