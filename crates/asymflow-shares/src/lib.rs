#![doc = include_str!("../README.md")]

pub mod budget;
mod channels;
mod compare;
pub mod compile;
pub mod conv;
mod deal;
mod dealer;
mod float;
mod gemm;
mod groups;
mod hash;
mod input;
pub mod link;
mod message;
mod model;
#[cfg(feature = "net")]
pub mod net;
mod nonlinear;
mod party;
mod plaintext;
mod pool;
mod prg;
mod program;
mod ring;
mod session;
mod transfer;

pub use compile::{
    Activation, Comparison, CompileError, Options, Truncation, activations, compile, with_average_pooling,
};
pub use conv::ConvShape;
pub use deal::{Deal, DealError, DealStore};
pub use dealer::{Dealer, ServerSeed};
pub use float::float_logits;
pub use groups::Decision;
pub use input::{ClientError, InputShare, OutputShare, open_output, share_input};
pub use link::{ChannelLink, DuplexLink, HalfDuplexLink, Link, LinkError, Profile, channel_links};
pub use message::{Header, Message, MessageError};
pub use model::{FixedModel, PartyModel, PolicyError, Server, Setup, WeightShare};
pub use party::{Party, PartyError, Progress};
pub use plaintext::{PlaintextError, Trace};
pub use prg::Seed;
pub use program::{Cost, FixedPoint, Program, ProgramError, RingError, WeightPolicy};
pub use ring::{Ring, Z48};
pub use session::{LayerReport, RunError, run, set_up};
pub use transfer::TransferError;
