//! Whole networks on shares against the same networks in the clear.

use std::collections::BTreeMap;

use crate::float::{largest_difference, lively};
use crate::servers::{image, pair, query};
use asymflow_shares::client::{ClientError, share_input};
use asymflow_shares::compile::{
    Activation, Comparison, CompileError, Decision, Options, activations, compile, float_logits,
};
use asymflow_shares::compile::{ModelError, PlaintextError};
use asymflow_shares::in_process::{InProcess, InProcessError};
use asymflow_shares::program::{FixedPoint, Ring, WeightPolicy, Z48};
use asymflow_shares::randomness::Seed;
use asymflow_zoo::{
    Network, Weights, by_name,
    models::replace::{Replacement, replace_activations},
    network::{Layer, Shape, output_of},
    ops::{Conv, GroupNorm, Linear},
};

/// Largest distance of logits on shares from those in fixed point and in floating point.
fn distances<R: Ring>(network: &Network, options: &Options, images: u64) -> (f64, f64) {
    let weights = lively(network, 5);
    let mut pair = pair(compile::<R>(network, &weights, options).unwrap(), 9);
    let reference = compile::<R>(network, &weights, options).unwrap();
    let mut largest = (0.0_f64, 0.0_f64);
    for seed in 0..images {
        let image = image(network.input.len() * options.samples, seed);
        let (logits, _) = query(&mut pair, &image);
        let fixed: Vec<f64> = reference.evaluate(&image).unwrap().logits.iter().map(|&v| f64::from(v)).collect();
        let float: Vec<f64> = image
            .chunks(network.input.len())
            .flat_map(|image| float_logits(network, &weights, &options.activations, image).unwrap())
            .collect();
        largest.0 = largest.0.max(largest_difference(&logits, &fixed));
        largest.1 = largest.1.max(largest_difference(&logits, &float));
    }
    println!("{}: {:.5} from fixed point, {:.5} from floating point", network.name, largest.0, largest.1);
    largest
}

fn close<R: Ring>(network: &Network, options: &Options, images: u64, bound: f64) {
    let (fixed, float) = distances::<R>(network, options, images);
    assert!(fixed < bound && float < bound, "{fixed} {float}");
}

const BOTH: [WeightPolicy; 2] = [WeightPolicy::Public, WeightPolicy::Shared];

fn resnet8() -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, 16, 16))).unwrap()
}

/// LeNet's shapes with average pooling, in a form that is public knowledge since 1998.
fn lenet() -> Network {
    let conv = |name: &str, in_channels, out_channels, padding| {
        let name = name.to_owned();
        Layer::Conv(Conv { name, in_channels, out_channels, kernel: 5, stride: 1, padding, bias: true })
    };
    let linear = |name: &str, in_features, out_features| {
        Layer::Linear(Linear { name: name.to_owned(), in_features, out_features })
    };
    let network = Network {
        name: "lenet".to_owned(),
        input: Shape::new(1, 28, 28),
        classes: 10,
        layers: vec![
            conv("conv1", 1, 6, 2),
            Layer::Relu,
            Layer::AdaptiveAvgPool { out: 14 },
            conv("conv2", 6, 16, 0),
            Layer::Relu,
            Layer::AdaptiveAvgPool { out: 5 },
            Layer::Flatten,
            linear("fc1", 400, 120),
            Layer::Relu,
            Layer::Dropout { p: 0.5 },
            linear("fc2", 120, 84),
            Layer::Relu,
            linear("fc3", 84, 10),
        ],
    };
    network.validate().unwrap();
    network
}

#[test]
fn lenet_on_many_images() {
    for policy in BOTH {
        close::<u64>(&lenet(), &Options::new::<u64>(policy), 100, 0.0002);
    }
}

#[test]
fn resnet8_on_many_images() {
    for policy in BOTH {
        close::<u64>(&resnet8(), &Options::new::<u64>(policy), 25, 0.0002);
    }
}

#[test]
fn resnet8_on_a_window_of_bits() {
    // Activations stay below 2^7: a sign, seven integer bits and sixteen of fraction.
    let options = Options { comparison: Comparison::Window { bits: 24 }, ..Options::new::<u64>(WeightPolicy::Shared) };
    close::<u64>(&resnet8(), &options, 10, 0.0002);
    // A window without integer bits decides wrongly, and is refused.
    let narrow = Options { comparison: Comparison::Window { bits: 16 }, ..options };
    let model = compile::<u64>(&resnet8(), &lively(&resnet8(), 5), &narrow).unwrap();
    let image = image(768, 0);
    let refused = model.share(&Seed::from_bytes([1; 32]), &image).unwrap_err();
    assert!(
        matches!(&refused, ModelError::Range(PlaintextError::Overflow { layer, .. }) if layer == "conv1.relu"),
        "{refused}"
    );
}

#[test]
fn resnet8_over_32_bits() {
    close::<u32>(&resnet8(), &Options::new::<u32>(WeightPolicy::Shared), 10, 0.05);
}

#[test]
fn resnet8_and_quadratics_over_48_bits() {
    close::<Z48>(&resnet8(), &Options::new::<Z48>(WeightPolicy::Shared), 10, 0.0002);
    let activations = with(&Activation::Quadratic { a: 0.2, b: 0.5, c: 0.2 }, &lenet()).activations;
    let options = Options { activations, ..Options::new::<Z48>(WeightPolicy::Shared) };
    // Pooled squares leave less room here, and are truncated once more.
    let (fixed, float) = distances::<Z48>(&lenet(), &options, 10);
    assert!(fixed < 0.005 && float < 0.05, "{fixed} {float}");
}

#[test]
fn several_samples_in_one_query() {
    let options = Options { samples: 3, ..Options::new::<u64>(WeightPolicy::Shared) };
    close::<u64>(&resnet8(), &options, 2, 0.0002);
}

fn with(activation: &Activation, network: &Network) -> Options {
    let names = activations(network).unwrap();
    let activations = names.into_iter().map(|(name, _)| (name, activation.clone())).collect();
    Options { activations, ..Options::new::<u64>(WeightPolicy::Shared) }
}

#[test]
fn quadratic_activations() {
    // As R-PKN begins, as the least squares fit of a ReLU begins, and one that opens downwards.
    for (a, b, c) in [(0.009, 0.5, 0.47), (0.1995, 0.5, 0.1995), (-0.05, 0.8, -0.1)] {
        let activation = Activation::Quadratic { a, b, c };
        for network in [resnet8(), lenet()] {
            close::<u64>(&network, &with(&activation, &network), 5, 0.02);
        }
    }
}

/// A square has twice the fraction bits, and the coefficient of the next one must not round to nothing beside them.
#[test]
fn small_quadratics_in_small_rings() {
    let Options { activations, .. } = with(&Activation::Quadratic { a: 0.009, b: 0.5, c: 0.47 }, &resnet8());
    let over = |options: Options| Options { activations: activations.clone(), ..options };
    close::<Z48>(&resnet8(), &over(Options::new::<Z48>(WeightPolicy::Shared)), 5, 0.02);
    close::<u32>(&resnet8(), &over(Options::new::<u32>(WeightPolicy::Shared)), 5, 0.1);
}

#[test]
fn shared_decisions() {
    // Of eight fraction bits, so that rounding them changes no decision.
    let weights: Vec<f32> = (0..12).map(|i| ((i as f32 * 0.7).sin() * 256.0).round() / 256.0).collect();
    for (channels, block, decision) in [
        (1, (2, 2), Decision::Mean),
        (1, (4, 4), Decision::Corner),
        (2, (3, 3), Decision::Centre),
        (8, (1, 1), Decision::Mean),
        (2, (2, 3), Decision::Weights(weights)),
    ] {
        // Groups at the edge of a map have another middle than whole ones; LeNet's maps of 28 and 10 rows are cut by 3.
        let network = if matches!(decision, Decision::Centre) { resnet8_of(12) } else { resnet8() };
        let activation = Activation::SharedRelu { block, channels, decision };
        let options = with(&activation, &network);
        // A group whose decision is within rounding of zero may fall either way: rare, and then not close.
        let (fixed, float) = distances::<u64>(&network, &options, 4);
        assert!(fixed < 0.05 && float < 0.1, "{activation:?}: {fixed} {float}");
    }
}

fn resnet8_of(side: usize) -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, side, side))).unwrap()
}

#[test]
fn a_mixture_of_activations() {
    let names: Vec<String> = activations(&resnet8()).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..3], ["conv1.relu", "layer1.0.conv1.relu", "layer1.0.conv2.relu"]);
    let all = [
        Activation::Identity,
        Activation::Quadratic { a: 0.1, b: 0.5, c: 0.0 },
        Activation::Relu,
        Activation::SharedRelu { block: (2, 2), channels: 1, decision: Decision::Mean },
    ];
    let activations: BTreeMap<_, _> = names.into_iter().zip(all.into_iter().cycle()).collect();
    for policy in BOTH {
        let options = Options { activations: activations.clone(), ..Options::new::<u64>(policy) };
        let (fixed, float) = distances::<u64>(&resnet8(), &options, 5);
        assert!(fixed < 0.05 && float < 0.1, "{fixed} {float}");
    }
}

/// A convolution, perhaps a ReLU, maximum pooling and a classifier, on maps that are not square.
fn pooled((kernel, stride, padding): (usize, usize, usize), relu: bool) -> Network {
    let conv = |name: &str, in_channels, out_channels| {
        let name = name.to_owned();
        Layer::Conv(Conv { name, in_channels, out_channels, kernel: 3, stride: 1, padding: 1, bias: true })
    };
    let mut layers = vec![conv("conv1", 2, 4)];
    layers.extend(relu.then_some(Layer::Relu));
    layers.extend([Layer::MaxPool { kernel, stride, padding }, conv("conv2", 4, 3), Layer::Flatten]);
    let network = Network { name: "pooled".to_owned(), input: Shape::new(2, 9, 7), classes: 1, layers };
    let in_features = output_of(&network.layers, network.input).unwrap().len();
    let mut layers = network.layers;
    layers.push(Layer::Linear(Linear { name: "fc".to_owned(), in_features, out_features: 5 }));
    Network { classes: 5, layers, ..network }
}

#[test]
fn maximum_pooling_of_every_window_is_that_of_the_definition() {
    for window in [(1, 1, 0), (2, 2, 0), (2, 1, 1), (3, 2, 1), (3, 1, 1), (3, 3, 0), (5, 2, 2), (1, 2, 0)] {
        for (relu, policy) in [(true, BOTH[0]), (true, BOTH[1]), (false, BOTH[0]), (false, BOTH[1])] {
            let network = pooled(window, relu);
            close::<u64>(&network, &Options::new::<u64>(policy), 2, 0.01);
            close::<Z48>(&network, &Options::new::<Z48>(policy), 2, 0.01);
        }
    }
}

#[test]
fn networks_that_pool_by_maximum_pay_no_more_decisions_than_their_relus() {
    let demo = by_name("demo-cnn", 10, Some(Shape::new(3, 16, 16))).unwrap();
    let vgg = by_name("vgg11-cifar", 10, None).unwrap();
    for network in [demo, vgg] {
        let averaged = replace_activations(&network, &Replacement::AveragePooling).unwrap();
        let options = Options::new::<u64>(WeightPolicy::Shared);
        let [most, average] = [&network, &averaged].map(|network| {
            let model = compile::<u64>(network, &Weights::init(network, 1), &options).unwrap();
            model.program().cost().decisions
        });
        assert_eq!(most, average, "{}: two by two pixels and then ReLU, or ReLU alone", network.name);
        close::<u64>(&network, &options, 2, 0.01);
    }
}

#[test]
fn what_has_no_protocol_is_named() {
    let shape = Shape::new(2, 4, 4);
    let refused = |layer: Layer| {
        let layers = vec![layer, Layer::Flatten];
        let network = Network { name: "refused".to_owned(), input: shape, classes: 32, layers };
        let options = Options::new::<u64>(WeightPolicy::Public);
        compile::<u64>(&network, &Weights::init(&network, 1), &options).unwrap_err().to_string()
    };
    let slopes = refused(Layer::PRelu { name: "slopes".to_owned(), channels: 2 });
    assert!(slopes.starts_with("layer slopes cannot be computed on shares") && slopes.ends_with("use a ReLU instead"));
    let norm = refused(Layer::BatchNorm { name: "norm".to_owned(), channels: 2 });
    assert!(norm.starts_with("layer norm cannot be computed on shares"), "{norm}");
    let groups = refused(Layer::GroupNorm(GroupNorm { name: "groups".to_owned(), channels: 2, groups: 1 }));
    assert!(groups.ends_with("use batch normalisation instead"), "{groups}");
}

#[test]
fn what_values_have_no_room_for_is_refused_before_anything_is_asked() {
    fn refuses<R: Ring>(integer_bits: u32) {
        let (network, options) = (resnet8(), Options::new::<R>(WeightPolicy::Public));
        assert_eq!(options.integer_bits, integer_bits);
        let limit = 2_f32.powi(integer_bits as i32 - 1);
        let model = compile::<R>(&network, &lively(&network, 1), &options).unwrap();
        let seed = Seed::from_bytes([1; 32]);
        for value in [1e7, -limit, limit, f32::INFINITY, f32::NAN] {
            let mut image = image(network.input.len(), 1);
            image[7] = value;
            let refused = share_input::<R>(model.program(), 0, &image, &seed).unwrap_err();
            assert!(matches!(refused, ClientError::Value { index: 7, .. }), "{value}: {refused}");
            image[7] = limit.next_down();
            share_input::<R>(model.program(), 0, &image, &seed).unwrap();
        }
        for (name, value) in [("conv1.weight", 1e9), ("fc.weight", -limit), ("fc.bias", 1e5), ("bn1.weight", 1e9)] {
            let mut weights = lively(&network, 1);
            weights.tensors.get_mut(name).unwrap().data[3] = value;
            let refused = compile::<R>(&network, &weights, &options).unwrap_err();
            let layer = if name.starts_with("fc") { "fc" } else { "conv1" };
            let named = match &refused {
                CompileError::Weight { layer, .. } | CompileError::Magnitude { layer, .. } => layer,
                other => panic!("{other}"),
            };
            assert_eq!(named, layer, "{refused}");
        }
    }
    refuses::<u64>(14);
    refuses::<Z48>(10);
    refuses::<u32>(8);
}

/// Squares without scale grow from layer to layer, until they leave the ring; with smaller weights they stay.
#[test]
fn squares_that_grow_are_refused_or_right() {
    let (mut refused, mut right) = (0, 0);
    for (c, factor) in [("0.5", 1.0), ("1", 1.0), ("2", 1.0), ("0.5", 0.3), ("1", 0.3), ("1", 0.1)] {
        let form = format!("kervolution:{c}");
        let network = replace_activations(&resnet8_of(12), &form.parse().unwrap()).unwrap();
        let mut weights = lively(&network, 3);
        let norms = weights.tensors.iter_mut().filter(|(name, _)| name.contains(".bn") || name.starts_with("bn"));
        for (_, tensor) in norms.filter(|(name, _)| name.ends_with(".weight")) {
            tensor.data.iter_mut().for_each(|value| *value *= factor);
        }
        for policy in BOTH {
            let options = Options::new::<u64>(policy);
            let image = image(network.input.len(), 1);
            let model = compile::<u64>(&network, &weights, &options).unwrap();
            let mut servers = match InProcess::start(model, &image) {
                Ok(servers) => servers,
                Err(InProcessError::Model(ModelError::Range(_))) => {
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{form}: {other}"),
            };
            let logits = servers.ask(&image).unwrap().logits;
            let float = float_logits(&network, &weights, &options.activations, &image).unwrap();
            let largest = float.iter().fold(1.0, |most: f64, logit| most.max(logit.abs()));
            let worst = largest_difference(&logits, &float) / largest;
            println!("{form} {policy:?}, weights × {factor}: {worst:.1e} of the logits");
            assert!(worst < 0.02, "{form} {policy:?}, weights × {factor}: {worst} of the logits");
            right += 1;
        }
    }
    assert!(refused >= 4 && right >= 2, "{refused} refused, {right} right");
}

/// The same function with a layer's outputs times a factor and the next layer's weights divided by it: how many of nine factors are
/// refused, where the others are right.
fn refused_scales<R: Ring>(bound: f64) -> usize {
    let network = resnet8();
    let plain = lively(&network, 5);
    let image = image(network.input.len(), 1);
    let expected = float_logits(&network, &plain, &Default::default(), &image).unwrap();
    let is_refused = |factor: f32| {
        let mut weights = plain.clone();
        for (name, factor) in [("bn1.weight", factor), ("bn1.bias", factor), ("conv2.weight", 1.0 / factor)] {
            let tensor = weights.tensors.get_mut(&format!("layer1.0.{name}")).unwrap();
            tensor.data.iter_mut().for_each(|value| *value *= factor);
        }
        let options = Options::new::<R>(WeightPolicy::Shared);
        let Ok(model) = compile::<R>(&network, &weights, &options) else { return true };
        let Ok(mut servers) = InProcess::start(model, &image) else { return true };
        let worst = largest_difference(&servers.ask(&image).unwrap().logits, &expected);
        println!("{factor:e} over {} bits: off by {worst:.1e}", R::BITS);
        assert!(worst < bound, "{factor:e} over {} bits: off by {worst}", R::BITS);
        false
    };
    [1e-9, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6, 1e9].into_iter().filter(|&factor| is_refused(factor)).count()
}

/// What would overflow, or round away.
#[test]
fn scales_that_do_not_fit_are_refused() {
    assert_eq!([refused_scales::<u64>(0.02), refused_scales::<Z48>(0.02), refused_scales::<u32>(0.1)], [4, 6, 7]);
}

#[test]
fn settings_out_of_range_are_named() {
    let network = resnet8();
    let weights = lively(&network, 1);
    let base = || Options::new::<u64>(WeightPolicy::Public);
    let error = |options: &Options| compile::<u64>(&network, &weights, options).unwrap_err().to_string();
    let fixed = FixedPoint { activation_bits: 40, square_bits: 12, weight_bits: 12 };
    assert_eq!(error(&Options { fixed, ..base() }), "number of activation bits of 40 is out of range 1..=31");
    let comparison = Comparison::Window { bits: 1 };
    assert_eq!(error(&Options { comparison, ..base() }), "window of a comparison of 1 is out of range 2..=64");
    assert_eq!(error(&Options { samples: 0, ..base() }), "number of samples of 0 is out of range 1..=65536");
    let named =
        |name: &str, activation| Options { activations: BTreeMap::from([(name.to_owned(), activation)]), ..base() };
    let unknown = error(&named("relu7", Activation::Relu));
    assert!(unknown.starts_with("no activation named relu7; there are [\"conv1.relu\""), "{unknown}");
    let flat = Activation::Quadratic { a: 0.0, b: 1.0, c: 0.0 };
    assert_eq!(error(&named("conv1.relu", flat)), "activation conv1.relu: coefficient of a quadratic is out of range");
    let empty = Activation::SharedRelu { block: (0, 2), channels: 1, decision: Decision::Mean };
    assert_eq!(error(&named("conv1.relu", empty)), "activation conv1.relu: side of a block is out of range");
    let few = Activation::SharedRelu { block: (2, 2), channels: 1, decision: Decision::Weights(vec![1.0; 3]) };
    assert!(error(&named("conv1.relu", few)).contains("number of decision weights"));
    let wide = Activation::SharedRelu { block: (64, 64), channels: 16, decision: Decision::Mean };
    let options = Options {
        activations: BTreeMap::from([("conv1.relu".to_owned(), wide)]),
        ..Options::new::<u32>(WeightPolicy::Public)
    };
    compile::<u64>(&network, &weights, &options).unwrap();
    let error = compile::<u32>(&network, &weights, &options).unwrap_err();
    assert!(error.to_string().contains("size of a block, for the sums that the ring holds"), "{error}");
    let mut weights = weights.clone();
    weights.tensors.get_mut("fc.weight").unwrap().data[7] = 1e30;
    let error = compile::<u64>(&network, &weights, &base()).unwrap_err();
    assert!(matches!(&error, CompileError::Magnitude { layer, .. } if layer == "fc"), "{error}");
}
