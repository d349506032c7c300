//! A command with a kind of experiments, a network and a reader of data of its own.

#[path = "own/registry.rs"]
mod registry;

use std::process::ExitCode;

use asymflow_cli::experiment::{Experiment, Limit};
use asymflow_cli::plot::{Line, Plot};
use asymflow_cli::{CliError, Ended, ExperimentKind, Extensions, Run, Verdict, markdown};
use asymflow_zoo::{
    Network,
    graph::cost,
    network::{Layer, Shape},
    ops::Linear,
};
use serde::{Deserialize, Serialize};

/// `[parameters]`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The claim holds where no network has more.
    most: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { most: 1_000_000 }
    }
}

/// Counts the parameters of each network.
struct CountParameters;

impl ExperimentKind for CountParameters {
    type Settings = Settings;
    type Results = Vec<(String, u64)>;

    fn name(&self) -> &'static str {
        "count-parameters"
    }

    fn section(&self) -> Option<&'static str> {
        Some("parameters")
    }

    fn limits(&self) -> &'static [Limit] {
        const { &[Limit::within("parameters.most", 1.0, 1e12)] }
    }

    fn takes_several_networks(&self) -> bool {
        true
    }

    fn run(&self, run: &Run, _: &Settings) -> Result<(Ended, Option<Self::Results>), CliError> {
        let mut counted = Vec::new();
        for name in &run.experiment().model.names {
            if run.is_interrupted() {
                return Ok((Ended::Interrupted, Some(counted)));
            }
            let total = cost::total_cost(&run.experiment().network(name)?);
            let total = total.map_err(|e| CliError::usage(format!("{name}: {e}"), "take another network"))?;
            counted.push((name.clone(), total.parameters));
        }
        Ok((Ended::Whole, Some(counted)))
    }

    fn table(&self, _: &Experiment, _: &Settings, counted: &Self::Results) -> String {
        let mut rows = vec![["network", "parameters"].map(str::to_owned)];
        rows.extend(counted.iter().map(|(name, count)| [name.clone(), count.to_string()]));
        markdown(&rows)
    }

    fn plots(&self, counted: &Self::Results) -> Vec<(&'static str, Plot)> {
        let points = counted.iter().enumerate().map(|(place, (_, count))| (place as f64, *count as f64));
        let lines = vec![Line::new("parameters", points)];
        vec![("parameters", Plot { x: "network".to_owned(), y: "parameters".to_owned(), y_max: None, lines })]
    }

    fn verdict(&self, _: &Experiment, settings: &Settings, counted: &Self::Results) -> Option<Verdict> {
        let most = counted.iter().map(|(_, count)| *count).max()?;
        Some(Verdict {
            holds: most <= settings.most,
            text: format!("{most} parameters, allowed are {}", settings.most),
        })
    }
}

fn linear(classes: usize, input: Option<Shape>) -> Result<Network, String> {
    let input = input.unwrap_or(Shape::new(3, 32, 32));
    let fc = Linear { name: "fc".to_owned(), in_features: input.len(), out_features: classes };
    Ok(Network { name: "linear".to_owned(), input, classes, layers: vec![Layer::Flatten, Layer::Linear(fc)] })
}

fn main() -> ExitCode {
    asymflow_cli::main_with(
        Extensions::default().kind(CountParameters).network("linear", linear).registry(registry::registry()),
    )
}
