//! Quadratics and shared decisions against what they are written out in f64, and their gradients against central
//! differences of it.

use asymflow_engine::{Engine, LocalConv};
use asymflow_residual::Pass;
use asymflow_zoo::{
    Choice, Decision, Easing, Form, Gate, Grouping, Layer, Network, Quadratic, RangePenalty, Shape, SharedRelu, Weights,
};
use faer::Par;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::both::relative;

const SAMPLES: usize = 3;
/// Step of the central differences.
const STEP: f64 = 1e-5;

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// One activation as a network, whose logits are its outputs.
fn network(shape: Shape, layer: Layer) -> Network {
    Network { name: "one".to_owned(), input: shape, classes: shape.len(), layers: vec![layer, Layer::Flatten] }
}

/// What [`activation`] computes, and what is held constant for its gradient.
struct Frozen {
    x: Vec<f64>,
    kept: Vec<bool>,
}

struct Reference {
    layer: Layer,
    shape: Shape,
    train: bool,
    easing: Easing,
}

impl Reference {
    /// Outputs and, where `w` brings running statistics, their batch's means and unbiased variances.
    fn quadratic(&self, quadratic: &Quadratic, w: &[f64], x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let value = |x: f64| match quadratic.form {
            Form::Kervolution { .. } => (x + w[0]).powi(2),
            Form::Scaled { .. } => w[0] * (x + w[1]).powi(2),
            _ => w[0] * x * x + w[1] * x + w[2],
        };
        let Form::Hermite { second } = quadratic.form else {
            return (x.iter().map(|&x| value(x)).collect(), Vec::new());
        };
        let gains = [0.5, f64::from(second) / (4.0 * std::f64::consts::PI).sqrt()];
        let (channels, pixels) = (self.shape.channels, self.shape.pixels());
        let (mut y, mut moments) = (vec![0.0; x.len()], vec![0.0; 4 * channels]);
        for c in 0..channels {
            let of = |i: &usize| i / pixels % channels == c;
            for (number, gain) in gains.into_iter().enumerate() {
                let basis = |i: usize| if number == 0 { x[i] } else { (x[i] * x[i] - 1.0) / 2_f64.sqrt() };
                let (mut mean, mut variance) = (w[2 * number * channels + 2 * channels + c], 0.0);
                if self.train {
                    let n = (x.len() / channels) as f64;
                    mean = (0..x.len()).filter(of).map(basis).sum::<f64>() / n;
                    variance = (0..x.len()).filter(of).map(|i| (basis(i) - mean).powi(2)).sum::<f64>() / n;
                    moments[2 * number * channels + c] = mean;
                    moments[(2 * number + 1) * channels + c] = variance * n / (n - 1.0);
                } else {
                    variance += w[2 * number * channels + 3 * channels + c];
                }
                for i in (0..x.len()).filter(of) {
                    y[i] += gain * (basis(i) - mean) / (variance + 1e-5).sqrt() * w[c];
                }
            }
            (0..x.len()).filter(of).for_each(|i| y[i] += w[channels + c]);
        }
        (y, moments)
    }

    fn votes(&self, shared: &SharedRelu, w: &[f64], x: &[f64]) -> Vec<f64> {
        let groups = shared.groups(self.shape);
        let sample = |x: &[f64]| -> Vec<f64> {
            let vote = |voters: &Vec<(u32, u32)>| {
                let values = voters.iter().map(|&(i, place)| (x[i as usize], place as usize));
                match shared.decision {
                    Decision::Largest => {
                        values.fold(0.0, |most: f64, (x, _)| if x.abs() > most.abs() { x } else { most })
                    }
                    Decision::Learned => values.map(|(x, place)| x * w[place]).sum(),
                    _ => values.map(|(x, _)| x).sum::<f64>() / voters.len() as f64,
                }
            };
            groups.voters.iter().map(vote).collect()
        };
        x.chunks(self.shape.len()).flat_map(sample).collect()
    }

    /// With `frozen`, the function whose gradient is that of the layer: decisions as they were, and where they pass a gradient,
    /// clamp(vote/2 + 1/2, 0, 1) times the activation as it was.
    fn shared(&self, shared: &SharedRelu, w: &[f64], x: &[f64], frozen: Option<&Frozen>) -> (Vec<f64>, Vec<bool>) {
        let groups = shared.groups(self.shape);
        let votes = self.votes(shared, w, x);
        let kept: Vec<bool> = frozen.map_or_else(|| votes.iter().map(|&vote| vote > 0.0).collect(), |f| f.kept.clone());
        let passes = self.easing.straight_through || shared.decision == Decision::Learned;
        let coefficients = &w[w.len() - 3 * shared.quadratics()..];
        let sharing = f64::from(self.easing.sharing);
        let one = |i: usize| {
            let (sample, at) = (i / self.shape.len(), i % self.shape.len());
            let y = match groups.gates[at] {
                Gate::Group(group) => {
                    let group = sample * groups.count() + group as usize;
                    let soft = (votes[group] / 2.0 + 0.5).clamp(0.0, 1.0);
                    let passed = frozen.filter(|_| passes).map_or(0.0, |frozen| frozen.x[i] * soft);
                    x[i] * f64::from(u8::from(kept[group])) + passed
                }
                Gate::Keep => x[i],
                Gate::Drop => 0.0,
                Gate::Quadratic(q) => {
                    let q = 3 * q as usize;
                    coefficients[q] * x[i] * x[i] + coefficients[q + 1] * x[i] + coefficients[q + 2]
                }
            };
            sharing * y + (1.0 - sharing) * x[i].max(0.0)
        };
        ((0..x.len()).map(one).collect(), kept)
    }

    fn penalty(&self, x: &[f64]) -> f64 {
        let Some(range) = self.easing.range else { return 0.0 };
        let value = |x: &f64| {
            let (ratio, saturated) = ((x / f64::from(range.limit)).abs(), f64::from(RangePenalty::SATURATION));
            let inside = ratio.min(saturated);
            inside.powi(range.exponent)
                + f64::from(range.exponent) * saturated.powi(range.exponent - 1) * (ratio - inside)
        };
        f64::from(range.weight) * x.iter().map(value).sum::<f64>() / SAMPLES as f64
    }

    /// Σ y·dy plus the penalty.
    fn loss(&self, w: &[f64], x: &[f64], dy: &[f64], frozen: &Frozen) -> f64 {
        let dot = |y: &[f64]| y.iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        match &self.layer {
            Layer::Quadratic(layer) => dot(&self.quadratic(layer, w, x).0) + self.penalty(x),
            Layer::SharedRelu(layer) => dot(&self.shared(layer, w, x, Some(frozen)).0),
            other => panic!("{other:?}"),
        }
    }
}

fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut moved = at.to_vec();
    let one = |i: usize| {
        moved[i] = at[i] + STEP;
        let above = f(&moved);
        moved[i] = at[i] - STEP;
        let below = f(&moved);
        moved[i] = at[i];
        (above - below) / (2.0 * STEP)
    };
    (0..at.len()).map(one).collect()
}

fn near(label: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{label}");
    let scale = expected.iter().fold(1e-3_f64, |most, v| most.max(v.abs()));
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(got) - expected).abs() < 3e-5 * scale, "{label}: value {i} is {got}, expected {expected}");
    }
}

/// Inference, a training pass, all its gradients and the running statistics after it.
fn check(layer: &Layer, shape: Shape, easing: Easing) {
    let label = format!("{layer:?}, {easing:?}");
    let network = network(shape, layer.clone());
    let mut weights = Weights::init(&network, 1);
    let mut flat = weights.flatten(&network).unwrap();
    let noise = numbers(2, flat.len());
    flat.iter_mut().zip(&noise).for_each(|(w, noise)| *w += 0.2 * noise);
    weights = Weights::unflatten(&network, &flat).unwrap();
    let (x, dy) = (numbers(3, SAMPLES * shape.len()), numbers(4, SAMPLES * shape.len()));
    let mut engine = Engine::with_input_gradient(network, &weights, Par::Seq).unwrap();
    engine.set_easing(easing);
    let mut convolver = LocalConv::new(0, engine.pool.clone(), Par::Seq);
    let (wide_x, wide_dy, wide_w) = (wide(&x), wide(&dy), wide(&flat));
    let expected = |train: bool| {
        let easing = if train { easing } else { Easing::default() };
        let reference = Reference { layer: layer.clone(), shape, train, easing };
        let (y, moments, kept) = match layer {
            Layer::Quadratic(layer) => {
                let (y, moments) = reference.quadratic(layer, &wide_w, &wide_x);
                (y, moments, Vec::new())
            }
            Layer::SharedRelu(layer) => {
                let (y, kept) = reference.shared(layer, &wide_w, &wide_x, None);
                (y, Vec::new(), kept)
            }
            other => panic!("{other:?}"),
        };
        (reference, y, moments, kept)
    };
    let y = engine.forward(&x, SAMPLES, Pass::Inference, 0, &mut convolver).unwrap();
    near(&format!("inference of {label}"), &y, &expected(false).1);
    let (reference, y, moments, kept) = expected(true);
    let got = engine.forward(&x, SAMPLES, Pass::Training, 0, &mut convolver).unwrap();
    near(&format!("training of {label}"), &got, &y);

    let frozen = Frozen { x: wide_x.clone(), kept };
    let dx = engine.backward(dy, SAMPLES, &mut convolver).unwrap().unwrap();
    near(&format!("dx of {label}"), &dx, &differences(&wide_x, |x| reference.loss(&wide_w, x, &wide_dy, &frozen)));
    let dw = differences(&wide_w, |w| reference.loss(w, &wide_x, &wide_dy, &frozen));
    engine.commit_moments();
    let (mut at, mut of_moments) = (0, 0);
    for (index, spec) in engine.params.specs.iter().enumerate() {
        let range = at..at + spec.len();
        let label = format!("{} of {label}", spec.name);
        if spec.kind.is_trained() {
            near(&label, &engine.params.gradients[index], &dw[range]);
        } else {
            let batch = &moments[of_moments..of_moments + spec.len()];
            let moved: Vec<f64> = wide_w[range].iter().zip(batch).map(|(old, new)| 0.9 * old + 0.1 * new).collect();
            near(&label, &engine.params.values[index], &moved);
            of_moments += spec.len();
        }
        at += spec.len();
    }
}

fn easings() -> [Easing; 4] {
    let range = Some(RangePenalty { limit: 0.45, weight: 0.01, exponent: 6 });
    [
        Easing::default(),
        Easing { sharing: 0.3, ..Easing::default() },
        Easing { straight_through: true, range, ..Easing::default() },
        Easing { sharing: 0.7, straight_through: true, range },
    ]
}

#[test]
fn every_quadratic_equals_itself_written_out() {
    let shape = Shape::new(3, 5, 7);
    for form in [Form::Kervolution { c: 0.5 }, Form::RPKN, Form::REACT, Form::HERMITE, Form::Hermite { second: 0.3 }] {
        for easing in easings() {
            check(&Layer::Quadratic(Quadratic { name: "q".to_owned(), channels: 3, form }), shape, easing);
        }
    }
}

#[test]
fn every_grouping_and_decision_equals_itself_written_out() {
    let shape = Shape::new(5, 5, 7);
    let block = |rows, columns| Choice::Block { rows, columns };
    let mut groupings: Vec<Grouping> =
        [[1, 1, 1], [1, 2, 2], [2, 2, 3], [3, 1, 1], [5, 5, 7], [1, 4, 1], [2, 9, 8], [8, 1, 3]]
            .map(|[channels, rows, columns]| Grouping::Blocks { channels, rows, columns })
            .into();
    groupings.extend([
        Grouping::Choices(vec![Choice::Copy { of: 2 }, Choice::Quadratic, block(2, 3), Choice::Identity, Choice::Zero]),
        Grouping::Choices(vec![Choice::Quadratic, block(1, 1), Choice::Quadratic, Choice::Copy { of: 1 }, block(3, 1)]),
        Grouping::Choices(vec![Choice::Quadratic, Choice::Identity, Choice::Identity, Choice::Zero, Choice::Quadratic]),
    ]);
    for grouping in groupings {
        for decision in [Decision::Corner, Decision::Centre, Decision::Mean, Decision::Largest, Decision::Learned] {
            if decision == Decision::Learned && matches!(grouping, Grouping::Choices(_)) {
                continue;
            }
            for easing in easings() {
                let grouping = grouping.clone();
                let shared = SharedRelu { name: "s".to_owned(), channels: 5, grouping, decision };
                check(&Layer::SharedRelu(shared), shape, easing);
            }
        }
    }
}

/// Sums are in a fixed order: the number of threads changes nothing.
#[test]
fn threads_do_not_change_a_step() {
    let shape = Shape::new(6, 8, 8);
    let blocks = Grouping::Blocks { channels: 2, rows: 2, columns: 2 };
    let shared = SharedRelu { name: "s".to_owned(), channels: 6, grouping: blocks, decision: Decision::Learned };
    let hermite = Quadratic { name: "q".to_owned(), channels: 6, form: Form::HERMITE };
    for layer in [Layer::SharedRelu(shared), Layer::Quadratic(hermite)] {
        let network = network(shape, layer);
        let weights = Weights::init(&network, 1);
        let gradients = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = Engine::with_input_gradient(network.clone(), &weights, Par::Seq).unwrap();
                let mut convolver = LocalConv::new(0, engine.pool.clone(), Par::Seq);
                let x = numbers(5, 16 * shape.len());
                let y = engine.forward(&x, 16, Pass::Training, 0, &mut convolver).unwrap();
                let dx = engine.backward(y, 16, &mut convolver).unwrap().unwrap().to_vec();
                (dx, engine.params.gradients)
            })
        };
        let (one, four) = (gradients(1), gradients(4));
        assert!(relative(&one.0, &four.0) == 0.0 && one.1 == four.1);
    }
}
