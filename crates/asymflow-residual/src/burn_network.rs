//! A whole network on a burn device, and the records it trains from.

use std::collections::HashMap;

use asymflow_privacy::{PackedBits, Payload};
use asymflow_zoo::{BurnNet, Network, ParamSpec, Sgd, Weights};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::backend::{Pass, SgdStep};
use crate::burn_unit::download;
use crate::protocol::widen;

/// Bits of a word on the device.
const WORD: usize = 32;

/// One stored record.
struct Record {
    /// Packed bits of one sample, the lowest first.
    bits: Box<[u8]>,
    label: Option<u32>,
}

/// A whole network; its weights live on the device.
pub(crate) struct BurnNetwork {
    pub net: BurnNet,
    device: Device,
    records: HashMap<u32, Record>,
}

impl BurnNetwork {
    pub fn new(network: &Network, device: &Device) -> Result<Self, String> {
        let zero = vec![0.0; network.parameters().iter().map(ParamSpec::len).sum()];
        let weights = Weights::unflatten(network, &zero).map_err(|e| e.to_string())?;
        let net = BurnNet::new(network, &weights, device).map_err(|e| e.to_string())?;
        Ok(Self { net, device: device.clone(), records: HashMap::new() })
    }

    pub fn forward(&mut self, x: Payload, pass: Pass) -> Result<Vec<f32>, String> {
        let x = match x {
            Payload::Bits(bits) => {
                let sample = self.net.network().input.len();
                let samples = (0..bits.len() / sample).map(|i| bits_of(&bits, i * sample, sample));
                self.unpack(&samples.collect::<Vec<_>>())
            }
            floats => self.net.batch(widen(floats)).map_err(|e| e.to_string())?,
        };
        self.logits(x, pass)
    }

    fn logits(&mut self, x: Tensor<4>, pass: Pass) -> Result<Vec<f32>, String> {
        download(self.net.forward(x, pass == Pass::Training).map_err(|e| e.to_string())?)
    }

    pub fn gradient(&mut self, dy: Vec<f32>, wanted: bool) -> Result<Vec<f32>, String> {
        let classes = self.net.network().classes;
        let samples = dy.len() / classes.max(1);
        let dy = Tensor::from_data(TensorData::new(dy, [samples, classes]), &self.device);
        let input = self.net.backward(dy).map_err(|e| e.to_string())?;
        if wanted { download(input) } else { Ok(Vec::new()) }
    }

    pub fn step(&mut self, sgd: SgdStep) -> Result<(), String> {
        let sgd = Sgd {
            learning_rate: f64::from(sgd.learning_rate),
            momentum: f64::from(sgd.momentum),
            weight_decay: f64::from(sgd.weight_decay),
            clip_norm: f64::from(sgd.clip_norm),
            coefficient_rate: f64::from(sgd.coefficient_rate),
            first_layer_rate: f64::from(sgd.first_layer_rate),
        };
        self.net.step(sgd).map_err(|e| e.to_string())
    }

    /// Keeps `samples` samples of whole bytes, and their labels where there are any.
    pub fn store(&mut self, first: u32, samples: u32, bits: &PackedBits, labels: &[u32]) {
        let bytes = self.net.network().input.len() / 8;
        let one =
            |(i, bits): (usize, &[u8])| (first + i as u32, Record { bits: bits.into(), label: labels.get(i).copied() });
        self.records.extend(bits.as_bytes().chunks_exact(bytes.max(1)).take(samples as usize).enumerate().map(one));
    }

    pub fn forward_stored(&mut self, records: &[u32], pass: Pass) -> Result<Vec<f32>, String> {
        let found = self.find(records)?;
        let x = self.unpack(&found.iter().map(|record| words(&record.bits)).collect::<Vec<_>>());
        self.logits(x, pass)
    }

    /// Forward, gradient of the mean cross-entropy towards the stored labels (o_res − y), and step.
    pub fn train_stored(&mut self, records: &[u32], sgd: SgdStep) -> Result<Vec<f32>, String> {
        let labels = self
            .find(records)?
            .iter()
            .zip(records)
            .map(|(record, number)| record.label.ok_or_else(|| format!("record {number} has no label")))
            .collect::<Result<Vec<_>, _>>()?;
        let logits = self.forward_stored(records, Pass::Training)?;
        let gradient = cross_entropy_gradient(&logits, self.net.network().classes, &labels);
        self.gradient(gradient, false)?;
        self.step(sgd)?;
        Ok(logits)
    }

    fn find(&self, records: &[u32]) -> Result<Vec<&Record>, String> {
        let one = |number| self.records.get(number).ok_or_else(|| format!("no record {number} is stored"));
        records.iter().map(one).collect()
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

/// (softmax(z) − y) / samples, row by row.
fn cross_entropy_gradient(logits: &[f32], classes: usize, labels: &[u32]) -> Vec<f32> {
    let samples = labels.len().max(1) as f32;
    let row = |(row, &label): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = row.iter().map(|z| (z - top).exp()).collect();
        let sum: f32 = exponentials.iter().sum();
        let one = move |(class, e): (usize, f32)| (e / sum - f32::from(u8::from(class == label as usize))) / samples;
        exponentials.into_iter().enumerate().map(one).collect::<Vec<_>>()
    };
    logits.chunks_exact(classes.max(1)).zip(labels).flat_map(row).collect()
}
