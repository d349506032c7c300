//! The dealer: makes correlated randomness before any input is known, and never hears of one.

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime};

use asymflow_wire::{WireError, write_frame};

use crate::conv::Kernel;
#[cfg(doc)]
use crate::deal::DealStore;
use crate::deal::{Deal, DealHeader};
use crate::local::local;
use crate::model::weight_masks;
use crate::nonlinear::{deal_relu, deal_rescale, deal_square};
use crate::prg::{Prg, Purpose, Seed, ServerSeed};
use crate::program::{Op, Program, Register, RingError, Server, WeightPolicy};
use crate::ring::{Ring, add, sub};
use crate::source::{OpDeal, Source, correct, total};

/// Deals the randomness of one query after the other; no number is dealt twice.
pub struct Dealer<R> {
    program: Program,
    /// The first server's and the second's.
    seeds: [ServerSeed; 2],
    /// The masks B of shared weights.
    weights: Vec<Kernel<R>>,
    /// As [`Program::exact`] has it.
    exact: Vec<bool>,
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
        let exact = program.exact();
        Ok(Self { program, seeds, weights, exact, lifetime, next_query: 0 })
    }

    /// The seed of `server`, to be sent to it once.
    pub fn seed(&self, server: Server) -> ServerSeed {
        self.seeds[server.index()].clone()
    }

    /// The randomness of the next query, for the first and the second server; it expires `lifetime` after `now`.
    pub fn deal(&mut self, now: SystemTime) -> [Deal<R>; 2] {
        let mut deals = self.next_headers(now).map(|header| Deal { header, ops: Vec::new() });
        let mut registers = vec![Vec::new(); self.program.values.len()];
        for index in 0..self.program.steps.len() {
            let whole = self.deal_op(deals[0].query(), index, &mut registers);
            let [first, second] = &mut deals;
            first.ops.push(whole.first());
            second.ops.push(whole);
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
        let mut registers = vec![Vec::new(); self.program.values.len()];
        for index in 0..self.program.steps.len() {
            let whole = self.deal_op(left.query, index, &mut registers);
            bytes[1] += whole.write_to(index, second)?;
            bytes[0] += whole.first().write_to(index, first)?;
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

    /// `registers` hold the mask of what is opened for linear layers, and what shares of others are short of; nothing where they are
    /// short of nothing.
    pub(crate) fn deal_op(&self, query: u64, index: usize, registers: &mut [Vec<R>]) -> OpDeal<R> {
        let sources = self.seeds.each_ref().map(|seed| Source { seed, query, op: index as u32 });
        let program = &self.program;
        // Servers open what they have, so the mask is less what they are short of.
        let mask = |input: Register, registers: &[Vec<R>]| {
            let mask = total(sources, program.len(input));
            if registers[input].is_empty() { mask } else { sub(&mask, &registers[input]) }
        };
        match &program.steps[index].op {
            Op::Open { input, output } => {
                registers[*output] = total(sources, program.len(*input));
                OpDeal::default()
            }
            Op::Linear { input, layer, output } if program.policy() == WeightPolicy::Shared => {
                let mut product = vec![R::ZERO; program.len(*output)];
                if let Some(weight) = self.weights.get(*layer) {
                    weight.apply(&registers[*input], &mut product);
                }
                if self.exact[*output] {
                    return OpDeal { corrections: correct(sources[0], product), ..OpDeal::default() };
                }
                registers[*output] = product;
                OpDeal::default()
            }
            Op::Relu { input, shift, compare, grouping, .. } => {
                let groups = grouping.groups(program.values[*input].shape);
                let mask = mask(*input, registers);
                deal_relu(sources, &mask, *shift, *compare, groups.as_ref(), program.samples)
            }
            Op::Square { input, shift, .. } => deal_square(sources, &mask(*input, registers), *shift),
            Op::Rescale { input, shift, .. } => deal_rescale(sources, &mask(*input, registers), *shift),
            op @ (Op::Affine { .. }
            | Op::Select { .. }
            | Op::Take { .. }
            | Op::Join { .. }
            | Op::Add { .. }
            | Op::Pool { .. }) => {
                let inputs = op.inputs();
                if inputs.iter().any(|input| !registers[*input].is_empty()) {
                    inputs.iter().for_each(|input| registers[*input].resize(program.len(*input), R::ZERO));
                    registers[op.output()] = local(program, op, registers, false).unwrap_or_default();
                }
                OpDeal::default()
            }
            Op::Linear { .. } | Op::Truncate { .. } => OpDeal::default(),
        }
    }
}
