//! `kind = "train"`: every network, mode and seed, one job after the other.

use std::collections::BTreeMap;
use std::path::Path;

use asymflow::checkpoint::{Checkpoint, from_f32_bytes};
use asymflow::job::{Body, FromTrusted, JobReport, JobSpec, Task, TeacherSpec, TrainReport, TrainSpec, VaultSpec};
use asymflow::modes::{ModeRef, ModeSpec, Sampling};
use asymflow::service::ServedModel;
use asymflow_privacy::accountants::Relation;
use asymflow_zoo::{Weights, weights::files};
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::folder::Folder;
use crate::host::{SEALED, WEIGHTS};
use crate::kind::{Ended, ExperimentKind, Verdict, without_paths};
use crate::plot::{Plot, Point};
use crate::run::{Run, wrong_answer};
use crate::summary::{self, Sources, Summary};
use crate::tables::{SECONDS_HEAD, layers, seconds_row};
use crate::text::{self, markdown};
use crate::worker::WorkerProcess;

mod evaluated;
mod plots;

/// Test accuracy by epoch of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The mode, or the network where there are several.
    pub mode: String,
    pub seed: u64,
    /// Epochs and test accuracies.
    pub test_accuracy: Vec<(usize, f64)>,
    /// Epochs and mean training losses.
    pub loss: Vec<(usize, f64)>,
}

/// One entry a network, mode and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    pub runs: Vec<Summary>,
    /// How they got there.
    pub curves: Vec<Curve>,
}

/// Trains and evaluates every network in every mode with every seed.
pub struct Train;

impl ExperimentKind for Train {
    type Settings = ();
    type Results = Trained;

    fn name(&self) -> &'static str {
        "train"
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn run(&self, run: &Run, (): &()) -> Result<(Ended, Option<Trained>), CliError> {
        let jobs = Jobs(run);
        let worker = run.worker()?;
        let e = run.experiment();
        let mut runs = Vec::new();
        for &seed in &e.train.seeds {
            let wanted = e.model.names.iter().flat_map(|model| e.entries.iter().map(move |&entry| (model, entry)));
            for (model, entry) in wanted {
                if run.is_interrupted() {
                    return Ok((Ended::Interrupted, Some(jobs.compare(runs)?)));
                }
                let done = jobs.train(model, entry, seed, worker)?;
                let is_interrupted = done.status == "interrupted";
                runs.push(done);
                if is_interrupted {
                    return Ok((Ended::Interrupted, Some(jobs.compare(runs)?)));
                }
            }
        }
        Ok((Ended::Whole, Some(jobs.compare(runs)?)))
    }

    fn table(&self, experiment: &Experiment, (): &(), trained: &Trained) -> String {
        comparison(experiment, &trained.runs)
    }

    fn screen(&self, _: &Experiment, (): &(), trained: &Trained) -> Option<String> {
        Some(summary::tables(&trained.runs))
    }

    fn plots(&self, trained: &Trained) -> Vec<(&'static str, Plot)> {
        plots::of(trained)
    }

    fn points(&self, _: &Experiment, trained: &Trained) -> Vec<Point> {
        let pairs = trained.runs.iter().zip(&trained.curves);
        let point = |(run, curve): (&Summary, &Curve)| Point {
            mode: run.mode.clone(),
            network: run.model.clone(),
            data: run.data.name.clone(),
            seed: run.seed,
            accuracy: run.accuracy.test,
            trusted_seconds: run.seconds.trusted + run.seconds.decompose + run.seconds.fold + run.seconds.release,
            epsilon: run.privacy.epsilon,
            insecure: run.insecure.clone(),
            curve: curve.test_accuracy.clone(),
            ..Point::default()
        };
        pairs.map(point).collect()
    }

    fn verdict(&self, experiment: &Experiment, (): &(), trained: &Trained) -> Option<Verdict> {
        let limit = experiment.report.max_accuracy_gap?;
        let mean = |mode: &str| {
            let of_mode = trained.runs.iter().filter(|run| run.mode == mode);
            let values: Vec<f64> = of_mode.filter_map(|run| run.accuracy.test).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let (clear, asymml) = mean("clear").zip(mean("asymml"))?;
        let holds = clear - asymml <= limit;
        let verdict = if holds { "holds" } else { "does not hold" };
        let text = format!(
            "claim: {verdict}: asymml minus clear is {:+.2} points, allowed are -{:.2}",
            100.0 * (asymml - clear),
            100.0 * limit
        );
        Some(Verdict { holds, text })
    }

    fn without_machine_paths(&self, trained: &mut Trained, last: &dyn Fn(&Path) -> String) {
        trained.runs.iter_mut().for_each(|run| run.command = without_paths(&run.command));
        for teacher in trained.runs.iter_mut().filter_map(|run| run.train.teacher.as_mut()) {
            let folder = teacher.model.parent().map_or_else(String::new, last);
            teacher.model = Path::new(&folder).join(last(&teacher.model));
        }
    }
}

/// The jobs of one run.
struct Jobs<'a>(&'a Run);

impl Jobs<'_> {
    /// Folder of one run: named after the network too where there are several.
    fn run_name(&self, model: &str, mode: &str, seed: u64) -> String {
        let model = if self.0.experiment().model.names.len() > 1 { format!("{model}-") } else { String::new() };
        format!("{model}{mode}-seed{seed}").replace(':', "-")
    }

    /// What a network learns from: the model of an earlier run of the same mode and seed.
    fn teacher(&self, model: &str, entry: Entry, seed: u64) -> Result<Option<TeacherSpec>, CliError> {
        let (names, train) = (&self.0.experiment().model.names, &self.0.experiment().train);
        let Some(name) = &train.teacher else { return Ok(None) };
        let of = |name: &str| names.iter().position(|known| known == name);
        let Some(teacher) = of(name) else {
            return Err(CliError::usage(format!("train.teacher: no network named {name}"), "name one of model.names"));
        };
        if of(model).is_none_or(|at| at <= teacher) {
            return Ok(None);
        }
        let model = self.0.folder().path().join(self.run_name(name, &entry.to_string(), seed)).join("model.asymflow");
        Ok(Some(TeacherSpec { model, temperature: train.teacher_temperature, weight: train.teacher_weight }))
    }

    fn train(&self, model: &str, entry: Entry, seed: u64, worker: Option<&WorkerProcess>) -> Result<Summary, CliError> {
        let several = self.0.experiment().model.names.len() > 1;
        let label = if several { format!("{model} {entry} seed {seed}") } else { format!("{entry} seed {seed}") };
        let folder = self.0.folder().inside(&self.run_name(model, &entry.to_string(), seed))?;
        if let Some(done) = finished(&folder)? {
            self.0.say(&format!("{label}: done before"));
            return Ok(done);
        }
        let kept = if self.0.experiment().trusted.seal { SEALED } else { "checkpoints/latest.safetensors" };
        let checkpoint = folder.read(kept)?;
        if checkpoint.is_some() {
            self.0.say(&format!("{label}: going on from its checkpoint"));
        }
        let mode = self.0.experiment().mode_spec(entry, model)?;
        let evaluator = evaluated::program(self.0, &*mode)?;
        let given = self.given_weights(&entry.model(model), &*mode)?;
        let start = match (&checkpoint, &given) {
            (Some(bytes), _) => (Body::Checkpoint, bytes.as_slice()),
            (None, Some(bytes)) => (Body::Weights, bytes.as_slice()),
            (None, None) => (Body::Empty, &[][..]),
        };
        let teacher = self.teacher(model, entry, seed)?;
        let mut spec = TrainSpec { teacher, ..self.0.experiment().train_spec(seed) };
        if mode.evaluates_once() {
            spec.evaluate_every = spec.epochs;
        }
        let task = Task::Train(spec);
        let worker = worker.filter(|_| mode.needs_worker());
        let mut job = self.0.job(entry, model, worker, task)?;
        job.vault = self.vault(&folder);
        let JobReport::Train(report) = self.0.execute_in(&label, job.clone(), start, &folder)? else {
            return Err(wrong_answer());
        };
        self.leave_weights(&folder, &job, &report, &*mode)?;
        let sources = Sources {
            name: self.0.name(),
            experiment: self.0.experiment(),
            entry,
            mode: &*mode,
            job: &job,
            report: &report,
            assurance: self.0.runtime().assurance().to_string(),
            worker_device: worker.map(|w| w.device.clone()),
        };
        let mut summary = Summary::new(&sources)?;
        if let Some(evaluator) = evaluator.filter(|_| summary.status == "done") {
            self.0.say(&format!("{label}: {} classifies test images", evaluator.1.program));
            evaluated::evaluate(self.0, evaluator, &job.network, &folder, &mut summary)?;
        }
        folder.write_json("summary.json", &summary)?;
        folder.replace("summary.md", table(&summary, &report).as_bytes())?;
        Ok(summary)
    }

    /// Leaves the trained weights of the latest checkpoint under their names, and the model as it can be served.
    fn leave_weights(
        &self,
        folder: &Folder,
        job: &JobSpec,
        report: &TrainReport,
        mode: &dyn ModeSpec,
    ) -> Result<(), CliError> {
        let failed = |e: String| CliError::failed(format!("cannot write weights.safetensors: {e}"), "");
        let flat = match (folder.read(WEIGHTS)?, folder.read("checkpoints/latest.safetensors")?) {
            (Some(bytes), _) => from_f32_bytes(&bytes),
            (None, Some(bytes)) => Checkpoint::decode(&bytes).map_err(|e| failed(e.to_string()))?.state.weights,
            (None, None) => return Ok(()),
        };
        let network = mode.stored_network(&job.network).map_err(|e| failed(e.to_string()))?;
        let weights = Weights::unflatten(&network, &flat).map_err(|e| failed(e.to_string()))?;
        let file = files::encode(&network, &weights).map_err(|e| failed(e.to_string()))?;
        folder.replace("weights.safetensors", &file)?;
        let Task::Train(train) = &job.task else { return Ok(()) };
        let sampling = Sampling { batch: train.batch, records: report.train_images };
        let modes = (job.mode.clone(), self.others(mode, &job.network.name)?);
        let (normalization, names) = (report.normalization.clone(), report.class_names.clone());
        let model = ServedModel::new(modes, job.network.clone(), job.terms, sampling, normalization, names)
            .with_resize(job.data.prepare.resize);
        let model = model.encode(&flat, &self.0.experiment().registry);
        folder.replace("model.asymflow", &model.map_err(|e| failed(e.to_string()))?)
    }

    /// Other modes, with the experiment's settings, that could go on with the weights of this one.
    fn others(&self, mode: &dyn ModeSpec, model: &str) -> Result<Vec<ModeRef>, CliError> {
        let e = self.0.experiment();
        let mut others = Vec::new();
        for name in e.registry.names().filter(|name| mode.is_whole() && *name != mode.name()) {
            // One that does not fit this network is none.
            if let Ok(other) = e.mode_spec(Entry::of(name), model)
                && other.is_whole()
            {
                others.push(ModeRef::of(&*other).map_err(|e| CliError::failed(e.to_string(), ""))?);
            }
        }
        Ok(others)
    }

    /// Where a run in `folder` seals its checkpoints, where it is to.
    fn vault(&self, folder: &Folder) -> Option<VaultSpec> {
        let trusted = &self.0.experiment().trusted;
        let vault = folder.path().join("sealed");
        let guard = trusted.guard.as_ref().map_or_else(
            || vault.join("guard"),
            |guard| {
                let names = folder.path().iter().rev().take(2).collect::<Vec<_>>();
                names.into_iter().rev().fold(guard.clone(), |path, name| path.join(name))
            },
        );
        trusted.seal.then_some(VaultSpec { folder: vault, guard })
    }

    /// The weights to start from, flattened, where the experiment names a file.
    fn given_weights(&self, model: &str, mode: &dyn ModeSpec) -> Result<Option<Vec<u8>>, CliError> {
        let network = self.0.experiment().network(model)?;
        // That of a mode may be another one, as Delta's three networks are.
        let network = mode.stored_network(&network).map_err(|e| CliError::usage(format!("{model}: {e}"), ""))?;
        let Some(weights) = self.0.weights_of(&network)? else { return Ok(None) };
        let flat = weights.flatten(&network).map_err(|e| CliError::usage(e.to_string(), ""))?;
        Ok(Some(flat.iter().flat_map(|v| v.to_le_bytes()).collect()))
    }

    fn compare(&self, mut runs: Vec<Summary>) -> Result<Trained, CliError> {
        let several = self.0.experiment().model.names.len() > 1;
        let mut curves = Vec::new();
        for run in &runs {
            let folder = self.0.folder().inside(&self.run_name(&run.model, &run.mode, run.seed))?;
            let name = if several { &run.model } else { &run.mode };
            curves.push(curve(&folder, name, run.seed)?);
        }
        summary::compare(&mut runs);
        Ok(Trained { runs, curves })
    }
}

/// Reads how one run got to where it is from its metrics. An epoch that was done again after a kill counts as it was done last.
pub fn curve(folder: &Folder, mode: &str, seed: u64) -> Result<Curve, CliError> {
    let text = folder.read("metrics.jsonl")?.unwrap_or_default();
    let mut epochs = BTreeMap::new();
    for line in String::from_utf8_lossy(&text).lines() {
        if let Ok(FromTrusted::Epoch(epoch)) = serde_json::from_str(line) {
            epochs.insert(epoch.epoch, epoch);
        }
    }
    Ok(Curve {
        mode: mode.to_owned(),
        seed,
        test_accuracy: epochs.values().filter_map(|epoch| Some((epoch.epoch, epoch.test_accuracy?))).collect(),
        loss: epochs.values().map(|epoch| (epoch.epoch, epoch.loss)).collect(),
    })
}

/// The summary of a job that is over.
pub fn finished(folder: &Folder) -> Result<Option<Summary>, CliError> {
    let Some(bytes) = folder.read("summary.json")? else { return Ok(None) };
    Ok(serde_json::from_slice::<Summary>(&bytes).ok().filter(|s| s.status != "interrupted"))
}

fn table(summary: &Summary, report: &TrainReport) -> String {
    let mut text = format!(
        "# {} in mode {}, seed {}\n\n{}",
        summary.model,
        summary.mode,
        summary.seed,
        summary::table(std::slice::from_ref(summary))
    );
    if report.layers.len() > 1 {
        let mut rows = vec![SECONDS_HEAD.map(str::to_owned)];
        rows.extend(report.layers.iter().map(|(name, seconds)| seconds_row(name, seconds)));
        text += &format!("\nSeconds by convolution, training and evaluation together:\n\n{}", markdown(&rows));
    }
    if let Some(plan) = &report.plan {
        text += &format!("\nWhere each convolution is computed, for one inference of one sample:\n\n{}", layers(plan));
    }
    text
}

/// What the ε of any of the runs takes as given, each condition once. A summary that names none gets what held of all.
fn conditions(runs: &[Summary]) -> String {
    const UNKEPT: &str = "the networks that it went through before it was released are taken as given, and with them what \
                          they learned from it";
    let of_run = |run: &Summary| {
        if run.privacy.condition.is_empty() { UNKEPT.to_owned() } else { run.privacy.condition.clone() }
    };
    let released = runs.iter().filter(|run| run.privacy.delta.is_some());
    let told: std::collections::BTreeSet<String> =
        released.map(of_run).filter(|condition| condition != "none").collect();
    told.iter().map(|condition| format!("; {condition}")).collect()
}

/// All runs of a training experiment.
fn comparison(experiment: &Experiment, runs: &[Summary]) -> String {
    let data = runs.first().map_or_else(String::new, |run| {
        format!("Data: {}, {} training and {} test images. ", run.data.name, run.data.train, run.data.test)
    });
    let seeds = match experiment.train.seeds.len() {
        1 => "one seed (n = 1, no spread)".to_owned(),
        n => format!("{n} seeds; means ± standard deviations"),
    };
    if experiment.model.names.len() > 1 {
        let e = &experiment.train;
        return format!(
            "{data}{} epochs, batch {}, {seeds}. Accuracies are of running statistics, so that the batch that an image is \
             answered in does not matter. Sign decisions, squares and MMACs are of one inference.\n\n{}",
            e.epochs,
            e.batch,
            summary::networks(runs),
        );
    }
    let mut gaps = String::new();
    for run in runs.iter().filter(|run| run.mode == "asymml") {
        if let (Some(asymml), Some(clear)) = (run.accuracy.test, run.accuracy.clear) {
            gaps += &format!("\nSeed {}: asymml minus clear {:+.2} points.", run.seed, 100.0 * (asymml - clear));
        }
    }
    for run in runs {
        if let (Some(test), Some(reference), Some(real)) =
            (run.accuracy.test, run.accuracy.reference, run.accuracy.trusted_only)
        {
            let [test, reference, real] = [test, reference, real].map(|share| 100.0 * share);
            gaps += &format!(
                "\nSeed {}: {}, {test:.2} % of {} test images; {reference:.2} % of them by the same integers in the clear, {real:.2} % of all by \
                 the network in floating point.",
                run.seed, run.mode, run.data.test
            );
        }
    }
    let released = runs.iter().find_map(|run| Some((run.privacy.delta?, run.data.train + run.data.test)));
    let released = released.map_or_else(String::new, |(delta, records)| {
        let neighbours = match experiment.privacy.relation {
            Relation::Remove => "with and without it, and in the next column with another in its place",
            Relation::Replace => "with it or another in its place",
        };
        let delta = text::delta(delta, records);
        format!(" ε is that of the record that lost most, {neighbours}, at {delta}{}.", conditions(runs))
    });
    format!(
        "{data}{}, {} epochs, batch {}, {seeds}. Seconds are of training and evaluation together, except training s; \
         parts overlap.{released}\n\n{}\nOf one sample (training bytes above include the public weights that are sent):\n\n{}{gaps}\n",
        experiment.model.names.join(", "),
        experiment.train.epochs,
        experiment.train.batch,
        summary::table(runs),
        summary::per_sample(runs),
    )
}
