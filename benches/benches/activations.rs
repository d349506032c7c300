//! What quadratics and shared decisions cost beside ReLU in the trusted part: in whole networks, and alone.
//!
//! `cargo bench -p asymflow-benches --bench activations`; `ASYMFLOW_BENCH_REPEATS` sets the repetitions.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

use asymflow::modes::{Mode, TrainBatch, TrustedOnly};
use asymflow_engine::{Engine, local::LocalConv};
use asymflow_zoo::{
    Network, Weights, by_name,
    models::replace::replace_activations,
    network::{Layer, Shape},
    ops::Easing,
    weights::{Pass, SgdStep},
};
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

/// One activation as a network, forward in inference and both ways in training.
fn alone() -> Result<(), Failure> {
    let shape = Shape::new(64, 32, 32);
    let len = SAMPLES * shape.len();
    let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
    println!("\n{SAMPLES} x 64 x 32 x 32 values through one activation, ns a value\n");
    println!("| activation | inference | training pass |\n|---|---:|---:|");
    for activation in ACTIVATIONS {
        let layers = vec![Layer::Relu, Layer::Flatten];
        let mut network = Network { name: "one".to_owned(), input: shape, classes: shape.len(), layers };
        if activation != "relu" {
            network = replace_activations(&network, &activation.parse()?)?;
        }
        for straight_through in [false, true] {
            let weights = Weights::init(&network, 1);
            let mut engine = Engine::with_input_gradient(network.clone(), &weights, Par::rayon(THREADS))?;
            engine.set_easing(Easing { straight_through, ..Easing::default() });
            let mut none = LocalConv::new(0, engine.pool().clone(), Par::Seq);
            let inference = median(|| Ok(engine.forward(&x, SAMPLES, Pass::Inference, 0, &mut none).map(drop)?))?;
            let training = median(|| {
                let y = engine.forward(&x, SAMPLES, Pass::Training, 0, &mut none)?;
                Ok(engine.backward(y, SAMPLES, &mut none).map(drop)?)
            })?;
            let [inference, training] = [inference, training].map(|ms| 1e6 * ms / len as f64);
            let through = if straight_through { ", straight through" } else { "" };
            println!("| {activation}{through} | {inference:.3} | {training:.3} |");
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
        alone()
    })
}
