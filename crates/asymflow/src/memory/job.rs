//! The plan of a whole job, and of a service.

use asymflow_residual::backend::Pass;

use super::{Advice, MemoryError, MemoryPlan, Work};
use crate::job::{JobSpec, Task};
use crate::modes::Registry;
use crate::service::{Answers, ServedModel};
use crate::studies;

impl MemoryPlan {
    /// What `job` is planned to take at most.
    ///
    /// A data set on disk counts as many bytes as it has there, which is too little where it is compressed.
    ///
    /// # Errors
    /// A job that cannot be done.
    pub fn of_job(job: &JobSpec, registry: &Registry) -> Result<Self, MemoryError> {
        match &job.task {
            Task::Study(study) => studies::decode(study).map_err(MemoryError::job)?.memory(job, registry),
            Task::Train(spec) => Self::of_training(job, spec, registry),
        }
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
        let mode = registry.decode(&model.mode).map_err(MemoryError::job)?;
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
        let mode = registry.decode(&self.mode).map_err(MemoryError::job)?;
        let advice =
            Advice { smaller_batch: true, other_mode: mode.computes_here() && mode.is_whole(), streaming: false };
        MemoryPlan::of_job(self, registry)?.check(self.memory_limit_bytes, advice)
    }
}
