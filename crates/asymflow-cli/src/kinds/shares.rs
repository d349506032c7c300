//! `kind = "shares"`: two servers on secret shares over TCP, and what a query costs them.

use asymflow_zoo::Weights;

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::kind::{Ended, ExperimentKind, Verdict};
use crate::machine;
use crate::run::Run;
use found::SharesRun;
use measure::Bench;

mod ends;
mod found;
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

    fn notice(&self, _: &Run) -> Result<Vec<String>, CliError> {
        let text = "dealer and both servers are threads of this process: whoever owns this machine sees everything";
        Ok(vec![text.to_owned()])
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
            run.say(&setting.to_string());
            match bench.run(setting, &|| run.is_interrupted())? {
                Some(measured) => runs.push(measured),
                None => return Ok((Ended::Interrupted, None)),
            }
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
