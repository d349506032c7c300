//! The mode that a job or a service names, ready to answer.

use std::sync::Arc;

use asymflow_engine::Program;
use asymflow_engine::streamed::{ModelWeights, StreamError};
use asymflow_linalg::{Decomposer, by_name};
use asymflow_privacy::Precision;
use asymflow_residual::ResidualBackend;
use asymflow_zoo::delta::{DeltaError, delta};
use asymflow_zoo::{Network, Weights};
use faer::Par;

use super::RunError;
use crate::ExecError;
use crate::accounting::RecordAccountant;
use crate::clear::Clear;
use crate::delta::{Delta, DeltaParts, DeltaSpec, Labels, Sampling, Variant};
use crate::job::{ModeKind, SharesSpec};
use crate::modes::{AsymMl, AsymMlParts, Mode, TrustedOnly};
use crate::plan::{Plan, SplitSpec};
use crate::release::PrivacySpec;

/// What is executed and under which guard; part of a job, and of a model that is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// How the network is executed.
    pub mode: ModeKind,
    /// The network.
    pub network: &'a Network,
    /// What guards releases.
    pub privacy: &'a PrivacySpec,
    /// How it is run as Delta; for that mode.
    pub delta: Option<&'a DeltaSpec>,
    /// Precision of what is sent to the worker.
    pub precision: Precision,
}

impl Settings<'_> {
    /// Whether a worker takes part.
    pub fn needs_worker(&self) -> bool {
        self.mode.needs_worker() && (self.mode != ModeKind::Delta || self.delta.is_some_and(DeltaSpec::needs_worker))
    }

    /// A network with the parameters that are trained, in the order of their state. For Delta it lists the layers of all
    /// three networks and cannot be executed.
    ///
    /// # Errors
    /// A network that cannot be executed, or made into Delta's three.
    pub fn stored_network(&self) -> Result<Network, DeltaError> {
        self.network.validate()?;
        match self.delta {
            Some(spec) if self.mode == ModeKind::Delta => {
                Ok(delta(self.network, &spec.shape)?.all_layers(spec.needs_worker()))
            }
            _ => Ok(self.network.clone()),
        }
    }
}

/// What a mode is built from beside the settings.
#[derive(Clone, Debug)]
pub struct Parts {
    /// How it splits.
    pub split: SplitSpec,
    /// All epochs of training.
    pub epochs: usize,
    /// Samples in a batch, for the plan's costs, and records in the training set.
    pub sampling: Sampling,
    /// Who has lost how much so far.
    pub accountant: RecordAccountant,
    /// How two servers answer.
    pub shares: SharesSpec,
}

/// Builds a mode and its plan. Weights may be streamed in `trusted-only`.
///
/// # Errors
/// Unusable settings, no worker where one is needed, or one that cannot be opened.
pub fn build(
    settings: Settings<'_>,
    weights: ModelWeights,
    parts: Parts,
    backend: Option<&Arc<dyn ResidualBackend>>,
    par: Par,
) -> Result<(Box<dyn Mode>, Option<Plan>), RunError> {
    let network = settings.network.clone();
    let worker = || backend.map(Arc::clone).ok_or(RunError::NoWorker(settings.mode.name()));
    let program = Program::new(&network).map_err(ExecError::from)?;
    if settings.mode == ModeKind::TrustedOnly {
        let mode = TrustedOnly::with_weights(network, weights, par)?;
        return Ok((Box::new(mode), Some(Plan::trusted_only(&program))));
    }
    let ModelWeights::Held(weights) = weights else {
        return Err(ExecError::from(StreamError::InferenceOnly).into());
    };
    Ok(match settings.mode {
        ModeKind::Clear | ModeKind::NaiveDp => {
            let is_public = settings.mode == ModeKind::NaiveDp;
            (Box::new(Clear::new(network, &weights, worker()?, parts.accountant, is_public)?), None)
        }
        ModeKind::TrustedOnly | ModeKind::Asymml => {
            let plan = Plan::asymml(&program, &parts.split, parts.sampling.batch)?;
            let parts = AsymMlParts {
                plan: plan.clone(),
                decomposer: decomposer(&parts.split.decomposition)?,
                privacy: settings.privacy.clone(),
                precision: settings.precision,
                backend: worker()?,
                accountant: parts.accountant,
            };
            (Box::new(AsymMl::with_weights(network, weights, parts, par)?), Some(plan))
        }
        ModeKind::Delta => (Box::new(build_delta(settings, weights, parts, backend, par)?), None),
        #[cfg(feature = "shares")]
        ModeKind::Shares => (Box::new(crate::on_shares::OnShares::new(network, &weights, parts.shares, par)?), None),
        #[cfg(not(feature = "shares"))]
        ModeKind::Shares => return Err(RunError::NotBuilt { mode: "shares", feature: "shares" }),
    })
}

fn decomposer(name: &str) -> Result<Box<dyn Decomposer>, RunError> {
    by_name(name).ok_or_else(|| RunError::Decomposition(name.to_owned()))
}

fn build_delta(
    settings: Settings<'_>,
    weights: Weights,
    parts: Parts,
    backend: Option<&Arc<dyn ResidualBackend>>,
    par: Par,
) -> Result<Delta, RunError> {
    let missing = |what| RunError::Settings { mode: settings.mode.name(), what };
    let spec = settings.delta.cloned().ok_or(missing("a delta section"))?;
    if spec.decomposition == "shared-basis" {
        // One basis for a batch would let a record's residual depend on the others, which no bound on one covers.
        return Err(missing("a decomposition of each record by itself"));
    }
    if (spec.variant == Variant::ReleasedCode) != spec.shape.mean_residual {
        return Err(missing("the channel mean of residuals for variant released-code, and for no other"));
    }
    if spec.variant == Variant::ReleasedCode && spec.labels != Labels::Public {
        return Err(missing("public labels for variant released-code, whose gradients tell them"));
    }
    if spec.needs_worker() && backend.is_none() {
        return Err(RunError::NoWorker(settings.mode.name()));
    }
    let networks = delta(settings.network, &spec.shape)?;
    let parts = DeltaParts {
        decomposer: decomposer(&spec.decomposition)?,
        relation: settings.privacy.relation,
        delta: settings.privacy.delta,
        sampling: parts.sampling,
        epochs: parts.epochs,
        backend: backend.filter(|_| spec.needs_worker()).map(Arc::clone),
        accountant: parts.accountant,
        spec,
    };
    Ok(Delta::new(networks, weights, parts, par)?)
}
