//! The speedup experiment: modes timed on one network, layer by layer, in one process, each with a worker of its own.

mod limit;

use std::time::Instant;

use asymflow_engine::program::Program;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::records::RecordAccountant;
use asymflow_residual::backend::{Pass, SgdStep};
use asymflow_zoo::{Network, Weights};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::study::{Bench, Study, opened};
use crate::job::{JobSpec, Traffic, WorkerSpec};
use crate::memory::{MemoryError, MemoryPlan, Work, weight_bytes};
use crate::modes::{ExecError, Mode, ModeError, ModeRef, Parts, Registry, Sampling, TrainBatch};
use crate::plan::Plan;
use crate::run::RunError;
pub use limit::{Limit, MachineRates};

/// Times modes on one network with weights made by seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speedup {
    /// Samples in a batch.
    pub batch: usize,
    /// Timed repetitions after two that are not counted.
    pub repeats: usize,
    /// What is timed, in this order.
    pub variants: Vec<NamedMode>,
    /// Whether training steps are timed too.
    pub train: bool,
    /// Seed of weights and data.
    pub seed: u64,
}

/// A mode under the name by which a table lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedMode {
    /// The name.
    pub name: String,
    /// The mode.
    pub mode: ModeRef,
    /// Its worker, in place of the job's.
    pub worker: Option<WorkerSpec>,
}

/// Times of one variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// The mode, and the decomposition where there is one.
    pub name: String,
    /// Seconds of each repetition of an inference.
    pub inference: Vec<f64>,
    /// Seconds of each repetition of a training step.
    pub training: Vec<f64>,
    /// Minor page faults of the trusted part in one inference.
    pub inference_faults: u64,
    /// And in one training step.
    pub training_faults: u64,
    /// Bytes of one inference of the batch.
    pub inference_traffic: Traffic,
    /// Bytes of one training step.
    pub training_traffic: Traffic,
    /// Seconds by convolution, summed over the counted inferences.
    pub inference_layers: Vec<Seconds>,
    /// Seconds by convolution, summed over the counted training steps.
    pub training_layers: Vec<Seconds>,
    /// Where each convolution was computed in inference; absent in `clear`.
    pub plan: Option<Plan>,
    /// And in training steps, which a mode of its own takes.
    #[serde(default)]
    pub training_plan: Option<Plan>,
    /// What this machine could do at most with those plans; of modes that split.
    pub limit: Option<Limit>,
}

/// What the experiment measured for one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeedupReport {
    /// Name of the network.
    pub network: String,
    /// Samples in a batch.
    pub batch: usize,
    /// What the limits were computed with.
    pub rates: MachineRates,
    /// The variants, in the order in which they ran.
    pub variants: Vec<Variant>,
}

impl Study for Speedup {
    type Report = SpeedupReport;
    const NAME: &'static str = "speedup";

    fn batch(&self) -> usize {
        self.batch
    }

    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        let passes = [(self.batch, Pass::Inference), (self.batch, Pass::Training), (self.batch, Pass::Training)];
        let passes = if self.train { &passes[..] } else { &passes[..1] };
        let mut largest = MemoryPlan::default();
        for timed in &self.variants {
            let mode = registry.decode(&timed.mode).map_err(MemoryError::job)?;
            let plan = Work::of(job, (self.batch, passes), registry).plan(&*mode)?;
            largest = if plan.peak_bytes > largest.peak_bytes { plan } else { largest };
        }
        // The weights that every mode is made of stay.
        largest.state_bytes += weight_bytes(&job.network);
        Ok(largest.peaked())
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<SpeedupReport, RunError> {
        let Bench { job, registry, open, par, .. } = *bench;
        let weights = Weights::init(&job.network, self.seed);
        let batch = RandomBatch::new(&job.network, self);
        let rates = MachineRates::measure(par);
        let program = Program::new(&job.network).map_err(ModeError::from)?;
        let mut variants: Vec<Variant> = Vec::new();
        for NamedMode { name, mode, worker } in &self.variants {
            let mut job = job.clone();
            if let Some(worker) = worker {
                job.worker = Some(worker.clone());
            }
            let mode = registry.decode(mode)?;
            let built = |epochs| -> Result<Box<dyn Mode>, RunError> {
                Ok(mode.build(Parts {
                    network: job.network.clone(),
                    weights: weights.clone().into(),
                    terms: job.terms,
                    sampling: Sampling { batch: self.batch, records: self.batch },
                    epochs,
                    accountant: RecordAccountant::new(self.batch),
                    backend: opened(&*mode, &job, open)?,
                    registry,
                    par,
                })?)
            };
            let mut variant = Variant {
                name: name.clone(),
                plan: mode.plan(&job.network, self.batch, Pass::Inference)?,
                training_plan: mode.plan(&job.network, self.batch, Pass::Training)?,
                ..Variant::default()
            };
            variant.time_inference(&mut *built(0)?, &batch, self).map_err(ModeError::from)?;
            if self.train {
                variant.time_training(&mut *built(1)?, &batch, self).map_err(ModeError::from)?;
            }
            // The first is what the others are held to.
            let plans = variant.plan.as_ref().zip(variant.training_plan.as_ref());
            let splits = variants.first().zip(plans).filter(|_| mode.needs_worker());
            variant.limit = splits.map(|(baseline, (plan, training_plan))| {
                let inference = (plan, outside(plan, &baseline.inference, &baseline.inference_layers));
                let training = (training_plan, outside(training_plan, &baseline.training, &baseline.training_layers));
                Limit::new(&program.conv_nodes(), [inference, training], (self.batch, mode.precision()), &rates)
            });
            variants.push(variant);
        }
        Ok(SpeedupReport { network: job.network.name.clone(), batch: self.batch, rates, variants })
    }
}

struct RandomBatch {
    images: Vec<f32>,
    labels: Vec<u32>,
    records: Vec<usize>,
}

impl RandomBatch {
    fn new(network: &Network, spec: &Speedup) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
        let images = (0..spec.batch * network.input.len()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let labels = (0..spec.batch).map(|i| (i % network.classes) as u32).collect();
        Self { images, labels, records: (0..spec.batch).collect() }
    }
}

type Timed = (Vec<f64>, Vec<Seconds>, Traffic, u64);

impl Variant {
    fn time_inference(&mut self, mode: &mut dyn Mode, batch: &RandomBatch, spec: &Speedup) -> Result<(), ExecError> {
        (self.inference, self.inference_layers, self.inference_traffic, self.inference_faults) =
            repeat(mode, spec.repeats, |mode| mode.infer(&batch.images, &batch.records).map(drop))?;
        Ok(())
    }

    fn time_training(&mut self, mode: &mut dyn Mode, batch: &RandomBatch, spec: &Speedup) -> Result<(), ExecError> {
        let sgd = SgdStep::plain(1e-4, 0.9, 5e-4);
        (self.training, self.training_layers, self.training_traffic, self.training_faults) =
            repeat(mode, spec.repeats, |mode| {
                let mut step = TrainBatch::new(&batch.images, &batch.labels, &batch.records)?;
                step.dropout_seed = spec.seed;
                mode.step(step, sgd).map(drop)
            })?;
        Ok(())
    }
}

fn repeat(
    mode: &mut dyn Mode,
    repeats: usize,
    mut work: impl FnMut(&mut dyn Mode) -> Result<(), ExecError>,
) -> Result<Timed, ExecError> {
    // The first lays out memory, the second is the first that finds it.
    work(mode)?;
    work(mode)?;
    let before = mode.seconds().to_vec();
    let traffic = mode.worker().unwrap_or_default();
    let mut seconds = Vec::with_capacity(repeats);
    let faults = minor_faults();
    for _ in 0..repeats {
        let start = Instant::now();
        work(mode)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let faults = minor_faults().saturating_sub(faults);
    let layers = mode.seconds().iter().zip(&before).map(|(now, before)| now.since(before)).collect();
    let after = mode.worker().unwrap_or_default();
    let each = repeats.max(1) as u64;
    let traffic = Traffic {
        to_worker: (after.bytes_to_worker - traffic.bytes_to_worker) / each,
        from_worker: (after.bytes_from_worker - traffic.bytes_from_worker) / each,
    };
    Ok((seconds, layers, traffic, faults / each))
}

/// Pages that this process was given so far without reading from storage; 0 where the system does not tell.
fn minor_faults() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program may hold anything; the tenth field is the eighth behind it.
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind.split_ascii_whitespace().nth(7).and_then(|faults| faults.parse().ok()).unwrap_or_default()
}

/// Median seconds of everything but the convolutions that `plan` splits, where all of them were computed here.
fn outside(plan: &Plan, seconds: &[f64], layers: &[Seconds]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let split = layers.iter().zip(&plan.convs).filter(|(_, conv)| conv.placement.is_split());
    let inside: f64 = split.map(|(layer, _)| layer.trusted + layer.fold).sum();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    (median - inside / seconds.len().max(1) as f64).max(0.0)
}
