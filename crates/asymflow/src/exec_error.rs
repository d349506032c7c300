//! Why a mode could not execute a batch.

use asymflow_engine::EngineError;
use asymflow_engine::streamed::StreamError;
use asymflow_privacy::ReleaseError;
use asymflow_residual::{CollectError, OpenError, SubmitError};
use asymflow_zoo::{NetworkError, WeightsError};
use thiserror::Error;

/// Why a batch could not be executed.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The trusted engine could not.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A decomposition failed.
    #[error("layer {layer}: {error}")]
    Decompose {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: asymflow_linalg::DecomposeError,
    },
    /// A release was refused; nothing left.
    #[error("layer {layer}: {error}")]
    Release {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: ReleaseError,
    },
    /// The worker could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The worker refused a submission.
    #[error("layer {layer}: {error}")]
    Submit {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: SubmitError,
    },
    /// The worker's result could not be had.
    #[error("layer {layer}: {error}")]
    Collect {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: CollectError,
    },
    /// Features could not be split in two.
    #[error("features: {0}")]
    Split(#[from] crate::delta::SplitError),
    /// Delta's door refused; nothing left.
    #[error("features: {0}")]
    Door(#[from] crate::delta::DoorError),
    /// A record has spent its budget; nothing left.
    #[error(transparent)]
    Budget(#[from] asymflow_privacy::BudgetError),
    /// Two servers on shares gave no answer.
    #[cfg(feature = "shares")]
    #[error(transparent)]
    Shares(#[from] crate::on_shares::SharesError),
}

impl From<NetworkError> for ExecError {
    fn from(error: NetworkError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<WeightsError> for ExecError {
    fn from(error: WeightsError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<StreamError> for ExecError {
    fn from(error: StreamError) -> Self {
        Self::Engine(error.into())
    }
}

impl ExecError {
    /// Whether the worker is gone and the step can be done again after it was re-opened.
    pub const fn is_worker_lost(&self) -> bool {
        matches!(
            self,
            Self::Submit { error: SubmitError::Lost { .. }, .. }
                | Self::Collect { error: CollectError::Lost { .. }, .. }
        )
    }

    /// The layer where NaN or an infinity appeared, whoever saw it first: the engine, the worker, or the link to it.
    pub fn non_finite_layer(&self) -> Option<&str> {
        match self {
            Self::Engine(EngineError::NonFinite { layer, .. })
            | Self::Release { layer, error: ReleaseError::NonFinite { .. } }
            | Self::Submit { layer, error: SubmitError::NonFinite { .. } }
            | Self::Collect { layer, error: CollectError::NonFinite { .. } } => Some(layer),
            _ => None,
        }
    }
}
