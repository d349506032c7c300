//! `kind = "activation-budget"`: what each channel should compute within a budget, as Markdown.

use asymflow::budget_study::{BudgetReport, BudgetRow};

use crate::experiment::Experiment;
use crate::summary::markdown;

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

/// The whole experiment.
pub fn render(experiment: &Experiment, report: &BudgetReport) -> String {
    let spec = &experiment.budget;
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
