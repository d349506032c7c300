//! What guards numbers that leave every step: a mechanism by its name, σ, and the clip that bounds what a record can move.

use asymflow_privacy::{accountants::Relation, door::Gate};
use serde::{Deserialize, Serialize};

use super::{ModeError, Registry};

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
}

impl Default for GuardSpec {
    fn default() -> Self {
        Self { mechanism: "insecure_none".to_owned(), sigma: None, clip: None }
    }
}

impl GuardSpec {
    /// The gate that releases pass.
    ///
    /// # Errors
    /// An unknown mechanism, or parameters out of range.
    pub fn gate(&self, registry: &Registry, relation: Relation) -> Result<Gate<Vec<f32>>, ModeError> {
        Ok(Gate::new(registry.mechanism(&self.mechanism, self.sigma)?, self.clip, relation)?)
    }

    /// Its name in lists of insecure settings, where it is no guarantee.
    pub fn insecure(&self) -> Vec<String> {
        Some(self.mechanism.clone()).filter(|name| name.starts_with("insecure_")).into_iter().collect()
    }
}
