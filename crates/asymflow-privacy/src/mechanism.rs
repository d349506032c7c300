//! Mechanisms: functions that decide what leaves, and carry their privacy loss.

use std::fmt::Debug;

use rand::CryptoRng;
use rand_distr::{Distribution, StandardNormal};
use thiserror::Error;

use crate::loss::{Loss, Sensitivity};

/// Why a mechanism cannot run.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MechanismError {
    /// The noise is not a positive finite number.
    #[error("sigma must be positive and finite, got {sigma}")]
    Sigma {
        /// The standard deviation asked for.
        sigma: f64,
    },
    /// The noise is not a positive finite number.
    #[error("scale must be positive and finite, got {scale}")]
    Scale {
        /// The scale asked for.
        scale: f64,
    },
    /// The loss is not a positive finite number.
    #[error("epsilon must be positive and finite, got {epsilon}")]
    Epsilon {
        /// The ε asked for.
        epsilon: f64,
    },
    /// Too few classes to hide a label among.
    #[error("classes must be at least 2, got {classes}")]
    Classes {
        /// The number of classes asked for.
        classes: u32,
    },
    /// The grid is not one on which sums are exact.
    #[error("step must be a power of two between 2^-100 and 2^100, got {step}")]
    Step {
        /// The grid step asked for.
        step: f64,
    },
    /// The noise is too fine or too coarse for its grid.
    #[error("noise of {noise_steps} steps is outside {min} to {max} steps")]
    NoiseSteps {
        /// Noise in steps of the grid.
        noise_steps: f64,
        /// Least noise that the sampler takes.
        min: f64,
        /// Most noise that the sampler takes.
        max: f64,
    },
    /// A value lies too far from zero for the grid.
    #[error("value {index} exceeds {limit}, 2^52 steps of the grid")]
    Range {
        /// Index of the first such value.
        index: usize,
        /// The largest magnitude.
        limit: f64,
    },
    /// A record of another length than the mechanism takes.
    #[error("a record has {record} values for the mechanism, got {values}")]
    Record {
        /// How many values there are.
        values: usize,
        /// How many a record has.
        record: usize,
    },
    /// The sensitivity is not a positive number.
    #[error("l2 sensitivity must be positive, got {l2}")]
    Sensitivity {
        /// The sensitivity given.
        l2: f64,
    },
    /// The l1 sensitivity is missing, or not a positive number.
    #[error("l1 sensitivity must be given and positive, got {l1:?}")]
    SensitivityL1 {
        /// The sensitivity given.
        l1: Option<f64>,
    },
}

/// A function that decides what leaves the trusted part.
pub trait Mechanism: Send + Sync + Debug {
    /// What it lets out.
    type Output;

    /// Name in receipts and configuration; starts with `insecure_` when its guarantee does not hold for what is
    /// computed.
    fn name(&self) -> &'static str;

    /// The privacy map: loss of one release at this sensitivity.
    ///
    /// # Errors
    /// Parameters or a sensitivity for which the mechanism is not defined.
    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError>;

    /// How many values the loss is of, where it is of a record of so many and of no more.
    fn record_values(&self) -> Option<usize> {
        None
    }

    /// Applies the mechanism. Randomness comes from the caller's CSPRNG.
    ///
    /// # Errors
    /// Parameters or values for which the mechanism is not defined.
    fn apply(&self, x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError>;
}

/// `sigma`, if it is a standard deviation.
pub(crate) fn checked_sigma(sigma: f64) -> Result<f64, MechanismError> {
    if sigma.is_finite() && sigma > 0.0 { Ok(sigma) } else { Err(MechanismError::Sigma { sigma }) }
}

/// The l2 bound, which may be infinite.
pub(crate) fn checked_l2(sensitivity: Sensitivity) -> Result<f64, MechanismError> {
    let l2 = sensitivity.l2();
    if l2 > 0.0 { Ok(l2) } else { Err(MechanismError::Sensitivity { l2 }) }
}

/// Lets everything out as it is. It protects nothing and exists as a baseline.
#[derive(Clone, Copy, Debug, Default)]
pub struct InsecureNone;

impl Mechanism for InsecureNone {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "insecure_none"
    }

    fn loss(&self, _sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Infinite)
    }

    fn apply(&self, x: Vec<f32>, _rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        Ok(x)
    }
}

/// Adds independent N(0, σ²) noise to every value, in floating point: for simulation only.
///
/// # Guarantee
/// None for what is computed. The stated loss, μ = Δ₂/σ, is that of real-valued noise; which floating-point numbers can
/// come out depends on the value that they hide (Mironov 2012). Release with
/// [`DiscreteGaussian`](crate::mechanisms::DiscreteGaussian) or [`OneBit`](crate::mechanisms::OneBit) instead.
#[derive(Clone, Copy, Debug)]
pub struct InsecureFloatNoise {
    sigma: f64,
}

impl InsecureFloatNoise {
    /// Noise of standard deviation `sigma`.
    ///
    /// # Errors
    /// `sigma` is not positive and finite.
    pub fn new(sigma: f64) -> Result<Self, MechanismError> {
        checked_sigma(sigma).map(|sigma| Self { sigma })
    }

    /// Standard deviation of the noise.
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }
}

impl Mechanism for InsecureFloatNoise {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "insecure_float_noise"
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Gaussian { mu: checked_l2(sensitivity)? / self.sigma }.checked())
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        for value in &mut x {
            let noise: f64 = StandardNormal.sample(rng);
            *value += (self.sigma * noise) as f32;
        }
        Ok(x)
    }
}
