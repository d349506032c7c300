//! `kind = "memory-study"`: how much memory the trusted part takes, beside what was planned.

use asymflow::memory::{MemoryPlan, show_bytes};
use asymflow::modes::Serving;
use asymflow::studies::{self, MemoryReport, Study, StudyError};
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit, size};
use crate::inside;
use crate::kind::{Ended, ExperimentKind, Verdict};
use crate::memory::show;
use crate::run::Run;
use crate::text::markdown;
use crate::worker::WorkerProcess;

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
    /// Whether inference with streamed weights is measured in modes that can.
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

/// Runs every network in every mode, each in a process of its own, and holds its heap to the plan.
pub struct MemoryStudy;

impl ExperimentKind for MemoryStudy {
    type Settings = MemorySection;
    type Results = Vec<Cell>;

    fn name(&self) -> &'static str {
        "memory-study"
    }

    fn section(&self) -> Option<&'static str> {
        Some("memory")
    }

    fn limits(&self) -> &'static [Limit] {
        const { &[Limit::whole("memory.batches", 1.0, 1e6), Limit::whole("memory.repeats", 1.0, 1e6)] }
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn run(&self, run: &Run, settings: &MemorySection) -> Result<(Ended, Option<Vec<Cell>>), CliError> {
        let worker = run.worker()?;
        let below = size("memory.measure_below", &settings.measure_below)?;
        let e = run.experiment();
        let mut cells = Vec::new();
        for (model, entry, is_training, is_streamed) in passes(e, settings)? {
            for &batch in &settings.batches {
                if run.is_interrupted() {
                    return Ok((Ended::Interrupted, None));
                }
                let sealed = run.folder().path().join(SEALED_WEIGHTS);
                let place = || inside::place(&e.trusted, &sealed, "--sealed");
                let streamed = is_streamed.then(place).transpose()?;
                let spec = studies::MemoryStudy {
                    batch,
                    is_training,
                    repeats: settings.repeats,
                    streamed,
                    seed: e.train.seeds[0],
                };
                let cell = measure(run, entry, model, worker, spec, below)?;
                run.say(&line(&cell));
                cells.push(cell);
            }
        }
        Ok((Ended::Whole, Some(cells)))
    }

    fn table(&self, experiment: &Experiment, settings: &MemorySection, cells: &Vec<Cell>) -> String {
        table(experiment, settings, cells)
    }

    fn verdict(&self, _: &Experiment, _: &MemorySection, cells: &Vec<Cell>) -> Option<Verdict> {
        let above: Vec<String> = cells.iter().filter(|cell| is_above_plan(cell)).map(line).collect();
        let text = if above.is_empty() {
            "claim: holds: nothing took more than was planned".to_owned()
        } else {
            format!("claim: does not hold, more was taken than planned: {}", above.join("; "))
        };
        Some(Verdict { holds: above.is_empty(), text })
    }
}

/// Every network, mode and pass that is measured: network, mode, whether it trains, whether its weights are streamed.
fn passes<'a>(e: &'a Experiment, settings: &MemorySection) -> Result<Vec<(&'a str, Entry, bool, bool)>, CliError> {
    let terms = e.terms();
    let mut passes = Vec::new();
    for model in &e.model.names {
        for &entry in &e.entries {
            let (mode, network) = (e.mode_spec(entry, model)?, e.network(&entry.model(model))?);
            let serving =
                mode.serving(&e.facts(&network, &terms, 1)).map_err(|e| CliError::usage(e.to_string(), ""))?;
            let can_stream = matches!(serving, Serving::Served { can_stream: true, .. });
            passes.push((model.as_str(), entry, false, false));
            passes.extend((settings.streamed && can_stream).then_some((model.as_str(), entry, false, true)));
            passes.extend(settings.train.then_some((model.as_str(), entry, true, false)));
        }
    }
    Ok(passes)
}

/// One enclave process, so that its peak is that of one mode.
fn measure(
    run: &Run,
    entry: Entry,
    model: &str,
    worker: Option<&WorkerProcess>,
    spec: studies::MemoryStudy,
    below: u64,
) -> Result<Cell, CliError> {
    let failed = |e: StudyError| CliError::failed(e.to_string(), "");
    let needs_worker = run.experiment().mode_spec(entry, model)?.needs_worker();
    let job = run.job(entry, model, worker.filter(|_| needs_worker), spec.task().map_err(failed)?)?;
    let plan = MemoryPlan::of_job(&job, &run.experiment().registry)
        .map_err(|e| CliError::usage(format!("{model}: {e}"), ""))?;
    let mode = if spec.streamed.is_some() { format!("{entry}{STREAMED}") } else { entry.to_string() };
    let measured = if plan.peak_bytes > below {
        None
    } else {
        let report = run.execute(&format!("{model} {mode}"), job)?;
        Some(studies::MemoryStudy::report(report).map_err(failed)?)
    };
    // The key died with the process.
    let _ = std::fs::remove_file(run.folder().path().join(SEALED_WEIGHTS));
    let studies::MemoryStudy { batch, is_training, .. } = spec;
    Ok(Cell { model: model.to_owned(), mode, batch, is_training, plan, measured })
}

/// The smallest memory that holds `bytes`.
fn fits(bytes: u64) -> String {
    let found = ENCLAVE_MEMORY.iter().find(|(_, size)| bytes <= *size);
    found.map_or_else(|| "more".to_owned(), |(name, _)| (*name).to_owned())
}

/// Name of the file of streamed weights.
const SEALED_WEIGHTS: &str = "weights.sealed";

/// Below it the program itself is most of what is planned.
const LARGE_BYTES: u64 = 16 << 20;

const HEAD: [&str; 8] = ["mode", "pass", "batch", "planned", "counted", "ratio", "resident", "EPC that holds it"];

/// Plan and count, both without what matrix products reserve. The study makes weights by seed before it seals those that
/// are streamed; a service reads them piece by piece, so that only what comes after counts.
fn planned_and_counted(cell: &Cell) -> (u64, Option<u64>) {
    let measured = cell.measured.as_ref();
    if cell.mode.ends_with(STREAMED) {
        let planned = cell.plan.running_bytes().saturating_sub(cell.plan.matmul_bytes);
        return (planned, measured.and_then(MemoryReport::running_used_bytes));
    }
    (cell.plan.touched_bytes(), measured.and_then(MemoryReport::used_bytes))
}

/// Whether more was counted than planned: a plan has to be an upper bound.
fn is_above_plan(cell: &Cell) -> bool {
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
    for streamed in cells {
        let Some(mode) = streamed.mode.strip_suffix(STREAMED) else { continue };
        let held = cells.iter().find(|cell| {
            (cell.mode.as_str(), cell.is_training) == (mode, false)
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

/// Behind the name of a mode whose weights are streamed.
const STREAMED: &str = ", streamed";

fn table(experiment: &Experiment, settings: &MemorySection, cells: &[Cell]) -> String {
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
        settings.measure_below,
    );
    for model in &experiment.model.names {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(cells.iter().filter(|cell| cell.model == *model).map(row));
        text += &format!("\n## {model}\n\n{}", markdown(&rows));
    }
    text + &streaming(cells)
}

/// One line about a cell.
fn line(cell: &Cell) -> String {
    let [mode, pass, batch, planned, counted, ..] = row(cell);
    format!("{} {mode} {pass} batch {batch}: planned {planned} MiB, counted {counted}", cell.model)
}
