//! Test images, encrypted and answered in one process, against the exact integers and the network in floating point.

use std::time::Instant;

use anyhow::{Result, ensure};
use asymflow_cipher::{Client, Server};
use asymflow_zoo::graph::reference::Reference;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::source::{Prepared, Source, images};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Test images, as far apart as they are many, since folders come class by class; without it all
    #[arg(long)]
    images: Option<usize>,
}

/// What one query took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Seconds {
    encrypt: f64,
    evaluate: f64,
    decrypt: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Prepared { network, weights, model, normalization, split } = args.source.read()?;
    let program = model.program();
    let count = args.images.unwrap_or(split.test.len()).min(split.test.len());
    ensure!(count > 0, "no test image");
    let spread_out = (0..count).map(|index| (index * split.test.len() / count) as u32);
    let batch = images(&split.test, &normalization, spread_out);
    let float = Reference::new(&network, &weights.flatten(&network)?)?;
    let client = Client::new(program.clone())?;
    let server = Server::new(&model)?;
    let sent = client.evaluation_keys()?;
    let keys = server.admit(&sent)?;
    let (mut answers, mut expected, mut seconds, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), (0, 0));
    let mut least_budget = i64::MAX;
    let exact = |image: &[f32]| Ok(model.reference(&program.integers(image)?));
    for images in batch.images.chunks(program.images() * program.inputs) {
        let images_here = images.len() / program.inputs;
        let mut took = Seconds::default();
        let query = timed(&mut took.encrypt, || client.encrypt(images))?;
        let answer = timed(&mut took.evaluate, || server.answer(&keys, &query))?;
        answers.extend(timed(&mut took.decrypt, || client.decrypt(&answer, images_here))?);
        // At once, so that a query that fails later takes no comparison with it.
        expected.extend(images.par_chunks_exact(program.inputs).map(exact).collect::<Result<Vec<_>>>()?);
        bytes = (query.bytes(), answer.bytes());
        least_budget = least_budget.min(client.noise_budget(&answer)?);
        seconds.push(took);
        crate::print(&json!({
            "answered": answers.len(),
            "images": images_here,
            "equal": equal(&answers, &expected),
            "seconds": [took.encrypt, took.evaluate, took.decrypt],
        }))?;
    }
    let inputs: Vec<&[f32]> = batch.images.chunks_exact(program.inputs).collect();
    let real = |image: &&[f32]| Ok(float.logits(&image.iter().map(|&value| value.into()).collect::<Vec<_>>())?);
    let real: Vec<Vec<f64>> = inputs.par_iter().map(real).collect::<Result<_>>()?;
    let equal = equal(&answers, &expected);
    let mut summary = crate::explain::said(program)?;
    let more = json!({
        "images": count,
        "queries": seconds.len(),
        "equal": equal,
        "accuracy": {
            "test": accuracy(&answers, &batch.labels),
            "reference": accuracy(&expected, &batch.labels),
            "float": accuracy(&real, &batch.labels),
        },
        "seconds": {
            "encrypt": spread(seconds.iter().map(|took| took.encrypt)),
            "evaluate": spread(seconds.iter().map(|took| took.evaluate)),
            "decrypt": spread(seconds.iter().map(|took| took.decrypt)),
        },
        "least_noise_budget_bits": least_budget,
        "images_per_second": count as f64 / seconds.iter().map(|took| took.evaluate).sum::<f64>(),
        "bytes": { "keys": sent.bytes(), "query": bytes.0, "answer": bytes.1 },
    });
    if let (Value::Object(summary), Value::Object(more)) = (&mut summary, more) {
        summary.extend(more);
    }
    crate::print(&json!({ "summary": summary }))?;
    ensure!(equal == count, "{} of {count} answers differ from the integer reference", count - equal);
    Ok(())
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *seconds = started.elapsed().as_secs_f64();
    result
}

/// How many answers are the exact integers.
fn equal(answers: &[Vec<i128>], expected: &[Vec<i128>]) -> usize {
    answers.iter().zip(expected).filter(|(got, expected)| got == expected).count()
}

/// Median, least and most.
fn spread(values: impl Iterator<Item = f64>) -> Value {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    json!({ "median": at(values.len() / 2), "least": at(0), "most": at(values.len().saturating_sub(1)), "n": values.len() })
}

/// Share of images whose largest logit is their label's.
fn accuracy<T: PartialOrd>(logits: &[Vec<T>], labels: &[u32]) -> f64 {
    let class = |logits: &[T]| (1..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
    let correct = logits.iter().zip(labels).filter(|(logits, label)| class(logits) == **label as usize).count();
    correct as f64 / labels.len().max(1) as f64
}
