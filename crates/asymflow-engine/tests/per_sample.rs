//! Norms of single samples' gradients against the loop over samples.

use asymflow_engine::{Engine, EngineError, local::LocalConv};
use asymflow_zoo::models::replace::replace_activations;
use asymflow_zoo::{
    Network, Weights, by_name,
    network::{Layer, Shape},
    ops::{Conv, GroupNorm, Linear},
    weights::Pass,
};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SAMPLES: usize = 5;

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

/// Few pixels and many channels, many pixels and few, strides, biases, slopes and groups.
fn small() -> Network {
    let conv = |name: &str, in_channels, out_channels, kernel, stride, bias| {
        let (name, padding) = (name.to_owned(), kernel / 2);
        Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride, padding, bias })
    };
    let layers = vec![
        conv("first", 2, 5, 5, 1, true),
        Layer::GroupNorm(GroupNorm { name: "groups".to_owned(), channels: 5, groups: 1 }),
        Layer::PRelu { name: "slopes".to_owned(), channels: 5 },
        conv("narrow", 5, 24, 3, 2, true),
        Layer::Relu,
        conv("wide", 24, 32, 3, 2, false),
        Layer::Residual { main: vec![conv("one", 32, 32, 1, 1, false)], shortcut: Vec::new() },
        Layer::Flatten,
        Layer::Linear(Linear { name: "fc".to_owned(), in_features: 32 * 6, out_features: 4 }),
    ];
    Network { name: "small".to_owned(), input: Shape::new(2, 9, 7), classes: 4, layers }
}

#[test]
fn norms_of_samples_are_those_of_a_loop_over_them() {
    let resnet = by_name("resnet8-cifar", 10, None).unwrap();
    let resnet = replace_activations(&resnet, &"group-norm:4".parse().unwrap()).unwrap();
    for network in [small(), resnet] {
        let mut flat = Weights::init(&network, 1).flatten(&network).unwrap();
        flat.iter_mut().zip(numbers(2, 1 << 20)).for_each(|(w, noise)| *w += 0.05 * noise);
        let weights = Weights::unflatten(&network, &flat).unwrap();
        let mut engine = Engine::new(network.clone(), &weights, Par::Seq).unwrap();
        let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), Par::Seq);
        let (x, dy) = (numbers(3, SAMPLES * network.input.len()), numbers(4, SAMPLES * network.classes));
        engine.forward(&x, SAMPLES, Pass::Training, 0, &mut convolver).unwrap();
        let (norms, _) = engine.sample_norms(dy.clone(), SAMPLES, &mut convolver).unwrap();
        assert_eq!(norms.len(), SAMPLES);
        // The pass is left for its gradient.
        let gradients = |engine: &Engine| -> Vec<f32> {
            (0..network.parameters().len()).flat_map(|i| engine.params().gradient(i).to_vec()).collect()
        };
        engine.backward(dy.clone(), SAMPLES, &mut convolver).unwrap();
        let after_norms = gradients(&engine);
        engine.forward(&x, SAMPLES, Pass::Training, 0, &mut convolver).unwrap();
        engine.backward(dy.clone(), SAMPLES, &mut convolver).unwrap();
        assert_eq!(after_norms, gradients(&engine));
        for (sample, norm) in norms.iter().enumerate() {
            let x = &x[sample * network.input.len()..][..network.input.len()];
            engine.forward(x, 1, Pass::Training, 0, &mut convolver).unwrap();
            engine.backward(dy[sample * network.classes..][..network.classes].to_vec(), 1, &mut convolver).unwrap();
            let specs = network.parameters();
            let trained = (0..specs.len()).filter(|&i| specs[i].kind.is_trained());
            let square =
                |index: usize| engine.params().gradient(index).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
            let naive = trained.map(square).sum::<f64>().sqrt();
            assert!((norm / naive - 1.0).abs() < 1e-5, "{}, sample {sample}: {norm}, by itself {naive}", network.name);
        }
    }
}

#[test]
fn batch_normalisation_is_refused_by_name_with_what_works_in_its_place() {
    let network = by_name("resnet8-cifar", 10, None).unwrap();
    let refused = Engine::check_per_sample(&network).unwrap_err();
    assert!(matches!(&refused, EngineError::PerSample { layer, .. } if layer == "bn1"), "{refused}");
    assert!(refused.to_string().ends_with("use +group-norm:8 instead"), "{refused}");
    let grouped = replace_activations(&network, &"group-norm:8".parse().unwrap()).unwrap();
    assert_eq!(Engine::check_per_sample(&grouped), Ok(()));
}
