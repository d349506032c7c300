//! What guards numbers that leave every step: a mechanism by its name, σ, and the clip that bounds what a record can move.

use asymflow_privacy::{accountants::Relation, door::Gate, mechanisms::ResidualNoise};
use serde::{Deserialize, Serialize};

use super::{ModeError, Registry, SizedNoise};

/// Which mechanism guards what leaves, and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardSpec {
    /// Name of the mechanism.
    pub mechanism: String,
    /// Standard deviation of the noise on every released value; for all but `insecure_none`.
    pub sigma: Option<f64>,
    /// l2 norm to which every record's release is clipped; without it no ε can be given.
    pub clip: Option<f64>,
    /// κ: σ is so many times the size of what leaves, layer by layer; for mechanism `residual_noise`.
    pub kappa: Option<f64>,
}

impl Default for GuardSpec {
    fn default() -> Self {
        Self { mechanism: "insecure_none".to_owned(), sigma: None, clip: None, kappa: None }
    }
}

/// For studies, faster than exact noise.
const FLOAT_NOISE: &str = "insecure_float_noise";

impl GuardSpec {
    /// The gate that releases pass.
    ///
    /// # Errors
    /// An unknown mechanism, or parameters out of range.
    pub fn gate(&self, registry: &Registry, relation: Relation) -> Result<Gate<Vec<f32>>, ModeError> {
        let takes_kappa = self.mechanism == ResidualNoise::NAME || self.mechanism == FLOAT_NOISE;
        if self.kappa.map_or(self.mechanism == ResidualNoise::NAME, |_| !takes_kappa) {
            let what = "privacy.kappa with mechanism residual_noise, or with insecure_float_noise and nothing else";
            return Err(ModeError::Settings { mode: "asymml", what });
        }
        if self.kappa.is_some() && (self.sigma.is_some() || self.clip.is_some()) {
            let what = "neither privacy.sigma nor privacy.clip beside privacy.kappa, which bounds no sensitivity";
            return Err(ModeError::Settings { mode: "asymml", what });
        }
        let sigma = self.sigma.or(self.kappa);
        Ok(Gate::new(registry.mechanism(&self.mechanism, sigma)?, self.clip, relation)?)
    }

    /// Gates of noise that is a multiple of what it hides, where κ is given.
    ///
    /// # Errors
    /// An unknown mechanism.
    pub(super) fn sized(&self, registry: &Registry, relation: Relation) -> Result<Option<SizedNoise>, ModeError> {
        let make = registry.maker(&self.mechanism)?;
        Ok(self.kappa.map(|kappa| SizedNoise::new(kappa, make, relation)))
    }

    /// Its name in lists of insecure settings, where it is no guarantee.
    pub fn insecure(&self) -> Vec<String> {
        let is_none = self.mechanism.starts_with("insecure_") || self.kappa.is_some();
        if is_none { vec![self.mechanism.clone()] } else { Vec::new() }
    }
}
