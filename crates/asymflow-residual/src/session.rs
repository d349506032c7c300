//! The session behind every backend of ours, and of others that want it: it checks, numbers and queues what it is told, and
//! one thread executes it in order, or the caller's own where that needs no waiting.
//!
//! With a thread, the caller waits for the [`Executor`] in `collect` alone, and the executor never waits for the caller. Without one
//! ([`Halves`]), the caller waits in `collect`, and when it submits while as many requests are under way as there is room for. What an executor is asked has passed every check that the traits of [`backend`](crate::backend) promise: units
//! exist, lengths fit, values are finite, a gradient follows a forward pass that was kept, only networks are stepped and store
//! records. What it answers is checked in turn: lengths and finite values.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Payload},
};

use asymflow_zoo::ops::Easing;

use crate::backend::{
    Batch, CollectError, NO_MOMENTUM, Pass, ResidualSession, ResidualTraining, SgdStep, SharedValues, SubmitError,
    Ticket, UnitId, Wanted, WorkerStats,
};
use crate::unit::samples;
pub use crate::unit::{UnitSizes, sizes};

/// What an executor is asked for. Units are indices into the model, lengths have been checked.
#[derive(Debug)]
pub enum Request {
    /// Outputs of one batch, as [`ResidualSession::submit`] says.
    Forward {
        /// The unit.
        unit: usize,
        /// Samples × input shape, row-major.
        x: Payload,
        /// Whether a gradient will follow.
        pass: Pass,
    },
    /// Gradients of the latest kept forward pass, as [`ResidualTraining::submit_gradient`] says.
    Gradient {
        /// The unit.
        unit: usize,
        /// Samples × output shape, row-major; no bits.
        dy: Payload,
        /// What to return.
        wanted: Wanted,
    },
    /// New weights, one part after the other.
    SetWeights {
        /// The unit.
        unit: usize,
        /// One number for each weight.
        weights: SharedValues,
    },
    /// A difference to add to the weights of a convolution, exactly as f32 addition of the decoded values does.
    AddWeights {
        /// The unit.
        unit: usize,
        /// One number for each weight; no bits.
        delta: Payload,
    },
    /// A step of a network along its latest gradient.
    Step {
        /// The unit.
        unit: usize,
        /// The step.
        sgd: SgdStep,
    },
    /// What a network's training passes ease from now on.
    Ease {
        /// The unit.
        unit: usize,
        /// The easing.
        easing: Easing,
    },
    /// The weights; [`Answer::values`] are all of them.
    Weights {
        /// The unit.
        unit: usize,
    },
    /// The momentum of a network; [`Answer::values`] are all of it.
    Momentum {
        /// The unit.
        unit: usize,
    },
    /// A network's new momentum, one part after the other.
    SetMomentum {
        /// The unit.
        unit: usize,
        /// One number for each weight.
        momentum: SharedValues,
    },
    /// Everything kept of forward passes and gradients is dropped.
    Reset,
    /// Records to keep for a network.
    Store {
        /// The unit.
        unit: usize,
        /// Number of the first record.
        first: u32,
        /// How many they are.
        samples: u32,
        /// Their bits; a sample fills whole bytes.
        bits: PackedBits,
        /// One label a record, or none at all.
        labels: Vec<u32>,
    },
    /// As [`Request::Forward`], of stored records, which may not exist.
    ForwardStored {
        /// The unit.
        unit: usize,
        /// Numbers of records.
        records: Vec<u32>,
        /// Whether a gradient will follow.
        pass: Pass,
    },
    /// One whole step on stored records, which may not exist or have no label; the answer is the logits from before it.
    TrainStored {
        /// The unit.
        unit: usize,
        /// Numbers of records.
        records: Vec<u32>,
        /// The step.
        sgd: SgdStep,
    },
}

/// How many values an answer must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Outputs, input gradients, weights or momentum.
    pub values: usize,
    /// Weight gradients.
    pub weight_values: usize,
}

/// An answer and what it cost.
#[derive(Debug, Default)]
pub struct Answer {
    /// Outputs, input gradients, weights or momentum; empty where an answer only says that it worked.
    pub values: Vec<f32>,
    /// Weight gradients.
    pub weight_values: Vec<f32>,
    /// What to add to the session's counters. A computation takes more than no time: `busy_seconds` is above zero.
    pub cost: WorkerStats,
}

/// Executes requests one after the other, on a thread of its own.
pub trait Executor: Send {
    /// Does what is asked.
    ///
    /// # Errors
    /// [`CollectError::Lost`] ends the session; every other error leaves it usable.
    fn execute(&mut self, request: Request, expected: Expected) -> Result<Answer, CollectError>;
}

/// Executes requests one after the other in two halves, between which the caller does something else.
pub trait Halves: Send {
    /// Whether another request can be sent off before the first of those under way is answered. Where none is, it always can.
    fn has_room(&self) -> bool;

    /// Sends a request off.
    ///
    /// # Errors
    /// As [`Executor::execute`]; then there is no answer to come.
    fn begin(&mut self, request: Request, expected: Expected) -> Result<(), CollectError>;

    /// Waits for the answer to what was begun first.
    ///
    /// # Errors
    /// As [`Executor::execute`].
    fn finish(&mut self) -> Result<Answer, CollectError>;
}

struct Job {
    number: u64,
    request: Request,
    expected: Expected,
}

type Result_ = Result<Answer, CollectError>;

enum Jobs {
    /// A thread of its own executes.
    Thread(Sender<Job>),
    /// The caller executes as it submits.
    Here { executor: Box<dyn Executor>, outgoing: Sender<(u64, Result_)> },
    /// The caller begins as it submits, and finishes as it collects, or submits where there is no room.
    Halves { halves: Box<dyn Halves>, under_way: VecDeque<(u64, Expected)>, outgoing: Sender<(u64, Result_)> },
}

/// What a pending ticket will become.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Outputs,
    Gradients,
}

/// A session on an [`Executor`]; see the module.
pub struct QueuedSession {
    sizes: Vec<UnitSizes>,
    kept: Vec<Option<usize>>,
    has_gradient: Vec<bool>,
    next: u64,
    jobs: Option<Jobs>,
    answers: Receiver<(u64, Result_)>,
    pending: BTreeMap<u64, Kind>,
    watched: BTreeSet<u64>,
    ready: BTreeMap<u64, Result_>,
    lost: Option<String>,
    stats: Arc<Mutex<WorkerStats>>,
    thread: Option<JoinHandle<()>>,
    hang_up: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for QueuedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueuedSession").field("sizes", &self.sizes).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl QueuedSession {
    /// Starts the executing thread for a model of these [`sizes`]. `hang_up` is called on drop and must make a blocked executor return.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        sizes: Vec<UnitSizes>,
        executor: impl Executor + 'static,
        hang_up: Option<Box<dyn FnOnce() + Send>>,
    ) -> std::io::Result<Self> {
        let (jobs, incoming) = mpsc::channel();
        let (outgoing, answers) = mpsc::channel();
        let mut session = Self::new(sizes, Jobs::Thread(jobs), answers);
        let counters = Arc::clone(&session.stats);
        let thread = std::thread::Builder::new()
            .name("residual-session".to_owned())
            .spawn(move || run(executor, &incoming, &outgoing, &counters))?;
        (session.thread, session.hang_up) = (Some(thread), hang_up);
        Ok(session)
    }

    /// A session without a thread, for a caller that waits for every answer anyway: submitting executes.
    pub fn waiting(sizes: Vec<UnitSizes>, executor: impl Executor + 'static) -> Self {
        let (outgoing, answers) = mpsc::channel();
        Self::new(sizes, Jobs::Here { executor: Box::new(executor), outgoing }, answers)
    }

    /// A session without a thread: what is submitted is sent off at once where there is room, and waited for when it is collected.
    /// For a connection on which sending takes no longer than copying.
    pub fn in_halves(sizes: Vec<UnitSizes>, halves: impl Halves + 'static) -> Self {
        let (outgoing, answers) = mpsc::channel();
        Self::new(sizes, Jobs::Halves { halves: Box::new(halves), under_way: VecDeque::new(), outgoing }, answers)
    }

    fn new(sizes: Vec<UnitSizes>, jobs: Jobs, answers: Receiver<(u64, Result_)>) -> Self {
        Self {
            kept: vec![None; sizes.len()],
            has_gradient: vec![false; sizes.len()],
            sizes,
            next: 0,
            jobs: Some(jobs),
            answers,
            pending: BTreeMap::new(),
            watched: BTreeSet::new(),
            ready: BTreeMap::new(),
            lost: None,
            stats: Arc::default(),
            thread: None,
            hang_up: None,
        }
    }

    fn unit(&self, unit: UnitId) -> Result<(usize, UnitSizes), SubmitError> {
        let index = unit.0 as usize;
        let sizes = self.sizes.get(index).ok_or(SubmitError::Unit { unit: unit.0, units: self.sizes.len() })?;
        Ok((index, *sizes))
    }

    /// Where the caller does both halves: waits for what was begun first, so that its answer is among the others.
    fn finish(&mut self) {
        if let Some(Jobs::Halves { halves, under_way, outgoing }) = &mut self.jobs
            && let Some((number, expected)) = under_way.pop_front()
        {
            let goes_on = answered(halves.finish(), (number, expected), outgoing, &self.stats);
            self.jobs = self.jobs.take().filter(|_| goes_on);
        }
    }

    fn send(&mut self, request: Request, expected: Expected) -> Result<u64, SubmitError> {
        while let Some(Jobs::Halves { halves, under_way, .. }) = &self.jobs
            && !under_way.is_empty()
            && !halves.has_room()
        {
            self.finish();
        }
        loop {
            match self.answers.try_recv() {
                Ok((number, answer)) => self.absorb(number, answer),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.lost.get_or_insert_with(ended);
                    break;
                }
            }
        }
        if let Some(reason) = &self.lost {
            return Err(SubmitError::Lost { reason: reason.clone() });
        }
        let number = self.next;
        self.next += 1;
        let job = Job { number, request, expected };
        let is_sent = match &mut self.jobs {
            Some(Jobs::Thread(jobs)) => jobs.send(job).is_ok(),
            Some(Jobs::Here { executor, outgoing }) => {
                do_job(executor.as_mut(), job, outgoing, &self.stats);
                true
            }
            Some(Jobs::Halves { halves, under_way, outgoing }) => {
                match halves.begin(job.request, expected) {
                    Ok(()) => under_way.push_back((number, expected)),
                    Err(error) => drop(outgoing.send((number, Err(error)))),
                }
                true
            }
            None => false,
        };
        if is_sent { Ok(number) } else { Err(SubmitError::Lost { reason: ended() }) }
    }

    /// Files one answer. A failure that no ticket reports leaves the weights unknown, so it ends the session.
    fn absorb(&mut self, number: u64, answer: Result_) {
        if let Err(CollectError::Lost { reason }) = &answer {
            self.lost.get_or_insert_with(|| reason.clone());
        }
        let unseen = self.watched.remove(&number);
        if self.pending.contains_key(&number) {
            self.ready.insert(number, answer);
        } else if let (true, Err(error)) = (unseen, answer) {
            self.lost.get_or_insert_with(|| error.to_string());
        }
    }

    fn wait(&mut self, number: u64) -> Result_ {
        loop {
            if let Some(answer) = self.ready.remove(&number) {
                return answer;
            }
            self.finish();
            match self.answers.recv() {
                Ok((number, answer)) => self.absorb(number, answer),
                Err(_) => {
                    let reason = self.lost.get_or_insert_with(ended).clone();
                    return Err(CollectError::Lost { reason });
                }
            }
        }
    }

    /// Sends a request for the logits of stored records.
    fn ask_stored(
        &mut self,
        unit: UnitId,
        sizes: UnitSizes,
        records: usize,
        request: Request,
    ) -> Result<Ticket, SubmitError> {
        if !sizes.is_network {
            return Err(SubmitError::Unsupported { unit: unit.0, what: STORED });
        }
        if records == 0 {
            return Err(SubmitError::Length { unit: unit.0, got: 0, sample: 1 });
        }
        let number = self.send(request, Expected { values: records * sizes.output, weight_values: 0 })?;
        self.pending.insert(number, Kind::Outputs);
        Ok(Ticket(number))
    }

    /// Sends a request whose answer says only whether it worked.
    fn order(&mut self, request: Request) -> Result<(), SubmitError> {
        let number = self.send(request, Expected::default())?;
        self.watched.insert(number);
        Ok(())
    }

    /// Sends a request whose answer is one number for each weight.
    fn fetch(&mut self, request: Request, sizes: UnitSizes) -> Result<Vec<f32>, CollectError> {
        let number = self.send(request, Expected { values: sizes.weights, weight_values: 0 }).map_err(failed)?;
        self.pending.insert(number, Kind::Outputs);
        match self.collect(Ticket(number))? {
            Batch::Outputs(values) => Ok(values),
            Batch::Gradients { .. } => Err(CollectError::Malformed { reason: "gradients for weights".to_owned() }),
        }
    }
}

const STORED: &str = "only a network whose samples fill whole bytes stores records";

fn ended() -> String {
    "its session has ended".to_owned()
}

fn run(
    mut executor: impl Executor,
    incoming: &Receiver<Job>,
    outgoing: &Sender<(u64, Result_)>,
    stats: &Mutex<WorkerStats>,
) {
    while let Ok(job) = incoming.recv() {
        if !do_job(&mut executor, job, outgoing, stats) {
            return;
        }
    }
}

/// Whether there is anything to do after `job`.
fn do_job(
    executor: &mut dyn Executor,
    Job { number, request, expected }: Job,
    outgoing: &Sender<(u64, Result_)>,
    stats: &Mutex<WorkerStats>,
) -> bool {
    answered(executor.execute(request, expected), (number, expected), outgoing, stats)
}

/// Counts and checks an answer, and hands it over; whether there is anything to do after it.
fn answered(
    answer: Result_,
    (number, expected): (u64, Expected),
    outgoing: &Sender<(u64, Result_)>,
    stats: &Mutex<WorkerStats>,
) -> bool {
    let answer = answer.and_then(|answer| {
        let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.busy_seconds += answer.cost.busy_seconds;
        stats.transfer_seconds += answer.cost.transfer_seconds;
        stats.bytes_to_worker += answer.cost.bytes_to_worker;
        stats.bytes_from_worker += answer.cost.bytes_from_worker;
        check(answer, expected)
    });
    let is_lost = matches!(answer, Err(CollectError::Lost { .. }));
    outgoing.send((number, answer)).is_ok() && !is_lost
}

fn check(answer: Answer, expected: Expected) -> Result_ {
    for (what, values, expected) in [
        ("values", &answer.values, expected.values),
        ("weight gradients", &answer.weight_values, expected.weight_values),
    ] {
        if values.len() != expected {
            let reason = format!("{} {what}, expected {expected}", values.len());
            return Err(CollectError::Malformed { reason });
        }
        if let Some(index) = Payload::first_non_finite_of(values) {
            return Err(CollectError::NonFinite { reason: format!("number {index} of the {what}") });
        }
    }
    Ok(answer)
}

fn exactly(unit: UnitId, got: usize, weights: usize) -> Result<(), SubmitError> {
    if got == weights { Ok(()) } else { Err(SubmitError::Length { unit: unit.0, got, sample: weights }) }
}

/// Whether `parts` are one finite number for each weight of `unit`.
fn fitting<P: AsRef<[f32]>>(unit: UnitId, parts: &[P], sizes: UnitSizes) -> Result<(), SubmitError> {
    exactly(unit, parts.iter().map(|part| part.as_ref().len()).sum(), sizes.weights)?;
    let mut before = 0;
    for part in parts {
        if let Some(index) = Payload::first_non_finite_of(part.as_ref()) {
            return Err(SubmitError::NonFinite { unit: unit.0, index: before + index });
        }
        before += part.as_ref().len();
    }
    Ok(())
}

/// Whether `unit` is stepped, and so has a momentum.
fn stepped(unit: UnitId, sizes: UnitSizes) -> Result<(), SubmitError> {
    if sizes.is_network { Ok(()) } else { Err(SubmitError::Unsupported { unit: unit.0, what: NO_MOMENTUM }) }
}

/// A request that could not be sent, as the error of its answer.
fn failed(error: SubmitError) -> CollectError {
    match error {
        SubmitError::Lost { reason } => CollectError::Lost { reason },
        other => CollectError::Failed { reason: other.to_string() },
    }
}

fn finite(unit: UnitId, payload: &Payload) -> Result<(), SubmitError> {
    payload.first_non_finite().map_or(Ok(()), |index| Err(SubmitError::NonFinite { unit: unit.0, index }))
}

impl ResidualSession for QueuedSession {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        let x = x.into_inner();
        let samples = samples(unit, x.len(), sizes.input)?;
        finite(unit, &x)?;
        let expected = Expected { values: samples * sizes.output, weight_values: 0 };
        let number = self.send(Request::Forward { unit: index, x, pass }, expected)?;
        if let (Pass::Training, Some(kept)) = (pass, self.kept.get_mut(index)) {
            *kept = Some(samples);
        }
        self.pending.insert(number, Kind::Outputs);
        Ok(Ticket(number))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        let kind = self.pending.get(&ticket.0).copied().ok_or(CollectError::Ticket(ticket))?;
        let answer = self.wait(ticket.0);
        self.pending.remove(&ticket.0);
        let Answer { values, weight_values, .. } = answer?;
        Ok(match kind {
            Kind::Outputs => Batch::Outputs(values),
            Kind::Gradients => Batch::Gradients { input: values, weights: weight_values },
        })
    }

    fn stats(&self) -> WorkerStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResidualTraining for QueuedSession {
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        let dy = dy.into_inner();
        if matches!(dy, Payload::Bits(_)) {
            return Err(SubmitError::Unsupported { unit: unit.0, what: "a gradient of bits" });
        }
        let samples = samples(unit, dy.len(), sizes.output)?;
        finite(unit, &dy)?;
        if self.kept.get(index).copied().flatten() != Some(samples) {
            return Err(SubmitError::NoForward { unit: unit.0, samples });
        }
        let weights = wanted.weights && !sizes.is_network;
        let expected = Expected {
            values: if wanted.input { samples * sizes.input } else { 0 },
            weight_values: if weights { sizes.weights } else { 0 },
        };
        let wanted = Wanted { weights, ..wanted };
        let number = self.send(Request::Gradient { unit: index, dy, wanted }, expected)?;
        if let (Some(kept), Some(has)) = (self.kept.get_mut(index), self.has_gradient.get_mut(index)) {
            *kept = None;
            *has = true;
        }
        self.pending.insert(number, Kind::Gradients);
        Ok(Ticket(number))
    }

    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        fitting(unit, &[weights], sizes)?;
        self.order(Request::SetWeights { unit: index, weights: Arc::new(vec![weights.to_vec()]) })
    }

    fn share_weights(&mut self, unit: UnitId, weights: &SharedValues) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        fitting(unit, weights, sizes)?;
        self.order(Request::SetWeights { unit: index, weights: Arc::clone(weights) })
    }

    fn settle(&mut self) -> Result<(), SubmitError> {
        while self.lost.is_none() && !self.watched.is_empty() {
            self.finish();
            match self.answers.recv() {
                Ok((number, answer)) => self.absorb(number, answer),
                Err(_) => drop(self.lost.get_or_insert_with(ended)),
            }
        }
        self.lost.as_ref().map_or(Ok(()), |reason| Err(SubmitError::Lost { reason: reason.clone() }))
    }

    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        if sizes.is_network {
            return Err(SubmitError::Unsupported { unit: unit.0, what: "weights of a network cannot be added to" });
        }
        if matches!(delta, Payload::Bits(_)) {
            return Err(SubmitError::Unsupported { unit: unit.0, what: "a difference of bits" });
        }
        exactly(unit, delta.len(), sizes.weights)?;
        finite(unit, &delta)?;
        self.order(Request::AddWeights { unit: index, delta })
    }

    fn step(&mut self, unit: UnitId, sgd: SgdStep) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        if !sizes.is_network {
            return Err(SubmitError::Unsupported { unit: unit.0, what: "a convolution is stepped by add_weights" });
        }
        if self.has_gradient.get(index) != Some(&true) {
            return Err(SubmitError::NoForward { unit: unit.0, samples: 0 });
        }
        self.order(Request::Step { unit: index, sgd })?;
        if let Some(has) = self.has_gradient.get_mut(index) {
            *has = false;
        }
        Ok(())
    }

    fn ease(&mut self, unit: UnitId, easing: Easing) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        stepped(unit, sizes)?;
        self.order(Request::Ease { unit: index, easing })
    }

    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        let (index, sizes) = self.unit(unit).map_err(failed)?;
        self.fetch(Request::Weights { unit: index }, sizes)
    }

    fn momentum(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        let (index, sizes) = self.unit(unit).map_err(failed)?;
        stepped(unit, sizes).map_err(failed)?;
        self.fetch(Request::Momentum { unit: index }, sizes)
    }

    fn set_momentum(&mut self, unit: UnitId, momentum: &[f32]) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        stepped(unit, sizes)?;
        fitting(unit, &[momentum], sizes)?;
        self.order(Request::SetMomentum { unit: index, momentum: Arc::new(vec![momentum.to_vec()]) })
    }

    fn share_momentum(&mut self, unit: UnitId, momentum: &SharedValues) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        stepped(unit, sizes)?;
        fitting(unit, momentum, sizes)?;
        self.order(Request::SetMomentum { unit: index, momentum: Arc::clone(momentum) })
    }

    fn store(
        &mut self,
        unit: UnitId,
        first: u32,
        bits: Released<PackedBits>,
        labels: Option<Released<Vec<u32>>>,
    ) -> Result<(), SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        if !sizes.is_network || !sizes.input.is_multiple_of(8) {
            return Err(SubmitError::Unsupported { unit: unit.0, what: STORED });
        }
        let (bits, labels) = (bits.into_inner(), labels.map(Released::into_inner).unwrap_or_default());
        let samples = samples(unit, bits.len(), sizes.input)?;
        let number = u32::try_from(samples).ok().filter(|&n| first.checked_add(n).is_some());
        let number = number.ok_or(SubmitError::Length { unit: unit.0, got: bits.len(), sample: sizes.input })?;
        if !labels.is_empty() && labels.len() != samples {
            return Err(SubmitError::Length { unit: unit.0, got: labels.len(), sample: samples });
        }
        if labels.iter().any(|&label| label as usize >= sizes.output) {
            return Err(SubmitError::Unsupported { unit: unit.0, what: "a label lies beyond the logits" });
        }
        self.order(Request::Store { unit: index, first, samples: number, bits, labels })
    }

    fn submit_stored(&mut self, unit: UnitId, records: &[u32], pass: Pass) -> Result<Ticket, SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        let request = Request::ForwardStored { unit: index, records: records.to_vec(), pass };
        let ticket = self.ask_stored(unit, sizes, records.len(), request)?;
        if let (Pass::Training, Some(kept)) = (pass, self.kept.get_mut(index)) {
            *kept = Some(records.len());
        }
        Ok(ticket)
    }

    fn train_stored(&mut self, unit: UnitId, records: &[u32], sgd: SgdStep) -> Result<Ticket, SubmitError> {
        let (index, sizes) = self.unit(unit)?;
        let request = Request::TrainStored { unit: index, records: records.to_vec(), sgd };
        self.ask_stored(unit, sizes, records.len(), request)
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.order(Request::Reset)?;
        self.pending.clear();
        self.ready.clear();
        self.kept.fill(None);
        self.has_gradient.fill(false);
        Ok(())
    }
}

impl Drop for QueuedSession {
    fn drop(&mut self) {
        // Without receivers the executor returns after the job at hand instead of working off the queue.
        self.jobs = None;
        self.answers = mpsc::channel().1;
        if let Some(hang_up) = self.hang_up.take() {
            hang_up();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
