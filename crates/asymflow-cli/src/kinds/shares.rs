//! `kind = "shares"`: two servers on secret shares over TCP, and what a query costs them.

use asymflow_zoo::Weights;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::kind::{Ended, ExperimentKind, Verdict};
use crate::machine;
use crate::run::Run;
use crate::shares_section::Setting;
use measure::Bench;

mod ends;
mod measure;
mod table;

/// Measures queries to two servers, one setting after the other. Its settings are the section `[shares]`, which mode `shares` has
/// too.
pub struct Shares;

impl ExperimentKind for Shares {
    type Settings = ();
    type Results = Vec<SharesRun>;

    fn name(&self) -> &'static str {
        "shares"
    }

    fn estimate(&self, experiment: &Experiment, (): &(), name: &str) -> Result<String, CliError> {
        Ok(format!("\n# {name}\n{}", table::costs(experiment, &experiment.network(name)?)?))
    }

    fn notice(&self, _: &Run) -> Vec<String> {
        vec![
            "dealer and both servers are threads of this process: whoever owns this machine sees everything".to_owned(),
        ]
    }

    fn run(&self, run: &Run, (): &()) -> Result<(Ended, Option<Self::Results>), CliError> {
        let e = run.experiment();
        let name = &e.model.names[0];
        let (network, weights) = match run.given_weights(name)? {
            Some(given) => given,
            None => {
                let network = e.network(name)?;
                let weights = Weights::init(&network, e.train.seeds[0]);
                (network, weights)
            }
        };
        let threads = if e.shares.threads == 0 { (machine::cores() / 2).max(1) } else { e.shares.threads };
        let images = measure::images(e, &network)?;
        let mut bench = Bench::new(&network, &weights, images, e.shares.repeats, threads)?;
        let mut runs = Vec::new();
        for setting in e.shares.settings() {
            if run.is_interrupted() {
                return Ok((Ended::Interrupted, None));
            }
            run.say(&setting.to_string());
            runs.push(bench.run(setting)?);
        }
        Ok((Ended::Whole, Some(runs)))
    }

    fn table(&self, experiment: &Experiment, (): &(), runs: &Self::Results) -> String {
        table::render(experiment, runs)
    }

    fn verdict(&self, experiment: &Experiment, (): &(), runs: &Self::Results) -> Option<Verdict> {
        table::verdict(experiment, runs)
    }
}

/// What one setting measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharesRun {
    /// The setting.
    pub setting: Setting,
    /// Sign decisions of a query.
    pub decisions: u64,
    /// Exchanges of a query.
    pub rounds: u64,
    /// Threads of each server.
    pub threads: usize,
    /// Load average of the machine over the minute before, this program's own included; null where it is not told.
    pub load_average: Option<f64>,
    /// Bytes that each server wrote to its socket in a query, frames and headers included.
    pub online_bytes: [u64; 2],
    /// Bytes of each server's deal, beyond its seed.
    pub dealt_bytes: [u64; 2],
    /// Bytes that each server wrote once a model.
    pub setup_bytes: [u64; 2],
    /// Seconds of it.
    pub setup_seconds: f64,
    /// Seconds in which the dealer dealt, of each query.
    pub deal_seconds: Vec<f64>,
    /// Seconds in which both servers prepared what needs no input, of each query.
    pub prepare_seconds: Vec<f64>,
    /// Seconds from the input's shares to the logits' shares, of each query.
    pub online_seconds: Vec<f64>,
    /// Images compared.
    pub images: usize,
    /// Largest distance of a logit from the one in double precision.
    pub largest_error: f64,
    /// Largest logit in double precision, in magnitude.
    pub largest_logit: f64,
    /// Images that got another class than in double precision.
    pub changed: usize,
    /// Images classified correctly on shares, and in double precision.
    #[serde(default)]
    pub correct: [usize; 2],
}
