//! A mechanism that is applied by hand releases nothing.
use asymflow_privacy::{Released, mechanisms::{Mechanism, OneBit}, payload::PackedBits};
use rand::CryptoRng;

fn submit(_: Released<PackedBits>) {}

fn smuggle(mechanism: &OneBit, values: Vec<f32>, rng: &mut dyn CryptoRng) {
    submit(mechanism.apply(values, rng).expect("finite"));
}

fn main() {}
