//! What an experiment found: one JSON document. `docs/results/` is made of these.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::experiment::Experiment;
use crate::machine::{self, Machine};

/// Where results were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub command: String,
    /// Commit that the program was built from, where known.
    pub commit: Option<String>,
    pub machine: Machine,
    /// Assurance of the trusted part.
    pub assurance: String,
    /// The worker's device; null where there was none.
    pub worker_device: Option<String>,
}

impl Provenance {
    /// Of what this process ran.
    pub fn of(assurance: String, worker_device: Option<String>) -> Self {
        Self {
            command: machine::command(),
            commit: machine::commit(),
            machine: machine::machine(worker_device.as_deref()),
            assurance,
            worker_device,
        }
    }

    pub fn words(&self) -> String {
        let Self { command, commit, machine, assurance, worker_device } = self;
        format!(
            "Commit {}, {} with {} cores{}. Command: `{command}`. Trusted part: {assurance}; worker: {}.\n",
            commit.as_deref().unwrap_or("unknown"),
            machine.cpu,
            machine.cores,
            machine.gpu.as_ref().map_or_else(String::new, |gpu| format!(" and {gpu}")),
            worker_device.as_deref().unwrap_or("none")
        )
    }
}

/// `summary.json` of a whole experiment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report<R> {
    pub schema: u32,
    /// Name of the experiment.
    pub name: String,
    /// The experiment as it ran.
    pub experiment: Experiment,
    pub provenance: Provenance,
    /// Under one key, which the kind names.
    pub results: BTreeMap<String, R>,
}
