//! Why an ONNX file makes no network, or a network no ONNX file.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::shape::NetworkError;
use crate::weights::Misfit;

/// Largest file that is read; the format itself ends at 2 GiB, and larger weights lie beside it.
pub(super) const MAX_FILE_BYTES: u64 = 2 << 30;

/// Why an ONNX file makes no network.
#[derive(Debug, Error)]
pub enum OnnxError {
    /// The file, or one with weights beside it, cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is longer than is ever read.
    #[error("{bytes} bytes exceed the limit of {MAX_FILE_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// No ONNX file, or a damaged one.
    #[error("no ONNX file: {0}")]
    Format(String),
    /// Operators of a version that is not understood.
    #[error("opset {got}: 13 to 21 are read; export with opset_version=18")]
    Opset {
        /// Its version.
        got: i64,
    },
    /// The input is no batch of images of one size.
    #[error("input {name:?} of shape {shape:?}: expected N×C×H×W with C, H and W fixed")]
    Input {
        /// Its name.
        name: String,
        /// Its sides; 0 for open ones.
        shape: Vec<i64>,
    },
    /// A node that has no counterpart here.
    #[error("node {node:?} ({op}): {reason}")]
    Node {
        /// Its name.
        node: String,
        /// Its operator.
        op: String,
        /// What is not supported.
        reason: String,
    },
    /// A tensor that cannot be read.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The layers do not fit one another.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights are not those of the layers, or not finite.
    #[error(transparent)]
    Weights(#[from] Misfit),
}
