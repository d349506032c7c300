//! Noise of the size of what it hides.

use rand::CryptoRng;

use crate::grid::DiscreteGaussian;
use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};

/// Adds discrete Gaussian noise whose σ is meant to be of the size of the values themselves, as public data show it.
///
/// # Guarantee
/// That of [`DiscreteGaussian`] at this σ, where a clip bounds the sensitivity; but for n values of root mean square σ/κ, μ is about √n/κ,
/// which protects nothing that ε could say. Without a clip the loss is infinite. What it stops is measured by attacks, and its name stands
/// in every list of settings that are no guarantee.
#[derive(Clone, Copy, Debug)]
pub struct ResidualNoise(DiscreteGaussian);

impl ResidualNoise {
    /// What it is called in configuration and receipts.
    pub const NAME: &'static str = "residual_noise";

    /// Noise of standard deviation `sigma`.
    ///
    /// # Errors
    /// As [`DiscreteGaussian::fine`].
    pub fn new(sigma: f64) -> Result<Self, MechanismError> {
        DiscreteGaussian::fine(sigma).map(Self)
    }
}

impl Mechanism for ResidualNoise {
    type Output = Vec<f32>;

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn loss(&self, sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        self.0.loss(sensitivity)
    }

    fn apply(&self, x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        self.0.apply(x, rng)
    }
}
