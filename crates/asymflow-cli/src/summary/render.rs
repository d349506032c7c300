//! Summaries as tables: means and spreads over seeds.

use super::{Privacy, Summary};
use crate::text::{epsilon, markdown};

/// Mean and standard deviation; none of no values.
pub fn mean_sd(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0).max(1.0);
    Some((mean, variance.sqrt()))
}

fn cell(values: Vec<f64>, digits: usize) -> String {
    match mean_sd(&values) {
        None => "-".to_owned(),
        Some((mean, sd)) if values.len() > 1 => format!("{mean:.digits$} ± {sd:.digits$}"),
        Some((mean, _)) => format!("{mean:.digits$}"),
    }
}

fn row(runs: &[&Summary]) -> Option<[String; 12]> {
    let first = runs.first()?;
    let many = |digits, f: &dyn Fn(&Summary) -> Option<f64>| cell(runs.iter().filter_map(|r| f(r)).collect(), digits);
    let Privacy { epsilon: lost, epsilon_replaced: replaced, .. } = &first.privacy;
    let (lost, replaced) = match lost {
        None => ("∞".to_owned(), "∞".to_owned()),
        Some(0.0) => ("0".to_owned(), "0".to_owned()),
        Some(lost) => (epsilon(*lost, 2), replaced.map_or_else(|| "-".to_owned(), |replaced| epsilon(replaced, 2))),
    };
    let kib = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0);
    let millions = |macs: u64| format!("{:.2}", macs as f64 / 1e6);
    Some([
        first.mode.clone(),
        many(1, &|r| r.accuracy.test.map(|a| 100.0 * a)),
        lost,
        replaced,
        kib(first.bytes_per_sample.to_worker),
        millions(first.macs_per_sample.trusted),
        many(1, &|r| Some(r.seconds.training)),
        many(1, &|r| Some(r.seconds.trusted)),
        many(1, &|r| Some(r.seconds.decompose)),
        many(1, &|r| Some(r.seconds.fold).filter(|&fold| fold > 0.0)),
        many(1, &|r| Some(r.seconds.worker)),
        many(1, &|r| Some(r.seconds.transfer)),
    ])
}

const HEAD: [&str; 12] = [
    "mode",
    "accuracy %",
    "ε",
    "ε replaced",
    "KiB to worker / sample",
    "trusted MMACs / sample",
    "training s",
    "trusted s",
    "decompose s",
    "fold s",
    "worker s",
    "transfer s",
];

/// The comparison table, in Markdown; means ± standard deviations over seeds.
pub fn table(runs: &[Summary]) -> String {
    let mut rows: Vec<[String; 12]> = vec![HEAD.map(str::to_owned)];
    for mode in modes(runs) {
        let of_mode: Vec<&Summary> = runs.iter().filter(|r| r.mode == mode).collect();
        rows.extend(row(&of_mode));
    }
    markdown(&rows)
}

/// The tables that a training experiment ends with.
pub fn tables(runs: &[Summary]) -> String {
    let of_one_mode = |run: &Summary| runs.iter().any(|other| other.mode == run.mode && other.model != run.model);
    if runs.iter().any(of_one_mode) { networks(runs) } else { table(runs) }
}

/// Several networks compared, in Markdown; means ± standard deviations over seeds.
pub fn networks(runs: &[Summary]) -> String {
    let head = ["network", "mode", "accuracy %", "diverged", "sign decisions", "squares", "MMACs", "training s"];
    let mut rows: Vec<[String; 8]> = vec![head.map(str::to_owned)];
    for model in models(runs) {
        for mode in modes(runs) {
            let these: Vec<&Summary> = runs.iter().filter(|r| r.mode == mode && r.model == model).collect();
            let Some(first) = these.first() else { continue };
            let many =
                |digits, f: &dyn Fn(&Summary) -> Option<f64>| cell(these.iter().filter_map(|r| f(r)).collect(), digits);
            let diverged = these.iter().filter(|r| r.status == "diverged").count();
            let macs = first.macs_per_sample.trusted + first.macs_per_sample.worker;
            rows.push([
                model.to_owned(),
                mode.to_owned(),
                many(1, &|r| r.accuracy.test.map(|a| 100.0 * a)),
                format!("{diverged} of {}", these.len()),
                first.activations_per_sample.decisions.to_string(),
                first.activations_per_sample.squares.to_string(),
                format!("{:.1}", macs as f64 / 1e6),
                many(1, &|r| Some(r.seconds.training)),
            ]);
        }
    }
    markdown(&rows)
}

/// Time and bytes of one sample beside `trusted-only`, in Markdown; means ± standard deviations over seeds.
pub fn per_sample(runs: &[Summary]) -> String {
    let head = [
        "mode",
        "training ms",
        "× trusted-only",
        "inference ms",
        "× trusted-only",
        "bytes to worker, inference",
        "bytes from worker, inference",
    ];
    let mut rows: Vec<[String; 7]> = vec![head.map(str::to_owned)];
    for mode in modes(runs) {
        let of_mode: Vec<&Summary> = runs.iter().filter(|r| r.mode == mode).collect();
        let many =
            |digits, f: &dyn Fn(&Summary) -> Option<f64>| cell(of_mode.iter().filter_map(|r| f(r)).collect(), digits);
        let per = |seconds: f64, samples: usize| (samples > 0).then(|| 1e3 * seconds / samples as f64);
        let Some(first) = of_mode.first() else { continue };
        rows.push([
            mode.to_owned(),
            many(2, &|r| per(r.seconds.training, r.data.train * r.train.epochs)),
            many(2, &|r| r.speedup_over_trusted_only.training),
            many(2, &|r| per(r.seconds.inference, r.data.test * evaluations(r))),
            many(2, &|r| r.speedup_over_trusted_only.inference),
            first.inference_bytes_per_sample.to_worker.to_string(),
            first.inference_bytes_per_sample.from_worker.to_string(),
        ]);
    }
    markdown(&rows)
}

/// How often the test images were classified: after every so many epochs, and after the last.
fn evaluations(run: &Summary) -> usize {
    run.train.epochs.div_ceil(run.train.evaluate_every.max(1))
}

fn models(runs: &[Summary]) -> Vec<&str> {
    let mut models: Vec<&str> = Vec::new();
    for run in runs {
        if !models.contains(&run.model.as_str()) {
            models.push(&run.model);
        }
    }
    models
}

fn modes(runs: &[Summary]) -> Vec<&str> {
    let mut modes: Vec<&str> = Vec::new();
    for run in runs {
        if !modes.contains(&run.mode.as_str()) {
            modes.push(&run.mode);
        }
    }
    modes
}
