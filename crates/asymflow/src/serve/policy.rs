//! Which jobs an enclave does, whatever its host asks for.

use asymflow_privacy::accountants::Relation;
use serde::Deserialize;
use thiserror::Error;

use crate::job::{JobSpec, Task, TrainSpec};
use crate::modes::{Facts, ModeError, ModeSpec, Purpose, Registry, Sampling};

/// Who decides what a job may release.
#[derive(Clone, Debug, PartialEq)]
pub enum JobRules {
    /// The host does, which is as good as none: for programs that are no enclaves.
    Host,
    /// A file that is measured with the program.
    Measured(JobPolicy),
    /// Nobody has said, so nothing is done.
    Missing,
}

/// The jobs that are allowed. What is not said is refused.
///
/// It belongs among the trusted files of an enclave's manifest: then whoever verifies MRENCLAVE knows it, and the host cannot
/// change it. In files it is a JSON object.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobPolicy {
    /// Names of modes, as their specifications have them: `delta` is one for all its feeds.
    pub modes: Vec<String>,
    /// Whether checkpoints must be sealed in a vault instead of being given to the host, who could put back an old one and with
    /// it what records have lost.
    pub require_vault: bool,
    /// The largest ε that a record may lose; without one, modes that release nothing are allowed alone.
    #[serde(default)]
    pub max_epsilon: Option<f64>,
    /// The largest δ at which ε counts.
    #[serde(default = "default_delta")]
    pub max_delta: f64,
    /// For which neighbours ε has to hold; for either without one.
    #[serde(default)]
    pub relation: Option<Relation>,
    /// Least standard deviation of the noise on what is released of a record that is clipped to l2 norm 1; σ/C for any other
    /// norm C.
    #[serde(default)]
    pub min_sigma: f64,
    /// SHA-256 of the worker's certificate in hexadecimal; without one, modes that have no worker are allowed alone.
    #[serde(default)]
    pub worker_fingerprint: Option<String>,
    /// Names of insecure settings that will do.
    #[serde(default)]
    pub accept_insecure: Vec<String>,
}

const fn default_delta() -> f64 {
    1e-5
}

/// Why a job is not done.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum JobRefusal {
    /// An enclave that was given no policy.
    #[error("this program runs in an enclave and has no policy (--policy): its host would choose what leaves it")]
    NoPolicy,
    /// A study, which releases in ways of its own or tells the host about activations.
    #[error("the policy allows training alone, the job is another task")]
    Task,
    /// Settings of a mode that make none.
    #[error("what the job would release cannot be said: {0}")]
    Settings(String),
    /// Another mode.
    #[error("mode {mode} is not among those that the policy allows: {allowed:?}")]
    Mode {
        /// The job's.
        mode: String,
        /// The policy's.
        allowed: Vec<String>,
    },
    /// An insecure setting.
    #[error("the job runs with {name}, which the policy does not accept")]
    Insecure {
        /// Its name.
        name: String,
    },
    /// A large ε, or none.
    #[error("a record may lose epsilon {epsilon} by the job, {limit:?} by the policy")]
    Epsilon {
        /// The job's; infinite where it promises none.
        epsilon: f64,
        /// The policy's.
        limit: Option<f64>,
    },
    /// A large δ.
    #[error("the job's epsilon is at delta {delta}, the policy allows {limit}")]
    Delta {
        /// The job's.
        delta: f64,
        /// The policy's.
        limit: f64,
    },
    /// Other neighbours.
    #[error("the job's epsilon is for neighbours by {got:?}, the policy wants {expected:?}")]
    Relation {
        /// The job's.
        got: Relation,
        /// The policy's.
        expected: Relation,
    },
    /// Little noise, or none.
    #[error(
        "noise has {sigma} of the clipped norm as its standard deviation by the job, at least {least} by the policy"
    )]
    Sigma {
        /// σ/C of the job; 0 without noise or clip.
        sigma: f64,
        /// The policy's.
        least: f64,
    },
    /// Another worker, or a connection that anybody can read.
    #[error("the job's worker is not the one whose certificate the policy pins ({pinned:?})")]
    Worker {
        /// The policy's.
        pinned: Option<String>,
    },
    /// Checkpoints for the host.
    #[error("the policy requires that checkpoints are sealed in a vault, and the job names none")]
    Vault,
}

impl From<ModeError> for JobRefusal {
    fn from(error: ModeError) -> Self {
        Self::Settings(error.to_string())
    }
}

impl JobRules {
    /// Refuses a job that these rules do not allow, and holds the others to them: no record loses more than the policy's ε,
    /// whatever the job says.
    ///
    /// # Errors
    /// Which rule forbids it.
    pub fn allow(&self, job: &mut JobSpec, registry: &Registry) -> Result<(), JobRefusal> {
        match self {
            Self::Host => Ok(()),
            Self::Missing => Err(JobRefusal::NoPolicy),
            Self::Measured(policy) => policy.allow(job, registry),
        }
    }
}

impl JobPolicy {
    fn allow(&self, job: &mut JobSpec, registry: &Registry) -> Result<(), JobRefusal> {
        let Task::Train(train) = &job.task else { return Err(JobRefusal::Task) };
        let mode = registry.decode(&job.mode)?;
        if !self.modes.iter().any(|allowed| allowed == mode.name()) {
            return Err(JobRefusal::Mode { mode: mode.name().to_owned(), allowed: self.modes.clone() });
        }
        let insecure = mode.insecure(Purpose::Training);
        if let Some(name) = insecure.into_iter().find(|name| !self.accept_insecure.contains(name)) {
            return Err(JobRefusal::Insecure { name });
        }
        if self.allows_release(&*mode, job, train, registry)? {
            // A run is refused before it begins, and its accountant before each release, where this does not suffice.
            let budget = job.terms.budget_epsilon.into_iter().chain(self.max_epsilon).reduce(f64::min);
            job.terms.budget_epsilon = budget;
        }
        if mode.needs_worker() && !self.allows_worker(job) {
            return Err(JobRefusal::Worker { pinned: self.worker_fingerprint.clone() });
        }
        if self.require_vault && job.vault.is_none() {
            return Err(JobRefusal::Vault);
        }
        Ok(())
    }

    /// Whether anything is released, where that is allowed.
    fn allows_release(
        &self,
        mode: &dyn ModeSpec,
        job: &JobSpec,
        train: &TrainSpec,
        registry: &Registry,
    ) -> Result<bool, JobRefusal> {
        // The data are not read yet; what the data make of it is held to the budget.
        let sampling = Sampling { batch: train.batch, records: job.data.train.unwrap_or(train.batch) };
        let (network, terms, evaluations) = (&job.network, &job.terms, train.evaluations());
        let facts = Facts { network, terms, sampling, epochs: train.epochs, evaluations, registry };
        let Some(epsilon) = mode.losses(&facts)?.epsilon(terms.delta).map_err(ModeError::from)? else {
            return Ok(false);
        };
        // Sums of a run are rounded in another order.
        let is_within = |limit: f64| epsilon <= limit || epsilon - limit <= 1e-9 * limit;
        if !self.max_epsilon.is_some_and(is_within) {
            return Err(JobRefusal::Epsilon { epsilon, limit: self.max_epsilon });
        }
        if terms.delta > self.max_delta {
            return Err(JobRefusal::Delta { delta: terms.delta, limit: self.max_delta });
        }
        if let Some(expected) = self.relation.filter(|relation| *relation != terms.relation) {
            return Err(JobRefusal::Relation { got: terms.relation, expected });
        }
        let noise = mode.guard(&facts)?.and_then(|guard| Some(guard.sigma? / guard.clip?));
        let sigma = noise.filter(|sigma| !sigma.is_nan()).unwrap_or_default();
        if sigma < self.min_sigma {
            return Err(JobRefusal::Sigma { sigma, least: self.min_sigma });
        }
        Ok(true)
    }

    fn allows_worker(&self, job: &JobSpec) -> bool {
        let Some((worker, pinned)) = job.worker.as_ref().zip(self.worker_fingerprint.as_ref()) else { return false };
        !worker.insecure_plaintext && worker.fingerprint.as_ref().is_some_and(|used| used.eq_ignore_ascii_case(pinned))
    }
}
