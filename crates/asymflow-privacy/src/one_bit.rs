//! One bit a value: the sign of a noisy value, sampled without the noise.

use rand::CryptoRng;
use zeroize::Zeroize;

use crate::bits::PackedBits;
use crate::loss::{Loss, Relation, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError, checked_l2, checked_sigma};

/// Values handled together: eight bytes of output, 128 bytes of randomness and seldom more.
const BLOCK: usize = 64;

/// Releases the sign of x + N(0, σ²) for every value x: bit 1 with probability Φ(x/σ) (Niu 2024, equation 3.6); with
/// [`OneBit::clipped`] that of x moved into [−σ, σ].
///
/// No noise is ever made. Every bit is one comparison of 32 uniform bits with a threshold; T ≈ 2³²·Φ(x/σ) of the 2³²
/// integers are below it. The upper sixteen bits decide all but about one comparison in 2¹⁵, and only for those are the
/// lower sixteen drawn and the threshold computed in full: the bits are distributed exactly as if all had been.
///
/// # Guarantee
/// That of Gaussian noise of standard deviation σ, μ = Δ₂/σ, exactly and with nothing added for finite precision: the
/// sign is post-processing of the noisy value, and T is always rounded towards 2³¹, so that |T/2³² − ½| ≤ |Φ(x/σ) −
/// ½|. The bits are therefore exactly those of some record x' with |x'ᵢ| ≤ |xᵢ| for every i, which keeps within the
/// clip bound of the record, and so within the sensitivity for either relation. The cost is a bias of at most 2⁻³⁰ in
/// a probability.
///
/// ## With clipped values
/// [`OneBit::clipped`] loses less than its Gaussian: ρ-zCDP with ρ = 0.3231·μ² for [`Relation::Remove`] and 0.4108·μ²
/// for [`Relation::Replace`], where the Gaussian has 0.5·μ². Moving values into [−σ, σ] moves no two records apart, so
/// the sensitivity is that of the caller. For one bit, let θ(z) = ln(Φ(z)/Φ(−z)) be its natural parameter at z = x/σ, and
/// A(θ) = ln(1 + e^θ). Since A″ ≤ ¼, D_α = (A(αθ + (1−α)θ′) − αA(θ) − (1−α)A(θ′))/(α − 1) ≤ α·(θ − θ′)²/8. On |z| ≤ 1
/// the slope of θ is at most θ′(1) = φ(1)/(Φ(1)Φ(−1)) < 1.8128, which gives 0.4108. Against z = 0 the same argument gives
/// less than 0.3231 up to |z| = 0.3, and beyond that the constant is proved by enclosure over all |z| and α
/// (`tests/one_bit.rs`). Divergences of independent bits add up, and so does μ². The local limit, 1/π = 0.3183, is not
/// enough: fair coins against the bit of z = 1 exceed it by 1.1 %. Neither constant holds without the clip.
///
/// # Time
/// The same instructions run for every value but for those that sixteen bits leave open: which ones is as random as their
/// bits, about one in 2¹⁵ for every value, and whoever can see it learns that such a bit was drawn close to its threshold.
/// The number of values, and whatever division and conversion of the processor take, are not hidden.
#[derive(Clone, Copy, Debug)]
pub struct OneBit {
    sigma: f64,
    /// Values are moved to within so many σ of 0: [`CLIPPED`], or [`MAX_DEVIATIONS`], beyond which nothing changes.
    deviations: f64,
}

impl OneBit {
    /// Noise of standard deviation `sigma`.
    ///
    /// # Errors
    /// `sigma` is not positive and finite, or its inverse is not.
    pub fn new(sigma: f64) -> Result<Self, MechanismError> {
        let sigma = checked_sigma(sigma)?;
        if !sigma.recip().is_normal() {
            return Err(MechanismError::Sigma { sigma });
        }
        Ok(Self { sigma, deviations: MAX_DEVIATIONS })
    }

    /// Noise of standard deviation `sigma` on values that are moved into [−`sigma`, `sigma`] first, for less loss.
    ///
    /// ```
    /// # use asymflow_privacy::{accountants::{Relation, Sensitivity}, mechanisms::{Mechanism, OneBit}};
    /// let sensitivity = Sensitivity::of_clipped(1.0, Relation::Remove);
    /// let rho = |mechanism: OneBit| mechanism.loss(sensitivity).map(|loss| loss.rho());
    /// assert!(rho(OneBit::clipped(2.0)?)? < 0.65 * rho(OneBit::new(2.0)?)?);
    /// # Ok::<(), asymflow_privacy::mechanisms::MechanismError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`OneBit::new`].
    pub fn clipped(sigma: f64) -> Result<Self, MechanismError> {
        Ok(Self { deviations: CLIPPED, ..Self::new(sigma)? })
    }

    /// Standard deviation of the noise, in the unit of the values.
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }

    /// Probability of a 1 for value `x`: what the sampler draws with, a multiple of 2⁻³² within 2⁻³⁰ of Φ(x/σ).
    pub fn probability(&self, x: f32) -> f64 {
        0.5 + cut(x, self.sigma.recip(), self.deviations).ceil() / 4_294_967_296.0
    }

    const fn is_clipped(&self) -> bool {
        self.deviations <= CLIPPED
    }
}

impl Mechanism for OneBit {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        if self.is_clipped() { "one_bit_clipped" } else { "one_bit" }
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        let mu = checked_l2(sensitivity)? / self.sigma;
        if !self.is_clipped() {
            return Ok(Loss::Gaussian { mu }.checked());
        }
        let rho = match sensitivity.relation() {
            Relation::Remove => 0.3231 * mu * mu,
            Relation::Replace => 0.4108 * mu * mu,
        };
        Ok(Loss::Zcdp { rho }.checked())
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        let (inverse_sigma, deviations) = (self.sigma.recip(), self.deviations);
        let mut bytes = vec![0_u8; x.len().div_ceil(8)];
        let mut random = [0_u8; 2 * BLOCK];
        let mut values = [0.0_f32; BLOCK];
        for (input, output) in x.chunks(BLOCK).zip(bytes.chunks_mut(BLOCK / 8)) {
            rng.fill_bytes(&mut random);
            values[..input.len()].copy_from_slice(input);
            let used = u64::MAX >> (BLOCK - input.len());
            let mut more = || {
                let mut low = [0; 2];
                rng.fill_bytes(&mut low);
                u16::from_le_bytes(low)
            };
            let packed = block(&values, &random, (inverse_sigma, deviations), used, &mut more);
            output.copy_from_slice(&packed.to_le_bytes()[..output.len()]);
        }
        let len = x.len();
        x.zeroize();
        values.zeroize();
        random.zeroize();
        Ok(PackedBits::from_zero_padded(bytes, len))
    }
}

/// The bits of those values of a block that are `used`, least significant first. Sixteen random bits a value come in `random`; for the few
/// that they do not decide, `more` gives the sixteen below.
fn block(
    values: &[f32; BLOCK],
    random: &[u8; 2 * BLOCK],
    (inverse_sigma, deviations): (f64, f64),
    used: u64,
    more: &mut dyn FnMut() -> u16,
) -> u64 {
    // Else the product with a value may leave the range of f32.
    let (mut ones, mut open) = if (1e-30..1e30).contains(&inverse_sigma) {
        coarse_bits(values, random, inverse_sigma as f32, deviations as f32)
    } else {
        (0, u64::MAX)
    };
    (ones, open) = (ones & used, open & used);
    while open != 0 {
        let at = open.trailing_zeros() as usize;
        open &= open - 1;
        let word = i32::from(high_word(random, at)) << 16 | i32::from(more());
        let is_one = f64::from(word) < cut(values[at], inverse_sigma, deviations);
        ones |= u64::from(is_one) << at;
    }
    ones
}

/// The upper half of the random integer of value `at`, with its sign.
#[inline(always)]
fn high_word(random: &[u8; 2 * BLOCK], at: usize) -> i16 {
    i16::from_le_bytes([random[2 * at], random[2 * at + 1]])
}

/// What sixteen bits decide: the values whose bit is 1, and those that stay open.
fn coarse_bits(values: &[f32; BLOCK], random: &[u8; 2 * BLOCK], inverse_sigma: f32, deviations: f32) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has AVX-512.
        return unsafe { coarse_bits_avx512(values, random, inverse_sigma, deviations) };
    }
    coarse_bits_portable(values, random, inverse_sigma, deviations)
}

/// The same code, compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn coarse_bits_avx512(values: &[f32; BLOCK], random: &[u8; 2 * BLOCK], inverse: f32, deviations: f32) -> (u64, u64) {
    coarse_bits_portable(values, random, inverse, deviations)
}

/// By how much, in units of 2⁻¹⁶, a cut in f32 may be off and more: see the test.
const DOUBT: f32 = 0.5;

#[inline(always)]
fn coarse_bits_portable(values: &[f32; BLOCK], random: &[u8; 2 * BLOCK], inverse: f32, deviations: f32) -> (u64, u64) {
    let (mut ones, mut open) = ([0_u8; BLOCK], [0_u8; BLOCK]);
    for at in 0..BLOCK {
        let cut = coarse_cut(values[at], inverse, deviations);
        // The integer lies in `high..high + 1` of these units.
        let high = f32::from(high_word(random, at));
        let (is_one, is_zero) = (high + 1.0 <= cut - DOUBT, high >= cut + DOUBT);
        ones[at] = u8::from(is_one);
        open[at] = u8::from(!is_one & !is_zero);
    }
    (packed(&ones), packed(&open))
}

/// Bytes of 0 and 1 as bits.
#[inline(always)]
fn packed(bits: &[u8; BLOCK]) -> u64 {
    // The product moves bit 0 of byte i to bit 56 + i.
    let pack = |eight: &[u8; 8]| (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    let mut packed = [0; BLOCK / 8];
    for (byte, eight) in packed.iter_mut().zip(bits.as_chunks::<8>().0) {
        *byte = pack(eight);
    }
    u64::from_le_bytes(packed)
}

/// [`cut`] in units of 2⁻¹⁶, in f32 and within half of [`DOUBT`].
#[inline(always)]
fn coarse_cut(x: f32, inverse_sigma: f32, deviations: f32) -> f32 {
    let product = x.abs() * inverse_sigma;
    let z = if product < deviations { product } else { deviations };
    let square = z * z;
    let sum = |c: [f64; 5]| {
        let [a, b, c, d, e] = [c[0] as f32, c[1] as f32, c[2] as f32, c[3] as f32, c[4] as f32];
        a + square * (b + square * (c + square * (d + square * e)))
    };
    let root = 1.0 + z * (sum(ODD_POWERS) + z * sum(EVEN_POWERS));
    let square = root * root;
    let fourth = square * square;
    let eighth = fourth * fourth;
    (32_768.0 * (1.0 - 1.0 / (eighth * eighth))).copysign(x)
}

/// Q(z) = (2 − 2Φ(z))^(−1/16) on [0, 6.5] is about 1 + Σ cₖ·zᵏ, k = 1 to 10: coefficients of odd and of even powers,
/// ascending. A least-squares fit, reweighted towards the least maximal error of 1 − Q⁻¹⁶: Φ is off by at most
/// 4.8e-11, that is 0.21 units of 2⁻³². Two sums that do not wait for each other take less time than one.
const ODD_POWERS: [f64; 5] = [
    0.049867785174055136,
    0.0032837095669183566,
    4.066263039302128e-05,
    -3.6438870704840203e-06,
    -7.131990275844114e-08,
];
const EVEN_POWERS: [f64; 5] = [
    0.02113776638966844,
    3.7392949626873756e-05,
    1.3943798425021693e-05,
    7.352919595333177e-07,
    3.6346798563186297e-09,
];

/// Beyond this many standard deviations the threshold stays where it is.
const MAX_DEVIATIONS: f64 = 6.5;

/// The same for [`OneBit::clipped`], whose loss is proved up to here.
const CLIPPED: f64 = 1.0;

/// Taken off the magnitude of the cut, in units of 2⁻³²: counting integers below it may round it up by one, the fit
/// may be off by 0.21, and the f64 arithmetic by less than 2⁻¹⁰.
const MARGIN: f64 = 1.25;

/// The cut s for which the bit is 1 when a uniform 32-bit integer with sign is below s, with s ≈ 2³²·(Φ(x/σ) − ½).
///
/// ⌈s⌉ + 2³¹ of the 2³² integers are, and |⌈s⌉| ≤ 2³²·|Φ(x/σ) − ½|, less by at most 3. Free of branches.
#[inline(always)]
fn cut(x: f32, inverse_sigma: f64, deviations: f64) -> f64 {
    let z = (f64::from(x.abs()) * inverse_sigma).min(deviations);
    let sum = |coefficients: [f64; 5]| coefficients.iter().rev().fold(0.0, |sum, c| sum * (z * z) + c);
    let root = 1.0 + z * (sum(ODD_POWERS) + z * sum(EVEN_POWERS));
    let square = root * root;
    let fourth = square * square;
    let eighth = fourth * fourth;
    let distance = 2_147_483_648.0 * (1.0 - 1.0 / (eighth * eighth));
    (distance - MARGIN).max(0.0).copysign(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and words at which each bit of a block is decided by one unit of 2⁻³².
    #[test]
    fn every_bit_is_one_comparison_with_its_own_cut() {
        for (offset, sigma) in [(0, 1.0), (64, 0.3), (128, 7.0), (64, 1e-35)] {
            let cut_at = |value| cut(value, 1.0 / sigma, MAX_DEVIATIONS);
            let values: [f32; BLOCK] = std::array::from_fn(|i| 0.11 * (i as f32 - 31.0));
            let words: [i32; BLOCK] = std::array::from_fn(|i| {
                let cut = cut_at(values[i]).ceil() as i32;
                if (i * i + offset).is_multiple_of(3) { cut } else { cut - 1 }
            });
            let mut random = [0; 2 * BLOCK];
            for (bytes, word) in random.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *bytes = ((word >> 16) as i16).to_le_bytes();
            }
            let mut low = words.iter().map(|&word| word as u16);
            let packed = block(&values, &random, (1.0 / sigma, MAX_DEVIATIONS), u64::MAX, &mut || low.next().unwrap());
            for (i, word) in words.into_iter().enumerate() {
                let below = f64::from(word) < cut_at(values[i]);
                assert_eq!(packed >> i & 1 == 1, below, "value {i}");
                assert_eq!(below, !(i * i + offset).is_multiple_of(3), "value {i}");
            }
        }
    }

    #[test]
    fn coarse_cuts_are_off_by_less_than_half_the_doubt() {
        for deviations in [CLIPPED, MAX_DEVIATIONS] {
            for i in -700_000..=700_000 {
                let x = i as f32 * 1e-5;
                let off = f64::from(coarse_cut(x, 1.0, deviations as f32)) - cut(x, 1.0, deviations) / 65_536.0;
                assert!(off.abs() < f64::from(DOUBT / 2.0), "{x}: {off}");
            }
        }
    }

    /// Whatever the upper bits, what they decide is what all 32 would, and few stay open.
    #[test]
    fn the_upper_bits_decide_as_all_would() {
        let mut open_bits = 0;
        for value in [-3.0_f32, -0.4, -1e-4, 0.0, 0.07, 0.9, 2.2, 8.0] {
            let exact = cut(value, 1.0, MAX_DEVIATIONS);
            for first in (i16::MIN..=i16::MAX).step_by(BLOCK) {
                let mut random = [0; 2 * BLOCK];
                for (bytes, i) in random.as_chunks_mut::<2>().0.iter_mut().zip(0..) {
                    *bytes = (first + i).to_le_bytes();
                }
                let values = [value; BLOCK];
                let (ones, open) = coarse_bits(&values, &random, 1.0, MAX_DEVIATIONS as f32);
                assert_eq!((ones, open), coarse_bits_portable(&values, &random, 1.0, MAX_DEVIATIONS as f32));
                for at in (0..BLOCK).filter(|at| open >> at & 1 == 0) {
                    let lowest = f64::from(i32::from(high_word(&random, at)) << 16);
                    let decided = [lowest, lowest + 65_535.0].map(|word| word < exact);
                    assert_eq!(decided, [ones >> at & 1 == 1; 2], "{value}, bit {at} from {first}");
                }
                open_bits += open.count_ones();
            }
        }
        assert!(open_bits <= 3 * 8, "{open_bits}");
    }
}
