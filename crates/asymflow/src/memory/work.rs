//! What parts of a plan modes are made of: each mode puts its own together ([`ModeSpec::memory`](crate::modes::ModeSpec::memory)).

use asymflow_engine::{Engine, buffer::Pool, convolver::Convolver, local::LocalConv, program::ConvNode, streamed};
use asymflow_linalg::{dct::BlockDct, decompose::BatchShape};
use asymflow_privacy::payload::Precision;
use asymflow_residual::backend::Pass;
use asymflow_zoo::models::delta::{DeltaNetworks, DeltaShape};
use asymflow_zoo::{Network, ops::ParamSpec};
use faer::Par;

use super::split::{SplitBytes, SplitSizes};
use super::{FIXED_BYTES, MemoryError, MemoryPlan, THREAD_BYTES};
use crate::modes::{ModeSpec, Registry};
use crate::plan::{Placement, Plan, SplitSpec};

/// What a mode is to do.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The network.
    pub network: &'a Network,
    /// Samples in a batch, as the plan of the split counts them.
    pub batch: usize,
    /// Sizes of batches and what is done with them, in order and at least twice where it is repeated: memory is used again.
    pub passes: &'a [(usize, Pass)],
    /// Training and test records of a run, whose released data are kept.
    pub records: Option<(usize, usize)>,
    /// Threads of the trusted part.
    pub threads: usize,
    /// Whether weights are streamed ([`streamed`]).
    pub is_streamed: bool,
    /// Decompositions by name.
    pub registry: &'a Registry,
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
pub(crate) fn weight_bytes(network: &Network) -> u64 {
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

    /// The plan of `mode`, without data sets and the states of checkpoints.
    ///
    /// # Errors
    /// A network or settings that make no mode.
    pub fn plan(&self, mode: &dyn ModeSpec) -> Result<MemoryPlan, MemoryError> {
        let plan = mode.memory(self)?;
        let fixed_bytes = FIXED_BYTES + THREAD_BYTES * self.threads as u64;
        // A network may be set up where another has been at work.
        let startup_bytes = plan.startup_bytes + fixed_bytes + plan.matmul_bytes;
        Ok(MemoryPlan { fixed_bytes, startup_bytes, ..plan }.peaked())
    }

    /// What products of matrices reserve where linear layers alone are computed: by one thread.
    fn linear_bytes() -> u64 {
        2 * last_level_cache_bytes()
    }

    /// The same where decompositions are computed as well: by all threads, unless there is one sample.
    fn decomposing_bytes(&self) -> u64 {
        let threads = if self.largest_batch() <= 1 { 1 } else { self.threads.max(1) };
        Self::linear_bytes() * threads as u64
    }

    /// The worker has the weights; a copy is kept to send them again.
    pub fn remote(&self) -> MemoryPlan {
        let network = self.network;
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

    /// Runs the passes on lengths; returns the most bytes kept between a forward and a backward pass.
    fn measured<C: Convolver>(&self, engine: &mut Engine, convolver: &mut C) -> Result<usize, C::Error> {
        self.passes.iter().try_fold(0, |most, &(samples, pass)| {
            let kept = engine.measure(samples, pass, convolver)?;
            Ok(most.max(kept))
        })
    }

    /// What an engine takes whose convolutions are all trusted.
    fn unsplit(&self, network: &Network, input_gradient: bool) -> Result<Measured, MemoryError> {
        let mut engine = Engine::measuring(network.clone(), input_gradient, self.par())?;
        let mut local = LocalConv::new(engine.program().convs(), engine.pool().clone(), self.par());
        let kept = self.measured(&mut engine, &mut local)?;
        Ok(Measured { kept, scratch: local.scratch_bytes(), pool: engine.pool().clone(), split: SplitBytes::default() })
    }

    /// A network computed here, whole.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn whole_network(&self) -> Result<MemoryPlan, MemoryError> {
        let network = self.network;
        let measured = self.unsplit(network, false)?;
        let (weights_bytes, optimiser_bytes) = self.engine(network);
        let plan = MemoryPlan { weights_bytes, optimiser_bytes, startup_bytes: weights_bytes, ..MemoryPlan::default() };
        let plan = MemoryPlan { matmul_bytes: Self::linear_bytes(), ..plan };
        Ok(measured.added_to(plan))
    }

    /// A network whose convolutions are split with a worker.
    ///
    /// # Errors
    /// It cannot be executed or split.
    pub fn split_network(
        &self,
        split: &SplitSpec,
        precision: Precision,
        verify: bool,
    ) -> Result<MemoryPlan, MemoryError> {
        let network = self.network;
        let mut engine = Engine::measuring(network.clone(), false, self.par())?;
        let pass = if self.is_training() { Pass::Training } else { Pass::Inference };
        let placements = Plan::asymml(engine.program(), split, self.batch, pass)?.placements();
        let decomposer = self.decomposer(&split.decomposition)?;
        let wire = (precision, verify);
        let mut sizes = SplitSizes::new(&placements, &*decomposer, wire, engine.pool().clone(), self.par());
        let kept = self.measured(&mut engine, &mut sizes)?;
        let scratch = sizes.scratch_bytes();
        let measured = Measured { kept, scratch, pool: engine.pool().clone(), split: sizes.taken };
        let (weights_bytes, optimiser_bytes) = self.engine(network);
        let sync = SyncBytes::of(&engine.program().conv_nodes(), &placements);
        let plan = MemoryPlan {
            weights_bytes,
            optimiser_bytes,
            wire_bytes: if self.is_training() { sync.step(precision) } else { 0 },
            // Weights go to the worker one tensor at a time.
            startup_bytes: weights_bytes + sync.largest,
            matmul_bytes: self.decomposing_bytes(),
            ..MemoryPlan::default()
        };
        Ok(measured.added_to(plan))
    }

    fn decomposer(&self, name: &str) -> Result<Box<dyn asymflow_linalg::Decomposer>, MemoryError> {
        self.registry.decomposer(name).map_err(|_| MemoryError::Decomposition(name.to_owned()))
    }

    /// M_bb and M_main, with the split between them.
    ///
    /// # Errors
    /// They cannot be executed.
    pub fn two_networks(
        &self,
        networks: &DeltaNetworks,
        decomposition: &str,
        shape: &DeltaShape,
    ) -> Result<MemoryPlan, MemoryError> {
        let (backbone, main) = (self.unsplit(&networks.backbone, false)?, self.unsplit(&networks.main, true)?);
        let (weights, optimiser) = self.engine(&networks.backbone);
        let (main_weights, main_optimiser) = self.engine(&networks.main);
        let mut plan = backbone.added_to(MemoryPlan::default());
        let beside = main.added_to(MemoryPlan::default());
        plan.weights_bytes = weights + main_weights;
        plan.optimiser_bytes = optimiser + main_optimiser;
        plan.kept_bytes += beside.kept_bytes;
        plan.working_bytes += beside.working_bytes;
        plan.scratch_bytes += beside.scratch_bytes;
        let (factors, scratch) = self.split_bytes(decomposition, shape, networks)?;
        plan.decomposition_bytes = factors;
        plan.scratch_bytes += scratch;
        plan.matmul_bytes = self.decomposing_bytes();
        let trusted = weight_bytes(&networks.backbone) + weight_bytes(&networks.main);
        // What M_bb and M_main go back to, with momentum.
        plan.state_bytes = 2 * trusted;
        // As given, in the engines, in the state to go back to with momentum, and in what that is put together from.
        plan.startup_bytes = 5 * trusted;
        Ok(plan)
    }

    /// Adds the worker's network, fed with bits, of which `views` of every training record are kept.
    pub fn add_crossing(&self, plan: &mut MemoryPlan, residual: &Network, views: usize) {
        let weights = weight_bytes(residual);
        let features = (self.largest_batch() * residual.input.len()) as u64;
        plan.state_bytes += weights;
        // Bits as released, copied, sent; and one float a value when bits that were released before are sent again.
        plan.release_bytes = 4 * features + features.div_ceil(2);
        // Moved out of what was given, and held once: also while it is on its way.
        plan.startup_bytes += weights;
        if let Some((train, test)) = self.records {
            // The first checkpoint fetches the momentum of M_res, which is kept from then on to be sent again.
            plan.state_bytes += weights;
            // Bits of every view of every record, and of test images; again in a checkpoint, as bytes and in the file.
            let released = residual.input.len().div_ceil(8) as u64 * (train * views + test) as u64;
            plan.state_bytes += released;
            plan.checkpoint_bytes += 3 * released;
        }
    }

    /// Factors and parts of a batch's features; scratch of the decomposition and of the threads that transform them.
    fn split_bytes(
        &self,
        decomposition: &str,
        split: &DeltaShape,
        networks: &DeltaNetworks,
    ) -> Result<(u64, u64), MemoryError> {
        let (features, low) = (networks.features, networks.low);
        let samples = self.largest_batch();
        let shape = BatchShape { samples, channels: features.channels, pixels: features.pixels() };
        let rank = split.rank;
        let decomposer = self.decomposer(decomposition)?;
        let dct = BlockDct::new(split.block, split.kept).map_or(0, |dct| dct.scratch().size_bytes());
        let factors = samples * rank * (features.channels + features.pixels());
        let parts = samples * (features.len() + low.len());
        let thread = 4 * rank * (low.pixels() + features.pixels()) + dct;
        let scratch = decomposer.scratch(shape, rank, self.par()).unaligned_bytes_required() + self.threads * thread;
        Ok(((4 * (factors + parts)) as u64, scratch as u64))
    }
}

/// What the passes of one engine take.
struct Measured {
    /// The most bytes kept for a backward pass.
    kept: usize,
    /// Memory that kernels and decompositions ask for.
    scratch: usize,
    pool: Pool,
    split: SplitBytes,
}

impl Measured {
    fn added_to(&self, plan: MemoryPlan) -> MemoryPlan {
        let whole = self.pool.peak_bytes() + self.pool.peak_beside_bytes();
        let kept = self.kept.min(whole);
        let SplitBytes { factors, release, exchange } = self.split;
        MemoryPlan {
            kept_bytes: kept as u64,
            working_bytes: (whole - kept) as u64,
            scratch_bytes: self.scratch as u64,
            decomposition_bytes: factors as u64,
            release_bytes: release as u64,
            wire_bytes: (exchange as u64).max(plan.wire_bytes).saturating_sub(release as u64),
            ..plan
        }
    }
}

/// Weights of the split convolutions on their way to the worker.
struct SyncBytes {
    /// All of them, queued.
    queued: u64,
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

    /// At the end of a step: with f16 steps travel.
    const fn step(&self, precision: Precision) -> u64 {
        match precision {
            // Encoded piece by piece as they are sent.
            Precision::F32 => self.queued,
            Precision::F16 => self.queued / 2 + self.largest,
        }
    }
}
