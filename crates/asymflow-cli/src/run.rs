//! `asymflow run`: every mode and seed of an experiment, one job after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use asymflow::checkpoint::{Checkpoint, from_f32_bytes};
use asymflow::delta::{Feed, Sampling, SplitStudySpec};
use asymflow::job::{
    Body, JobReport, JobSpec, ModeKind, Task, TeacherSpec, TrainReport, TrainSpec, VaultSpec, WorkerSpec,
};
use asymflow::memory::MemoryPlan;
use asymflow::memory_study::MemorySpec;
use asymflow::service::ServedModel;
use asymflow::speedup::SpeedupSpec;
use asymflow::study::RankStudySpec;
use asymflow::weights_file;
use asymflow_enclave::TrustedRuntime;
use asymflow_zoo::delta::delta;
use asymflow_zoo::{Network, Replacement, Weights, by_name, replace_activations};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{self, Experiment, Kind};
use crate::folder::Folder;
use crate::host::{SEALED, Stopper, WEIGHTS, run_job, runtime};
use crate::memory::{self, Cell};
use crate::progress::{Output, Progress};
use crate::report::{self, Report, Results};
use crate::serve_experiment::Server;
use crate::summary::{self, Sources, Summary};
use crate::worker::WorkerProcess;
use crate::{machine, tables};

mod budget;
mod shares;

const ACTIVATION_HELP: &str = "write MODEL+ACTIVATION, e.g. resnet8-cifar+shared-relu:1x4x4";
const DELTA_HELP: &str = "see the [delta] section, or take another model";

/// Flags of `asymflow run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The experiment file
    pub experiment: PathBuf,
    /// Set a key, e.g. --set train.epochs=3; may be given often
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A data set on disk instead of the experiment's
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The small form: CPU, simulated enclave, under a minute
    #[arg(long)]
    pub smoke: bool,
    /// Show what would run and what it would cost, and end
    #[arg(long)]
    pub dry_run: bool,
    /// Run seeds 1 to N
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// Go on with the runs of this folder that are not done
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    /// Events and results as JSON
    #[arg(long)]
    pub json: bool,
    /// Folder that run folders are made in
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub runs: PathBuf,
}

/// Whether the user asked to stop, and how to tell the running job.
#[derive(Clone)]
pub struct Interrupt {
    /// Set by the first Ctrl-C.
    pub asked: Arc<AtomicBool>,
    /// The running job.
    pub stopper: Stopper,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All done; the claim holds or there is none to check.
    Done,
    /// The claim does not hold.
    ClaimFailed,
    /// Stopped by the user.
    Interrupted,
}

struct Runner {
    name: String,
    experiment: Experiment,
    folder: Folder,
    output: Output,
    runtime: Box<dyn TrustedRuntime>,
    interrupt: Interrupt,
}

/// Runs an experiment.
pub fn run(args: &Args, interrupt: Interrupt) -> Result<Outcome, CliError> {
    let experiment = resolve(args)?;
    let name = args.experiment.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    if args.dry_run {
        crate::print(&tables::dry_run(&experiment)?);
        return Ok(Outcome::Done);
    }
    let runtime = runtime(&experiment.trusted)?;
    let folder = match &args.resume {
        Some(folder) => Folder::create(folder)?,
        None => Folder::create(args.runs.join(format!("{}-{name}", machine::timestamp())))?,
    };
    let resolved = toml::to_string(&experiment)
        .map_err(|e| CliError::failed(format!("cannot write the configuration: {e}"), ""))?;
    folder.replace("config.toml", resolved.as_bytes())?;
    let output = Output { json: args.json };
    let runner = Runner { name, experiment, folder, output, runtime, interrupt };
    runner.banner();
    match runner.experiment.kind {
        Kind::Train => runner.train(),
        Kind::Speedup => runner.speedup(),
        Kind::RankStudy => runner.rank_study(),
        Kind::RankDctStudy => runner.rank_dct_study(),
        Kind::Serve => runner.serve(),
        Kind::MemoryStudy => runner.memory_study(),
        Kind::Shares => runner.shares(),
        Kind::ActivationBudget => runner.budget(),
    }
}

/// The experiment as it will run.
pub fn resolve(args: &Args) -> Result<Experiment, CliError> {
    let mut experiment = match &args.resume {
        Some(run) => {
            let path = run.join("config.toml");
            if !path.is_file() {
                let message = format!("{} is no run folder: it has no config.toml", run.display());
                return Err(CliError::usage(message, "name a folder under runs/"));
            }
            experiment::read(&path, false, &args.set)?
        }
        None => experiment::read(&args.experiment, args.smoke, &args.set)?,
    };
    if let Some(path) = &args.data {
        experiment.data.path = Some(path.clone());
    }
    if let Some(n) = args.seeds {
        experiment.train.seeds = (1..=n.max(1)).collect();
    }
    for name in &experiment.model.names {
        network(&experiment, name)?;
        for &entry in &experiment.mode.run {
            let network = network(&experiment, &entry.model(name))?;
            if entry.kind == ModeKind::Delta {
                let parts = experiment.delta.shape(&network).and_then(|shape| delta(&network, &shape));
                parts.map_err(|e| CliError::usage(format!("{name}: {e}"), DELTA_HELP))?;
            }
        }
    }
    Ok(experiment)
}

/// A network of the experiment.
pub fn network(experiment: &Experiment, name: &str) -> Result<Network, CliError> {
    let mut parts = name.split('+');
    let base = parts.next().unwrap_or_default();
    let mut network = by_name(base, experiment.model.classes, experiment.model.input)
        .map_err(|e| CliError::usage(e.to_string(), "`asymflow models` lists the zoo"))?;
    for part in parts {
        let replacement = part.parse::<Replacement>().map_err(|e| CliError::usage(e.to_string(), ACTIVATION_HELP))?;
        network = replace_activations(&network, &replacement)
            .map_err(|e| CliError::usage(format!("{name}: {e}"), ACTIVATION_HELP))?;
    }
    name.clone_into(&mut network.name);
    Ok(network)
}

/// What the trusted part is asked to do.
pub fn job_spec(
    e: &Experiment,
    entry: Entry,
    model: &str,
    worker: Option<&WorkerProcess>,
    task: Task,
) -> Result<JobSpec, CliError> {
    let threads = if e.trusted.threads == 0 { machine::cores() } else { e.trusted.threads };
    let network = network(e, &entry.model(model))?;
    let epochs = e.train.epochs;
    let delta = (entry.kind == ModeKind::Delta).then(|| e.delta.spec(&network, &e.mode.decomposition, entry, epochs));
    let delta = delta.transpose().map_err(|e| CliError::usage(format!("{model}: {e}"), DELTA_HELP))?;
    let mut privacy = e.privacy_spec();
    if entry.kind == ModeKind::NaiveDp {
        privacy.clip = Some(e.delta.clip);
    }
    Ok(JobSpec {
        mode: entry.kind,
        naive_epsilon: entry.epsilon.or(e.delta.epsilon).filter(|_| entry.kind == ModeKind::NaiveDp),
        delta,
        shares: e.shares.spec(),
        network,
        data: e.data_spec(),
        split: e.split_spec(),
        privacy,
        precision: e.worker.precision,
        worker: worker.map(|w| WorkerSpec {
            address: w.address.clone(),
            fingerprint: w.fingerprint.clone(),
            token: w.token.clone(),
            insecure_plaintext: e.worker.insecure_plaintext,
            transport: e.worker.transport(),
            timeout_seconds: e.worker.timeout_seconds,
            patience_seconds: e.worker.patience_seconds,
        }),
        vault: None,
        threads,
        memory_limit_bytes: e
            .trusted
            .memory_limit
            .as_deref()
            .map(|s| memory::size("trusted.memory_limit", s))
            .transpose()?,
        task,
    })
}

/// A program that stands beside this one.
fn beside(program: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().unwrap_or(Path::new("")).join(program)
}

impl Runner {
    fn banner(&self) {
        let e = &self.experiment;
        if e.kind == Kind::Shares {
            self.output.say(&format!("{}: {}\nclaim: {}", self.name, e.title, e.claim));
            self.output
                .say("dealer and both servers are threads of this process: whoever owns this machine sees everything");
            return;
        }
        let mut insecure: Vec<_> = e.mode.run.iter().flat_map(|&entry| e.insecure(entry)).collect();
        insecure.sort_unstable();
        insecure.dedup();
        self.output.say(&format!("{}: {}", self.name, e.title));
        self.output.say(&format!("claim: {}", e.claim));
        let assurance = self.runtime.assurance();
        let note = if assurance == asymflow_enclave::Assurance::Simulated {
            " (an ordinary process: whoever owns this machine sees everything)"
        } else {
            ""
        };
        self.output.say(&format!("runtime: {}, assurance: {assurance}{note}", self.runtime.name()));
        self.output.say(&format!(
            "insecure settings in force: {}",
            if insecure.is_empty() { "none".to_owned() } else { insecure.join(", ") }
        ));
        let named = e.delta.variant.insecure_name().is_some_and(|name| insecure.contains(&name));
        if let Some(caveat) = e.delta.variant.caveat().filter(|_| named) {
            self.output.say(caveat);
        }
        if insecure.contains(&"insecure_none") {
            self.output.say(
                "insecure_none: what is released carries no noise. In asymml the worker sees residuals and gradients; \
                 where an activation is zero the residual is minus the low-rank part, and the gradient shows where that \
                 is, so the whole activation can be completed. See docs/threat-model.md.",
            );
        }
    }

    fn worker(&self) -> Result<Option<WorkerProcess>, CliError> {
        let needed = self.experiment.kind == Kind::Speedup || self.experiment.mode.run.iter().any(|m| m.needs_worker());
        if !needed {
            return Ok(None);
        }
        let tell = self.output.teller(&self.folder);
        let worker = WorkerProcess::open(&self.experiment.worker, beside("asymflow-worker"), tell)?;
        self.output.say(&format!("worker device: {}", worker.device));
        Ok(Some(worker))
    }

    fn job(&self, entry: Entry, model: &str, worker: Option<&WorkerProcess>, task: Task) -> Result<JobSpec, CliError> {
        job_spec(&self.experiment, entry, model, worker, task)
    }

    /// The enclave program: beside this one, or beside its manifest.
    fn program(&self) -> PathBuf {
        match self.runtime.name() {
            "sim" => beside("asymflow-enclaved"),
            _ => self.experiment.trusted.app.clone(),
        }
    }

    fn execute(&self, label: &str, job: JobSpec, start: (Body, &[u8]), folder: &Folder) -> Result<JobReport, CliError> {
        job.check_memory().map_err(|e| CliError::usage(e.to_string(), "see `asymflow explain memory`"))?;
        let mut progress = Progress::new(self.output.clone(), label.to_owned(), job.privacy.delta);
        let program = self.program();
        run_job(&*self.runtime, &program, job, start, folder, &mut progress, &self.interrupt.stopper)
    }

    fn train(&self) -> Result<Outcome, CliError> {
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
    fn read_weights(&self, model: &str) -> Result<Option<(Network, Weights)>, CliError> {
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

    /// Leaves the results in the run folder and on stdout.
    fn leave(&self, results: Results, worker_device: Option<String>) -> Result<(), CliError> {
        let report = Report {
            schema: 1,
            name: self.name.clone(),
            experiment: self.experiment.clone(),
            provenance: report::provenance(self.runtime.assurance().to_string(), worker_device),
            results,
        };
        report.leave(&self.folder)?;
        if self.output.json {
            let json = serde_json::to_string(&report)
                .map_err(|e| CliError::failed(format!("cannot print the results: {e}"), ""))?;
            crate::print(&format!("{json}\n"));
        } else {
            let text = match &report.results {
                Results::Train { runs, .. } => summary::tables(runs),
                _ => tables::render(&report),
            };
            crate::print(&format!("\n{text}\n"));
        }
        self.output.say(&format!("run folder: {}", self.folder.path().display()));
        Ok(())
    }

    fn speedup(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let s = &self.experiment.speedup;
        let mut reports = Vec::new();
        for model in &self.experiment.model.names {
            if self.interrupt.asked.load(Ordering::Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            let spec = SpeedupSpec {
                batch: s.batch,
                repeats: s.repeats,
                decompositions: s.decompositions.clone(),
                train: s.train,
                seed: self.experiment.train.seeds[0],
            };
            self.output.say(&format!("timing {model}, batch {}", s.batch));
            let job = self.job(Entry::of(ModeKind::Asymml), model, worker.as_ref(), Task::Speedup(spec))?;
            let JobReport::Speedup(report) = self.execute(model, job, (Body::Empty, &[]), &self.folder)? else {
                return Err(CliError::failed("the enclave process answered another task", ""));
            };
            self.output.say(&tables::speedup_line(&report));
            reports.push(report);
        }
        self.leave(Results::Speedup(reports), worker.as_ref().map(|w| w.device.clone()))?;
        Ok(Outcome::Done)
    }

    fn rank_study(&self) -> Result<Outcome, CliError> {
        let s = &self.experiment.study;
        let spec = RankStudySpec { samples: s.samples, ranks: s.ranks.clone(), methods: s.methods.clone() };
        let task = Task::RankStudy(spec, self.experiment.train_spec(self.experiment.train.seeds[0]));
        let job = self.job(Entry::of(ModeKind::TrustedOnly), &self.experiment.model.names[0], None, task)?;
        let JobReport::RankStudy(report) = self.execute("trusted-only", job, (Body::Empty, &[]), &self.folder)? else {
            return Err(CliError::failed("the enclave process answered another task", ""));
        };
        self.leave(Results::RankStudy(report), None)?;
        Ok(Outcome::Done)
    }
}

impl Runner {
    fn serve(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let section = &self.experiment.serve;
        let threads = self.experiment.trusted.threads;
        let server = Server {
            runtime: &*self.runtime,
            program: self.program(),
            worker: worker.as_ref(),
            section,
            threads,
            folder: &self.folder,
        };
        let mut runs = Vec::new();
        for &entry in &self.experiment.mode.run {
            let task = Task::Train(self.experiment.train_spec(1));
            let job = self.job(entry, &self.experiment.model.names[0], worker.as_ref(), task)?;
            for &load in &section.loads {
                if self.interrupt.asked.load(Ordering::Relaxed) {
                    return Ok(Outcome::Interrupted);
                }
                self.output.say(&format!("{entry}: {} connections for {} s", load.connections, load.seconds));
                runs.push(server.run(entry, &job, load)?);
            }
        }
        let failed: u64 = runs.iter().map(|run| run.load.failed + run.load.refused).sum();
        if let Some(reason) = runs.iter().find_map(|run| run.load.first_failure.as_ref()) {
            self.output.say(&format!("the first of {failed} failures: {reason}"));
        }
        self.leave(Results::Serve(runs), worker.as_ref().map(|w| w.device.clone()))?;
        Ok(if failed == 0 { Outcome::Done } else { Outcome::ClaimFailed })
    }

    fn rank_dct_study(&self) -> Result<Outcome, CliError> {
        let s = &self.experiment.study;
        let spec = SplitStudySpec { samples: s.samples, ranks: s.ranks.clone(), kept: s.kept.clone() };
        let task = Task::SplitStudy(spec, self.experiment.train_spec(self.experiment.train.seeds[0]));
        let entry = Entry { feed: Feed::Nothing, ..Entry::of(ModeKind::Delta) };
        let job = self.job(entry, &self.experiment.model.names[0], None, task)?;
        let JobReport::SplitStudy(report) = self.execute("main-only", job, (Body::Empty, &[]), &self.folder)? else {
            return Err(CliError::failed("the enclave process answered another task", ""));
        };
        self.leave(Results::SplitStudy(report), None)?;
        Ok(Outcome::Done)
    }
}

impl Runner {
    fn memory_study(&self) -> Result<Outcome, CliError> {
        let worker = self.worker()?;
        let e = &self.experiment;
        let section = &e.memory;
        let below = memory::size("memory.measure_below", &section.measure_below)?;
        let mut cells = Vec::new();
        for model in &e.model.names {
            for &entry in &e.mode.run {
                for (is_training, is_streamed) in [(false, false), (false, true), (true, false)] {
                    let is_wanted = if is_streamed { section.streamed } else { section.train || !is_training };
                    if !is_wanted || (is_streamed && entry.kind != ModeKind::TrustedOnly) {
                        continue;
                    }
                    for &batch in &section.batches {
                        if self.interrupt.asked.load(Ordering::Relaxed) {
                            return Ok(Outcome::Interrupted);
                        }
                        let streamed = is_streamed.then(|| self.folder.path().join("weights.sealed"));
                        let (repeats, seed) = (section.repeats, e.train.seeds[0]);
                        let task = Task::Memory(MemorySpec { batch, is_training, repeats, streamed, seed });
                        let cell = self.memory_cell(entry, model, worker.as_ref(), task, below)?;
                        self.output.say(&memory::line(&cell));
                        cells.push(cell);
                    }
                }
            }
        }
        let above: Vec<String> = cells.iter().filter(|cell| memory::is_above_plan(cell)).map(memory::line).collect();
        self.leave(Results::Memory(cells), worker.as_ref().map(|w| w.device.clone()))?;
        above
            .iter()
            .for_each(|line| self.output.say(&format!("claim: does not hold, more was taken than planned: {line}")));
        Ok(if above.is_empty() { Outcome::Done } else { Outcome::ClaimFailed })
    }

    /// One enclave process, so that its peak is that of one mode.
    fn memory_cell(
        &self,
        entry: Entry,
        model: &str,
        worker: Option<&WorkerProcess>,
        task: Task,
        below: u64,
    ) -> Result<Cell, CliError> {
        let Task::Memory(spec) = task.clone() else { return Err(CliError::failed("no memory study", "")) };
        let job = self.job(entry, model, worker.filter(|_| entry.needs_worker()), task)?;
        let plan = MemoryPlan::of_job(&job).map_err(|e| CliError::usage(format!("{model}: {e}"), ""))?;
        let mode = if spec.streamed.is_some() { memory::STREAMED.to_owned() } else { entry.to_string() };
        let measured = if plan.peak_bytes > below {
            None
        } else {
            match self.execute(&format!("{model} {mode}"), job, (Body::Empty, &[]), &self.folder)? {
                JobReport::Memory(report) => Some(report),
                _ => return Err(CliError::failed("the enclave process answered another task", "")),
            }
        };
        if let Some(path) = &spec.streamed {
            // The key died with the process.
            let _ = std::fs::remove_file(path);
        }
        let MemorySpec { batch, is_training, .. } = spec;
        Ok(Cell { model: model.to_owned(), mode, batch, is_training, plan, measured })
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
