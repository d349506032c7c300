#![deny(unused_must_use)]
use asymflow_privacy::{InsecureNone, Private, Receipt, Relation, Sensitivity, release};
use rand::CryptoRng;

fn receipt_alone(receipt: fn() -> Receipt) {
    receipt();
}

fn with_the_data(rng: &mut dyn CryptoRng) {
    let sensitivity = Sensitivity::unbounded(Relation::Remove);
    release(Private::new(vec![1.0_f32]), sensitivity, &InsecureNone, rng).expect("finite");
}

fn main() {}
