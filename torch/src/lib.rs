#![doc = include_str!("../README.md")]

mod activations;
mod convolution;
mod device;
mod network;
mod parameters;
mod pass;
mod place;

use asymflow_residual::units::{self, ComputeUnit, Units};
use asymflow_residual::{
    ResidualBackend,
    backend::{Availability, CollectError, OpenError, ResidualModel, ResidualTraining, Unit},
};

use convolution::TorchConv;
use network::TorchNetwork;
use place::Place;

pub use device::{Arithmetic, TorchDevice, TorchDeviceError};

/// Computes units by PyTorch in this process; each session has a thread of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct TorchBackend {
    /// Where, and in what arithmetic.
    pub device: TorchDevice,
}

impl TorchBackend {
    /// The units of `model`, for an executor of one's own around them.
    ///
    /// # Errors
    /// The device is missing, or a unit is not executable.
    pub fn units(&self, model: &ResidualModel) -> Result<Units, OpenError> {
        self.there()?;
        Units::new(model, self.maker())
    }

    fn maker(&self) -> impl Fn(&Unit) -> Result<Box<dyn ComputeUnit>, CollectError> {
        let place = Place::new(self.device);
        move |unit| {
            Ok(match unit {
                Unit::Conv(conv) => Box::new(TorchConv::new(conv, place)),
                Unit::Network(network) => Box::new(TorchNetwork::new(network, place).map_err(|e| e.to_string())?),
            })
        }
    }

    /// Whether the device is there.
    fn there(&self) -> Result<(), OpenError> {
        // Also for the processor: PyTorch counts its devices once, at the first gradient of the process.
        let has_cuda = place::load_cuda();
        let Some(index) = self.device.cuda else { return Ok(()) };
        let missing = |what: &str| OpenError::Missing {
            what: format!("device {}: {what}", self.device),
            fix: "check the driver and that PyTorch is a CUDA build, or use the device torch".to_owned(),
        };
        if !has_cuda {
            return Err(missing("PyTorch's libtorch_cuda.so cannot be loaded"));
        }
        let found = tch::Cuda::device_count();
        if (index as i64) < found { Ok(()) } else { Err(missing(&format!("{found} CUDA devices found"))) }
    }
}

impl ResidualBackend for TorchBackend {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn probe(&self) -> Availability {
        match self.there() {
            Err(OpenError::Missing { what, fix }) => Availability::Missing { what, fix },
            Ok(()) | Err(_) => Availability::Ready { device: format!("{} (PyTorch)", self.device) },
        }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        self.there()?;
        units::open(model, self.maker())
    }
}
