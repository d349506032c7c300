//! What a pass takes, measured on lengths and taken with values.

use asymflow_engine::{Engine, local::LocalConv, loss::softmax_cross_entropy};
use asymflow_zoo::{Weights, by_name, models::replace::replace_activations, network::Shape, weights::Pass};
use faer::Par;

/// The pool of an engine at work and that of one that measures hold the same after every pass, whatever came before.
#[test]
fn the_pool_is_predicted_to_the_byte() {
    let passes =
        [(3, Pass::Training), (3, Pass::Training), (1, Pass::Training), (4, Pass::Inference), (3, Pass::Training)];
    for (name, activation) in [
        ("demo-cnn", None),
        ("resnet8-cifar", None),
        ("resnet18-cifar", None),
        ("vgg11-cifar", None),
        ("pkn-resnet10", None),
        ("resnet8-cifar", Some("hermite")),
        ("resnet8-cifar", Some("shared-relu:2x2x2:learned")),
        ("vgg11-cifar", Some("shared-relu:1x4x4")),
    ] {
        let mut network = by_name(name, 10, None).unwrap();
        if let Some(activation) = activation {
            network = replace_activations(&network, &activation.parse().unwrap()).unwrap();
        }
        let weights = Weights::init(&network, 1);
        let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        let mut lengths = Engine::measuring(network.clone(), false, Par::Seq).unwrap();
        let mut unfilled = LocalConv::new(lengths.program().convs(), lengths.pool().clone(), Par::Seq);
        for (samples, pass) in passes {
            let images = vec![0.5; samples * network.input.len()];
            let logits = engine.forward(&images, samples, pass, 1, &mut convolver).unwrap();
            let kept = engine.pool().held_bytes();
            if pass == Pass::Training {
                let mut gradient = vec![0.0; logits.len()];
                softmax_cross_entropy(&logits, 10, &vec![0; samples], &mut gradient).unwrap();
                engine.backward(gradient, samples, &mut convolver).unwrap();
            }
            let label = format!("{name} {activation:?}, {samples} {pass:?}");
            let predicted = lengths.measure(samples, pass, &mut unfilled).unwrap();
            assert_eq!(predicted, if pass == Pass::Training { kept } else { 0 }, "kept by {label}");
            let (counted, predicted) = (engine.pool(), lengths.pool());
            assert_eq!(predicted.free_bytes(), counted.free_bytes(), "{label}");
            assert_eq!(predicted.peak_bytes(), counted.peak_bytes(), "{label}");
            assert_eq!(predicted.peak_beside_bytes(), counted.peak_beside_bytes(), "{label}");
            assert_eq!(unfilled.scratch_bytes(), convolver.scratch_bytes(), "{label}");
            assert_eq!((counted.held_bytes(), predicted.held_bytes()), (0, 0), "{label}");
        }
    }
}

/// Steps of one size end in as much memory as the second took: nothing creeps.
#[test]
fn repeated_steps_take_no_more() {
    for name in ["resnet18-cifar", "vgg16-cifar", "resnet18-imagenet", "vgg16-imagenet"] {
        let network = by_name(name, 10, None).unwrap();
        for pass in [Pass::Inference, Pass::Training] {
            let mut engine = Engine::measuring(network.clone(), false, Par::Seq).unwrap();
            let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
            let mut taken = |passes: usize| {
                let kept = (0..passes).map(|_| engine.measure(8, pass, &mut convolver).unwrap()).last();
                (kept, engine.pool().peak_bytes(), engine.pool().peak_beside_bytes(), convolver.scratch_bytes())
            };
            let early = taken(2);
            assert_eq!(taken(20), early, "{name}, {pass:?}");
        }
    }
}

/// Nothing is allocated for what is measured: a network that would fill any memory is measured at once.
#[test]
fn what_cannot_be_held_can_be_measured() {
    let network = by_name("vgg19-imagenet", 1000, Some(Shape::new(3, 2048, 2048))).unwrap();
    let mut engine = Engine::measuring(network, false, Par::Seq).unwrap();
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
    let kept = engine.measure(512, Pass::Training, &mut convolver).unwrap();
    assert!(kept > 1 << 42, "{kept}");
}
