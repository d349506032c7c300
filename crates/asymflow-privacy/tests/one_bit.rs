//! The one-bit release: probabilities against Φ, and what makes its loss that of the Gaussian.
//!
//! Statistics come from fixed seeds and have thresholds that a correct sampler exceeds with probability 1e-6.

use asymflow_privacy::{
    Door, Flow, Format, Gate, Loss, Mechanism, MechanismError, OneBit, Private, RecordAccountant, Relation, Source,
    gaussian_delta,
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// Φ(z) − ½, to full relative precision.
fn half_phi(z: f64) -> f64 {
    0.5 * libm::erf(z * std::f64::consts::FRAC_1_SQRT_2)
}

#[test]
fn probabilities_are_phi_but_never_further_from_one_half() {
    let unit = OneBit::new(1.0).unwrap();
    for i in -200_000..=200_000 {
        let x = i as f32 * 4e-5; // to ±8
        let (deviation, exact) = (unit.probability(x) - 0.5, half_phi(f64::from(x)));
        assert!(deviation.abs() <= exact.abs(), "x {x}: {deviation} is beyond {exact}");
        assert!((deviation - exact).abs() < 2.0_f64.powi(-30), "x {x}: {deviation} is not {exact}");
        assert!(deviation * exact >= 0.0, "x {x}: wrong sign");
    }
    assert_eq!((unit.probability(0.0), unit.probability(-0.0)), (0.5, 0.5));
}

/// Against mpmath 1.3 (`ncdf`), independent of the error function used above.
#[test]
fn probabilities_are_those_of_high_precision_arithmetic() {
    let exact = [
        (0.25, 0.598_706_325_682_923_7),
        (1.0, 0.841_344_746_068_543),
        (2.5, 0.993_790_334_674_224),
        (4.0, 0.999_968_328_758_166_9),
        (5.5, 0.999_999_981_010_437_5),
        (6.0, 0.999_999_999_013_412_4),
    ];
    for (x, exact) in exact {
        let p = OneBit::new(1.0).unwrap().probability(x);
        assert!(p <= exact && exact - p < 2.0_f64.powi(-30), "{x}: {p} is not {exact}");
    }
}

#[test]
fn neither_answer_is_ever_certain() {
    for x in [6.5_f32, 7.0, 100.0, 1e30, f32::MAX] {
        for sigma in [1e-30, 1.0] {
            let bit = OneBit::new(sigma).unwrap();
            let (high, low) = (bit.probability(x), bit.probability(-x));
            assert!(high < 1.0 && high > 1.0 - 2.0_f64.powi(-30), "{x}: {high}");
            assert!(low > 0.0 && low < 2.0_f64.powi(-30), "{x}: {low}");
        }
    }
}

#[test]
fn bits_come_with_their_probabilities_in_their_places() {
    const REPEATS: usize = 20_000;
    // 13 values: every one of them meets every position of a byte and of a block.
    let values = [-7.0, -3.0, -1.5, -0.7, -0.1, -1e-3, 0.0, 1e-3, 0.05, 0.4, 1.1, 2.2, 7.0_f32];
    let mechanism = OneBit::new(0.8).unwrap();
    let input: Vec<f32> = values.iter().copied().cycle().take(13 * REPEATS + 5).collect();
    let bits = mechanism.apply(input.clone(), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
    assert_eq!((bits.len(), bits.bytes()), (input.len(), input.len().div_ceil(8)));
    for (index, &value) in values.iter().enumerate() {
        let ones = (0..REPEATS).filter(|r| bits.get(13 * r + index) == Some(true)).count() as f64;
        let p = half_phi(f64::from(value) / 0.8) + 0.5;
        let off = (ones - REPEATS as f64 * p).abs();
        let deviation = (REPEATS as f64 * p * (1.0 - p)).sqrt();
        assert!(off <= 4.9 * deviation + 1e-3, "{value}: {ones} of {REPEATS}, expected {p}");
    }
}

#[test]
fn neighbouring_bits_are_independent() {
    const BITS: usize = 400_000;
    let bits = OneBit::new(1.0).unwrap().apply(vec![0.0; BITS], &mut ChaCha20Rng::seed_from_u64(2)).unwrap();
    for lag in [1, 7, 8, 32, 64] {
        let equal = (0..BITS - lag).filter(|&i| bits.get(i) == bits.get(i + lag)).count() as f64;
        let n = (BITS - lag) as f64;
        assert!((equal / n - 0.5).abs() < 4.9 * 0.5 / n.sqrt(), "lag {lag}: {equal} of {n}");
    }
}

#[test]
fn a_release_travels_as_bits_at_the_loss_of_the_gaussian() {
    let gate = Gate::new(Box::new(OneBit::new(4.0).unwrap()), Some(1.0), Relation::Remove).unwrap();
    assert_eq!((gate.name(), gate.loss()), ("one_bit", Ok(Loss::Gaussian { mu: 0.25 })));
    let mut door = Door::new(RecordAccountant::new(1), ChaCha20Rng::seed_from_u64(3));
    let source = Source { layer: "features", flow: Flow::Residual };
    let payload = door.release(&gate, source, &[0], Private::new(vec![0.1; 65_536])).unwrap().into_payload();
    assert_eq!((payload.get().format(), payload.get().bytes()), (Format::Bit, 8_192));
}

#[test]
fn empty_and_short_releases_have_clean_padding() {
    let mechanism = OneBit::new(1.0).unwrap();
    for len in 0..130 {
        let bits = mechanism.apply(vec![100.0; len], &mut ChaCha20Rng::seed_from_u64(4)).unwrap();
        let again = asymflow_privacy::PackedBits::from_bytes(bits.as_bytes().to_vec(), len).unwrap();
        assert_eq!(again, bits);
        assert!((0..len).all(|i| bits.get(i) == Some(true)));
    }
}

#[test]
fn sigma_must_be_positive_and_finite() {
    for sigma in [0.0, -1.0, f64::INFINITY, f64::NAN, 5e-324] {
        assert!(matches!(OneBit::new(sigma), Err(MechanismError::Sigma { .. })), "{sigma}");
    }
}

proptest! {
    #[test]
    fn the_probability_never_falls_with_the_value(bits in 0_u32..0x4200_0000, gap in 1_u32..1000) {
        let unit = OneBit::new(1.0).unwrap();
        let (x, y) = (f32::from_bits(bits), f32::from_bits(bits + gap));
        prop_assert!(unit.probability(x) <= unit.probability(y), "{x} {y}");
        prop_assert!(unit.probability(-x) >= unit.probability(-y), "{x} {y}");
    }

    /// The privacy profile of one bit, from its real probabilities, against that of the Gaussian at the same σ.
    #[test]
    fn one_bit_loses_no_more_than_its_gaussian(x in -3.0_f32..3.0, sigma in 0.3..4.0_f64, epsilon in 0.0..8.0_f64) {
        let p = OneBit::new(sigma).unwrap().probability(x);
        let zero = OneBit::new(sigma).unwrap().probability(0.0);
        let stick = |p: f64, q: f64| (p - epsilon.exp() * q).max(0.0) + (1.0 - p - epsilon.exp() * (1.0 - q)).max(0.0);
        let sensitivity = f64::from(x.abs()).max(1e-6);
        let allowed = gaussian_delta(sigma, sensitivity, epsilon).unwrap() + 1e-15;
        prop_assert!(stick(p, zero) <= allowed && stick(zero, p) <= allowed);
    }
}
