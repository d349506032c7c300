//! Convolution units.

use asymflow_privacy::payload::{Payload, Precision};
use asymflow_zoo::{graph::reference::Reference, network::Shape, ops::Easing};

use super::tools::{
    Nonconformance, Subject, gradients, numbers, ok, open, outputs, refused, released, spent, wide, wrong,
};
use crate::backend::{ConvUnit, Pass, ResidualModel, ResidualTraining, SgdStep, Ticket, Unit, UnitId, Wanted};

use crate::unit::conv_network;

const BOTH: Wanted = Wanted { input: true, weights: true };

/// Kernels, strides and paddings of the networks in the zoo, and the awkward ones between them.
fn cases() -> Vec<ConvUnit> {
    let case = |input: (usize, usize, usize), out_channels, kernel, stride, padding| ConvUnit {
        input: Shape::new(input.0, input.1, input.2),
        out_channels,
        kernel,
        stride,
        padding,
    };
    vec![
        case((3, 6, 5), 4, 3, 1, 1),
        case((4, 8, 8), 6, 3, 2, 1),
        case((4, 7, 7), 2, 3, 2, 1),
        case((5, 4, 4), 3, 1, 1, 0),
        case((5, 8, 6), 3, 1, 2, 0),
        case((2, 5, 5), 3, 3, 1, 0),
        case((3, 14, 14), 4, 7, 2, 3),
        case((1, 2, 2), 1, 2, 1, 1),
    ]
}

pub(super) fn products(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let mut session = open(subject, cases().into_iter().map(Unit::Conv).collect())?;
    for (index, unit) in cases().iter().enumerate() {
        for precision in [Precision::F32, Precision::F16] {
            one_step(subject, session.as_mut(), index as u32, unit, precision)?;
        }
    }
    Ok(())
}

/// The first case and a session that computes it alone, with weights.
fn one(subject: &Subject<'_>) -> Result<(ConvUnit, Box<dyn ResidualTraining>), Nonconformance> {
    let unit = cases().swap_remove(0);
    let mut session = open(subject, vec![Unit::Conv(unit.clone())])?;
    let weights = numbers(6, unit.weights());
    ok("set_weights", session.set_weights(UnitId(0), &weights))?;
    Ok((unit, session))
}

/// What the wire makes of `values`.
fn rounded(values: &[f32], precision: Precision) -> Vec<f32> {
    Payload::encode(values.to_vec(), precision).into_f32()
}

struct Expected {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

/// What a convolution puts out, and the gradients of Σ y·dy.
fn conv(unit: &ConvUnit, x: &[f32], w: &[f32], dy: &[f32]) -> Result<Expected, Nonconformance> {
    let network = ok("a unit of the suite", conv_network(unit))?;
    let reference = ok("a unit of the suite", Reference::new(&network, w))?;
    let tape = ok("a batch of the suite", reference.train(&wide(x), Easing::default()))?;
    let gradients = ok("a gradient of the suite", reference.backward(&tape, &wide(dy)))?;
    Ok(Expected { y: tape.logits().to_vec(), dx: gradients.input, dw: gradients.params.concat() })
}

fn one_step(
    subject: &Subject<'_>,
    session: &mut dyn ResidualTraining,
    index: u32,
    unit: &ConvUnit,
    precision: Precision,
) -> Result<(), Nonconformance> {
    let samples = 3;
    let check = |what: &str| format!("{what} of {unit:?} in {precision:?}");
    let k = unit.kernel;
    let out = |side: usize| (side + 2 * unit.padding - k) / unit.stride + 1;
    let out_len = unit.out_channels * out(unit.input.height) * out(unit.input.width);
    let x = rounded(&numbers(u64::from(index) + 1, samples * unit.input.len()), precision);
    let dy = rounded(&numbers(u64::from(index) + 100, samples * out_len), precision);
    let w = numbers(u64::from(index) + 200, unit.out_channels * unit.input.channels * k * k);
    let expected = conv(unit, &x, &w, &dy)?;
    let id = UnitId(index);
    let tolerance = 1e-5;

    ok("set_weights", session.set_weights(id, &w))?;
    let ticket = ok("submit", session.submit(id, released(x.clone(), precision)?, Pass::Inference))?;
    subject.close(&check("inference"), &outputs("collect", session, ticket)?, &expected.y, tolerance)?;
    spent("collect", session, ticket)?;

    for wanted in [BOTH, Wanted { input: true, weights: false }, Wanted { input: false, weights: true }] {
        let forward = ok("submit", session.submit(id, released(x.clone(), precision)?, Pass::Training))?;
        let backward = ok("submit_gradient", session.submit_gradient(id, released(dy.clone(), precision)?, wanted))?;
        subject.close(&check("forward"), &outputs("collect", session, forward)?, &expected.y, tolerance)?;
        let (input, weights) = gradients("collect", session, backward)?;
        let none: &[f64] = &[];
        let dx = if wanted.input { expected.dx.as_slice() } else { none };
        let dw = if wanted.weights { expected.dw.as_slice() } else { none };
        subject.close(&check("input gradient"), &input, dx, tolerance)?;
        subject.close(&check("weight gradient"), &weights, dw, tolerance)?;
    }
    Ok(())
}

/// Added weights must be bit-exact: the trusted side adds the same delta to its own copy.
pub(super) fn weights(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let (unit, mut session) = one(subject)?;
    let (unit, session) = (&unit, session.as_mut());
    let id = UnitId(0);
    let len = unit.out_channels * unit.input.channels * unit.kernel * unit.kernel;
    let mut mine = numbers(7, len);
    ok("set_weights", session.set_weights(id, &mine))?;
    for (round, precision) in [Precision::F32, Precision::F16, Precision::F16].into_iter().enumerate() {
        let scaled: Vec<f32> = numbers(8 + round as u64, len).iter().map(|v| v * 1e-3).collect();
        let delta = Payload::encode(scaled, precision);
        mine.iter_mut().zip(delta.clone().into_f32()).for_each(|(w, d)| *w += d);
        ok("add_weights", session.add_weights(id, delta))?;
        let theirs = ok("weights", session.weights(id))?;
        if theirs.iter().zip(&mine).any(|(a, b)| a.to_bits() != b.to_bits()) || theirs.len() != len {
            return Err(wrong("add_weights", format_args!("not exact in {precision:?}")));
        }
    }
    let x = numbers(9, unit.input.len());
    let ticket = ok("submit", session.submit(id, released(x.clone(), Precision::F32)?, Pass::Inference))?;
    let y = outputs("collect", session, ticket)?;
    let expected = conv(unit, &x, &mine, &vec![0.0; y.len()])?;
    subject.close("forward after add_weights", &y, &expected.y, 1e-5)
}

/// Tickets may be collected in any order, and each belongs to its own submission.
pub(super) fn order(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let (unit, mut session) = one(subject)?;
    let (unit, session) = (&unit, session.as_mut());
    let id = UnitId(0);
    let w = ok("weights", session.weights(id))?;
    let inputs: Vec<Vec<f32>> = (0..4).map(|i| numbers(50 + i, unit.input.len() * (i as usize + 1))).collect();
    let mut tickets = Vec::new();
    for x in &inputs {
        tickets.push(ok("submit", session.submit(id, released(x.clone(), Precision::F32)?, Pass::Inference))?);
    }
    for (x, ticket) in inputs.iter().zip(tickets).rev() {
        let y = outputs("collect", session, ticket)?;
        let expected = conv(unit, x, &w, &vec![0.0; y.len()])?;
        subject.close("collect in reverse", &y, &expected.y, 1e-5)?;
    }
    let stats = session.stats();
    if stats.busy_seconds > 0.0 && stats.transfer_seconds >= 0.0 {
        Ok(())
    } else {
        Err(wrong("stats", format_args!("{stats:?}")))
    }
}

pub(super) fn refusals(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let (unit, mut session) = one(subject)?;
    let (unit, session) = (&unit, session.as_mut());
    let (id, far) = (UnitId(0), UnitId(1000));
    let one = || released(numbers(1, unit.input.len()), Precision::F32);
    let sgd = SgdStep::plain(0.1, 0.0, 0.0);
    refused("submit to no unit", session.submit(far, one()?, Pass::Inference), "Unit")?;
    refused("weights of no unit", session.set_weights(far, &[]), "Unit")?;
    refused("step of no unit", session.step(far, sgd), "Unit")?;
    refused("step of a convolution", session.step(id, sgd), "Unsupported")?;
    let short = released(numbers(1, unit.input.len() - 1), Precision::F32)?;
    refused("submit of part of a sample", session.submit(id, short, Pass::Inference), "Length")?;
    let empty = released(Vec::new(), Precision::F32)?;
    refused("submit of nothing", session.submit(id, empty, Pass::Inference), "Length")?;
    refused("short weights", session.set_weights(id, &[1.0]), "Length")?;
    refused("short delta", session.add_weights(id, Payload::F32(vec![1.0])), "Length")?;
    let len = unit.out_channels * unit.input.channels * unit.kernel * unit.kernel;
    refused("weights not finite", session.set_weights(id, &vec![f32::NAN; len]), "NonFinite")?;
    refused("momentum of a convolution", session.set_momentum(id, &vec![0.0; len]), "Unsupported")?;
    refused("delta not finite", session.add_weights(id, Payload::F32(vec![f32::INFINITY; len])), "NonFinite")?;
    refused("collect of no ticket", session.collect(Ticket(u64::MAX)), "Ticket")?;

    let out = |side: usize| (side + 2 * unit.padding - unit.kernel) / unit.stride + 1;
    let out_len = unit.out_channels * out(unit.input.height) * out(unit.input.width);
    let dy = |samples: usize| released(numbers(2, samples * out_len), Precision::F32);
    refused("gradient without forward", session.submit_gradient(id, dy(1)?, BOTH), "NoForward")?;
    let inference = ok("submit", session.submit(id, one()?, Pass::Inference))?;
    refused("gradient after inference", session.submit_gradient(id, dy(1)?, BOTH), "NoForward")?;
    let training = ok("submit", session.submit(id, one()?, Pass::Training))?;
    refused("gradient of more samples", session.submit_gradient(id, dy(2)?, BOTH), "NoForward")?;
    let gradient = ok("submit_gradient", session.submit_gradient(id, dy(1)?, BOTH))?;
    refused("second gradient", session.submit_gradient(id, dy(1)?, BOTH), "NoForward")?;
    for ticket in [inference, training] {
        outputs("collect", session, ticket)?;
    }
    gradients("collect", session, gradient).map(|_| ())
}

/// A reset forgets passes and tickets but not weights, and the session works on.
pub(super) fn reset(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let (unit, mut session) = one(subject)?;
    let (unit, session) = (&unit, session.as_mut());
    let id = UnitId(0);
    let before = ok("weights", session.weights(id))?;
    let x = numbers(3, unit.input.len());
    let ticket = ok("submit", session.submit(id, released(x.clone(), Precision::F32)?, Pass::Training))?;
    ok("reset", session.reset())?;
    spent("reset", session, ticket)?;
    let out = |side: usize| (side + 2 * unit.padding - unit.kernel) / unit.stride + 1;
    let dy = vec![1.0; unit.out_channels * out(unit.input.height) * out(unit.input.width)];
    let gradient = session.submit_gradient(id, released(dy, Precision::F32)?, BOTH);
    refused("gradient after reset", gradient, "NoForward")?;
    if ok("weights", session.weights(id))? != before {
        return Err(wrong("reset", "the weights changed"));
    }
    let ticket = ok("submit", session.submit(id, released(x, Precision::F32)?, Pass::Inference))?;
    outputs("forward after reset", session, ticket).map(|_| ())
}

pub(super) fn bad_models(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let good = ConvUnit { input: Shape::new(1, 4, 4), out_channels: 1, kernel: 3, stride: 1, padding: 1 };
    let bad = [
        ConvUnit { kernel: 0, ..good.clone() },
        ConvUnit { stride: 0, ..good.clone() },
        ConvUnit { out_channels: 0, ..good.clone() },
        ConvUnit { kernel: 7, ..good.clone() },
        ConvUnit { input: Shape::new(0, 4, 4), ..good.clone() },
        ConvUnit { input: Shape::new(1 << 40, 1 << 40, 4), ..good.clone() },
        ConvUnit { padding: usize::MAX, ..good.clone() },
        ConvUnit { input: Shape::new(1 << 15, 1 << 15, 1 << 15), ..good.clone() },
    ];
    for unit in bad {
        let model = ResidualModel { units: vec![Unit::Conv(good.clone()), Unit::Conv(unit.clone())] };
        let opened = subject.backend.open(&model).map(|_| "a session");
        refused(&format!("open of {unit:?}"), opened, "Model { unit: 1")?;
    }
    Ok(())
}
