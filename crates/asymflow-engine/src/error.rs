//! Why the engine could not execute a batch.

use asymflow_linalg::conv::ConvError;
use asymflow_zoo::{NetworkError, WeightsError};
use thiserror::Error;

use crate::streamed::StreamError;

/// Why a batch could not be executed.
#[derive(Debug, Error)]
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
    /// NaN or an infinity appeared at a layer boundary.
    #[error("layer {layer}: value {index} is not finite")]
    NonFinite {
        /// Name of the layer, or `input` or `logits`.
        layer: String,
        /// Index of the first such value.
        index: usize,
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
