//! The split across two processes: the same function as the unsplit network, and nothing on the wire that must not be.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers as well")]

#[path = "../../asymflow/tests/suite/both.rs"]
mod both;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use asymflow::modes::{Clear, Mode, TrustedOnly};
use asymflow::plan::{Plan, SplitSpec};
use asymflow_engine::program::Program;
use asymflow_privacy::{payload::Precision, records::RecordAccountant};
use asymflow_residual::backend::Pass;
use asymflow_residual::{
    ResidualBackend,
    client::RingLayout,
    client::{Protection, Tap, Token, Transport, WorkerClient, WorkerConfig},
};
use asymflow_zoo::{Network, Weights, by_name, network::Layer};
use faer::Par;

use both::{asymml, images, parity, relative, step};

/// A worker process that ends with this value.
struct Worker {
    child: Child,
    _stdin: ChildStdin,
    config: WorkerConfig,
}

impl Worker {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_asymflow-worker"))
            .arg("--exit-with-parent")
            .env("ASYMFLOW_WORKER_TOKEN", "secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let pin = ready["fingerprint"].as_str().unwrap().parse().unwrap();
        let address = ready["listening"].as_str().unwrap();
        let config = WorkerConfig::new(address, Token::new("secret"), Protection::Pinned(pin));
        Self { _stdin: child.stdin.take().unwrap(), child, config }
    }

    /// Bodies of every length through shared memory.
    fn over_shared_memory(mut self) -> Self {
        self.config.transport = Transport::SharedMemory(RingLayout { threshold_bytes: 1, ..RingLayout::default() });
        self
    }

    fn client(&self, tap: Option<Tap>) -> Arc<dyn ResidualBackend> {
        Arc::new(WorkerClient::new(WorkerConfig { tap, ..self.config.clone() }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn resnet18_split_across_processes_equals_unsplit() {
    let worker = Worker::start();
    parity("resnet18-cifar", 2, &|| worker.client(None));
}

#[test]
fn resnet8_split_over_shared_memory_equals_unsplit() {
    let worker = Worker::start().over_shared_memory();
    parity("resnet8-cifar", 4, &|| worker.client(None));
}

#[test]
fn vgg16_split_across_processes_equals_unsplit() {
    let worker = Worker::start();
    parity("vgg16-cifar", 2, &|| worker.client(None));
}

/// burn's autodiff in another process is the independent reference of the trusted engine.
#[test]
fn clear_and_trusted_only_compute_the_same_logits_and_the_same_step() {
    let worker = Worker::start();
    let network = by_name("resnet8-cifar", 10, None).unwrap();
    let weights = Weights::init(&network, 3);
    let images = images(&network, 16);
    let records: Vec<usize> = (0..16).collect();
    let accountant = RecordAccountant::new(16);
    let mut clear = Clear::new(network.clone(), &weights, worker.client(None), accountant).unwrap();
    let mut trusted = TrustedOnly::new(network, &weights, Par::rayon(2)).unwrap();
    let logits = trusted.infer(&images, &records).unwrap();
    assert!(relative(&clear.infer(&images, &records).unwrap(), &logits) < 1e-4);
    let before = trusted.state().unwrap().weights;
    let (loss, _) = step(&mut trusted, &images, 16);
    let (clear_loss, _) = step(&mut clear, &images, 16);
    assert!((loss - clear_loss).abs() < 1e-4 * loss);
    let moved = |mode: &mut dyn Mode| -> Vec<f32> {
        mode.state().unwrap().weights.iter().zip(&before).map(|(after, before)| after - before).collect()
    };
    let off = relative(&moved(&mut clear), &moved(&mut trusted));
    assert!(off < 1e-2, "the two steps differ by {off:e}");
}

/// The frames in a stream of sent bytes: header and body of each.
fn frames(bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let header = u32::from_le_bytes(rest[6..10].try_into().unwrap()) as usize;
        let body = u64::from_le_bytes(rest[10..18].try_into().unwrap()) as usize;
        frames.push((&rest[18..18 + header], &rest[18 + header..18 + header + body]));
        rest = &rest[18 + header + body..];
    }
    frames
}

fn values(body: &[u8]) -> Vec<f32> {
    body.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

type Triple = [u32; 3];

fn triples(values: &[f32]) -> impl Iterator<Item = Triple> + '_ {
    values.windows(3).map(|w| [w[0].to_bits(), w[1].to_bits(), w[2].to_bits()])
}

/// The network up to its classifier, whose outputs are the final features.
fn without_classifier(network: &Network) -> Network {
    let mut features = network.clone();
    let Some(Layer::Linear(classifier)) = features.layers.pop() else { panic!("no classifier at the end") };
    features.classes = classifier.in_features;
    features
}

#[test]
fn every_byte_sent_is_a_residual_a_gradient_or_a_public_weight() {
    let (tcp, shared) = (Worker::start(), Worker::start().over_shared_memory());
    let [tcp, shared] = [tcp, shared].map(|worker| everything_sent_is_released(&worker));
    assert!(shared > tcp, "{shared} frames over shared memory, {tcp} without");
}

/// Frames sent in three passes forward and one backward.
fn everything_sent_is_released(worker: &Worker) -> usize {
    let network = by_name("resnet8-cifar", 10, None).unwrap();
    let weights = Weights::init(&network, 3);
    let images = images(&network, 8);
    let records: Vec<usize> = (0..8).collect();
    let program = Program::new(&network).unwrap();
    let split = SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:2".to_owned(), split_first: false };
    let plan = Plan::asymml(&program, &split, 8, Pass::Training).unwrap();

    let sent = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&sent);
    let tap = Tap::new(move |bytes| taken.lock().unwrap().extend_from_slice(bytes));
    let backend = worker.client(Some(tap));
    let mut mode = asymml(&network, &weights, plan.clone(), "gram", Precision::F32, backend);
    mode.infer(&images, &records).unwrap();
    step(&mut mode, &images, 8);
    // The weights of the step are sent in the background; asking for the state of the queue ends it.
    mode.infer(&images, &records).unwrap();
    drop(mode);

    let mut secret: HashSet<Triple> = triples(&images).collect();
    let mut features = TrustedOnly::new(without_classifier(&network), &weights, Par::Seq).unwrap();
    secret.extend(triples(&features.infer(&images, &records).unwrap()));

    let sent = sent.lock().unwrap();
    let mut lengths = Vec::new();
    let frames = frames(&sent);
    let [(_, hello), (_, model), session @ ..] = &frames[..] else { panic!("no session was opened") };
    assert!(hello.is_empty());
    assert!(serde_json::from_slice::<asymflow_residual::backend::ResidualModel>(model).is_ok(), "the public model");
    for (header, body) in session {
        // The kind of a request and the number of a unit: no room for activations.
        assert!(header.len() < 64, "a header of {} bytes", header.len());
        for triple in triples(&values(body)) {
            assert!(!secret.contains(&triple), "raw pixels or final features on the wire");
        }
        if !body.is_empty() {
            lengths.push(body.len() / 4);
        }
    }
    // Three forward passes, one backward pass, and the weights twice, of the split convolutions; before the first pass of each kind a
    // sample of random numbers, in training also back; and nothing else.
    let nodes = program.conv_nodes();
    let split = || nodes.iter().filter(|n| plan.convs[n.index].placement.is_split());
    let weight = |n: &asymflow_engine::program::ConvNode| n.output.channels * n.input.channels * n.conv.kernel.pow(2);
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.extend(split().map(|n| 8 * n.input.len()));
    }
    expected.extend(split().map(|n| 8 * n.output.len()));
    for _ in 0..2 {
        expected.extend(split().map(|n| n.input.len()));
    }
    expected.extend(split().map(|n| n.output.len()));
    for _ in 0..2 {
        expected.extend(split().map(|n| weight(n)));
    }
    lengths.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lengths, expected);
    frames.len()
}
