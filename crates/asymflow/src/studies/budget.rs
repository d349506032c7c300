//! What each channel should compute within a budget: distortions measured, budgets solved, accuracies compared.

use std::collections::BTreeMap;

use asymflow_engine::loss::argmax;
use asymflow_residual::backend::SgdStep;
use asymflow_shares::budget::{Backend, BudgetError, Item, Prices, price, solve};
use asymflow_shares::compile::{CompileError, Options, PlaintextError, compile};
use asymflow_shares::program::{Method, WeightPolicy};
use asymflow_zoo::data::{Augment, Loader, Normalization, Split};
use asymflow_zoo::models::replace::map_activations;
use asymflow_zoo::{
    Network, Weights,
    network::{Layer, NetworkError, Shape},
    ops::{Choice, Decision, Grouping, SharedRelu},
    weights::{WeightTensor, WeightsError},
};
use faer::Par;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::modes::{ExecError, Mode, TrainBatch, TrustedOnly};

/// Window of an exact comparison over 64 bits, 20 of 32 fraction bits dropped, as after a convolution.
const BACKEND: Backend = Backend { ring_bits: 64, window_bits: 44, truncated_bits: 20, method: Method::Tables };
/// Samples of a batch in inference.
const BATCH: usize = 64;

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSpec {
    /// Training images that distortions are measured on.
    pub images: usize,
    /// Training images that quadratics are fitted to.
    pub calibration: usize,
    /// Rows and columns of blocks to choose from.
    pub blocks: Vec<[usize; 2]>,
    /// Rows and columns of uniform blocks. The cost of each is a budget.
    pub uniform: Vec<[usize; 2]>,
    /// Epochs of fine-tuning at each budget; 0 for none.
    pub tune_epochs: usize,
    /// Learning rate of fine-tuning.
    pub tune_rate: f32,
}

impl Default for BudgetSpec {
    fn default() -> Self {
        Self {
            images: 32,
            calibration: 16,
            blocks: vec![[1, 2], [2, 2], [2, 4], [4, 4], [8, 8], [32, 32]],
            uniform: vec![[1, 2], [2, 2], [4, 4], [8, 8], [32, 32]],
            tune_epochs: 1,
            tune_rate: 0.005,
        }
    }
}

/// How the network is trained first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// Passes over the training images.
    pub epochs: usize,
    /// Samples in a step.
    pub batch: usize,
    /// Learning rate at the start, which falls to zero along a cosine.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
    /// l2 penalty.
    pub weight_decay: f32,
    /// Seed of weights and shuffles.
    pub seed: u64,
    /// Whether images are cropped and flipped.
    pub augment: bool,
}

/// One selection of choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetRow {
    /// `relu`, `blocks HxW` or `chosen`.
    pub name: String,
    /// Bytes that it was to cost at most; null where none was set.
    pub budget_bytes: Option<f64>,
    /// Sum of the distortions of its channels, as the solver adds them.
    pub expected_distortion: Option<f64>,
    /// No selection of the same items within the budget has less.
    pub bound: Option<f64>,
    /// Measured distortion of all channels together.
    pub distortion: f64,
    /// Sign decisions of a query.
    pub decisions: u64,
    /// Rounds of a query.
    pub rounds: u64,
    /// Bytes that both servers send in a query.
    pub online_bytes: u64,
    /// Bytes that the dealer sends to both.
    pub dealer_bytes: u64,
    /// Test accuracy as it is.
    pub accuracy: f64,
    /// Test accuracy after fine-tuning.
    pub tuned_accuracy: Option<f64>,
    /// Channels that are ReLU, blocks, copies, quadratics, identities and zeros.
    pub channels: [usize; 6],
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// Test images.
    pub test_images: usize,
    /// Mean square of what distortions are errors of.
    pub power: f64,
    /// Classes of the knapsack: channels.
    pub classes: usize,
    /// Items of all classes.
    pub items: usize,
    /// Seconds that distortions took to measure.
    pub measure_seconds: f64,
    /// Seconds of each solution.
    pub solve_seconds: Vec<f64>,
    /// ReLU, then uniform blocks and what was chosen at their cost in turn.
    pub rows: Vec<BudgetRow>,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum BudgetStudyError {
    /// The network does not fit.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Execution failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The network cannot be computed on shares.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Calibration overflowed.
    #[error(transparent)]
    Plaintext(#[from] PlaintextError),
    /// No selection.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

type Found<T> = Result<T, BudgetStudyError>;

/// Choices of all layers by name.
type Selection = BTreeMap<String, Vec<Choice>>;

/// A layer to choose for.
struct Site {
    name: String,
    shape: Shape,
    /// Quadratic of each channel, fitted to ReLU.
    fits: Vec<[f32; 3]>,
    /// Prototype of each channel whose decisions suit it best.
    prototypes: Vec<usize>,
}

/// Trains `network` with momentum along a cosine and returns its weights.
///
/// # Errors
/// What execution reports.
pub fn train(network: &Network, weights: &Weights, split: &Split, training: &Training) -> Found<Weights> {
    let mut mode = TrustedOnly::new(network.clone(), weights, Par::rayon(0))?;
    let augment = if training.augment { Augment::STANDARD } else { Augment::NONE };
    let loader = Loader::new(&split.train, &Normalization::of(&split.train), augment, training.seed);
    let steps = training.epochs * split.train.len().div_ceil(training.batch);
    let mut step = 0;
    for epoch in 0..training.epochs {
        for batch in loader.epoch(epoch as u64, training.batch) {
            let records: Vec<usize> = batch.indices.iter().map(|&index| index as usize).collect();
            let cosine = f32::midpoint(1.0, (std::f32::consts::PI * step as f32 / steps as f32).cos());
            let Training { learning_rate, momentum, weight_decay, .. } = *training;
            let sgd = SgdStep::plain(learning_rate * cosine, momentum, weight_decay);
            let sgd = SgdStep { clip_norm: 5.0, coefficient_rate: 0.1, ..sgd };
            let mut batch = TrainBatch::new(&batch.images, &batch.labels, &records)?;
            batch.dropout_seed = step;
            mode.step(batch, sgd)?;
            step += 1;
        }
    }
    Ok(Weights::unflatten(network, &mode.state()?.weights)?)
}

/// Measures distortions, solves for each budget and compares.
///
/// # Errors
/// What execution, compilation or the solver report.
pub fn study(
    network: &Network,
    weights: &Weights,
    split: &Split,
    spec: &BudgetSpec,
    training: &Training,
) -> Found<BudgetReport> {
    let study = Study::new(network, weights, split, spec)?;
    let begun = std::time::Instant::now();
    let (names, classes) = study.classes()?;
    let measure_seconds = begun.elapsed().as_secs_f64();
    let mut report = BudgetReport {
        test_images: split.test.len(),
        power: mean_square(study.exact.iter().copied()),
        classes: classes.len(),
        items: classes.iter().map(Vec::len).sum(),
        measure_seconds,
        solve_seconds: Vec::new(),
        rows: vec![study.row("relu".to_owned(), &study.uniform([1, 1]), None)?],
    };
    for &[rows, columns] in &spec.uniform {
        let uniform = study.uniform([rows, columns]);
        let mut row = study.row(format!("blocks {rows}x{columns}"), &uniform, Some(training))?;
        let budget = (row.online_bytes + row.dealer_bytes) as f64;
        row.budget_bytes = None;
        report.rows.push(row);
        // Bits of decisions are packed: a byte of each server and layer may be rounded up.
        let begun = std::time::Instant::now();
        let solution = solve(&classes, budget - 2.0 * study.sites.len() as f64)?;
        report.solve_seconds.push(begun.elapsed().as_secs_f64());
        let mut chosen = Selection::new();
        for ((name, class), item) in names.iter().zip(&classes).zip(&solution.items) {
            chosen.entry(name.clone()).or_default().push(class[*item].choice);
        }
        let mut row = study.row("chosen".to_owned(), &chosen, Some(training))?;
        row.budget_bytes = Some(budget);
        row.expected_distortion = Some(solution.distortion);
        row.bound = Some(solution.bound);
        report.rows.push(row);
    }
    Ok(report)
}

struct Study<'a> {
    network: &'a Network,
    weights: &'a Weights,
    split: &'a Split,
    spec: &'a BudgetSpec,
    sites: Vec<Site>,
    /// Training images, normalised, samples × C×H×W.
    images: Vec<f32>,
    /// What the last block puts out on them.
    exact: Vec<f32>,
}

impl<'a> Study<'a> {
    fn new(network: &'a Network, weights: &'a Weights, split: &'a Split, spec: &'a BudgetSpec) -> Found<Self> {
        let normalization = Normalization::of(&split.train);
        let loader = Loader::new(&split.train, &normalization, Augment::NONE, 1);
        let take = |count: usize| loader.in_order(count.max(1)).next().map_or_else(Vec::new, |batch| batch.images);
        let images = take(spec.images);
        let exact = features(network, weights, &images)?;
        let sites = sites(network, weights, &take(spec.calibration))?;
        Ok(Self { network, weights, split, spec, sites, images, exact })
    }

    /// The same blocks everywhere, no larger than the maps.
    fn uniform(&self, [rows, columns]: [usize; 2]) -> Selection {
        let of = |site: &Site| {
            let (rows, columns) = (rows.min(site.shape.height), columns.min(site.shape.width));
            (site.name.clone(), vec![Choice::Block { rows, columns }; site.shape.channels])
        };
        self.sites.iter().map(of).collect()
    }

    /// What a channel may be.
    fn candidates(&self, site: &Site, channel: usize) -> Vec<Choice> {
        let mut choices: Vec<Choice> = std::iter::once([1, 1])
            .chain(self.spec.blocks.iter().copied())
            .map(|[rows, columns]| Choice::Block {
                rows: rows.min(site.shape.height),
                columns: columns.min(site.shape.width),
            })
            .collect();
        choices.sort_unstable();
        choices.dedup();
        choices.extend([Choice::Quadratic, Choice::Identity, Choice::Zero]);
        if site.shape.channels > 1 {
            choices.push(Choice::Copy { of: site.prototypes[channel] });
        }
        choices
    }

    /// Items of each channel with the distortion that its choice alone makes, and the layer of each class.
    fn classes(&self) -> Found<(Vec<String>, Vec<Vec<Item>>)> {
        let (mut names, mut classes) = (Vec::new(), Vec::new());
        for site in &self.sites {
            let first = classes.len();
            for channel in 0..site.shape.channels {
                let mut items = Vec::new();
                for choice in self.candidates(site, channel) {
                    let mut choices = vec![Choice::Block { rows: 1, columns: 1 }; site.shape.channels];
                    choices[channel] = choice;
                    let is_exact = choice == Choice::Block { rows: 1, columns: 1 };
                    let selection = Selection::from([(site.name.clone(), choices)]);
                    let distortion = if is_exact { 0.0 } else { self.distortion(&selection)? };
                    let needs = if let Choice::Copy { of } = choice { Some(first + of) } else { None };
                    let cost = price(choice, site.shape, BACKEND).bytes_priced(Prices::BYTES);
                    items.push(Item { choice, cost, distortion, needs });
                }
                names.push(site.name.clone());
                classes.push(items);
            }
        }
        Ok((names, classes))
    }

    /// `network` with the selection and ReLU elsewhere, and its weights.
    fn with(&self, selection: &Selection) -> Found<(Network, Weights)> {
        let make = |name: String, shape: Shape| match selection.get(&name) {
            Some(choices) => {
                let (grouping, decision) = (Grouping::Choices(choices.clone()), Decision::Mean);
                Layer::SharedRelu(SharedRelu { name, channels: shape.channels, grouping, decision })
            }
            None => Layer::Relu,
        };
        let network = map_activations(self.network, &make)?;
        let mut weights = self.weights.clone();
        for site in &self.sites {
            let Some(choices) = selection.get(&site.name) else { continue };
            let curved = choices.iter().zip(&site.fits).filter(|(choice, _)| **choice == Choice::Quadratic);
            let data: Vec<f32> = curved.flat_map(|(_, fit)| *fit).collect();
            if !data.is_empty() {
                let tensor = WeightTensor { shape: vec![data.len() / 3, 3], data };
                weights.tensors.insert(format!("{}.quadratic", site.name), tensor);
            }
        }
        Ok((network, weights))
    }

    fn distortion(&self, selection: &Selection) -> Found<f64> {
        let (network, weights) = self.with(selection)?;
        let got = features(&network, &weights, &self.images)?;
        Ok(mean_square(got.iter().zip(&self.exact).map(|(a, b)| a - b)))
    }

    fn row(&self, name: String, selection: &Selection, tune: Option<&Training>) -> Found<BudgetRow> {
        let (network, weights) = self.with(selection)?;
        let cost = compile::<u64>(&network, &weights, &Options::new::<u64>(WeightPolicy::Public))?.program().cost();
        let mut channels = [0; 6];
        for choice in selection.values().flatten() {
            channels[match choice {
                Choice::Block { rows: 1, columns: 1 } => 0,
                Choice::Block { .. } => 1,
                Choice::Copy { .. } => 2,
                Choice::Quadratic => 3,
                Choice::Identity => 4,
                Choice::Zero => 5,
            }] += 1;
        }
        let tuned_accuracy = match tune {
            Some(training) if self.spec.tune_epochs > 0 => {
                let tuning =
                    Training { epochs: self.spec.tune_epochs, learning_rate: self.spec.tune_rate, ..*training };
                Some(accuracy(&network, &train(&network, &weights, self.split, &tuning)?, self.split)?)
            }
            _ => None,
        };
        Ok(BudgetRow {
            name,
            budget_bytes: None,
            expected_distortion: None,
            bound: None,
            distortion: self.distortion(selection)?,
            decisions: cost.decisions,
            rounds: cost.rounds,
            online_bytes: 2 * cost.online_bytes_per_server,
            dealer_bytes: cost.dealer_bytes_first + cost.dealer_bytes_second,
            accuracy: accuracy(&network, &weights, self.split)?,
            tuned_accuracy,
            channels,
        })
    }
}

fn mean_square(values: impl Iterator<Item = f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_usize);
    for value in values {
        sum += f64::from(value).powi(2);
        count += 1;
    }
    sum / count.max(1) as f64
}

/// What goes into the pooling or fully connected layers after the last block.
fn features(network: &Network, weights: &Weights, images: &[f32]) -> Found<Vec<f32>> {
    let is_head = |layer: &Layer| {
        matches!(layer, Layer::AdaptiveAvgPool { .. } | Layer::Flatten | Layer::Linear(_) | Layer::Dropout { .. })
    };
    let head = network.layers.iter().rev().take_while(|layer| is_head(layer)).count();
    let mut body = network.clone();
    body.layers.truncate(network.layers.len() - head);
    body.layers.push(Layer::Flatten);
    body.classes = asymflow_zoo::network::output_of(&body.layers, body.input)?.len();
    let mut kept = weights.clone();
    let names: std::collections::BTreeSet<String> = body.parameters().into_iter().map(|spec| spec.name).collect();
    kept.tensors.retain(|name, _| names.contains(name));
    let mut mode = TrustedOnly::new(body, &kept, Par::rayon(0))?;
    let mut found = Vec::new();
    for images in images.chunks(BATCH * network.input.len()) {
        found.extend(mode.infer(images, &vec![0; images.len() / network.input.len()])?);
    }
    Ok(found)
}

fn accuracy(network: &Network, weights: &Weights, split: &Split) -> Found<f64> {
    let mut mode = TrustedOnly::new(network.clone(), weights, Par::rayon(0))?;
    let loader = Loader::new(&split.test, &Normalization::of(&split.train), Augment::NONE, 1);
    let mut correct = 0;
    for batch in loader.in_order(BATCH) {
        let logits = mode.infer(&batch.images, &vec![0; batch.labels.len()])?;
        let right = |(row, label): &(&[f32], &u32)| argmax(row) == **label as usize;
        correct += logits.chunks(network.classes).zip(&batch.labels).filter(right).count();
    }
    Ok(correct as f64 / split.test.len().max(1) as f64)
}

/// Every ReLU, with quadratics fitted by least squares and prototypes found on what reaches it.
fn sites(network: &Network, weights: &Weights, images: &[f32]) -> Found<Vec<Site>> {
    // What the operation before a rectification put out is what reaches it.
    let model = compile::<u64>(network, weights, &Options::new::<u64>(WeightPolicy::Public))?;
    let mut reached: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
    for image in images.chunks_exact(network.input.len()) {
        let trace = model.evaluate(image)?;
        for pair in trace.layers.windows(2) {
            if pair[1].0.ends_with(".relu") {
                reached.entry(pair[1].0.clone()).or_default().push(pair[0].1.clone());
            }
        }
    }
    let named = asymflow_shares::compile::activations(network)?;
    let site = |(name, shape): (String, Shape)| {
        let samples = reached.get(&name).map_or(&[][..], Vec::as_slice);
        let values = |channel: usize| -> Vec<f64> {
            let range = channel * shape.pixels()..(channel + 1) * shape.pixels();
            samples.iter().flat_map(|sample| sample[range.clone()].iter().map(|&x| f64::from(x))).collect()
        };
        let channels: Vec<Vec<f64>> = (0..shape.channels).map(values).collect();
        Site {
            name: format!("{}.act", name.trim_end_matches(".relu")),
            shape,
            fits: channels.iter().map(|x| fit(x)).collect(),
            prototypes: (0..shape.channels).map(|channel| prototype(&channels, channel)).collect(),
        }
    };
    Ok(named.into_iter().map(site).collect())
}

/// a x² + b x + c next to max(x, 0) by least squares.
fn fit(x: &[f64]) -> [f32; 3] {
    let mut normal = [[0.0; 4]; 3];
    for &x in x {
        let basis = [x * x, x, 1.0];
        for (row, left) in normal.iter_mut().zip(basis) {
            row.iter_mut()
                .zip([basis[0], basis[1], basis[2], x.max(0.0)])
                .for_each(|(sum, right)| *sum += left * right);
        }
    }
    // A little of a ridge, for channels that are constant.
    for (index, row) in normal.iter_mut().enumerate() {
        row[index] += 1e-6 * x.len() as f64 + 1e-12;
    }
    for pivot in 0..3 {
        let top = normal[pivot];
        let others = normal.iter_mut().enumerate().filter(|(index, _)| *index != pivot);
        for (_, row) in others {
            let factor = row[pivot] / top[pivot];
            row.iter_mut().zip(top).for_each(|(value, top)| *value -= factor * top);
        }
    }
    [0, 1, 2].map(|index| (normal[index][3] / normal[index][index]) as f32)
}

/// The other channel whose signs, in place of its own, cost `channel` least.
fn prototype(channels: &[Vec<f64>], channel: usize) -> usize {
    let error = |other: &Vec<f64>| -> f64 {
        let wrong = channels[channel].iter().zip(other).filter(|(x, y)| (**x > 0.0) != (**y > 0.0));
        wrong.map(|(x, _)| x * x).sum()
    };
    let others = channels.iter().enumerate().filter(|(other, _)| *other != channel);
    others.map(|(other, x)| (error(x), other)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadratics_are_fitted_to_relu() {
        let x: Vec<f64> = (-1000..=1000).map(|i| f64::from(i) / 1000.0).collect();
        // Of |x| on [-1, 1]: 15/16 x² + 3/16, and ReLU is half of that and x/2.
        let [a, b, c] = fit(&x);
        assert!(
            (a - 15.0 / 32.0).abs() < 1e-3 && (b - 0.5).abs() < 1e-3 && (c - 3.0 / 32.0).abs() < 1e-3,
            "{a} {b} {c}"
        );
        let [a, b, c] = fit(&[2.0; 10]);
        assert!((4.0 * a + 2.0 * b + c - 2.0).abs() < 1e-3);
    }

    #[test]
    fn prototypes_agree_in_sign() {
        let channels = vec![vec![1.0, -1.0, 2.0], vec![-1.0, 1.0, -1.0], vec![5.0, -7.0, 0.1]];
        assert_eq!(prototype(&channels, 0), 2);
        assert_eq!(prototype(&channels, 2), 0);
    }
}
