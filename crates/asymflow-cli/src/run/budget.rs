//! `kind = "activation-budget"`.

use asymflow::budget_study::{self, BudgetStudyError, Training};
use asymflow_zoo::data::{self, DataError, DataSource};
use asymflow_zoo::{Split, Weights};

use super::{Outcome, Runner, network};
use crate::error::CliError;
use crate::experiment::DataSection;
use crate::report::Results;

impl Runner {
    pub(super) fn budget(&self) -> Result<Outcome, CliError> {
        let e = &self.experiment;
        let split = self.budget_data()?;
        let failed = |e: BudgetStudyError| CliError::failed(e.to_string(), "");
        let training = Training {
            epochs: e.train.epochs,
            batch: e.train.batch,
            learning_rate: e.train.learning_rate,
            momentum: e.train.momentum,
            weight_decay: e.train.weight_decay,
            seed: e.train.seeds[0],
            augment: e.data.augment,
        };
        let (network, weights) = match self.read_weights(&e.model.names[0])? {
            Some(given) => given,
            None => {
                let network = network(e, &e.model.names[0])?;
                let weights = Weights::init(&network, training.seed);
                self.output.say(&format!("training {} with ReLU", network.name));
                let weights = budget_study::train(&network, &weights, &split, &training).map_err(failed)?;
                (network, weights)
            }
        };
        self.output.say("measuring distortions");
        let report = budget_study::study(&network, &weights, &split, &e.budget, &training).map_err(failed)?;
        self.leave(Results::Budget(report), None)?;
        Ok(Outcome::Done)
    }

    fn budget_data(&self) -> Result<Split, CliError> {
        let DataSection { path, train, test, seed, .. } = self.experiment.data.clone();
        let source = match path {
            Some(path) => DataSource::Files { path, resize: None },
            None => DataSource::Synthetic { train: train.unwrap_or(2000), test: test.unwrap_or(1000), seed },
        };
        let unusable = |e: DataError| CliError::usage(e.to_string(), "");
        let mut split = data::load(&source).map_err(unusable)?;
        for (set, count) in [(&mut split.train, train), (&mut split.test, test)] {
            if let Some(count) = count.filter(|count| *count < set.len()) {
                *set = set.subset(count, seed).map_err(unusable)?;
            }
        }
        Ok(split)
    }
}
