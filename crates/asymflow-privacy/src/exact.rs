//! Exact samplers in integer arithmetic: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential
//! Privacy" (CKS20), algorithms 1 to 3. No floating-point number is involved, so the distributions are exact given
//! uniform random bits.
//!
//! The number of random words drawn, and so the time, depends on the noise that comes out, but never on private data.

use rand::CryptoRng;
use zeroize::Zeroize;

const BUFFERED: usize = 128;

/// Random words, drawn from the generator in bulk. What was drawn is wiped on drop.
pub(crate) struct Words<'a> {
    rng: &'a mut dyn CryptoRng,
    bytes: [u8; 4 * BUFFERED],
    next: usize,
}

impl<'a> Words<'a> {
    pub(crate) const fn new(rng: &'a mut dyn CryptoRng) -> Self {
        Self { rng, bytes: [0; 4 * BUFFERED], next: BUFFERED }
    }

    fn word(&mut self) -> u32 {
        if self.next == BUFFERED {
            self.rng.fill_bytes(&mut self.bytes);
            self.next = 0;
        }
        let word = self.bytes.as_chunks::<4>().0[self.next];
        self.next += 1;
        u32::from_le_bytes(word)
    }

    pub(crate) fn long_word(&mut self) -> u64 {
        (u64::from(self.word()) << 32) | u64::from(self.word())
    }

    /// A uniform integer below `bound`, which is positive (Lemire 2019: multiply, reject the uneven remainder).
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let mut product = u64::from(self.word()) * u64::from(bound);
        if (product as u32) < bound {
            let uneven = bound.wrapping_neg() % bound;
            while (product as u32) < uneven {
                product = u64::from(self.word()) * u64::from(bound);
            }
        }
        (product >> 32) as u32
    }

    /// The same for a `bound` beyond 32 bits.
    fn below_long(&mut self, bound: u64) -> u64 {
        if let Ok(bound) = u32::try_from(bound) {
            return u64::from(self.below(bound));
        }
        let mask = u64::MAX >> (bound - 1).leading_zeros();
        loop {
            let draw = self.long_word() & mask;
            if draw < bound {
                return draw;
            }
        }
    }

    /// True with probability `numerator`/`denominator`, for `numerator` ≤ `denominator` < 2⁹⁸.
    ///
    /// Compares a uniform real number, digit by digit to the base 2³⁰, with the fraction: one digit nearly always
    /// decides.
    fn bernoulli(&mut self, mut numerator: u128, denominator: u128) -> bool {
        loop {
            let digit = u128::from(self.word() >> 2);
            let (scaled, below) = (numerator << 30, denominator * digit);
            if scaled <= below {
                return false;
            }
            numerator = scaled - below;
            if numerator >= denominator {
                return true;
            }
        }
    }

    /// True with probability exp(−`numerator`/`denominator`), for `numerator` ≤ `denominator` < 2⁹⁸ (CKS20 algorithm
    /// 1).
    ///
    /// The algorithm draws Bernoulli(γ/k) for k = 1, 2, … until the first failure; here as the conjunction of the
    /// independent Bernoulli(γ) and Bernoulli(1/k), which needs no product that could overflow.
    fn exp_minus_fraction(&mut self, numerator: u128, denominator: u128) -> bool {
        let mut k = 1_u32;
        while (k == 1 || self.below(k) == 0) && self.bernoulli(numerator, denominator) {
            k += 1;
        }
        !k.is_multiple_of(2)
    }

    /// True with probability e⁻¹.
    fn exp_minus_one(&mut self) -> bool {
        let mut k = 2_u32;
        while self.below(k) == 0 {
            k += 1;
        }
        !k.is_multiple_of(2)
    }

    /// True with probability exp(−`numerator`/`denominator`).
    fn exp_minus(&mut self, numerator: u128, denominator: u128) -> bool {
        let mut rest = numerator;
        while rest > denominator {
            if !self.exp_minus_one() {
                return false;
            }
            rest -= denominator;
        }
        self.exp_minus_fraction(rest, denominator)
    }

    /// A magnitude X ≥ 0 with P(X = x) ∝ exp(−x/`scale`), for `scale` ≥ 1 (first part of CKS20 algorithm 2).
    fn geometric(&mut self, scale: u64) -> u64 {
        loop {
            let remainder = self.below_long(scale);
            if !self.exp_minus_fraction(u128::from(remainder), u128::from(scale)) {
                continue;
            }
            let mut whole = 0_u64;
            while self.exp_minus_one() {
                whole += 1;
            }
            return remainder + whole * scale;
        }
    }

    /// Discrete Laplace noise: P(y) ∝ exp(−|y|·2^`shift`/`scale`) (CKS20 algorithm 2 with t = `scale`, s = 2^`shift`).
    pub(crate) fn discrete_laplace(&mut self, scale: u64, shift: u32) -> i64 {
        loop {
            let magnitude = (self.geometric(scale) >> shift).cast_signed();
            let negative = self.word() & 1 == 1;
            if negative && magnitude == 0 {
                continue; // zero would come out twice as often as it should
            }
            return if negative { -magnitude } else { magnitude };
        }
    }

    /// Discrete Gaussian noise (CKS20 algorithm 3).
    pub(crate) fn discrete_gaussian(&mut self, variance: &Variance) -> i64 {
        loop {
            let proposal = self.discrete_laplace(variance.laplace_scale, 0);
            if let Some(numerator) = variance.rejection_numerator(proposal.unsigned_abs())
                && self.exp_minus(numerator, variance.rejection_denominator)
            {
                return proposal;
            }
        }
    }
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// A rational variance a/b of the discrete Gaussian, with what the sampler derives from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variance {
    numerator: u128,
    /// t = ⌊σ⌋ + 1.
    laplace_scale: u64,
    /// b·t, b being the denominator.
    scaled_laplace: u128,
    /// 2·a·b·t² as one number.
    rejection_denominator: u128,
}

/// Least and most standard deviation for which the numbers below fit 128 bits with room.
pub(crate) const MIN_SIGMA: f64 = 0.0625;
pub(crate) const MAX_SIGMA: f64 = 16_777_216.0;

impl Variance {
    /// The least rational a/b ≥ `sigma`² with a of 41 bits or more, for `sigma` within [`MIN_SIGMA`], [`MAX_SIGMA`];
    /// `None` outside.
    pub(crate) fn at_least(sigma: f64) -> Option<Self> {
        if !(MIN_SIGMA..=MAX_SIGMA).contains(&sigma) {
            return None;
        }
        // b = 2^f such that a ≈ 2^40: relative granularity 2^-40. The product is rounded once, by at most 2^-53.
        let square = sigma * sigma * (1.0 + f64::EPSILON);
        let exponent = (40 - square.log2().floor() as i32).max(0);
        let numerator = (square * 2.0_f64.powi(exponent)).ceil() as u128;
        let denominator = 1_u128 << exponent;
        let laplace_scale = sigma.floor() as u64 + 1;
        let scaled_laplace = denominator * u128::from(laplace_scale);
        Some(Self {
            numerator,
            laplace_scale,
            scaled_laplace,
            rejection_denominator: 2 * numerator * scaled_laplace * u128::from(laplace_scale),
        })
    }

    /// The numerator of γ = (|y| − σ²/t)²/(2σ²) over [`Self::rejection_denominator`], that is (|y|·b·t − a)².
    ///
    /// `None` where it does not fit 128 bits. The proposal is then more than 2¹⁵ of its own scales out, which happens
    /// with probability below exp(−2¹⁵), and would be accepted with a probability far below that.
    fn rejection_numerator(&self, magnitude: u64) -> Option<u128> {
        let distance = self.scaled_laplace.checked_mul(u128::from(magnitude))?.abs_diff(self.numerator);
        distance.checked_mul(distance)
    }
}
