//! Units on a burn device.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use asymflow_wire::tls::Fingerprint;
use burn::tensor::Device;
use thiserror::Error;

use crate::backend::{Availability, OpenError, ResidualBackend, ResidualModel, ResidualTraining, Unit};
use crate::burn_network::BurnNetwork;
use crate::burn_unit::BurnConv;
use crate::units::{self, message};

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
        let (device, _) = self.device().map_err(|(what, fix)| OpenError::Missing { what, fix })?;
        units::open(model, |unit| {
            Ok(match unit {
                Unit::Conv(conv) => Box::new(BurnConv::new(conv, &device, self.choice == DeviceChoice::Flex)?),
                Unit::Network(network) => Box::new(BurnNetwork::new(network, &device)?),
            })
        })
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
