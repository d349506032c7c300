//! A mode that is watched: built anew on a recorder, with the images of an audit in their parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use asymflow_audit::Truth;
use asymflow_audit::attack::{Public, Sight};
use asymflow_audit::tape::{Lie, Recorder, Tape};
use asymflow_privacy::records::RecordAccountant;
use asymflow_residual::backend::{Pass, ResidualModel, SgdStep, Unit, UnitId};
use asymflow_zoo::Weights;
use asymflow_zoo::data::{Augment, Batch, Dataset, Loader, Normalization};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::super::rank::conv_inputs;
use super::super::study::{Bench, Trained, opened};
use super::Audit;
use crate::modes::{ExecError, Mode, ModeSpec, Parts, Records, Sampling, TrainBatch};
use crate::plan::Placement;
use crate::run::RunError;

/// Samples of one inference.
const BATCH: usize = 16;

/// The images of an audit, drawn by its seed: files come in the order of their classes. Targets, public images and those that nobody
/// trained on are of the test set and disjoint.
pub(super) struct Images {
    pub targets: Batch,
    pub public: Batch,
    pub members: Batch,
    pub others: Batch,
    /// The targets as a data set, for modes that draw what they release of one.
    dataset: Dataset,
    normalization: Normalization,
}

impl Images {
    pub fn new(audit: &Audit, trained: &Trained) -> Result<Self, RunError> {
        let (train, test) = (&trained.data.train, &trained.data.test);
        let normalization = Normalization::of(train);
        let gather = |data: &Dataset, numbers: &[u32]| {
            let mut batch = Batch::default();
            Loader::new(data, &normalization, Augment::NONE, 0).gather(None, numbers, &mut batch);
            batch
        };
        let needed = audit.targets + audit.public + audit.members;
        if test.len() < needed || train.len() < audit.members || audit.targets < 2 {
            let (what, range) = ("images of an audit", "at least 2 targets, and test images for all parts");
            return Err(RunError::OutOfRange { what, got: needed as f32, range });
        }
        let (of_test, of_train) = (drawn(test.len(), audit.seed), drawn(train.len(), audit.seed));
        let (targets, rest) = of_test.split_at(audit.targets);
        let (public, others) = rest.split_at(audit.public);
        let image = test.shape().len();
        let image_of = |&number: &u32| test.images()[number as usize * image..][..image].iter().copied();
        let bytes = targets.iter().flat_map(image_of).collect();
        let labels = targets.iter().map(|&number| test.labels()[number as usize]).collect();
        let dataset = Dataset::new(bytes, labels, test.shape(), test.class_names().to_vec())?;
        Ok(Self {
            targets: gather(test, targets),
            public: gather(test, public),
            members: gather(train, &of_train[..audit.members]),
            others: gather(test, &others[..audit.members]),
            dataset,
            normalization,
        })
    }
}

/// Numbers of all images, in an order of their own.
fn drawn(count: usize, seed: u64) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count as u32).collect();
    numbers.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    numbers
}

/// A mode on a recorder.
pub(super) struct Watched {
    pub mode: Box<dyn Mode>,
    recorder: Option<Recorder>,
    /// Number of the next record that is asked about.
    next: usize,
    targets: usize,
    /// Values of an image.
    image: usize,
}

impl Watched {
    /// The mode in the last epoch of its training, with weights that were trained.
    pub fn open(
        bench: &Bench<'_>,
        spec: &dyn ModeSpec,
        (audit, images, weights): (&Audit, &Images, &Weights),
        lie: Option<Lie>,
    ) -> Result<Self, RunError> {
        let worker = opened(spec, bench.job, bench.open)?;
        let recorder = worker.map(Recorder::new).map(|recorder| match lie {
            Some(lie) => recorder.lying(lie),
            None => recorder,
        });
        let targets = audit.targets;
        // Every image that is asked about is a record of its own; averaging asks often about the same.
        let records = targets + 4 * (audit.targets + audit.public + 2 * audit.members + BATCH);
        let parts = Parts {
            network: bench.job.network.clone(),
            weights: weights.clone().into(),
            terms: bench.job.terms,
            sampling: Sampling { batch: targets, records: targets },
            epochs: audit.train.epochs,
            accountant: RecordAccountant::new(records),
            backend: recorder.clone().map(|recorder| Arc::new(recorder) as _),
            registry: bench.registry,
            par: bench.par,
        };
        let mode = spec.build(parts)?;
        let image = bench.job.network.input.len();
        let mut watched = Self { mode, recorder, next: targets, targets, image };
        let loader = Loader::new(&images.dataset, &images.normalization, Augment::NONE, audit.train.seed);
        // Training is over: what it fitted to its records stays.
        let epoch = audit.train.epochs;
        watched.mode.draw(epoch, &Records { loader: &loader, count: targets, batch: targets })?;
        watched.mode.begin_epoch(epoch)?;
        Ok(watched)
    }

    /// What crossed since the last call.
    pub fn tape(&self) -> Tape {
        self.recorder.as_ref().map(Recorder::take).unwrap_or_default()
    }

    pub fn model(&self) -> ResidualModel {
        self.recorder.as_ref().map(Recorder::model).unwrap_or_default()
    }

    /// Logits of images that are asked about for the first time.
    pub fn infer(&mut self, images: &[f32], batch: usize) -> Result<Vec<f32>, ExecError> {
        let mut logits = Vec::new();
        for piece in images.chunks(batch * self.image) {
            let samples = piece.len() / self.image;
            let records: Vec<usize> = (self.next..self.next + samples).collect();
            self.next += samples;
            logits.extend(self.mode.infer(piece, &records)?);
        }
        Ok(logits)
    }

    /// The same images asked about once more, as the same records.
    pub fn infer_again(&mut self, images: &[f32], samples: usize) -> Result<(), ExecError> {
        let records: Vec<usize> = (0..samples).collect();
        self.mode.infer(images, &records).map(drop)
    }

    /// One training step on the targets that moves nothing.
    pub fn step(&mut self, targets: &Batch) -> Result<(), ExecError> {
        let records: Vec<usize> = (0..self.targets).collect();
        let batch = TrainBatch::new(&targets.images, &targets.labels, &records)?;
        self.mode.step(batch, SgdStep::plain(0.0, 0.0, 0.0)).map(drop)
    }
}

/// What an attack on one mode sees and is judged by.
pub(super) struct Scene {
    pub truth: Truth,
    pub model: ResidualModel,
    pub ranks: Vec<usize>,
    pub shares_basis: bool,
    /// What is released of the public images, in inference.
    pub public: Tape,
    /// What is released of the targets, in inference.
    pub targets: Tape,
}

impl Scene {
    /// Records inference on public images, where there is to be any, and on the targets.
    pub fn record(
        bench: &Bench<'_>,
        spec: &dyn ModeSpec,
        (images, weights): (&Images, &Weights),
        watched: &mut Watched,
        with_public: bool,
    ) -> Result<Self, RunError> {
        let targets = &images.targets;
        // In the first pass the trusted part tries the worker with numbers of its own.
        watched.infer(&targets.images, targets.labels.len())?;
        watched.tape();
        if with_public {
            watched.infer(&images.public.images, BATCH)?;
        }
        let public = watched.tape();
        watched.infer(&targets.images, targets.labels.len())?;
        let recorded = watched.tape();
        let plan = spec.plan(&bench.job.network, targets.labels.len(), Pass::Training)?;
        let convs: Vec<(String, usize)> = plan.iter().flat_map(|plan| &plan.convs).filter_map(split_rank).collect();
        let mut truth = Truth {
            images: targets.images.clone(),
            shape: bench.job.network.input,
            labels: targets.labels.clone(),
            activations: BTreeMap::new(),
        };
        if !convs.is_empty() {
            let pass = (&targets.images[..], targets.labels.len(), Pass::Inference);
            let inputs = conv_inputs(&bench.job.network, weights, pass, bench.par)?;
            for (unit, (layer, _)) in convs.iter().enumerate() {
                let input = inputs.iter().find(|(name, _)| name == layer);
                let values = input.map(|(_, x)| (x.shape, x.data.to_vec()));
                truth.activations.extend(values.map(|values| (UnitId(unit as u32), values)));
            }
        }
        let model = watched.model();
        let ranks = convs.iter().map(|(_, rank)| *rank).collect();
        Ok(Self { truth, model, ranks, shares_basis: spec.shares_basis(bench.registry), public, targets: recorded })
    }

    pub fn sight<'a>(
        &'a self,
        bench: &'a Bench<'_>,
        weights: &'a Weights,
        images: &'a Images,
        tape: &'a Tape,
    ) -> Sight<'a> {
        let public = Public {
            network: &bench.job.network,
            weights,
            model: &self.model,
            ranks: &self.ranks,
            shares_basis: self.shares_basis,
            images: &images.public.images,
            labels: &images.public.labels,
            tape: &self.public,
        };
        Sight { tape, public }
    }

    /// Units of the worker.
    pub fn units(&self) -> impl Iterator<Item = (UnitId, &Unit)> {
        self.model.units.iter().enumerate().map(|(index, unit)| (UnitId(index as u32), unit))
    }
}

fn split_rank(conv: &crate::plan::ConvPlan) -> Option<(String, usize)> {
    match conv.placement {
        Placement::Split { rank } => Some((conv.layer.clone(), rank)),
        Placement::Trusted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_in_the_order_of_their_classes_are_mixed() {
        let drawn = drawn(1000, 1);
        let mut sorted = drawn.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        let mut classes: Vec<u32> = drawn[..16].iter().map(|number| number / 100).collect();
        classes.sort_unstable();
        classes.dedup();
        assert!(classes.len() >= 5, "{classes:?}");
    }
}
