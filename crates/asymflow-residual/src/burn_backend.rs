//! Units on a burn device.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::time::Instant;

use burn::tensor::Device;
use thiserror::Error;

use crate::backend::{
    Availability, CollectError, OpenError, ResidualBackend, ResidualModel, ResidualTraining, Unit, WorkerStats,
};
use crate::burn_network::BurnNetwork;
use crate::burn_unit::{BurnConv, BurnUnit};
use crate::pin::Fingerprint;
use crate::protocol::widen;
use crate::queue::{Answer, Executor, Expected, QueuedSession, Request};
use crate::unit;

/// Which device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The processor: burn's reference backend, always there.
    Flex,
    /// A GPU through wgpu (cargo feature `wgpu`): the n-th adapter.
    Wgpu(usize),
    /// A GPU through Vulkan with SPIR-V (cargo feature `vulkan`): the n-th adapter.
    Vulkan(usize),
    /// An NVIDIA GPU (cargo feature `cuda`): the n-th device.
    Cuda(usize),
    /// The first device that another machine lends through burn-remote (cargo feature `remote`), encrypted and without
    /// relays. The host is known by its public key; the example `remote_host` is one.
    Remote {
        /// The host's public key, 64 hexadecimal digits.
        key: Fingerprint,
        /// Where it listens (UDP).
        address: SocketAddr,
    },
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown device {got:?}, expected flex, wgpu[:N], vulkan[:N], cuda[:N] or remote:KEY@IP:PORT")]
pub struct DeviceChoiceError {
    /// The text.
    pub got: String,
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(text: &str) -> Result<Self, DeviceChoiceError> {
        let error = || DeviceChoiceError { got: text.to_owned() };
        if let Some(host) = text.strip_prefix("remote:") {
            let (key, address) = host.split_once('@').ok_or_else(error)?;
            let (key, address) = key.parse().ok().zip(address.parse().ok()).ok_or_else(error)?;
            return Ok(Self::Remote { key, address });
        }
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let index: usize = index.parse().map_err(|_| error())?;
        match kind {
            "flex" if text == kind => Ok(Self::Flex),
            "wgpu" => Ok(Self::Wgpu(index)),
            "vulkan" => Ok(Self::Vulkan(index)),
            "cuda" => Ok(Self::Cuda(index)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flex => f.write_str("flex"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
            Self::Vulkan(index) => write!(f, "vulkan:{index}"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Remote { key, address } => write!(f, "remote:{key}@{address}"),
        }
    }
}

/// Computes units on a burn device in this process; each session has a thread of its own.
#[derive(Clone, Debug)]
pub struct BurnBackend {
    choice: DeviceChoice,
}

impl BurnBackend {
    /// A backend on `choice`; the device is sought when it is probed or opened.
    pub const fn new(choice: DeviceChoice) -> Self {
        Self { choice }
    }

    /// The device and its description.
    fn device(&self) -> Result<(Device, String), (String, String)> {
        let found = catch_unwind(AssertUnwindSafe(|| crate::burn_device::find(self.choice)));
        found.unwrap_or_else(|panic| {
            Err((
                format!("device {}: {}", self.choice, message(panic.as_ref())),
                "check the driver, or use the device flex".to_owned(),
            ))
        })
    }
}

impl ResidualBackend for BurnBackend {
    fn name(&self) -> &'static str {
        match self.choice {
            DeviceChoice::Flex => "flex",
            DeviceChoice::Wgpu(_) => "wgpu",
            DeviceChoice::Vulkan(_) => "vulkan",
            DeviceChoice::Cuda(_) => "cuda",
            DeviceChoice::Remote { .. } => "remote",
        }
    }

    fn probe(&self) -> Availability {
        match self.device() {
            Ok((_, device)) => Availability::Ready { device },
            Err((what, fix)) => Availability::Missing { what, fix },
        }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let sizes = unit::sizes(model)?;
        let (device, _) = self.device().map_err(|(what, fix)| OpenError::Missing { what, fix })?;
        let units = model.units.iter().enumerate().map(|(index, unit)| {
            let made = match unit {
                Unit::Conv(conv) => guard(|| BurnConv::new(conv, &device, self.choice == DeviceChoice::Flex))
                    .map(|conv| BurnUnit::Conv(Box::new(conv))),
                Unit::Network(network) => {
                    guard(|| BurnNetwork::new(network, &device)).map(|network| BurnUnit::Network(Box::new(network)))
                }
            };
            made.map_err(|reason| OpenError::Model { unit: index as u32, reason })
        });
        let executor = Local { units: units.collect::<Result<_, _>>()? };
        let session = QueuedSession::start(sizes, executor, None).map_err(|e| OpenError::Missing {
            what: format!("a thread for the session ({e})"),
            fix: "raise the limit on threads".to_owned(),
        })?;
        Ok(Box::new(session))
    }
}

/// Text of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked without a message").to_owned()
}

/// Runs device work; burn reports most failures by panicking.
fn guard<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(message(panic.as_ref())))
}

/// Executes requests on the units of this process.
struct Local {
    units: Vec<BurnUnit>,
}

impl Executor for Local {
    fn execute(&mut self, request: Request, _expected: Expected) -> Result<Answer, CollectError> {
        let start = Instant::now();
        let (values, weight_values) =
            guard(|| self.compute(request)).map_err(|reason| CollectError::Failed { reason })?;
        let cost = WorkerStats { busy_seconds: start.elapsed().as_secs_f64(), ..WorkerStats::default() };
        Ok(Answer { values, weight_values, cost })
    }
}

impl Local {
    fn unit(&mut self, unit: usize) -> Result<&mut BurnUnit, String> {
        self.units.get_mut(unit).ok_or_else(|| format!("no unit {unit}"))
    }

    fn compute(&mut self, request: Request) -> Result<(Vec<f32>, Vec<f32>), String> {
        let none = Vec::new;
        match request {
            Request::Forward { unit, x, pass } => Ok((self.unit(unit)?.forward(x, pass)?, none())),
            Request::Gradient { unit, dy, wanted } => self.unit(unit)?.gradient(widen(dy), wanted),
            Request::SetWeights { unit, weights } => {
                self.unit(unit)?.set_weights(weights.concat())?;
                Ok((none(), none()))
            }
            Request::AddWeights { unit, delta } => {
                self.unit(unit)?.add_weights(&widen(delta))?;
                Ok((none(), none()))
            }
            Request::Step { unit, sgd } => {
                self.unit(unit)?.step(sgd)?;
                Ok((none(), none()))
            }
            Request::Ease { unit, easing } => {
                self.unit(unit)?.network()?.net.set_easing(easing);
                Ok((none(), none()))
            }
            Request::SetMomentum { unit, momentum } => {
                self.unit(unit)?.network()?.net.set_momentum(&momentum.concat()).map_err(|e| e.to_string())?;
                Ok((none(), none()))
            }
            Request::Weights { unit } => Ok((self.unit(unit)?.weights()?, none())),
            Request::Momentum { unit } => {
                let momentum = self.unit(unit)?.network()?.net.flat_momentum().map_err(|e| e.to_string())?;
                Ok((momentum, none()))
            }
            Request::Reset => {
                self.units.iter_mut().for_each(BurnUnit::reset);
                Ok((none(), none()))
            }
            Request::Store { unit, first, samples, bits, labels } => {
                self.unit(unit)?.network()?.store(first, samples, &bits, &labels);
                Ok((none(), none()))
            }
            Request::ForwardStored { unit, records, pass } => {
                Ok((self.unit(unit)?.network()?.forward_stored(&records, pass)?, none()))
            }
            Request::TrainStored { unit, records, sgd } => {
                Ok((self.unit(unit)?.network()?.train_stored(&records, sgd)?, none()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let key = "0123456789abcdef".repeat(4);
        let remote = format!("remote:{key}@[::1]:4433");
        for text in ["flex", "wgpu:1", "vulkan:0", "cuda:2", &remote] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["flex:0", "cuda:x", "remote", "remote:0", "remote:abc@127.0.0.1:1", &format!("remote:{key}@host")]
        {
            assert_eq!(text.parse::<DeviceChoice>(), Err(DeviceChoiceError { got: text.to_owned() }));
        }
    }
}
