//! Weights as after training, and distances of logits.

use asymflow_zoo::{Network, Weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// Weights with lively normalisation, as after training.
pub fn lively(network: &Network, seed: u64) -> Weights {
    let mut weights = Weights::init(network, seed);
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    for (name, tensor) in &mut weights.tensors {
        let normalised = tensor.shape.len() == 1 && (name.contains("bn") || name.contains("downsample.1"));
        for value in tensor.data.iter_mut().filter(|_| normalised) {
            *value = match name.rsplit('.').next() {
                Some("weight") => 0.5 + rng.random::<f32>(),
                Some("running_var") => 0.5 + 1.5 * rng.random::<f32>(),
                _ => rng.random::<f32>() - 0.5,
            };
        }
    }
    weights
}

pub fn largest_difference(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}
