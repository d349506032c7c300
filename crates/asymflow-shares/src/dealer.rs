//! The dealer: makes correlated randomness before any input is known, and never hears of one.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asymflow_wire::{WireError, write_frame};
use zeroize::Zeroize;

use crate::conv::Kernel;
#[cfg(doc)]
use crate::deal::DealStore;
use crate::deal::{Deal, DealHeader};
use crate::message::Session;
use crate::model::{Server, weight_masks};
use crate::nonlinear::{OpDeal, Source, correct, deal_relu, deal_rescale, deal_square, total};
use crate::prg::{Prg, Purpose, Seed};
use crate::program::{Op, Program, RingError, WeightPolicy};
use crate::ring::{Ring, add};

/// What a server gets of the dealer once: a seed that all its randomness comes from. Keep it as secret as the inputs.
#[derive(Clone)]
pub struct ServerSeed {
    pub(crate) session: Session,
    pub(crate) server: Server,
    pub(crate) seed: Seed,
}

impl fmt::Debug for ServerSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerSeed({:?}, ..)", self.server)
    }
}

impl ServerSeed {
    /// Length of [`ServerSeed::to_bytes`].
    pub const BYTES: usize = 49;

    /// Which dealing it belongs to; public.
    pub const fn session(&self) -> [u8; 16] {
        self.session
    }

    /// Whose it is.
    pub const fn server(&self) -> Server {
        self.server
    }

    /// For an encrypted channel to the server.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.server as u8;
        bytes[1..17].copy_from_slice(&self.session);
        bytes[17..].copy_from_slice(self.seed.bytes());
        bytes
    }

    /// The inverse of [`ServerSeed::to_bytes`]; `None` where the bytes name neither server.
    pub fn from_bytes(mut bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [server, rest @ ..] = &bytes;
        let server = match server {
            0 => Server::First,
            1 => Server::Second,
            _ => return None,
        };
        let (session, seed) = rest.split_first_chunk::<16>()?;
        let seed = Seed::from_bytes(*seed.first_chunk()?);
        let found = Self { session: *session, server, seed };
        bytes.zeroize();
        Some(found)
    }
}

/// Deals the randomness of one query after the other; no number is dealt twice.
pub struct Dealer<R> {
    program: Program,
    model: [u8; 32],
    seeds: [Seed; 2],
    session: Session,
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
        let seeds = [0, 1].map(|server| seed.derive(Purpose::PartySeed, server));
        let mut session = [0; 16];
        Prg::new(seed, Purpose::Session, 0, 0).fill(&mut session);
        let mut weights = Vec::new();
        if program.policy() == WeightPolicy::Shared {
            let [first, second] = [0, 1].map(|server| weight_masks::<R>(&seeds[server], &program));
            let masks = add(&first, &second);
            let mut rest = masks.as_slice();
            for shape in &program.layers {
                let (mask, tail) = rest.split_at(shape.weight_len());
                rest = tail;
                weights.push(Kernel::new(*shape, mask));
            }
        }
        Ok(Self { model: program.hash(), program, seeds, session, weights, lifetime, next_query: 0 })
    }

    /// The seed of `server`, to be sent to it once.
    pub fn seed(&self, server: Server) -> ServerSeed {
        ServerSeed { session: self.session, server, seed: self.seeds[server.index()].clone() }
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
        let expires = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + self.lifetime;
        [Server::First, Server::Second].map(|server| DealHeader {
            session: self.session,
            model: self.model,
            query,
            server,
            expires_seconds: expires.as_secs(),
        })
    }

    /// `masks` holds the mask of each opened register.
    fn deal_op(&self, query: u64, index: usize, masks: &mut [Option<Vec<R>>]) -> OpDeal<R> {
        let sources = [0, 1].map(|server| Source { seed: &self.seeds[server], query, op: index as u32 });
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
            _ => OpDeal::default(),
        }
    }
}
