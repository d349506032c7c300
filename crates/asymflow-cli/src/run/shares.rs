//! `kind = "shares"`: every setting, one after the other.

use std::sync::atomic::Ordering;

use asymflow_zoo::Weights;

use super::{Outcome, Runner, network};
use crate::error::CliError;
use crate::machine;
use crate::report::Results;
use crate::shares_experiment::{self, Bench};

impl Runner {
    pub(super) fn shares(&self) -> Result<Outcome, CliError> {
        let e = &self.experiment;
        let (network, weights) = match self.read_weights(&e.model.names[0])? {
            Some(given) => given,
            None => {
                let network = network(e, &e.model.names[0])?;
                let weights = Weights::init(&network, e.train.seeds[0]);
                (network, weights)
            }
        };
        let threads = if e.shares.threads == 0 { (machine::cores() / 2).max(1) } else { e.shares.threads };
        let images = shares_experiment::images(e, &network)?;
        let mut bench = Bench::new(&network, &weights, images, e.shares.repeats, threads)?;
        let mut runs = Vec::new();
        for setting in e.shares.settings() {
            if self.interrupt.asked.load(Ordering::Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            self.output.say(&setting.to_string());
            runs.push(bench.run(setting)?);
        }
        let verdict = shares_experiment::verdict(e, &runs);
        self.leave(Results::Shares(runs), None)?;
        let Some((holds, text)) = verdict else { return Ok(Outcome::Done) };
        self.output.say(&text);
        Ok(if holds { Outcome::Done } else { Outcome::ClaimFailed })
    }
}
