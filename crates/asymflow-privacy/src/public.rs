//! What protects nothing and says so: signs without noise.

use rand::{CryptoRng, RngExt};

use crate::bits::PackedBits;
use crate::loss::{Loss, Sensitivity};
use crate::mechanism::{Mechanism, MechanismError};

/// Lets the sign of every value out, without noise. It protects nothing and exists as a baseline: the 1-bit quantiser at
/// infinite ε.
#[derive(Clone, Copy, Debug, Default)]
pub struct InsecureSign;

impl Mechanism for InsecureSign {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        "insecure_sign"
    }

    fn loss(&self, _sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Infinite)
    }

    fn apply(&self, x: Vec<f32>, _rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        Ok(PackedBits::pack(&x))
    }
}

/// The sign of every value after Laplace noise of one scale, as the authors' code of Delta has it. It protects nothing that
/// could be stated: the scale is taken from the data, and no norm is bounded. For comparisons with that code only.
#[derive(Clone, Copy, Debug)]
pub struct InsecureLaplaceSign {
    scale: f64,
}

impl InsecureLaplaceSign {
    /// Noise of scale `scale`.
    ///
    /// # Errors
    /// `scale` is not positive and finite.
    pub fn new(scale: f64) -> Result<Self, MechanismError> {
        if scale.is_finite() && scale > 0.0 { Ok(Self { scale }) } else { Err(MechanismError::Scale { scale }) }
    }
}

impl Mechanism for InsecureLaplaceSign {
    type Output = PackedBits;

    fn name(&self) -> &'static str {
        "insecure_laplace_sign"
    }

    fn loss(&self, _sensitivity: Sensitivity) -> Result<Loss, MechanismError> {
        Ok(Loss::Infinite)
    }

    fn apply(&self, x: Vec<f32>, rng: &mut dyn CryptoRng) -> Result<Self::Output, MechanismError> {
        let mut bit = |value: f32| {
            let z = f64::from(value) / self.scale;
            let probability = if z < 0.0 { 0.5 * z.exp() } else { 1.0 - 0.5 * (-z).exp() };
            rng.random::<f64>() < probability
        };
        Ok(PackedBits::from_bools(x.iter().map(|&value| bit(value))))
    }
}
