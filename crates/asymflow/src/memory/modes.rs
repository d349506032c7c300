//! The plan of one mode at work, without data sets and checkpoints.

use asymflow_engine::{ConvNode, Program, streamed};
use asymflow_linalg::{BatchShape, BlockDct, by_name};
use asymflow_privacy::Precision;
use asymflow_residual::Pass;
use asymflow_zoo::delta::{DeltaNetworks, delta};
use asymflow_zoo::{Network, ParamSpec};
use faer::Par;

use super::walk::{Split, Walk, WalkedBytes};
use super::{FIXED_BYTES, MemoryError, MemoryPlan, THREAD_BYTES};
use crate::delta::DeltaSpec;
use crate::job::ModeKind;
use crate::plan::{Placement, Plan, SplitSpec};
use crate::run::Settings;

/// What a mode is to do.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// What is executed and under which guard.
    pub settings: Settings<'a>,
    /// How it is split.
    pub split: &'a SplitSpec,
    /// Samples in a batch, as the plan of the split counts them.
    pub batch: usize,
    /// Sizes of batches and what is done with them, in order and at least twice where it is repeated: memory is used again.
    pub passes: &'a [(usize, Pass)],
    /// Threads of the trusted part.
    pub threads: usize,
    /// Whether weights are streamed ([`asymflow_engine::streamed`]).
    pub is_streamed: bool,
}

/// Size of the last-level cache as the system says it; 32 MiB where it does not.
fn last_level_cache_bytes() -> u64 {
    let of = |index: usize| {
        let size = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        let (number, unit) = size.trim().split_at_checked(size.trim().len().checked_sub(1)?)?;
        let shift = [("K", 10), ("M", 20), ("G", 30)].into_iter().find(|(name, _)| *name == unit)?.1;
        Some(number.parse::<u64>().ok()? << shift)
    };
    (0..8).filter_map(of).max().unwrap_or(32 << 20)
}

/// Bytes of a network's parameters.
pub(super) fn weight_bytes(network: &Network) -> u64 {
    4 * network.parameters().iter().map(|spec| ParamSpec::len(spec) as u64).sum::<u64>()
}

impl Work<'_> {
    fn par(&self) -> Par {
        if self.threads <= 1 { Par::Seq } else { Par::rayon(self.threads) }
    }

    fn is_training(&self) -> bool {
        self.passes.iter().any(|(_, pass)| *pass == Pass::Training)
    }

    fn largest_batch(&self) -> usize {
        self.passes.iter().map(|(samples, _)| *samples).max().unwrap_or(0)
    }

    /// The plan.
    ///
    /// # Errors
    /// A network or settings that make no mode.
    pub fn plan(&self) -> Result<MemoryPlan, MemoryError> {
        let plan = match self.settings.mode {
            ModeKind::Clear | ModeKind::NaiveDp => self.clear(),
            // The shares of one query are not counted: they are the servers', which are elsewhere in a deployment.
            ModeKind::TrustedOnly | ModeKind::Shares => self.trusted_only()?,
            ModeKind::Asymml => self.asymml()?,
            ModeKind::Delta => self.delta(self.settings.delta.ok_or(MemoryError::Settings)?)?,
        };
        let fixed_bytes = FIXED_BYTES + THREAD_BYTES * self.threads as u64;
        let matmul_bytes = 2 * last_level_cache_bytes() * self.threads_of_products() as u64;
        // A network may be set up where another has been at work.
        let startup_bytes = plan.startup_bytes + fixed_bytes + matmul_bytes;
        Ok(MemoryPlan { fixed_bytes, startup_bytes, matmul_bytes, ..plan }.peaked())
    }

    /// Linear layers are computed from one thread; decompositions from all of them, unless there is one sample.
    fn threads_of_products(&self) -> usize {
        match self.settings.mode {
            ModeKind::Clear | ModeKind::NaiveDp => 0,
            ModeKind::TrustedOnly | ModeKind::Shares => 1,
            ModeKind::Asymml | ModeKind::Delta if self.largest_batch() <= 1 => 1,
            ModeKind::Asymml | ModeKind::Delta => self.threads.max(1),
        }
    }

    /// The worker has the weights; a copy is kept to send them again.
    fn clear(&self) -> MemoryPlan {
        let network = self.settings.network;
        let weights = weight_bytes(network);
        let images = 4 * (self.largest_batch() * network.input.len()) as u64;
        let momentum = if self.is_training() { weights } else { 0 };
        // Sent to the worker they are queued, and then copied into the message.
        MemoryPlan {
            state_bytes: weights + momentum,
            release_bytes: images,
            wire_bytes: images.max(if self.is_training() { 2 * weights } else { 0 }),
            startup_bytes: 4 * weights,
            ..MemoryPlan::default()
        }
    }

    /// Weights of an engine, by whether they are streamed, and their optimiser's.
    fn engine(&self, network: &Network) -> (u64, u64) {
        let weights = weight_bytes(network);
        let held = if self.is_streamed { streamed::held_bytes(network) } else { weights };
        (held, if self.is_training() { 2 * weights } else { 0 })
    }

    fn walked(&self, walk: &mut Walk<'_>) -> WalkedBytes {
        self.passes.iter().for_each(|&(samples, pass)| walk.pass(samples, pass));
        walk.most()
    }

    fn trusted_only(&self) -> Result<MemoryPlan, MemoryError> {
        let network = self.settings.network;
        let program = Program::new(network)?;
        let walked = self.walked(&mut Walk::new(&program, network.input, None, self.par()));
        let (weights_bytes, optimiser_bytes) = self.engine(network);
        let plan = MemoryPlan { weights_bytes, optimiser_bytes, startup_bytes: weights_bytes, ..MemoryPlan::default() };
        Ok(with_walked(plan, walked))
    }

    fn asymml(&self) -> Result<MemoryPlan, MemoryError> {
        let network = self.settings.network;
        let program = Program::new(network)?;
        let placements = Plan::asymml(&program, self.split, self.batch)?.placements();
        let name = &self.split.decomposition;
        let decomposer = by_name(name).ok_or_else(|| MemoryError::Decomposition(name.clone()))?;
        let precision = self.settings.precision;
        let split = Split { placements: &placements, decomposer: &*decomposer, precision };
        let walked = self.walked(&mut Walk::new(&program, network.input, Some(split), self.par()));
        let (weights_bytes, optimiser_bytes) = self.engine(network);
        let sync = SyncBytes::of(&program.conv_nodes(), &placements);
        let plan = MemoryPlan {
            weights_bytes,
            optimiser_bytes,
            wire_bytes: if self.is_training() { sync.step(precision) } else { 0 },
            // Weights go to the worker one tensor at a time.
            startup_bytes: weights_bytes + sync.largest,
            ..MemoryPlan::default()
        };
        Ok(with_walked(plan, walked))
    }

    fn delta(&self, spec: &DeltaSpec) -> Result<MemoryPlan, MemoryError> {
        let networks = delta(self.settings.network, &spec.shape)?;
        let (backbone, main) = (Program::new(&networks.backbone)?, Program::with_input_gradient(&networks.main)?);
        let par = self.par();
        let walked = self.walked(&mut Walk::new(&backbone, networks.backbone.input, None, par));
        let beside = self.walked(&mut Walk::new(&main, networks.main.input, None, par));
        let (weights, optimiser) = self.engine(&networks.backbone);
        let (main_weights, main_optimiser) = self.engine(&networks.main);
        let mut plan = with_walked(MemoryPlan::default(), walked);
        let beside = with_walked(MemoryPlan::default(), beside);
        plan.weights_bytes = weights + main_weights;
        plan.optimiser_bytes = optimiser + main_optimiser;
        plan.kept_bytes += beside.kept_bytes;
        plan.working_bytes += beside.working_bytes;
        plan.scratch_bytes += beside.scratch_bytes;
        let (factors, scratch) = self.split_bytes(spec, &networks)?;
        plan.decomposition_bytes = factors;
        plan.scratch_bytes += scratch;
        let trusted = weight_bytes(&networks.backbone) + weight_bytes(&networks.main);
        // What M_bb and M_main go back to, with momentum.
        plan.state_bytes = 2 * trusted;
        // As given, in the engines, in the state to go back to with momentum, and in what that is put together from.
        plan.startup_bytes = 5 * trusted;
        if spec.needs_worker() {
            let residual = weight_bytes(&networks.residual);
            let features = (self.largest_batch() * networks.residual.input.len()) as u64;
            plan.state_bytes += residual;
            // Bits as released, copied, sent; and one float a value when bits that were released before are sent again.
            plan.release_bytes = 4 * features + features.div_ceil(2);
            // Moved out of what was given, and held once: also while it is on its way.
            plan.startup_bytes += residual;
        }
        Ok(plan)
    }

    /// Factors and parts of a batch's features; scratch of the decomposition and of the threads that transform them.
    fn split_bytes(&self, spec: &DeltaSpec, networks: &DeltaNetworks) -> Result<(u64, u64), MemoryError> {
        let (features, low) = (networks.features, networks.low);
        let samples = self.largest_batch();
        let shape = BatchShape { samples, channels: features.channels, pixels: features.pixels() };
        let rank = spec.shape.rank;
        let name = &spec.decomposition;
        let decomposer = by_name(name).ok_or_else(|| MemoryError::Decomposition(name.clone()))?;
        let dct = BlockDct::new(spec.shape.block, spec.shape.kept).map_or(0, |dct| dct.scratch().size_bytes());
        let factors = samples * rank * (features.channels + features.pixels());
        let parts = samples * (features.len() + low.len());
        let thread = 4 * rank * (low.pixels() + features.pixels()) + dct;
        let scratch = decomposer.scratch(shape, rank, self.par()).unaligned_bytes_required() + self.threads * thread;
        Ok(((4 * (factors + parts)) as u64, scratch as u64))
    }
}

fn with_walked(plan: MemoryPlan, walked: WalkedBytes) -> MemoryPlan {
    let kept = walked.kept.min(walked.pool + walked.beside);
    let exchange = (walked.exchange as u64).max(plan.wire_bytes);
    MemoryPlan {
        kept_bytes: kept as u64,
        working_bytes: (walked.pool + walked.beside - kept) as u64,
        scratch_bytes: walked.scratch as u64,
        decomposition_bytes: walked.factors as u64,
        release_bytes: walked.release as u64,
        wire_bytes: exchange.saturating_sub(walked.release as u64),
        ..plan
    }
}

/// Weights of the split convolutions on their way to the worker.
struct SyncBytes {
    /// All of them, queued.
    queued: u64,
    /// The largest tensor.
    largest: u64,
}

impl SyncBytes {
    fn of(nodes: &[&ConvNode], placements: &[Placement]) -> Self {
        let bytes = |node: &ConvNode| {
            4 * (node.output.channels * node.input.channels * node.conv.kernel * node.conv.kernel) as u64
        };
        let split = || nodes.iter().zip(placements).filter(|(_, placement)| placement.is_split());
        Self {
            queued: split().map(|(node, _)| bytes(node)).sum(),
            largest: split().map(|(node, _)| bytes(node)).max().unwrap_or(0),
        }
    }

    /// At the end of a step: with f16 the weights before it are kept as well, and half as much travels.
    const fn step(&self, precision: Precision) -> u64 {
        match precision {
            // Encoded piece by piece as they are sent.
            Precision::F32 => self.queued,
            Precision::F16 => self.queued + self.queued / 2 + 3 * self.largest,
        }
    }
}
