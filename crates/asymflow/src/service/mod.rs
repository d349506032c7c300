//! Answers for clients: a trained network, kept by the trusted part, and asked about images one batch at a time.
//!
//! A client's image comes in as pixels and its logits go out to that client; in between, only what the mode releases
//! leaves the trusted part. Every answer is charged to the client's budget before anything is released.

mod answers;
mod ledgers;
mod model;
mod model_file;
mod promise;
pub mod protocol;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow_engine::streamed::ModelWeights;
use asymflow_engine::timing::Seconds;
use asymflow_privacy::{
    Loss,
    records::{Budget, RecordAccountant, RecordLedger},
};
use asymflow_residual::{ResidualBackend, backend::OpenError};
use faer::Par;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::job::Traffic;
use crate::memory::MemoryUse;
use crate::modes::{ExecError, Guard, Mode, ModeError, ModeSpec, Parts, Registry, Serving};
use crate::run::RunError;

pub use crate::hex::{hex, sha256_hex};
pub use answers::{Answers, Asked, Query};
pub use ledgers::{AccountError, AccountLimits, ChargeError, ClientId, Ledgers, Malformed, TokensError};
pub use model::{ModelFileError, ServedModel};
pub use model_file::{ModelFile, ReadModel};
pub use promise::{Promise, PromiseError};

/// Why a model cannot be served.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The mode cannot be set up.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] asymflow_zoo::weights::WeightsError),
    /// The worker cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The settings do not allow answers to strangers.
    #[error("{what} is not served: {why}")]
    Refused {
        /// Which setting.
        what: String,
        /// Why.
        why: &'static str,
    },
    /// The trusted part failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Answers that are remembered where nothing else is asked for.
pub const REMEMBERED: usize = 1 << 16;

/// How clients are answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceSettings {
    /// Records of every message to the worker, answers or coins.
    pub batch: usize,
    /// The most that one client may lose over all its images; unlimited without one.
    pub budget_epsilon: Option<f64>,
    /// Answers that are remembered, so that the same image costs nothing again.
    pub remembered: usize,
    /// How many clients there may be.
    pub accounts: AccountLimits,
    /// How long a lost worker is waited for.
    pub patience: Duration,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        let patience = Duration::from_secs(30);
        Self { batch: 8, budget_epsilon: None, remembered: REMEMBERED, accounts: AccountLimits::default(), patience }
    }
}

/// What a client hears about one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// One a class.
    pub logits: Vec<f32>,
    /// Whether it had been asked before and cost nothing now.
    pub is_remembered: bool,
}

/// Why a client gets no answer.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QueryError {
    /// An image of another size.
    #[error("an image has {expected} bytes, got {got}")]
    Image {
        /// Bytes of an image of the network.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// It cannot be charged to the client. Nothing was released.
    #[error(transparent)]
    Charge(#[from] ChargeError),
    /// The losses could not be kept, so nothing was released.
    #[error("the client's losses could not be kept, so nothing was released")]
    Unkept,
    /// The trusted part or the worker failed; what was charged stays charged.
    #[error("{0}")]
    Failed(String),
}

/// What a service has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Images answered, remembered ones included.
    pub answered: u64,
    /// Of them, those that had been asked before.
    pub remembered: u64,
    /// Images refused.
    pub refused: u64,
    /// Messages to the worker.
    pub batches: u64,
    /// Wall-clock seconds of batches.
    pub busy_seconds: f64,
    /// Seconds by part.
    pub parts: Seconds,
    /// Bytes to the worker and back.
    pub traffic: Traffic,
    /// The most memory that the process held so far.
    pub memory: MemoryUse,
}

/// A line of counters, as a serving process prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Of the service.
    pub service: ServiceStats,
    /// Sessions that were accepted.
    pub sessions: u64,
    /// Connections that were closed because there were too many.
    pub refused_connections: u64,
    /// Sessions that ended by a failed handshake, a missed deadline or a malformed message.
    pub failed_sessions: u64,
    /// Memory of the process, as far as the operating system tells.
    pub resident_bytes: Option<u64>,
}

/// Keeps the losses of clients somewhere that outlives the process.
pub trait Keeper: Send {
    /// Keeps what `charged` have lost by now, before anything is released. The error is for the log.
    ///
    /// # Errors
    /// It is not kept.
    fn keep(&mut self, ledgers: &Ledgers, charged: &[ClientId]) -> Result<(), String>;

    /// Keeps the `new` of these answers, which were charged already, so that a later process gives them again at no cost. Whoever
    /// asked pays again for one that is lost, so nothing waits for them and a failure is no error.
    fn remember(&mut self, _answers: &Answers, _new: &[Asked]) {}

    /// What a client can show later, to be refused by a service that has gone back to an older state; `None` where nothing is
    /// kept yet or no witness can be given.
    fn witness(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Whether what is kept is at least as new as what a client has seen.
    ///
    /// # Errors
    /// It is older, or this was never given to a client; in words for the client.
    fn check_witness(&mut self, _witness: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// A network that answers clients.
pub struct Service {
    mode: Box<dyn Mode>,
    spec: Arc<dyn ModeSpec>,
    guard: Option<Guard>,
    model: ServedModel,
    settings: ServiceSettings,
    budget: Option<Budget>,
    losses: Vec<Loss>,
    ledgers: Ledgers,
    answers: Answers,
    keeper: Option<Box<dyn Keeper>>,
    pixel_values: Vec<[f32; 256]>,
    stats: ServiceStats,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("model", &self.model.network.name).field("settings", &self.settings).finish()
    }
}

/// Where a query's logits come from.
enum Source {
    Row(usize),
    Remembered(Vec<f32>),
    Refused(QueryError),
}

impl Service {
    /// A service of `model` with `weights`, flattened. `worker` is opened where the mode needs one.
    ///
    /// # Errors
    /// Settings that cannot be served, weights that do not fit, or a worker that cannot be opened.
    pub fn new(
        model: ServedModel,
        weights: &[f32],
        worker: Option<&Arc<dyn ResidualBackend>>,
        settings: ServiceSettings,
        (registry, par): (&Registry, Par),
    ) -> Result<Self, ServiceError> {
        let network = registry.decode(&model.mode)?.stored_network(&model.network)?;
        let weights = asymflow_zoo::Weights::unflatten(&network, weights)?;
        Self::with_weights(model, weights.into(), worker, settings, (registry, par))
    }

    /// As [`Service::new`], with weights that are moved in or streamed.
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn with_weights(
        model: ServedModel,
        weights: ModelWeights,
        worker: Option<&Arc<dyn ResidualBackend>>,
        settings: ServiceSettings,
        (registry, par): (&Registry, Par),
    ) -> Result<Self, ServiceError> {
        let spec = registry.decode(&model.mode)?;
        spec.check(&model.facts(registry))?;
        let (losses, guard) = match spec.serving(&model.facts(registry))? {
            Serving::Served { losses, guard, .. } => (losses, guard),
            Serving::Refused { what, why } => return Err(ServiceError::Refused { what, why }),
        };
        let parts = Parts {
            network: model.network.clone(),
            weights,
            terms: model.terms,
            sampling: model.sampling,
            epochs: 0,
            accountant: RecordAccountant::prepaid(0, &losses),
            backend: worker.map(Arc::clone),
            registry,
            par,
        };
        let mut mode = spec.build(parts)?;
        if mode.answering().is_none() {
            let (what, why) = (format!("mode {}", spec.name()), "it answers no clients");
            return Err(ServiceError::Refused { what, why });
        }
        let budget = settings.budget_epsilon.map(|epsilon| Budget { epsilon, delta: model.terms.delta });
        Ok(Self {
            pixel_values: model.normalization.values(model.network.input.channels),
            ledgers: Ledgers::new(settings.accounts),
            answers: Answers::new(settings.remembered),
            keeper: None,
            stats: ServiceStats::default(),
            mode,
            spec,
            guard,
            model,
            settings,
            budget,
            losses,
        })
    }

    /// Goes on with the losses of clients that an earlier process kept.
    #[must_use]
    pub fn with_ledgers(mut self, ledgers: Ledgers) -> Self {
        self.ledgers = ledgers;
        self
    }

    /// Keeps what clients lose, and are answered, with `keeper` from now on.
    #[must_use]
    pub fn with_keeper(mut self, keeper: Box<dyn Keeper>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Gives what an earlier process answered again, at no cost.
    #[must_use]
    pub fn with_answers(mut self, answers: Answers) -> Self {
        self.answers = answers;
        self
    }

    /// The model.
    pub const fn model(&self) -> &ServedModel {
        &self.model
    }

    /// What the mode says of itself.
    pub fn mode(&self) -> &dyn ModeSpec {
        &*self.spec
    }

    /// What guards the releases; absent where there are none.
    pub const fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// ε that one answer costs; absent where nothing is released.
    pub fn answer_epsilon(&self) -> Option<f64> {
        let mut ledger = RecordLedger::default();
        self.losses.iter().for_each(|&loss| ledger.add(loss));
        let epsilon = || ledger.epsilon(self.model.terms.delta).unwrap_or(f64::INFINITY);
        (!self.losses.is_empty()).then(epsilon)
    }

    /// The account of a client that shows `secret`, as [`Ledgers::admit`] finds it.
    ///
    /// # Errors
    /// It has none and gets none.
    pub fn admit(&mut self, secret: &[u8; 32], generation: Option<u64>) -> Result<ClientId, AccountError> {
        self.ledgers.admit(secret, generation)
    }

    /// ε that a client has lost so far.
    pub fn spent_epsilon(&self, client: &ClientId) -> f64 {
        self.ledgers.spent(client).epsilon(self.model.terms.delta).unwrap_or(f64::INFINITY)
    }

    /// What a client can show at its next visit: a witness of what it was charged to.
    pub fn witness(&mut self) -> Option<Vec<u8>> {
        self.keeper.as_mut()?.witness()
    }

    /// Whether this service's state is at least as new as what a client has seen.
    ///
    /// # Errors
    /// It is older: somebody put it back, and budgets with it.
    pub fn check_witness(&mut self, witness: &[u8]) -> Result<(), String> {
        self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.check_witness(witness))
    }

    /// What was done so far.
    pub fn stats(&self) -> ServiceStats {
        let mut stats = self.stats;
        self.mode.seconds().iter().for_each(|seconds| stats.parts.add(seconds));
        if let Some(worker) = self.mode.worker() {
            stats.traffic = Traffic { to_worker: worker.bytes_to_worker, from_worker: worker.bytes_from_worker };
        }
        stats.memory = MemoryUse::now();
        stats
    }

    /// Answers up to a batch of queries with one message to the worker, whatever their number.
    ///
    /// Queries beyond the batch are answered with further messages.
    pub fn answer(&mut self, queries: &[Query]) -> Vec<Result<Answer, QueryError>> {
        let start = Instant::now();
        let batch = self.settings.batch.max(1);
        let answers = queries.chunks(batch).flat_map(|some| self.answer_batch(some)).collect();
        self.stats.busy_seconds += start.elapsed().as_secs_f64();
        answers
    }

    fn answer_batch(&mut self, queries: &[Query]) -> Vec<Result<Answer, QueryError>> {
        let mut rows = Vec::new();
        let (sources, charged) = self.sources(queries, &mut rows);
        let computed = self.compute(&rows, &charged);
        let classes = self.model.network.classes;
        let mut new = Vec::new();
        let answers = sources
            .into_iter()
            .zip(queries)
            .map(|(source, query)| {
                let (logits, is_remembered) = match source {
                    Source::Refused(error) => {
                        self.stats.refused += 1;
                        return Err(error);
                    }
                    Source::Remembered(logits) => (logits, true),
                    Source::Row(row) => {
                        let logits = computed.as_ref().map_err(Clone::clone)?;
                        let logits = logits.get(row * classes..(row + 1) * classes).unwrap_or_default().to_vec();
                        let asked = Asked::of(query);
                        if self.answers.remember(asked, &logits) {
                            new.push(asked);
                        }
                        (logits, false)
                    }
                };
                self.stats.answered += 1;
                self.stats.remembered += u64::from(is_remembered);
                Ok(Answer { logits, is_remembered })
            })
            .collect();
        // What costs nothing is computed again.
        if let Some(keeper) = self.keeper.as_mut().filter(|_| !self.losses.is_empty() && !new.is_empty()) {
            keeper.remember(&self.answers, &new);
        }
        answers
    }

    /// Decides for each query where its answer comes from, charging those that cost, and says whom; `rows` are the images to
    /// compute.
    fn sources<'a>(&mut self, queries: &'a [Query], rows: &mut Vec<&'a [u8]>) -> (Vec<Source>, Vec<ClientId>) {
        let (mut charged, now) = (Vec::new(), Instant::now());
        let expected = self.model.network.input.len();
        let mut asked_now: HashMap<Asked, usize> = HashMap::new();
        let mut source = |query: &'a Query| {
            let got = query.image.len();
            if got != expected {
                return Source::Refused(QueryError::Image { expected, got });
            }
            let asked = Asked::of(query);
            if let Some(logits) = self.answers.get(&asked) {
                return Source::Remembered(logits.to_vec());
            }
            if let Some(&row) = asked_now.get(&asked) {
                return Source::Row(row);
            }
            match self.ledgers.charge(query.client, &self.losses, self.budget, now) {
                Ok(()) => {
                    charged.push(query.client);
                    rows.push(&query.image);
                    asked_now.insert(asked, rows.len() - 1);
                    Source::Row(rows.len() - 1)
                }
                Err(error) => Source::Refused(error.into()),
            }
        };
        let sources = queries.iter().map(&mut source).collect();
        (sources, charged)
    }

    /// Logits of the rows. A batch in which everything is remembered or refused still goes to the worker, so that the
    /// number of messages does not tell.
    fn compute(&mut self, rows: &[&[u8]], charged: &[ClientId]) -> Result<Vec<f32>, QueryError> {
        if !self.losses.is_empty() && !rows.is_empty() && !self.keep(charged) {
            return Err(QueryError::Unkept);
        }
        let (shape, samples) = (self.model.network.input, rows.len().max(1));
        let mut images: Vec<f32> = rows
            .iter()
            .flat_map(|image| image.chunks_exact(shape.pixels()).zip(&self.pixel_values))
            .flat_map(|(plane, values)| plane.iter().map(|&pixel| values[usize::from(pixel)]))
            .collect();
        images.resize(samples * shape.len(), 0.0);
        self.stats.batches += 1;
        let padded = self.settings.batch.max(samples);
        if let Some(door) = self.mode.door() {
            // Charged to the clients already: the door lets out as much, and no more.
            door.count_with(RecordAccountant::prepaid(padded, &self.losses));
        }
        let patience = self.settings.patience;
        let no_answers = || QueryError::Failed("the mode answers no clients".to_owned());
        let answer = self.mode.answering().ok_or_else(no_answers)?.answer(&images, samples, padded, patience);
        // The error may name values of the image: the client hears the kind alone.
        answer.map_err(|error| QueryError::Failed(RunError::from(error).failure().detail))
    }

    fn keep(&mut self, charged: &[ClientId]) -> bool {
        self.keeper.as_mut().is_none_or(|keeper| keeper.keep(&self.ledgers, charged).is_ok())
    }
}
