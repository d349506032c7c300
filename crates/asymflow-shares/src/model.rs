//! Weights: in the clear at their owner, known to both servers, or shared between them.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::conv::Kernel;
use crate::dealer::ServerSeed;
use crate::message::{Header, Message, MessageError, SETUP, Session};
use crate::prg::{Prg, Purpose, Seed};
use crate::program::{Program, WeightPolicy};
use crate::ring::{Ring, add, sub};

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// The one whose randomness comes from a seed alone.
    First,
    /// The one that gets the dealer's corrections.
    Second,
}

impl Server {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    pub(crate) const fn is_first(self) -> bool {
        matches!(self, Self::First)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// A program with fixed-point weights, as its owner has them.
pub struct FixedModel<R> {
    pub(crate) program: Program,
    /// Weight and bias of each linear layer.
    pub(crate) layers: Vec<(Vec<R>, Vec<R>)>,
}

impl<R> fmt::Debug for FixedModel<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FixedModel({}, {} layers)", self.program.name, self.layers.len())
    }
}

/// One server's share of all weights and biases.
pub struct WeightShare<R> {
    pub(crate) program: Arc<Program>,
    pub(crate) server: Server,
    /// Weight and bias of each linear layer.
    pub(crate) layers: Vec<(Vec<R>, Vec<R>)>,
}

impl<R> fmt::Debug for WeightShare<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightShare({}, {:?})", self.program.name, self.server)
    }
}

/// The model is of the other policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the model was compiled for {policy:?} weights")]
pub struct PolicyError {
    /// What it was compiled for.
    pub policy: WeightPolicy,
}

impl<R> WeightShare<R> {
    /// The program, as the dealer needs it.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whose share it is.
    pub const fn server(&self) -> Server {
        self.server
    }
}

impl<R: Ring> FixedModel<R> {
    /// The program. Shared weights get one of their own ([`WeightShare::program`]), which is that for the dealer.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Shares of the weights for the two servers. `seed` must be fresh for every model.
    ///
    /// # Errors
    /// The model was compiled for public weights.
    pub fn share(self, seed: &Seed) -> Result<[WeightShare<R>; 2], PolicyError> {
        let policy = self.program.policy;
        if policy != WeightPolicy::Shared {
            return Err(PolicyError { policy });
        }
        let mut program = self.program;
        Prg::new(seed, Purpose::ModelTag, 0, 0).fill(&mut program.tag);
        let program = Arc::new(program);
        let mut stream = Prg::new(seed, Purpose::WeightShare, 0, 0);
        let split = |(weight, bias): (Vec<R>, Vec<R>)| {
            let first = (stream.words(weight.len()), stream.words(bias.len()));
            let second = (sub(&weight, &first.0), sub(&bias, &first.1));
            (first, second)
        };
        let (first, second) = self.layers.into_iter().map(split).unzip();
        Ok([(Server::First, first), (Server::Second, second)].map(|(server, layers)| WeightShare {
            program: Arc::clone(&program),
            server,
            layers,
        }))
    }

    /// The model as both servers use it where the weights are public.
    ///
    /// # Errors
    /// The model was compiled for shared weights.
    pub fn publish(self) -> Result<Arc<PartyModel<R>>, PolicyError> {
        let policy = self.program.policy;
        if policy != WeightPolicy::Public {
            return Err(PolicyError { policy });
        }
        let layers = self.program.layers.iter().zip(self.layers);
        let layers = layers
            .map(|(shape, (weight, bias))| PartyLayer { weight: Kernel::new(*shape, &weight), masked: None, bias })
            .collect();
        Ok(Arc::new(PartyModel { hash: self.program.hash(), program: Arc::new(self.program), server: None, layers }))
    }
}

/// A linear layer at a server.
pub(crate) struct PartyLayer<R> {
    /// The weight itself, or this server's share of it.
    pub(crate) weight: Kernel<R>,
    /// F = W − B, which both servers know where weights are shared.
    pub(crate) masked: Option<Kernel<R>>,
    pub(crate) bias: Vec<R>,
}

/// A model at a server, ready for queries.
pub struct PartyModel<R> {
    pub(crate) program: Arc<Program>,
    pub(crate) hash: [u8; 32],
    /// Whose shares these are; public weights are everybody's.
    pub(crate) server: Option<Server>,
    pub(crate) layers: Vec<PartyLayer<R>>,
}

impl<R> PartyModel<R> {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

impl<R> fmt::Debug for PartyModel<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartyModel({}, {:?})", self.program.name, self.server)
    }
}

/// Opening of the masked weights, which happens once a model.
///
/// The dealer knows masks B of the weights W; each server has shares of both. F = W − B is opened, kept, and used in
/// every query with a fresh mask A of the activations: W·X = W·(X − A) + F·A + B·A.
pub struct Setup<R> {
    share: WeightShare<R>,
    /// This server's share of F, layer after layer.
    masked: Vec<R>,
    hash: [u8; 32],
    session: Session,
}

impl<R> fmt::Debug for Setup<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setup({:?})", self.share)
    }
}

/// This server's shares of the masks B, layer after layer.
pub(crate) fn weight_masks<R: Ring>(seed: &Seed, program: &Program) -> Vec<R> {
    let count = program.layers.iter().map(crate::conv::ConvShape::weight_len).sum();
    Prg::new(seed, Purpose::WeightMask, 0, 0).words(count)
}

impl<R: Ring> Setup<R> {
    /// With this server's share of the weights and its seed from the dealer.
    pub fn new(share: WeightShare<R>, seed: &ServerSeed) -> Self {
        let hash = share.program.hash();
        let weights: Vec<R> = share.layers.iter().flat_map(|(weight, _)| weight.iter().copied()).collect();
        let masked = sub(&weights, &weight_masks::<R>(&seed.seed, &share.program));
        Self { share, masked, hash, session: seed.session }
    }

    /// What the other server needs.
    pub fn message(&self) -> Message {
        let mut body = Vec::with_capacity(self.masked.len() * R::BYTES);
        R::write(&self.masked, &mut body);
        Message { header: self.header(self.share.server), body }
    }

    /// Takes the other server's message: the model is ready for queries.
    ///
    /// # Errors
    /// The message is not the one that belongs here; then nothing is kept of either.
    pub fn finish(self, message: &Message) -> Result<Arc<PartyModel<R>>, MessageError> {
        message.check(&self.header(self.share.server.other()), self.masked.len() * R::BYTES)?;
        Ok(self.with_other(&R::read(&message.body)))
    }

    fn header(&self, from: Server) -> Header {
        Header { session: self.session, model: self.hash, query: 0, step: SETUP, from }
    }

    /// `other` is as long as what was sent.
    fn with_other(self, other: &[R]) -> Arc<PartyModel<R>> {
        let masked = add(&self.masked, other);
        let mut rest = masked.as_slice();
        let shapes = self.share.program.layers.iter();
        let layers = shapes.zip(self.share.layers).map(|(shape, (weight, bias))| {
            let (masked, tail) = rest.split_at(shape.weight_len());
            rest = tail;
            PartyLayer { weight: Kernel::new(*shape, &weight), masked: Some(Kernel::new(*shape, masked)), bias }
        });
        let layers = layers.collect();
        Arc::new(PartyModel { program: self.share.program, hash: self.hash, server: Some(self.share.server), layers })
    }
}
