//! Quadratics and shared decisions that the zoo trains, on shares against floating point.

use crate::float::{largest_difference, lively};
use crate::servers::{image, pair, query};
use asymflow_shares::compile::{CompileError, Options, PlaintextError, Selection, compile, float_logits};
use asymflow_shares::program::{Method, Ring, WeightPolicy, Z48};
use asymflow_zoo::{
    Network, Weights, by_name,
    models::replace::{Replacement, map_activations, replace_activations},
    network::{Layer, Shape},
    ops::{Choice, Decision, Form, Grouping, Linear, Quadratic, SharedRelu},
};

const BOTH: [WeightPolicy; 2] = [WeightPolicy::Public, WeightPolicy::Shared];

fn resnet8() -> Network {
    by_name("resnet8-cifar", 10, Some(Shape::new(3, 12, 12))).unwrap()
}

fn replaced(text: &str) -> Network {
    replace_activations(&resnet8(), &text.parse::<Replacement>().unwrap()).unwrap()
}

/// Weights with votes and statistics that differ from place to place.
fn trained(network: &Network, seed: u64) -> Weights {
    let mut weights = lively(network, seed);
    for (name, tensor) in &mut weights.tensors {
        for (i, value) in tensor.data.iter_mut().enumerate() {
            let wave = (i as f32 * 0.7).sin();
            match name.rsplit('.').next() {
                // Of eight fraction bits beside a largest one of 1/2, so that rounding changes no decision.
                Some("vote") => *value = if i == 0 { 0.5 } else { (wave * 256.0).round() / 512.0 },
                Some("first_mean" | "second_mean") => *value = 0.2 * wave,
                Some("first_var" | "second_var") => *value = 1.0 + 0.4 * wave,
                _ => {}
            }
        }
    }
    weights
}

/// Distances of logits on shares from those in floating point, as parts of the largest logit where that is above one:
/// the middle image's and the largest.
fn distances<R: Ring>(network: &Network, weights: &Weights, policy: WeightPolicy, images: u64) -> (f64, f64) {
    let options = Options::new::<R>(policy);
    let mut pair = pair(compile::<R>(network, weights, &options).unwrap(), 9);
    let mut distances: Vec<f64> = (0..images)
        .map(|seed| {
            let image = image(network.input.len(), seed);
            let (logits, _) = query(&mut pair, &image);
            let float = float_logits(network, weights, &options.activations, &image).unwrap();
            let unit = float.iter().fold(1.0, |most: f64, logit| most.max(logit.abs()));
            largest_difference(&logits, &float) / unit
        })
        .collect();
    distances.sort_by(f64::total_cmp);
    let found = (distances[distances.len() / 2], distances[distances.len() - 1]);
    println!("{} {policy:?} over {} bits: {found:.5?}", network.name, R::BITS);
    found
}

/// γ (g₁ N₁(x) + g₂ N₂((x² − 1)/√2)) + β with g₂ = s/√(4π), written out for one value.
#[test]
fn the_reference_knows_the_strength_of_the_second_basis() {
    let act = Quadratic { name: "act".to_owned(), channels: 1, form: Form::Hermite { second: 0.3 } };
    let layers = vec![Layer::Quadratic(act), Layer::Flatten];
    let network = Network { name: "one".to_owned(), input: Shape::new(1, 1, 1), classes: 1, layers };
    let mut weights = Weights::init(&network, 1);
    let values = [("weight", 1.5), ("bias", 0.25), ("first_mean", 0.5), ("second_mean", -0.5), ("second_var", 3.0)];
    for (suffix, value) in values {
        weights.tensors.get_mut(&format!("act.{suffix}")).unwrap().data[0] = value;
    }
    let first = (2.0 - 0.5) / (1.0_f64 + 1e-5).sqrt();
    let second = (3.0 / 2.0_f64.sqrt() + 0.5) / (3.0_f64 + 1e-5).sqrt();
    let expected = 1.5 * (0.5 * first + 0.3 / (4.0 * std::f64::consts::PI).sqrt() * second) + 0.25;
    let logits = float_logits(&network, &weights, &Default::default(), &[2.0]).unwrap();
    assert!((logits[0] - expected).abs() < 1e-6, "{logits:?}, expected {expected}");
}

#[test]
fn every_form_of_quadratic() {
    for form in ["react", "hermite", "hermite:0.3", "kervolution:0.5", "scaled:0.009:0.47", "free:-0.05:0.8:-0.1"] {
        let network = replaced(form);
        let mut weights = trained(&network, 3);
        if form.starts_with("kervolution") {
            // Squares without scale grow from layer to layer: smaller weights keep them tame.
            weights
                .tensors
                .iter_mut()
                .filter(|(name, _)| name.contains("bn2.weight") || name.contains("bn1.weight"))
                .for_each(|(_, tensor)| tensor.data.iter_mut().for_each(|value| *value *= 0.25));
        }
        for policy in BOTH {
            let (_, wide) = distances::<u64>(&network, &weights, policy, 3);
            let (_, narrow) = distances::<Z48>(&network, &weights, policy, 3);
            assert!(wide < 0.01 && narrow < 0.01, "{form}: {wide} {narrow}");
        }
    }
}

#[test]
fn every_decision_of_blocks() {
    for text in ["1x2x2:mean", "1x4x4:corner", "2x3x3:centre", "8x1x1:mean", "2x2x3:learned"] {
        let network = replaced(&format!("shared-relu:{text}"));
        let weights = trained(&network, 4);
        for policy in BOTH {
            // A group whose vote is within rounding of zero may fall either way: rare, and then not close.
            for (middle, most) in
                [distances::<u64>(&network, &weights, policy, 5), distances::<Z48>(&network, &weights, policy, 5)]
            {
                assert!(middle < 0.05 && most < 0.3, "{text}: {middle} {most}");
            }
        }
    }
}

/// ResNet-8 with the choices of a budget: each layer another mixture.
pub fn mixed(decision: Decision) -> Network {
    let make = |name: String, shape: Shape| {
        let block = |rows, columns| Choice::Block { rows, columns };
        let kinds = match name.as_str() {
            "conv1.act" => vec![Choice::Quadratic, block(1, 1), Choice::Identity, Choice::Copy { of: 1 }],
            "layer1.0.conv1.act" => vec![Choice::Copy { of: 2 }, block(3, 2), block(5, 5), Choice::Copy { of: 1 }],
            "layer1.0.conv2.act" => vec![Choice::Quadratic],
            "layer2.0.conv1.act" => vec![Choice::Identity],
            "layer2.0.conv2.act" => vec![Choice::Zero, Choice::Identity, Choice::Quadratic],
            "layer3.0.conv1.act" => vec![Choice::Zero, block(2, 2)],
            _ => vec![block(2, 1), Choice::Quadratic],
        };
        let choices = (0..shape.channels).map(|channel| kinds[channel % kinds.len()]).collect();
        Layer::SharedRelu(SharedRelu { name, channels: shape.channels, grouping: Grouping::Choices(choices), decision })
    };
    map_activations(&resnet8(), &make).unwrap()
}

#[test]
fn every_choice_of_a_channel() {
    for decision in [Decision::Mean, Decision::Corner, Decision::Centre] {
        let network = mixed(decision);
        let weights = trained(&network, 6);
        for policy in BOTH {
            for (middle, most) in
                [distances::<u64>(&network, &weights, policy, 5), distances::<Z48>(&network, &weights, policy, 5)]
            {
                assert!(middle < 0.05 && most < 0.3, "{decision:?}: {middle} {most}");
            }
        }
    }
}

/// Two rounds for all channels that share decisions, one for all quadratics, none for the rest; a decision is dealt once
/// for a prototype and its copies.
#[test]
fn choices_cost_what_they_say() {
    let shape = Shape::new(4, 6, 6);
    let cost = |choices: Vec<Choice>| {
        let (grouping, decision) = (Grouping::Choices(choices), Decision::Mean);
        let act = Layer::SharedRelu(SharedRelu { name: "act".to_owned(), channels: 4, grouping, decision });
        let linear = Linear { name: "fc".to_owned(), in_features: shape.len(), out_features: 3 };
        let layers = vec![act, Layer::Flatten, Layer::Linear(linear)];
        let network = Network { name: "one".to_owned(), input: shape, classes: 3, layers };
        let method = Selection::Always(Method::Keys);
        let options = Options { method, ..Options::new::<u64>(WeightPolicy::Public) };
        compile::<u64>(&network, &Weights::init(&network, 1), &options).unwrap().program().cost()
    };
    let block = |rows, columns| Choice::Block { rows, columns };
    let free = cost(vec![Choice::Identity, Choice::Zero, Choice::Zero, Choice::Identity]);
    assert_eq!((free.rounds, free.online_bytes_per_server, free.dealer_bytes_second), (0, 0, 0));
    let curved = cost(vec![Choice::Quadratic, Choice::Zero, Choice::Quadratic, Choice::Identity]);
    assert_eq!((curved.rounds, curved.online_bytes_per_server), (1, 2 * 36 * 8));
    assert_eq!((curved.dealer_bytes_first, curved.dealer_bytes_second), (0, 2 * 36 * (2 * 8 + 5)));
    let gated = cost(vec![block(2, 3), Choice::Copy { of: 3 }, Choice::Copy { of: 0 }, block(6, 6)]);
    assert_eq!((gated.rounds, gated.decisions), (2, 7));
    assert_eq!(gated.online_bytes_per_server, 4 * 36 * 8 + 1);
    let both = cost(vec![block(2, 3), Choice::Quadratic, Choice::Copy { of: 0 }, Choice::Zero]);
    assert_eq!((both.rounds, both.decisions), (3, 6));
    assert_eq!(both.online_bytes_per_server, 3 * 36 * 8 + 1);
}

#[test]
fn the_largest_activation_is_refused_as_a_decision() {
    let network = replaced("shared-relu:1x2x2:largest");
    let weights = trained(&network, 1);
    let error = compile::<u64>(&network, &weights, &Options::new::<u64>(WeightPolicy::Public)).unwrap_err();
    assert!(matches!(&error, CompileError::Unsupported { layer, .. } if layer == "conv1.act"), "{error}");
    assert!(error.to_string().ends_with("use the mean, a corner, the centre or learned decisions instead"), "{error}");
}

/// Votes count by their sign alone: a common factor changes nothing, and no vote keeps nothing.
#[test]
fn learned_votes_are_normalised() {
    let network = replaced("shared-relu:1x2x2:learned");
    let scaled = |factor: f32| {
        let mut weights = trained(&network, 2);
        let votes = weights.tensors.iter_mut().filter(|(name, _)| name.ends_with(".vote"));
        votes.for_each(|(_, tensor)| tensor.data.iter_mut().for_each(|value| *value *= factor));
        let options = Options::new::<u64>(WeightPolicy::Public);
        let logits = compile::<u64>(&network, &weights, &options).unwrap().evaluate(&image(432, 1)).unwrap().logits;
        let float = float_logits(&network, &weights, &options.activations, &image(432, 1)).unwrap();
        (
            logits,
            largest_difference(
                &compile::<u64>(&network, &weights, &options).unwrap().evaluate(&image(432, 1)).unwrap().logits,
                &float,
            ),
        )
    };
    let (plain, _) = scaled(1.0);
    assert_eq!(plain, scaled(1024.0).0);
    assert_eq!(plain, scaled(2_f32.powi(-20)).0);
    let (none, difference) = scaled(0.0);
    assert!(none != plain && difference < 0.005, "{difference}");
}

/// Kervolutions, normalised afterwards, on shortcuts too: one round for each square, none for what is folded.
#[test]
fn polykervnets() {
    for (name, side, squares) in [("pkn-lenet", 20, 2), ("pkn-resnet10", 8, 8)] {
        let network = by_name(name, 10, Some(Shape::new(3, side, side))).unwrap();
        let mut weights = trained(&network, 7);
        // As after training: normalisations see the variance of squares.
        for (_, tensor) in weights.tensors.iter_mut().filter(|(name, _)| name.ends_with("running_var")) {
            tensor.data.iter_mut().for_each(|value| *value *= 8.0);
        }
        for policy in BOTH {
            let (_, wide) = distances::<u64>(&network, &weights, policy, 3);
            let (_, narrow) = distances::<Z48>(&network, &weights, policy, 3);
            assert!(wide < 0.02 && narrow < 0.05, "{name}: {wide} {narrow}");
        }
        let cost =
            compile::<u64>(&network, &weights, &Options::new::<u64>(WeightPolicy::Public)).unwrap().program().cost();
        assert_eq!((cost.rounds, cost.decisions), (squares, 0), "{name}");
    }
}

/// Channels without a square: straight lines and constants among parabolas, as a normalisation with a scale of zero makes
/// them.
#[test]
fn quadratics_without_a_square() {
    let network = by_name("pkn-lenet", 10, Some(Shape::new(3, 20, 20))).unwrap();
    let mut weights = trained(&network, 8);
    let scales = weights.tensors.get_mut("bn1.weight").unwrap();
    (scales.data[1], scales.data[4]) = (0.0, -0.7);
    weights.tensors.get_mut("bn2.weight").unwrap().data.fill(0.0);
    for policy in BOTH {
        assert!(distances::<u64>(&network, &weights, policy, 2).1 < 0.01);
    }
    let hermite = replaced("hermite");
    let mut weights = trained(&hermite, 8);
    for (_, tensor) in weights.tensors.iter_mut().filter(|(name, _)| name.ends_with("second_var")) {
        // Its square is worth nothing beside 32 fraction bits.
        tensor.data.iter_mut().step_by(3).for_each(|value| *value = 1e30);
    }
    for policy in BOTH {
        assert!(distances::<u64>(&hermite, &weights, policy, 2).1 < 0.01);
    }
    let react = replaced("free:0.0000001:0.5:0.1");
    let error = compile::<Z48>(&react, &trained(&react, 1), &Options::new::<Z48>(WeightPolicy::Public)).unwrap_err();
    assert!(error.to_string().contains("coefficient of x, large beside that of x²"), "{error}");
}

#[test]
fn squares_that_overflow_are_seen() {
    let network = replaced("free:30:1:0");
    let model = compile::<Z48>(&network, &trained(&network, 1), &Options::new::<Z48>(WeightPolicy::Public)).unwrap();
    assert!(matches!(model.evaluate(&image(432, 1)), Err(PlaintextError::Overflow { .. })));
}
