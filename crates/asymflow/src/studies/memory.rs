//! The memory study: how much one mode takes for one network, batch and pass, planned and counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use asymflow_engine::EngineError;
use asymflow_engine::streamed::ModelWeights;
use asymflow_privacy::records::RecordAccountant;
use asymflow_residual::backend::{Pass, SgdStep};
use asymflow_zoo::Weights;
use faer::Mat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::study::{Bench, Study, opened};
use crate::job::JobSpec;
use crate::memory::{MemoryError, MemoryPlan, MemoryUse, Work, heap, weight_bytes};
use crate::modes::{ExecError, Mode, Parts, Registry, Sampling, TrainBatch};
use crate::run::RunError;

/// Builds the job's mode on weights made by seed, and counts what repeated passes take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryStudy {
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

impl Study for MemoryStudy {
    type Report = MemoryReport;
    const NAME: &'static str = "memory";

    fn batch(&self) -> usize {
        self.batch
    }

    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        let mode = registry.decode(&job.mode).map_err(MemoryError::job)?;
        let pass = if self.is_training { Pass::Training } else { Pass::Inference };
        let passes = vec![(self.batch, pass); self.repeats.max(1)];
        let is_streamed = self.streamed.is_some();
        let mut plan = Work { is_streamed, ..Work::of(job, (self.batch, &passes), registry) }.plan(&*mode)?;
        // The batch, and a copy of it that is filled up.
        plan.data_bytes = 8 * (self.batch * job.network.input.len()) as u64;
        if is_streamed {
            // Made by seed, all of them, before they are sealed.
            plan.startup_bytes += weight_bytes(&job.network);
        }
        Ok(plan.peaked())
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<MemoryReport, RunError> {
        let job = bench.job;
        let plan = Study::memory(self, job, bench.registry)?;
        let reserved_bytes = reserve_for_products();
        let mut mode = self.set_up(bench)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let values = self.batch * job.network.input.len();
        let images: Vec<f32> = (0..values).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let startup_heap_bytes = heap::mark_heap();
        let mut seconds = Vec::with_capacity(self.repeats);
        for _ in 0..self.repeats.max(1) {
            let start = Instant::now();
            self.once(&mut *mode, job.network.classes, &images)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let running_heap_bytes = heap::heap_peak_since_mark_bytes();
        let process = MemoryUse::now();
        Ok(MemoryReport { plan, process, reserved_bytes, startup_heap_bytes, running_heap_bytes, seconds })
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

impl MemoryStudy {
    fn set_up(&self, bench: &Bench<'_>) -> Result<Box<dyn Mode>, RunError> {
        let Bench { job, mode, registry, open, par, .. } = *bench;
        let weights = Weights::init(&mode.stored_network(&job.network)?, self.seed);
        let weights = match &self.streamed {
            Some(path) => ModelWeights::sealed(&job.network, weights, path).map_err(EngineError::from)?,
            None => weights.into(),
        };
        let parts = Parts {
            network: job.network.clone(),
            weights,
            terms: job.terms,
            sampling: Sampling { batch: self.batch, records: self.batch },
            epochs: 2,
            accountant: RecordAccountant::new(self.batch),
            backend: opened(mode, job, open)?,
            registry,
            par,
        };
        Ok(mode.build(parts)?)
    }

    fn once(&self, mode: &mut dyn Mode, classes: usize, images: &[f32]) -> Result<(), ExecError> {
        let records: Vec<usize> = (0..self.batch).collect();
        if !self.is_training {
            return match mode.answering() {
                Some(answering) => answering.answer(images, self.batch, self.batch, Duration::ZERO).map(drop),
                None => mode.infer(images, &records).map(drop),
            };
        }
        let labels: Vec<u32> = (0..self.batch).map(|i| (i % classes) as u32).collect();
        let mut batch = TrainBatch::new(images, &labels, &records)?;
        batch.dropout_seed = self.seed;
        mode.step(batch, SgdStep::plain(1e-4, 0.9, 5e-4)).map(drop)
    }
}
