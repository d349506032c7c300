//! TLS over TCP with a deadline.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow_residual::{Fingerprint, Timed};
use asymflow_wire::WireError;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use thiserror::Error;

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
        match answer {
            FromServer::Refused(refusal) => Self::Refused { who, refusal },
            _ => Self::Unexpected { who },
        }
    }
}

enum Tls {
    Client(Box<StreamOwned<ClientConnection, Timed>>),
    Server(Box<StreamOwned<ServerConnection, Timed>>),
}

/// One end of a TLS session.
pub struct Stream(Tls);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(..)")
    }
}

impl Stream {
    /// Everything until the next call must be over within `timeout`.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let timed = match &mut self.0 {
            Tls::Client(tls) => &mut tls.sock,
            Tls::Server(tls) => &mut tls.sock,
        };
        timed.set_deadline(Some(Instant::now() + timeout));
    }

    /// The identity that the other end showed, if any.
    pub fn peer(&self) -> Option<Fingerprint> {
        let chain = match &self.0 {
            Tls::Client(tls) => tls.conn.peer_certificates(),
            Tls::Server(tls) => tls.conn.peer_certificates(),
        };
        chain?.first().map(|certificate| Fingerprint::of(certificate))
    }

    /// 32 bytes under `label` that only the two ends of this session know.
    ///
    /// # Errors
    /// The handshake is not done.
    pub fn exporter(&self, label: &[u8]) -> Result<[u8; 32], rustls::Error> {
        match &self.0 {
            Tls::Client(tls) => tls.conn.export_keying_material([0; 32], label, None),
            Tls::Server(tls) => tls.conn.export_keying_material([0; 32], label, None),
        }
    }

    /// Says that nothing was cut off; the other end need not be there to hear it.
    pub fn close(mut self) {
        match &mut self.0 {
            Tls::Client(tls) => tls.conn.send_close_notify(),
            Tls::Server(tls) => tls.conn.send_close_notify(),
        }
        let _ = self.flush();
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.0 {
            Tls::Client(tls) => tls.read(buf),
            Tls::Server(tls) => tls.read(buf),
        };
        // A process that is killed says no goodbye.
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::UnexpectedEof, "the other end is gone"),
            _ => error,
        })
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Tls::Client(tls) => tls.write(buf),
            Tls::Server(tls) => tls.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Tls::Client(tls) => tls.flush(),
            Tls::Server(tls) => tls.flush(),
        }
    }
}

/// Connects to `address` with a configuration that pins who answers.
///
/// # Errors
/// Nobody answers within `timeout`, or somebody else.
pub fn connect(address: &str, config: Arc<ClientConfig>, timeout: Duration) -> Result<Stream, NetError> {
    let unreachable = |error| NetError::Unreachable { address: address.to_owned(), error };
    let to = address.to_socket_addrs().map_err(unreachable)?.next();
    let to = to.ok_or_else(|| unreachable(ErrorKind::NotFound.into()))?;
    let tcp = TcpStream::connect_timeout(&to, timeout).map_err(unreachable)?;
    let mut timed = Timed::new(tcp).map_err(unreachable)?;
    timed.set_deadline(Some(Instant::now() + timeout));
    let mut tls = ClientConnection::new(config, ServerName::IpAddress(to.ip().into()))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut timed).map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let address = address.to_owned();
            match inner {
                Some(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
                    NetError::Fingerprint { address }
                }
                _ => NetError::Handshake { who: address, error },
            }
        })?;
    }
    Ok(Stream(Tls::Client(Box::new(StreamOwned::new(tls, timed)))))
}

/// The server's side of a session with whoever has connected.
///
/// # Errors
/// No TLS session within `timeout`.
pub fn accept(tcp: TcpStream, config: Arc<ServerConfig>, timeout: Duration) -> Result<Stream, NetError> {
    let who = tcp.peer_addr().map_or_else(|_| "a caller".to_owned(), |address| address.to_string());
    let failed = |error| NetError::Handshake { who: who.clone(), error };
    let mut timed = Timed::new(tcp).map_err(failed)?;
    timed.set_deadline(Some(Instant::now() + timeout));
    let mut tls = ServerConnection::new(config)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut timed).map_err(failed)?;
    }
    Ok(Stream(Tls::Server(Box::new(StreamOwned::new(tls, timed)))))
}
