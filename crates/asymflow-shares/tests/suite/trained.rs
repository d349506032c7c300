//! Quadratics and shared decisions that the zoo trains, on shares against floating point.

use crate::float::{largest_difference, lively};
use crate::servers::{image, pair, query};
use asymflow_shares::{Options, Ring, WeightPolicy, Z48, compile, float_logits};
use asymflow_zoo::{Network, Replacement, Shape, Weights, by_name, replace_activations};

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

#[test]
fn every_form_of_quadratic() {
    for form in ["react", "hermite", "kervolution:0.5", "scaled:0.009:0.47", "free:-0.05:0.8:-0.1"] {
        let network = replaced(form);
        let mut weights = trained(&network, 3);
        if form.starts_with("kervolution") {
            // Squares without scale grow from layer to layer: smaller weights keep them tame.
            weights
                .tensors
                .iter_mut()
                .filter(|(name, _)| name.contains("bn2.weight") || name.contains("bn1.weight"))
                .for_each(|(_, tensor)| tensor.data.iter_mut().for_each(|value| *value *= 0.3));
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
                assert!(middle < 0.01 && most < 0.3, "{text}: {middle} {most}");
            }
        }
    }
}
