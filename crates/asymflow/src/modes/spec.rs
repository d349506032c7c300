//! What a mode says of itself before it runs. Command, service, explanations, tables and the memory plan ask; none of them knows
//! a mode by its name.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use asymflow_engine::streamed::ModelWeights;
use asymflow_privacy::{
    Loss,
    accountants::{AccountantError, Relation},
    payload::Precision,
    records::{Budget, Flow, RecordAccountant, RecordLedger},
};
use asymflow_residual::ResidualBackend;
use asymflow_residual::backend::Pass;
use asymflow_zoo::{Network, graph::cost};
use faer::Par;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Mode, ModeError, Registry};
use crate::memory::{MemoryError, MemoryPlan, Work};
use crate::plan::Plan;

/// What every ε of a run or service is said of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrivacyTerms {
    /// Which inputs count as neighbours.
    pub relation: Relation,
    /// δ at which ε is reported.
    pub delta: f64,
    /// The largest ε that any record may lose at that δ.
    pub budget_epsilon: Option<f64>,
}

/// Size of a batch and of the training set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Samples in a batch.
    pub batch: usize,
    /// Records in the training set.
    pub records: usize,
}

/// The run or service that a mode is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The network.
    pub network: &'a Network,
    /// What every ε is said of.
    pub terms: &'a PrivacyTerms,
    /// Batch and training set.
    pub sampling: Sampling,
    /// Epochs of training.
    pub epochs: usize,
    /// How often the test records are classified.
    pub evaluations: usize,
    /// Mechanisms and decompositions by name.
    pub registry: &'a Registry,
}

impl Facts<'_> {
    /// What the network is for: training, or inference alone.
    pub const fn pass(&self) -> Pass {
        if self.epochs == 0 { Pass::Inference } else { Pass::Training }
    }
}

/// What is released of one record, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Charge {
    /// What it is, in words.
    pub what: String,
    /// Which way it goes.
    pub flow: Flow,
    /// Loss of one release.
    pub loss: Loss,
    /// How often.
    pub times: u64,
    /// Which neighbours the loss is said of.
    pub relation: Relation,
}

/// What a training record and a test record lose in a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Of a training record.
    pub train: Vec<Charge>,
    /// Of a test record.
    pub test: Vec<Charge>,
}

/// The ledger of a record to which `charges` happen.
pub fn composed(charges: &[Charge]) -> RecordLedger {
    let mut ledger = RecordLedger::default();
    charges.iter().for_each(|charge| ledger.add_times(charge.loss, charge.times));
    ledger
}

impl Losses {
    /// Refuses a run that would cost a record more than `budget`, before anything of it is released.
    ///
    /// # Errors
    /// It would; what costs it is named.
    pub fn fit(&self, budget: Budget) -> Result<(), ModeError> {
        let Budget { epsilon: limit, delta } = budget;
        for charges in [&self.train, &self.test] {
            let epsilon = composed(charges).epsilon(delta)?;
            // Sums of the run are rounded in another order.
            if epsilon.is_nan() || epsilon > limit * (1.0 + 1e-9) {
                let named = charges.iter().map(|charge| format!("{} times {}", charge.times, charge.what));
                let what = named.collect::<Vec<_>>().join(", ");
                return Err(ModeError::OverBudget { epsilon, limit, delta, what });
            }
        }
        Ok(())
    }

    /// The same losses where neighbours differ by a record *replaced*: what is clipped moves twice as far as for one removed.
    #[must_use]
    pub fn by_replacement(&self) -> Self {
        let replaced = |charge: &Charge| {
            let loss = match charge.relation {
                Relation::Remove => charge.loss.doubled(),
                Relation::Replace => charge.loss,
            };
            Charge { loss, relation: Relation::Replace, ..charge.clone() }
        };
        Self { train: self.train.iter().map(replaced).collect(), test: self.test.iter().map(replaced).collect() }
    }

    /// ε of the record that loses most; absent where nothing is released.
    ///
    /// # Errors
    /// A δ that is none.
    pub fn epsilon(&self, delta: f64) -> Result<Option<f64>, AccountantError> {
        if self.train.is_empty() && self.test.is_empty() {
            return Ok(None);
        }
        Ok(Some(composed(&self.train).epsilon(delta)?.max(composed(&self.test).epsilon(delta)?)))
    }
}

/// What guards a mode's releases, for summaries, promises and people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guard {
    /// Name of the mechanism.
    pub mechanism: String,
    /// Standard deviation of the noise on every released value, before it is cut to one bit where it is.
    pub sigma: Option<f64>,
    /// The l2 norm to which what is released of a record is clipped.
    pub clip: Option<f64>,
    /// What is done about labels.
    pub labels: String,
    /// r, t and t' of a split of features.
    pub split: Option<SplitPromise>,
}

/// r, t, t' of Delta's split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitPromise {
    /// Principal channels kept, r.
    pub rank: usize,
    /// Side of a DCT block, t.
    pub block: usize,
    /// Side of the low frequencies kept of a block, t'.
    pub kept: usize,
}

/// Whether clients may be answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Serving {
    /// They may not.
    Refused {
        /// Which setting forbids it.
        what: String,
        /// Why.
        why: &'static str,
    },
    /// They may.
    Served {
        /// What the record of one answer loses, release by release.
        losses: Vec<Loss>,
        /// What guards the releases; absent where there are none.
        guard: Option<Guard>,
        /// Whether weights can be streamed while it is served.
        can_stream: bool,
    },
}

/// What a run is for: settings that are harmless for one may be insecure for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training, and evaluation.
    Training,
    /// Answers to clients.
    Serving,
}

/// What is computed where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// In words.
    pub text: String,
    /// Layer by layer; the first row names the columns.
    pub table: Vec<[String; 5]>,
}

/// A program that is no part of this workspace, called with `evaluate`, a network, weights and data; it answers by a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluator {
    /// Its name: it stands beside the command.
    pub program: &'static str,
    /// What builds it.
    pub build: &'static str,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// Multiply-accumulates of one inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Macs {
    /// Of the trusted part, decomposition and folding included.
    pub trusted: u64,
    /// Of the worker, or of the servers.
    pub worker: u64,
}

impl Macs {
    /// Of a whole network; zero for one that cannot be executed.
    pub fn of(network: &Network) -> u64 {
        cost::total_cost(network).map_or(0, |total| total.macs)
    }
}

/// What a mode is built from beside its settings.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The network.
    pub network: Network,
    /// Its weights.
    pub weights: ModelWeights,
    /// What every ε is said of.
    pub terms: PrivacyTerms,
    /// Batch and training set.
    pub sampling: Sampling,
    /// All epochs of training.
    pub epochs: usize,
    /// Who has lost how much so far, and may lose more.
    pub accountant: RecordAccountant,
    /// The worker, where there is one.
    pub backend: Option<Arc<dyn ResidualBackend>>,
    /// Mechanisms and decompositions by name.
    pub registry: &'a Registry,
    /// Threads of the trusted part.
    pub par: Par,
}

impl Parts<'_> {
    /// The facts that these parts are of.
    pub const fn facts(&self) -> Facts<'_> {
        let Self { network, terms, sampling, epochs, registry, .. } = self;
        Facts { network, terms, sampling: *sampling, epochs: *epochs, evaluations: 1, registry }
    }

    /// The worker of a mode that needs one.
    ///
    /// # Errors
    /// There is none.
    pub fn worker(&self, mode: &'static str) -> Result<Arc<dyn ResidualBackend>, ModeError> {
        self.backend.clone().ok_or(ModeError::NoWorker(mode))
    }
}

/// One mode with all its settings, checked.
///
/// What is not said here is refused: a mode is not served, has no plan and no memory beyond the whole network's unless it says so.
pub trait ModeSpec: Debug + Send + Sync {
    /// Name of the family that decodes its settings.
    fn name(&self) -> &'static str;

    /// Name of the entry in an experiment, with its ε where it has one of its own.
    fn label(&self) -> String {
        self.name().to_owned()
    }

    /// Its settings as JSON, for a job or a model file.
    ///
    /// # Errors
    /// They cannot be written.
    fn encode(&self) -> Result<String, serde_json::Error>;

    /// Whether a worker takes part.
    fn needs_worker(&self) -> bool;

    /// Precision of what is sent to the worker and of its answers.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Whether images ever enter the trusted part's computation: not where the worker computes everything.
    fn computes_here(&self) -> bool {
        true
    }

    /// A network with the parameters that are trained, in the order of their state.
    ///
    /// # Errors
    /// A network that the mode cannot execute.
    fn stored_network(&self, network: &Network) -> Result<Network, ModeError> {
        network.validate()?;
        Ok(network.clone())
    }

    /// Refuses settings that no run of this mode can have.
    ///
    /// # Errors
    /// What is missing or contradicts itself.
    fn check(&self, facts: &Facts<'_>) -> Result<(), ModeError> {
        self.stored_network(facts.network).map(drop)
    }

    /// Whether training may be eased and taught ([`TrainSpec`](crate::job::TrainSpec)).
    fn takes_lessons(&self) -> bool {
        true
    }

    /// Whether the test records are classified at the end alone, because each answer is dear.
    fn evaluates_once(&self) -> bool {
        false
    }

    /// The program that classifies test images when training is over, where it is not the mode itself.
    fn evaluator(&self) -> Option<Evaluator> {
        None
    }

    /// What a run releases of a record.
    ///
    /// # Errors
    /// Settings for which no loss is defined.
    fn losses(&self, facts: &Facts<'_>) -> Result<Losses, ModeError>;

    /// What guards these releases; absent where there are none.
    ///
    /// # Errors
    /// Settings for which no noise is known.
    fn guard(&self, facts: &Facts<'_>) -> Result<Option<Guard>, ModeError>;

    /// ε that the settings promise by themselves, where they promise any.
    fn promised_epsilon(&self) -> Option<f64> {
        None
    }

    /// What every ε of it takes as given, though it was made of the same records; `none` where it is nothing.
    fn condition(&self) -> &'static str {
        "none"
    }

    /// Names of the settings in force that are no guarantee.
    fn insecure(&self, purpose: Purpose) -> Vec<String>;

    /// What a user must be told of them.
    fn caveat(&self) -> Option<&'static str> {
        None
    }

    /// Whether and how clients are answered.
    ///
    /// # Errors
    /// Settings for which no loss is defined.
    fn serving(&self, _facts: &Facts<'_>) -> Result<Serving, ModeError> {
        let what = format!("mode {}", self.name());
        Ok(Serving::Refused { what, why: "it says nothing of clients" })
    }

    /// Whether its weights are those of the plain network, so that any other such mode can go on with them.
    fn is_whole(&self) -> bool {
        false
    }

    /// Whether what is released of a record depends on the others of its batch.
    fn shares_basis(&self, _registry: &Registry) -> bool {
        false
    }

    /// Where each convolution is computed, for modes that decide that one by one: in training, or by a mode that only infers.
    ///
    /// # Errors
    /// A network or settings that cannot be planned.
    fn plan(&self, _network: &Network, _batch: usize, _pass: Pass) -> Result<Option<Plan>, ModeError> {
        Ok(None)
    }

    /// Multiply-accumulates of one inference of a batch of `batch`.
    ///
    /// # Errors
    /// A network or settings that cannot be planned.
    fn macs(&self, network: &Network, batch: usize) -> Result<Macs, ModeError>;

    /// What is computed where, for modes that have no plan by convolutions to show.
    ///
    /// # Errors
    /// A network or settings that cannot be planned.
    fn explain(&self, _network: &Network) -> Result<Option<Explained>, ModeError> {
        Ok(None)
    }

    /// Memory of the trusted part at `work`.
    ///
    /// # Errors
    /// A network or settings that make no mode.
    fn memory(&self, work: &Work<'_>) -> Result<MemoryPlan, MemoryError>;

    /// Builds the mode.
    ///
    /// # Errors
    /// Settings or weights that do not fit, or a worker that cannot be opened.
    fn build(&self, parts: Parts<'_>) -> Result<Box<dyn Mode>, ModeError>;
}

/// A mode and its settings as they travel: in a job, in a model file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeRef {
    /// Name of the family.
    pub name: String,
    /// Settings as JSON.
    pub settings: String,
}

impl ModeRef {
    /// Of a specification.
    ///
    /// # Errors
    /// Its settings cannot be written.
    pub fn of(spec: &dyn ModeSpec) -> Result<Self, ModeError> {
        let settings = spec.encode().map_err(|error| ModeError::Malformed { mode: spec.name().to_owned(), error })?;
        Ok(Self { name: spec.name().to_owned(), settings })
    }
}

/// The sections of an experiment that modes read their settings from.
#[derive(Clone, Debug, Default)]
pub struct Sections {
    /// By name, each as JSON.
    pub values: BTreeMap<String, serde_json::Value>,
}

impl Sections {
    /// The section `name`, as by default where it is absent.
    ///
    /// # Errors
    /// It does not parse.
    pub fn get<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, ModeError> {
        let Some(value) = self.values.get(name) else { return Ok(T::default()) };
        T::deserialize(value).map_err(|error| ModeError::Section { section: name.to_owned(), error })
    }
}

/// What an entry of an experiment asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Name before the `@`.
    pub name: &'a str,
    /// ε behind it.
    pub epsilon: Option<f64>,
    /// The network.
    pub network: &'a Network,
    /// Epochs of training.
    pub epochs: usize,
    /// The experiment's sections.
    pub sections: &'a Sections,
}

/// Reads the specifications of one or more modes.
pub trait ModeFamily: Debug + Send + Sync {
    /// Names of entries, the first of which names the family.
    fn names(&self) -> &'static [&'static str];

    /// Name of a section of an experiment that is its own, read by [`Sections::get`]; the modes of this crate read sections that every
    /// experiment has.
    fn section(&self) -> Option<&'static str> {
        None
    }

    /// Whether an entry takes an ε of its own behind an `@`: every positive number, `inf` only where `Some(true)`.
    fn takes_epsilon(&self, _name: &str) -> Option<bool> {
        None
    }

    /// The specification that an entry of an experiment asks for.
    ///
    /// # Errors
    /// Settings that contradict each other, or a network that cannot be run so.
    fn spec(&self, asked: &Asked<'_>) -> Result<Arc<dyn ModeSpec>, ModeError>;

    /// Inverse of [`ModeSpec::encode`].
    ///
    /// # Errors
    /// Not its settings.
    fn decode(&self, settings: &str) -> Result<Arc<dyn ModeSpec>, serde_json::Error>;
}

impl PrivacyTerms {
    /// The budget of every record: the one set, or what the mode promises by itself.
    pub fn budget(&self, spec: &dyn ModeSpec) -> Option<Budget> {
        let epsilon = self.budget_epsilon.or_else(|| spec.promised_epsilon())?;
        Some(Budget { epsilon, delta: self.delta })
    }
}
