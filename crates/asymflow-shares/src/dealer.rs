//! The dealer: makes correlated randomness before any input is known, and never hears of one.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asymflow_wire::{WireError, write_frame};

use crate::conv::Kernel;
#[cfg(doc)]
use crate::deal::DealStore;
use crate::deal::{Deal, DealHeader};
use crate::model::weight_masks;
use crate::nonlinear::{OpDeal, Source, correct, deal_relu, deal_rescale, deal_square, total};
use crate::prg::{Prg, Purpose, Seed, ServerSeed};
use crate::program::{Op, Program, RingError, Server, WeightPolicy};
use crate::ring::{Ring, add};

/// Deals the randomness of one query after the other; no number is dealt twice.
pub struct Dealer<R> {
    program: Program,
    /// The first server's and the second's.
    seeds: [ServerSeed; 2],
    /// The masks B of shared weights.
    weights: Vec<Kernel<R>>,
    lifetime: Duration,
    next_query: u64,
}

impl<R> fmt::Debug for Dealer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dealer({}, next query {})", self.program.name(), self.next_query)
    }
}

impl<R: Ring> Dealer<R> {
    /// A dealer for `program`, whose deals may be used within `lifetime`. `seed` must be fresh: two dealers of one seed
    /// deal the same masks.
    ///
    /// # Errors
    /// The program was compiled for another ring.
    pub fn new(program: Program, seed: &Seed, lifetime: Duration) -> Result<Self, RingError> {
        program.check_ring(R::BITS)?;
        let model = program.hash();
        let mut session = [0; 16];
        Prg::new(seed, &model, Purpose::Session, 0, 0).fill(&mut session);
        let seeds = [Server::First, Server::Second].map(|server| {
            let seed = seed.derive(&model, Purpose::PartySeed, server as u32);
            ServerSeed { session, model, server, seed }
        });
        let mut weights = Vec::new();
        if program.policy() == WeightPolicy::Shared {
            let [first, second] = seeds.each_ref().map(|seed| weight_masks::<R>(seed, &program));
            let masks = add(&first, &second);
            let mut rest = masks.as_slice();
            for shape in &program.layers {
                let (mask, tail) = rest.split_at(shape.weight_len());
                rest = tail;
                weights.push(Kernel::new(*shape, mask));
            }
        }
        Ok(Self { program, seeds, weights, lifetime, next_query: 0 })
    }

    /// The seed of `server`, to be sent to it once.
    pub fn seed(&self, server: Server) -> ServerSeed {
        self.seeds[server.index()].clone()
    }

    /// The randomness of the next query, for the first and the second server; it expires `lifetime` after `now`.
    pub fn deal(&mut self, now: SystemTime) -> [Deal<R>; 2] {
        let mut deals = self.next_headers(now).map(|header| Deal { header, ops: Vec::new() });
        let mut masks = vec![None; self.program.values.len()];
        for index in 0..self.program.steps.len() {
            let OpDeal { common, corrections } = self.deal_op(deals[0].query(), index, &mut masks);
            let [first, second] = &mut deals;
            first.ops.push(OpDeal { common: Arc::clone(&common), corrections: Vec::new() });
            second.ops.push(OpDeal { common, corrections });
        }
        deals
    }

    /// As [`Dealer::deal`], but writes to the servers what [`DealStore::read`] reads and holds one operation in memory at a
    /// time. Returns the query's number and the bytes written to each.
    ///
    /// # Errors
    /// A writer failed. The number is spent all the same.
    pub fn deal_to(
        &mut self,
        now: SystemTime,
        first: &mut impl Write,
        second: &mut impl Write,
    ) -> Result<(u64, [u64; 2]), WireError> {
        let [left, right] = self.next_headers(now);
        let mut bytes = [write_frame(first, &left, &[])?, write_frame(second, &right, &[])?];
        let mut masks = vec![None; self.program.values.len()];
        for index in 0..self.program.steps.len() {
            let OpDeal { common, corrections } = self.deal_op(left.query, index, &mut masks);
            let whole = OpDeal { common, corrections };
            bytes[1] += whole.write_to(index, second)?;
            let common = OpDeal::<R> { common: whole.common, corrections: Vec::new() };
            bytes[0] += common.write_to(index, first)?;
        }
        Ok((left.query, bytes))
    }

    /// Numbers the next query.
    fn next_headers(&mut self, now: SystemTime) -> [DealHeader; 2] {
        let query = self.next_query;
        self.next_query += 1;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let expires_seconds = now.saturating_add(self.lifetime).as_secs();
        self.seeds.each_ref().map(|seed| DealHeader {
            session: seed.session,
            model: seed.model,
            query,
            server: seed.server,
            expires_seconds,
        })
    }

    /// `masks` holds the mask of each opened register.
    fn deal_op(&self, query: u64, index: usize, masks: &mut [Option<Vec<R>>]) -> OpDeal<R> {
        let sources = self.seeds.each_ref().map(|seed| Source { seed, query, op: index as u32 });
        let len = |register| self.program.len(register);
        match &self.program.steps[index].op {
            Op::Open { input, output } => {
                masks[*output] = Some(total(sources, len(*input)));
                OpDeal::default()
            }
            Op::Linear { input, layer, output } if self.program.policy() == WeightPolicy::Shared => {
                let mut product = vec![R::ZERO; len(*output)];
                if let (Some(mask), Some(weight)) = (&masks[*input], self.weights.get(*layer)) {
                    weight.apply(mask, &mut product);
                }
                OpDeal { corrections: correct(sources[0], product), ..OpDeal::default() }
            }
            Op::Relu { input, shift, compare, grouping, .. } => {
                let groups = grouping.groups(self.program.values[*input].shape);
                deal_relu(sources, len(*input), *shift, *compare, groups.as_ref(), self.program.samples)
            }
            Op::Square { input, shift, .. } => deal_square(sources, len(*input), *shift),
            Op::Rescale { input, shift, .. } => deal_rescale(sources, len(*input), *shift),
            Op::Linear { .. }
            | Op::Affine { .. }
            | Op::Select { .. }
            | Op::Join { .. }
            | Op::Add { .. }
            | Op::Pool { .. }
            | Op::Truncate { .. } => OpDeal::default(),
        }
    }
}
