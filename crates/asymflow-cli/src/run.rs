//! A run of an experiment, as its kind sees it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use asymflow::job::{Body, JobReport, JobSpec, Task, WorkerSpec};
use asymflow::modes::ModeRef;
use asymflow::studies::{Study, StudyError};
use asymflow_enclave::Assurance;
use asymflow_enclave::runtime::TrustedRuntime;
use asymflow_wire::tls::dial;
use asymflow_zoo::{Network, Weights, weights::files};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, WorkerSection, size};
use crate::folder::Folder;
use crate::host::{Stopper, run_job};
use crate::inside;
use crate::machine;
use crate::progress::{Output, Progress};
use crate::worker::WorkerProcess;

/// Whether the user asked to stop, and how to tell the running job.
#[derive(Clone, Default)]
pub struct Interrupt {
    /// Set by the first Ctrl-C.
    pub asked: Arc<AtomicBool>,
    /// The running job.
    pub stopper: Stopper,
}

/// A run: the experiment, its folder, and what it is run with.
pub struct Run {
    pub(crate) name: String,
    pub(crate) experiment: Experiment,
    pub(crate) folder: Folder,
    pub(crate) output: Output,
    pub(crate) runtime: Box<dyn TrustedRuntime>,
    pub(crate) interrupt: Interrupt,
    pub(crate) worker: OnceLock<WorkerProcess>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("name", &self.name).field("folder", &self.folder).finish_non_exhaustive()
    }
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
    let network = e.network(&entry.model(model))?;
    let mode = e.mode_spec(entry, model)?;
    Ok(JobSpec {
        mode: ModeRef::of(&*mode).map_err(|e| CliError::failed(e.to_string(), ""))?,
        network,
        data: e.data_spec(),
        terms: e.terms(),
        worker: worker.map(|worker| worker_spec(e, &e.worker, worker)).transpose()?,
        vault: None,
        threads,
        memory_limit_bytes: e.trusted.memory_limit.as_deref().map(|s| size("trusted.memory_limit", s)).transpose()?,
        task,
    })
}

/// How the trusted part reaches `worker`, which was opened as `section` says.
fn worker_spec(e: &Experiment, section: &WorkerSection, worker: &WorkerProcess) -> Result<WorkerSpec, CliError> {
    let runtime = &e.trusted.runtime;
    Ok(WorkerSpec {
        address: if runtime == "sim" { worker.address.clone() } else { resolved(&worker.address)? },
        fingerprint: worker.fingerprint.clone(),
        token: worker.token.clone(),
        insecure_plaintext: section.insecure_plaintext,
        transport: section.transport(runtime),
        timeout_seconds: section.timeout_seconds,
        patience_seconds: section.patience_seconds,
    })
}

/// An address as an IP address: an enclave looks up no names. Who answers there is pinned by its certificate.
fn resolved(address: &str) -> Result<String, CliError> {
    let peer = dial(address, Duration::from_secs(10)).and_then(|stream| stream.peer_addr());
    let unreachable = |e| CliError::missing(format!("cannot connect to worker {address}: {e}"), "see that it runs");
    Ok(peer.map_err(unreachable)?.to_string())
}

/// The enclave process did something else than it was asked to.
pub fn wrong_answer() -> CliError {
    CliError::failed("the enclave process answered another task", "")
}

/// A program that stands beside this one, or else on PATH.
pub(crate) fn beside(program: impl AsRef<Path>) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().unwrap_or(Path::new("")).join(&program);
    if beside.is_file() {
        return beside;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(&program)).find(|path| path.is_file());
    found.unwrap_or(beside)
}

impl Run {
    /// Name of the experiment.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The experiment, with everything that its file leaves out.
    pub const fn experiment(&self) -> &Experiment {
        &self.experiment
    }

    /// Where files are left.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Says one line on stderr.
    pub fn say(&self, text: &str) {
        self.output.say(text);
    }

    /// Whether the user asked to stop. What takes longer than a second looks between its parts.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.asked.load(Ordering::Relaxed)
    }

    /// The network called `name` and its weights, where `model.weights` names a file.
    ///
    /// # Errors
    /// A file that holds no weights of that network.
    pub fn given_weights(&self, name: &str) -> Result<Option<(Network, Weights)>, CliError> {
        let network = self.experiment.network(name)?;
        Ok(self.weights_of(&network)?.map(|weights| (network, weights)))
    }

    /// The weights of `network`, where `model.weights` names a file.
    pub(crate) fn weights_of(&self, network: &Network) -> Result<Option<Weights>, CliError> {
        let Some(path) = &self.experiment.model.weights else { return Ok(None) };
        let help = "weights are safetensors or a state dict of PyTorch, under torchvision's names";
        files::read(path, network).map(Some).map_err(|e| CliError::usage(e.to_string(), help))
    }

    pub(crate) const fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) fn runtime(&self) -> &dyn TrustedRuntime {
        &*self.runtime
    }

    /// How far the trusted part can be trusted, and what is insecure about the settings.
    pub(crate) fn assurances(&self) -> Result<Vec<String>, CliError> {
        let e = &self.experiment;
        let (mut insecure, mut caveats) = (Vec::new(), Vec::new());
        for mode in e.mode_specs()? {
            insecure.extend(e.insecure(&*mode));
            caveats.extend(mode.caveat());
        }
        insecure.sort_unstable();
        insecure.dedup();
        caveats.dedup();
        let assurance = self.runtime.assurance();
        let note = if assurance == Assurance::Simulated {
            " (an ordinary process: whoever owns this machine sees everything)"
        } else {
            ""
        };
        let in_force = if insecure.is_empty() { "none".to_owned() } else { insecure.join(", ") };
        let mut lines = vec![
            format!("runtime: {}, assurance: {assurance}{note}", self.runtime.name()),
            format!("insecure settings in force: {in_force}"),
        ];
        lines.extend(caveats.into_iter().map(str::to_owned));
        Ok(lines)
    }

    /// The worker, started where it does not run yet.
    pub(crate) fn open_worker(&self) -> Result<&WorkerProcess, CliError> {
        if let Some(worker) = self.worker.get() {
            return Ok(worker);
        }
        let tell = self.output.teller(&self.folder);
        let worker = WorkerProcess::open(&self.experiment.worker, beside(&self.experiment.worker.program), tell)?;
        self.say(&format!("worker device: {}", worker.device));
        Ok(self.worker.get_or_init(|| worker))
    }

    /// One more worker, on a device of its own, and how it is reached; it ends with the first value.
    pub(crate) fn start_worker(&self, device: &str) -> Result<(WorkerProcess, WorkerSpec), CliError> {
        let section = WorkerSection { device: device.to_owned(), address: None, ..self.experiment.worker.clone() };
        let worker = WorkerProcess::open(&section, beside(&section.program), self.output.teller(&self.folder))?;
        let spec = worker_spec(&self.experiment, &section, &worker)?;
        Ok((worker, spec))
    }

    /// The worker, where a mode of the experiment needs one.
    pub(crate) fn worker(&self) -> Result<Option<&WorkerProcess>, CliError> {
        let is_needed = self.experiment.mode_specs()?.iter().any(|mode| mode.needs_worker());
        is_needed.then(|| self.open_worker()).transpose()
    }

    pub(crate) fn job(
        &self,
        entry: Entry,
        model: &str,
        worker: Option<&WorkerProcess>,
        task: Task,
    ) -> Result<JobSpec, CliError> {
        job_spec(&self.experiment, entry, model, worker, task)
    }

    /// The enclave program: beside this one, or beside its manifest.
    pub(crate) fn program(&self) -> PathBuf {
        match self.runtime.name() {
            "sim" => beside("asymflow-enclaved"),
            _ => self.experiment.trusted.app.clone(),
        }
    }

    /// Runs a job from its start, with files in the folder of the run.
    pub(crate) fn execute(&self, label: &str, job: JobSpec) -> Result<JobReport, CliError> {
        self.execute_in(label, job, (Body::Empty, &[]), &self.folder)
    }

    /// Has the trusted part measure `study` in the mode of `entry`.
    pub(crate) fn study<S: Study>(
        &self,
        label: &str,
        (entry, model, worker): (Entry, &str, Option<&WorkerProcess>),
        study: &S,
    ) -> Result<S::Report, CliError> {
        let failed = |e: StudyError| CliError::failed(e.to_string(), "");
        let job = self.job(entry, model, worker, study.task().map_err(failed)?)?;
        S::report(self.execute(label, job)?).map_err(failed)
    }

    /// Runs a job from `start`, with files in `folder`.
    pub(crate) fn execute_in(
        &self,
        label: &str,
        job: JobSpec,
        start: (Body, &[u8]),
        folder: &Folder,
    ) -> Result<JobReport, CliError> {
        job.check_memory(&self.experiment.registry)
            .map_err(|e| CliError::usage(e.to_string(), "see `asymflow explain memory`"))?;
        let batch = match &job.task {
            Task::Train(train) => train.batch,
            Task::Study(study) => study.batch,
        };
        let mut progress = Progress::new(self.output.clone(), label.to_owned(), job.terms.delta, batch);
        let program = self.program();
        let job = inside::of_job(&self.experiment.trusted, job)?;
        run_job(self.runtime(), &program, job, start, folder, &mut progress, &self.interrupt, &self.experiment.registry)
    }
}
