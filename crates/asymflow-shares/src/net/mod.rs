//! What servers, dealer and client say to each other over TLS.
//!
//! Each server has one listener. Whoever calls says first what it is ([`Hello`]); frames are those of `asymflow-wire`, each
//! bounded by what may come there.

mod client;
mod dealer;
mod protocol;
mod stream;

pub use client::{Client, ServerAt};
pub use dealer::{DealerPromise, Proof, Prove, deal};
pub use protocol::{
    FromDealer, FromServer, Hello, LIMITS, ModelInfo, PROGRAM_LIMITS, PROOF_LIMITS, QueryName, Refusal, RefusalCode,
    Ticket, TicketId, ToServer, VERSION, read, write,
};
pub use stream::{NetError, Stream, accept, connect};
