//! One session of the worker: requests in, answers out.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use asymflow_privacy::Released;
use asymflow_privacy::door::ReleaseError;
use asymflow_privacy::payload::{PackedBits, Payload, Precision};
use asymflow_wire::{Limits, WireError};

use crate::backend::{
    Batch, CollectError, OpenError, Pass, ResidualBackend, ResidualModel, ResidualTraining, SubmitError, UnitId,
};
use crate::connection::{Body, Connection, ExchangeError};
use crate::modelled::{Card, Zeros};
use crate::protocol::{
    BARE, Encoding, Mapped, Numbers, Open, Opened, RequestHeader, ResponseHeader, take_u32, text, with_body,
};
use crate::received::{received, received_bits, received_labels};
use crate::ring::{Ring, RingLayout, RingName};
use crate::serve::ServeLimits;
use crate::unit::{self, UnitSizes};

const MODEL_BYTES: u64 = 1 << 20;

/// Why a request has no result.
enum Refusal {
    Failed(String),
    Lost(String),
    NonFinite(String),
}

impl From<ExchangeError> for Refusal {
    fn from(error: ExchangeError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Lost { reason } => Self::Lost(reason),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<CollectError> for Refusal {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Lost { reason } => Self::Lost(reason),
            CollectError::Failed { reason } => Self::Failed(reason),
            CollectError::NonFinite { reason } => Self::NonFinite(reason),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Serves requests until the client leaves or the backend is lost.
pub(crate) fn serve_session(
    connection: &mut Connection,
    backend: &dyn ResidualBackend,
    limits: &ServeLimits,
    sessions: &AtomicU32,
    ring_name: Option<&Mutex<RingName>>,
) -> Result<(), ExchangeError> {
    let (open, model) = connection.receive::<Open>(Limits { header_bytes: 64, body_bytes: MODEL_BYTES })?;
    let model = connection.bytes(model)?;
    // Opening may start a device, which takes longer than shaking hands.
    connection.set_timeout(limits.idle_timeout);
    let Some(_slot) = Slot::take(sessions, limits.sessions) else {
        return connection.send(&Opened::Busy { sessions: limits.sessions }, &[]);
    };
    let mut session = match open_model(&model, backend, open.answers, limits) {
        Ok(session) => session,
        Err(refusal) => return connection.send(&refusal, &[]),
    };
    match open.ring {
        None => connection.send(&Opened::Ready, &[])?,
        Some(layout) => offer_ring(connection, layout, limits, ring_name)?,
    }
    loop {
        connection.set_timeout(limits.idle_timeout);
        let request = match connection.receive::<RequestHeader>(with_body(limits.body_bytes)) {
            Ok(request) => request,
            Err(ExchangeError::Wire(WireError::Closed)) => return Ok(()),
            Err(ExchangeError::Ring(error)) => {
                connection.send(&ResponseHeader::Lost { reason: text(&error.to_string()) }, &[])?;
                return Err(error.into());
            }
            Err(error) => return Err(error),
        };
        let failed = |header| Answered { header, body: Following::default() };
        let (header, body) = request;
        let answer = match session.answer(header, body, connection) {
            Ok(answer) => answer,
            Err(Refusal::Failed(reason)) => failed(ResponseHeader::Failed { reason: text(&reason) }),
            Err(Refusal::NonFinite(reason)) => failed(ResponseHeader::NonFinite { reason: text(&reason) }),
            Err(Refusal::Lost(reason)) => failed(ResponseHeader::Lost { reason: text(&reason) }),
        };
        connection.set_timeout(limits.idle_timeout);
        let Answered { header, body } = &answer;
        match body {
            Following::Zeros(bytes) => connection.send_numbers(header, &[Numbers::Zeros(*bytes)])?,
            Following::Numbers { values, weights, precision } => {
                let values = match precision {
                    Precision::F32 => Numbers::F32(values),
                    Precision::F16 => Numbers::Narrow(values),
                };
                connection.send_numbers(header, &[values, Numbers::F32(weights)])?;
            }
        }
        if matches!(header, ResponseHeader::Lost { .. }) {
            return Ok(());
        }
    }
}

/// Makes a ring and waits until the client has opened it or says that it cannot. Then its name is gone.
fn offer_ring(
    connection: &mut Connection,
    layout: RingLayout,
    limits: &ServeLimits,
    name: Option<&Mutex<RingName>>,
) -> Result<(), ExchangeError> {
    // A fixed name serves one opening at a time.
    let name = name.map(|name| name.lock().unwrap_or_else(PoisonError::into_inner));
    let mut layout = layout;
    let (ring, named, offer) = loop {
        match Ring::create(name.as_deref(), layout, limits.ring_bytes) {
            Ok(made) => break made,
            // Slots too long for all bodies are better than none, down to what every session is given.
            Err(_) if layout.slot_bytes > RingLayout::default().slot_bytes && layout.halved().is_some() => {
                layout = layout.halved().unwrap_or(layout);
            }
            Err(error) => return connection.send(&Opened::NoRing { reason: text(&error.to_string()) }, &[]),
        }
    };
    connection.set_timeout(limits.hello_timeout);
    connection.send(&Opened::Ring(offer), &[])?;
    let (Mapped(mapped), _) = connection.receive(BARE)?;
    drop(named);
    if mapped {
        connection.use_ring(ring);
    }
    Ok(())
}

/// One of the sessions that a worker may hold at a time.
struct Slot<'a>(&'a AtomicU32);

impl<'a> Slot<'a> {
    fn take(taken: &'a AtomicU32, most: u32) -> Option<Self> {
        let more = |n: u32| (n < most).then_some(n + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self(taken))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn open_model(
    json: &[u8],
    backend: &dyn ResidualBackend,
    answers: Precision,
    limits: &ServeLimits,
) -> Result<Serving, Opened> {
    let failed = |reason: String| Opened::Failed { reason: text(&reason) };
    let refused = |error: OpenError| match error {
        OpenError::Model { unit, reason } => Opened::Model { unit, reason: text(&reason) },
        other => Opened::Failed { reason: text(&other.to_string()) },
    };
    let model: ResidualModel = serde_json::from_slice(json).map_err(|e| failed(format!("malformed model: {e}")))?;
    let sizes = unit::sizes(&model).map_err(refused)?;
    let memory = Memory { sizes, kept: vec![0; model.units.len()], stored_bytes: 0, limit: limits.session_bytes };
    memory.check(0).map_err(failed)?;
    let card = backend.modelled().map(|modelled| modelled.card(&model)).transpose().map_err(refused)?;
    let session = backend.open_waiting(&model).map_err(refused)?;
    Ok(Serving { session, card, answers, memory, body_limit: limits.body_bytes })
}

/// Estimates what a session holds, so that it can be refused before it is allocated.
struct Memory {
    sizes: Vec<UnitSizes>,
    /// Samples kept by each unit.
    kept: Vec<u64>,
    /// Bytes of stored records, replaced ones included.
    stored_bytes: u64,
    limit: u64,
}

impl Memory {
    /// Whether `more` values fit beside everything held.
    fn check(&self, more: u64) -> Result<(), String> {
        let held = self.sizes.iter().zip(&self.kept).map(|(sizes, &samples)| {
            // Weights on host and device, gradient, momentum; activations and their gradients.
            4 * sizes.weights as u64 + 2 * samples.saturating_mul(sizes.kept as u64)
        });
        let values = held.fold(more, u64::saturating_add);
        let bytes = values.saturating_mul(4).saturating_add(self.stored_bytes);
        if bytes <= self.limit {
            Ok(())
        } else {
            Err(format!("needs about {bytes} bytes, a session may hold {}", self.limit))
        }
    }

    /// Admits a forward pass of `values` inputs; a kept one replaces the unit's earlier one.
    fn admit(&mut self, unit: u32, values: usize, pass: Pass) -> Result<(), String> {
        let Some(sizes) = self.sizes.get(unit as usize).copied().filter(|s| s.input > 0) else { return Ok(()) };
        let samples = (values / sizes.input) as u64;
        self.check(samples.saturating_mul(2 * sizes.kept as u64 + sizes.output as u64))?;
        if let (Pass::Training, Some(kept)) = (pass, self.kept.get_mut(unit as usize)) {
            *kept = samples;
        }
        Ok(())
    }

    /// Admits records of `bytes`.
    fn store(&mut self, bytes: usize) -> Result<(), String> {
        self.check((bytes as u64).div_ceil(4))?;
        self.stored_bytes += bytes as u64;
        Ok(())
    }

    fn forget(&mut self, unit: u32) {
        if let Some(kept) = self.kept.get_mut(unit as usize) {
            *kept = 0;
        }
    }
}

struct Serving {
    session: Box<dyn ResidualTraining>,
    /// What answers in its place where numbers mean nothing.
    card: Option<Card>,
    answers: Precision,
    memory: Memory,
    body_limit: u64,
}

struct Answered {
    header: ResponseHeader,
    body: Following,
}

/// What follows an answer's header: numbers, or so many bytes of zeros.
enum Following {
    /// Values that travel in `precision`, then weight gradients in binary32.
    Numbers {
        values: Vec<f32>,
        weights: Vec<f32>,
        precision: Precision,
    },
    Zeros(u64),
}

impl Default for Following {
    fn default() -> Self {
        Self::Numbers { values: Vec::new(), weights: Vec::new(), precision: Precision::F32 }
    }
}

impl Serving {
    fn answer(&mut self, request: RequestHeader, body: Body, connection: &Connection) -> Result<Answered, Refusal> {
        let bytes = body.len();
        if let Some(answer) = self.modelled(&request, bytes) {
            return Ok(answer);
        }
        let before = self.session.stats().busy_seconds;
        let numbers = |precision: Precision| {
            if !bytes.is_multiple_of(precision.bytes()) {
                return Err(Refusal::Failed(format!("a body of {bytes} bytes holds no whole numbers")));
            }
            Ok(connection.numbers(&body, 0..bytes, precision)?)
        };
        let (values, weights, precision) = match request {
            RequestHeader::Forward { unit, pass, encoding } => {
                let values = match encoding {
                    Encoding::Float(precision) => bytes / precision.bytes(),
                    Encoding::Bits { values } => usize::try_from(values).unwrap_or(usize::MAX),
                };
                self.room(unit, values)?;
                self.memory.admit(unit, values, pass).map_err(Refusal::Failed)?;
                let x = match encoding {
                    Encoding::Float(precision) => released(numbers(precision)?)?,
                    Encoding::Bits { .. } => {
                        let wrong = |_| Refusal::Failed(format!("a body of {bytes} bytes does not hold {encoding:?}"));
                        let bits = PackedBits::from_bytes(connection.bytes(body)?, values).map_err(wrong)?;
                        received_bits(&bits).map_err(unreleased)?.into_payload()
                    }
                };
                let ticket = self.session.submit(UnitId(unit), x, pass)?;
                (outputs(self.session.collect(ticket)?)?, Vec::new(), self.answers)
            }
            RequestHeader::Gradient { unit, wanted, precision } => {
                let dy = released(numbers(precision)?)?;
                let ticket = self.session.submit_gradient(UnitId(unit), dy, wanted)?;
                self.memory.forget(unit);
                match self.session.collect(ticket)? {
                    Batch::Gradients { input, weights } => (input, weights, self.answers),
                    Batch::Outputs(_) => return Err(Refusal::Failed("outputs for gradients".to_owned())),
                }
            }
            RequestHeader::SetWeights { unit } => {
                let weights = numbers(Precision::F32)?;
                self.session.share_weights(UnitId(unit), &Arc::new(vec![weights]))?;
                done()
            }
            RequestHeader::SetMomentum { unit } => {
                let momentum = numbers(Precision::F32)?;
                self.session.share_momentum(UnitId(unit), &Arc::new(vec![momentum]))?;
                done()
            }
            RequestHeader::AddWeights { unit, precision } => {
                self.session.add_weights(UnitId(unit), Payload::encode(numbers(precision)?, precision))?;
                done()
            }
            RequestHeader::Step { unit, sgd } => {
                self.session.step(UnitId(unit), sgd)?;
                done()
            }
            RequestHeader::Ease { unit, easing } => {
                self.session.ease(UnitId(unit), easing)?;
                done()
            }
            RequestHeader::Weights { unit } => (self.session.weights(UnitId(unit))?, Vec::new(), Precision::F32),
            RequestHeader::Momentum { unit } => (self.session.momentum(UnitId(unit))?, Vec::new(), Precision::F32),
            RequestHeader::Reset => {
                self.session.reset()?;
                self.memory.kept.fill(0);
                done()
            }
            RequestHeader::Store { unit, first, samples, labelled } => {
                self.store(UnitId(unit), first, samples, labelled, connection.bytes(body)?)?;
                done()
            }
            RequestHeader::ForwardStored { unit, pass } => {
                let records = self.records(unit, &connection.bytes(body)?, pass)?;
                let ticket = self.session.submit_stored(UnitId(unit), &records, pass)?;
                (outputs(self.session.collect(ticket)?)?, Vec::new(), self.answers)
            }
            RequestHeader::TrainStored { unit, sgd } => {
                let records = self.records(unit, &connection.bytes(body)?, Pass::Training)?;
                let ticket = self.session.train_stored(UnitId(unit), &records, sgd)?;
                self.memory.forget(unit);
                (outputs(self.session.collect(ticket)?)?, Vec::new(), self.answers)
            }
        };
        let busy_seconds = (self.session.stats().busy_seconds - before).max(0.0);
        let header = ResponseHeader::Done { busy_seconds, values: values.len() as u64, precision };
        representable(&values, precision)?;
        Ok(Answered { header, body: Following::Numbers { values, weights, precision } })
    }

    fn modelled(&self, request: &RequestHeader, bytes: usize) -> Option<Answered> {
        let start = Instant::now();
        let Zeros { values, weights } = self.card.as_ref()?.answer(request, bytes)?;
        let precision = self.answers;
        let body = Following::Zeros((precision.bytes() * values + 4 * weights) as u64);
        let busy_seconds = start.elapsed().as_secs_f64();
        Some(Answered { header: ResponseHeader::Done { busy_seconds, values: values as u64, precision }, body })
    }

    fn store(
        &mut self,
        unit: UnitId,
        first: u32,
        samples: u32,
        labelled: bool,
        mut body: Vec<u8>,
    ) -> Result<(), Refusal> {
        let bytes = body.len();
        let malformed = || Refusal::Failed(format!("a body of {bytes} bytes does not hold {samples} records"));
        let label_bytes = if labelled { 4 * samples as usize } else { 0 };
        let at = bytes.checked_sub(label_bytes).ok_or_else(malformed)?;
        let labels = take_u32(&body.split_off(at)).ok_or_else(malformed)?;
        self.memory.store(bytes).map_err(Refusal::Failed)?;
        let bits = PackedBits::from_bytes(body, 8 * at).map_err(|_| malformed())?;
        let bits = received_bits(&bits).map_err(unreleased)?;
        let labels = labelled.then(|| received_labels(labels)).transpose().map_err(unreleased)?;
        Ok(self.session.store(unit, first, bits, labels)?)
    }

    /// Numbers of records, once there is room to compute on them.
    fn records(&mut self, unit: u32, body: &[u8], pass: Pass) -> Result<Vec<u32>, Refusal> {
        let records = take_u32(body)
            .ok_or_else(|| Refusal::Failed(format!("a body of {} bytes holds no whole numbers", body.len())))?;
        let input = self.memory.sizes.get(unit as usize).map_or(0, |sizes| sizes.input);
        self.room(unit, records.len().saturating_mul(input))?;
        self.memory.admit(unit, records.len().saturating_mul(input), pass).map_err(Refusal::Failed)?;
        Ok(records)
    }

    /// Whether the outputs for `values` inputs fit into one answer.
    fn room(&self, unit: u32, values: usize) -> Result<(), Refusal> {
        let Some(sizes) = self.memory.sizes.get(unit as usize).filter(|s| s.input > 0) else { return Ok(()) };
        let bytes = ((values / sizes.input) as u64).saturating_mul(4 * sizes.output as u64);
        if bytes <= self.body_limit {
            Ok(())
        } else {
            Err(Refusal::Failed(format!("an answer of {bytes} bytes exceeds the limit of {}", self.body_limit)))
        }
    }
}

const fn done() -> (Vec<f32>, Vec<f32>, Precision) {
    (Vec::new(), Vec::new(), Precision::F32)
}

fn released(values: Vec<f32>) -> Result<Released<Payload>, Refusal> {
    received(values, Precision::F32).map_err(unreleased)
}

fn unreleased(error: ReleaseError) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn outputs(batch: Batch) -> Result<Vec<f32>, Refusal> {
    match batch {
        Batch::Outputs(values) => Ok(values),
        Batch::Gradients { .. } => Err(Refusal::Failed("gradients for outputs".to_owned())),
    }
}

/// A value that binary16 cannot hold is an error, not a silent saturation.
fn representable(values: &[f32], precision: Precision) -> Result<(), Refusal> {
    let largest = match precision {
        Precision::F32 => 0.0,
        Precision::F16 => values.iter().fold(0.0, |largest: f32, v| if v.abs() > largest { v.abs() } else { largest }),
    };
    if largest <= 65504.0 {
        Ok(())
    } else {
        Err(Refusal::Failed(format!("{largest} exceeds binary16; ask for answers in f32")))
    }
}

#[cfg(test)]
mod tests;
