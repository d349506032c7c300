//! What quadratics and shared decisions cost beside ReLU in the trusted part: whole networks, and the kernels alone.
//!
//! `cargo bench -p asymflow-benches --bench activations`; `ASYMFLOW_BENCH_REPEATS` sets the repetitions.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use asymflow::modes::{Mode, TrainBatch, TrustedOnly};
use asymflow_engine::shared_relu::{SharedNode, SharedSaved, backward, forward};
use asymflow_engine::{Activation, Pool, ops};
use asymflow_residual::SgdStep;
use asymflow_zoo::{Decision, Easing, Grouping, Replacement, Shape, SharedRelu, Weights, by_name, replace_activations};
use faer::Par;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SAMPLES: usize = 32;
const THREADS: usize = 2;
const SGD: SgdStep = SgdStep::plain(1e-6, 0.9, 5e-4);
const ACTIVATIONS: [&str; 9] = [
    "relu",
    "react",
    "hermite",
    "shared-relu:1x1x1",
    "shared-relu:1x2x2",
    "shared-relu:1x4x4",
    "shared-relu:4x2x2:corner",
    "shared-relu:2x2x2:learned",
    "shared-relu:1x4x4:largest",
];

/// Median milliseconds of the repetitions after one that is not counted.
fn median(mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let repeats = std::env::var("ASYMFLOW_BENCH_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(9);
    work()?;
    let mut times = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        work()?;
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
}

fn networks() -> Result<(), Failure> {
    println!("resnet18-cifar, batch {SAMPLES}, {THREADS} threads, ms\n");
    println!("| activation | inference | training step |\n|---|---:|---:|");
    for activation in ACTIVATIONS {
        let mut network = by_name("resnet18-cifar", 10, None)?;
        if activation != "relu" {
            network = replace_activations(&network, &activation.parse()?)?;
        }
        let weights = Weights::init(&network, 1);
        let images: Vec<f32> = (0..SAMPLES * network.input.len()).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
        let records: Vec<usize> = (0..SAMPLES).collect();
        let labels: Vec<u32> = (0..SAMPLES as u32).map(|i| i % 10).collect();
        let mut mode = TrustedOnly::new(network, &weights, Par::rayon(THREADS))?;
        let inference = median(|| Ok(mode.infer(&images, &records).map(drop)?))?;
        let batch = TrainBatch::new(&images, &labels, &records)?;
        let training = median(|| Ok(mode.step(batch, SGD).map(drop)?))?;
        println!("| {activation} | {inference:.1} | {training:.1} |");
    }
    Ok(())
}

fn kernels() -> Result<(), Failure> {
    let shape = Shape::new(64, 32, 32);
    let (pool, len) = (Pool::default(), SAMPLES * shape.len());
    let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
    println!("\n{SAMPLES} x 64 x 32 x 32 values, ns a value\n");
    println!("| kernel | forward | backward |\n|---|---:|---:|");
    let row = |name: &str, forward: f64, backward: f64| {
        let each = 1e6 / len as f64;
        println!("| {name} | {:.3} | {:.3} |", forward * each, backward * each);
    };
    let (mut y, mut dy) = (pool.take(len), pool.take(len));
    let plain = median(|| {
        y.copy_from_slice(&x);
        ops::relu(&mut y);
        Ok(())
    })?;
    dy.copy_from_slice(&x);
    let cut = median(|| {
        ops::relu_backward(&y, &mut dy);
        Ok(())
    })?;
    row("relu (copy and cut)", plain, cut);
    for activation in ACTIVATIONS {
        let Ok(Replacement::SharedRelu { block: [channels, rows, columns], decision }) = activation.parse() else {
            continue;
        };
        let grouping = Grouping::Blocks { channels, rows, columns };
        let layer = SharedRelu { name: String::new(), channels: 64, grouping, decision };
        let node = SharedNode::new(&layer, shape, 0);
        let values = match decision {
            Decision::Learned => vec![vec![0.1; layer.places()]],
            _ => Vec::new(),
        };
        for straight_through in [false, true] {
            let easing = Easing { straight_through, ..Easing::default() };
            let mut votes = pool.take(SAMPLES * node.plan.votes());
            let trained = node.trained(&values);
            let ahead = median(|| {
                forward(&node.plan, trained, &x, &mut y, &mut votes, 1.0);
                Ok(())
            })?;
            let input = Activation { samples: SAMPLES, shape, data: Arc::new(pool.adopt(x.clone())) };
            let back = median(|| {
                let mut copy = pool.take(votes.len());
                copy.copy_from_slice(&votes);
                let saved = SharedSaved { x: input.clone(), votes: copy, easing };
                black_box(backward(&node.plan, trained, saved, &mut dy));
                Ok(())
            })?;
            row(&format!("{activation}{}", if straight_through { ", straight through" } else { "" }), ahead, back);
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    // `cargo test` runs benches too; there is nothing to check in one that only measures.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    rayon::ThreadPoolBuilder::new().num_threads(THREADS).build()?.install(|| {
        networks()?;
        kernels()
    })
}
