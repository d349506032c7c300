//! The value cannot be moved out from outside the crate.
use asymflow_privacy::Private;

fn main() {
    let private = Private::new(vec![1.0_f32]);
    let _values: Vec<f32> = private.take();
}
