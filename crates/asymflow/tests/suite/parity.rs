//! The split computes the same function: logits and gradients of `asymml` against `trusted-only`.

use std::sync::Arc;

use asymflow::modes::{Mode, TrainBatch, TrustedOnly};
use asymflow::plan::Plan;
use asymflow_engine::{Engine, local::LocalConv, program::Program};
use asymflow_privacy::payload::Precision;
use asymflow_residual::backend::Pass;
use asymflow_zoo::{Network, Weights};
use faer::Par;

use crate::both::{SGD, asymml, images, in_turns, parity, relative, step};
use crate::toy_backend::{Seen, ToyBackend};

#[test]
fn resnet18_split_equals_unsplit() {
    parity("resnet18-cifar", 4, &|| Arc::new(ToyBackend::default()));
}

#[test]
fn vgg16_split_equals_unsplit() {
    parity("vgg16-cifar", 4, &|| Arc::new(ToyBackend::default()));
}

#[test]
fn f16_transfers_stay_close() {
    let network = asymflow_zoo::by_name("demo-cnn", 10, None).unwrap();
    let weights = Weights::init(&network, 5);
    let images = images(&network, 8);
    let mut unsplit = TrustedOnly::new(network.clone(), &weights, Par::Seq).unwrap();
    let (_, gradients) = step(&mut unsplit, &images, 8);
    let plan = Plan::split_all(&Program::new(&network).unwrap(), 4);
    let backend = ToyBackend::default();
    let mut split = asymml(&network, &weights, plan, "gram", Precision::F16, Arc::new(backend.clone()));
    let (_, split_gradients) = step(&mut split, &images, 8);
    let off = relative(&split_gradients, &gradients);
    assert!(off < 2e-2, "gradients off by {off}");
}

/// What a decomposition keeps between batches, bases and kernels folded by them, must not outlive the weights or fall behind the
/// images.
#[test]
fn what_is_kept_between_batches_does_not_change_what_is_computed() {
    let network = asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap();
    let weights = Weights::init(&network, 5);
    let (first, second) = (images(&network, 8), images(&network, 8).into_iter().rev().collect::<Vec<_>>());
    let records: Vec<usize> = (0..8).collect();
    let labels: Vec<u32> = (0..8).collect();
    let logits = |mode: &mut dyn Mode| -> Vec<Vec<f32>> {
        let mut logits = vec![mode.infer(&first, &records).unwrap(), mode.infer(&second, &records).unwrap()];
        for _ in 0..2 {
            mode.step(TrainBatch::new(&first, &labels, &records).unwrap(), SGD).unwrap();
            logits.push(mode.infer(&second, &records).unwrap());
        }
        logits
    };
    let unsplit = logits(&mut TrustedOnly::new(network.clone(), &weights, Par::Seq).unwrap());
    let moved = relative(&unsplit[2], &unsplit[1]);
    for decomposition in asymflow_linalg::decompose::NAMES {
        let plan = Plan::split_all(&Program::new(&network).unwrap(), 4);
        let backend = Arc::new(ToyBackend::default());
        let split = logits(&mut asymml(&network, &weights, plan, decomposition, Precision::F32, backend));
        for (at, (split, unsplit)) in split.iter().zip(&unsplit).enumerate() {
            let off = relative(split, unsplit);
            assert!(off < 1e-3 && moved > 1e-1, "{decomposition}, {at}: off by {off:e}, a step moves {moved:e}");
        }
    }
}

/// With verification, bias and branches; batches of one and of odd length, and steps between.
#[test]
fn halves_that_leapfrog_answer_as_the_whole_does_and_are_charged_as_it_is() {
    for (name, decomposition) in
        ["resnet8-cifar", "demo-cnn"].into_iter().flat_map(|name| asymflow_linalg::decompose::NAMES.map(|d| (name, d)))
    {
        let network = asymflow_zoo::by_name(name, 10, None).unwrap();
        let weights = Weights::init(&network, 5);
        let split = |leapfrog| {
            let plan = Plan::split_all(&Program::new(&network).unwrap(), 4);
            let (backend, units) =
                (ToyBackend::default(), plan.convs.iter().filter(|c| c.placement.is_split()).count());
            let own = Arc::new(backend.clone());
            let mut mode = in_turns(&network, &weights, (plan, decomposition), Precision::F32, own, leapfrog);
            let mut logits = Vec::new();
            for samples in [8, 1, 5] {
                let (images, records) = (images(&network, samples), (0..samples).collect::<Vec<_>>());
                // The first batch of a basis that serves for others is never halved.
                logits.push(mode.infer(&images, &records).unwrap());
                backend.seen.lock().unwrap().clear();
                logits.push(mode.infer(&images, &records).unwrap());
                let halves = if leapfrog && decomposition != "shared-basis" { samples.min(2) } else { 1 };
                assert_eq!(backend.seen.lock().unwrap().len(), halves * units, "{name}, {decomposition}, {samples}");
                step(&mut mode, &images, samples);
            }
            let charged = mode.door().unwrap().accountant().spent().to_vec();
            (logits, charged)
        };
        let ((halved, halves), (logits, whole)) = (split(true), split(false));
        assert_eq!(halves, whole, "{name}, {decomposition}");
        for (at, (halved, logits)) in halved.iter().zip(&logits).enumerate() {
            let off = relative(halved, logits);
            assert!(off < 1e-3, "{name}, {decomposition}, {at}: off by {off:e}");
        }
    }
}

/// Gradients of the engine against finite differences of its own loss, with a PReLU in place of the first ReLU.
#[test]
fn gradients_equal_finite_differences() {
    let mut network = asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap();
    let first = network.layers.iter_mut().find(|layer| matches!(layer, asymflow_zoo::network::Layer::Relu)).unwrap();
    *first = asymflow_zoo::network::Layer::PRelu { name: "prelu1".to_owned(), channels: 16 };
    let weights = Weights::init(&network, 2);
    let images = images(&network, 4);
    let loss_of = |weights: &Weights| {
        let mut mode = TrustedOnly::new(network.clone(), weights, Par::Seq).unwrap();
        step(&mut mode, &images, 4)
    };
    let (_, momentum) = loss_of(&weights);
    let flat = weights.flatten(&network).unwrap();
    let mut offset = 0;
    for spec in network.parameters() {
        let index = offset + spec.len() / 2;
        offset += spec.len();
        if !spec.kind.is_trained() {
            continue;
        }
        let gradient = f64::from(momentum[index]) - 5e-4 * f64::from(flat[index]);
        let h = 1e-2f32;
        let shifted = |by: f32| {
            let mut flat = flat.clone();
            flat[index] += by;
            loss_of(&Weights::unflatten(&network, &flat).unwrap()).0
        };
        let difference = (shifted(h) - shifted(-h)) / f64::from(2.0 * h);
        let tolerance = 2e-3 + 5e-2 * gradient.abs();
        assert!((difference - gradient).abs() < tolerance, "{}: {gradient} and {difference}", spec.name);
    }
}

/// What reaches the worker in one training step: residuals and gradients of the split convolutions, and
/// nothing that holds the images, the features before the classifier, or the gradient of the logits.
#[test]
fn no_raw_input_label_or_final_feature_reaches_the_worker() {
    let network = asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap();
    let weights = Weights::init(&network, 2);
    let images = images(&network, 4);
    let program = Program::new(&network).unwrap();
    let split =
        asymflow::plan::SplitSpec { decomposition: "gram".to_owned(), rank: "fixed:2".to_owned(), split_first: false };
    let plan = Plan::asymml(&program, &split, 4, Pass::Training).unwrap();
    assert!(!plan.convs[0].placement.is_split(), "the first convolution is trusted");
    let nodes = program.conv_nodes();
    let expected: Vec<(usize, usize)> = nodes
        .iter()
        .filter(|n| plan.convs[n.index].placement.is_split())
        .map(|n| (4 * n.input.len(), 4 * n.output.len()))
        .collect();
    let backend = ToyBackend::default();
    let mut mode = asymml(&network, &weights, plan, "gram", Precision::F32, Arc::new(backend.clone()));
    let records = [0, 1, 2, 3];
    mode.infer(&images, &records).unwrap();
    step(&mut mode, &images, 4);
    let seen = backend.seen.lock().unwrap();
    let mut secret: std::collections::HashSet<[u32; 3]> = std::collections::HashSet::new();
    for window in images.windows(3) {
        secret.insert([window[0].to_bits(), window[1].to_bits(), window[2].to_bits()]);
    }
    for item in seen.iter() {
        let (unit, values, len) = match item {
            Seen::Residual(unit, values) => (unit, values, expected[unit.0 as usize].0),
            Seen::Gradient(unit, values) => (unit, values, expected[unit.0 as usize].1),
            Seen::Weights(_) | Seen::Stored(_) => continue,
        };
        // One sample of random numbers, or the batch.
        assert!(values.len() == len || values.len() == len / 4, "{unit:?}: {}", values.len());
        for window in values.windows(3) {
            let bits = [window[0].to_bits(), window[1].to_bits(), window[2].to_bits()];
            assert!(!secret.contains(&bits), "{unit:?} carries raw pixels");
        }
    }
    let count = |f: fn(&Seen) -> bool| seen.iter().filter(|s| f(s)).count();
    // Two passes and one back, and before each kind of pass one of random numbers for every unit.
    assert_eq!(count(|s| matches!(s, Seen::Residual(..))), 4 * expected.len());
    assert_eq!(count(|s| matches!(s, Seen::Gradient(..))), 2 * expected.len());
}

#[test]
fn a_nan_in_the_input_is_an_error_and_nothing_is_sent() {
    let network = asymflow_zoo::by_name("demo-cnn", 10, None).unwrap();
    let weights = Weights::init(&network, 5);
    let mut images = images(&network, 2);
    images[1234] = f32::NAN;
    let plan = Plan::split_all(&Program::new(&network).unwrap(), 2);
    let backend = ToyBackend::default();
    let mut mode = asymml(&network, &weights, plan, "gram", Precision::F32, Arc::new(backend.clone()));
    let error = mode.infer(&images, &[0, 1]).unwrap_err();
    assert_eq!(error.to_string(), "layer input: value 1234 is not finite");
    assert!(backend.seen.lock().unwrap().iter().all(|seen| matches!(seen, Seen::Weights(_))));
}

/// Thesis, theorem 6: a convolution whose output has rank q is q kernels of k×k followed by kernels of 1×1.
#[test]
fn a_bottleneck_loses_nothing_of_an_output_of_its_rank() {
    use asymflow_linalg::{
        Decomposer, LowRank,
        decompose::{BatchShape, ExactSvd},
    };
    use asymflow_zoo::{
        network::{Layer, Shape},
        ops::Conv,
        weights::WeightTensor,
    };
    use faer::dyn_stack::{MemBuffer, MemStack};
    let (c, n, q, side) = (6, 12, 3, 8);
    let conv = |name: &str, in_channels, out_channels, kernel| {
        let (name, padding) = (name.to_owned(), kernel / 2);
        Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride: 1, padding, bias: false })
    };
    let network = |layers: Vec<Layer>| Network {
        name: "bottleneck".to_owned(),
        input: Shape::new(c, side, side),
        classes: n * side * side,
        layers: layers.into_iter().chain([Layer::Flatten]).collect(),
    };
    let run = |network: &Network, weights: &Weights, x: &[f32]| {
        let mut engine = Engine::new(network.clone(), weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        engine.forward(x, 1, Pass::Inference, 0, &mut convolver).unwrap()
    };
    let product = |a: &[f32], b: &[f32], rows: usize, inner: usize| -> Vec<f32> {
        let columns = b.len() / inner;
        let entry = |i: usize| (0..inner).map(|k| a[i / columns * inner + k] * b[k * columns + i % columns]).sum();
        (0..rows * columns).map(entry).collect()
    };
    let numbers = |len: usize, seed: f32| (0..len).map(|i| (i as f32 * 1.7 + seed).sin()).collect::<Vec<f32>>();
    let taps = c * 9;
    // One kernel of rank q, so that its output has no more.
    let whole = product(&numbers(n * q, 0.3), &numbers(q * taps, 0.9), n, q);
    let tensor = |shape: [usize; 4], data: Vec<f32>| WeightTensor { shape: shape.to_vec(), data };
    let mut weights = Weights::default();
    weights.tensors.insert("a.weight".to_owned(), tensor([n, c, 3, 3], whole.clone()));
    let x = numbers(c * side * side, 0.1);
    let dense = network(vec![conv("a", c, n, 3)]);
    let y = run(&dense, &weights, &x);

    // W² spans the output, W¹ is what W does within that span.
    let shape = BatchShape { samples: 1, channels: n, pixels: side * side };
    let mut low_rank = LowRank::default();
    let mut residual = vec![0.0; y.len()];
    let mut memory = MemBuffer::new(ExactSvd.scratch(shape, q, Par::Seq));
    let stack = MemStack::new(&mut memory);
    ExactSvd.decompose(&y, shape, q, &mut low_rank, &mut residual, Par::Seq, stack).unwrap();
    let mut span = low_rank.coefficients;
    for p in 0..q {
        let norm = (0..n).map(|j| span[j * q + p].powi(2)).sum::<f32>().sqrt();
        (0..n).for_each(|j| span[j * q + p] /= norm);
    }
    let transposed: Vec<f32> = (0..q * n).map(|i| span[i % n * q + i / n]).collect();
    let first = product(&transposed, &whole, q, n);
    weights.tensors.insert("w1.weight".to_owned(), tensor([q, c, 3, 3], first));
    weights.tensors.insert("w2.weight".to_owned(), tensor([n, q, 1, 1], span));
    let bottleneck = network(vec![conv("w1", c, q, 3), conv("w2", q, n, 1)]);
    let off = relative(&run(&bottleneck, &weights, &x), &y);
    assert!(off < 1e-5, "{off:e}");
}
