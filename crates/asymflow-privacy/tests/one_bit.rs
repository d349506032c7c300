//! The one-bit release: probabilities against Φ, and what makes its loss that of the Gaussian.
//!
//! Statistics come from fixed seeds and have thresholds that a correct sampler exceeds with probability 1e-6.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test by panicking")]

use asymflow_privacy::{
    Door, Loss, Private,
    accountants::{Relation, Sensitivity},
    calibration::{calibrate_losses, gaussian_delta, gaussian_sigma},
    door::{Gate, Source},
    mechanisms::{Mechanism, MechanismError, OneBit},
    payload::Format,
    records::{Flow, RecordAccountant},
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
        let again = asymflow_privacy::payload::PackedBits::from_bytes(bits.as_bytes().to_vec(), len).unwrap();
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

/// D_α of Bernoulli(`p`) against Bernoulli(`q`), each given with its complement; α infinite gives the largest log ratio.
fn renyi(alpha: f64, (p, not_p): (f64, f64), (q, not_q): (f64, f64)) -> f64 {
    let (one, zero) = ((p / q).ln(), (not_p / not_q).ln());
    if alpha == f64::INFINITY {
        return one.max(zero);
    }
    let (x, y) = ((alpha - 1.0) * one + p.ln(), (alpha - 1.0) * zero + not_p.ln());
    (x.max(y) + (-(x - y).abs()).exp().ln_1p()) / (alpha - 1.0)
}

/// Φ(z) and 1 − Φ(z).
fn bit(z: f64) -> (f64, f64) {
    (0.5 + half_phi(z), 0.5 - half_phi(z))
}

/// The stated ρ over the square of the distance.
fn rho_of_clipped(relation: Relation) -> f64 {
    let sensitivity = Sensitivity::of_clipped(1.0, relation);
    OneBit::clipped(1.0).unwrap().loss(sensitivity).unwrap().rho() / sensitivity.l2().powi(2)
}

/// A proof by enclosure: D_α does not fall with α nor with |z|, so over a cell [α, α′] × [z, z′] its quotient by α·z² is at
/// most D_α′(z′)/(α·z²).
#[test]
fn clipped_bits_against_fair_coins_lose_what_is_stated_for_every_value_and_order() {
    const STEP: f64 = 1.001;
    let (rho, coin) = (rho_of_clipped(Relation::Remove), (0.5, 0.5));
    // Up to 0.3 by the natural parameter, whose slope from 0 rises with z.
    let slope = (bit(0.3).0 / bit(0.3).1).ln() / 0.3;
    assert!(slope * slope / 8.0 <= rho, "{slope}");
    let mut z = 0.3;
    while z < 1.0 {
        let (next_z, mut alpha) = ((z * STEP).min(1.0), 1.0);
        let directions = [(bit(next_z), coin), (coin, bit(next_z))];
        while alpha < 12.0 {
            let most = directions.map(|(p, q)| renyi(alpha * STEP, p, q));
            assert!(most[0].max(most[1]) * (1.0 + 1e-9) <= rho * alpha * z * z, "z {z}, alpha {alpha}: {most:?}");
            alpha *= STEP;
        }
        let most = directions.map(|(p, q)| renyi(f64::INFINITY, p, q));
        assert!(most[0].max(most[1]) <= rho * alpha * z * z, "z {z}: {most:?}");
        z = next_z;
    }
}

#[test]
fn neither_the_local_limit_nor_the_clipped_constant_holds_further_out() {
    let beyond = |z: f64, alpha: f64| renyi(alpha, (0.5, 0.5), bit(z)) / (alpha * z * z);
    assert!(beyond(1.0, 1.42) > 1.01 * std::f64::consts::FRAC_1_PI);
    assert!(beyond(2.0, 1.42) > rho_of_clipped(Relation::Remove));
    let mechanism = OneBit::clipped(0.5).unwrap();
    assert_eq!(mechanism.probability(3.0), mechanism.probability(0.5), "values beyond sigma are moved to it");
    assert_eq!(mechanism.probability(0.3), OneBit::new(0.5).unwrap().probability(0.3));
    assert_eq!((mechanism.name(), OneBit::new(0.5).unwrap().name()), ("one_bit_clipped", "one_bit"));
}

#[test]
fn the_clip_saves_a_seventh_of_the_noise() {
    let sigmas = [1.4, 9.0, 17.0].map(|epsilon| {
        let losses = |sigma| Ok(vec![OneBit::clipped(sigma)?.loss(Sensitivity::of_clipped(1.0, Relation::Remove))?]);
        (calibrate_losses(epsilon, 1e-5, losses).unwrap(), gaussian_sigma(epsilon, 1e-5, 1.0).unwrap())
    });
    let shown = sigmas.map(|(clipped, gaussian)| format!("{clipped:.3} {gaussian:.3}"));
    assert_eq!(shown, ["2.389 2.749", "0.465 0.545", "0.278 0.328"]);
}

proptest! {
    /// Exact divergences of vectors of bits, from the probabilities that are drawn with, against the stated loss. Values
    /// are in units of σ, and some lie beyond the clip.
    #[test]
    fn clipped_bits_lose_no_more_than_stated(
        pairs in proptest::collection::vec((-1.5_f32..1.5, -1.5_f32..1.5), 1..6),
        sigma in 0.2..3.0_f64,
        excess in -4.0..6.0_f64,
    ) {
        let (mechanism, alpha) = (OneBit::clipped(sigma).unwrap(), 1.0 + excess.exp());
        let p = |x: f32| (mechanism.probability(x * sigma as f32), 1.0 - mechanism.probability(x * sigma as f32));
        let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
        let total = |of: &dyn Fn(f32, f32) -> f64, against_zero: bool| -> f64 {
            pairs.iter().map(|&(x, y)| of(x, if against_zero { 0.0 } else { y })).sum()
        };
        for (relation, against_zero) in [(Relation::Remove, true), (Relation::Replace, false)] {
            let allowed = alpha * rho_of_clipped(relation) * total(&square, against_zero);
            let there = total(&|x, y| renyi(alpha, p(x), p(y)), against_zero);
            let back = total(&|x, y| renyi(alpha, p(y), p(x)), against_zero);
            prop_assert!(there.max(back) <= allowed + 1e-9, "{relation:?}: {there} {back} {allowed}");
        }
    }

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
