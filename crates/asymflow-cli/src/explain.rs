//! `asymflow explain`: what a configuration costs, before it runs.

use std::path::PathBuf;

use asymflow::modes::{Charge, Losses, ModeError, ModeSpec, PrivacyTerms, composed};
use asymflow_privacy::accountants::{Accountant, Event, PldAccountant, RdpAccountant, Relation, ZcdpAccountant};

use asymflow_zoo::weights::Pass;

use crate::error::CliError;
use crate::experiment::Experiment;
use crate::memory;
use crate::promise;
use crate::tables;
use crate::text::{self, markdown};

/// Flags of `asymflow explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to explain
    pub what: What,
    /// The experiment file
    pub experiment: PathBuf,
    /// Set a key, e.g. --set delta.views=4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// ε of one record over its releases, under every accountant
    Epsilon,
    /// The split, layer by layer
    Model,
    /// The trusted part's memory in every mode, and the size of the enclave that follows
    Memory,
}

/// Explains an experiment.
///
/// # Errors
/// An unreadable experiment, or settings that no ε can be given for.
pub fn explain(what: What, experiment: &Experiment) -> Result<String, CliError> {
    match what {
        What::Epsilon => epsilon(experiment),
        What::Model => model(experiment),
        What::Memory => memory::explain(experiment),
    }
}

/// What a run of each entry would release of a record, and ε of it, as the run's own accountant will say it.
fn epsilon(experiment: &Experiment) -> Result<String, CliError> {
    let mut text = String::new();
    let records = experiment.records()?;
    for &entry in &experiment.entries {
        let mode = experiment.mode_spec(entry, &experiment.model.names[0])?;
        let network = experiment.network(&entry.model(&experiment.model.names[0]))?;
        let terms = experiment.terms();
        let facts = experiment.facts(&network, &terms, records.0);
        let losses = mode.losses(&facts).map_err(usage)?;
        text += &format!("## {entry}\n\n");
        text += &mode.caveat().map_or_else(String::new, |caveat| format!("{caveat}\n\n"));
        if losses.train.is_empty() && losses.test.is_empty() {
            text += "Nothing is released to a worker: ε of it is 0.\n\n";
            text += &promise(&*mode, &losses, &terms)?;
            continue;
        }
        if let Some(guard) = mode.guard(&facts).map_err(usage)? {
            let number =
                |what: &str, value: Option<f64>| value.map_or_else(String::new, |v| format!(", {what} {v:.4}"));
            let (sigma, clip) = (number("σ", guard.sigma), number("clip C", guard.clip));
            text += &format!("{}{sigma}{clip}; labels: {}.\n\n", guard.mechanism, guard.labels);
        }
        text += &table(&losses, experiment, records)?;
        text += &promise(&*mode, &losses, &terms)?;
    }
    Ok(text)
}

fn promise(mode: &dyn ModeSpec, losses: &Losses, terms: &PrivacyTerms) -> Result<String, CliError> {
    let rows = promise::table(mode, losses, terms).map_err(|e| usage(e.into()))?;
    Ok(format!("The whole promise, at δ = {:e}:\n\n{}\n", terms.delta, markdown(&rows)))
}

fn table(losses: &Losses, experiment: &Experiment, (train, test): (usize, usize)) -> Result<String, CliError> {
    let terms = experiment.terms();
    let mut rows =
        vec![["record", "what is released", "ε", "PLD", "RDP", "zCDP", "ε by replacement"].map(str::to_owned)];
    let replaced = losses.by_replacement();
    for (record, charges, replaced) in
        [("training", &losses.train, &replaced.train), ("test", &losses.test, &replaced.test)]
    {
        let named = charges.iter().map(|charge| format!("{} × {}", charge.times, charge.what));
        let of = |charges: &[Charge]| composed(charges).epsilon(terms.delta).map_err(|e| usage(e.into()));
        let show = |epsilon: f64| text::epsilon(epsilon, 4);
        let mut row = [record, &named.collect::<Vec<_>>().join(", "), "", "", "", "", ""].map(str::to_owned);
        row[2] = show(of(charges)?);
        for (cell, mut accountant) in row[3..6].iter_mut().zip(accountants()) {
            *cell = match compose(&mut *accountant, charges, terms.delta) {
                Some(epsilon) => show(epsilon),
                None => "-".to_owned(),
            };
        }
        row[6] = show(of(replaced)?);
        rows.push(row);
    }
    let neighbours = match terms.relation {
        Relation::Remove => "a record removed, and in the last column replaced",
        Relation::Replace => "a record replaced",
    };
    let at = text::delta(terms.delta, train + test);
    Ok(format!(
        "For {train} training and {test} test records, at {at}, neighbours differ in {neighbours}:\n\n{}\n",
        markdown(&rows)
    ))
}

fn accountants() -> [Box<dyn Accountant>; 3] {
    [Box::new(PldAccountant::default()), Box::new(RdpAccountant::default()), Box::new(ZcdpAccountant::default())]
}

/// ε of `charges` by one accountant; none where it cannot compose them.
fn compose(accountant: &mut dyn Accountant, charges: &[Charge], delta: f64) -> Option<f64> {
    /// Accountants absorb one loss at a time.
    const MOST: u64 = 1_000_000;
    for charge in charges.iter().filter(|charge| charge.times > 0) {
        Event::of_loss(charge.loss)?;
        let times = Some(charge.times).filter(|&times| times <= MOST)?;
        (0..times).for_each(|_| accountant.absorb(charge.loss));
    }
    accountant.epsilon(delta).ok()
}

fn model(experiment: &Experiment) -> Result<String, CliError> {
    let mut text = String::new();
    for name in &experiment.model.names {
        for &entry in &experiment.entries {
            let (mode, network) = (experiment.mode_spec(entry, name)?, experiment.network(&entry.model(name))?);
            let plan = mode.plan(&network, experiment.train.batch, Pass::Training).map_err(usage)?;
            if let Some(plan) = plan.filter(|_| mode.needs_worker()) {
                text += &format!("## {name} as {entry}\n\n{}\n", tables::layers(&plan));
            }
            if let Some(explained) = mode.explain(&network).map_err(usage)? {
                text += &format!("## {name} as {entry}\n\n{}\n\n{}\n", explained.text, markdown(&explained.table));
            }
        }
    }
    Ok(text)
}

fn usage(error: ModeError) -> CliError {
    CliError::usage(error.to_string(), "see `asymflow show` for the settings in force")
}
