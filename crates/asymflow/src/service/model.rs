//! A model as it is served: network, split, guard and weights in one file.

use asymflow_privacy::Precision;
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use asymflow_zoo::data::Normalization;
use asymflow_zoo::delta::DeltaError;
use asymflow_zoo::{Network, ParamSpec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::checkpoint::from_f32_bytes;
use crate::delta::{DeltaSpec, Feed, Labels, Sampling};
use crate::job::{JobSpec, ModeKind};
use crate::plan::SplitSpec;
use crate::release::PrivacySpec;
use crate::run::Settings;

/// Largest header and body of a model file: the largest network of the zoo has a few kB of layers and 0.6 GB of weights.
pub(super) const LIMITS: Limits = Limits { header_bytes: 1 << 20, body_bytes: 2 << 30 };
/// Version of the file.
const SCHEMA: u32 = 1;

/// Why a model file cannot be read or written.
#[derive(Debug, Error)]
pub enum ModelFileError {
    /// Not a whole model file.
    #[error("not a complete model file: {0}")]
    Frame(#[from] WireError),
    /// Bytes after the end.
    #[error("{bytes} bytes follow the end of the model")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Written by another version.
    #[error("model file of schema {got}, expected {SCHEMA}")]
    Schema {
        /// Its version.
        got: u32,
    },
    /// The weights do not fit the network.
    #[error("{got} weights do not fit network {network}, which has {expected}")]
    Weights {
        /// Bytes of weights over four.
        got: usize,
        /// Values that the network has.
        expected: usize,
        /// Its name.
        network: String,
    },
    /// The weights could not be sealed.
    #[error(transparent)]
    Stream(#[from] asymflow_engine::streamed::StreamError),
    /// A weight is NaN or infinite.
    #[error("weight {index} is not finite")]
    NonFinite {
        /// Index of the first.
        index: usize,
    },
    /// The settings contradict each other.
    #[error("{what}: {reason}")]
    Settings {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The network cannot be executed, or made into Delta's three.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

/// A model as it is served, without its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedModel {
    schema: u32,
    /// How the network is executed.
    pub mode: ModeKind,
    /// The network.
    pub network: Network,
    /// How it is split.
    pub split: SplitSpec,
    /// What guards releases.
    pub privacy: PrivacySpec,
    /// How it is run as Delta; for that mode.
    pub delta: Option<DeltaSpec>,
    /// Precision of what is sent to the worker.
    pub precision: Precision,
    /// Batch and records of the training, which the thesis' formula takes.
    pub sampling: Sampling,
    /// How images are normalised.
    pub normalization: Normalization,
    /// Names of the classes; none where they have none.
    pub class_names: Vec<String>,
}

impl ServedModel {
    /// The model that a job trained.
    pub fn of(job: &JobSpec, sampling: Sampling, normalization: Normalization, class_names: Vec<String>) -> Self {
        // Clients have no labels.
        let delta = job.delta.clone().map(|spec| DeltaSpec { labels: Labels::Public, ..spec });
        Self {
            schema: SCHEMA,
            mode: job.mode,
            network: job.network.clone(),
            split: job.split.clone(),
            privacy: job.privacy.clone(),
            delta,
            precision: job.precision,
            sampling,
            normalization,
            class_names,
        }
    }

    /// What is executed and under which guard.
    pub const fn settings(&self) -> Settings<'_> {
        Settings {
            mode: self.mode,
            network: &self.network,
            privacy: &self.privacy,
            delta: self.delta.as_ref(),
            precision: self.precision,
        }
    }

    /// Names of the settings that are no guarantee.
    pub fn insecure(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        match (self.mode, &self.delta) {
            (ModeKind::Asymml, _) => match self.privacy.mechanism.as_str() {
                "insecure_none" => names.push("insecure_none"),
                "insecure_float_noise" => names.push("insecure_float_noise"),
                _ => {}
            },
            (ModeKind::Delta, Some(spec)) if spec.feed == Feed::Residual => {
                names.extend(spec.variant.insecure_name());
                if spec.epsilon.is_none() {
                    names.push("insecure_sign");
                }
            }
            _ => {}
        }
        names
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// Weights that do not fit.
    pub fn encode(&self, weights: &[f32]) -> Result<Vec<u8>, ModelFileError> {
        self.check(weights)?;
        let body: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let mut file = Vec::with_capacity(body.len() + 4096);
        write_frame(&mut file, self, &body)?;
        Ok(file)
    }

    /// Inverse of [`ServedModel::encode`]: the model and its weights, flattened.
    ///
    /// # Errors
    /// A truncated or foreign file, or contents that contradict each other.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<f32>), ModelFileError> {
        let mut rest = bytes;
        let Frame { header, body } = read_frame::<Self>(&mut rest, LIMITS)?;
        if !rest.is_empty() {
            return Err(ModelFileError::Trailing { bytes: rest.len() });
        }
        let weights = from_f32_bytes(&body);
        header.check(&weights)?;
        Ok((header, weights))
    }

    /// Checks the model without its weights; returns how many there must be.
    pub(super) fn check_settings(&self) -> Result<usize, ModelFileError> {
        if self.schema != SCHEMA {
            return Err(ModelFileError::Schema { got: self.schema });
        }
        let settings = |what, reason: String| Err(ModelFileError::Settings { what, reason });
        if (self.mode == ModeKind::Delta) != self.delta.is_some() {
            return settings("delta", format!("mode {} and a delta section do not go together", self.mode.name()));
        }
        if !self.class_names.is_empty() && self.class_names.len() > self.network.classes {
            let (names, classes) = (self.class_names.len(), self.network.classes);
            return settings("class_names", format!("{names} names for {classes} classes"));
        }
        let Normalization { mean, std } = &self.normalization;
        let channels = self.network.input.channels;
        let usable = mean.iter().all(|v| v.is_finite()) && std.iter().all(|v| v.is_finite() && *v > 0.0);
        if !usable || mean.len() != channels || std.len() != channels {
            return settings("normalization", format!("expected {channels} finite means and positive deviations"));
        }
        let network = self.settings().stored_network()?;
        Ok(network.parameters().iter().map(ParamSpec::len).sum())
    }

    pub(super) fn check_length(&self, got: usize, expected: usize) -> Result<(), ModelFileError> {
        let network = || self.network.name.clone();
        if got == expected { Ok(()) } else { Err(ModelFileError::Weights { got, expected, network: network() }) }
    }

    fn check(&self, weights: &[f32]) -> Result<(), ModelFileError> {
        self.check_length(weights.len(), self.check_settings()?)?;
        match weights.iter().position(|weight| !weight.is_finite()) {
            Some(index) => Err(ModelFileError::NonFinite { index }),
            None => Ok(()),
        }
    }
}
