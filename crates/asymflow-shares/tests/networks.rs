//! Whole networks on shares against the same networks in the clear.

mod common;

use asymflow_shares::{Ring, WeightPolicy, compile};
use asymflow_zoo::{Shape, by_name};
use common::{float_logits, image, largest_difference, lively, options, pair, query};

fn resnet8<R: Ring>(policy: WeightPolicy, images: u64, bound: f64) {
    let network = by_name("resnet8-cifar", 10, Some(Shape::new(3, 16, 16))).unwrap();
    let weights = lively(&network, 5);
    let options = options::<R>(policy);
    let mut pair = pair(compile::<R>(&network, &weights, &options).unwrap(), 9);
    let reference = compile::<R>(&network, &weights, &options).unwrap();
    for seed in 0..images {
        let image = image(network.input.len(), seed);
        let (logits, _) = query(&mut pair, &image);
        let fixed: Vec<f64> = reference.evaluate(&image).unwrap().logits.iter().map(|&v| f64::from(v)).collect();
        let float = float_logits(&network, &weights, &options.activations, &image);
        let (from_fixed, from_float) = (largest_difference(&logits, &fixed), largest_difference(&logits, &float));
        println!("{from_fixed:.5} {from_float:.5} of {float:.2?}");
        assert!(from_fixed < bound && from_float < bound, "{from_fixed} {from_float}");
    }
}

#[test]
fn resnet8_with_public_weights() {
    resnet8::<u64>(WeightPolicy::Public, 20, 0.02);
}

#[test]
fn resnet8_with_shared_weights() {
    resnet8::<u64>(WeightPolicy::Shared, 20, 0.02);
}

#[test]
fn resnet8_over_32_bits() {
    resnet8::<u32>(WeightPolicy::Shared, 5, 0.2);
}
