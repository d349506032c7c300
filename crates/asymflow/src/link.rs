//! The trusted part's connection to the worker: a session that can be opened again after it was lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow_residual::{
    ResidualBackend,
    backend::{OpenError, ResidualModel, ResidualTraining, WorkerStats},
};

/// A backend, what it computes, and the session in use.
pub struct Link {
    backend: Arc<dyn ResidualBackend>,
    model: ResidualModel,
    session: Box<dyn ResidualTraining>,
    earlier: WorkerStats,
    reopened: usize,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("backend", &self.backend).field("reopened", &self.reopened).finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a session for `model`.
    ///
    /// # Errors
    /// As [`ResidualBackend::open`].
    pub fn open(backend: Arc<dyn ResidualBackend>, model: ResidualModel) -> Result<Self, OpenError> {
        let session = backend.open(&model)?;
        Ok(Self { backend, model, session, earlier: WorkerStats::default(), reopened: 0 })
    }

    /// Opens a new session in place of a lost one, trying again until `patience` is over.
    /// The new session's weights are zero.
    ///
    /// # Errors
    /// The last reason why it could not be opened; a refused token or certificate ends the attempts at once.
    pub fn reopen(&mut self, patience: Duration) -> Result<(), OpenError> {
        self.earlier = self.stats();
        let start = Instant::now();
        loop {
            match self.backend.open(&self.model) {
                Ok(session) => {
                    self.session = session;
                    self.reopened += 1;
                    return Ok(());
                }
                Err(
                    error @ (OpenError::Token { .. }
                    | OpenError::Certificate { .. }
                    | OpenError::Modelled { .. }
                    | OpenError::Model { .. }),
                ) => return Err(error),
                Err(error) if start.elapsed() > patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The session in use.
    pub fn session(&mut self) -> &mut dyn ResidualTraining {
        &mut *self.session
    }

    /// How often the session was opened again.
    pub const fn reopened(&self) -> usize {
        self.reopened
    }

    /// Counters over all sessions of this link.
    pub fn stats(&self) -> WorkerStats {
        let now = self.session.stats();
        WorkerStats {
            busy_seconds: self.earlier.busy_seconds + now.busy_seconds,
            bytes_to_worker: self.earlier.bytes_to_worker + now.bytes_to_worker,
            bytes_from_worker: self.earlier.bytes_from_worker + now.bytes_from_worker,
            transfer_seconds: self.earlier.transfer_seconds + now.transfer_seconds,
        }
    }
}
