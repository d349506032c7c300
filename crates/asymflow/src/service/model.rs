//! A model as it is served: network, split, guard and weights in one file.

use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use asymflow_zoo::data::{Normalization, Resize};
use asymflow_zoo::{Network, ops::ParamSpec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::checkpoint::from_f32_bytes;
use crate::modes::{Facts, ModeError, ModeRef, PrivacyTerms, Registry, Sampling};

/// Largest header and body of a model file: the largest network of the zoo has a few kB of layers and 0.6 GB of weights.
pub(super) const LIMITS: Limits = Limits { header_bytes: 1 << 20, body_bytes: 2 << 30 };
/// Version of the file.
const SCHEMA: u32 = 2;

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
    /// No mode can be made of it.
    #[error(transparent)]
    Mode(#[from] Box<ModeError>),
}

/// A model as it is served, without its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedModel {
    schema: u32,
    /// How the network is executed.
    pub mode: ModeRef,
    /// Other modes that can go on with the same weights.
    pub others: Vec<ModeRef>,
    /// The network.
    pub network: Network,
    /// What every ε is said of.
    pub terms: PrivacyTerms,
    /// Batch and records of the training, which the thesis' formula takes.
    pub sampling: Sampling,
    /// How images are normalised.
    pub normalization: Normalization,
    /// Names of the classes; none where they have none.
    pub class_names: Vec<String>,
    /// How images were resized before training, and have to be before they are asked about.
    #[serde(default)]
    pub resize: Option<Resize>,
}

impl ServedModel {
    /// A model of `network` in `mode`, which some `others` could take over.
    pub fn new(
        (mode, others): (ModeRef, Vec<ModeRef>),
        network: Network,
        terms: PrivacyTerms,
        sampling: Sampling,
        normalization: Normalization,
        class_names: Vec<String>,
    ) -> Self {
        Self { schema: SCHEMA, mode, others, network, terms, sampling, normalization, class_names, resize: None }
    }

    /// The same, of images that are resized.
    pub fn with_resize(self, resize: Option<Resize>) -> Self {
        Self { resize, ..self }
    }

    /// What a mode is told of its service.
    pub const fn facts<'a>(&'a self, registry: &'a Registry) -> Facts<'a> {
        let Self { network, terms, sampling, .. } = self;
        Facts { network, terms, sampling: *sampling, epochs: 0, evaluations: 1, registry }
    }

    /// Changes to another mode that can go on with the same weights.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn serve_as(&mut self, name: &str) -> Result<(), ModelFileError> {
        if self.mode.name == name {
            return Ok(());
        }
        let other = self.others.iter().find(|other| other.name == name).cloned();
        let reason = || format!("a model of mode {} cannot be served as {name:?}", self.mode.name);
        self.mode = other.ok_or_else(|| ModelFileError::Settings { what: "mode", reason: reason() })?;
        Ok(())
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// Weights that do not fit.
    pub fn encode(&self, weights: &[f32], registry: &Registry) -> Result<Vec<u8>, ModelFileError> {
        self.check(weights, registry)?;
        let body: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let mut file = Vec::with_capacity(body.len() + 4096);
        write_frame(&mut file, self, &body)?;
        Ok(file)
    }

    /// Inverse of [`ServedModel::encode`]: the model and its weights, flattened.
    ///
    /// # Errors
    /// A truncated or foreign file, or contents that contradict each other.
    pub fn decode(bytes: &[u8], registry: &Registry) -> Result<(Self, Vec<f32>), ModelFileError> {
        let mut rest = bytes;
        let Frame { header, body } = read_frame::<Self>(&mut rest, LIMITS)?;
        if !rest.is_empty() {
            return Err(ModelFileError::Trailing { bytes: rest.len() });
        }
        let weights = from_f32_bytes(&body);
        header.check(&weights, registry)?;
        Ok((header, weights))
    }

    /// Checks the model without its weights; returns how many there must be.
    pub(super) fn check_settings(&self, registry: &Registry) -> Result<usize, ModelFileError> {
        if self.schema != SCHEMA {
            return Err(ModelFileError::Schema { got: self.schema });
        }
        let settings = |what, reason: String| Err(ModelFileError::Settings { what, reason });
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
        Ok(self.stored_network(registry)?.parameters().iter().map(ParamSpec::len).sum())
    }

    /// The network with the parameters that the file holds.
    ///
    /// # Errors
    /// No mode can be made of it.
    pub fn stored_network(&self, registry: &Registry) -> Result<Network, ModelFileError> {
        let mode = registry.decode(&self.mode).map_err(Box::new)?;
        Ok(mode.stored_network(&self.network).map_err(Box::new)?)
    }

    pub(super) fn check_length(&self, got: usize, expected: usize) -> Result<(), ModelFileError> {
        let network = || self.network.name.clone();
        if got == expected { Ok(()) } else { Err(ModelFileError::Weights { got, expected, network: network() }) }
    }

    fn check(&self, weights: &[f32], registry: &Registry) -> Result<(), ModelFileError> {
        self.check_length(weights.len(), self.check_settings(registry)?)?;
        match weights.iter().position(|weight| !weight.is_finite()) {
            Some(index) => Err(ModelFileError::NonFinite { index }),
            None => Ok(()),
        }
    }
}
