//! One query's correlated randomness: numbered, perishable, used once.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use asymflow_wire::{Limits, WireError, read_frame, write_frame};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::PartyModel;
use crate::party::Party;
use crate::prg::{SeedError, ServerSeed, Session};
use crate::program::{DealSize, ModelHash, Program, Server};
use crate::ring::Ring;
use crate::source::OpDeal;

/// What a deal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DealHeader {
    pub(crate) session: Session,
    pub(crate) model: ModelHash,
    pub(crate) query: u64,
    pub(crate) server: Server,
    /// Seconds of Unix time.
    pub(crate) expires_seconds: u64,
}

/// One server's randomness of one query. It cannot be copied, and a query consumes it.
pub struct Deal<R> {
    pub(crate) header: DealHeader,
    /// One for each operation.
    pub(crate) ops: Vec<OpDeal<R>>,
}

impl<R> fmt::Debug for Deal<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deal(query {}, {:?})", self.header.query, self.header.server)
    }
}

/// Why a deal was refused.
#[derive(Debug, Error)]
pub enum DealError {
    /// Of another dealer's, or for another server or model, than the seed.
    #[error("deal of query {query} is not of this server's dealing")]
    Session {
        /// Its number.
        query: u64,
    },
    /// The seed is for another model or server.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Used before, or dealt with a number below one that came before.
    #[error("randomness of query {query} was used, withdrawn or superseded, and is never used again")]
    Reused {
        /// The number.
        query: u64,
    },
    /// Not there yet.
    #[error("no randomness was dealt for query {query}")]
    Missing {
        /// The number.
        query: u64,
    },
    /// Too old.
    #[error("randomness of query {query} expired {seconds} seconds ago")]
    Expired {
        /// The number.
        query: u64,
        /// How long ago.
        seconds: u64,
    },
    /// A part that is not as long as the program says.
    #[error("deal of query {query}: operation {op} has {got} bytes, expected {expected}")]
    Length {
        /// The number.
        query: u64,
        /// Index of the operation.
        op: usize,
        /// Theirs.
        got: usize,
        /// Expected.
        expected: usize,
    },
    /// A part out of order.
    #[error("deal of query {query}: operation {got}, expected {expected}")]
    Order {
        /// The number.
        query: u64,
        /// Theirs.
        got: u32,
        /// Expected.
        expected: usize,
    },
    /// The connection to the dealer failed.
    #[error(transparent)]
    Wire(#[from] WireError),
}

const HEADER_LIMIT: u32 = 256;

impl<R: Ring> Deal<R> {
    /// Number of the query that it is for.
    pub const fn query(&self) -> u64 {
        self.header.query
    }

    /// From when on it is refused, in seconds of Unix time.
    pub const fn expires_seconds(&self) -> u64 {
        self.header.expires_seconds
    }

    /// Bytes of correlated randomness beyond the seed.
    pub fn bytes(&self) -> u64 {
        self.ops.iter().map(|op| op.size().total(R::BYTES) as u64).sum()
    }

    /// Checks that it is for the server and model of `seed`, of which `program` is.
    fn check(&self, program: &Program, seed: &ServerSeed) -> Result<(), DealError> {
        let query = self.header.query;
        check_header(&self.header, seed)?;
        for (op, (deal, expected)) in self.ops.iter().zip(sizes(program, seed.server)).enumerate() {
            let got = deal.size();
            if got != expected {
                let (got, expected) = (got.total(R::BYTES), expected.total(R::BYTES));
                return Err(DealError::Length { query, op, got, expected });
            }
        }
        Ok(())
    }

    /// Writes it in frames, one for each operation that needs randomness; returns the bytes. The channel must be
    /// encrypted: a deal that others read does not protect inputs.
    ///
    /// # Errors
    /// The writer failed.
    pub fn write_to(&self, writer: &mut impl Write) -> Result<u64, WireError> {
        let mut written = write_frame(writer, &self.header, &[])?;
        for (index, op) in self.ops.iter().enumerate() {
            written += op.write_to(index, writer)?;
        }
        Ok(written)
    }

    /// Reads what [`Deal::write_to`] wrote, for `program` at the server of `seed`. Nothing longer than the program asks for is
    /// read.
    ///
    /// # Errors
    /// The reader failed, the seed is for another program, or the deal is not for its server and session, or not whole.
    pub fn read_from(reader: &mut impl Read, program: &Program, seed: &ServerSeed) -> Result<Self, DealError> {
        seed.check(program.hash(), seed.server)?;
        let limits = |body_bytes| Limits { header_bytes: HEADER_LIMIT, body_bytes };
        let header: DealHeader = read_frame(reader, limits(0))?.header;
        check_header(&header, seed)?;
        let query = header.query;
        let mut ops = Vec::new();
        for (op, size) in sizes(program, seed.server).into_iter().enumerate() {
            let expected = size.total(R::BYTES);
            if expected == 0 {
                ops.push(OpDeal::default());
                continue;
            }
            let frame = read_frame::<u32>(reader, limits(expected as u64))?;
            if frame.header as usize != op {
                return Err(DealError::Order { query, got: frame.header, expected: op });
            }
            if frame.body.len() != expected {
                return Err(DealError::Length { query, op, got: frame.body.len(), expected });
            }
            let (common, rest) = frame.body.split_at(16 * size.common);
            let (bytes, corrections) = rest.split_at(size.bytes);
            let (blocks, _) = common.as_chunks();
            let common = Arc::new(blocks.iter().map(|&block| u128::from_le_bytes(block)).collect());
            ops.push(OpDeal { common, bytes: bytes.to_vec(), corrections: R::read(corrections) });
        }
        Ok(Self { header, ops })
    }
}

impl<R: Ring> OpDeal<R> {
    fn size(&self) -> DealSize {
        DealSize { common: self.common.len(), bytes: self.bytes.len(), corrections: self.corrections.len() }
    }

    /// The first server's part.
    pub(crate) fn first(&self) -> Self {
        Self { common: Arc::clone(&self.common), ..Self::default() }
    }

    /// Writes one frame, or nothing where the operation needs no randomness; returns the bytes.
    pub(crate) fn write_to(&self, index: usize, writer: &mut impl Write) -> Result<u64, WireError> {
        let mut body = Vec::with_capacity(self.size().total(R::BYTES));
        body.extend(self.common.iter().flat_map(|block| block.to_le_bytes()));
        body.extend(&self.bytes);
        R::write(&self.corrections, &mut body);
        if body.is_empty() { Ok(0) } else { write_frame(writer, &(index as u32), &body) }
    }
}

fn check_header(header: &DealHeader, seed: &ServerSeed) -> Result<(), DealError> {
    let DealHeader { session, model, query, server, .. } = *header;
    let fits = (session, model, server) == (seed.session, seed.model, seed.server);
    if fits { Ok(()) } else { Err(DealError::Session { query }) }
}

/// What `server` gets for each operation.
fn sizes(program: &Program, server: Server) -> Vec<DealSize> {
    let exact = program.exact();
    program.steps.iter().map(|step| program.deal_size(&step.op, &exact).of(server)).collect()
}

/// The randomness that a server holds for a model: the only way to a [`Party`], and each deal makes one.
#[derive(Debug)]
pub struct DealStore<R> {
    model: Arc<PartyModel<R>>,
    seed: ServerSeed,
    deals: BTreeMap<u64, Deal<R>>,
    /// All numbers below have been here.
    next: u64,
}

impl<R: Ring> DealStore<R> {
    /// An empty store. A server that starts again with a seed of before refuses all numbers below `next`, which it has kept
    /// ([`DealStore::next_number`]); with a new seed that is 0.
    ///
    /// # Errors
    /// The seed is for another model or server, or of another dealing than the model's masks.
    pub fn new(model: Arc<PartyModel<R>>, seed: ServerSeed, next: u64) -> Result<Self, SeedError> {
        model.check(&seed)?;
        Ok(Self { model, seed, deals: BTreeMap::new(), next })
    }

    /// The model.
    pub fn model(&self) -> &PartyModel<R> {
        &self.model
    }

    /// All numbers below have been here, and are never taken again.
    pub const fn next_number(&self) -> u64 {
        self.next
    }

    /// Keeps a deal. Numbers must rise.
    ///
    /// # Errors
    /// The deal is not for this server, session and model, or this number or a higher one has been here.
    pub fn insert(&mut self, deal: Deal<R>) -> Result<(), DealError> {
        deal.check(&self.model.program, &self.seed)?;
        let query = deal.query();
        if query < self.next {
            return Err(DealError::Reused { query });
        }
        self.next = query.saturating_add(1);
        self.deals.insert(query, deal);
        Ok(())
    }

    /// Reads a deal from the dealer and keeps it; returns its number.
    ///
    /// # Errors
    /// The reader failed, or as [`DealStore::insert`].
    pub fn read(&mut self, reader: &mut impl Read) -> Result<u64, DealError> {
        let deal = Deal::read_from(reader, &self.model.program, &self.seed)?;
        let query = deal.query();
        self.insert(deal).map(|()| query)
    }

    /// This server in `query`: takes its randomness out, for good, and does all work that needs no input.
    ///
    /// # Errors
    /// The randomness was taken before, has not come yet, or has expired; then it is dropped.
    pub fn party(&mut self, query: u64, now: SystemTime) -> Result<Party<R>, DealError> {
        let missing = if query < self.next { DealError::Reused { query } } else { DealError::Missing { query } };
        let deal = self.deals.remove(&query).ok_or(missing)?;
        let now = unix_seconds(now);
        if now >= deal.header.expires_seconds {
            return Err(DealError::Expired { query, seconds: now - deal.header.expires_seconds });
        }
        Ok(Party::new(Arc::clone(&self.model), &self.seed, deal))
    }

    /// Drops what has expired.
    pub fn purge(&mut self, now: SystemTime) {
        let now = unix_seconds(now);
        self.deals.retain(|_, deal| now < deal.header.expires_seconds);
    }

    /// Deals held.
    pub fn len(&self) -> usize {
        self.deals.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.deals.is_empty()
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
