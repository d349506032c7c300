//! Nor does data that never went through a mechanism.
use asymflow_privacy::{Released, payload::{Payload, Precision}};

fn submit(_: Released<Payload>) {}

fn main() {
    submit(Payload::encode(vec![1.0_f32], Precision::F32));
}
