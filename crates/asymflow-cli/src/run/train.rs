//! `kind = "train"`: every network, mode and seed, one job after the other.

use std::path::Path;
use std::sync::atomic::Ordering;

use asymflow::checkpoint::{Checkpoint, from_f32_bytes};
use asymflow::delta::Sampling;
use asymflow::job::{Body, JobReport, JobSpec, ModeKind, Task, TeacherSpec, TrainReport, TrainSpec, VaultSpec};
use asymflow::service::ServedModel;
use asymflow::weights_file;
use asymflow_zoo::{Network, Weights};

use super::{Outcome, Runner, network};
use crate::entry::Entry;
use crate::error::CliError;
use crate::folder::Folder;
use crate::host::{SEALED, WEIGHTS};
use crate::report;
use crate::summary::{Sources, Summary};
use crate::tables;
use crate::worker::WorkerProcess;

impl Runner {
    pub(super) fn train(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let e = &self.experiment;
        let mut runs = Vec::new();
        for &seed in &e.train.seeds {
            let wanted = e.model.names.iter().flat_map(|model| e.mode.run.iter().map(move |&entry| (model, entry)));
            for (model, entry) in wanted {
                if self.interrupt.asked.load(Ordering::Relaxed) {
                    return self.finish(runs, Outcome::Interrupted);
                }
                let run = self.train_one(model, entry, seed, worker.as_ref())?;
                let interrupted = run.status == "interrupted";
                runs.push(run);
                if interrupted {
                    return self.finish(runs, Outcome::Interrupted);
                }
            }
        }
        let outcome = self.verdict(&runs);
        self.finish(runs, outcome)
    }

    /// Folder of one run: named after the network too where there are several.
    fn run_name(&self, model: &str, mode: &str, seed: u64) -> String {
        let model = if self.experiment.model.names.len() > 1 { format!("{model}-") } else { String::new() };
        format!("{model}{mode}-seed{seed}").replace(':', "-")
    }

    /// What a network learns from: the model of an earlier run of the same mode and seed.
    fn teacher(&self, model: &str, entry: Entry, seed: u64) -> Result<Option<TeacherSpec>, CliError> {
        let (names, train) = (&self.experiment.model.names, &self.experiment.train);
        let Some(name) = &train.teacher else { return Ok(None) };
        let of = |name: &str| names.iter().position(|known| known == name);
        let Some(teacher) = of(name) else {
            return Err(CliError::usage(format!("train.teacher: no network named {name}"), "name one of model.names"));
        };
        if of(model).is_none_or(|at| at <= teacher) {
            return Ok(None);
        }
        let path = self.folder.path().join(self.run_name(name, &entry.to_string(), seed)).join("model.asymflow");
        let path =
            std::path::absolute(path).map_err(|e| CliError::failed(format!("no path to the teacher: {e}"), ""))?;
        Ok(Some(TeacherSpec { model: path, temperature: train.teacher_temperature, weight: train.teacher_weight }))
    }

    fn train_one(
        &self,
        model: &str,
        entry: Entry,
        seed: u64,
        worker: Option<&WorkerProcess>,
    ) -> Result<Summary, CliError> {
        let several = self.experiment.model.names.len() > 1;
        let label = if several { format!("{model} {entry} seed {seed}") } else { format!("{entry} seed {seed}") };
        let folder = self.folder.inside(&self.run_name(model, &entry.to_string(), seed))?;
        if let Some(done) = finished(&folder)? {
            self.output.say(&format!("{label}: done before"));
            return Ok(done);
        }
        let kept = if self.experiment.trusted.seal { SEALED } else { "checkpoints/latest.safetensors" };
        let checkpoint = folder.read(kept)?;
        if checkpoint.is_some() {
            self.output.say(&format!("{label}: going on from its checkpoint"));
        }
        let given = self.given_weights(&entry.model(model))?;
        let start = match (&checkpoint, &given) {
            (Some(bytes), _) => (Body::Checkpoint, bytes.as_slice()),
            (None, Some(bytes)) => (Body::Weights, bytes.as_slice()),
            (None, None) => (Body::Empty, &[][..]),
        };
        let teacher = self.teacher(model, entry, seed)?;
        let mut spec = TrainSpec { teacher, ..self.experiment.train_spec(seed) };
        if entry.kind == ModeKind::Shares {
            // One answer an image: the weights of the epochs before are trained as in trusted-only.
            spec.evaluate_every = spec.epochs;
        }
        let task = Task::Train(spec);
        let worker = worker.filter(|_| entry.needs_worker());
        let mut job = self.job(entry, model, worker, task)?;
        job.vault = self.vault(&folder)?;
        let JobReport::Train(report) = self.execute(&label, job.clone(), start, &folder)? else {
            return Err(CliError::failed("the enclave process answered another task", ""));
        };
        leave_weights(&folder, &job, &report)?;
        let sources = Sources {
            name: &self.name,
            experiment: &self.experiment,
            entry,
            job: &job,
            report: &report,
            assurance: self.runtime.assurance().to_string(),
            worker_device: worker.map(|w| w.device.clone()),
        };
        let summary = Summary::new(&sources);
        report::write_json(&folder, "summary.json", &summary)?;
        folder.replace("summary.md", tables::training(&summary, &report).as_bytes())?;
        Ok(summary)
    }

    /// Where a run in `folder` seals its checkpoints, where it is to. The trusted part is another process: it takes no path
    /// that depends on where this one stands.
    fn vault(&self, folder: &Folder) -> Result<Option<VaultSpec>, CliError> {
        let trusted = &self.experiment.trusted;
        if !trusted.seal {
            return Ok(None);
        }
        let whole = |path: &Path| {
            let unusable = |e| CliError::usage(format!("{}: {e}", path.display()), "name a folder with trusted.guard");
            std::path::absolute(path).map_err(unusable)
        };
        let vault = whole(&folder.path().join("sealed"))?;
        let guard = match &trusted.guard {
            Some(guard) => {
                let names = vault.iter().rev().skip(1).take(2).collect::<Vec<_>>();
                whole(&names.into_iter().rev().fold(guard.clone(), |path, name| path.join(name)))?
            }
            None => vault.join("guard"),
        };
        Ok(Some(VaultSpec { folder: vault, guard }))
    }

    /// The weights to start from, flattened, where the experiment names a file.
    fn given_weights(&self, model: &str) -> Result<Option<Vec<u8>>, CliError> {
        let Some((network, weights)) = self.read_weights(model)? else { return Ok(None) };
        let flat = weights.flatten(&network).map_err(|e| CliError::usage(e.to_string(), ""))?;
        Ok(Some(flat.iter().flat_map(|v| v.to_le_bytes()).collect()))
    }

    /// The network and its weights, where the experiment names a file.
    pub(super) fn read_weights(&self, model: &str) -> Result<Option<(Network, Weights)>, CliError> {
        let Some(path) = &self.experiment.model.weights else { return Ok(None) };
        let unusable = |e: String| {
            CliError::usage(format!("{}: {e}", path.display()), "weights are safetensors under torchvision's names")
        };
        let network = network(&self.experiment, model)?;
        let bytes = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
        let weights = weights_file::decode(&network, &bytes).map_err(|e| unusable(e.to_string()))?;
        Ok(Some((network, weights)))
    }

    fn verdict(&self, runs: &[Summary]) -> Outcome {
        let Some(limit) = self.experiment.report.max_accuracy_gap else { return Outcome::Done };
        let mean = |mode: &str| {
            let values: Vec<f64> = runs.iter().filter(|r| r.mode == mode).filter_map(|r| r.accuracy.test).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        match (mean("clear"), mean("asymml")) {
            (Some(clear), Some(asymml)) if clear - asymml > limit => {
                self.output.say(&format!(
                    "claim: does not hold: asymml is {:.2} points less accurate than clear, allowed are {:.2}",
                    100.0 * (clear - asymml),
                    100.0 * limit
                ));
                Outcome::ClaimFailed
            }
            (Some(clear), Some(asymml)) => {
                self.output.say(&format!(
                    "claim: holds: asymml minus clear is {:+.2} points, allowed are -{:.2}",
                    100.0 * (asymml - clear),
                    100.0 * limit
                ));
                Outcome::Done
            }
            _ => Outcome::Done,
        }
    }

    fn finish(&self, runs: Vec<Summary>, outcome: Outcome) -> Result<Outcome, CliError> {
        let mut curves = Vec::new();
        let several = self.experiment.model.names.len() > 1;
        for run in &runs {
            let folder = self.folder.inside(&self.run_name(&run.model, &run.mode, run.seed))?;
            let mut curve = report::curve(&folder, run)?;
            if several {
                curve.mode.clone_from(&run.model);
            }
            curves.push(curve);
        }
        let device = runs.iter().find_map(|run| run.worker_device.clone());
        self.leave(report::training(runs, curves), device)?;
        Ok(outcome)
    }
}

/// Leaves the trained weights of the latest checkpoint under their names, and the model as it can be served.
fn leave_weights(folder: &Folder, job: &JobSpec, report: &TrainReport) -> Result<(), CliError> {
    let failed = |e: String| CliError::failed(format!("cannot write weights.safetensors: {e}"), "");
    let flat = match (folder.read(WEIGHTS)?, folder.read("checkpoints/latest.safetensors")?) {
        (Some(bytes), _) => from_f32_bytes(&bytes),
        (None, Some(bytes)) => Checkpoint::decode(&bytes).map_err(|e| failed(e.to_string()))?.state.weights,
        (None, None) => return Ok(()),
    };
    let network = job.settings().stored_network().map_err(|e| failed(e.to_string()))?;
    let weights = Weights::unflatten(&network, &flat).map_err(|e| failed(e.to_string()))?;
    let file = weights_file::encode(&network, &weights).map_err(|e| failed(e.to_string()))?;
    folder.replace("weights.safetensors", &file)?;
    let Task::Train(train) = &job.task else { return Ok(()) };
    let sampling = Sampling { batch: train.batch, records: report.train_images };
    let model = ServedModel::of(job, sampling, report.normalization.clone(), report.class_names.clone());
    let model = model.encode(&flat);
    folder.replace("model.asymflow", &model.map_err(|e| failed(e.to_string()))?)
}

fn finished(folder: &Folder) -> Result<Option<Summary>, CliError> {
    let Some(bytes) = folder.read("summary.json")? else { return Ok(None) };
    Ok(serde_json::from_slice::<Summary>(&bytes).ok().filter(|s| s.status != "interrupted"))
}
