//! A worker that answers something else than it was asked is found out, whatever it answers; an honest one is not accused.

use std::collections::HashMap;
use std::sync::Arc;

use asymflow::modes::{AsymMl, ExecError, Mode, TrainBatch, VerifyError};
use asymflow::plan::Plan;
use asymflow_engine::program::Program;
use asymflow_privacy::{
    Released,
    payload::{Payload, Precision},
};
use asymflow_residual::session::sizes;
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining, SgdStep,
        SubmitError, Ticket, UnitId, Wanted, WorkerStats,
    },
};
use asymflow_zoo::{Network, Weights, by_name};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::both::{SGD, asymml, images};
use crate::toy_backend::ToyBackend;

const SAMPLES: usize = 4;
/// A step of the size of the first ones of a training: old weights are off by more than binary16 rounds.
const LARGE: SgdStep = SgdStep::plain(0.1, 0.9, 5e-4);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    /// Of this share of its norm, in one sample; the same in every channel and pixel up to a sign.
    Offset(f64),
    /// As that, a known pattern of pixels in one channel, as faults.md A10 describes.
    RankOne(f64),
    Previous,
    Swapped,
    OldWeights,
    Binary16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Outputs,
    Inputs,
    Weights,
}

/// The toy, which lies about all batches of more than one sample: not when it is first tried.
#[derive(Clone, Copy, Debug)]
struct Liar(Lie, About);

impl ResidualBackend for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: "honest".to_owned() }
    }

    fn open(&self, model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        let honest = ToyBackend::default().open(model)?;
        let inputs: Vec<usize> = sizes(model)?.iter().map(|sizes| sizes.input).collect();
        let units = inputs.len();
        let rng = ChaCha8Rng::seed_from_u64(4);
        let (asked, previous) = (HashMap::new(), HashMap::new());
        let held_back = vec![None; units];
        let (Self(lie, about), samples) = (*self, vec![0; units]);
        Ok(Box::new(Lying { honest, lie, about, inputs, samples, asked, previous, held_back, rng }))
    }
}

struct Lying {
    honest: Box<dyn ResidualTraining>,
    lie: Lie,
    about: About,
    /// Values of a sample of each unit, and samples of its latest pass.
    inputs: Vec<usize>,
    samples: Vec<usize>,
    asked: HashMap<Ticket, (UnitId, usize)>,
    previous: HashMap<UnitId, Vec<f32>>,
    held_back: Vec<Option<Vec<f32>>>,
    rng: ChaCha8Rng,
}

impl Lying {
    fn twist(&mut self, unit: UnitId, samples: usize, values: &mut Vec<f32>) {
        let len = values.len() / samples;
        let truth = values.clone();
        let norm = values[..len].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        match self.lie {
            Lie::None | Lie::OldWeights => {}
            Lie::Offset(share) => {
                let by = (share * norm / (len as f64).sqrt()) as f32;
                values[..len].iter_mut().for_each(|v| *v += if self.rng.random() { by } else { -by });
            }
            Lie::RankOne(share) => values[len / 2] += (share * norm) as f32,
            Lie::Previous => {
                if let Some(previous) = self.previous.insert(unit, truth) {
                    *values = previous;
                }
            }
            Lie::Swapped => values.rotate_left(len),
            Lie::Binary16 => *values = Payload::encode(truth, Precision::F16).into_f32(),
        }
    }
}

impl ResidualSession for Lying {
    fn submit(&mut self, unit: UnitId, x: Released<Payload>, pass: Pass) -> Result<Ticket, SubmitError> {
        let samples = x.get().len() / self.inputs[unit.0 as usize];
        self.samples[unit.0 as usize] = samples;
        let ticket = self.honest.submit(unit, x, pass)?;
        self.asked.insert(ticket, (unit, samples));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        let (unit, samples) = self.asked.remove(&ticket).unwrap();
        let mut batch = self.honest.collect(ticket)?;
        match (&mut batch, self.about) {
            (_, _) if samples == 1 => {}
            (Batch::Outputs(values), About::Outputs) => self.twist(unit, samples, values),
            (Batch::Gradients { input, .. }, About::Inputs) if !input.is_empty() => self.twist(unit, samples, input),
            (Batch::Gradients { weights, .. }, About::Weights) => self.twist(unit, 1, weights),
            (Batch::Outputs(_) | Batch::Gradients { .. }, _) => {}
        }
        Ok(batch)
    }

    fn stats(&self) -> WorkerStats {
        self.honest.stats()
    }
}

impl ResidualTraining for Lying {
    fn submit_gradient(&mut self, unit: UnitId, dy: Released<Payload>, wanted: Wanted) -> Result<Ticket, SubmitError> {
        let samples = self.samples[unit.0 as usize];
        let ticket = self.honest.submit_gradient(unit, dy, wanted)?;
        self.asked.insert(ticket, (unit, samples));
        Ok(ticket)
    }

    fn set_weights(&mut self, unit: UnitId, weights: &[f32]) -> Result<(), SubmitError> {
        let held_back = &mut self.held_back[unit.0 as usize];
        let late = (self.lie == Lie::OldWeights).then(|| held_back.replace(weights.to_vec())).flatten();
        self.honest.set_weights(unit, late.as_deref().unwrap_or(weights))
    }

    fn add_weights(&mut self, unit: UnitId, delta: Payload) -> Result<(), SubmitError> {
        if self.lie == Lie::OldWeights { Ok(()) } else { self.honest.add_weights(unit, delta) }
    }

    fn step(&mut self, unit: UnitId, sgd: SgdStep) -> Result<(), SubmitError> {
        self.honest.step(unit, sgd)
    }

    fn weights(&mut self, unit: UnitId) -> Result<Vec<f32>, CollectError> {
        self.honest.weights(unit)
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        self.honest.reset()
    }
}

fn split(network: &Network, precision: Precision, liar: Liar) -> AsymMl {
    let plan = Plan::split_all(&Program::new(network).unwrap(), 4);
    asymml(network, &Weights::init(network, 5), plan, "gram", precision, Arc::new(liar))
}

/// Two steps on different images.
fn two_steps(mode: &mut dyn Mode, images: &[f32]) -> Result<(), ExecError> {
    let (labels, records) = ([0, 1, 2, 3], [0, 1, 2, 3]);
    for images in [images.to_vec(), images.iter().map(|v| v * v - 0.3).collect()] {
        mode.step(TrainBatch::new(&images, &labels, &records)?, LARGE)?;
    }
    Ok(())
}

#[test]
fn every_lie_is_found_out() {
    let network = by_name("demo-cnn", 10, None).unwrap();
    let images = images(&network, SAMPLES);
    let everywhere = [About::Outputs, About::Inputs, About::Weights];
    let of_samples = [About::Outputs, About::Inputs];
    let f32_lies = [Lie::Offset(1e-4), Lie::Previous, Lie::Binary16];
    let mut cases: Vec<(Precision, Lie, About)> = Vec::new();
    for about in everywhere {
        cases.extend(f32_lies.map(|lie| (Precision::F32, lie, about)));
        cases.extend([Lie::Offset(1e-2), Lie::Previous].map(|lie| (Precision::F16, lie, about)));
    }
    for precision in [Precision::F32, Precision::F16] {
        cases.extend(of_samples.map(|about| (precision, Lie::Swapped, about)));
        cases.push((precision, Lie::OldWeights, About::Outputs));
    }
    for (precision, lie, about) in cases {
        let mut mode = split(&network, precision, Liar(lie, about));
        let error = two_steps(&mut mode, &images).expect_err(&format!("{lie:?} about {about:?} in {precision:?}"));
        let ExecError::Verify { layer, error: VerifyError::Wrong { what, distance, tolerance, .. } } = &error else {
            panic!("{lie:?} about {about:?} in {precision:?}: {error}")
        };
        let expected = match about {
            About::Outputs => "outputs",
            About::Inputs => "gradients of inputs",
            About::Weights => "gradients of weights",
        };
        // Old weights change all three; which of them beyond rounding first is theirs to say.
        assert!(*what == expected || lie == Lie::OldWeights, "{lie:?} about {about:?} in {precision:?}: {error}");
        assert!(distance > tolerance && !layer.is_empty(), "{error}");
    }
}

/// faults.md A10: a known pattern that is added to one channel of an answer, which would turn the principal directions of the next layer. As
/// large as it has to be for that it is found out at the first try; of 1e-4 of the norm within a few batches.
#[test]
fn a_pattern_that_would_move_the_basis_is_found_out() {
    let network = by_name("demo-cnn", 10, None).unwrap();
    let images = images(&network, SAMPLES);
    let records = [0, 1, 2, 3];
    for (share, batches) in [(1e-1, 1), (1e-3, 4), (1e-4, 10)] {
        let mut mode = split(&network, Precision::F32, Liar(Lie::RankOne(share), About::Outputs));
        let caught = (0..batches).any(|_| matches!(mode.infer(&images, &records), Err(ExecError::Verify { .. })));
        assert!(caught, "{share:e} of the norm in {batches} batches");
    }
}

/// As many answers as `ASYMFLOW_HONEST_ANSWERS` says, or a few thousand, in each format: none is taken for a lie.
#[test]
fn no_honest_answer_is_accused() {
    let wanted = std::env::var("ASYMFLOW_HONEST_ANSWERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    for name in ["demo-cnn", "resnet8-cifar"] {
        let network = by_name(name, 10, None).unwrap();
        let convs = Program::new(&network).unwrap().convs();
        for (precision, rounding) in [(Precision::F32, Lie::None), (Precision::F16, Lie::Binary16)] {
            // Outputs are rounded as their encoding rounds them.
            let mut mode = split(&network, precision, Liar(rounding, About::Outputs));
            let mut rng = ChaCha8Rng::seed_from_u64(6);
            let (labels, records) = ([0, 1, 2, 3], [0, 1, 2, 3]);
            let mut answers = 0;
            while answers < wanted / 2 {
                let images: Vec<f32> = (0..SAMPLES * network.input.len()).map(|_| rng.random()).collect();
                mode.step(TrainBatch::new(&images, &labels, &records).unwrap(), SGD).unwrap();
                answers += 3 * convs;
            }
        }
    }
}
