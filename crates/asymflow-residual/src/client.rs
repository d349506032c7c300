//! The trusted side's view of a worker process.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow_privacy::payload::{Payload, Precision};
use asymflow_wire::WireError;
use asymflow_wire::tls::{Fingerprint, Stream, client_config, dial};

use crate::backend::{
    Availability, CollectError, OpenError, ResidualBackend, ResidualModel, ResidualTraining, SharedValues, WorkerStats,
};
use crate::connection::{Body, Connection, ExchangeError};
use crate::protocol::{
    BARE, Encoding, Hello, Mapped, Numbers, Open, Opened, RequestHeader, ResponseHeader, Welcome, put_u32, text,
    with_body,
};
pub use crate::protocol::{PROTOCOL_VERSION, Token};
use crate::ring::Ring;
pub use crate::ring::{RingLayout, RingLayoutError};
use crate::session::{Answer, Executor, Expected, Halves, QueuedSession, Request};
use crate::unit::{self, UnitSizes};

type Watch = dyn Fn(&[u8]) + Send + Sync;

/// Sees every plaintext byte that is sent to a worker, before encryption; for audits.
#[derive(Clone)]
pub struct Tap(Arc<Watch>);

impl Tap {
    /// Calls `f` with each run of bytes, in order, from the thread that sends.
    pub fn new(f: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    pub(crate) fn call(&self, bytes: &[u8]) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap(..)")
    }
}

/// Hears what a client does otherwise than it was asked to.
#[derive(Clone)]
pub struct Notify(Arc<dyn Fn(&str) + Send + Sync>);

impl Notify {
    /// Calls `f` with each notice.
    pub fn new(f: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notify(..)")
    }
}

/// What the bodies of a session's frames travel through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The connection.
    #[default]
    Tcp,
    /// Memory shared with a worker on the same host, not encrypted; headers and short bodies stay on the connection.
    /// Where no ring can be had the session goes on without, and [`WorkerConfig::notify`] hears why.
    SharedMemory(RingLayout),
}

/// How the channel to a worker is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// TLS 1.3 with a worker whose certificate has this fingerprint.
    Pinned(Fingerprint),
    /// No encryption and no proof of who answers: the token travels in the clear. For one host or a
    /// network that is protected otherwise.
    InsecurePlaintext,
}

/// Where a worker is and how to talk to it.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// `host:port`.
    pub address: String,
    /// The secret the worker was started with.
    pub token: Token,
    /// Protection of the channel.
    pub protection: Protection,
    /// What bodies travel through.
    pub transport: Transport,
    /// Precision of the outputs and input gradients that come back.
    pub answers: Precision,
    /// Samples of the longest batch, so that a ring is made that holds it; without it longer bodies than the layout's slots go over the
    /// connection.
    pub samples: Option<usize>,
    /// Longest wait for a connection and its handshake.
    pub connect_timeout: Duration,
    /// Longest wait for the opening of a session, and for one answer from the first byte of its request on.
    pub answer_timeout: Duration,
    /// Whether answers that are no results are taken, for measurements of time. They never leave the trusted part as results.
    pub takes_modelled: bool,
    /// Sees what is sent, on the connection and through the ring. A body in the ring is seen as a frame of its own,
    /// before the frame that announces it; its header is the slot, the sequence and the length.
    pub tap: Option<Tap>,
    /// Hears when a ring was asked for and there is none.
    pub notify: Option<Notify>,
}

impl WorkerConfig {
    /// Bodies over TCP, answers in binary32, 10 s to connect, 300 s to answer.
    pub fn new(address: impl Into<String>, token: Token, protection: Protection) -> Self {
        Self {
            address: address.into(),
            token,
            protection,
            transport: Transport::Tcp,
            answers: Precision::F32,
            samples: None,
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(300),
            takes_modelled: false,
            tap: None,
            notify: None,
        }
    }
}

/// A worker process as a [`ResidualBackend`]. Every session is one connection.
#[derive(Clone, Debug)]
pub struct WorkerClient {
    config: WorkerConfig,
}

impl WorkerClient {
    /// A client that connects when it is probed or opened.
    pub const fn new(config: WorkerConfig) -> Self {
        Self { config }
    }

    fn unreachable(&self, reason: impl fmt::Display) -> OpenError {
        OpenError::Unreachable { address: self.config.address.clone(), reason: text(&reason.to_string()) }
    }

    /// A connection that has passed the handshake and shown the token, and the worker's device.
    fn connect(&self) -> Result<(Connection, TcpStream, String), OpenError> {
        let tcp = dial(&self.config.address, self.config.connect_timeout).map_err(|e| self.unreachable(e))?;
        let handle = tcp.try_clone().map_err(|e| self.unreachable(e))?;
        let stream = match self.config.protection {
            Protection::InsecurePlaintext => Stream::insecure_plaintext(tcp),
            Protection::Pinned(pin) => Stream::client(tcp, client_config(pin).map_err(|e| self.unreachable(e))?),
        };
        let mut connection = Connection::new(stream.map_err(|e| self.unreachable(e))?, self.config.tap.clone());
        connection.set_timeout(self.config.connect_timeout);
        let hello = Hello { version: PROTOCOL_VERSION, token: self.config.token.clone() };
        connection.send(&hello, &[]).map_err(|e| self.opening(&e))?;
        let (welcome, _) = connection.receive(BARE).map_err(|e| self.opening(&e))?;
        match welcome {
            Welcome::Ready { device, modelled } if modelled && !self.config.takes_modelled => {
                Err(OpenError::Modelled { address: self.config.address.clone(), device: text(&device) })
            }
            Welcome::Ready { device, .. } => Ok((connection, handle, text(&device))),
            Welcome::Missing { what, fix } => Err(OpenError::Missing { what: text(&what), fix: text(&fix) }),
            Welcome::Token => Err(OpenError::Token { address: self.config.address.clone() }),
            Welcome::Version { expected } => {
                Err(self
                    .unreachable(format_args!("it speaks protocol version {expected}, this client {PROTOCOL_VERSION}")))
            }
        }
    }

    fn opening(&self, error: &ExchangeError) -> OpenError {
        match error {
            ExchangeError::Wire(WireError::Io(io)) if Stream::refused_certificate(io) => {
                OpenError::Certificate { address: self.config.address.clone() }
            }
            ExchangeError::Wire(_) | ExchangeError::Ring(_) => self.unreachable(error),
        }
    }

    fn notice(&self, reason: &str) {
        if let Some(Notify(hear)) = &self.config.notify {
            hear(&format!("worker {}: no shared memory, bodies go over TCP: {reason}", self.config.address));
        }
    }

    /// Bytes of the longest body of a session whose batches are as long as was said.
    fn longest(&self, sizes: &[UnitSizes]) -> u64 {
        let of_batch = |unit: &UnitSizes| match self.config.samples {
            Some(samples) => samples.saturating_mul(unit.input.max(unit.output)),
            None => 0,
        };
        sizes
            .iter()
            .map(|unit| (of_batch(unit) as u64).max(unit.weights as u64))
            .max()
            .unwrap_or_default()
            .saturating_mul(4)
    }

    /// Opens the session on a connection, with a ring where one is asked for and to be had.
    fn open_session(&self, connection: &mut Connection, model: &[u8], sizes: &[UnitSizes]) -> Result<(), OpenError> {
        let wish = match self.config.transport {
            Transport::Tcp => None,
            Transport::SharedMemory(layout) => Some(layout.holding(self.longest(sizes))),
        };
        let open = Open { answers: self.config.answers, ring: wish };
        connection.send(&open, model).map_err(|e| self.opening(&e))?;
        let (opened, _) = connection.receive(BARE).map_err(|e| self.opening(&e))?;
        match (opened, wish) {
            (Opened::Ready, _) => Ok(()),
            (Opened::Model { unit, reason }, _) => Err(OpenError::Model { unit, reason: text(&reason) }),
            (Opened::Failed { reason }, _) => Err(self.unreachable(text(&reason))),
            (Opened::Busy { sessions }, _) => {
                Err(self.unreachable(format_args!("all its {sessions} sessions are taken")))
            }
            (Opened::NoRing { reason }, Some(_)) => {
                self.notice(&text(&reason));
                Ok(())
            }
            (Opened::Ring(offer), Some(layout)) => {
                let ring = Ring::open(&offer, layout);
                connection.send(&Mapped(ring.is_ok()), &[]).map_err(|e| self.opening(&e))?;
                match ring {
                    Ok(ring) => connection.use_ring(ring),
                    Err(error) => self.notice(&error.to_string()),
                }
                Ok(())
            }
            (Opened::NoRing { .. } | Opened::Ring(_), None) => Err(self.unreachable("it answers what was not asked")),
        }
    }
}

impl ResidualBackend for WorkerClient {
    fn name(&self) -> &'static str {
        "worker"
    }

    fn probe(&self) -> Availability {
        match self.connect() {
            Ok((_, _, device)) => Availability::Ready { device: format!("{device} at {}", self.config.address) },
            Err(OpenError::Missing { what, fix }) => Availability::Missing { what, fix },
            Err(error) => Availability::Missing {
                what: error.to_string(),
                fix: "start `asymflow-worker` and pass on its address, fingerprint and token".to_owned(),
            },
        }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let sizes = unit::sizes(model)?;
        let body = serde_json::to_vec(model).map_err(|e| self.unreachable(e))?;
        let (mut connection, handle, _) = self.connect()?;
        connection.set_timeout(self.config.answer_timeout);
        self.open_session(&mut connection, &body, &sizes)?;
        let has_ring = connection.ring_layout().is_some();
        let remote =
            Remote { connection, answer_timeout: self.config.answer_timeout, broken: None, under_way: VecDeque::new() };
        // A body that lies in memory is sent by saying so: no thread has to wait for the wire.
        if has_ring {
            return Ok(Box::new(QueuedSession::in_halves(sizes, remote)));
        }
        let hang_up = Box::new(move || {
            let _ = handle.shutdown(Shutdown::Both);
        });
        let session = QueuedSession::start(sizes, remote, Some(hang_up)).map_err(|e| self.unreachable(e))?;
        Ok(Box::new(session))
    }
}

/// Executes requests by a round trip to the worker.
struct Remote {
    connection: Connection,
    answer_timeout: Duration,
    /// Set once the two ends may disagree about where a frame begins.
    broken: Option<String>,
    /// What is known of the requests whose answers are to come, in their order.
    under_way: VecDeque<Sent>,
}

/// A request on its way.
#[derive(Clone, Copy)]
struct Sent {
    expected: Expected,
    /// What it took to send.
    bytes: u64,
    seconds: f64,
}

impl Sent {
    /// The most that a right answer has.
    const fn answer_bytes(&self) -> u64 {
        (self.expected.values as u64 + self.expected.weight_values as u64).saturating_mul(4)
    }
}

impl Halves for Remote {
    /// Each takes a slot of the ring in both directions. The worker must not wait for us while it answers, as it would with a body on
    /// the connection: we may be waiting for it there.
    fn has_room(&self) -> bool {
        let Some(RingLayout { slots, slot_bytes, .. }) = self.connection.ring_layout() else { return false };
        self.under_way.len() < slots as usize && self.under_way.iter().all(|sent| sent.answer_bytes() <= slot_bytes)
    }

    fn begin(&mut self, request: Request, expected: Expected) -> Result<(), CollectError> {
        if let Some(reason) = &self.broken {
            return Err(CollectError::Lost { reason: reason.clone() });
        }
        let (header, body) = encode(request)?;
        let (start, sent_before) = (Instant::now(), self.connection.sent_bytes);
        self.connection.set_timeout(self.answer_timeout);
        body.send(&mut self.connection, &header).map_err(|e| self.lost(&e))?;
        let bytes = self.connection.sent_bytes - sent_before;
        self.under_way.push_back(Sent { expected, bytes, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    }

    fn finish(&mut self) -> Result<Answer, CollectError> {
        if let Some(reason) = &self.broken {
            return Err(CollectError::Lost { reason: reason.clone() });
        }
        let Some(sent @ Sent { expected, bytes, seconds }) = self.under_way.pop_front() else {
            return Err(CollectError::Malformed { reason: "an answer to nothing".to_owned() });
        };
        let (start, received) = (Instant::now(), self.connection.received_bytes);
        self.connection.set_timeout(self.answer_timeout);
        let (header, body) = self.connection.receive(with_body(sent.answer_bytes())).map_err(|e| self.lost(&e))?;
        let (busy_seconds, precision) = accepted(header, &body, expected)?;
        let waited = start.elapsed().as_secs_f64();
        let split = expected.values * precision.bytes();
        let values = self.connection.numbers(&body, 0..split, precision);
        let weights = self.connection.numbers(&body, split..usize::MAX, Precision::F32);
        let (values, weight_values) = (values.map_err(|e| self.lost(&e))?, weights.map_err(|e| self.lost(&e))?);
        let cost = WorkerStats {
            busy_seconds,
            transfer_seconds: seconds + start.elapsed().as_secs_f64() - busy_seconds.min(waited),
            bytes_to_worker: bytes,
            bytes_from_worker: self.connection.received_bytes - received,
        };
        Ok(Answer { values, weight_values, cost })
    }
}

impl Executor for Remote {
    fn execute(&mut self, request: Request, expected: Expected) -> Result<Answer, CollectError> {
        self.begin(request, expected)?;
        self.finish()
    }
}

impl Remote {
    /// Bytes that are no frame are malformed; everything after them, and a failed stream, is lost.
    fn lost(&mut self, error: &ExchangeError) -> CollectError {
        let reason = match error {
            ExchangeError::Wire(WireError::Io(io)) if io.kind() == io::ErrorKind::TimedOut => {
                format!("no answer within {:.1} s", self.answer_timeout.as_secs_f64())
            }
            other => other.to_string(),
        };
        if matches!(error, ExchangeError::Wire(WireError::Io(_) | WireError::Closed)) {
            return CollectError::Lost { reason };
        }
        self.broken = Some(format!("after a malformed answer: {reason}"));
        CollectError::Malformed { reason }
    }
}

fn unit_id(unit: usize) -> Result<u32, CollectError> {
    u32::try_from(unit).map_err(|_| CollectError::Failed { reason: format!("unit {unit} exceeds 32 bits") })
}

/// What follows a request's header.
enum Outgoing {
    Payload(Payload),
    Bytes(Vec<u8>),
    /// Numbers that somebody else may hold as well.
    Shared(SharedValues),
}

impl Outgoing {
    fn send(&self, connection: &mut Connection, header: &RequestHeader) -> Result<(), ExchangeError> {
        match self {
            Self::Payload(payload) => connection.send_numbers(header, &[Numbers::of(payload)]),
            Self::Bytes(bytes) => connection.send(header, bytes),
            Self::Shared(parts) => {
                let parts: Vec<Numbers<'_>> = parts.iter().map(|part| Numbers::F32(part)).collect();
                connection.send_numbers(header, &parts)
            }
        }
    }
}

fn encode(request: Request) -> Result<(RequestHeader, Outgoing), CollectError> {
    let (header, body) = match request {
        Request::SetWeights { unit, weights } => {
            return Ok((RequestHeader::SetWeights { unit: unit_id(unit)? }, Outgoing::Shared(weights)));
        }
        Request::SetMomentum { unit, momentum } => {
            return Ok((RequestHeader::SetMomentum { unit: unit_id(unit)? }, Outgoing::Shared(momentum)));
        }
        Request::Forward { unit, x, pass } => {
            let header = RequestHeader::Forward { unit: unit_id(unit)?, pass, encoding: Encoding::of(&x) };
            return Ok((header, Outgoing::Payload(x)));
        }
        Request::Gradient { unit, dy, wanted } => {
            let header = RequestHeader::Gradient { unit: unit_id(unit)?, wanted, precision: precision_of(&dy) };
            return Ok((header, Outgoing::Payload(dy)));
        }
        Request::AddWeights { unit, delta } => {
            let header = RequestHeader::AddWeights { unit: unit_id(unit)?, precision: precision_of(&delta) };
            return Ok((header, Outgoing::Payload(delta)));
        }
        Request::Ease { unit, easing } => (RequestHeader::Ease { unit: unit_id(unit)?, easing }, Vec::new()),
        Request::Step { unit, sgd } => (RequestHeader::Step { unit: unit_id(unit)?, sgd }, Vec::new()),
        Request::Weights { unit } => (RequestHeader::Weights { unit: unit_id(unit)? }, Vec::new()),
        Request::Momentum { unit } => (RequestHeader::Momentum { unit: unit_id(unit)? }, Vec::new()),
        Request::Reset => (RequestHeader::Reset, Vec::new()),
        Request::Store { unit, first, samples, bits, labels } => {
            let mut body = bits.as_bytes().to_vec();
            put_u32(&labels, &mut body);
            (RequestHeader::Store { unit: unit_id(unit)?, first, samples, labelled: !labels.is_empty() }, body)
        }
        Request::ForwardStored { unit, records, pass } => {
            let mut body = Vec::new();
            put_u32(&records, &mut body);
            (RequestHeader::ForwardStored { unit: unit_id(unit)?, pass }, body)
        }
        Request::TrainStored { unit, records, sgd } => {
            let mut body = Vec::new();
            put_u32(&records, &mut body);
            (RequestHeader::TrainStored { unit: unit_id(unit)?, sgd }, body)
        }
    };
    Ok((header, Outgoing::Bytes(body)))
}

/// Precision of numbers that are no bits; a session refuses bits where none belong.
fn precision_of(payload: &Payload) -> Precision {
    if matches!(payload, Payload::F16(_)) { Precision::F16 } else { Precision::F32 }
}

/// Busy seconds and precision of an answer of the right length.
fn accepted(header: ResponseHeader, body: &Body, expected: Expected) -> Result<(f64, Precision), CollectError> {
    let malformed = |reason: String| CollectError::Malformed { reason };
    let (busy_seconds, values, precision) = match header {
        ResponseHeader::Done { busy_seconds, values, precision } => (busy_seconds, values, precision),
        ResponseHeader::Failed { reason } => return Err(CollectError::Failed { reason: text(&reason) }),
        ResponseHeader::Lost { reason } => return Err(CollectError::Lost { reason: text(&reason) }),
        ResponseHeader::NonFinite { reason } => return Err(CollectError::NonFinite { reason: text(&reason) }),
    };
    if values != expected.values as u64 {
        return Err(malformed(format!("{values} values, expected {}", expected.values)));
    }
    if !(busy_seconds.is_finite() && busy_seconds >= 0.0) {
        return Err(malformed(format!("{busy_seconds} busy seconds")));
    }
    let (bytes, split) = (body.len(), expected.values * precision.bytes());
    let tail =
        bytes.checked_sub(split).ok_or_else(|| malformed(format!("{bytes} bytes, expected at least {split}")))?;
    if !tail.is_multiple_of(4) {
        return Err(malformed(format!("{tail} bytes are no whole numbers")));
    }
    Ok((busy_seconds, precision))
}
