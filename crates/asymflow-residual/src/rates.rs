//! The card that a worker which computes nothing stands for.

use std::str::FromStr;

use thiserror::Error;

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
