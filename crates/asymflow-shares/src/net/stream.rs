//! TLS over TCP with a deadline.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use asymflow_wire::WireError;
use asymflow_wire::tls::dial;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;

pub use asymflow_wire::tls::Stream;

use super::protocol::{FromServer, Refusal};
use crate::deal::DealError;
use crate::input::ClientError;
use crate::program::{ProgramError, RingError};
use crate::session::RunError;
use crate::transfer::TransferError;

/// Why a conversation ended.
#[derive(Debug, Error)]
pub enum NetError {
    /// Nobody answers there.
    #[error("cannot connect to {address}: {error}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Somebody else answers there.
    #[error("{address} is not the server that its fingerprint was given for")]
    Fingerprint {
        /// The address.
        address: String,
    },
    /// No TLS session.
    #[error("{who}: TLS failed: {error}")]
    Handshake {
        /// The other end.
        who: String,
        /// Why.
        error: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The other end says no.
    #[error("{who} refused: {refusal}")]
    Refused {
        /// The other end.
        who: String,
        /// Its answer.
        refusal: Refusal,
    },
    /// An answer out of turn.
    #[error("{who} answered out of turn")]
    Unexpected {
        /// The other end.
        who: String,
    },
    /// The connection failed.
    #[error("{who}: {error}")]
    Wire {
        /// The other end.
        who: String,
        /// Why.
        error: WireError,
    },
    /// The two servers do not belong together.
    #[error("the servers do not belong together: {0}")]
    Pair(&'static str),
    /// A server's program cannot be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Of another ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The input or output does not fit.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A share does not fit.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A deal does not fit.
    #[error(transparent)]
    Deal(#[from] DealError),
    /// The query failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No random numbers.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The dealer cannot prove what it is.
    #[error("cannot prove what this dealer is: {0}")]
    Proof(String),
    /// A server lacks what it was to be set up with.
    #[error("this server cannot be set up: {0}")]
    Setup(String),
}

impl NetError {
    /// The answer that is none of those expected.
    pub fn unexpected(who: &str, answer: FromServer) -> Self {
        let who = who.to_owned();
        if let FromServer::Refused(refusal) = answer {
            Self::Refused { who, refusal }
        } else {
            Self::Unexpected { who }
        }
    }
}

/// Connects to `address` with a configuration that pins who answers.
///
/// # Errors
/// Nobody answers within `timeout`, or somebody else.
pub fn connect(address: &str, config: Arc<ClientConfig>, timeout: Duration) -> Result<Stream, NetError> {
    let unreachable = |error| NetError::Unreachable { address: address.to_owned(), error };
    let tcp = dial(address, timeout).map_err(unreachable)?;
    let mut stream = Stream::client(tcp, config).map_err(unreachable)?;
    stream.set_timeout(timeout);
    stream.handshake().map_err(|error| match error {
        error if Stream::refused_certificate(&error) => NetError::Fingerprint { address: address.to_owned() },
        error => NetError::Handshake { who: address.to_owned(), error },
    })?;
    Ok(stream)
}

/// The server's side of a session with whoever has connected.
///
/// # Errors
/// No TLS session within `timeout`.
pub fn accept(tcp: TcpStream, config: Arc<ServerConfig>, timeout: Duration) -> Result<Stream, NetError> {
    let who = tcp.peer_addr().map_or_else(|_| "a caller".to_owned(), |address| address.to_string());
    let failed = |error| NetError::Handshake { who: who.clone(), error };
    let mut stream = Stream::server(tcp, config).map_err(failed)?;
    stream.set_timeout(timeout);
    stream.handshake().map_err(failed)?;
    Ok(stream)
}
