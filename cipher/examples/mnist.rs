//! MNIST encrypted: `mnist pkn|cnn WEIGHTS.safetensors MNIST_FOLDER IMAGES`. Every answer is compared with the exact integer reference.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

use std::path::PathBuf;
use std::time::Instant;

use asymflow_cipher::{Client, Model, Options, Server};
use asymflow_zoo::Network;
use asymflow_zoo::data::{Augment, Batch, DataSource, Loader, Normalization, Preparation, load};
use asymflow_zoo::graph::reference::Reference;
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::{Conv, Form, Linear, Quadratic};
use asymflow_zoo::weights::files;

fn network(name: &str) -> Network {
    let conv = Conv {
        name: "conv1".to_owned(),
        in_channels: 1,
        out_channels: 4,
        kernel: 7,
        stride: 3,
        padding: 0,
        bias: false,
    };
    let linear = |name: &str, in_features, out_features| {
        Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
    };
    let square = |name: &str, channels| {
        Layer::Quadratic(Quadratic { name: name.to_owned(), channels, form: Form::Free { a: 0.1, b: 0.5, c: 0.0 } })
    };
    let mut layers = vec![Layer::Conv(conv), square("act1", 4), Layer::Flatten];
    match name {
        "pkn" => layers.push(linear("fc", 256, 10)),
        _ => layers.extend([linear("fc1", 256, 64), square("act2", 64), linear("fc2", 64, 10)]),
    }
    Network { name: name.to_owned(), input: Shape::new(1, 28, 28), classes: 10, layers }
}

/// Median, least and most of times in milliseconds.
fn times(mut milliseconds: Vec<f64>) -> String {
    milliseconds.sort_by(f64::total_cmp);
    let (first, last) = (milliseconds[0], milliseconds[milliseconds.len() - 1]);
    format!("{:.1} ({first:.1} to {last:.1})", milliseconds[milliseconds.len() / 2])
}

fn class<T: PartialOrd>(logits: &[T]) -> usize {
    (1..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let network = network(&args[1]);
    let weights = files::read(&PathBuf::from(&args[2]), &network).unwrap();
    let split = load(&DataSource::Files { path: PathBuf::from(&args[3]), prepare: Preparation::default() }).unwrap();
    let normalization = Normalization::of(&split.train);
    let mut batch = Batch::default();
    let indices: Vec<u32> = (0..split.test.len() as u32).collect();
    Loader::new(&split.test, &normalization, Augment::NONE, 1).gather(None, &indices, &mut batch);
    let images: Vec<&[f32]> = batch.images.chunks_exact(784).collect();
    let started = Instant::now();
    let calibration: Vec<f32> = batch.images[..784 * 100].to_vec();
    let model = Model::compile(&network, &weights, &calibration, Options::default()).unwrap();
    println!("compiled in {:.1} s", started.elapsed().as_secs_f64());
    let program = model.program();
    println!("{:?}, integers of {} bits, {:?}", program.parameters, program.bound_bits, program.cost());
    let float = Reference::new(&network, &weights.flatten(&network).unwrap()).unwrap();
    let mut correct = [0; 2];
    for (image, label) in images.iter().zip(&batch.labels) {
        let values: Vec<f64> = image.iter().map(|&v| f64::from(v)).collect();
        correct[0] += usize::from(class(&float.logits(&values).unwrap()) == *label as usize);
        correct[1] += usize::from(class(&model.reference(&program.integers(image).unwrap())) == *label as usize);
    }
    let share = |correct: usize| 100.0 * correct as f64 / images.len() as f64;
    println!(
        "accuracy of {} test images: float {:.2} %, integers {:.2} %",
        images.len(),
        share(correct[0]),
        share(correct[1])
    );
    let client = Client::new(program.clone()).unwrap();
    let keys = client.evaluation_keys().unwrap();
    let server = Server::new(&model, &keys).unwrap();
    let count: usize = args[4].parse().unwrap();
    let (mut equal, mut spent) = (0, [Vec::new(), Vec::new(), Vec::new()]);
    let (mut sent, mut received) = (0, 0);
    for image in &images[..count] {
        let timed = |spent: &mut Vec<f64>, started: Instant| spent.push(1e3 * started.elapsed().as_secs_f64());
        let started = Instant::now();
        let query = client.encrypt(image).unwrap();
        timed(&mut spent[0], started);
        let started = Instant::now();
        let answer = server.answer(&query).unwrap();
        timed(&mut spent[1], started);
        let started = Instant::now();
        let integers = client.decrypt(&answer).unwrap();
        timed(&mut spent[2], started);
        (sent, received) = (query.bytes(), answer.bytes());
        equal += usize::from(integers == model.reference(&program.integers(image).unwrap()));
    }
    let [encrypt, evaluate, decrypt] = spent.map(times);
    println!("{equal} of {count} encrypted answers equal the integer reference");
    println!("milliseconds: encrypt {encrypt}, evaluate {evaluate}, decrypt {decrypt}");
    println!("kB: evaluation keys {}, query {}, answer {}", keys.bytes() / 1000, sent / 1000, received / 1000);
}
