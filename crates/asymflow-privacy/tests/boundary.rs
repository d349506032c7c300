//! The one door: what it refuses, what it lets out, and what is wiped.

use std::cell::Cell;
use std::rc::Rc;

use asymflow_privacy::{
    InsecureFloatNoise, InsecureNone, Loss, MechanismError, Private, Relation, ReleaseError, Sensitivity, release,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use zeroize::Zeroize;

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

fn clipped() -> Sensitivity {
    Sensitivity::of_clipped(1.0, Relation::Remove)
}

#[test]
fn debug_of_private_data_shows_nothing_of_it() {
    let private = Private::new(vec![1234.5_f32]);
    assert_eq!(format!("{private:?}"), "Private(..)");
    assert_eq!(format!("{private:#?}"), "Private(..)");
}

#[test]
fn private_data_is_wiped_on_drop() {
    struct Spy(Rc<Cell<bool>>);
    impl Zeroize for Spy {
        fn zeroize(&mut self) {
            self.0.set(true);
        }
    }
    let wiped = Rc::new(Cell::new(false));
    let private = Private::new(Spy(Rc::clone(&wiped)));
    assert!(!wiped.get());
    drop(private);
    assert!(wiped.get());
}

#[test]
fn non_finite_input_is_refused_and_its_place_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for values in [vec![bad, 0.0, 0.0], vec![0.0, 0.0, bad], vec![0.0, bad, bad]] {
            let index = values.iter().position(|v| !v.is_finite()).unwrap();
            let noise =
                release(Private::new(values.clone()), clipped(), &InsecureFloatNoise::new(1.0).unwrap(), &mut rng());
            assert_eq!(noise.unwrap_err(), ReleaseError::NonFinite { index });
            let none = release(Private::new(values), clipped(), &InsecureNone, &mut rng());
            assert_eq!(none.unwrap_err(), ReleaseError::NonFinite { index });
        }
    }
}

#[test]
fn a_sensitivity_that_is_no_bound_is_refused() {
    for clip in [0.0, -1.0, f64::NAN] {
        let sensitivity = Sensitivity::of_clipped(clip, Relation::Remove);
        let refused = release(Private::new(vec![0.0]), sensitivity, &InsecureFloatNoise::new(1.0).unwrap(), &mut rng());
        let error = refused.unwrap_err();
        assert!(matches!(error, ReleaseError::Mechanism(MechanismError::Sensitivity { .. })), "{error:?}");
    }
}

#[test]
fn the_receipt_says_what_was_released() {
    let sensitivity = Sensitivity::of_clipped(3.0, Relation::Replace);
    let mechanism = InsecureFloatNoise::new(2.0).unwrap();
    let (released, receipt) = release(Private::new(vec![0.0; 5]), sensitivity, &mechanism, &mut rng()).unwrap();
    assert_eq!(released.get().len(), 5);
    assert_eq!(receipt.mechanism(), "insecure_float_noise");
    assert_eq!(receipt.sensitivity(), sensitivity);
    // Replacing a record clipped to 3 moves the output by 6.
    assert_eq!(receipt.loss(), Loss::Gaussian { mu: 3.0 });
    let line = serde_json::to_value(&receipt).unwrap();
    let expected = serde_json::json!({
        "mechanism": "insecure_float_noise",
        "loss": {"gaussian": {"mu": 3.0}},
        "sensitivity": {"l2": 6.0, "relation": "replace"},
    });
    assert_eq!(line, expected);
}

#[test]
fn without_noise_the_numbers_leave_as_they_are_at_infinite_loss() {
    let values = vec![1.5_f32, -2.25, 0.0];
    let (released, receipt) = release(Private::new(values.clone()), clipped(), &InsecureNone, &mut rng()).unwrap();
    assert_eq!(released.into_inner(), values);
    assert_eq!(receipt.mechanism(), "insecure_none");
    assert_eq!(receipt.loss(), Loss::Infinite);
}

#[test]
fn nothing_can_be_released_as_nothing() {
    let (released, _receipt) =
        release(Private::new(Vec::new()), clipped(), &InsecureFloatNoise::new(1.0).unwrap(), &mut rng()).unwrap();
    assert!(released.get().is_empty());
}
