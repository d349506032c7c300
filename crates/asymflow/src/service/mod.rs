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
use asymflow_privacy::{Budget, BudgetError, Loss, RecordLedger};
use asymflow_residual::{OpenError, ResidualBackend};
use faer::Par;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ExecError;
use crate::accounting::RecordAccountant;
use crate::delta::{Labels, Variant};
use crate::job::{ModeKind, SharesSpec, Traffic};
use crate::memory::MemoryUse;
use crate::modes::Mode;
use crate::run::{Parts, RunError, build};

pub use answers::{Answers, Asked};
pub use ledgers::{ClientId, Ledgers, LedgersError};
pub use model::{ModelFileError, ServedModel};
pub use model_file::{ModelFile, ReadModel};
pub use promise::{Promise, PromiseError, hex, sha256_hex};

/// Why a model cannot be served.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The mode cannot be set up.
    #[error(transparent)]
    Run(#[from] RunError),
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
    /// A kept state is unusable.
    #[error(transparent)]
    Ledgers(#[from] LedgersError),
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
    /// Clients whose losses are kept; more are refused.
    pub clients: usize,
    /// How long a lost worker is waited for.
    pub patience: Duration,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        let patience = Duration::from_secs(30);
        Self { batch: 8, budget_epsilon: None, remembered: REMEMBERED, clients: 100_000, patience }
    }
}

/// An image that a client asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Who asks.
    pub client: ClientId,
    /// Channels × height × width bytes, as in a data set.
    pub image: Vec<u8>,
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
    /// The client's budget does not allow it. Nothing was released.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// No room for another client.
    #[error("losses of {limit} clients are kept already, and no more")]
    Full {
        /// The limit.
        limit: usize,
    },
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
    /// Keeps them before anything is released. The error is for the log.
    ///
    /// # Errors
    /// They are not kept.
    fn keep(&mut self, ledgers: &[u8]) -> Result<(), String>;

    /// Keeps answers that were charged already, so that a later process gives them again at no cost. Whoever asked pays again
    /// for one that is lost, so nothing waits for them and a failure is no error.
    fn remember(&mut self, _answers: &[(Asked, Vec<f32>)]) {}

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
        par: Par,
    ) -> Result<Self, ServiceError> {
        let network = model.settings().stored_network().map_err(RunError::from)?;
        let weights = asymflow_zoo::Weights::unflatten(&network, weights).map_err(RunError::from)?;
        Self::with_weights(model, weights.into(), worker, settings, par)
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
        par: Par,
    ) -> Result<Self, ServiceError> {
        check(&model)?;
        let parts = Parts {
            split: model.split.clone(),
            epochs: 1,
            sampling: model.sampling,
            accountant: RecordAccountant::new(1),
            shares: SharesSpec::default(),
        };
        let (mode, _) = build(model.settings(), weights, parts, worker, par)?;
        let losses = mode.answer_losses()?;
        let budget = settings.budget_epsilon.map(|epsilon| Budget { epsilon, delta: model.privacy.delta });
        Ok(Self {
            pixel_values: model.normalization.values(model.network.input.channels),
            ledgers: Ledgers::new(settings.clients),
            answers: Answers::new(settings.remembered),
            keeper: None,
            stats: ServiceStats::default(),
            mode,
            model,
            settings,
            budget,
            losses,
        })
    }

    /// Goes on with the losses of clients that an earlier process kept, and keeps them with `keeper` from now on.
    ///
    /// # Errors
    /// Bytes that are no kept losses: a service must not start with fresh budgets in their place.
    pub fn with_keeper(mut self, kept: Option<&[u8]>, keeper: Box<dyn Keeper>) -> Result<Self, ServiceError> {
        if let Some(bytes) = kept {
            self.ledgers = Ledgers::decode(bytes, self.settings.clients)?;
        }
        self.keeper = Some(keeper);
        Ok(self)
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

    /// σ of the noise on what is released.
    pub fn sigma(&self) -> Option<f64> {
        self.mode.sigma().or(self.model.privacy.sigma.filter(|_| self.model.mode == ModeKind::Asymml))
    }

    /// ε that one answer costs; absent where nothing is released.
    pub fn answer_epsilon(&self) -> Option<f64> {
        let mut ledger = RecordLedger::default();
        self.losses.iter().for_each(|&loss| ledger.add(loss));
        let epsilon = || ledger.epsilon(self.model.privacy.delta).unwrap_or(f64::INFINITY);
        (!self.losses.is_empty()).then(epsilon)
    }

    /// ε that a client has lost so far.
    pub fn spent_epsilon(&self, client: &ClientId) -> f64 {
        self.ledgers.spent(client).epsilon(self.model.privacy.delta).unwrap_or(f64::INFINITY)
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
        let sources = self.sources(queries, &mut rows);
        let computed = self.compute(&rows);
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
                            new.push((asked, logits.clone()));
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
            keeper.remember(&new);
        }
        answers
    }

    /// Decides for each query where its answer comes from, charging those that cost; `rows` are the images to compute.
    fn sources<'a>(&mut self, queries: &'a [Query], rows: &mut Vec<&'a [u8]>) -> Vec<Source> {
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
            match self.ledgers.charge(query.client, &self.losses, self.budget) {
                Ok(()) => {
                    rows.push(&query.image);
                    asked_now.insert(asked, rows.len() - 1);
                    Source::Row(rows.len() - 1)
                }
                Err(error) => Source::Refused(error),
            }
        };
        queries.iter().map(&mut source).collect()
    }

    /// Logits of the rows. A batch in which everything is remembered or refused still goes to the worker, so that the
    /// number of messages does not tell.
    fn compute(&mut self, rows: &[&[u8]]) -> Result<Vec<f32>, QueryError> {
        if !self.losses.is_empty() && !rows.is_empty() && !self.keep() {
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
        let answer = self.mode.answer(&images, samples, self.settings.batch, self.settings.patience);
        if let Some(accountant) = self.mode.accountant() {
            // Charged to the clients already.
            drop(accountant.take_ledger());
        }
        // The error may name values of the image: the client hears the kind alone.
        answer.map_err(|error| QueryError::Failed(RunError::from(error).failure().detail))
    }

    fn keep(&mut self) -> bool {
        let Some(keeper) = &mut self.keeper else { return true };
        self.ledgers.encode().is_ok_and(|bytes| keeper.keep(&bytes).is_ok())
    }
}

/// What may be answered to clients at all.
fn check(model: &ServedModel) -> Result<(), ServiceError> {
    let refused = |what: String, why| Err(ServiceError::Refused { what, why });
    match (model.mode, &model.delta) {
        (ModeKind::Clear | ModeKind::NaiveDp, _) => {
            refused(format!("mode {}", model.mode.name()), "clients would send their images to the worker")
        }
        (ModeKind::Shares, _) => refused("mode shares".to_owned(), "two servers of their own answer it"),
        (ModeKind::Delta, Some(spec)) if spec.variant == Variant::ReleasedCode => refused(
            "variant released-code".to_owned(),
            "the scale of its noise comes from the other clients of the batch, and it holds no epsilon",
        ),
        (ModeKind::Delta, Some(spec)) if spec.labels != Labels::Public => {
            refused("a policy for labels".to_owned(), "there are none; a model file leaves it out")
        }
        (ModeKind::Asymml, _) if model.split.decomposition == "shared-basis" => refused(
            "decomposition shared-basis".to_owned(),
            "a client's answer would depend on the images of the other clients in its batch",
        ),
        _ => Ok(()),
    }
}
