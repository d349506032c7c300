//! Devices by name.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// In what products are computed. Weights, their gradients, normalisations' statistics and steps are binary32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// binary32; on CUDA without TF32, which PyTorch alone would use in convolutions.
    #[default]
    F32,
    /// binary32 numbers with products of TF32's 10 bits of mantissa; on CUDA alone.
    Tf32,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Arithmetic {
    const NAMED: [(Self, &str); 4] =
        [(Self::F32, "f32"), (Self::Tf32, "tf32"), (Self::F16, "f16"), (Self::Bf16, "bf16")];
}

/// Where PyTorch computes, and in what arithmetic. It is read from what stands behind `torch:` in the name of a device:
/// nothing for the processor, or `cuda` or `cuda:N`, then `tf32`, `f16` or `bf16`.
///
/// ```
/// use asymflow_torch::{Arithmetic, TorchDevice};
///
/// let device: TorchDevice = "cuda:1:bf16".parse()?;
/// assert_eq!(device, TorchDevice { cuda: Some(1), arithmetic: Arithmetic::Bf16 });
/// assert_eq!(device.to_string(), "torch:cuda:1:bf16");
/// # Ok::<(), asymflow_torch::TorchDeviceError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TorchDevice {
    /// The n-th CUDA device, or the processor.
    pub cuda: Option<usize>,
    /// In what.
    pub arithmetic: Arithmetic,
}

/// A text that names no device of PyTorch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TorchDeviceError {
    /// It is none.
    #[error("unknown device \"torch:{got}\", expected torch[:cuda[:N]][:f32|tf32|f16|bf16]")]
    Unknown {
        /// The text.
        got: String,
    },
    /// The processor has no TF32.
    #[error("tf32 is on CUDA alone, \"torch:{got}\" is the processor")]
    Tf32 {
        /// The text.
        got: String,
    },
}

impl FromStr for TorchDevice {
    type Err = TorchDeviceError;

    fn from_str(text: &str) -> Result<Self, TorchDeviceError> {
        let mut device = Self::default();
        let mut parts = text.split(':').filter(|_| !text.is_empty()).peekable();
        if parts.next_if_eq(&"cuda").is_some() {
            let index = parts.peek().and_then(|part| part.parse().ok());
            parts.next_if(|_| index.is_some());
            device.cuda = Some(index.unwrap_or(0));
        }
        let named = parts.next().map(|part| Arithmetic::NAMED.iter().find(|(_, name)| *name == part));
        match (named, parts.next()) {
            (None, None) => {}
            (Some(Some((arithmetic, _))), None) => device.arithmetic = *arithmetic,
            _ => return Err(TorchDeviceError::Unknown { got: text.to_owned() }),
        }
        if device.cuda.is_none() && device.arithmetic == Arithmetic::Tf32 {
            return Err(TorchDeviceError::Tf32 { got: text.to_owned() });
        }
        Ok(device)
    }
}

impl fmt::Display for TorchDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("torch")?;
        if let Some(index) = self.cuda {
            write!(f, ":cuda:{index}")?;
        }
        match Arithmetic::NAMED.iter().find(|(arithmetic, _)| *arithmetic == self.arithmetic) {
            Some((Arithmetic::F32, _)) | None => Ok(()),
            Some((_, name)) => write!(f, ":{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["", "cuda:0", "cuda:3:tf32", "cuda:0:f16", "bf16", "f16"] {
            let device: TorchDevice = text.parse().unwrap();
            assert_eq!(device.to_string(), ["torch", text].join(if text.is_empty() { "" } else { ":" }));
        }
        for (short, long) in [("cuda", "cuda:0"), ("cuda:bf16", "cuda:0:bf16"), ("f32", ""), ("cuda:1:f32", "cuda:1")] {
            assert_eq!(short.parse::<TorchDevice>(), long.parse(), "{short}");
        }
        for text in ["cpu", "cuda:", "cuda:x", "cuda:0:0", "f64", "bf16:cuda", "cuda:0:f16:f16", ":"] {
            assert_eq!(text.parse::<TorchDevice>(), Err(TorchDeviceError::Unknown { got: text.to_owned() }));
        }
        assert_eq!("tf32".parse::<TorchDevice>(), Err(TorchDeviceError::Tf32 { got: "tf32".to_owned() }));
    }
}
