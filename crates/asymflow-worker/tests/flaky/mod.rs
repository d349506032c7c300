//! A backend whose first session dies after so many calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Payload},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining, SgdStep,
        SubmitError, Ticket, UnitId, Wanted, WorkerStats,
    },
};

/// Passes everything on to another backend until its first session dies.
#[derive(Debug)]
pub struct Flaky {
    inner: Arc<dyn ResidualBackend>,
    calls: Arc<AtomicUsize>,
    stored: Arc<AtomicUsize>,
    dies_after: usize,
}

impl Flaky {
    pub fn new(inner: Arc<dyn ResidualBackend>, dies_after: usize) -> Arc<Self> {
        Arc::new(Self { inner, calls: Arc::default(), stored: Arc::default(), dies_after })
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Records stored so far.
    pub fn stored(&self) -> usize {
        self.stored.load(Ordering::Relaxed)
    }
}

impl ResidualBackend for Flaky {
    fn name(&self) -> &'static str {
        "flaky"
    }

    fn probe(&self) -> Availability {
        self.inner.probe()
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let first = self.calls() == 0;
        Ok(Box::new(FlakySession {
            inner: self.inner.open(model)?,
            calls: Arc::clone(&self.calls),
            stored: Arc::clone(&self.stored),
            dies_after: if first { self.dies_after } else { usize::MAX },
            sample: model.units.iter().map(sample_values).max().unwrap_or(1),
        }))
    }
}

fn sample_values(unit: &asymflow_residual::backend::Unit) -> usize {
    match unit {
        asymflow_residual::backend::Unit::Conv(conv) => conv.input.len(),
        asymflow_residual::backend::Unit::Network(network) => network.input.len(),
    }
}

struct FlakySession {
    inner: Box<dyn ResidualTraining>,
    calls: Arc<AtomicUsize>,
    stored: Arc<AtomicUsize>,
    dies_after: usize,
    sample: usize,
}

impl FlakySession {
    fn alive(&self) -> Result<(), String> {
        let dead = self.calls.fetch_add(1, Ordering::Relaxed) >= self.dies_after;
        if dead { Err("killed by the test".to_owned()) } else { Ok(()) }
    }

    fn submits(&self) -> Result<(), SubmitError> {
        self.alive().map_err(|reason| SubmitError::Lost { reason })
    }

    fn collects(&self) -> Result<(), CollectError> {
        self.alive().map_err(|reason| CollectError::Lost { reason })
    }
}

impl ResidualSession for FlakySession {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        self.submits()?;
        self.inner.submit(unit, x, pass)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        self.collects()?;
        self.inner.collect(ticket)
    }

    fn stats(&self) -> WorkerStats {
        self.inner.stats()
    }
}

impl ResidualTraining for FlakySession {
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        self.submits()?;
        self.inner.submit_gradient(unit, dy, wanted)
    }

    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        self.submits()?;
        self.inner.set_weights(unit, weights)
    }

    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError> {
        self.submits()?;
        self.inner.add_weights(unit, delta)
    }

    fn step(&mut self, unit: UnitId, sgd: SgdStep) -> Result<(), SubmitError> {
        self.submits()?;
        self.inner.step(unit, sgd)
    }

    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        self.collects()?;
        self.inner.weights(unit)
    }

    fn momentum(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        self.collects()?;
        self.inner.momentum(unit)
    }

    fn set_momentum(&mut self, unit: UnitId, momentum: &[f32]) -> Result<(), SubmitError> {
        self.submits()?;
        self.inner.set_momentum(unit, momentum)
    }

    fn store(
        &mut self,
        unit: UnitId,
        first: u32,
        bits: Released<PackedBits>,
        labels: Option<Released<Vec<u32>>>,
    ) -> Result<(), SubmitError> {
        self.submits()?;
        self.stored.fetch_add(bits.get().len() / self.sample, Ordering::Relaxed);
        self.inner.store(unit, first, bits, labels)
    }

    fn submit_stored(&mut self, unit: UnitId, records: &[u32], pass: Pass) -> Result<Ticket, SubmitError> {
        self.submits()?;
        self.inner.submit_stored(unit, records, pass)
    }

    fn train_stored(&mut self, unit: UnitId, records: &[u32], sgd: SgdStep) -> Result<Ticket, SubmitError> {
        self.submits()?;
        self.inner.train_stored(unit, records, sgd)
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.submits()?;
        self.inner.reset()
    }
}
