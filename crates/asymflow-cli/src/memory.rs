//! `kind = "memory-study"` and `asymflow explain memory`: the trusted part's memory, planned and counted.

use asymflow::delta::Sampling;
use asymflow::job::{JobSpec, Task};
use asymflow::memory::{MemoryPlan, parse_bytes, show_bytes};
use asymflow::memory_study::MemoryReport;
use asymflow::service::{REMEMBERED, ServedModel};
use asymflow_enclave::manifest::ManifestSpec;
use asymflow_zoo::data::Normalization;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::run;
use crate::summary::markdown;

/// Threads beside those that compute, as `cargo xtask enclave` plans them.
const IO_THREADS: u32 = 16;
/// Memory of older SGX as a whole, of which the system takes part, and sizes that are set up today.
const ENCLAVE_MEMORY: [(&str, u64); 5] =
    [("128 MiB", 128 << 20), ("256 MiB", 256 << 20), ("1 GiB", 1 << 30), ("8 GiB", 8 << 30), ("64 GiB", 64 << 30)];

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// Samples in a batch.
    pub batches: Vec<usize>,
    /// How often each is done; memory is used again from the second on.
    pub repeats: usize,
    /// Whether steps of training are measured beside inference.
    pub train: bool,
    /// Whether inference with streamed weights is measured in trusted-only.
    pub streamed: bool,
    /// What is planned to take more than this is not run.
    pub measure_below: String,
}

impl Default for MemorySection {
    fn default() -> Self {
        let measure_below = "4GiB".to_owned();
        Self { batches: vec![1, 8, 32], repeats: 2, train: true, streamed: true, measure_below }
    }
}

/// One network in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The network.
    pub model: String,
    /// The mode.
    pub mode: String,
    /// Samples in a batch.
    pub batch: usize,
    /// Training, or inference.
    pub is_training: bool,
    /// What was planned.
    pub plan: MemoryPlan,
    /// What was measured; null where the plan is above `measure_below`.
    pub measured: Option<MemoryReport>,
}

/// A size of the experiment file.
pub fn size(key: &str, text: &str) -> Result<u64, CliError> {
    parse_bytes(text).map_err(|e| CliError::usage(format!("{key}: {e}"), "e.g. \"2GiB\""))
}

fn show(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

/// The smallest memory that holds `bytes`.
fn fits(bytes: u64) -> String {
    let found = ENCLAVE_MEMORY.iter().find(|(_, size)| bytes <= *size);
    found.map_or_else(|| "more".to_owned(), |(name, _)| (*name).to_owned())
}

/// Below it the program itself is most of what is planned.
const LARGE_BYTES: u64 = 16 << 20;

const HEAD: [&str; 8] = ["mode", "pass", "batch", "planned", "counted", "ratio", "resident", "EPC that holds it"];

/// Plan and count, both without what matrix products reserve. The study makes weights by seed before it seals those that
/// are streamed; a service reads them piece by piece, so that only what comes after counts.
fn planned_and_counted(cell: &Cell) -> (u64, Option<u64>) {
    let measured = cell.measured.as_ref();
    if cell.mode == STREAMED {
        let planned = cell.plan.running_bytes().saturating_sub(cell.plan.matmul_bytes);
        return (planned, measured.and_then(MemoryReport::running_used_bytes));
    }
    (cell.plan.touched_bytes(), measured.and_then(MemoryReport::used_bytes))
}

/// Whether more was counted than planned: a plan has to be an upper bound.
pub fn is_above_plan(cell: &Cell) -> bool {
    ratio(cell).is_some_and(|ratio| ratio < 1.0)
}

fn ratio(cell: &Cell) -> Option<f64> {
    let (planned, counted) = planned_and_counted(cell);
    Some(planned as f64 / counted? as f64)
}

fn row(cell: &Cell) -> [String; 8] {
    let (planned, counted) = planned_and_counted(cell);
    let resident = cell.measured.as_ref().and_then(|m| m.process.resident_peak_bytes);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    [
        cell.mode.clone(),
        if cell.is_training { "training" } else { "inference" }.to_owned(),
        cell.batch.to_string(),
        show(planned),
        or_dash(counted.map(show)),
        or_dash(ratio(cell).map(|ratio| format!("{ratio:.2}"))),
        or_dash(resident.map(show)),
        fits(planned),
    ]
}

/// Seconds of a batch after the first, which finds its memory fresh.
fn seconds(cell: &Cell) -> Option<f64> {
    let mut later = cell.measured.as_ref()?.seconds.get(1..)?.to_vec();
    later.sort_by(f64::total_cmp);
    later.get(later.len() / 2).copied()
}

/// What streaming costs: inference with weights held and with weights streamed.
fn streaming(cells: &[Cell]) -> String {
    let mut rows =
        vec![["model", "batch", "held ms", "streamed ms", "ratio", "held MiB", "streamed MiB"].map(str::to_owned)];
    for streamed in cells.iter().filter(|cell| cell.mode == STREAMED) {
        let held = cells.iter().find(|cell| {
            (cell.mode.as_str(), cell.is_training) == ("trusted-only", false)
                && (&cell.model, cell.batch) == (&streamed.model, streamed.batch)
        });
        let Some((held, held_seconds, streamed_seconds)) =
            held.and_then(|h| Some((h, seconds(h)?, seconds(streamed)?)))
        else {
            continue;
        };
        let running = |cell: &Cell| {
            cell.measured.as_ref().and_then(MemoryReport::running_used_bytes).map_or_else(String::new, show)
        };
        rows.push([
            streamed.model.clone(),
            streamed.batch.to_string(),
            format!("{:.1}", 1e3 * held_seconds),
            format!("{:.1}", 1e3 * streamed_seconds),
            format!("{:.2}×", streamed_seconds / held_seconds),
            running(held),
            running(streamed),
        ]);
    }
    if rows.len() == 1 {
        String::new()
    } else {
        format!("\n## Streamed weights\n\nHeap while answering:\n\n{}", markdown(&rows))
    }
}

/// Name of trusted-only with streamed weights.
pub const STREAMED: &str = "trusted-only, streamed";

/// The study as Markdown.
pub fn render(experiment: &Experiment, cells: &[Cell]) -> String {
    let large = cells.iter().filter(|cell| planned_and_counted(cell).0 > LARGE_BYTES);
    let ratios: Vec<f64> = large.filter_map(ratio).collect();
    let (low, high) = ratios.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), &r| (low.min(r), high.max(r)));
    let reserved = cells.iter().map(|cell| cell.plan.matmul_bytes).filter(|&bytes| bytes > 0).min();
    let mut text = format!(
        "MiB. *Planned* and *counted*: the most heap of the enclave process from its start to its end, each a process of its \
         own; of {} that are planned above {}, the plan is {low:.2} to {high:.2} times the count. *Resident*: VmHWM, code and \
         stacks included. Not in the first two: {} that faer reserves on this machine for every thread that computes matrix \
         products (twice the last-level cache), and hardly touches; an enclave's size has to include it. *EPC that holds \
         it*: the smallest of {} that the plan fits into. With *streamed* weights the set-up is left \
         out, in which this study makes them by seed (resident memory shows it). A dash: planned to take more than {}, and not \
         run.\n",
        ratios.len(),
        show_bytes(LARGE_BYTES),
        reserved.map_or_else(String::new, show_bytes),
        ENCLAVE_MEMORY.map(|(name, _)| name).join(", "),
        experiment.memory.measure_below,
    );
    for model in &experiment.model.names {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(cells.iter().filter(|cell| cell.model == *model).map(row));
        text += &format!("\n## {model}\n\n{}", markdown(&rows));
    }
    text + &streaming(cells)
}

/// One line about a cell.
pub fn line(cell: &Cell) -> String {
    let [mode, pass, batch, planned, counted, ..] = row(cell);
    format!("{} {mode} {pass} batch {batch}: planned {planned} MiB, counted {counted}", cell.model)
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
        for &entry in &experiment.mode.run {
            let task = Task::Train(experiment.train_spec(experiment.train.seeds[0]));
            let job = run::job_spec(experiment, entry, model, None, task)?;
            let plan = MemoryPlan::of_job(&job).map_err(unusable)?;
            rows.push(parts(format!("{entry}, training"), &plan, job.threads)?);
            if is_served(entry) {
                let plan = MemoryPlan::of_service(&served(&job), SERVED_BATCH, job.threads, false, REMEMBERED);
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

fn is_served(entry: Entry) -> bool {
    use asymflow::job::ModeKind;
    !matches!(entry.kind, ModeKind::Clear | ModeKind::NaiveDp)
}

fn served(job: &JobSpec) -> ServedModel {
    let batch = match &job.task {
        Task::Train(spec) => spec.batch,
        _ => SERVED_BATCH,
    };
    ServedModel::of(job, Sampling { batch, records: batch }, Normalization::default(), Vec::new())
}
