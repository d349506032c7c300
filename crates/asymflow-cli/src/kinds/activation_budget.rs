//! `kind = "activation-budget"`: what each channel should compute within a budget.

use asymflow::studies::budget::{self, BudgetReport, BudgetRow, BudgetSpec, BudgetStudyError, Training};
use asymflow_zoo::Weights;

use crate::error::CliError;
use crate::experiment::{Experiment, Limit};
use crate::kind::{Ended, ExperimentKind};
use crate::run::Run;
use crate::text::markdown;

/// Chooses what each channel computes on secret shares within a budget. Everything happens in this process.
pub struct ActivationBudget;

impl ExperimentKind for ActivationBudget {
    type Settings = BudgetSpec;
    type Results = BudgetReport;

    fn name(&self) -> &'static str {
        "activation-budget"
    }

    fn section(&self) -> Option<&'static str> {
        Some("budget")
    }

    fn limits(&self) -> &'static [Limit] {
        const {
            &[
                Limit::whole("budget.images", 1.0, 1e6),
                Limit::whole("budget.calibration", 1.0, 1e6),
                Limit::whole("budget.blocks", 1.0, 65_536.0),
                Limit::whole("budget.uniform", 1.0, 65_536.0),
                Limit::whole("budget.tune_epochs", 0.0, 1e6),
                Limit::above("budget.tune_rate", 0.0, 1e6),
            ]
        }
    }

    fn run(&self, run: &Run, settings: &BudgetSpec) -> Result<(Ended, Option<BudgetReport>), CliError> {
        let e = run.experiment();
        let name = &e.model.names[0];
        let split = e.load(2000, e.data.test.unwrap_or(1000))?;
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
        let (network, weights) = match run.given_weights(name)? {
            Some(given) => given,
            None => {
                let network = e.network(name)?;
                let weights = Weights::init(&network, training.seed);
                run.say(&format!("training {} with ReLU", network.name));
                let weights = budget::train(&network, &weights, &split, &training).map_err(failed)?;
                (network, weights)
            }
        };
        run.say("measuring distortions");
        let report = budget::study(&network, &weights, &split, settings, &training).map_err(failed)?;
        Ok((Ended::Whole, Some(report)))
    }

    fn table(&self, experiment: &Experiment, settings: &BudgetSpec, report: &BudgetReport) -> String {
        table(experiment, settings, report)
    }
}

const HEAD: [&str; 14] = [
    "activations",
    "budget MB",
    "MB online",
    "MB dealt",
    "rounds",
    "decisions",
    "ReLU, block, copy, quadratic, identity, zero",
    "sum of distortions",
    "lower bound",
    "gap %",
    "measured distortion",
    "accuracy %",
    "fine-tuned %",
    "total MB",
];

fn megabytes(bytes: f64) -> String {
    format!("{:.3}", bytes * 1e-6)
}

fn row(row: &BudgetRow) -> [String; 14] {
    let optional =
        |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
    let gap = row
        .expected_distortion
        .zip(row.bound)
        .map(|(found, bound)| if found > 0.0 { 100.0 * (found - bound).max(0.0) / found } else { 0.0 });
    [
        row.name.clone(),
        row.budget_bytes.map_or_else(|| "-".to_owned(), megabytes),
        megabytes(row.online_bytes as f64),
        megabytes(row.dealer_bytes as f64),
        row.rounds.to_string(),
        row.decisions.to_string(),
        row.channels.map(|count| count.to_string()).join(", "),
        optional(row.expected_distortion, 5),
        optional(row.bound, 5),
        optional(gap, 2),
        format!("{:.5}", row.distortion),
        format!("{:.2}", 100.0 * row.accuracy),
        optional(row.tuned_accuracy.map(|accuracy| 100.0 * accuracy), 2),
        megabytes((row.online_bytes + row.dealer_bytes) as f64),
    ]
}

fn table(experiment: &Experiment, spec: &BudgetSpec, report: &BudgetReport) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(report.rows.iter().map(row));
    let slowest = report.solve_seconds.iter().copied().fold(0.0, f64::max);
    format!(
        "Network {}, seed {}; test accuracy on {} images. A distortion is the mean squared error at the last block's output when one channel \
         alone makes a choice, measured on {} training images (mean square of that output: {:.4}); quadratics are fitted to ReLU by \
         least squares on {} images. {} channels with {} choices in all were measured in {:.1} s, and each budget was solved in at most \
         {:.1} ms. The budget is bytes of one query, both servers' and the dealer's together, over 64 bits with public weights: each *chosen* row \
         may cost what the row of uniform blocks above it costs. *Lower bound* is that of the relaxation, which no choice within the budget \
         undercuts, copies without their prototypes included; *gap* is the distance to it. Sums of distortions leave out what \
         channels do to one another, which *measured distortion* has. Rounds are counted, not bought: a layer has two for decisions and \
         one for squares. Fine-tuning: {} epoch(s). MB are 10⁶ bytes; ReLU is one decision for each activation.\n\n{}",
        experiment.model.names.join(", "),
        experiment.train.seeds.first().copied().unwrap_or_default(),
        report.test_images,
        spec.images,
        report.power,
        spec.calibration,
        report.classes,
        report.items,
        report.measure_seconds,
        1e3 * slowest,
        spec.tune_epochs,
        markdown(&rows)
    )
}
