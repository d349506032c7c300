//! Where each convolution is computed, and what that costs in multiplications and bytes.

pub mod costs;

use asymflow_engine::local::conv_shape;
use asymflow_linalg::decompose::NAMES;
use asymflow_linalg::decompose::by_name;
use asymflow_linalg::rank::{LayerCost, RankError, RankPolicy};
use asymflow_residual::backend::Pass;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use asymflow_engine::program::{ConvNode, Program};

use costs::{CostError, Measured, PassSeconds, measure};

/// Where a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// Entirely in the trusted part.
    Trusted,
    /// The low-rank part trusted, the residual on the worker.
    Split {
        /// Principal channels kept.
        rank: usize,
    },
}

impl Placement {
    /// Whether the worker takes part.
    pub const fn is_split(self) -> bool {
        matches!(self, Self::Split { .. })
    }
}

/// Multiply-accumulates of one convolution for one sample of an inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvPlan {
    /// Name of the convolution.
    pub layer: String,
    /// Where it is computed.
    pub placement: Placement,
    /// The whole convolution.
    pub full_macs: u64,
    /// The low-rank convolution, or the whole one where it is trusted.
    pub trusted_macs: u64,
    /// Folding kernels for this sample (thesis eq 2.6), which the paper's cost model omits. One fold serves
    /// the whole batch when the basis is shared.
    pub fold_macs: u64,
    /// The decomposition.
    pub decompose_macs: u64,
    /// Values sent to the worker in one forward pass.
    pub released_values: u64,
    /// Values received from it.
    pub received_values: u64,
    /// What was measured, where that decided.
    pub measured: Option<Measured>,
}

/// The plan of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// One entry a convolution, in execution order.
    pub convs: Vec<ConvPlan>,
}

/// The rank policy by which every convolution is measured, whole and split at small ranks, and placed where it takes less
/// time: in inference and in a training step, or in inference alone where nothing is trained.
pub const AUTO: &str = "auto";

/// How a network is to be split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SplitSpec {
    /// Name of the decomposition.
    pub decomposition: String,
    /// Rank policy, e.g. `fixed:8`; [`AUTO`] measures what pays on this machine.
    pub rank: String,
    /// Whether the first convolution is split too (`true`) or computed trusted. Either way no raw input leaves.
    pub split_first: bool,
}

impl Default for SplitSpec {
    fn default() -> Self {
        Self {
            decomposition: asymflow_linalg::decompose::DEFAULT.to_owned(),
            rank: "fixed:8".to_owned(),
            split_first: false,
        }
    }
}

/// Why no plan could be made.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlanError {
    /// The rank policy does not parse or does not fit a layer.
    #[error("rank policy: {0}")]
    Rank(#[from] RankError),
    /// A convolution could not be measured.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// Only decompositions that are known everywhere are measured.
    #[error("rank \"auto\" measures the decompositions {known:?}, not {name:?}")]
    Auto {
        /// The one asked for.
        name: String,
        /// Those that are measured.
        known: &'static [&'static str],
    },
}

fn cost(node: &ConvNode, shared_basis: bool) -> LayerCost {
    LayerCost {
        in_channels: node.input.channels,
        out_channels: node.output.channels,
        kernel: node.conv.kernel,
        in_pixels: node.input.pixels(),
        out_pixels: node.output.pixels(),
        shared_basis,
    }
}

fn max_rank(node: &ConvNode) -> usize {
    node.input.channels.min(node.input.pixels())
}

impl Plan {
    /// Plans AsymML: a convolution is split unless computing it whole is cheaper than splitting it, in operations, or by [`AUTO`] in
    /// what was measured of `pass`.
    ///
    /// # Errors
    /// The rank policy does not parse or does not fit.
    pub fn asymml(program: &Program, spec: &SplitSpec, batch: usize, pass: Pass) -> Result<Self, PlanError> {
        if spec.rank == AUTO {
            return Self::measured(program, spec, batch, pass);
        }
        let policy: RankPolicy = spec.rank.parse()?;
        let shared = by_name(&spec.decomposition).is_some_and(|known| known.shares_basis());
        let samples_a_fold = if shared { batch.max(1) } else { 1 };
        let mut split = 0;
        let mut convs = Vec::new();
        for node in program.conv_nodes() {
            let rank = policy.rank(split, max_rank(node), &cost(node, shared), None)?;
            let mut plan = ConvPlan::split(node, rank, samples_a_fold);
            let first = node.index == 0;
            let keep_first = first && !spec.split_first;
            if keep_first || (!first && plan.trusted_side_macs() >= plan.full_macs) {
                plan = ConvPlan::trusted(node);
            } else {
                split += 1;
            }
            convs.push(plan);
        }
        Ok(Self { convs })
    }

    fn measured(program: &Program, spec: &SplitSpec, batch: usize, pass: Pass) -> Result<Self, PlanError> {
        let decomposer = by_name(&spec.decomposition)
            .ok_or_else(|| PlanError::Auto { name: spec.decomposition.clone(), known: &NAMES })?;
        let samples_a_fold = if decomposer.shares_basis() { batch.max(1) } else { 1 };
        let place = |node: &ConvNode| {
            if node.index == 0 && !spec.split_first {
                return Ok(ConvPlan::trusted(node));
            }
            let measured = measure(conv_shape(node, batch.max(1)), &*decomposer)?.placed(pass);
            let plan = match measured.placement {
                Placement::Trusted => ConvPlan::trusted(node),
                Placement::Split { rank } => ConvPlan::split(node, rank, samples_a_fold),
            };
            Ok(ConvPlan { measured: Some(measured), ..plan })
        };
        let convs = program.conv_nodes().into_iter().map(place).collect::<Result<_, CostError>>()?;
        Ok(Self { convs })
    }

    /// Seconds for one sample of all convolutions that were measured, whole and as they are placed with a worker that
    /// answers at once.
    pub fn measured_seconds(&self) -> [PassSeconds; 2] {
        let sum = |of: fn(&Measured) -> PassSeconds| {
            let each = || self.convs.iter().filter_map(|conv| conv.measured.as_ref()).map(of);
            PassSeconds { inference: each().map(|s| s.inference).sum(), step: each().map(|s| s.step).sum() }
        };
        [sum(|measured| measured.whole), sum(|measured| measured.placed)]
    }

    /// Splits every convolution at `rank`, or at the largest there is, whatever it costs.
    pub fn split_all(program: &Program, rank: usize) -> Self {
        let split = |node: &ConvNode| ConvPlan::split(node, rank.min(max_rank(node)), 1);
        Self { convs: program.conv_nodes().into_iter().map(split).collect() }
    }

    /// Everything trusted.
    pub fn trusted_only(program: &Program) -> Self {
        Self { convs: program.conv_nodes().into_iter().map(ConvPlan::trusted).collect() }
    }

    /// Placements in execution order.
    pub fn placements(&self) -> Vec<Placement> {
        self.convs.iter().map(|c| c.placement).collect()
    }

    /// Multiply-accumulates of the trusted side for one sample, decomposition and folding included.
    pub fn trusted_macs(&self) -> u64 {
        self.convs.iter().map(ConvPlan::trusted_side_macs).sum()
    }

    /// Multiply-accumulates of the worker for one sample.
    pub fn worker_macs(&self) -> u64 {
        self.convs.iter().filter(|c| c.placement.is_split()).map(|c| c.full_macs).sum()
    }

    /// Multiply-accumulates of the unsplit convolutions.
    pub fn full_macs(&self) -> u64 {
        self.convs.iter().map(|c| c.full_macs).sum()
    }
}

impl ConvPlan {
    fn full(node: &ConvNode) -> u64 {
        let per_output = node.input.channels * node.conv.kernel * node.conv.kernel;
        (node.output.len() * per_output) as u64
    }

    fn trusted(node: &ConvNode) -> Self {
        let full_macs = Self::full(node);
        Self {
            layer: node.conv.name.clone(),
            placement: Placement::Trusted,
            full_macs,
            trusted_macs: full_macs,
            fold_macs: 0,
            decompose_macs: 0,
            released_values: 0,
            received_values: 0,
            measured: None,
        }
    }

    fn split(node: &ConvNode, rank: usize, samples_a_fold: usize) -> Self {
        let (n, m) = (node.input.channels, node.output.channels);
        let taps = node.conv.kernel * node.conv.kernel;
        // The Gram route: N²·hw/2 for XXᵀ, r·N·hw for V = AᵀX and again for X − A·V.
        let decompose = n * n * node.input.pixels() / 2 + 2 * rank * n * node.input.pixels();
        Self {
            layer: node.conv.name.clone(),
            placement: Placement::Split { rank },
            full_macs: Self::full(node),
            trusted_macs: (rank * m * taps * node.output.pixels()) as u64,
            fold_macs: (m * n * rank * taps).div_ceil(samples_a_fold) as u64,
            decompose_macs: decompose as u64,
            released_values: node.input.len() as u64,
            received_values: node.output.len() as u64,
            measured: None,
        }
    }

    /// All multiply-accumulates of the trusted side.
    pub const fn trusted_side_macs(&self) -> u64 {
        self.trusted_macs + self.fold_macs + self.decompose_macs
    }
}
