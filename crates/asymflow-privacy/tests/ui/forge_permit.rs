//! Leave to release has no name outside.
use asymflow_privacy::{Permit, Released};

fn smuggle(permit: Permit<'_>, private: Vec<f32>) -> Released<Vec<f32>> {
    permit.release(private)
}

fn main() {}
