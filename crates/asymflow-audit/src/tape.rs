//! A recorder between the trusted part and its worker: what crossed, as the worker has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Payload},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining, SgdStep,
        SharedValues, SubmitError, Ticket, UnitId, Wanted, WorkerStats,
    },
};
use asymflow_zoo::ops::Easing;

/// What a message was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The input of a forward pass.
    Input(Pass),
    /// The gradient of an output.
    Gradient,
    /// Bits that the worker keeps, and their labels where these were let out.
    Stored,
    /// Numbers of records whose stored bits are used.
    Named,
}

/// One message to the worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The unit that it was for.
    pub unit: UnitId,
    /// What it was.
    pub kind: Kind,
    /// Numbers or bits, samples × values, row-major; empty for names.
    pub values: Payload,
    /// Numbers of stored records; empty for what carries its own data.
    pub records: Vec<u32>,
    /// One a record, where they were released.
    pub labels: Option<Vec<u32>>,
}

/// Everything that a worker was sent but for weights, which are public, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tape {
    /// The messages.
    pub messages: Vec<Message>,
}

impl Tape {
    /// The values of all messages of a kind for a unit, one after the other.
    pub fn values(&self, unit: UnitId, kind: Kind) -> Vec<f32> {
        let of_it = self.messages.iter().filter(|message| message.unit == unit && message.kind == kind);
        of_it.flat_map(|message| message.values.clone().into_f32()).collect()
    }
}

/// What a worker that lies adds to its answers to one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Lie {
    /// The unit.
    pub unit: UnitId,
    /// Added to every sample of its output.
    pub offset: Vec<f32>,
}

/// A backend behind which everything that is sent to another one is recorded. Numbers that the trusted part itself draws to try the
/// worker are recorded too.
#[derive(Clone, Debug)]
pub struct Recorder {
    inner: Arc<dyn ResidualBackend>,
    tape: Arc<Mutex<Tape>>,
    model: Arc<Mutex<ResidualModel>>,
    lie: Option<Lie>,
}

impl Recorder {
    /// Records what is sent to `inner`.
    pub fn new(inner: Arc<dyn ResidualBackend>) -> Self {
        Self { inner, tape: Arc::default(), model: Arc::default(), lie: None }
    }

    /// The same with a worker that lies.
    #[must_use]
    pub fn lying(self, lie: Lie) -> Self {
        Self { lie: Some(lie), ..self }
    }

    /// What was recorded since the last call.
    pub fn take(&self) -> Tape {
        std::mem::take(&mut *lock(&self.tape))
    }

    /// What the worker was opened for last.
    pub fn model(&self) -> ResidualModel {
        lock(&self.model).clone()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ResidualBackend for Recorder {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn probe(&self) -> Availability {
        self.inner.probe()
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        model.clone_into(&mut lock(&self.model));
        let (tape, lie) = (self.tape.clone(), self.lie.clone());
        Ok(Box::new(Recorded { inner: self.inner.open(model)?, tape, lie, lies: Vec::new() }))
    }

    fn is_modelled(&self) -> bool {
        self.inner.is_modelled()
    }
}

struct Recorded {
    inner: Box<dyn ResidualTraining>,
    tape: Arc<Mutex<Tape>>,
    lie: Option<Lie>,
    /// Tickets whose answers are to be falsified.
    lies: Vec<Ticket>,
}

impl Recorded {
    fn keep(&self, unit: UnitId, kind: Kind, values: &Payload, records: &[u32], labels: Option<Vec<u32>>) {
        let (values, records) = (values.clone(), records.to_vec());
        lock(&self.tape).messages.push(Message { unit, kind, values, records, labels });
    }
}

fn nothing() -> Payload {
    Payload::F32(Vec::new())
}

impl ResidualSession for Recorded {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        self.keep(unit, Kind::Input(pass), x.get(), &[], None);
        let ticket = self.inner.submit(unit, x, pass)?;
        if self.lie.as_ref().is_some_and(|lie| lie.unit == unit) {
            self.lies.push(ticket);
        }
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        let mut answer = self.inner.collect(ticket)?;
        if let (Some(lie), true, Batch::Outputs(values)) = (&self.lie, self.lies.contains(&ticket), &mut answer) {
            values.iter_mut().zip(lie.offset.iter().cycle()).for_each(|(value, offset)| *value += offset);
        }
        Ok(answer)
    }

    fn stats(&self) -> WorkerStats {
        self.inner.stats()
    }
}

impl ResidualTraining for Recorded {
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        self.keep(unit, Kind::Gradient, dy.get(), &[], None);
        self.inner.submit_gradient(unit, dy, wanted)
    }

    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        self.inner.set_weights(unit, weights)
    }

    fn share_weights(&mut self, unit: UnitId, weights: &SharedValues) -> Result<(), SubmitError> {
        self.inner.share_weights(unit, weights)
    }

    fn share_momentum(&mut self, unit: UnitId, momentum: &SharedValues) -> Result<(), SubmitError> {
        self.inner.share_momentum(unit, momentum)
    }

    fn settle(&mut self) -> Result<(), SubmitError> {
        self.inner.settle()
    }

    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError> {
        self.inner.add_weights(unit, delta)
    }

    fn step(&mut self, unit: UnitId, sgd: SgdStep) -> Result<(), SubmitError> {
        self.inner.step(unit, sgd)
    }

    fn ease(&mut self, unit: UnitId, easing: Easing) -> Result<(), SubmitError> {
        self.inner.ease(unit, easing)
    }

    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        self.inner.weights(unit)
    }

    fn store(
        &mut self,
        unit: UnitId,
        first: u32,
        bits: Released<PackedBits>,
        labels: Option<Released<Vec<u32>>>,
    ) -> Result<(), SubmitError> {
        let told = labels.as_ref().map(|labels| labels.get().clone());
        self.keep(unit, Kind::Stored, &Payload::Bits(bits.get().clone()), &[first], told);
        self.inner.store(unit, first, bits, labels)
    }

    fn submit_stored(&mut self, unit: UnitId, records: &[u32], pass: Pass) -> Result<Ticket, SubmitError> {
        self.keep(unit, Kind::Named, &nothing(), records, None);
        self.inner.submit_stored(unit, records, pass)
    }

    fn train_stored(&mut self, unit: UnitId, records: &[u32], sgd: SgdStep) -> Result<Ticket, SubmitError> {
        self.keep(unit, Kind::Named, &nothing(), records, None);
        self.inner.train_stored(unit, records, sgd)
    }

    fn momentum(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        self.inner.momentum(unit)
    }

    fn set_momentum(&mut self, unit: UnitId, momentum: &[f32]) -> Result<(), SubmitError> {
        self.inner.set_momentum(unit, momentum)
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.inner.reset()
    }
}
