//! Network units.

use asymflow_privacy::payload::Precision;
use asymflow_zoo::{
    Network, Weights,
    graph::reference::Reference,
    network::{Layer, Shape},
    ops::{
        Choice, Conv, Decision, Easing, Form, GroupNorm, Grouping, Linear, ParamSpec, Pointwise, Quadratic, SharedRelu,
    },
};

use super::tools::{Nonconformance, Subject, gradients, numbers, ok, open, outputs, refused, released, wide, wrong};
use crate::backend::{Pass, ResidualModel, ResidualTraining, SgdStep, SubmitError, Unit, UnitId, Wanted};

const ID: UnitId = UnitId(0);
const SAMPLES: usize = 4;
/// The loss is linear in the logits, without a bottom: larger steps make quadratics explode.
const SGD: SgdStep = SgdStep::plain(0.001, 0.9, 0.01);

/// Every kind of layer but dropout, whose randomness is the backend's own.
fn network() -> Network {
    let conv = |name: &str, in_channels, out_channels, kernel, stride, bias| {
        let (name, padding) = (name.to_owned(), kernel / 2);
        Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride, padding, bias })
    };
    let norm = |name: &str, channels| Layer::BatchNorm { name: name.to_owned(), channels };
    let quadratic = |name: &str, channels, form| Layer::Quadratic(Quadratic { name: name.to_owned(), channels, form });
    let shared = |name: &str, channels, grouping, decision| {
        Layer::SharedRelu(SharedRelu { name: name.to_owned(), channels, grouping, decision })
    };
    let blocks = Grouping::Blocks { channels: 2, rows: 2, columns: 3 };
    let choices = Grouping::Choices(vec![
        Choice::Copy { of: 1 },
        Choice::Block { rows: 2, columns: 1 },
        Choice::Quadratic,
        Choice::Identity,
        Choice::Zero,
    ]);
    let main = vec![
        conv("a.conv", 4, 5, 3, 2, false),
        norm("a.norm", 5),
        quadratic("a.hermite", 5, Form::Hermite { second: 0.6 }),
    ];
    let shortcut = vec![conv("a.short", 4, 5, 1, 2, true)];
    let linear = Linear { name: "fc".to_owned(), in_features: 5 * 4, out_features: 3 };
    let mut layers = vec![
        conv("conv", 2, 4, 3, 1, true),
        norm("norm", 4),
        Layer::Relu,
        Layer::GroupNorm(GroupNorm { name: "groups".to_owned(), channels: 4, groups: 2 }),
        quadratic("react", 4, Form::REACT),
        shared("blocks", 4, blocks, Decision::Mean),
        Layer::MaxPool { kernel: 3, stride: 2, padding: 1 },
        Layer::Residual { main, shortcut },
        Layer::PRelu { name: "b.prelu".to_owned(), channels: 5 },
        Layer::Residual {
            main: vec![conv("b.conv", 5, 5, 3, 1, false), quadratic("b.kerv", 5, Form::Kervolution { c: 0.5 })],
            shortcut: vec![quadratic("b.scaled", 5, Form::RPKN)],
        },
        shared("choices", 5, choices, Decision::Largest),
        Layer::AdaptiveAvgPool { out: 2 },
        Layer::Flatten,
        Layer::Linear(linear),
    ];
    layers.splice(4..4, Pointwise::ALL.map(Layer::Pointwise));
    Network { name: "conformance".to_owned(), input: Shape::new(2, 10, 9), classes: 3, layers }
}

fn weights(network: &Network) -> Result<Vec<f32>, Nonconformance> {
    let mut flat = ok("weights", Weights::init(network, 5).flatten(network))?;
    // Freshly initialised normalisations would hide mistakes: scale 1, shift 0, mean 0, variance 1.
    for (value, noise) in flat.iter_mut().zip(numbers(11, network.parameters().iter().map(ParamSpec::len).sum())) {
        *value += 0.25 * noise;
    }
    Ok(flat)
}

pub(super) fn inference(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let network = network();
    let mut session = open(subject, vec![Unit::Network(network.clone())])?;
    let session = session.as_mut();
    let flat = weights(&network)?;
    if ok("weights", session.weights(ID))?.iter().any(|&w| w != 0.0) {
        return Err(wrong("open", "weights of a new session are not zero"));
    }
    ok("set_weights", session.set_weights(ID, &flat))?;
    if ok("weights", session.weights(ID))? != flat {
        return Err(wrong("weights", "not those that were set"));
    }
    let x = numbers(21, SAMPLES * network.input.len());
    let ticket = ok("submit", session.submit(ID, released(x.clone(), Precision::F32)?, Pass::Inference))?;
    let reference = ok("a network of the suite", Reference::new(&network, &flat))?;
    let expected = ok("a batch of the suite", reference.logits(&wide(&x)))?;
    subject.close("network inference", &outputs("collect", session, ticket)?, &expected, 1e-4)
}

/// Three steps; before the last, `another` session takes over with the weights and momentum of `session`.
pub(super) fn training(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let network = network();
    let of = || open(subject, vec![Unit::Network(network.clone())]);
    let (session, another) = (&mut of()?, &mut of()?);
    let flat = weights(&network)?;
    ok("set_weights", session.set_weights(ID, &flat))?;
    let mut reference = ok("a network of the suite", Reference::new(&network, &flat))?;
    let mut velocity = reference.params.clone();
    velocity.iter_mut().for_each(|values| values.fill(0.0));
    if ok("momentum", session.momentum(ID))? != vec![0.0; flat.len()] {
        return Err(wrong("momentum", "not zero before the first step"));
    }
    for round in 0..3 {
        if round == 2 {
            hand_over(session.as_mut(), another.as_mut())?;
            std::mem::swap(session, another);
        }
        let x = numbers(31 + round, SAMPLES * network.input.len());
        let dy = numbers(41 + round, SAMPLES * network.classes);
        let (wide_x, wide_dy) = (wide(&x), wide(&dy));
        let wanted = Wanted { input: round == 0, weights: false };
        let forward = ok("submit", session.submit(ID, released(x, Precision::F32)?, Pass::Training))?;
        if round == 1 {
            // What was kept stays.
            let other = released(numbers(61, network.input.len()), Precision::F32)?;
            let between = ok("submit", session.submit(ID, other, Pass::Inference))?;
            outputs("inference before the gradient", session.as_mut(), between)?;
        }
        let backward = ok("submit_gradient", session.submit_gradient(ID, released(dy, Precision::F32)?, wanted))?;
        ok("step", session.step(ID, SGD))?;

        let tape = ok("a batch of the suite", reference.train(&wide_x, Easing::default()))?;
        let expected = ok("a gradient of the suite", reference.backward(&tape, &wide_dy))?;
        subject.close(
            "network training outputs",
            &outputs("collect", session.as_mut(), forward)?,
            tape.logits(),
            1e-4,
        )?;
        let (input, none) = gradients("collect", session.as_mut(), backward)?;
        subject.close("network input gradient", &input, if wanted.input { &expected.input } else { &[] }, 1e-3)?;
        subject.close("network weight gradient", &none, &[], 0.0)?;

        reference.commit(&tape);
        let moved = reference.params.iter_mut().zip(&mut velocity).zip(&expected.params);
        for (((values, velocity), gradient), _) in
            moved.zip(network.parameters()).filter(|(_, spec)| spec.kind.is_trained())
        {
            for ((w, velocity), gradient) in values.iter_mut().zip(velocity).zip(gradient) {
                *velocity = f64::from(SGD.momentum) * *velocity + gradient + f64::from(SGD.weight_decay) * *w;
                *w -= f64::from(SGD.learning_rate) * *velocity;
            }
        }
        let got = ok("weights", session.weights(ID))?;
        let mut rest = got.as_slice();
        for (spec, expected) in network.parameters().iter().zip(&reference.params) {
            let (head, tail) = rest.split_at(spec.len().min(rest.len()));
            rest = tail;
            subject.close(&format!("{} after step {round}", spec.name), head, expected, 1e-4)?;
        }
        subject.close(
            &format!("momentum after step {round}"),
            &ok("momentum", session.momentum(ID))?,
            &velocity.concat(),
            1e-3,
        )?;
    }
    Ok(())
}

fn hand_over(from: &mut dyn ResidualTraining, to: &mut dyn ResidualTraining) -> Result<(), Nonconformance> {
    let (weights, momentum) = (ok("weights", from.weights(ID))?, ok("momentum", from.momentum(ID))?);
    ok("set_momentum", to.set_momentum(ID, &momentum))?;
    ok("set_weights", to.set_weights(ID, &weights))?;
    if ok("momentum", to.momentum(ID))? != momentum {
        return Err(wrong("momentum", "not that which was set"));
    }
    Ok(())
}

pub(super) fn refusals(subject: &Subject<'_>) -> Result<(), Nonconformance> {
    let mut session = open(subject, vec![Unit::Network(network())])?;
    refused("step without a gradient", session.step(ID, SGD), "NoForward")?;
    let len = ok("momentum", session.momentum(ID))?.len();
    refused("momentum of another length", session.set_momentum(ID, &vec![0.0; len - 1]), "Length")?;
    refused("momentum not finite", session.set_momentum(ID, &vec![f32::NAN; len]), "NonFinite")?;
    let delta = asymflow_privacy::payload::Payload::F32(vec![0.0; 8]);
    match session.add_weights(ID, delta) {
        Err(SubmitError::Unsupported { .. }) => {}
        other => return Err(wrong("add_weights to a network", format_args!("{other:?}"))),
    }
    let mut duplicate = network();
    duplicate.layers.insert(1, duplicate.layers[0].clone());
    let mut twisted = network();
    twisted.classes = 4;
    let mut twins = network();
    twins.layers.insert(1, twins.layers[1].clone());
    for (what, network) in [("channels", duplicate), ("classes", twisted), ("names", twins)] {
        let model = ResidualModel { units: vec![Unit::Network(network)] };
        refused(what, subject.backend.open(&model).map(|_| "a session"), "Model { unit: 0")?;
    }
    Ok(())
}
