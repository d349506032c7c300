//! Nor is there a function that makes released data.
use asymflow_privacy::Released;

fn main() {
    let _forged = Released::new(vec![1.0_f32]);
}
