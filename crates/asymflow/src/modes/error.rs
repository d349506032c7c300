//! Why a mode could not be set up, or not execute a batch.

use asymflow_engine::EngineError;
use asymflow_linalg::decompose::DecomposeError;
use asymflow_privacy::{
    accountants::AccountantError, calibration::CalibrationError, door::ReleaseError, mechanisms::MechanismError,
};
use asymflow_residual::backend::{CollectError, OpenError, SubmitError};
#[cfg(feature = "shares")]
use asymflow_shares::compile::CompileError;
#[cfg(feature = "shares")]
use asymflow_shares::in_process::InProcessError;
use asymflow_zoo::models::delta::DeltaError;
use asymflow_zoo::{network::NetworkError, weights::WeightsError};
use thiserror::Error;

use crate::plan::PlanError;

/// Why a batch could not be executed.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The trusted engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A batch whose parts differ in length.
    #[error("a batch of {images} values and {labels} labels does not fit its {records} records")]
    Records {
        /// Values of its images.
        images: usize,
        /// Its labels.
        labels: usize,
        /// Its record numbers.
        records: usize,
    },
    /// A decomposition failed.
    #[error("layer {layer}: {error}")]
    Decompose {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: DecomposeError,
    },
    /// A release was refused; nothing left.
    #[error("layer {layer}: {error}")]
    Release {
        /// Name of the layer.
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
    /// The worker's answer is not what it was asked for.
    #[error("layer {layer}: {error}")]
    Verify {
        /// Name of the convolution.
        layer: String,
        /// What is wrong.
        error: super::VerifyError,
    },
    /// Features could not be split in two.
    #[error("features: {0}")]
    Split(#[from] super::delta::SplitError),
    /// What was released before cannot be had or kept, and is not drawn anew.
    #[error("what was released before: {0}")]
    Kept(String),
    /// A projection of residuals could not be fitted to the training records.
    #[error("no projection can be fitted to {what}")]
    Unfit {
        /// What they are.
        what: &'static str,
    },
    /// A loss is not defined for the mechanism's settings.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// Two servers on shares gave no answer.
    #[cfg(feature = "shares")]
    #[error(transparent)]
    Shares(#[from] SharesError),
}

impl From<WeightsError> for ExecError {
    fn from(error: WeightsError) -> Self {
        Self::Engine(error.into())
    }
}

impl ExecError {
    /// A refused release of `layer`.
    pub(crate) fn release(layer: &str) -> impl Fn(ReleaseError) -> Self + '_ {
        |error| Self::Release { layer: layer.to_owned(), error }
    }

    /// A refused submission for `layer`.
    pub(crate) fn submit(layer: &str) -> impl Fn(SubmitError) -> Self + '_ {
        |error| Self::Submit { layer: layer.to_owned(), error }
    }

    /// An answer for `layer` that could not be had.
    pub(crate) fn collect(layer: &str) -> impl Fn(CollectError) -> Self + '_ {
        |error| Self::Collect { layer: layer.to_owned(), error }
    }

    /// An answer for `layer` that is wrong.
    pub(crate) fn verify(layer: &str) -> impl Fn(super::VerifyError) -> Self + '_ {
        |error| Self::Verify { layer: layer.to_owned(), error }
    }

    /// An answer for `layer` of another form than asked for.
    pub(crate) fn malformed(layer: &str, reason: &str) -> Self {
        Self::collect(layer)(CollectError::Malformed { reason: reason.to_owned() })
    }

    /// Whether the worker is gone and the step can be done again after it was re-opened.
    pub const fn is_worker_lost(&self) -> bool {
        matches!(
            self,
            Self::Submit { error: SubmitError::Lost { .. }, .. }
                | Self::Collect { error: CollectError::Lost { .. }, .. }
        )
    }

    /// The layer where NaN or an infinity appeared, whoever saw it first: the engine, the decomposition, the door, the worker, or the link to it.
    pub fn non_finite_layer(&self) -> Option<&str> {
        match self {
            Self::Engine(EngineError::NonFinite { layer, .. })
            | Self::Decompose { layer, error: DecomposeError::NonFinite { .. } }
            | Self::Release { layer, error: ReleaseError::NonFinite { .. } }
            | Self::Submit { layer, error: SubmitError::NonFinite { .. } }
            | Self::Collect { layer, error: CollectError::NonFinite { .. } } => Some(layer),
            Self::Engine(_)
            | Self::Records { .. }
            | Self::Decompose { .. }
            | Self::Release { .. }
            | Self::Open(_)
            | Self::Submit { .. }
            | Self::Collect { .. }
            | Self::Verify { .. }
            | Self::Split(_)
            | Self::Kept(_)
            | Self::Unfit { .. }
            | Self::Mechanism(_) => None,
            #[cfg(feature = "shares")]
            Self::Shares(_) => None,
        }
    }
}

/// Why a mode could not be set up.
#[derive(Debug, Error)]
pub enum ModeError {
    /// No mode of that name.
    #[error("unknown mode {name:?}, expected one of {known:?}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that are known.
        known: Vec<&'static str>,
    },
    /// Settings of another program, or none.
    #[error("settings of mode {mode}: {error}")]
    Malformed {
        /// The mode.
        mode: String,
        /// Why.
        error: serde_json::Error,
    },
    /// A section of the experiment does not parse.
    #[error("[{section}]: {error}")]
    Section {
        /// Its name.
        section: String,
        /// Why.
        error: serde_json::Error,
    },
    /// A mode lacks the settings it needs, or has some that contradict each other.
    #[error("mode {mode} needs {what}")]
    Settings {
        /// The mode.
        mode: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// A mode that needs a worker has none.
    #[error("mode {0} needs a worker")]
    NoWorker(&'static str),
    /// No mechanism of that name.
    #[error("unknown mechanism {name:?}, expected one of {known:?}")]
    Mechanism {
        /// The name.
        name: String,
        /// Those that are known.
        known: Vec<String>,
    },
    /// No decomposition of that name.
    #[error("unknown decomposition {0:?}")]
    Decomposition(String),
    /// A mechanism's parameters are out of range.
    #[error("privacy: {0}")]
    Parameter(#[from] MechanismError),
    /// No noise is known for these settings.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// No ε can be given.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// A run of this mode would lose more than its records may.
    #[error("the run would cost a record epsilon {epsilon}, above the budget of {limit} at delta {delta}: {what}")]
    OverBudget {
        /// ε of the whole run.
        epsilon: f64,
        /// The budget.
        limit: f64,
        /// δ of both.
        delta: f64,
        /// What costs it.
        what: String,
    },
    /// The split cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Delta's networks cannot be made.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// No randomness from the operating system.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(String),
    /// The network, its weights or the worker.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl From<NetworkError> for ModeError {
    fn from(error: NetworkError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<EngineError> for ModeError {
    fn from(error: EngineError) -> Self {
        Self::Exec(error.into())
    }
}

impl From<OpenError> for ModeError {
    fn from(error: OpenError) -> Self {
        Self::Exec(error.into())
    }
}

/// Why two servers gave no answer.
#[cfg(feature = "shares")]
#[derive(Debug, Error)]
pub enum SharesError {
    /// The network has a layer that cannot be computed on shares.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A value leaves its range, or the protocol, the dealer or a server failed.
    #[error("on shares: {0}")]
    Servers(#[from] InProcessError),
}
