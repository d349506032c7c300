//! `kind = "speedup"`: what a split's trusted side costs alone, with modelled cards and with the worker at hand, beside everything in the
//! trusted part, what this machine could do at most, and PyTorch.

mod table;
mod torch;

use std::collections::BTreeMap;

use asymflow::job::WorkerSpec;
use asymflow::modes::ModeRef;
use asymflow::studies::{self, NamedMode, SpeedupReport, Variant};
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind};
use crate::machine;
use crate::run::Run;
use crate::text::median;
use crate::worker::WorkerProcess;
use torch::Torch;

/// `[speedup]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeedupSection {
    /// Samples in a batch.
    pub batches: Vec<usize>,
    /// Timed repetitions.
    pub repeats: usize,
    /// Decompositions AsymML is timed with.
    pub decompositions: Vec<String>,
    /// Modelled cards by name: TFLOPS:GB/s:µs.
    pub cards: BTreeMap<String, String>,
    /// Whether training steps are timed.
    pub train: bool,
}

impl Default for SpeedupSection {
    fn default() -> Self {
        let decompositions = vec!["gram".to_owned(), "shared-basis".to_owned()];
        let cards = [("RTX 5000", "11.2:12:20"), ("H200", "67:50:10")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        Self { batches: vec![8, 32], repeats: 7, decompositions, cards: cards.into(), train: true }
    }
}

/// How often faster than `trusted-only` something is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// Of an inference.
    pub inference: f64,
    /// Of a training step; absent where none was timed.
    pub training: Option<f64>,
}

/// One network at one batch with one basis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpeedup {
    /// The network.
    pub name: String,
    /// Samples in a batch.
    pub batch: usize,
    /// The decomposition.
    pub basis: String,
    /// With a worker that answers at once: what the trusted side and the wire leave.
    pub null: Ratios,
    /// What this machine could do at most.
    pub limit: Ratios,
    /// With modelled cards and the worker at hand, by name.
    pub workers: BTreeMap<String, Ratios>,
    /// What all bases' ratios follow from, beside the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What was measured of one network at one batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Times of every variant.
    pub report: SpeedupReport,
    /// The basis and the worker of every variant; none where there is none.
    pub labels: Vec<Label>,
    /// PyTorch on the same threads.
    pub torch: Torch,
}

/// What a variant is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The mode.
    pub mode: String,
    /// The decomposition, in a mode that splits.
    pub basis: Option<String>,
    /// The worker.
    pub worker: Option<String>,
}

/// Name of the worker that answers at once.
const NULL: &str = "null";

/// A worker under a name.
struct Named {
    name: String,
    /// Whether its answers are results.
    is_real: bool,
    spec: Option<WorkerSpec>,
    _process: Option<WorkerProcess>,
}

/// Times each network in `trusted-only`, in `asymml` with each basis and worker, and in `clear`.
pub struct Speedup;

impl ExperimentKind for Speedup {
    type Settings = SpeedupSection;
    type Results = Vec<NetworkSpeedup>;

    fn name(&self) -> &'static str {
        "speedup"
    }

    fn results_name(&self) -> &'static str {
        "networks"
    }

    fn section(&self) -> Option<&'static str> {
        Some("speedup")
    }

    fn limits(&self) -> &'static [Limit] {
        const { &[Limit::whole("speedup.batches", 1.0, 1e6), Limit::whole("speedup.repeats", 1.0, 1e6)] }
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn batch(&self, _: &Experiment, settings: &SpeedupSection) -> usize {
        settings.batches.first().copied().unwrap_or(1)
    }

    fn run(&self, run: &Run, settings: &SpeedupSection) -> Result<(Ended, Option<Self::Results>), CliError> {
        let real = run.open_worker()?;
        let workers = workers(run, settings, real)?;
        let mut results = Vec::new();
        let threads =
            if run.experiment().trusted.threads == 0 { machine::cores() } else { run.experiment().trusted.threads };
        for model in &run.experiment().model.names {
            for &batch in &settings.batches {
                if run.is_interrupted() {
                    return Ok((Ended::Interrupted, Some(results)));
                }
                run.say(&format!("timing {model}, batch {batch}"));
                let (labels, variants) = variants(run.experiment(), settings, model, &workers)?;
                let (repeats, train, seed) = (settings.repeats, settings.train, run.experiment().train.seeds[0]);
                let study = studies::Speedup { batch, repeats, variants, train, seed };
                let report = run.study(model, (Entry::of("asymml"), model, Some(real)), &study)?;
                let torch = Torch::time(model, batch, threads, repeats);
                let measured = Measured { report, labels, torch };
                let mut found = measured.ratios();
                found.iter().for_each(|network| run.say(&line(network)));
                if let Some(first) = found.first_mut() {
                    first.measured = Some(measured);
                }
                results.extend(found);
            }
        }
        Ok((Ended::Whole, Some(results)))
    }

    fn table(&self, experiment: &Experiment, settings: &SpeedupSection, results: &Self::Results) -> String {
        table::table(experiment, settings, results)
    }
}

/// The worker that answers at once, the modelled cards, and the one at hand.
fn workers(run: &Run, settings: &SpeedupSection, real: &WorkerProcess) -> Result<Vec<Named>, CliError> {
    let cards = settings.cards.iter().map(|(name, card)| (format!("{name} (modelled)"), format!("model:{card}")));
    let mut workers = Vec::new();
    for (name, device) in std::iter::once((NULL.to_owned(), "null".to_owned())).chain(cards) {
        let (process, spec) = run.start_worker(&device)?;
        workers.push(Named { name, is_real: false, spec: Some(spec), _process: Some(process) });
    }
    workers.push(Named { name: real.device.clone(), is_real: true, spec: None, _process: None });
    Ok(workers)
}

/// Everything in the trusted part, then split by each decomposition with each worker, then everything on the worker at hand.
fn variants(
    e: &Experiment,
    settings: &SpeedupSection,
    model: &str,
    workers: &[Named],
) -> Result<(Vec<Label>, Vec<NamedMode>), CliError> {
    let (mut labels, mut variants) = (Vec::new(), Vec::new());
    let mut add = |e: &Experiment, mode: &'static str, basis: Option<&String>, worker: Option<&Named>| {
        let reference = ModeRef::of(&*e.mode_spec(Entry::of(mode), model)?);
        let reference = reference.map_err(|e| CliError::failed(e.to_string(), ""))?;
        let label = Label { mode: mode.to_owned(), basis: basis.cloned(), worker: worker.map(|w| w.name.clone()) };
        let name = [Some(&label.mode), basis, label.worker.as_ref()].into_iter().flatten().cloned().collect::<Vec<_>>();
        let worker = worker.and_then(|worker| worker.spec.clone());
        variants.push(NamedMode { name: name.join(", "), mode: reference, worker });
        labels.push(label);
        Ok::<_, CliError>(())
    };
    add(e, "trusted-only", None, None)?;
    for basis in &settings.decompositions {
        for worker in workers {
            let mut split = e.clone();
            split.mode.decomposition.clone_from(basis);
            // What computes nothing cannot be right.
            split.worker.verify &= worker.is_real;
            add(&split, "asymml", Some(basis), Some(worker))?;
        }
    }
    add(e, "clear", None, workers.last())?;
    Ok((labels, variants))
}

impl Measured {
    fn baseline(&self) -> Option<&Variant> {
        self.report.variants.first()
    }

    /// How often faster than `trusted-only` these seconds are.
    fn over(&self, inference: &[f64], training: &[f64]) -> Ratios {
        let ratio = |theirs: Option<&Vec<f64>>, ours: &[f64]| median(theirs.map_or(&[], Vec::as_slice)) / median(ours);
        let training = Some(ratio(self.baseline().map(|v| &v.training), training)).filter(|ratio| ratio.is_finite());
        Ratios { inference: ratio(self.baseline().map(|v| &v.inference), inference), training }
    }

    fn splits(&self, basis: &str) -> impl Iterator<Item = (&Label, &Variant)> {
        let all = self.labels.iter().zip(&self.report.variants);
        all.filter(move |(label, _)| label.basis.as_deref() == Some(basis))
    }

    fn ratios(&self) -> Vec<NetworkSpeedup> {
        let mut bases: Vec<&String> = self.labels.iter().filter_map(|label| label.basis.as_ref()).collect();
        bases.dedup();
        let of_basis = |basis: &String| {
            let of = |variant: &Variant| self.over(&variant.inference, &variant.training);
            let worker = |(label, variant): (&Label, &Variant)| Some((label.worker.clone()?, of(variant)));
            let mut workers: BTreeMap<String, Ratios> = self.splits(basis).filter_map(worker).collect();
            let limit = self.splits(basis).find_map(|(_, variant)| variant.limit)?;
            Some(NetworkSpeedup {
                name: self.report.network.clone(),
                batch: self.report.batch,
                basis: basis.clone(),
                null: workers.remove(NULL)?,
                limit: self.over(&[limit.inference], &[limit.training]),
                workers,
                measured: None,
            })
        };
        bases.into_iter().filter_map(of_basis).collect()
    }
}

/// The ratios of one network in one line.
fn line(network: &NetworkSpeedup) -> String {
    let NetworkSpeedup { name, batch, basis, null, limit, .. } = network;
    let step = |ratios: &Ratios| ratios.training.map_or(String::new(), |ratio| format!(", {ratio:.2}× a step"));
    format!(
        "{name}, batch {batch}, {basis}: over trusted-only {:.2}×{} with a worker that answers at once, at most {:.2}×{}",
        null.inference,
        step(null),
        limit.inference,
        step(limit)
    )
}
