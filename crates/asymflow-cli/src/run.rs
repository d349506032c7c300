//! `asymflow run`: every mode and seed of an experiment, one job after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use asymflow::job::{Body, JobReport, JobSpec, ModeKind, Task, WorkerSpec};
use asymflow_enclave::TrustedRuntime;
use asymflow_zoo::delta::delta;
use asymflow_zoo::{Network, Replacement, by_name, replace_activations};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{self, Experiment, Kind};
use crate::folder::Folder;
use crate::host::{Stopper, run_job, runtime};
use crate::progress::{Output, Progress};
use crate::report::{self, Report, Results};
use crate::worker::WorkerProcess;
use crate::{machine, memory, summary, tables};

mod budget;
mod shares;
mod studies;
mod train;

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
}
