//! Workers that compute nothing: what a split costs without them, and how it would go with a card that is not at hand.

use std::str::FromStr;
use std::time::{Duration, Instant};

use asymflow_privacy::payload::Payload;
use asymflow_zoo::graph::cost::total_cost;
use thiserror::Error;

use crate::backend::{
    Availability, CollectError, ConvUnit, OpenError, ResidualBackend, ResidualModel, ResidualTraining, Unit, Wanted,
    WorkerStats,
};
use crate::session::{Answer, Executor, Expected, QueuedSession, Request, UnitSizes, sizes};

/// Below this, the system's sleep is too coarse.
const SPIN: Duration = Duration::from_micros(100);

/// A backend that answers zeros of the right shape, at once or when a card of a given speed would have answered.
///
/// Sessions refuse it wherever its answers would be taken for results:
/// [`WorkerConfig::takes_modelled`](crate::client::WorkerConfig::takes_modelled).
///
/// ```
/// use asymflow_residual::modelled::ModelledBackend;
///
/// let rtx_5000: ModelledBackend = "11.2:12:20".parse()?;
/// assert_eq!(rtx_5000, ModelledBackend { flops: 11.2e12, bytes_per_second: 12e9, latency_seconds: 20e-6 });
/// assert!("11.2:0:20".parse::<ModelledBackend>().is_err());
/// # Ok::<(), asymflow_residual::modelled::ModelledBackendError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelledBackend {
    /// Floating-point operations per second, two for each multiply-accumulate.
    pub flops: f64,
    /// Rate of copies to and from the card.
    pub bytes_per_second: f64,
    /// What every request takes beside operations and copies.
    pub latency_seconds: f64,
}

/// A text that describes no card.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{got:?} is no card: expected TFLOPS:GB/s:µs, for example 11.2:12:20, rates above 0 and a latency of 0 to 1e6 µs"
)]
pub struct ModelledBackendError {
    got: String,
}

impl FromStr for ModelledBackend {
    type Err = ModelledBackendError;

    fn from_str(text: &str) -> Result<Self, ModelledBackendError> {
        let numbers: Option<Vec<f64>> = text.split(':').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[tflops, gigabytes, micros])
                if tflops > 0.0
                    && gigabytes > 0.0
                    && (0.0..=1e6).contains(&micros)
                    && (tflops * gigabytes).is_finite() =>
            {
                Ok(Self { flops: tflops * 1e12, bytes_per_second: gigabytes * 1e9, latency_seconds: micros / 1e6 })
            }
            _ => Err(ModelledBackendError { got: text.chars().take(80).collect() }),
        }
    }
}

impl ModelledBackend {
    /// Answers at once.
    pub const NULL: Self = Self { flops: f64::INFINITY, bytes_per_second: f64::INFINITY, latency_seconds: 0.0 };
}

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

    fn is_modelled(&self) -> bool {
        true
    }
}

impl ModelledBackend {
    fn card(&self, model: &ResidualModel) -> Result<Card, OpenError> {
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
struct Card {
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

impl Executor for Card {
    fn execute(&mut self, request: Request, expected: Expected) -> Result<Answer, CollectError> {
        let start = Instant::now();
        let (operations, to_card) = self.work(&request);
        let from_card = 4 * (expected.values + expected.weight_values);
        let ModelledBackend { flops, bytes_per_second, latency_seconds } = self.card;
        let seconds = latency_seconds + operations / flops + (to_card + from_card) as f64 / bytes_per_second;
        drop(request);
        let (values, weight_values) = (vec![0.0; expected.values], vec![0.0; expected.weight_values]);
        wait_until(start, Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        let cost = WorkerStats { busy_seconds: start.elapsed().as_secs_f64(), ..WorkerStats::default() };
        Ok(Answer { values, weight_values, cost })
    }
}

fn wait_until(start: Instant, wait: Duration) {
    while let Some(left) = wait.checked_sub(start.elapsed()) {
        if left > SPIN { std::thread::sleep(left - SPIN) } else { std::thread::yield_now() }
    }
}
