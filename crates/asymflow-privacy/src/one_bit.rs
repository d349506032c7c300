//! One bit a value: the sign of a noisy value, sampled without the noise.

use rand::CryptoRng;
use zeroize::Zeroize;

use crate::bits::PackedBits;
use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError, checked_l2, checked_sigma};

/// Values handled together: eight bytes of output, 256 bytes of randomness.
const BLOCK: usize = 64;

/// Releases the sign of x + N(0, σ²) for every value x: bit 1 with probability Φ(x/σ) (Niu 2024, equation 3.6).
///
/// No noise is ever made. Every bit is one comparison of 32 uniform bits with an integer threshold T ≈ 2³²·Φ(x/σ).
///
/// # Guarantee
/// That of Gaussian noise of standard deviation σ, μ = Δ₂/σ, exactly and with nothing added for finite precision: the
/// sign is post-processing of the noisy value, and T is always rounded towards 2³¹, so that |T/2³² − ½| ≤ |Φ(x/σ) − ½|.
/// The bits are therefore exactly those of some record x' with |x'ᵢ| ≤ |xᵢ| for every i, which keeps within the clip bound
/// of the record, and so within the sensitivity for either relation. The cost is a bias of at most 2⁻³⁰ in a probability.
///
/// # Time
/// The same instructions run for every value: no branch and no memory address depends on one. The number of values,
/// and whatever division and conversion of the processor take, are not hidden.
#[derive(Clone, Copy, Debug)]
pub struct OneBit {
    sigma: f64,
}

impl OneBit {
    /// Noise of standard deviation `sigma`.
    ///
    /// # Errors
    /// `sigma` is not positive and finite, or its inverse is not.
    pub fn new(sigma: f64) -> Result<Self, MechanismError> {
        let sigma = checked_sigma(sigma)?;
        if sigma.recip().is_normal() { Ok(Self { sigma }) } else { Err(MechanismError::Sigma { sigma }) }
    }

    /// Standard deviation of the noise, in the unit of the values.
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }

    /// Probability of a 1 for value `x`: what the sampler draws with, a multiple of 2⁻³² within 2⁻³⁰ of Φ(x/σ).
    pub fn probability(&self, x: f32) -> f64 {
        f64::from(threshold(x, self.sigma.recip())) / 4_294_967_296.0
    }
}

impl Mechanism for OneBit {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        "one_bit"
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Gaussian { mu: checked_l2(sensitivity)? / self.sigma }.checked())
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        let inverse_sigma = self.sigma.recip();
        let mut bytes = vec![0_u8; x.len().div_ceil(8)];
        let mut random = [0_u8; 4 * BLOCK];
        let mut values = [0.0_f32; BLOCK];
        for (input, output) in x.chunks(BLOCK).zip(bytes.chunks_mut(BLOCK / 8)) {
            rng.fill_bytes(&mut random);
            values[..input.len()].copy_from_slice(input);
            let mut packed = block(&values, &random, inverse_sigma);
            if input.len() < BLOCK {
                packed &= (1 << input.len()) - 1;
            }
            output.copy_from_slice(&packed.to_le_bytes()[..output.len()]);
        }
        let len = x.len();
        x.zeroize();
        values.zeroize();
        random.zeroize();
        Ok(PackedBits::from_zero_padded(bytes, len))
    }
}

/// The bits of one block, least significant first.
fn block(values: &[f32; BLOCK], random: &[u8; 4 * BLOCK], inverse_sigma: f64) -> u64 {
    let mut bits = [0_u8; BLOCK];
    for ((bit, &value), word) in bits.iter_mut().zip(values).zip(random.as_chunks::<4>().0) {
        *bit = u8::from(u32::from_le_bytes(*word) < threshold(value, inverse_sigma));
    }
    bits.iter().enumerate().fold(0, |packed, (i, &bit)| packed | (u64::from(bit) << i))
}

/// Coefficients of Q(z) = (2 − 2Φ(z))^(−1/16) on [0, 6.5] for powers 1 to 10; Q(0) = 1. Least-squares fit, reweighted towards
/// the least maximal error of 1 − Q⁻¹⁶, which is below 2⁻³³ (4.8e-11 in Φ, 0.21 units of the threshold).
const ROOT_OF_TAIL: [f64; 10] = [
    0.049867785174055136,
    0.02113776638966844,
    0.0032837095669183566,
    3.7392949626873756e-05,
    4.066263039302128e-05,
    1.3943798425021693e-05,
    -3.6438870704840203e-06,
    7.352919595333177e-07,
    -7.131990275844114e-08,
    3.6346798563186297e-09,
];

/// Beyond this many standard deviations the threshold stays where it is.
const MAX_DEVIATIONS: f64 = 6.5;

/// Subtracted before rounding to the nearest integer: half a unit makes that rounding down, one covers the fit
/// (0.21 units) and the f64 arithmetic (below 2⁻¹⁰ units).
const MARGIN: f64 = 1.5;

/// T with |T − 2³¹| ≤ 2³²·|Φ(x/σ) − ½|, at least that less 3; within [1, 2³² − 1]. Free of branches.
#[inline(always)]
fn threshold(x: f32, inverse_sigma: f64) -> u32 {
    let z = (f64::from(x.abs()) * inverse_sigma).min(MAX_DEVIATIONS);
    let root = 1.0 + z * ROOT_OF_TAIL.iter().rev().fold(0.0, |sum, c| sum * z + c);
    let square = root * root;
    let fourth = square * square;
    let eighth = fourth * fourth;
    let distance = 2_147_483_648.0 * (1.0 - 1.0 / (eighth * eighth));
    // Adding 2^52 leaves the rounded integer in the low bits: a conversion that every vector unit has.
    let integer = ((distance - MARGIN).max(0.0) + 4_503_599_627_370_496.0).to_bits() as u32;
    let sign = (x.to_bits().cast_signed() >> 31).cast_unsigned(); // all ones for negative x
    0x8000_0000_u32.wrapping_add((integer ^ sign).wrapping_sub(sign))
}
