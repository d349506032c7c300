//! Why the engine could not execute a batch.

use asymflow_linalg::conv::ConvError;
use asymflow_zoo::{network::NetworkError, weights::WeightsError};
use thiserror::Error;

use crate::streamed::StreamError;

/// Why a batch could not be executed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The batch does not fit the network.
    #[error("batch of {got} values does not fit {samples} samples of {expected}")]
    Batch {
        /// Values given.
        got: usize,
        /// Samples announced.
        samples: usize,
        /// Values of one sample.
        expected: usize,
    },
    /// Values of another number than they must be.
    #[error("{what} of {got} values, expected {expected}")]
    Length {
        /// Which values.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Values needed.
        expected: usize,
    },
    /// A label that is no class.
    #[error("label {label} is none of {classes} classes")]
    Label {
        /// The label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// NaN or an infinity appeared.
    #[error("layer {layer}: value {index} is not finite")]
    NonFinite {
        /// The layer, where it is known, or `input` or `logits`.
        layer: String,
        /// Index of the first such value.
        index: usize,
    },
    /// A layer without a norm of each sample's gradient.
    #[error("layer {layer}: {why}; use {replacement} instead")]
    PerSample {
        /// The layer.
        layer: String,
        /// Why.
        why: &'static str,
        /// What has one.
        replacement: &'static str,
    },
    /// The network cannot be executed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A convolution refused its shape.
    #[error("layer {layer}: {error}")]
    Conv {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: ConvError,
    },
    /// Streamed weights could not be had.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A backward pass without its forward pass.
    #[error("layer {layer}: backward pass without a kept forward pass")]
    NoForward {
        /// Name of the layer.
        layer: String,
    },
}
