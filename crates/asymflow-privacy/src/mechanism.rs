//! Mechanisms: functions that decide what leaves, and carry their privacy loss.

use std::fmt::Debug;

use rand::CryptoRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which inputs count as neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// One record is removed (replaced by zero): a record clipped to norm C moves the output by C.
    #[default]
    Remove,
    /// One record is replaced by another: a record clipped to norm C moves the output by 2C.
    Replace,
}

/// Largest l2 change of the released vector between neighbouring inputs; `f64::INFINITY` when unclipped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    l2: f64,
    relation: Relation,
}

impl Sensitivity {
    /// Sensitivity of one record clipped to l2 norm `clip`.
    pub fn of_clipped(clip: f64, relation: Relation) -> Self {
        let factor = match relation {
            Relation::Remove => 1.0,
            Relation::Replace => 2.0,
        };
        Self { l2: factor * clip, relation }
    }

    /// No bound: no noise gives a finite loss.
    pub const fn unbounded(relation: Relation) -> Self {
        Self { l2: f64::INFINITY, relation }
    }

    /// The l2 bound.
    pub const fn l2(&self) -> f64 {
        self.l2
    }

    /// The relation it holds for.
    pub const fn relation(&self) -> Relation {
        self.relation
    }
}

/// Privacy loss of one release for one record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Loss {
    /// ρ-zero-concentrated differential privacy.
    Zcdp {
        /// ρ; infinite when the sensitivity is unbounded.
        rho: f64,
    },
    /// No guarantee at all.
    Infinite,
}

/// Why a mechanism cannot run.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MechanismError {
    /// The noise is not a positive finite number.
    #[error("sigma must be positive and finite, got {sigma}")]
    Sigma {
        /// The standard deviation asked for.
        sigma: f64,
    },
    /// The sensitivity is not a positive number.
    #[error("l2 sensitivity must be positive, got {l2}")]
    Sensitivity {
        /// The sensitivity given.
        l2: f64,
    },
}

/// A function that decides what leaves the trusted part.
pub trait Mechanism: Send + Sync + Debug {
    /// What it lets out.
    type Output;

    /// Name in receipts and configuration; starts with `insecure_` when there is no guarantee.
    fn name(&self) -> &'static str;

    /// The privacy map: loss of one release at this sensitivity.
    ///
    /// # Errors
    /// Parameters or a sensitivity for which the mechanism is not defined.
    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError>;

    /// Applies the mechanism. Randomness comes from the caller's CSPRNG.
    ///
    /// # Errors
    /// Parameters for which the mechanism is not defined.
    fn apply(&self, x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError>;
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

/// Adds independent N(0, σ²) noise to every value.
///
/// # Guarantee
/// ρ-zCDP with ρ = Δ²/(2σ²) for real-valued noise (Bun and Steinke 2016, proposition 1.6). The noise
/// here is sampled in floating point, which the guarantee does not cover (Mironov 2012).
#[derive(Clone, Copy, Debug)]
pub struct Gaussian {
    sigma: f64,
}

impl Gaussian {
    /// Noise of standard deviation `sigma`.
    ///
    /// # Errors
    /// `sigma` is not positive and finite.
    pub fn new(sigma: f64) -> Result<Self, MechanismError> {
        if sigma.is_finite() && sigma > 0.0 { Ok(Self { sigma }) } else { Err(MechanismError::Sigma { sigma }) }
    }

    /// Standard deviation of the noise.
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }
}

impl Mechanism for Gaussian {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        "gaussian"
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        let l2 = sensitivity.l2();
        if l2.is_nan() || l2 <= 0.0 {
            return Err(MechanismError::Sensitivity { l2 });
        }
        if l2.is_infinite() {
            return Ok(Loss::Infinite);
        }
        Ok(Loss::Zcdp { rho: l2 * l2 / (2.0 * self.sigma * self.sigma) })
    }

    fn apply(&self, mut x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        for value in &mut x {
            let noise: f64 = StandardNormal.sample(rng);
            *value += (self.sigma * noise) as f32;
        }
        Ok(x)
    }
}
