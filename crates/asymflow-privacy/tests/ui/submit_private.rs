//! What goes to the untrusted side is `Released`; private data does not fit.
use asymflow_privacy::{Private, Released, payload::Payload};

fn submit(_: Released<Payload>) {}

fn main() {
    submit(Private::new(vec![1.0_f32]));
}
