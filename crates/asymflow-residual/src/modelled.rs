//! Workers that compute nothing: what a split costs without them, and how it would go with a card that is not at hand.

use std::time::{Duration, Instant};

use asymflow_privacy::payload::Payload;
use asymflow_zoo::graph::cost::total_cost;

use crate::backend::{
    Availability, CollectError, ConvUnit, OpenError, ResidualBackend, ResidualModel, ResidualTraining, Unit, Wanted,
    WorkerStats,
};
use crate::protocol::{Encoding, RequestHeader};
use crate::session::{Answer, Executor, Expected, QueuedSession, Request, UnitSizes, sizes};

pub use crate::rates::{ModelledBackend, ModelledBackendError};

/// Below this, the system's sleep is too coarse.
const SPIN: Duration = Duration::from_micros(100);

impl ResidualBackend for ModelledBackend {
    fn name(&self) -> &'static str {
        if *self == Self::NULL { "null" } else { "model" }
    }

    fn probe(&self) -> Availability {
        let Self { flops, bytes_per_second, latency_seconds } = self;
        let device = if *self == Self::NULL {
            "null (answers zeros at once)".to_owned()
        } else {
            let (flops, bytes, micros) = (flops / 1e12, bytes_per_second / 1e9, latency_seconds * 1e6);
            format!("modelled card of {flops} TFLOPS, {bytes} GB/s, {micros} µs (answers zeros)")
        };
        Availability::Ready { device }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let card = self.card(model)?;
        let session = QueuedSession::start(card.sizes.clone(), card, None).map_err(|error| OpenError::Missing {
            what: format!("a thread for the session ({error})"),
            fix: "raise the limit on threads".to_owned(),
        })?;
        Ok(Box::new(session))
    }

    fn open_waiting(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let card = self.card(model)?;
        Ok(Box::new(QueuedSession::waiting(card.sizes.clone(), card)))
    }

    fn modelled(&self) -> Option<ModelledBackend> {
        Some(*self)
    }
}

impl ModelledBackend {
    pub(crate) fn card(&self, model: &ResidualModel) -> Result<Card, OpenError> {
        let sizes = sizes(model)?;
        let unit = |unit: &Unit| match unit {
            Unit::Conv(conv) => conv_macs(conv),
            Unit::Network(network) => total_cost(network).map_or(0.0, |total| total.macs as f64),
        };
        let macs = model.units.iter().map(unit).collect();
        Ok(Card { card: *self, macs, sizes })
    }
}

fn conv_macs(conv: &ConvUnit) -> f64 {
    (conv.output().height * conv.output().width) as f64 * conv.weights() as f64
}

/// A session's card: nothing but how long it takes.
pub(crate) struct Card {
    card: ModelledBackend,
    /// Multiply-accumulates of one sample, by unit.
    macs: Vec<f64>,
    sizes: Vec<UnitSizes>,
}

impl Card {
    /// Operations of a pass over `values` numbers, of which a sample of `unit` has `sample`; `passes` of them.
    fn operations(&self, unit: usize, values: usize, sample: impl Fn(&UnitSizes) -> usize, passes: usize) -> f64 {
        let samples = self.sizes.get(unit).map_or(0, |sizes| values / sample(sizes).max(1));
        2.0 * passes as f64 * samples as f64 * self.macs.get(unit).copied().unwrap_or_default()
    }

    /// Operations, and bytes that go to the card.
    fn work(&self, request: &Request) -> (f64, usize) {
        let input = |sizes: &UnitSizes| sizes.input;
        match request {
            Request::Forward { unit, x, .. } => (self.operations(*unit, x.len(), input, 1), bytes(x)),
            Request::Gradient { unit, dy, wanted } => {
                let is_network = self.sizes.get(*unit).is_some_and(|sizes| sizes.is_network);
                let Wanted { input, weights } = *wanted;
                let passes = if is_network { 2 } else { usize::from(input) + usize::from(weights) };
                (self.operations(*unit, dy.len(), |sizes| sizes.output, passes), bytes(dy))
            }
            Request::SetWeights { weights: values, .. } | Request::SetMomentum { momentum: values, .. } => {
                (0.0, 4 * values.iter().map(Vec::len).sum::<usize>())
            }
            Request::AddWeights { delta, .. } => (0.0, bytes(delta)),
            Request::Store { bits, .. } => (0.0, bits.as_bytes().len()),
            Request::ForwardStored { unit, records, .. } => (self.operations(*unit, records.len(), |_| 1, 1), 0),
            Request::TrainStored { unit, records, .. } => (self.operations(*unit, records.len(), |_| 1, 3), 0),
            Request::Step { .. }
            | Request::Ease { .. }
            | Request::Weights { .. }
            | Request::Momentum { .. }
            | Request::Reset => (0.0, 0),
        }
    }
}

fn bytes(payload: &Payload) -> usize {
    match payload {
        Payload::F32(values) => 4 * values.len(),
        Payload::F16(values) => 2 * values.len(),
        Payload::Bits(bits) => bits.as_bytes().len(),
    }
}

/// How many zeros a card answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zeros {
    pub values: usize,
    pub weights: usize,
}

impl Card {
    /// What follows a request for a convolution with a body of `bytes`, once a card would have answered, without a look at the
    /// numbers; `None` for what has to be kept or looked up.
    pub fn answer(&self, request: &RequestHeader, bytes: usize) -> Option<Zeros> {
        let start = Instant::now();
        let sizes = |unit: u32| self.sizes.get(unit as usize).filter(|sizes| !sizes.is_network && sizes.input > 0);
        let (operations, zeros) = match *request {
            RequestHeader::Forward { unit, encoding: Encoding::Float(precision), .. } => {
                let (values, sizes) = (bytes / precision.bytes(), sizes(unit)?);
                let whole = values > 0 && values.is_multiple_of(sizes.input);
                let answer = Zeros { values: values / sizes.input * sizes.output, weights: 0 };
                (self.operations(unit as usize, values, |sizes| sizes.input, 1), whole.then_some(answer)?)
            }
            RequestHeader::Gradient { unit, wanted, precision } => {
                let (values, sizes) = (bytes / precision.bytes(), sizes(unit)?);
                let whole = values > 0 && values.is_multiple_of(sizes.output);
                let passes = usize::from(wanted.input) + usize::from(wanted.weights);
                let answer = Zeros {
                    values: if wanted.input { values / sizes.output * sizes.input } else { 0 },
                    weights: if wanted.weights { sizes.weights } else { 0 },
                };
                (self.operations(unit as usize, values, |sizes| sizes.output, passes), whole.then_some(answer)?)
            }
            RequestHeader::SetWeights { .. } | RequestHeader::AddWeights { .. } => (0.0, Zeros::default()),
            RequestHeader::Forward { encoding: Encoding::Bits { .. }, .. }
            | RequestHeader::Step { .. }
            | RequestHeader::Ease { .. }
            | RequestHeader::Weights { .. }
            | RequestHeader::Momentum { .. }
            | RequestHeader::SetMomentum { .. }
            | RequestHeader::Reset
            | RequestHeader::Store { .. }
            | RequestHeader::ForwardStored { .. }
            | RequestHeader::TrainStored { .. } => return None,
        };
        self.wait(start, operations, bytes + 4 * (zeros.values + zeros.weights));
        Some(zeros)
    }
}

impl Card {
    /// Until a card that began at `start` would be done.
    fn wait(&self, start: Instant, operations: f64, copied_bytes: usize) {
        let ModelledBackend { flops, bytes_per_second, latency_seconds } = self.card;
        let seconds = latency_seconds + operations / flops + copied_bytes as f64 / bytes_per_second;
        wait_until(start, Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
}

impl Executor for Card {
    fn execute(&mut self, request: Request, expected: Expected) -> Result<Answer, CollectError> {
        let start = Instant::now();
        let (operations, to_card) = self.work(&request);
        drop(request);
        let (values, weight_values) = (vec![0.0; expected.values], vec![0.0; expected.weight_values]);
        self.wait(start, operations, to_card + 4 * (expected.values + expected.weight_values));
        let cost = WorkerStats { busy_seconds: start.elapsed().as_secs_f64(), ..WorkerStats::default() };
        Ok(Answer { values, weight_values, cost })
    }
}

fn wait_until(start: Instant, wait: Duration) {
    while let Some(left) = wait.checked_sub(start.elapsed()) {
        if left > SPIN { std::thread::sleep(left - SPIN) } else { std::thread::yield_now() }
    }
}
