//! A server as a state machine: messages in, messages out, no input or output of its own.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::conv::add_bias;
use crate::deal::Deal;
use crate::decide::{Gates, Masked};
use crate::groups::Groups;
use crate::input::{InputShare, OutputShare};
use crate::local::local;
use crate::message::{Header, Message, MessageError};
use crate::model::PartyModel;
use crate::nonlinear::{ReluShare, RescaleShare, SquareShare, deciding, offset};
use crate::prg::ServerSeed;
use crate::program::{Op, Register, Server, WeightPolicy};
use crate::ring::{Ring, add, sub};
use crate::source::{Source, own_words};

/// Why a query cannot go on. It is over then: its randomness is spent, and the party answers nothing any more.
#[derive(Debug, Error)]
pub enum PartyError {
    /// The other server's message was refused.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The share of the input is not for this query or server.
    #[error("input share of query {got} for {got_server:?} came to query {expected} of {expected_server:?}")]
    Input {
        /// Its query.
        got: u64,
        /// Its server.
        got_server: Server,
        /// This party's query.
        expected: u64,
        /// This party's server.
        expected_server: Server,
    },
    /// The input has another length.
    #[error("input share of {got} values, expected {expected}")]
    InputLength {
        /// Its length.
        got: usize,
        /// Expected.
        expected: usize,
    },
    /// Started twice, or a message before the start or after the end.
    #[error("query {query} is not waiting for this")]
    State {
        /// The query.
        query: u64,
    },
}

/// How far a query has come.
#[derive(Debug)]
pub enum Progress<R> {
    /// Send this message; [`Party::receive`] the other server's.
    Exchange(Message),
    /// The query is answered.
    Done(OutputShare<R>),
}

/// Randomness of an operation, expanded.
enum Prepared<R> {
    Nothing,
    Open {
        mask: Vec<R>,
    },
    /// Shares of W·A plus the bias.
    Linear {
        rest: Vec<R>,
    },
    Relu {
        share: Box<ReluShare<R>>,
        groups: Option<Groups>,
    },
    Square(SquareShare<R>),
    Rescale(RescaleShare<R>),
}

/// What is on its way to the other server.
enum Pending<R> {
    /// Masked values: own part.
    Values(Vec<R>),
    /// Masked bits: own part, the values that were opened before, and the gates that go on with them. Without gates they are
    /// decisions.
    Bits { own: Vec<u8>, opened: Vec<R>, gates: Option<Gates> },
}

enum State<R> {
    New,
    Waiting(Pending<R>),
    Over,
}

/// One server in one query, made by a [`DealStore`](crate::randomness::DealStore).
pub struct Party<R> {
    model: Arc<PartyModel<R>>,
    server: Server,
    header: Header,
    prepared: Vec<Prepared<R>>,
    pub(crate) registers: Vec<Vec<R>>,
    /// The operation to do next, or that waits.
    at: usize,
    state: State<R>,
}

impl<R> fmt::Debug for Party<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Party({:?}, query {}, operation {})", self.server, self.header.query, self.at)
    }
}

impl<R: Ring> Party<R> {
    /// Takes the randomness of one query, which has been checked, and does all work that needs no input.
    pub(crate) fn new(model: Arc<PartyModel<R>>, seed: &ServerSeed, deal: Deal<R>) -> Self {
        let query = deal.query();
        let header = Header { session: seed.session, model: model.hash, query, step: 0, from: seed.server };
        let registers = vec![Vec::new(); model.program.values.len()];
        let mut party =
            Self { model, server: seed.server, header, prepared: Vec::new(), registers, at: 0, state: State::New };
        party.prepare(seed, deal);
        party
    }

    /// Number of the query.
    pub const fn query(&self) -> u64 {
        self.header.query
    }

    /// Begins with this server's share of the input.
    ///
    /// # Errors
    /// The share is not for this query, or the query has begun.
    pub fn start(&mut self, input: InputShare<R>) -> Result<Progress<R>, PartyError> {
        if !matches!(std::mem::replace(&mut self.state, State::Over), State::New) {
            return Err(PartyError::State { query: self.query() });
        }
        if (input.query, input.server) != (self.query(), self.server) {
            return Err(PartyError::Input {
                got: input.query,
                got_server: input.server,
                expected: self.query(),
                expected_server: self.server,
            });
        }
        let expected = self.model.program.input_len();
        if input.values.len() != expected {
            return Err(PartyError::InputLength { got: input.values.len(), expected });
        }
        self.registers[0] = input.values;
        Ok(self.advance())
    }

    /// Goes on with the other server's message.
    ///
    /// # Errors
    /// The message is not the one that belongs here. The query is over then.
    pub fn receive(&mut self, message: &Message) -> Result<Progress<R>, PartyError> {
        let State::Waiting(pending) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(PartyError::State { query: self.query() });
        };
        let bytes = match &pending {
            Pending::Values(own) => own.len() * R::BYTES,
            Pending::Bits { own, .. } => own.len(),
        };
        message.check(&Header { from: self.server.other(), ..self.header }, bytes)?;
        self.header.step += 1;
        let outgoing = match pending {
            Pending::Values(own) => self.opened(add(&own, &R::read(&message.body))),
            Pending::Bits { mut own, opened, gates } => {
                own.iter_mut().zip(&message.body).for_each(|(bits, other)| *bits ^= other);
                self.bits_opened(opened, &own, gates)
            }
        };
        match outgoing {
            Some(message) => Ok(Progress::Exchange(message)),
            None => {
                self.at += 1;
                Ok(self.advance())
            }
        }
    }

    const fn is_first(&self) -> bool {
        self.server.is_first()
    }

    /// Expands the deal, with the products that need nothing of the input.
    fn prepare(&mut self, seed: &ServerSeed, deal: Deal<R>) {
        let program = Arc::clone(&self.model.program);
        let first = self.is_first();
        let query = self.header.query;
        let exact = program.exact();
        let mut masks = vec![None; program.values.len()];
        for (index, (step, op_deal)) in program.steps.iter().zip(deal.ops).enumerate() {
            let source = Source { seed, query, op: index as u32 };
            self.prepared.push(match &step.op {
                Op::Open { input, output } => {
                    masks[*output] = Some(index);
                    Prepared::Open { mask: source.mask(program.len(*input)) }
                }
                Op::Linear { input, layer, output } if program.policy == WeightPolicy::Shared => {
                    let mut rest = if exact[*output] {
                        own_words(source, op_deal.corrections, first, program.len(*output))
                    } else {
                        vec![R::ZERO; program.len(*output)]
                    };
                    let layer = &self.model.layers[*layer];
                    let opened = masks[*input].and_then(|opened: usize| self.prepared.get(opened));
                    if let (Some(masked), Some(Prepared::Open { mask })) = (&layer.masked, opened) {
                        masked.apply(mask, &mut rest);
                    }
                    add_bias(&layer.bias, layer.weight.shape.output_len(), &mut rest);
                    Prepared::Linear { rest }
                }
                Op::Relu { input, grouping, shift, compare, .. } => {
                    let shape = program.values[*input].shape;
                    let (len, decisions) = (program.len(*input), program.decisions(*input, grouping));
                    let share = ReluShare::expand(source, op_deal, first, (len, *shift), (decisions, *compare));
                    Prepared::Relu { share: Box::new(share), groups: grouping.groups(shape) }
                }
                Op::Square { input, shift, .. } => {
                    Prepared::Square(SquareShare::expand(source, op_deal, first, program.len(*input), *shift))
                }
                Op::Rescale { input, shift, .. } => {
                    Prepared::Rescale(RescaleShare::expand(source, op_deal, first, program.len(*input), *shift))
                }
                // With public weights a linear layer is local as well.
                Op::Linear { .. }
                | Op::Affine { .. }
                | Op::Select { .. }
                | Op::Take { .. }
                | Op::Join { .. }
                | Op::Add { .. }
                | Op::Pool { .. }
                | Op::Truncate { .. } => Prepared::Nothing,
            });
        }
    }

    /// Works until a message is needed or the end is reached.
    fn advance(&mut self) -> Progress<R> {
        let program = Arc::clone(&self.model.program);
        while let Some(step) = program.steps.get(self.at) {
            let masked = match (&step.op, &self.prepared[self.at]) {
                (Op::Open { input, .. }, Prepared::Open { mask }) => Some(sub(&self.registers[*input], mask)),
                (Op::Relu { input, .. }, Prepared::Relu { share, .. }) => {
                    Some(add(&self.registers[*input], &share.mask))
                }
                (Op::Square { input, .. }, Prepared::Square(share)) => Some(add(&self.registers[*input], &share.mask)),
                (Op::Rescale { input, .. }, Prepared::Rescale(share)) => {
                    Some(add(&self.registers[*input], &share.mask))
                }
                (op, _) => {
                    let (output, values) = self.local(op);
                    self.registers[output] = values;
                    None
                }
            };
            if let Some(own) = masked {
                let mut body = Vec::with_capacity(own.len() * R::BYTES);
                R::write(&own, &mut body);
                return Progress::Exchange(self.send(Pending::Values(own), body));
            }
            self.at += 1;
        }
        self.state = State::Over;
        let values = std::mem::take(&mut self.registers[program.output]);
        Progress::Done(OutputShare { query: self.query(), server: self.server, values })
    }

    fn send(&mut self, pending: Pending<R>, body: Vec<u8>) -> Message {
        self.state = State::Waiting(pending);
        Message { header: self.header, body }
    }

    /// Values have been opened: the operation ends, or its decisions are next.
    fn opened(&mut self, opened: Vec<R>) -> Option<Message> {
        let program = Arc::clone(&self.model.program);
        let first = self.is_first();
        let prepared = &self.prepared[self.at];
        let (output, values) = match &program.steps.get(self.at)?.op {
            Op::Relu { .. } => {
                let Prepared::Relu { share, groups } = prepared else { return None };
                let about = deciding(&opened, groups.as_ref(), program.samples);
                let masked = share.decisions.begin(&about);
                return Some(self.send_bits(opened, masked));
            }
            Op::Square { output, shift, .. } => {
                let Prepared::Square(share) = prepared else { return None };
                (*output, share.square(first, *shift, &opened))
            }
            Op::Rescale { output, shift, .. } => {
                let Prepared::Rescale(share) = prepared else { return None };
                (*output, share.rescale(first, *shift, &opened))
            }
            Op::Open { output, .. } => (*output, opened),
            // These open nothing.
            Op::Linear { .. }
            | Op::Affine { .. }
            | Op::Select { .. }
            | Op::Take { .. }
            | Op::Join { .. }
            | Op::Add { .. }
            | Op::Pool { .. }
            | Op::Truncate { .. } => return None,
        };
        self.registers[output] = values;
        None
    }

    fn send_bits(&mut self, opened: Vec<R>, (own, gates): Masked) -> Message {
        let body = own.clone();
        self.send(Pending::Bits { own, opened, gates }, body)
    }

    /// Bits have been opened: the next gates, or the end of the operation.
    fn bits_opened(&mut self, opened: Vec<R>, bits: &[u8], gates: Option<Gates>) -> Option<Message> {
        let program = Arc::clone(&self.model.program);
        let Some(Op::Relu { output, shift, .. }) = program.steps.get(self.at).map(|step| &step.op) else { return None };
        let Prepared::Relu { share, groups } = &self.prepared[self.at] else { return None };
        if let Some(gates) = gates {
            let masked = share.decisions.go_on(gates, bits);
            return Some(self.send_bits(opened, masked));
        }
        self.registers[*output] = share.select(self.is_first(), *shift, &opened, bits, groups.as_ref());
        None
    }

    /// An operation without messages.
    fn local(&mut self, op: &Op) -> (Register, Vec<R>) {
        let program = Arc::clone(&self.model.program);
        let first = self.is_first();
        match op {
            Op::Linear { input, layer, output } => (*output, self.linear(*input, *layer, program.len(*output))),
            Op::Truncate { input, output, shift } => (*output, truncate(first, *shift, &self.registers[*input])),
            // Others wait for messages and do not come here.
            Op::Affine { output, .. }
            | Op::Select { output, .. }
            | Op::Take { output, .. }
            | Op::Join { output, .. }
            | Op::Add { output, .. }
            | Op::Pool { output, .. }
            | Op::Open { output, .. }
            | Op::Relu { output, .. }
            | Op::Square { output, .. }
            | Op::Rescale { output, .. } => (*output, local(&program, op, &self.registers, first).unwrap_or_default()),
        }
    }

    fn linear(&mut self, input: Register, layer: usize, len: usize) -> Vec<R> {
        let layer = &self.model.layers[layer];
        let mut sums = match &mut self.prepared[self.at] {
            Prepared::Linear { rest } => std::mem::take(rest),
            Prepared::Nothing
            | Prepared::Open { .. }
            | Prepared::Relu { .. }
            | Prepared::Square(_)
            | Prepared::Rescale(_) => {
                let mut sums = vec![R::ZERO; len];
                if self.server.is_first() {
                    add_bias(&layer.bias, layer.weight.shape.output_len(), &mut sums);
                }
                sums
            }
        };
        layer.weight.apply(&self.registers[input], &mut sums);
        sums
    }
}

/// Local truncation of shares: off by at most one, but for |x| / 2^ℓ of all masks, with which it is wrong by about
/// 2^(ℓ−bits) (Mohassel and Zhang, S&P 2017, theorem 1). That wants uniform shares, which constants do not have: the first
/// server holds all of them. An offset that moves from one share to the other makes those right as well.
pub(crate) fn truncate<R: Ring>(first: bool, bits: u32, shares: &[R]) -> Vec<R> {
    let one = |x: &R| {
        if first {
            x.plus(offset()).shifted_right(bits)
        } else {
            R::ZERO.minus(offset::<R>().minus(*x).shifted_right(bits))
        }
    };
    shares.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
