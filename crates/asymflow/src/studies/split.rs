//! How much of the features a split leaves to the residual, by rank and by how many frequencies are kept.

use asymflow_engine::{Engine, local::LocalConv};
use asymflow_linalg::decompose::by_name;
use asymflow_residual::backend::Pass;
use asymflow_zoo::models::delta::{DeltaShape, delta};
use asymflow_zoo::{Network, Weights};
use faer::Par;
use serde::{Deserialize, Serialize};

use super::study::{Bench, Study, Trained};
use crate::job::{JobSpec, TrainSpec};
use crate::memory::{MemoryError, MemoryPlan};
use crate::modes::delta::FeatureSplit;
use crate::modes::{ExecError, ModeError, Registry};
use crate::run::RunError;

/// Trains Delta's trusted networks, and splits their features at every rank and side of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitStudy {
    /// How the networks are trained.
    pub train: TrainSpec,
    /// How features are split; its rank and kept frequencies are replaced by those below.
    pub shape: DeltaShape,
    /// Test images whose features are measured.
    pub samples: usize,
    /// Ranks.
    pub ranks: Vec<usize>,
    /// Sides of the low frequencies kept of a block; that of the block itself keeps all.
    pub kept: Vec<usize>,
}

impl Study for SplitStudy {
    type Report = SplitStudyReport;
    const NAME: &'static str = "split";

    fn batch(&self) -> usize {
        self.train.batch
    }

    fn memory(&self, job: &JobSpec, registry: &Registry) -> Result<MemoryPlan, MemoryError> {
        MemoryPlan::of_training(job, &self.train, registry)
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<SplitStudyReport, RunError> {
        let Trained { weights, images, samples, test_accuracy, .. } = (bench.train)(&self.train, self.samples)?;
        let network = &bench.job.network;
        let energies = energies(network, &weights, &images, &self.shape, (&self.ranks, &self.kept), bench.par)?;
        let channels = delta(network, &self.shape)?.features.channels;
        let (network, block) = (network.name.clone(), self.shape.block);
        Ok(SplitStudyReport { network, samples, test_accuracy, channels, block, energies })
    }
}

/// What one setting left to the residual.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitEnergy {
    /// Rank r.
    pub rank: usize,
    /// Side t' of what is kept of a block of side t.
    pub kept: usize,
    /// ‖IR_res‖² / ‖X‖² over all samples.
    pub residual: f64,
}

/// What the study measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitStudyReport {
    /// Name of the network.
    pub network: String,
    /// Test images measured.
    pub samples: usize,
    /// Accuracy of M_bb and M_main on the test images, so that the reader knows how trained the features are.
    pub test_accuracy: f64,
    /// Channels of the features.
    pub channels: usize,
    /// Side t of a block.
    pub block: usize,
    /// One entry a rank and side; ranks beyond the channels and sides beyond the block are left out.
    pub energies: Vec<SplitEnergy>,
}

/// Splits M_bb's features of `images` at every rank and side.
fn energies(
    network: &Network,
    weights: &Weights,
    images: &[f32],
    shape: &DeltaShape,
    (ranks, sides): (&[usize], &[usize]),
    par: Par,
) -> Result<Vec<SplitEnergy>, RunError> {
    let networks = delta(network, shape)?;
    let mut engine = Engine::new(networks.backbone.clone(), weights, par)?;
    let mut convolver = LocalConv::new(engine.program().convs(), engine.pool().clone(), par);
    let samples = images.len() / network.input.len().max(1);
    let features = engine.forward(images, samples, Pass::Inference, 0, &mut convolver)?;
    let whole = energy(&features);
    let mut energies = Vec::new();
    for &rank in ranks.iter().filter(|&&rank| rank <= networks.features.channels) {
        for &kept in sides.iter().filter(|&&kept| kept <= shape.block) {
            let shape = DeltaShape { rank, kept, ..shape.clone() };
            let networks = delta(network, &shape)?;
            let decomposer = by_name("exact-svd").ok_or_else(|| ModeError::Decomposition("exact-svd".to_owned()))?;
            let mut split = FeatureSplit::new(&networks, &shape, decomposer, par).map_err(ExecError::from)?;
            let mut main = vec![0.0; samples * networks.low.len()];
            let mut residual = vec![0.0; features.len()];
            split.split(&features, &mut main, &mut residual).map_err(ExecError::from)?;
            let residual = if whole > 0.0 { energy(&residual) / whole } else { 0.0 };
            energies.push(SplitEnergy { rank, kept, residual });
        }
    }
    Ok(energies)
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rank_and_more_frequencies_leave_less_and_all_leave_nothing() {
        let network = asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap();
        let shape = DeltaShape::published(&network).unwrap();
        let all = delta(&network, &shape).unwrap().all_layers(false);
        let weights = Weights::init(&all, 1);
        let images: Vec<f32> = (0..2 * network.input.len()).map(|i| (i as f32 * 0.61).sin()).collect();
        let tried = (&[1, 4, 16, 32][..], &[4, 8, 16, 32][..]);
        let energies = energies(&network, &weights, &images, &shape, tried, Par::Seq).unwrap();
        // Rank 32 and side 32 do not exist here.
        assert_eq!(energies.len(), 9);
        let at = |rank, kept| energies.iter().find(|e| (e.rank, e.kept) == (rank, kept)).unwrap().residual;
        for (more, less) in [((4, 8), (1, 8)), ((16, 8), (4, 8)), ((4, 8), (4, 4)), ((4, 16), (4, 8))] {
            assert!(at(more.0, more.1) < at(less.0, less.1), "{more:?} against {less:?}");
        }
        assert!(at(16, 16) < 1e-6);
    }
}
