//! A whole network on a burn device.

use asymflow_privacy::payload::{PackedBits, Payload};
use asymflow_zoo::{
    Network, Weights,
    burn_net::BurnNet,
    ops::{Easing, ParamSpec},
};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::backend::{CollectError, Pass, SgdStep, Wanted};
use crate::burn_unit::download;
use crate::units::{ComputeUnit, Gradients, TrainUnit};

/// Bits of a word on the device.
const WORD: usize = 32;

/// A whole network; its weights live on the device.
pub(crate) struct BurnNetwork {
    net: BurnNet,
    device: Device,
}

impl BurnNetwork {
    pub fn new(network: &Network, device: &Device) -> Result<Self, String> {
        let zero = vec![0.0; network.parameters().iter().map(ParamSpec::len).sum()];
        let weights = Weights::unflatten(network, &zero).map_err(|e| e.to_string())?;
        let net = BurnNet::new(network, &weights, device).map_err(|e| e.to_string())?;
        Ok(Self { net, device: device.clone() })
    }

    /// Samples of packed words as 0.0 and 1.0, unpacked on the device.
    fn unpack(&self, samples: &[Vec<i32>]) -> Tensor<4> {
        let shape = self.net.network().input;
        let words = samples.first().map_or(0, Vec::len);
        let packed = TensorData::new(samples.concat(), [samples.len(), words, 1]);
        let packed = Tensor::<3, Int>::from_data(packed, &self.device).expand([samples.len(), words, WORD]);
        let shifts: Vec<i32> = (0..WORD as i32).collect();
        let shifts = Tensor::<3, Int>::from_data(TensorData::new(shifts, [1, 1, WORD]), &self.device);
        let bits = packed.bitwise_right_shift(shifts.expand([samples.len(), words, WORD])).bitwise_and_scalar(1);
        let all = bits.float().reshape([samples.len(), words * WORD]);
        let exact = all.slice([0..samples.len(), 0..shape.len()]);
        exact.reshape([samples.len(), shape.channels, shape.height, shape.width])
    }
}

impl ComputeUnit for BurnNetwork {
    fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, CollectError> {
        let x = match x {
            Payload::Bits(bits) => {
                let sample = self.net.network().input.len();
                let samples = (0..bits.len() / sample).map(|i| bits_of(&bits, i * sample, sample));
                self.unpack(&samples.collect::<Vec<_>>())
            }
            floats @ (Payload::F32(_) | Payload::F16(_)) => {
                self.net.batch(floats.into_f32()).map_err(|e| e.to_string())?
            }
        };
        Ok(download(self.net.forward(x, pass == Pass::Training).map_err(|e| e.to_string())?)?)
    }

    fn gradient(&mut self, dy: Vec<f32>, wanted: Wanted) -> Result<Gradients, CollectError> {
        let classes = self.net.network().classes;
        let samples = dy.len() / classes.max(1);
        let dy = Tensor::from_data(TensorData::new(dy, [samples, classes]), &self.device);
        let input = self.net.backward(dy).map_err(|e| e.to_string())?;
        Ok((if wanted.input { download(input)? } else { Vec::new() }, Vec::new()))
    }

    fn weights(&mut self) -> Result<Vec<f32>, CollectError> {
        self.net.flat_weights().map_err(|e| e.to_string().into())
    }

    fn set_weights(&mut self, weights: Vec<f32>) -> Result<(), CollectError> {
        self.net.set_weights(&weights).map_err(|e| e.to_string().into())
    }

    fn reset(&mut self) {
        self.net.reset();
    }

    fn training(&mut self) -> Option<&mut dyn TrainUnit> {
        Some(self)
    }
}

impl TrainUnit for BurnNetwork {
    fn step(&mut self, sgd: SgdStep) -> Result<(), CollectError> {
        self.net.step(sgd).map_err(|e| e.to_string().into())
    }

    fn momentum(&mut self) -> Result<Vec<f32>, CollectError> {
        self.net.flat_momentum().map_err(|e| e.to_string().into())
    }

    fn set_momentum(&mut self, momentum: &[f32]) -> Result<(), CollectError> {
        self.net.set_momentum(momentum).map_err(|e| e.to_string().into())
    }

    fn ease(&mut self, easing: Easing) -> Result<(), CollectError> {
        self.net.set_easing(easing);
        Ok(())
    }
}

/// Little-endian words of packed bits, the last filled up with zeros.
fn words(bytes: &[u8]) -> Vec<i32> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        i32::from_le_bytes(word)
    };
    bytes.chunks(WORD / 8).map(word).collect()
}

/// Words of `len` bits from `start` on, which need not lie on a byte.
fn bits_of(bits: &PackedBits, start: usize, len: usize) -> Vec<i32> {
    if start.is_multiple_of(8) && len.is_multiple_of(8) {
        return words(bits.as_bytes().get(start / 8..(start + len) / 8).unwrap_or_default());
    }
    let mut bytes = vec![0u8; len.div_ceil(8)];
    for i in 0..len {
        bytes[i / 8] |= u8::from(bits.get(start + i).unwrap_or(false)) << (i % 8);
    }
    words(&bytes)
}
