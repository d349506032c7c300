//! `kind = "serve"`: a service in its own process, and clients that load it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use asymflow::job::{JobSpec, Task};
use asymflow::modes::{ModeSpec, Registry, Sampling};
use asymflow::service::{ServedModel, ServiceReport};
use asymflow_enclave::runtime::{EnclaveSpec, TrustedRuntime, TrustedSession};
use asymflow_zoo::Weights;
use asymflow_zoo::data::Normalization;
use serde::{Deserialize, Serialize};

use crate::client::{CONNECTIONS, LoadReport, LoadSpec, RATE, SECONDS, ServiceArgs, load};
use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::folder::Folder;
use crate::host::not_launched;
use crate::kind::{Ended, ExperimentKind, Verdict};
use crate::run::Run;
use crate::text::{escaped, markdown};
use crate::worker::WorkerProcess;

/// `[serve]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSection {
    /// Records of every message to the worker.
    pub batch: usize,
    /// How long an incomplete batch waits.
    pub linger_ms: u64,
    /// The loads, one after another, each on a service of its own.
    pub loads: Vec<LoadSpec>,
}

impl Default for ServeSection {
    fn default() -> Self {
        Self { batch: 8, linger_ms: 1, loads: vec![LoadSpec { connections: 8, rate: None, seconds: 5.0 }] }
    }
}

/// Loads a service of every mode with clients.
pub struct Serve;

impl ExperimentKind for Serve {
    type Settings = ServeSection;
    type Results = Vec<ServeRun>;

    fn name(&self) -> &'static str {
        "serve"
    }

    fn section(&self) -> Option<&'static str> {
        Some("serve")
    }

    fn limits(&self) -> &'static [Limit] {
        const {
            &[
                Limit::whole("serve.batch", 1.0, 65_536.0),
                Limit::whole("serve.linger_ms", 0.0, 3.6e6),
                CONNECTIONS,
                RATE,
                SECONDS,
            ]
        }
    }

    fn run(&self, run: &Run, settings: &ServeSection) -> Result<(Ended, Option<Self::Results>), CliError> {
        let worker = run.worker()?;
        let e = run.experiment();
        let mut runs = Vec::new();
        for &entry in &e.entries {
            let job = run.job(entry, &e.model.names[0], worker, Task::Train(e.train_spec(1)))?;
            let mode = e.mode_spec(entry, &e.model.names[0])?;
            let server = Server {
                runtime: run.runtime(),
                program: run.program(),
                worker,
                mode: &*mode,
                registry: &e.registry,
                section: settings,
                threads: e.trusted.threads,
                folder: run.folder(),
            };
            for &load in &settings.loads {
                if run.is_interrupted() {
                    return Ok((Ended::Interrupted, None));
                }
                run.say(&format!("{entry}: {} connections for {} s", load.connections, load.seconds));
                runs.push(server.run(entry, &job, load)?);
            }
        }
        Ok((Ended::Whole, Some(runs)))
    }

    fn table(&self, experiment: &Experiment, settings: &ServeSection, runs: &Self::Results) -> String {
        table(experiment, settings, runs)
    }

    fn verdict(&self, _: &Experiment, _: &ServeSection, runs: &Self::Results) -> Option<Verdict> {
        let failed: u64 = runs.iter().map(|run| run.load.failed + run.load.refused).sum();
        let reason = runs.iter().find_map(|run| run.load.first_failure.as_deref());
        let text = match reason {
            Some(reason) => format!("claim: the first of {failed} failures: {}", escaped(reason)),
            None if failed == 0 => "claim: every image was answered".to_owned(),
            None => format!("claim: {failed} images were refused"),
        };
        Some(Verdict { holds: failed == 0, text })
    }
}

/// What one load on one service measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServeRun {
    /// How the network was executed.
    pub mode: String,
    /// What clients saw.
    pub load: LoadReport,
    /// What the service counted.
    pub report: ServiceReport,
    /// Its memory after a quarter of the load, and at the end.
    pub resident_bytes: Option<(u64, u64)>,
}

/// A service that runs, and the lines it has printed.
struct Running {
    session: Box<dyn TrustedSession>,
    to: Option<Box<dyn Write + Send>>,
    reports: Arc<Mutex<Vec<ServiceReport>>>,
    reader: std::thread::JoinHandle<()>,
    address: String,
}

/// What a service says when it is ready.
#[derive(Deserialize)]
struct Ready {
    listening: String,
}

/// What serves: the trusted runtime, its program, and the worker.
pub struct Server<'a> {
    /// Runtime of the trusted part.
    pub runtime: &'a dyn TrustedRuntime,
    /// The enclave program.
    pub program: PathBuf,
    /// The worker, for modes that have one.
    pub worker: Option<&'a WorkerProcess>,
    /// The mode.
    pub mode: &'a dyn ModeSpec,
    /// Modes by name.
    pub registry: &'a Registry,
    /// How it is loaded.
    pub section: &'a ServeSection,
    /// Threads of the trusted part.
    pub threads: usize,
    /// Where files are left.
    pub folder: &'a Folder,
}

impl Server<'_> {
    /// Serves the network of `job`, with weights made by seed, under one load.
    pub fn run(&self, entry: Entry, job: &JobSpec, load_spec: LoadSpec) -> Result<ServeRun, CliError> {
        let model = self.model(entry, job)?;
        let service = self.start(&model)?;
        let args = ServiceArgs::trial(&service.address);
        let load = load(&args, &load_spec);
        let reports = service.stop();
        let load = load?;
        let Some(&report) = reports.last() else {
            return Err(CliError::failed("the service ended without its counters", "its own message stands above"));
        };
        // One line a second; the first quarter fills caches and pools.
        let early = reports.get(reports.len() / 4).and_then(|report| report.resident_bytes);
        let resident_bytes = early.zip(report.resident_bytes);
        Ok(ServeRun { mode: entry.to_string(), load, report, resident_bytes })
    }

    /// Writes the model: latency does not depend on what its weights are.
    fn model(&self, entry: Entry, job: &JobSpec) -> Result<PathBuf, CliError> {
        let failed = |e: String| CliError::failed(format!("cannot make a model: {e}"), "");
        let network = self.mode.stored_network(&job.network).map_err(|e| failed(e.to_string()))?;
        let weights = Weights::init(&network, 1).flatten(&network).map_err(|e| failed(e.to_string()))?;
        let channels = job.network.input.channels;
        let normalization = Normalization { mean: vec![0.5; channels], std: vec![0.25; channels] };
        let sampling = Sampling { batch: 128, records: 50_000 };
        let mode = (job.mode.clone(), Vec::new());
        let model = ServedModel::new(mode, job.network.clone(), job.terms, sampling, normalization, Vec::new());
        let name = format!("{entry}.asymflow");
        self.folder.replace(&name, &model.encode(&weights, self.registry).map_err(|e| failed(e.to_string()))?)?;
        Ok(self.folder.path().join(name))
    }

    fn start(&self, model: &Path) -> Result<Running, CliError> {
        let token = self.folder.path().join("token");
        let mut spec = EnclaveSpec::new(&self.program);
        let mut flag = |name: &str, value: &str| spec.arguments.extend([name.into(), value.into()]);
        flag("serve", "--exit-with-parent");
        flag("--model", &model.display().to_string());
        flag("--listen", "127.0.0.1:0");
        flag("--batch", &self.section.batch.to_string());
        flag("--linger-ms", &self.section.linger_ms.to_string());
        flag("--threads", &self.threads.to_string());
        flag("--report-seconds", "1");
        if let Some(worker) = self.worker.filter(|_| self.mode.needs_worker()) {
            crate::client::write_private(&token, &worker.token)
                .map_err(|e| CliError::failed(format!("cannot write {}: {e}", token.display()), ""))?;
            flag("--worker", &worker.address);
            flag("--worker-token-file", &token.display().to_string());
            match &worker.fingerprint {
                Some(fingerprint) => flag("--worker-fingerprint", fingerprint),
                None => spec.arguments.push("--insecure-worker-plaintext".into()),
            }
        }
        // Clients of a load generator have nothing to lose, but what sealing costs is part of what is measured.
        spec.arguments.push("--insecure-unlimited-answers".into());
        if self.runtime.name() == "sim" {
            let state = self.folder.path().join("state");
            // Of the load before this one; there is none at first.
            let _ = std::fs::remove_dir_all(&state);
            spec.arguments.extend(["--state".into(), state.into()]);
        } else {
            // The folders of an enclave are in its manifest.
            spec.arguments.push("--insecure-forgetful".into());
        }
        let failed = |what: String| CliError::failed(what, "its own message, if any, stands above");
        let mut session = self.runtime.launch(&spec).map_err(not_launched)?;
        let Some((to, from)) = session.streams() else {
            return Err(failed("the service has no streams".to_owned()));
        };
        let mut lines = BufReader::new(from).lines();
        // Under Gramine, what the program says on standard error comes here as well.
        let ready = lines.by_ref().map_while(Result::ok).find_map(|line| serde_json::from_str(&line).ok());
        // It was read before the service was ready; a mode without a worker has none.
        let _ = std::fs::remove_file(&token);
        let Some(Ready { listening }) = ready else {
            let status = session.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            return Err(failed(format!("the service did not start: {status}")));
        };
        let reports = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&reports);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(report) = serde_json::from_str(&line) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
            }
        });
        Ok(Running { session, to: Some(to), reports, reader, address: listening })
    }
}

impl Running {
    /// Lets the service end by itself, and returns its counters.
    fn stop(mut self) -> Vec<ServiceReport> {
        drop(self.to.take());
        let _ = self.session.wait();
        let _ = self.reader.join();
        std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn table(experiment: &Experiment, settings: &ServeSection, runs: &[ServeRun]) -> String {
    let head = [
        "mode",
        "load",
        "answers",
        "failed",
        "answers/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "images/batch",
        "trusted ms",
        "release ms",
        "wait ms",
        "B to worker",
        "MiB early",
        "MiB end",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for ServeRun { mode, load, report, resident_bytes } in runs {
        let (stats, latency) = (&report.service, &load.latency_ms);
        let each = |total: f64| format!("{:.2}", 1e3 * total / stats.answered.max(1) as f64);
        let mebibytes = |of: fn((u64, u64)) -> u64| {
            resident_bytes
                .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", of(bytes) as f64 / f64::from(1 << 20)))
        };
        let load_name = match load.load.rate {
            Some(rate) => format!("open, {rate}/s on {}", load.load.connections),
            None => format!("closed, {}", load.load.connections),
        };
        rows.push([
            mode.clone(),
            format!("{load_name}, {} s", load.load.seconds),
            load.answered.to_string(),
            (load.failed + load.refused).to_string(),
            format!("{:.1}", load.per_second),
            format!("{:.1}", latency.p50),
            format!("{:.1}", latency.p90),
            format!("{:.1}", latency.p99),
            format!("{:.1}", latency.p999),
            format!("{:.1}", latency.max),
            format!("{:.2}", stats.answered as f64 / stats.batches.max(1) as f64),
            each(stats.parts.trusted + stats.parts.decompose + stats.parts.fold),
            each(stats.parts.release),
            each(stats.parts.wait),
            format!("{:.0}", stats.traffic.to_worker as f64 / stats.answered.max(1) as f64),
            mebibytes(|(early, _)| early),
            mebibytes(|(_, end)| end),
        ]);
    }
    format!(
        "Network {}, weights by seed, {} records in a message to the worker, clients and both programs on the same cores. \
         Latency is from when an image was due to its answer, TLS included; an open loop offers images at a fixed rate. \
         Milliseconds and bytes are for one answer; messages are filled up with coins, so few images in a batch cost more \
         bytes each. Memory is that of the trusted program, after a quarter of the load and at its end.\n\n{}",
        experiment.model.names.join(", "),
        settings.batch,
        markdown(&rows)
    )
}
