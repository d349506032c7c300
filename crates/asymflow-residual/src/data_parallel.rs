//! Several backends as one, by splitting the samples of each batch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use asymflow_privacy::{
    Released,
    door::ReleaseError,
    payload::{Payload, Precision},
};

use crate::backend::{
    Availability, Batch, CollectError, OpenError, Pass, ResidualBackend, ResidualModel, ResidualSession,
    ResidualTraining, SgdStep, SubmitError, Ticket, UnitId, Wanted, WorkerStats,
};
use crate::received::received;
use crate::unit::{self, UnitSizes, samples};

const TRAINING: &str = "a network is trained by one device; data parallelism offers inference only";

/// Splits the samples of every batch over several devices or workers and sums their weight gradients.
///
/// Convolutions train as on one device. A [`Unit::Network`](crate::backend::Unit::Network) owns its weights and batch
/// statistics, so it is offered for inference only; training it is [`SubmitError::Unsupported`].
#[derive(Clone, Debug)]
pub struct DataParallel {
    backends: Vec<Arc<dyn ResidualBackend>>,
}

impl DataParallel {
    /// One backend out of `backends`.
    pub const fn new(backends: Vec<Arc<dyn ResidualBackend>>) -> Self {
        Self { backends }
    }
}

impl ResidualBackend for DataParallel {
    fn name(&self) -> &'static str {
        "data-parallel"
    }

    fn probe(&self) -> Availability {
        let mut devices = Vec::new();
        for backend in &self.backends {
            match backend.probe() {
                Availability::Ready { device } => devices.push(device),
                missing @ Availability::Missing { .. } => return missing,
            }
        }
        if devices.is_empty() {
            let (what, fix) = ("any device".to_owned(), "name at least one".to_owned());
            return Availability::Missing { what, fix };
        }
        Availability::Ready { device: devices.join(" + ") }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        if let Availability::Missing { what, fix } = self.probe() {
            return Err(OpenError::Missing { what, fix });
        }
        let sizes = unit::sizes(model)?;
        let sessions = self.backends.iter().map(|backend| backend.open(model)).collect::<Result<_, _>>()?;
        let kept = vec![None; sizes.len()];
        Ok(Box::new(ParallelSession { sessions, sizes, kept, next: 0, pending: BTreeMap::new() }))
    }

    fn is_modelled(&self) -> bool {
        self.backends.iter().any(|backend| backend.is_modelled())
    }
}

/// A submission's part in each session that got samples.
type Parts = Vec<(usize, Ticket)>;

struct ParallelSession {
    sessions: Vec<Box<dyn ResidualTraining>>,
    sizes: Vec<UnitSizes>,
    /// Samples kept by each unit.
    kept: Vec<Option<usize>>,
    next: u64,
    pending: BTreeMap<u64, Parts>,
}

impl ParallelSession {
    fn unit(&self, unit: UnitId) -> Result<UnitSizes, SubmitError> {
        let missing = SubmitError::Unit { unit: unit.0, units: self.sizes.len() };
        self.sizes.get(unit.0 as usize).copied().ok_or(missing)
    }

    fn refuse_training(&self, unit: UnitId) -> Result<(), SubmitError> {
        if self.unit(unit)?.is_network {
            Err(SubmitError::Unsupported { unit: unit.0, what: TRAINING })
        } else {
            Ok(())
        }
    }

    /// Samples of each session: contiguous, as even as possible, none for sessions left over.
    fn shares(&self, samples: usize) -> Vec<(usize, Range<usize>)> {
        let count = self.sessions.len();
        let bound = |i: usize| i * samples / count;
        (0..count).map(|i| (i, bound(i)..bound(i + 1))).filter(|(_, range)| !range.is_empty()).collect()
    }

    /// Sends each session its share of `values`.
    fn scatter(
        &mut self,
        unit: UnitId,
        values: Released<Payload>,
        samples: usize,
        send: impl Fn(&mut dyn ResidualTraining, Released<Payload>) -> Result<Ticket, SubmitError>,
    ) -> Result<Ticket, SubmitError> {
        let precision = match values.get() {
            Payload::F16(_) => Precision::F16,
            Payload::F32(_) | Payload::Bits(_) => Precision::F32,
        };
        let values = values.into_inner().into_f32();
        let sample = values.len() / samples;
        let mut parts = Parts::new();
        for (index, range) in self.shares(samples) {
            let range = range.start * sample..range.end * sample;
            let part = values.get(range).unwrap_or_default().to_vec();
            let part = received(part, precision).map_err(|error| match error {
                ReleaseError::NonFinite { index } => SubmitError::NonFinite { unit: unit.0, index },
                ReleaseError::Mechanism(_)
                | ReleaseError::Budget(_)
                | ReleaseError::Batch { .. }
                | ReleaseError::Record { .. }
                | ReleaseError::Label { .. }
                | ReleaseError::NeverReleased { .. } => SubmitError::Length { unit: unit.0, got: values.len(), sample },
            })?;
            if let Some(session) = self.sessions.get_mut(index) {
                parts.push((index, send(session.as_mut(), part)?));
            }
        }
        let number = self.next;
        self.next += 1;
        self.pending.insert(number, parts);
        Ok(Ticket(number))
    }

    fn each(
        &mut self,
        mut order: impl FnMut(&mut dyn ResidualTraining) -> Result<(), SubmitError>,
    ) -> Result<(), SubmitError> {
        self.sessions.iter_mut().try_for_each(|session| order(session.as_mut()))
    }
}

/// Appends inputs or outputs in the order of samples and adds up weight gradients in the order of sessions.
fn merge(whole: Option<Batch>, part: Batch) -> Result<Batch, CollectError> {
    match (whole, part) {
        (None, part) => Ok(part),
        (Some(Batch::Outputs(mut all)), Batch::Outputs(part)) => {
            all.extend(part);
            Ok(Batch::Outputs(all))
        }
        (Some(Batch::Gradients { mut input, mut weights }), Batch::Gradients { input: more, weights: add })
            if weights.len() == add.len() =>
        {
            input.extend(more);
            weights.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
            Ok(Batch::Gradients { input, weights })
        }
        (Some(Batch::Outputs(_) | Batch::Gradients { .. }), Batch::Outputs(_) | Batch::Gradients { .. }) => {
            Err(CollectError::Malformed { reason: "the devices' answers differ in kind or size".to_owned() })
        }
    }
}

impl ResidualSession for ParallelSession {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        if pass == Pass::Training {
            self.refuse_training(unit)?;
        }
        let samples = samples(unit, x.get().len(), self.unit(unit)?.input)?;
        let ticket = self.scatter(unit, x, samples, |session, part| session.submit(unit, part, pass))?;
        if let (Pass::Training, Some(kept)) = (pass, self.kept.get_mut(unit.0 as usize)) {
            *kept = Some(samples);
        }
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        let parts = self.pending.remove(&ticket.0).ok_or(CollectError::Ticket(ticket))?;
        // Every part is collected even after a failure, so that none lingers.
        let collect = |(index, part): (usize, Ticket)| match self.sessions.get_mut(index) {
            Some(session) => session.collect(part),
            None => Err(CollectError::Ticket(ticket)),
        };
        let batches: Vec<_> = parts.into_iter().map(collect).collect();
        let mut whole = None;
        for batch in batches {
            whole = Some(merge(whole, batch?)?);
        }
        whole.ok_or(CollectError::Ticket(ticket))
    }

    /// Bytes of all sessions; seconds of the slowest, since they run side by side.
    fn stats(&self) -> WorkerStats {
        self.sessions.iter().fold(WorkerStats::default(), |all, session| {
            let one = session.stats();
            WorkerStats {
                busy_seconds: all.busy_seconds.max(one.busy_seconds),
                transfer_seconds: all.transfer_seconds.max(one.transfer_seconds),
                bytes_to_worker: all.bytes_to_worker + one.bytes_to_worker,
                bytes_from_worker: all.bytes_from_worker + one.bytes_from_worker,
            }
        })
    }
}

impl ResidualTraining for ParallelSession {
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        self.refuse_training(unit)?;
        let samples = samples(unit, dy.get().len(), self.unit(unit)?.output)?;
        if self.kept.get(unit.0 as usize).copied().flatten() != Some(samples) {
            return Err(SubmitError::NoForward { unit: unit.0, samples });
        }
        let ticket = self.scatter(unit, dy, samples, |session, part| session.submit_gradient(unit, part, wanted))?;
        if let Some(kept) = self.kept.get_mut(unit.0 as usize) {
            *kept = None;
        }
        Ok(ticket)
    }

    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        self.each(|session| session.set_weights(unit, weights))
    }

    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError> {
        self.each(|session| session.add_weights(unit, delta.clone()))
    }

    fn step(&mut self, unit: UnitId, _sgd: SgdStep) -> Result<(), SubmitError> {
        let what = if self.unit(unit)?.is_network { TRAINING } else { "a convolution is stepped by add_weights" };
        Err(SubmitError::Unsupported { unit: unit.0, what })
    }

    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        let gone = CollectError::Lost { reason: "no session".to_owned() };
        self.sessions.first_mut().ok_or(gone)?.weights(unit)
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.pending.clear();
        self.kept.fill(None);
        self.each(|session| session.reset())
    }
}
