//! Why a job failed, and what of it the host may know.

use asymflow_engine::EngineError;
use asymflow_privacy::door::ReleaseError;
use asymflow_zoo::data::DataError;
use asymflow_zoo::models::delta::DeltaError;
use asymflow_zoo::weights::WeightsError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::job::{Failure, FailureCode};
use crate::memory::MemoryError;
use crate::modes::{ExecError, ModeError};
use crate::studies::StudyError;
use crate::teaching::TeacherError;
use crate::train::{HostGone, TrainError};

/// Why a job failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A registered reader does not read the data, or is not there.
    #[error("data.reader {reader:?}: {reason}")]
    Reader {
        /// Its name.
        reader: String,
        /// Why.
        reason: String,
    },
    /// The data does not fit the network.
    #[error(
        "images of {images} with {classes} classes do not fit network {network}, which takes {input} and at most \
         {expected} classes (data.resize = {{}} brings images to its size)"
    )]
    Fit {
        /// Shape of the images.
        images: asymflow_zoo::network::Shape,
        /// Classes of the data.
        classes: usize,
        /// The network.
        network: String,
        /// Shape of the images that it takes.
        input: asymflow_zoo::network::Shape,
        /// Classes that it has.
        expected: usize,
    },
    /// The spectrum of an activation could not be computed.
    #[error("layer {layer}: {error}")]
    Spectrum {
        /// Name of the convolution.
        layer: String,
        /// Why.
        error: asymflow_linalg::spectrum::SpectrumError,
    },
    /// A setting of no use.
    #[error("{what} of {got} is out of range {range}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Its value.
        got: f32,
        /// What it may be.
        range: &'static str,
    },
    /// There is no teacher.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// The given weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The mode cannot be set up.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// An attack cannot be computed.
    #[error(transparent)]
    Audit(#[from] asymflow_audit::AuditError),
    /// There is no such study.
    #[error(transparent)]
    Study(#[from] StudyError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The checkpoint is unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Batch normalisation of one value for each channel, which has no variance.
    #[error(
        "layer {layer}: the last of {records} training images is a batch of its own, and its map is one pixel; take another \
         train.batch than {batch}"
    )]
    LastBatch {
        /// Name of the normalisation.
        layer: String,
        /// Training images.
        records: usize,
        /// Images of a batch.
        batch: usize,
    },
    /// A number in the job is out of range.
    #[error("{what} must be at least 1")]
    Zero {
        /// Which number.
        what: &'static str,
    },
    /// It would take more memory than it may.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host is gone.
    #[error(transparent)]
    Host(#[from] HostGone),
}

impl From<ExecError> for RunError {
    fn from(error: ExecError) -> Self {
        Self::Mode(error.into())
    }
}

impl From<EngineError> for RunError {
    fn from(error: EngineError) -> Self {
        Self::Mode(error.into())
    }
}

impl From<DeltaError> for RunError {
    fn from(error: DeltaError) -> Self {
        Self::Mode(error.into())
    }
}

impl RunError {
    /// What the host may know of this failure.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::Mode(ModeError::Exec(exec)) | Self::Train(TrainError::Exec(exec)) => return of_pass(exec),
            Self::Mode(ModeError::OverBudget { .. }) => FailureCode::Release,
            Self::Data(_) | Self::Reader { .. } | Self::Fit { .. } => FailureCode::Data,
            Self::Checkpoint(_) | Self::Train(TrainError::Checkpoint(_)) => FailureCode::Checkpoint,
            Self::Host(_) | Self::Train(TrainError::Host(_)) => FailureCode::Host,
            Self::Mode(_)
            | Self::Train(TrainError::Accountant(_))
            | Self::Study(_)
            | Self::Audit(_)
            | Self::Spectrum { .. }
            | Self::OutOfRange { .. }
            | Self::LastBatch { .. }
            | Self::Teacher(_)
            | Self::Weights(_)
            | Self::Zero { .. }
            | Self::Memory(_) => FailureCode::Job,
        };
        Failure { code, detail: self.to_string() }
    }
}

/// What the host may know of a pass that failed: neither values of data nor where one stands in a private tensor.
fn of_pass(error: &ExecError) -> Failure {
    let failure = |code, detail| Failure { code, detail };
    if let Some(layer) = error.non_finite_layer() {
        return failure(FailureCode::NonFinite, format!("layer {layer}: a value is not finite"));
    }
    match error {
        ExecError::Release { layer, error } => {
            // What a record has lost is no secret; other reasons may name values of data.
            let why = if let ReleaseError::Budget(error) = error {
                error.to_string()
            } else {
                "a release was refused".to_owned()
            };
            failure(FailureCode::Release, format!("layer {layer}: {why}; nothing left"))
        }
        ExecError::Decompose { layer, .. } => {
            failure(FailureCode::NonFinite, format!("layer {layer}: a batch could not be decomposed"))
        }
        ExecError::Split(_) => failure(FailureCode::NonFinite, "features: a value is not finite".to_owned()),
        ExecError::Open(_) | ExecError::Submit { .. } | ExecError::Collect { .. } | ExecError::Verify { .. } => {
            failure(FailureCode::Worker, error.to_string())
        }
        ExecError::Engine(_)
        | ExecError::Records { .. }
        | ExecError::Kept(_)
        | ExecError::Unfit { .. }
        | ExecError::Mechanism(_) => failure(FailureCode::Job, error.to_string()),
        #[cfg(feature = "shares")]
        ExecError::Shares(_) => failure(FailureCode::Job, error.to_string()),
    }
}
