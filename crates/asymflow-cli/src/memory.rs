//! `asymflow explain memory`: the trusted part's memory as it is planned.

use asymflow::job::{JobSpec, Task};
use asymflow::memory::{MemoryPlan, show_bytes};
use asymflow::modes::{Sampling, Serving};
use asymflow::service::{REMEMBERED, ServedModel};
use asymflow_enclave::manifest::ManifestSpec;
use asymflow_zoo::data::Normalization;

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::run;
use crate::text::markdown;

/// Threads beside those that compute, as `cargo xtask enclave` plans them.
const IO_THREADS: u32 = 16;

/// Mebibytes.
pub fn show(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

const PARTS: [&str; 13] = [
    "mode",
    "weights",
    "optimiser",
    "activations",
    "scratch",
    "decomposition",
    "crossing",
    "states",
    "data",
    "products",
    "start-up",
    "peak",
    "enclave",
];

fn parts(name: String, plan: &MemoryPlan, threads: usize) -> Result<[String; 13], CliError> {
    let manifest = ManifestSpec::new("asymflow-enclaved", threads.max(1) as u32, IO_THREADS, plan.peak_bytes);
    let enclave = manifest.enclave_bytes().map_err(|e| CliError::usage(e.to_string(), "take a smaller batch"))?;
    Ok([
        name,
        show(plan.weights_bytes),
        show(plan.optimiser_bytes),
        show(plan.kept_bytes + plan.working_bytes),
        show(plan.scratch_bytes),
        show(plan.decomposition_bytes),
        show(plan.release_bytes + plan.wire_bytes),
        show(plan.state_bytes + plan.checkpoint_bytes),
        show(plan.data_bytes + plan.answers_bytes),
        show(plan.matmul_bytes),
        show(plan.startup_bytes),
        show(plan.peak_bytes),
        show_bytes(enclave),
    ])
}

/// `asymflow explain memory`: what training and serving take in every mode, and the enclave that follows.
pub fn explain(experiment: &Experiment) -> Result<String, CliError> {
    let unusable = |e: asymflow::memory::MemoryError| CliError::usage(e.to_string(), "see `asymflow show`");
    let mut text = String::new();
    for model in &experiment.model.names {
        let mut rows = vec![PARTS.map(str::to_owned)];
        for &entry in &experiment.entries {
            let task = Task::Train(experiment.train_spec(experiment.train.seeds[0]));
            let job = run::job_spec(experiment, entry, model, None, task)?;
            let plan = MemoryPlan::of_job(&job, &experiment.registry).map_err(unusable)?;
            rows.push(parts(format!("{entry}, training"), &plan, job.threads)?);
            let mode = experiment.mode_spec(entry, model)?;
            let served = served(&job, experiment.train.batch);
            let serving = mode.serving(&served.facts(&experiment.registry));
            let serving = serving.map_err(|e| CliError::usage(e.to_string(), "see `asymflow show`"))?;
            if matches!(serving, Serving::Served { .. }) {
                let sizes = (SERVED_BATCH, job.threads);
                let plan = MemoryPlan::of_service(&served, sizes, false, REMEMBERED, &experiment.registry);
                let plan = plan.map_err(unusable)?;
                rows.push(parts(format!("{entry}, serving"), &plan, job.threads)?);
            }
        }
        text += &format!(
            "## {model}\n\nTraining with batches of {}, serving with batches of {SERVED_BATCH}; MiB, except the enclave's \
             size. `cargo xtask enclave manifest … -- serve …` plans the same from the model file.\n\n{}\n",
            experiment.train.batch,
            markdown(&rows)
        );
    }
    Ok(text)
}

/// The default of `asymflow-enclaved serve --batch`.
const SERVED_BATCH: usize = 8;

fn served(job: &JobSpec, batch: usize) -> ServedModel {
    let (mode, sampling) = ((job.mode.clone(), Vec::new()), Sampling { batch, records: batch });
    ServedModel::new(mode, job.network.clone(), job.terms, sampling, Normalization::default(), Vec::new())
}
