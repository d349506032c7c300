//! Weights: in the clear at their owner, known to both servers, or shared between them.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::conv::Kernel;
use crate::message::{Header, Message, MessageError, SETUP};
use crate::plaintext::PlaintextError;
use crate::prg::{Prg, Purpose, Seed, SeedError, ServerSeed, Session};
use crate::program::{ModelHash, Program, Server, WeightPolicy};
use crate::ring::{Ring, add, sub};

/// A program with fixed-point weights, as its owner has them.
#[derive(Clone)]
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

/// Why a model is not given to servers.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ModelError {
    /// It is of the other policy.
    #[error("the model was compiled for {policy:?} weights")]
    Policy {
        /// What it was compiled for.
        policy: WeightPolicy,
    },
    /// Its answers would be wrong: a value leaves the range on what it was checked with.
    #[error(transparent)]
    Range(#[from] PlaintextError),
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

    /// Checks that the model is for `policy`, and computes `inputs`, one query's after the other, in the clear.
    fn check(&self, policy: WeightPolicy, inputs: &[f32]) -> Result<(), ModelError> {
        if self.program.policy != policy {
            return Err(ModelError::Policy { policy: self.program.policy });
        }
        let first = inputs.len().min(self.program.input_len());
        let (first, rest) = inputs.split_at(first);
        self.evaluate(first)?;
        rest.chunks(self.program.input_len()).try_for_each(|input| self.evaluate(input).map(drop))?;
        Ok(())
    }

    /// Shares of the weights for the two servers. `seed` must be fresh. `inputs` are one or more inputs such as will be asked,
    /// one query's values after the other: on those, no value leaves the range in which shares are right.
    ///
    /// # Errors
    /// The model was compiled for public weights, or its answers would be wrong.
    pub fn share(self, seed: &Seed, inputs: &[f32]) -> Result<[WeightShare<R>; 2], ModelError> {
        self.check(WeightPolicy::Shared, inputs)?;
        let content = self.content();
        let mut program = self.program;
        Prg::new(seed, &content, Purpose::ModelTag, 0, 0).fill(&mut program.tag);
        let program = Arc::new(program);
        let mut stream = Prg::new(seed, &content, Purpose::WeightShare, 0, 0);
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

    /// Hash of the program and all weights. It stays with the owner, and makes the shares of another model other ones even
    /// where a seed serves twice.
    fn content(&self) -> ModelHash {
        let mut hash = Sha256::new().chain_update(self.program.hash());
        let mut bytes = Vec::new();
        for values in self.layers.iter().flat_map(|(weight, bias)| [weight, bias]) {
            bytes.clear();
            R::write(values, &mut bytes);
            hash.update(&bytes);
        }
        hash.finalize().into()
    }

    /// The model as both servers use it where the weights are public; `inputs` as for [`FixedModel::share`].
    ///
    /// # Errors
    /// The model was compiled for shared weights, or its answers would be wrong.
    pub fn publish(self, inputs: &[f32]) -> Result<Arc<PartyModel<R>>, ModelError> {
        self.check(WeightPolicy::Public, inputs)?;
        Ok(self.published())
    }

    pub(crate) fn published(self) -> Arc<PartyModel<R>> {
        let layers = self.program.layers.iter().zip(self.layers);
        let layers = layers
            .map(|(shape, (weight, bias))| PartyLayer { weight: Kernel::new(*shape, &weight), masked: None, bias })
            .collect();
        Arc::new(PartyModel { hash: self.program.hash(), program: Arc::new(self.program), masked_for: None, layers })
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
    pub(crate) hash: ModelHash,
    /// Whose shares these are, and which dealing's masks are on them; public weights are everybody's.
    masked_for: Option<(Server, Session)>,
    pub(crate) layers: Vec<PartyLayer<R>>,
}

impl<R> PartyModel<R> {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Checks that `seed` is for this model, and that of its set-up where weights are shared.
    pub(crate) fn check(&self, seed: &ServerSeed) -> Result<(), SeedError> {
        let (server, session) = self.masked_for.unwrap_or((seed.server, seed.session));
        seed.check(self.hash, server)?;
        if session == seed.session { Ok(()) } else { Err(SeedError::Dealing) }
    }
}

impl<R> fmt::Debug for PartyModel<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartyModel({}, {:?})", self.program.name, self.masked_for.map(|(server, _)| server))
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
    hash: ModelHash,
    session: Session,
}

impl<R> fmt::Debug for Setup<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setup({:?})", self.share)
    }
}

/// This server's shares of the masks B, layer after layer.
pub(crate) fn weight_masks<R: Ring>(seed: &ServerSeed, program: &Program) -> Vec<R> {
    let count = program.layers.iter().map(crate::conv::ConvShape::weight_len).sum();
    seed.stream(Purpose::WeightMask, 0, 0).words(count)
}

impl<R: Ring> Setup<R> {
    /// With this server's share of the weights and its seed from the dealer.
    ///
    /// # Errors
    /// The seed is for another model or server.
    pub fn new(share: WeightShare<R>, seed: &ServerSeed) -> Result<Self, SeedError> {
        let hash = share.program.hash();
        seed.check(hash, share.server)?;
        let weights: Vec<R> = share.layers.iter().flat_map(|(weight, _)| weight.iter().copied()).collect();
        let masked = sub(&weights, &weight_masks::<R>(seed, &share.program));
        Ok(Self { share, masked, hash, session: seed.session })
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
        let masked_for = Some((self.share.server, self.session));
        Arc::new(PartyModel { program: self.share.program, hash: self.hash, masked_for, layers })
    }
}
