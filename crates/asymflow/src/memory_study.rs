//! The memory study: how much one mode takes for one network, batch and pass, planned and counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use asymflow_engine::EngineError;
use asymflow_engine::streamed::ModelWeights;
use asymflow_privacy::records::RecordAccountant;
use asymflow_residual::backend::{Pass, SgdStep};
use asymflow_zoo::Weights;
use faer::{Mat, Par};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::job::JobSpec;
use crate::memory::{MemoryPlan, MemoryUse, heap};
use crate::modes::{ExecError, Mode, Parts, Registry, Sampling, TrainBatch};
use crate::run::{OpenBackend, RunError, opened};

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySpec {
    /// Samples in a batch.
    pub batch: usize,
    /// Whether steps of training are taken, or answers given as a service gives them.
    pub is_training: bool,
    /// How often.
    pub repeats: usize,
    /// A file to stream weights from, sealed, where they are not to be held.
    pub streamed: Option<PathBuf>,
    /// Seed of weights and data.
    pub seed: u64,
}

impl MemorySpec {
    /// The passes as a plan takes them.
    pub fn passes(&self) -> Vec<(usize, Pass)> {
        let pass = if self.is_training { Pass::Training } else { Pass::Inference };
        vec![(self.batch, pass); self.repeats.max(1)]
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// What was planned.
    pub plan: MemoryPlan,
    /// The most that the process held, from its start to its end.
    pub process: MemoryUse,
    /// What matrix products reserved of the heap: on every thread before anything else, so that it does not depend on
    /// which threads come to compute one.
    pub reserved_bytes: Option<u64>,
    /// The most heap until everything was set up.
    pub startup_heap_bytes: Option<u64>,
    /// The most heap from then on.
    pub running_heap_bytes: Option<u64>,
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
}

/// Builds the mode of `job` on weights made by seed and repeats what `spec` says.
///
/// # Errors
/// A mode that cannot be built or executed.
pub fn memory_study(
    job: &JobSpec,
    spec: &MemorySpec,
    open: OpenBackend<'_>,
    (registry, par): (&Registry, Par),
) -> Result<MemoryReport, RunError> {
    let plan = MemoryPlan::of_job(job, registry)?;
    let reserved_bytes = reserve_for_products();
    let mut mode = set_up(job, spec, open, (registry, par))?;
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
    let values = spec.batch * job.network.input.len();
    let images: Vec<f32> = (0..values).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    let startup_heap_bytes = heap::mark_heap();
    let mut seconds = Vec::with_capacity(spec.repeats);
    for _ in 0..spec.repeats.max(1) {
        let start = Instant::now();
        once(&mut *mode, job, spec, &images)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let running_heap_bytes = heap::heap_peak_since_mark_bytes();
    Ok(MemoryReport {
        plan,
        process: MemoryUse::now(),
        reserved_bytes,
        startup_heap_bytes,
        running_heap_bytes,
        seconds,
    })
}

/// Computes a product on every thread; returns by how much the heap has grown.
fn reserve_for_products() -> Option<u64> {
    let before = heap::heap_live_bytes()?;
    rayon::broadcast(|_| drop(&Mat::<f32>::full(256, 256, 1.0) * &Mat::<f32>::full(256, 256, 1.0)));
    Some(heap::heap_live_bytes()?.saturating_sub(before))
}

impl MemoryReport {
    /// The most heap that was in use: what the process held without what matrix products reserve.
    pub fn used_bytes(&self) -> Option<u64> {
        Some(self.process.heap_peak_bytes?.saturating_sub(self.reserved_bytes?))
    }

    /// As [`MemoryReport::used_bytes`], once everything was set up.
    pub fn running_used_bytes(&self) -> Option<u64> {
        Some(self.running_heap_bytes?.saturating_sub(self.reserved_bytes?))
    }
}

fn set_up(
    job: &JobSpec,
    spec: &MemorySpec,
    open: OpenBackend<'_>,
    (registry, par): (&Registry, Par),
) -> Result<Box<dyn Mode>, RunError> {
    let mode = registry.decode(&job.mode)?;
    let weights = Weights::init(&mode.stored_network(&job.network)?, spec.seed);
    let weights = match &spec.streamed {
        Some(path) => ModelWeights::sealed(&job.network, weights, path).map_err(EngineError::from)?,
        None => weights.into(),
    };
    let parts = Parts {
        network: job.network.clone(),
        weights,
        terms: job.terms,
        sampling: Sampling { batch: spec.batch, records: spec.batch },
        epochs: 2,
        accountant: RecordAccountant::new(spec.batch),
        backend: opened(&*mode, job, open)?,
        registry,
        par,
    };
    Ok(mode.build(parts)?)
}

fn once(mode: &mut dyn Mode, job: &JobSpec, spec: &MemorySpec, images: &[f32]) -> Result<(), ExecError> {
    if !spec.is_training {
        let records: Vec<usize> = (0..spec.batch).collect();
        return match mode.answering() {
            Some(answering) => answering.answer(images, spec.batch, spec.batch, Duration::ZERO).map(drop),
            None => mode.infer(images, &records).map(drop),
        };
    }
    let labels: Vec<u32> = (0..spec.batch).map(|i| (i % job.network.classes) as u32).collect();
    let records: Vec<usize> = (0..spec.batch).collect();
    let mut batch = TrainBatch::new(images, &labels, &records)?;
    batch.dropout_seed = spec.seed;
    mode.step(batch, SgdStep::plain(1e-4, 0.9, 5e-4)).map(drop)
}
