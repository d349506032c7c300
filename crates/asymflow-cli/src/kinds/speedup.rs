//! `kind = "speedup"`: every mode timed, layer by layer.

use asymflow::job::{JobReport, Task};
use asymflow::modes::ModeRef;
use asymflow::speedup::{NamedMode, SpeedupReport, SpeedupSpec, Variant};
use asymflow_engine::timing::Seconds;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind};
use crate::run::{Run, wrong_answer};
use crate::tables::{SECONDS_HEAD, seconds_row};
use crate::text::{markdown, median};

/// `[speedup]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeedupSection {
    /// Samples in a batch.
    pub batch: usize,
    /// Timed repetitions.
    pub repeats: usize,
    /// Decompositions AsymML is timed with.
    pub decompositions: Vec<String>,
    /// Whether training steps are timed.
    pub train: bool,
}

impl Default for SpeedupSection {
    fn default() -> Self {
        let decompositions = vec!["gram".to_owned(), "shared-basis".to_owned()];
        Self { batch: 32, repeats: 5, decompositions, train: true }
    }
}

/// Times each network in `trusted-only`, in `asymml` with each decomposition, and in `clear`.
pub struct Speedup;

impl ExperimentKind for Speedup {
    type Settings = SpeedupSection;
    type Results = Vec<SpeedupReport>;

    fn name(&self) -> &'static str {
        "speedup"
    }

    fn section(&self) -> Option<&'static str> {
        Some("speedup")
    }

    fn limits(&self) -> &'static [Limit] {
        const { &[Limit::within("speedup.batch", 1.0, 1e6), Limit::within("speedup.repeats", 1.0, 1e6)] }
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn batch(&self, _: &Experiment, settings: &SpeedupSection) -> usize {
        settings.batch
    }

    fn run(&self, run: &Run, settings: &SpeedupSection) -> Result<(Ended, Option<Self::Results>), CliError> {
        let worker = run.open_worker()?;
        let e = run.experiment();
        let mut reports = Vec::new();
        for model in &e.model.names {
            if run.is_interrupted() {
                return Ok((Ended::Interrupted, None));
            }
            let spec = SpeedupSpec {
                batch: settings.batch,
                repeats: settings.repeats,
                variants: variants(e, settings, model)?,
                train: settings.train,
                seed: e.train.seeds[0],
            };
            run.say(&format!("timing {model}, batch {}", settings.batch));
            let job = run.job(Entry::of("asymml"), model, Some(worker), Task::Speedup(spec))?;
            let JobReport::Speedup(report) = run.execute(model, job)? else { return Err(wrong_answer()) };
            run.say(&line(&report));
            reports.push(report);
        }
        Ok((Ended::Whole, Some(reports)))
    }

    fn table(&self, experiment: &Experiment, settings: &SpeedupSection, reports: &Self::Results) -> String {
        table(experiment, settings, reports)
    }
}

/// Everything in the trusted part, then split by each decomposition, then everything on the worker.
fn variants(e: &Experiment, settings: &SpeedupSection, model: &str) -> Result<Vec<NamedMode>, CliError> {
    let named = |name: String, e: &Experiment, entry| {
        let mode = ModeRef::of(&*e.mode_spec(entry, model)?).map_err(|e| CliError::failed(e.to_string(), ""))?;
        Ok::<_, CliError>(NamedMode { name, mode })
    };
    let mut variants = vec![named("trusted-only".to_owned(), e, Entry::of("trusted-only"))?];
    for decomposition in &settings.decompositions {
        let mut split = e.clone();
        split.mode.decomposition.clone_from(decomposition);
        variants.push(named(format!("asymml {decomposition}"), &split, Entry::of("asymml"))?);
    }
    variants.push(named("clear".to_owned(), e, Entry::of("clear"))?);
    Ok(variants)
}

fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{:.1} ({:.1}–{:.1})", 1e3 * median(values), 1e3 * low, 1e3 * high)
}

fn row(variant: &Variant, baseline: &Variant, batch: usize) -> [String; 8] {
    let ratio = |ours: &[f64], theirs: &[f64]| {
        if ours.is_empty() { "-".to_owned() } else { format!("{:.2}×", median(theirs) / median(ours)) }
    };
    let share = match &variant.plan {
        Some(plan) => format!("{:.1} %", 100.0 * plan.trusted_macs() as f64 / plan.full_macs().max(1) as f64),
        None => "0 %".to_owned(),
    };
    let kib = |bytes: u64| format!("{:.0}", bytes as f64 / 1024.0 / batch.max(1) as f64);
    [
        variant.name.clone(),
        share,
        spread(&variant.inference),
        ratio(&variant.inference, &baseline.inference),
        spread(&variant.training),
        ratio(&variant.training, &baseline.training),
        kib(variant.inference_traffic.to_worker),
        kib(variant.training_traffic.to_worker),
    ]
}

const HEAD: [&str; 8] = [
    "mode",
    "trusted MACs",
    "inference ms",
    "over trusted-only",
    "training step ms",
    "over trusted-only",
    "KiB to worker / inference",
    "KiB to worker / training sample",
];

/// The ratios of one network in one line.
fn line(report: &SpeedupReport) -> String {
    let Some(baseline) = report.variants.first() else { return String::new() };
    let parts: Vec<String> =
        report.variants.iter().map(|v| format!("{} {:.1} ms", v.name, 1e3 * median(&v.inference))).collect();
    format!("{}: inference {} (baseline {})", report.network, parts.join(", "), baseline.name)
}

fn table(experiment: &Experiment, settings: &SpeedupSection, reports: &[SpeedupReport]) -> String {
    let mut text = format!(
        "Medians of {} repetitions (smallest–largest), batch {}, rank {}.\n",
        settings.repeats, settings.batch, experiment.mode.rank,
    );
    for report in reports {
        let Some(baseline) = report.variants.first() else { continue };
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(report.variants.iter().map(|v| row(v, baseline, report.batch)));
        text += &format!("\n## {}\n\n{}", report.network, markdown(&rows));
        for variant in &report.variants {
            let Some(plan) = &variant.plan else { continue };
            let counted = variant.inference.len().max(1) as f64;
            let mut rows = vec![SECONDS_HEAD.map(|head| head.replace(" s", " ms"))];
            for (conv, seconds) in plan.convs.iter().zip(&variant.inference_layers) {
                rows.push(seconds_row(&conv.layer, &scaled(seconds, 1e3 / counted)));
            }
            text += &format!("\n{}, one inference by convolution:\n\n{}", variant.name, markdown(&rows));
        }
    }
    text
}

fn scaled(s: &Seconds, factor: f64) -> Seconds {
    Seconds {
        decompose: s.decompose * factor,
        fold: s.fold * factor,
        trusted: s.trusted * factor,
        worker: s.worker * factor,
        wait: s.wait * factor,
        transfer: s.transfer * factor,
        release: s.release * factor,
    }
}
