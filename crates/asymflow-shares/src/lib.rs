#![doc = include_str!("../README.md")]

pub mod budget;
mod channels;
mod compare;
pub mod compile;
mod conv;
mod deal;
mod dealer;
mod decide;
mod float;
mod gemm;
mod groups;
mod hash;
pub mod in_process;
mod input;
pub mod link;
mod local;
mod message;
mod model;
mod narrow;
#[cfg(feature = "net")]
pub mod net;
mod nonlinear;
mod party;
mod plaintext;
mod planes;
mod pool;
mod prg;
pub mod program;
mod ring;
mod session;
mod source;
mod tables;
mod transfer;

/// What the dealer gives the servers before any input is known: seeds, and correlated randomness that serves once.
pub mod randomness {
    pub use crate::deal::{Deal, DealError, DealStore};
    pub use crate::dealer::Dealer;
    pub use crate::prg::{Seed, SeedError, ServerSeed};
}

/// What a client does: shares of its input, and the logits from shares of them.
pub mod client {
    pub use crate::input::{ClientError, InputShare, OutputShare, open_output, share_input};
    pub use crate::transfer::TransferError;
}

/// What a server does: sets its model up, and answers queries with the other one.
pub mod server {
    pub use crate::message::{Header, Message, MessageError};
    pub use crate::model::{PartyModel, Setup};
    pub use crate::party::{Party, PartyError, Progress};
    pub use crate::session::{LayerReport, RunError, run, set_up};
}

/// What one query takes, from a network to its logits.
pub mod prelude {
    pub use crate::client::{open_output, share_input};
    pub use crate::compile::{Activation, FixedModel, Options, WeightShare, compile};
    pub use crate::in_process::{Answer, InProcess};
    pub use crate::link::{Profile, channel_links};
    pub use crate::program::{Program, Ring, Server, WeightPolicy, Z48};
    pub use crate::randomness::{DealStore, Dealer, Seed};
    pub use crate::server::{PartyModel, Setup, run, set_up};
}
