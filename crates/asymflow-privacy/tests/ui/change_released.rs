//! Released data cannot be overwritten in place.
use asymflow_privacy::{Private, Released};

fn smuggle(released: &mut Released<Vec<f32>>, private: &Private<Vec<f32>>) {
    released.get().copy_from_slice(private.expose());
}

fn main() {}
