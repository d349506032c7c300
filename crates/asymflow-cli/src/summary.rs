//! What a run leaves behind in numbers: `summary.json`, and the comparison table.

use asymflow::job::{JobSpec, Task, TrainReport};
use asymflow::modes::{Macs, ModeSpec};
use asymflow_zoo::graph::cost;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::machine::Machine;
use crate::promise;
use crate::run::wrong_answer;

mod render;

pub use render::{mean_sd, networks, per_sample, table, tables};

/// `summary.json` of one run. Keys that do not apply are null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// 1.
    pub schema: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the mode.
    pub mode: String,
    /// Name of the network.
    pub model: String,
    /// Seed.
    pub seed: u64,
    /// `done`, `interrupted` or `diverged`.
    pub status: String,
    /// The data.
    pub data: DataSummary,
    /// How far the trusted part can be trusted; null where there is none.
    pub assurance: Option<String>,
    /// Where the trusted part computes.
    pub trusted_device: Option<String>,
    /// The worker's device; null where there is none.
    pub worker_device: Option<String>,
    /// Insecure settings in force.
    pub insecure: Vec<String>,
    /// Shares of test images classified correctly.
    pub accuracy: Accuracy,
    /// The guarantee.
    pub privacy: Privacy,
    /// Bytes between the trusted part and the worker for one training sample.
    pub bytes_per_sample: Bytes,
    /// The same for one classified sample.
    pub inference_bytes_per_sample: Bytes,
    /// Multiply-accumulates of one inference.
    pub macs_per_sample: Macs,
    /// What the activations of one inference take.
    #[serde(default)]
    pub activations_per_sample: Activations,
    /// Seconds of training and evaluation by part; parts overlap.
    pub seconds: PartSeconds,
    /// Filled in by the comparison.
    pub speedup_over_trusted_only: Speedup,
    /// How often the worker was lost and opened again.
    pub worker_reopened: usize,
    /// Configuration that training ran with.
    pub train: asymflow::job::TrainSpec,
    /// The command.
    pub command: String,
    /// Commit that the program was built from, where known.
    pub commit: Option<String>,
    /// The machine.
    pub machine: Machine,
}

/// Part of [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Name: `synthetic`, or the path's last part.
    pub name: String,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Part of [`Summary`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Of this run.
    pub test: Option<f64>,
    /// Of the same integers without encryption, where a mode computes on integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// Of `trusted-only` at the same seed, where it ran.
    pub trusted_only: Option<f64>,
    /// Of `clear` at the same seed, where it ran.
    pub clear: Option<f64>,
}

/// Part of [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Privacy {
    /// Name of the mechanism; null where nothing is released.
    pub mechanism: Option<String>,
    /// Standard deviation of its noise, where the mode chose it.
    #[serde(default)]
    pub sigma: Option<f64>,
    /// What is done about labels; null where nothing of them is released.
    #[serde(default)]
    pub labels: Option<String>,
    /// ε of the record that lost most; null without a guarantee, 0 where nothing is released.
    pub epsilon: Option<f64>,
    /// The same where neighbours differ by a record replaced by another, whatever relation the run was held to; null where it is
    /// not known or infinite.
    #[serde(default)]
    pub epsilon_replaced: Option<f64>,
    /// δ of that ε.
    pub delta: Option<f64>,
    /// What it protects.
    pub per: String,
    /// What it takes as given, though it was made of the same records; `none` where that is nothing.
    #[serde(default)]
    pub condition: String,
    /// Most that one record tells the worker, in nats; null without a guarantee.
    #[serde(default)]
    pub nats: Option<f64>,
}

/// Part of [`Summary`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bytes {
    /// To the worker.
    pub to_worker: u64,
    /// From it.
    pub from_worker: u64,
}

/// Part of [`Summary`]; zero in summaries from before they were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activations {
    /// Sign decisions.
    pub decisions: u64,
    /// Squares.
    pub squares: u64,
}

/// Part of [`Summary`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartSeconds {
    /// Wall clock of training and evaluation.
    pub total: f64,
    /// Wall clock of training.
    pub training: f64,
    /// Wall clock of evaluation.
    pub inference: f64,
    /// Trusted convolutions.
    pub trusted: f64,
    /// Decompositions.
    pub decompose: f64,
    /// Folding and recombining; zero in summaries from before it was told apart from `trusted`.
    #[serde(default)]
    pub fold: f64,
    /// The worker's device.
    pub worker: f64,
    /// Moving bytes.
    pub transfer: f64,
    /// Waiting for the worker with no trusted work left.
    pub wait: f64,
    /// Mechanisms and encoding.
    pub release: f64,
}

/// Part of [`Summary`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speedup {
    /// Seconds of `trusted-only` evaluation over those of this run.
    pub inference: Option<f64>,
    /// Seconds of `trusted-only` training over those of this run.
    pub training: Option<f64>,
}

/// Everything a summary is made of.
pub struct Sources<'a> {
    /// Name of the experiment.
    pub name: &'a str,
    /// The experiment.
    pub experiment: &'a Experiment,
    /// Which of its entries ran.
    pub entry: Entry,
    /// Its mode.
    pub mode: &'a dyn ModeSpec,
    /// The job.
    pub job: &'a JobSpec,
    /// What it measured.
    pub report: &'a TrainReport,
    /// Assurance of the runtime.
    pub assurance: String,
    /// The worker's device.
    pub worker_device: Option<String>,
}

impl Summary {
    /// The summary of one finished job.
    ///
    /// # Errors
    /// A mode that its settings do not make.
    pub fn new(s: &Sources<'_>) -> Result<Self, CliError> {
        let Sources { experiment, mode, job, report, .. } = s;
        let unusable = |e: asymflow::modes::ModeError| CliError::failed(e.to_string(), "");
        let per = |total: u64, samples: u64| total / samples.max(1);
        let Task::Train(train) = &job.task else { return Err(wrong_answer()) };
        let in_trusted = mode.computes_here();
        let facts = experiment.facts(&job.network, &job.terms, report.train_images);
        let guard = mode.guard(&facts).map_err(unusable)?;
        let losses = mode.losses(&facts).map_err(unusable)?;
        // To a worker, or as weights.
        let released = mode.needs_worker() || !losses.train.is_empty();
        let nats = promise::nats(&losses.train).max(promise::nats(&losses.test));
        let replaced = losses.by_replacement();
        // Steps that were done again after a lost worker are not in what was planned.
        let replaced =
            replaced.epsilon(job.terms.delta).map_err(|e| unusable(e.into()))?.filter(|_| report.reopened == 0);
        let data = match &job.data.path {
            None => "synthetic".to_owned(),
            Some(path) => path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        };
        Ok(Self {
            schema: 1,
            experiment: s.name.to_owned(),
            mode: s.entry.to_string(),
            model: job.network.name.clone(),
            seed: train.seed,
            status: match (report.interrupted, report.diverged) {
                (true, _) => "interrupted",
                (_, true) => "diverged",
                _ => "done",
            }
            .to_owned(),
            data: DataSummary { name: data, train: report.train_images, test: report.test_images },
            assurance: in_trusted.then(|| s.assurance.clone()),
            trusted_device: in_trusted.then(|| format!("cpu, {} threads", job.threads)),
            worker_device: s.worker_device.clone().filter(|_| mode.needs_worker()),
            insecure: experiment.insecure(*mode),
            accuracy: Accuracy { test: report.test_accuracy, reference: None, trusted_only: None, clear: None },
            privacy: Privacy {
                mechanism: guard.as_ref().map(|guard| guard.mechanism.clone()),
                sigma: guard.as_ref().and_then(|guard| guard.sigma),
                labels: guard.map(|guard| guard.labels),
                epsilon: if released { report.epsilon.filter(|e| e.is_finite()) } else { Some(0.0) },
                epsilon_replaced: if released { replaced.filter(|e| e.is_finite()) } else { Some(0.0) },
                delta: released.then_some(job.terms.delta),
                per: "record".to_owned(),
                condition: mode.condition().to_owned(),
                nats: Some(nats).filter(|nats| nats.is_finite()),
            },
            bytes_per_sample: Bytes {
                to_worker: per(report.train_traffic.to_worker, report.trained_samples),
                from_worker: per(report.train_traffic.from_worker, report.trained_samples),
            },
            inference_bytes_per_sample: Bytes {
                to_worker: per(report.inference_traffic.to_worker, report.inferred_samples),
                from_worker: per(report.inference_traffic.from_worker, report.inferred_samples),
            },
            macs_per_sample: mode.macs(&job.network, train.batch).map_err(unusable)?,
            activations_per_sample: cost::total_cost(&job.network)
                .map_or(Activations::default(), |total| Activations { decisions: total.relus, squares: total.squares }),
            seconds: PartSeconds {
                total: report.train_seconds + report.inference_seconds,
                training: report.train_seconds,
                inference: report.inference_seconds,
                trusted: report.parts.trusted,
                decompose: report.parts.decompose,
                fold: report.parts.fold,
                worker: report.parts.worker,
                transfer: report.parts.transfer,
                wait: report.parts.wait,
                release: report.parts.release,
            },
            speedup_over_trusted_only: Speedup::default(),
            worker_reopened: report.reopened,
            train: train.clone(),
            command: crate::machine::command(),
            commit: crate::machine::commit(),
            machine: crate::machine::machine(s.worker_device.as_deref()),
        })
    }
}

/// Fills in what compares the runs of one seed.
pub fn compare(runs: &mut [Summary]) {
    let find = |runs: &[Summary], mode: &str, seed: u64| {
        runs.iter().find(|r| r.mode == mode && r.seed == seed && r.status == "done").cloned()
    };
    for i in 0..runs.len() {
        let trusted = find(runs, "trusted-only", runs[i].seed);
        let clear = find(runs, "clear", runs[i].seed);
        let run = &mut runs[i];
        run.accuracy.clear = clear.and_then(|c| c.accuracy.test);
        if let Some(trusted) = trusted {
            run.accuracy.trusted_only = trusted.accuracy.test;
            let ratio = |theirs: f64, ours: f64| (ours > 0.0 && theirs > 0.0).then(|| theirs / ours);
            run.speedup_over_trusted_only = Speedup {
                inference: ratio(trusted.seconds.inference, run.seconds.inference),
                training: ratio(trusted.seconds.training, run.seconds.training),
            };
        }
    }
}
