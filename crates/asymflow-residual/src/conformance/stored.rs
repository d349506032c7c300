//! Records that a network unit keeps and trains from.

use asymflow_privacy::{
    Released,
    payload::{PackedBits, Precision},
};
use asymflow_zoo::{
    Network, Weights,
    network::{Layer, Shape},
    ops::{Conv, Linear},
};

use super::tools::{Nonconformance, Subject, numbers, ok, open, outputs, refused, released, wrong};
use crate::backend::{ConvUnit, Pass, ResidualTraining, SgdStep, Unit, UnitId, Wanted};
use crate::received::{received_bits, received_labels};

const ID: UnitId = UnitId(0);
const SAMPLES: usize = 5;
const FIRST: u32 = 7;
const SGD: SgdStep = SgdStep::plain(0.05, 0.9, 0.01);
const LABELS: [u32; SAMPLES] = [2, 0, 1, 1, 2];

/// 48 values a sample: whole bytes, and no whole number of 32-bit words.
fn network() -> Network {
    let name = |name: &str| name.to_owned();
    let conv =
        Conv { name: name("conv"), in_channels: 2, out_channels: 4, kernel: 3, stride: 1, padding: 1, bias: false };
    let layers = vec![
        Layer::Conv(conv),
        Layer::BatchNorm { name: name("norm"), channels: 4 },
        Layer::PRelu { name: name("prelu"), channels: 4 },
        Layer::AdaptiveAvgPool { out: 1 },
        Layer::Flatten,
        Layer::Linear(Linear { name: name("fc"), in_features: 4, out_features: 3 }),
    ];
    Network { name: name("stored"), input: Shape::new(2, 4, 6), classes: 3, layers }
}

pub(super) fn records(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let network = network();
    let flat = ok("weights", Weights::init(&network, 5).flatten(&network))?;
    let with_weights = || -> Result<Box<dyn ResidualTraining>, Nonconformance> {
        let mut session = open(subject, vec![Unit::Network(network.clone())])?;
        ok("set_weights", session.set_weights(ID, &flat))?;
        Ok(session)
    };
    let (mut session, mut reference) = (with_weights()?, with_weights()?);
    let session = session.as_mut();
    let samples: Vec<Vec<f32>> = (0..SAMPLES)
        .map(|i| numbers(50 + i as u64, network.input.len()).iter().map(|&v| f32::from(u8::from(v >= 0.0))).collect())
        .collect();
    let bits = |range: std::ops::Range<usize>| -> Result<Released<PackedBits>, Nonconformance> {
        let all = samples[range].concat();
        ok("release", received_bits(&PackedBits::from_bools(all.iter().map(|&v| v > 0.5))))
    };

    let ticket = ok("submit bits", session.submit(ID, bits(0..SAMPLES)?.into_payload(), Pass::Inference))?;
    let of_bits = outputs("collect", session, ticket)?;
    let floats = released(samples.concat(), Precision::F32)?;
    let ticket = ok("submit", reference.submit(ID, floats, Pass::Inference))?;
    let expected: Vec<f64> = outputs("collect", reference.as_mut(), ticket)?.into_iter().map(f64::from).collect();
    subject.close("outputs of bits", &of_bits, &expected, 1e-5)?;

    // In two parts, the second in place of what was stored there before.
    ok("store", session.store(ID, FIRST, bits(0..SAMPLES)?, None))?;
    ok("store", session.store(ID, FIRST, bits(0..2)?, Some(labels(&LABELS[..2])?)))?;
    ok("store", session.store(ID, FIRST + 2, bits(2..SAMPLES)?, Some(labels(&LABELS[2..])?)))?;
    let order = [4u32, 0, 3, 1, 2];
    let records: Vec<u32> = order.iter().map(|i| FIRST + i).collect();
    let ticket = ok("submit_stored", session.submit_stored(ID, &records, Pass::Inference))?;
    let in_order: Vec<f64> = order.iter().flat_map(|&i| &expected[3 * i as usize..][..3]).copied().collect();
    subject.close("outputs of stored records", &outputs("collect", session, ticket)?, &in_order, 1e-5)?;

    let picked = order.map(|i| samples[i as usize].clone()).concat();
    let labels = order.map(|i| LABELS[i as usize]);
    for round in 0..3 {
        let ticket = ok("train_stored", session.train_stored(ID, &records, SGD))?;
        let got = outputs("collect", session, ticket)?;
        let expected = step(reference.as_mut(), &picked, &labels)?;
        subject.close(&format!("logits before step {round}"), &got, &expected, 1e-4)?;
        let weights: Vec<f64> = ok("weights", reference.weights(ID))?.into_iter().map(f64::from).collect();
        subject.close(&format!("weights after step {round}"), &ok("weights", session.weights(ID))?, &weights, 1e-4)?;
    }
    refusals(subject, session, &bits)
}

/// One step by submitted samples and gradients; returns the logits from before it.
fn step(session: &mut dyn ResidualTraining, x: &[f32], labels: &[u32]) -> Result<Vec<f64>, Nonconformance> {
    let ticket = ok("submit", session.submit(ID, released(x.to_vec(), Precision::F32)?, Pass::Training))?;
    let logits: Vec<f64> = outputs("collect", session, ticket)?.into_iter().map(f64::from).collect();
    let gradient: Vec<f32> = logits
        .chunks_exact(3)
        .zip(labels)
        .flat_map(|(row, &label)| {
            let sum: f64 = row.iter().map(|z| z.exp()).sum();
            let one = move |(class, z): (usize, &f64)| {
                let y = f64::from(u8::from(class == label as usize));
                ((z.exp() / sum - y) / labels.len() as f64) as f32
            };
            row.iter().enumerate().map(one).collect::<Vec<_>>()
        })
        .collect();
    let wanted = Wanted { input: false, weights: false };
    let ticket = session.submit_gradient(ID, released(gradient, Precision::F32)?, wanted);
    super::tools::gradients("collect", session, ok("submit_gradient", ticket)?)?;
    ok("step", session.step(ID, SGD))?;
    Ok(logits)
}

fn labels(labels: &[u32]) -> Result<Released<Vec<u32>>, Nonconformance> {
    ok("release", received_labels(labels.to_vec()))
}

type Bits<'a> = dyn Fn(std::ops::Range<usize>) -> Result<Released<PackedBits>, Nonconformance> + 'a;

fn refusals(subject: &Subject<'_>, session: &mut dyn ResidualTraining, bits: &Bits<'_>) -> Result<(), Nonconformance> {
    refused("no records", session.submit_stored(ID, &[], Pass::Inference), "Length")?;
    refused("too few labels", session.store(ID, 0, bits(0..2)?, Some(labels(&[1])?)), "Length")?;
    refused("a label beyond the logits", session.store(ID, 0, bits(0..1)?, Some(labels(&[3])?)), "Unsupported")?;
    refused("numbers beyond 32 bits", session.store(ID, u32::MAX, bits(0..2)?, None), "Length")?;
    refused("another unit", session.store(UnitId(1), 0, bits(0..1)?, None), "Unit")?;
    let unknown = ok("submit_stored", session.submit_stored(ID, &[99], Pass::Inference))?;
    refused("a record that was never stored", session.collect(unknown), "Failed")?;
    ok("store", session.store(ID, 0, bits(0..2)?, None))?;
    let unlabelled = ok("train_stored", session.train_stored(ID, &[0, 1], SGD))?;
    refused("records without labels", session.collect(unlabelled), "Failed")?;
    let ticket = ok("submit_stored", session.submit_stored(ID, &[0, FIRST], Pass::Inference))?;
    if outputs("a session goes on after refusals", session, ticket)?.len() != 6 {
        return Err(wrong("submit_stored", "not one row of logits a record"));
    }
    let conv = ConvUnit { input: Shape::new(2, 4, 6), out_channels: 2, kernel: 1, stride: 1, padding: 0 };
    let mut convolution = open(subject, vec![Unit::Conv(conv)])?;
    refused("a convolution that stores", convolution.store(ID, 0, bits(0..1)?, None), "Unsupported")
}
