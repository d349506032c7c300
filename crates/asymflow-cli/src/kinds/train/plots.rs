//! What a training experiment shows: accuracy by epoch, and against what its runs differ in.

use std::collections::BTreeMap;

use super::Trained;
use crate::plot::{Line, Plot};
use crate::summary::{Summary, mean_sd};

/// Accuracies by what stands below them, in the order in which their names came up.
#[derive(Default)]
struct Lines(Vec<(String, BTreeMap<u64, Vec<f64>>)>);

impl Lines {
    fn add(&mut self, name: &str, x: f64, accuracy: f64) {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), BTreeMap::new()));
        }
        // Bits of numbers that are not negative are in the order of the numbers.
        let line = self.0.iter_mut().find(|(known, _)| known == name);
        line.into_iter().for_each(|(_, points)| points.entry(x.to_bits()).or_default().push(100.0 * accuracy));
    }

    /// Means over seeds with their standard deviations.
    fn plot(self, x: &str) -> Plot {
        let point = |(x, values): (u64, Vec<f64>)| {
            let (mean, sd) = mean_sd(&values).unwrap_or_default();
            (f64::from_bits(x), mean, sd)
        };
        let lines = self.0.into_iter().map(|(name, points)| Line::with_intervals(&name, points.into_iter().map(point)));
        Plot { x: x.to_owned(), y: "test accuracy %".to_owned(), y_max: Some(100.0), lines: lines.collect() }
    }
}

pub fn of(trained: &Trained) -> Vec<(&'static str, Plot)> {
    let mut by_epoch = Lines::default();
    for curve in &trained.curves {
        for &(epoch, accuracy) in &curve.test_accuracy {
            by_epoch.add(&curve.mode, epoch as f64, accuracy);
        }
    }
    let mut plots = vec![("accuracy", by_epoch.plot("epoch"))];
    plots.extend(by_epsilon(&trained.runs).map(|plot| ("accuracy-epsilon", plot)));
    plots.extend(by_decisions(&trained.runs).map(|plot| ("accuracy-decisions", plot)));
    plots
}

/// How many different numbers there are.
fn different(values: impl Iterator<Item = f64>) -> usize {
    values.map(f64::to_bits).collect::<std::collections::BTreeSet<_>>().len()
}

/// Accuracy against ε, and across it what has none: the controls. None where ε does not differ.
fn by_epsilon(runs: &[Summary]) -> Option<Plot> {
    let spent = |run: &Summary| run.privacy.epsilon.filter(|&epsilon| epsilon > 0.0);
    if different(runs.iter().filter_map(spent)) < 2 {
        return None;
    }
    let ends = [f64::min, f64::max].map(|pick| runs.iter().filter_map(spent).reduce(pick));
    let mut lines = Lines::default();
    for run in runs {
        let Some(accuracy) = run.accuracy.test else { continue };
        match spent(run) {
            Some(epsilon) => lines.add(run.mode.split('@').next().unwrap_or_default(), epsilon, accuracy),
            None => ends.iter().flatten().for_each(|&end| lines.add(&run.mode, end, accuracy)),
        }
    }
    Some(lines.plot("ε of a record"))
}

/// Accuracy against sign decisions, a line for each kind of activation. None where they do not differ.
fn by_decisions(runs: &[Summary]) -> Option<Plot> {
    let log2 = |run: &Summary| (run.activations_per_sample.decisions.max(1) as f64).log2();
    let is_one_network = runs.iter().all(|run| run.model == runs[0].model);
    if is_one_network || different(runs.iter().map(log2)) < 2 {
        return None;
    }
    let mut lines = Lines::default();
    for run in runs {
        let (network, activation) = run.model.split_once('+').unwrap_or((&run.model, "relu"));
        let kind = activation.split(':').next().unwrap_or_default();
        lines.add(&format!("{network}, {kind}"), log2(run), run.accuracy.test?);
    }
    Some(lines.plot("log2 of the sign decisions a sample"))
}
