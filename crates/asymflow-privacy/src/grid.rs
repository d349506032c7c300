//! Exact noise on a grid: discrete Gaussian and discrete Laplace.

use rand::CryptoRng;

use crate::exact::{MAX_SIGMA, MIN_SIGMA, Variance, Words};
use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError, checked_l2, checked_sigma};

/// Largest magnitude in steps that a value may have; noise added to it stays within i64.
const MAX_STEPS: f64 = 4_503_599_627_370_496.0; // 2^52

/// So many steps of discrete Gaussian noise lose what continuous noise loses.
const CONTINUOUS_STEPS: f64 = 16.0;

/// Most steps of Laplace noise: with 2^8 to 2^9 further fractions of a step, products stay within 64 bits.
const MAX_LAPLACE_STEPS: f64 = 16_777_216.0; // 2^24

/// Rounds `x` towards zero to the grid and adds `noise` to every value.
///
/// Rounding towards zero never increases a norm, so what bounds the record also bounds the rounded record. The sum is
/// exact in integers; making it f32 (which is exact below 2^24 steps) is post-processing.
fn add_on_grid(x: &mut [f32], step: f64, mut noise: impl FnMut() -> i64) -> Result<(), MechanismError> {
    let limit = MAX_STEPS * step;
    if let Some(index) = x.iter().position(|value| f64::from(value.abs()) > limit) {
        return Err(MechanismError::Range { index, limit });
    }
    for value in x {
        let steps = (f64::from(*value) / step) as i64; // exact quotient, `as` truncates
        *value = ((steps + noise()) as f64 * step) as f32;
    }
    Ok(())
}

/// `step`, if it is a power of two that keeps quotients and products exact.
fn checked_step(step: f64) -> Result<f64, MechanismError> {
    let mantissa_is_zero = step.to_bits().trailing_zeros() >= 52;
    let in_range = (2.0_f64.powi(-100)..=2.0_f64.powi(100)).contains(&step);
    if in_range && mantissa_is_zero { Ok(step) } else { Err(MechanismError::Step { step }) }
}

/// The power of two that lies 2^20 below `scale`, which is positive and finite.
fn fine_step(scale: f64) -> f64 {
    2.0_f64.powi(scale.log2().floor().clamp(-80.0, 100.0) as i32 - 20)
}

/// Adds discrete Gaussian noise on a fixed-point grid: the exact release of numbers.
///
/// Values are rounded towards zero to multiples of `step`; the noise is `step`·Y with P(Y = y) ∝ exp(−y²·step²/(2σ²)),
/// sampled exactly in integers (Canonne, Kamath and Steinke 2020, algorithm 3).
///
/// # Guarantee
/// From 16 steps of noise on, that of continuous noise of variance σ² − 9·`step`², μ = Δ₂/√(σ² − 9·`step`²), for vectors of any
/// length: Gaussian noise of that variance, each value of which is then rounded to y with probability proportional to
/// exp(−(y − c)²/18) in steps, has the probabilities of discrete noise of σ up to a factor of 1 ± 2⁻²⁵⁰ a value, by Poisson's
/// summation formula (Peikert 2010, theorem 3.1). With less noise, ρ-zCDP with ρ = Δ₂²/(2σ²) (Canonne, Kamath and Steinke
/// 2020); one integer has its own distribution of losses,
/// [`Event::DiscreteGaussian`](crate::accountants::Event::DiscreteGaussian).
///
/// Either holds for every bound that [`Sensitivity`] states: rounding towards zero does not increase the norm of a record. If what is released is not a
/// clipped record but a function of several, state the sensitivity of the rounded function: rounding n values moves
/// it by up to `step`·√n. The variance is rounded up, by at most 2⁻³⁹ of itself.
///
/// Not covered: the time of a release depends on the noise drawn (not on the data).
#[derive(Clone, Copy, Debug)]
pub struct DiscreteGaussian {
    sigma: f64,
    step: f64,
    variance: Variance,
}

impl DiscreteGaussian {
    /// Noise of standard deviation `sigma` on multiples of `step`.
    ///
    /// # Errors
    /// `sigma` is not positive and finite, `step` is not a power of two, or `sigma` is not 2⁻⁴ to 2²⁴ steps.
    pub fn new(sigma: f64, step: f64) -> Result<Self, MechanismError> {
        let (sigma, step) = (checked_sigma(sigma)?, checked_step(step)?);
        let noise_steps = sigma / step;
        let error = MechanismError::NoiseSteps { noise_steps, min: MIN_SIGMA, max: MAX_SIGMA };
        let variance = Variance::at_least(noise_steps).ok_or(error)?;
        Ok(Self { sigma, step, variance })
    }

    /// Noise of standard deviation `sigma` on a grid about 2²⁰ times finer.
    ///
    /// # Errors
    /// `sigma` is not positive and finite, or lies outside 2⁻⁸⁰ to 2¹⁰⁰.
    pub fn fine(sigma: f64) -> Result<Self, MechanismError> {
        Self::new(checked_sigma(sigma)?, fine_step(sigma))
    }

    /// Standard deviation of the noise, in the unit of the values.
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }

    /// Distance of neighbouring grid points, in the unit of the values.
    pub const fn step(&self) -> f64 {
        self.step
    }
}

impl Mechanism for DiscreteGaussian {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "discrete_gaussian"
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        let mu = checked_l2(sensitivity)? / self.sigma;
        let steps = self.sigma / self.step;
        let loss = if steps < CONTINUOUS_STEPS {
            Loss::Zcdp { rho: 0.5 * mu * mu }
        } else {
            Loss::Gaussian { mu: mu / (1.0 - 9.0 / (steps * steps)).sqrt() }
        };
        Ok(loss.checked())
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        let mut words = Words::new(rng);
        add_on_grid(&mut x, self.step, || words.discrete_gaussian(&self.variance))?;
        Ok(x)
    }
}

/// Adds discrete Laplace (two-sided geometric) noise on a fixed-point grid.
///
/// Values are rounded towards zero to multiples of `step`; the noise is `step`·Y with P(Y = y) ∝ exp(−|y|·step/scale),
/// sampled exactly in integers (Canonne, Kamath and Steinke 2020, algorithm 2).
///
/// # Guarantee
/// Pure ε-differential privacy with ε = Δ₁/scale, where Δ₁ is the l1 bound of [`Sensitivity`], which must be given.
/// Rounding towards zero does not increase the norm of a record. The scale is rounded up, by at most 2⁻³² of itself.
///
/// Not covered: the time of a release depends on the noise drawn (not on the data).
#[derive(Clone, Copy, Debug)]
pub struct Laplace {
    scale: f64,
    step: f64,
    /// The scale in 2^-shift steps.
    integer_scale: u64,
    shift: u32,
}

impl Laplace {
    /// Noise of scale `scale` on multiples of `step`.
    ///
    /// # Errors
    /// `scale` is not positive and finite, `step` is not a power of two, or `scale` is not 2⁻⁴ to 2²⁴ steps.
    pub fn new(scale: f64, step: f64) -> Result<Self, MechanismError> {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(MechanismError::Scale { scale });
        }
        let step = checked_step(step)?;
        let noise_steps = scale / step;
        if !(MIN_SIGMA..=MAX_LAPLACE_STEPS).contains(&noise_steps) {
            return Err(MechanismError::NoiseSteps { noise_steps, min: MIN_SIGMA, max: MAX_LAPLACE_STEPS });
        }
        // 33 significant bits or more; noise of 2^20 scales would still fit 64 bits.
        let shift = (32 - noise_steps.log2().floor() as i32).max(0).unsigned_abs();
        let integer_scale = (noise_steps * 2.0_f64.powi(shift.cast_signed())).ceil() as u64;
        Ok(Self { scale, step, integer_scale, shift })
    }

    /// Noise of scale `scale` on a grid about 2²⁰ times finer.
    ///
    /// # Errors
    /// `scale` is not positive and finite, or lies outside 2⁻⁸⁰ to 2¹⁰⁰.
    pub fn fine(scale: f64) -> Result<Self, MechanismError> {
        if scale.is_finite() && scale > 0.0 {
            Self::new(scale, fine_step(scale))
        } else {
            Err(MechanismError::Scale { scale })
        }
    }

    /// Scale of the noise, in the unit of the values; its standard deviation is about √2 times that.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// Distance of neighbouring grid points, in the unit of the values.
    pub const fn step(&self) -> f64 {
        self.step
    }
}

impl Mechanism for Laplace {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "discrete_laplace"
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        match sensitivity.l1() {
            Some(l1) if l1 > 0.0 => Ok(Loss::Pure { epsilon: l1 / self.scale }.checked()),
            l1 => Err(MechanismError::SensitivityL1 { l1 }),
        }
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        let mut words = Words::new(rng);
        add_on_grid(&mut x, self.step, || words.discrete_laplace(self.integer_scale, self.shift))?;
        Ok(x)
    }
}
