//! A closure could capture private data and return it as released.
use asymflow_privacy::{Private, Released};

fn smuggle(released: Released<Vec<f32>>, private: &Private<Vec<f32>>) -> Released<Vec<f32>> {
    released.post_process(|_| private.expose().to_vec())
}

fn main() {}
