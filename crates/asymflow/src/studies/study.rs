//! What a study is, and what it is given.

use std::sync::Arc;

use asymflow_privacy::payload::Precision;
use asymflow_residual::{ResidualBackend, backend::OpenError};
use asymflow_zoo::{Weights, data::Split};
use faer::Par;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::job::{JobReport, JobSpec, StudyRef, Task, TrainReport, TrainSpec};
use crate::memory::{MemoryError, MemoryPlan};
use crate::modes::{ModeError, ModeSpec, Registry};
use crate::run::RunError;

/// Opens the backend that a job's worker section names, which answers in the precision given.
pub type OpenBackend<'a> = &'a dyn Fn(&JobSpec, Precision) -> Result<Arc<dyn ResidualBackend>, OpenError>;

/// Why there is no study, or no report of one.
#[derive(Debug, Error)]
pub enum StudyError {
    /// No study has that name.
    #[error("unknown study {name:?}; known are {known:?}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// Settings or a report that are not of this study.
    #[error("malformed study: {0}")]
    Malformed(#[from] postcard::Error),
    /// The report is of another task.
    #[error("the report is not of study {0:?}")]
    Other(&'static str),
}

/// Something that is measured of a network in the trusted part. The value itself holds the settings.
pub trait Study: Serialize + DeserializeOwned {
    /// What it finds.
    type Report: Serialize + DeserializeOwned;
    /// Its name in a job.
    const NAME: &'static str;

    /// Samples of the largest batch that is sent to a worker.
    fn batch(&self) -> usize;

    /// The memory that it takes at most as the task of `job`.
    ///
    /// # Errors
    /// A job that cannot be done.
    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError>;

    /// Measures.
    ///
    /// # Errors
    /// Whatever stops it.
    fn run(&self, bench: &mut Bench<'_>) -> Result<Self::Report, RunError>;

    /// It, as what a job is to do.
    ///
    /// # Errors
    /// Settings that cannot be written.
    fn task(&self) -> Result<Task, StudyError> {
        let (name, batch) = (Self::NAME.to_owned(), self.batch());
        Ok(Task::Study(StudyRef { name, batch, settings: postcard::to_stdvec(self)? }))
    }

    /// What a job that it was the task of has reported.
    ///
    /// # Errors
    /// The report is of another task.
    fn report(report: JobReport) -> Result<Self::Report, StudyError> {
        let JobReport::Study(found) = report else { return Err(StudyError::Other(Self::NAME)) };
        Ok(postcard::from_bytes(&found)?)
    }
}

/// What a study is given.
pub struct Bench<'a> {
    /// The job that it is the task of.
    pub job: &'a JobSpec,
    /// The job's mode.
    pub mode: &'a dyn ModeSpec,
    /// What is found by a name.
    pub registry: &'a Registry,
    /// Opens the job's worker.
    pub open: OpenBackend<'a>,
    /// Threads of the trusted part.
    pub par: Par,
    /// Trains the job's network, and gives it with so many of the first test images.
    pub train: &'a mut dyn FnMut(&TrainSpec, usize) -> Result<Trained, RunError>,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("job", &self.job).finish_non_exhaustive()
    }
}

/// A trained network and the images that it is looked at on.
#[derive(Debug)]
pub struct Trained {
    /// Its weights.
    pub weights: Weights,
    /// Test images, normalised, samples × C×H×W.
    pub images: Vec<f32>,
    /// How many they are.
    pub samples: usize,
    /// Share of all test images that it classifies correctly.
    pub test_accuracy: f64,
    /// What training measured.
    pub report: TrainReport,
    /// All data.
    pub data: Split,
}

/// The worker of `mode`, where it needs one.
pub(crate) fn opened(
    mode: &dyn ModeSpec,
    job: &JobSpec,
    open: OpenBackend<'_>,
) -> Result<Option<Arc<dyn ResidualBackend>>, ModeError> {
    Ok(mode.needs_worker().then(|| open(job, mode.precision())).transpose()?)
}

/// A study without its type.
pub(crate) trait AnyStudy {
    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError>;
    fn run(&self, bench: &mut Bench<'_>) -> Result<JobReport, RunError>;
}

impl<S: Study> AnyStudy for S {
    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        Study::memory(self, job, registry)
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<JobReport, RunError> {
        let report = Study::run(self, bench)?;
        Ok(JobReport::Study(postcard::to_stdvec(&report).map_err(StudyError::from)?))
    }
}

pub(super) fn read<S: Study + 'static>(settings: &[u8]) -> Result<Box<dyn AnyStudy>, StudyError> {
    Ok(Box::new(postcard::from_bytes::<S>(settings)?))
}
