//! Images from what was released of them, by a decoder trained on public images.

use asymflow_privacy::payload::Payload;
use asymflow_residual::backend::{Pass, Unit, UnitId};
use asymflow_zoo::Network;
use asymflow_zoo::network::{Layer, Shape};
use asymflow_zoo::ops::Conv;

use crate::attack::{Attack, AuditError, Budget, Guess, Sight};
use crate::fit::{Fit, Own};
use crate::tape::{Kind, Tape};

/// Trains a convolutional decoder on pairs of public images and what the mode releases of them, and decodes the targets'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inversion {
    /// Channels of the decoder.
    pub width: usize,
}

/// Most channels that a decoder reads.
const CHANNELS: usize = 96;

impl Attack for Inversion {
    fn name(&self) -> &'static str {
        "inversion"
    }

    fn guess(&self, sight: &Sight<'_>, budget: Budget) -> Result<Guess, AuditError> {
        let image = sight.public.network.input;
        let missing = |why: &str| AuditError::NotApplicable { attack: "inversion", why: why.to_owned() };
        let read = |tape| features(tape, &sight.public.model.units, image);
        let (mut public, mut targets) = (read(sight.public.tape), read(sight.tape));
        let samples = sight.public.images.len() / image.len();
        if public.values.is_empty() || public.values.len() != samples * public.channels * image.pixels() {
            return Err(missing("nothing was released of the public images"));
        }
        if targets.values.is_empty() || targets.channels != public.channels {
            return Err(missing("nothing was released of the targets"));
        }
        let scales = public.scales(image.pixels());
        public.scale(&scales, image.pixels());
        targets.scale(&scales, image.pixels());
        let network = decoder(public.channels, self.width, image);
        let len = image.len();
        let mut gradient = |outputs: &[f32], numbers: &[usize]| {
            let wanted = numbers.iter().flat_map(|&i| &sight.public.images[i * len..(i + 1) * len]);
            Ok(outputs
                .iter()
                .zip(wanted)
                .map(|(out, image)| (out - image) / (numbers.len() * image_scale(len)) as f32)
                .collect())
        };
        let fit = Fit { epochs: budget.epochs, batch: 32, learning_rate: 0.1, weight_decay: 1e-5, seed: budget.seed };
        let mut own = Own::fitted(&network, &public.values, fit, &mut gradient)?;
        Ok(Guess::Images(own.outputs(&targets.values)?))
    }
}

/// The squared error is averaged over so many values, so that a step is of the size that classifiers take.
const fn image_scale(len: usize) -> usize {
    len / 16 + 1
}

/// What was released, as images of many channels.
struct Features {
    channels: usize,
    /// Samples × channels × the image's pixels.
    values: Vec<f32>,
}

impl Features {
    /// 1 over the root mean square by channel.
    fn scales(&self, pixels: usize) -> Vec<f32> {
        let of = |channel: usize| {
            let maps = self.values.chunks_exact(pixels).skip(channel).step_by(self.channels);
            let (sum, count) = maps.flatten().fold((0.0, 0_u64), |(s, n), &v| (s + f64::from(v) * f64::from(v), n + 1));
            (1.0 / (sum / count.max(1) as f64).sqrt().max(1e-6)) as f32
        };
        (0..self.channels).map(of).collect()
    }

    fn scale(&mut self, scales: &[f32], pixels: usize) {
        let maps = self.values.chunks_exact_mut(pixels).zip(scales.iter().cycle());
        maps.for_each(|(map, scale)| map.iter_mut().for_each(|v| *v *= scale));
    }
}

/// The inputs of the first units in inference, each enlarged to the image's size.
fn features(tape: &Tape, units: &[Unit], image: Shape) -> Features {
    let mut maps: Vec<(Shape, Vec<f32>)> = Vec::new();
    let mut channels = 0;
    for (index, unit) in units.iter().enumerate() {
        let shape = match unit {
            Unit::Conv(conv) => conv.input,
            Unit::Network(network) => network.input,
        };
        let values = inputs(tape, UnitId(index as u32));
        if channels > 0 && channels + shape.channels > CHANNELS || !values.len().is_multiple_of(shape.len()) {
            break;
        }
        channels += shape.channels;
        maps.push((shape, values));
    }
    let samples = maps.first().map_or(0, |(shape, values)| values.len() / shape.len());
    let mut values = Vec::with_capacity(samples * channels * image.pixels());
    for sample in 0..samples {
        for (shape, maps) in &maps {
            for map in maps[sample * shape.len()..(sample + 1) * shape.len()].chunks_exact(shape.pixels()) {
                let at = |i: usize| {
                    let (row, column) = (i / image.width, i % image.width);
                    map[row * shape.height / image.height * shape.width + column * shape.width / image.width]
                };
                values.extend((0..image.pixels()).map(at));
            }
        }
    }
    Features { channels, values }
}

fn inputs(tape: &Tape, unit: UnitId) -> Vec<f32> {
    let sent = tape.messages.iter().filter(|m| m.unit == unit && m.kind == Kind::Input(Pass::Inference));
    // Bits as signs, so that their mean says nothing.
    let signed = |payload: &Payload| match payload {
        Payload::Bits(bits) => {
            let mut out = vec![0.0; bits.len()];
            bits.unpack_into(&mut out, -1.0, 1.0);
            out
        }
        Payload::F32(_) | Payload::F16(_) => payload.clone().into_f32(),
    };
    sent.flat_map(|message| signed(&message.values)).collect()
}

fn decoder(channels: usize, width: usize, image: Shape) -> Network {
    let conv = |name: &str, in_channels, out_channels, bias| {
        let (name, kernel, stride, padding) = (name.to_owned(), 3, 1, 1);
        Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride, padding, bias })
    };
    let norm = |name: &str| Layer::BatchNorm { name: name.to_owned(), channels: width };
    let layers = vec![
        conv("conv1", channels, width, false),
        norm("bn1"),
        Layer::Relu,
        conv("conv2", width, width, false),
        norm("bn2"),
        Layer::Relu,
        conv("conv3", width, image.channels, true),
        Layer::Flatten,
    ];
    let input = Shape::new(channels, image.height, image.width);
    Network { name: "decoder".to_owned(), input, classes: image.len(), layers }
}
