//! How much memory the trusted part takes: planned before it runs, counted while it does.
//!
//! An enclave's memory is fixed when it starts, and older SGX has 128 or 256 MiB of it in all. [`MemoryPlan`] says from the
//! network, the mode and the batch what a job or a service will hold at most, so that one that does not fit is refused
//! before it allocates anything; [`heap`] counts what is really held.

pub mod heap;
mod job;
mod size;
mod split;
mod training;
mod wire;
mod work;

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use heap::MemoryUse;

pub use size::{SizeError, parse_bytes, show_bytes};
pub use work::Work;
pub(crate) use work::weight_bytes;

/// Bytes of heap that the trusted part is planned to hold, by what they are for.
///
/// An upper bound, as long as the engine takes its memory from its pool, whose lengths are run through without values. Tests hold it to at least the
/// heap that is counted and at most 1.25 times as much, 1.4 times beside a worker, where that is above 16 MiB: buffers of the engine are planned to
/// the byte, and what is loose is how much of the weights' queue to the worker is gone before the next is put in.
/// `docs/results/memory-study.md` has plan and count side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Weights of the networks that are computed here; with streamed weights, what is held of them at once.
    pub weights_bytes: u64,
    /// Their gradients and momentum.
    pub optimiser_bytes: u64,
    /// Activations that are kept for the backward pass.
    pub kept_bytes: u64,
    /// Activations and gradients at work, and memory that waits to be used again.
    pub working_bytes: u64,
    /// What kernels and decompositions ask for.
    pub scratch_bytes: u64,
    /// Factors of decompositions, and features in two parts.
    pub decomposition_bytes: u64,
    /// Residuals and gradients on their way out.
    pub release_bytes: u64,
    /// Copies for the wire and answers of the worker, beside what is released.
    pub wire_bytes: u64,
    /// States to go back to when the worker is lost, and bits that were released.
    pub state_bytes: u64,
    /// A state as it is written down, which no release or answer coincides with.
    pub checkpoint_bytes: u64,
    /// The data set and the batch at hand.
    pub data_bytes: u64,
    /// Answers that a service remembers, once there are as many as it keeps.
    #[serde(default)]
    pub answers_bytes: u64,
    /// What products of matrices reserve: faer takes twice the last-level cache for every thread that calls it and keeps
    /// it. Little of it is ever touched, so that it counts for an enclave's size and hardly for its pages in memory.
    pub matmul_bytes: u64,
    /// The program itself: threads, connections, tables.
    pub fixed_bytes: u64,
    /// The most while everything is set up, when weights are there more than once.
    pub startup_bytes: u64,
    /// The most at any time.
    pub peak_bytes: u64,
}

/// The program without a network: what a job holds before it begins, and for each thread.
const FIXED_BYTES: u64 = 3 << 19;
const THREAD_BYTES: u64 = 1 << 18;

impl MemoryPlan {
    /// Fills in the peak.
    pub(crate) fn peaked(mut self) -> Self {
        self.peak_bytes = self.startup_bytes.max(self.running_bytes());
        self
    }

    /// The most once everything is set up.
    pub fn running_bytes(&self) -> u64 {
        let steady = self.weights_bytes
            + self.optimiser_bytes
            + self.kept_bytes
            + self.working_bytes
            + self.scratch_bytes
            + self.decomposition_bytes
            + self.state_bytes
            + self.data_bytes
            + self.answers_bytes
            + self.matmul_bytes
            + self.fixed_bytes;
        let crossing = self.release_bytes + self.wire_bytes;
        steady + crossing.max(self.checkpoint_bytes)
    }

    /// The peak without what matrix products reserve, and hardly touch.
    pub const fn touched_bytes(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.matmul_bytes)
    }

    /// The parts by name, in order.
    pub const fn parts(&self) -> [(&'static str, u64); 15] {
        [
            ("weights", self.weights_bytes),
            ("gradients and momentum", self.optimiser_bytes),
            ("kept activations", self.kept_bytes),
            ("working buffers", self.working_bytes),
            ("scratch", self.scratch_bytes),
            ("decomposition", self.decomposition_bytes),
            ("release", self.release_bytes),
            ("wire", self.wire_bytes),
            ("states", self.state_bytes),
            ("checkpoint", self.checkpoint_bytes),
            ("data", self.data_bytes),
            ("answers", self.answers_bytes),
            ("matrix products", self.matmul_bytes),
            ("program", self.fixed_bytes),
            ("start-up", self.startup_bytes),
        ]
    }

    /// Refuses a plan above `limit_bytes`.
    ///
    /// # Errors
    /// It does not fit; says what takes how much and what would help.
    pub fn check(&self, limit_bytes: Option<u64>, advice: Advice) -> Result<(), MemoryError> {
        match limit_bytes {
            Some(limit_bytes) if self.peak_bytes > limit_bytes => {
                Err(MemoryError::Limit { plan: Box::new(*self), limit_bytes, advice })
            }
            _ => Ok(()),
        }
    }

    /// The largest parts first, in one line.
    fn breakdown(&self) -> String {
        let mut parts: Vec<_> = self.parts().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        parts.iter().fold(String::new(), |mut text, (name, bytes)| {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{name} {}", show_bytes(*bytes));
            text
        })
    }
}

/// What else could be tried where a plan does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Whether a smaller batch can be asked for.
    pub smaller_batch: bool,
    /// Whether another mode holds fewer weights and activations here.
    pub other_mode: bool,
    /// Whether weights could be streamed.
    pub streaming: bool,
}

impl Advice {
    fn text(self) -> String {
        let ways = [
            (self.smaller_batch, "a smaller batch"),
            (self.other_mode, "mode delta or main-only, whose trusted networks are small"),
            (self.streaming, "streamed weights"),
            (true, "a larger limit"),
        ];
        let ways: Vec<&str> = ways.into_iter().filter(|(helps, _)| *helps).map(|(_, way)| way).collect();
        ways.join(", or ")
    }
}

/// Why nothing was started.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MemoryError {
    /// More than is allowed.
    #[error(
        "the trusted part would take {} of memory, the limit is {} ({}); what helps: {}",
        show_bytes(plan.peak_bytes), show_bytes(*limit_bytes), plan.breakdown(), advice.text()
    )]
    Limit {
        /// What was planned.
        plan: Box<MemoryPlan>,
        /// What is allowed.
        limit_bytes: u64,
        /// What could be tried.
        advice: Advice,
    },
    /// There is nothing to plan.
    #[error(transparent)]
    Engine(#[from] asymflow_engine::EngineError),
    /// The network cannot be made into Delta's three.
    #[error(transparent)]
    Delta(#[from] asymflow_zoo::models::delta::DeltaError),
    /// The split cannot be planned.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// No decomposition of that name.
    #[error("unknown decomposition {0:?}")]
    Decomposition(String),
    /// No mode or study can be made of what the job says.
    #[error("{0}")]
    Job(String),
}

impl MemoryError {
    pub(crate) fn job(error: impl std::fmt::Display) -> Self {
        Self::Job(error.to_string())
    }
}
