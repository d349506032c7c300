//! A connection to a service that has been verified.

use std::io::{self, BufWriter, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use asymflow::service::protocol::{FromService, Outcome, RefusalCode, ToService, VERSION};
use asymflow::service::{Promise, sha256_hex};
use asymflow_enclave::attest::{Clock, Refusal, Verified, Verifier, client_config, refusal_of, session_exporter};
use asymflow_wire::tls::dial;
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use rustls::{ClientConnection, StreamOwned};

use super::policy::ClientPolicy;
use super::service::ServiceArgs;
use super::witness::Seen;
use crate::error::CliError;

const LIMITS: Limits = Limits { header_bytes: 1 << 20, body_bytes: 64 << 20 };

pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    pub verified: Verified,
    /// What the service promises.
    pub promise: Promise,
    /// What weakens the policy by which it was accepted.
    pub insecure_policy: Vec<&'static str>,
    /// The generation of this client's account.
    pub generation: u64,
}

/// Answers to one message.
#[derive(Debug)]
pub struct Reply {
    pub outcomes: Vec<Outcome>,
    /// Logits of the images that were answered.
    pub logits: Vec<f32>,
    /// ε that this client has spent.
    pub spent_epsilon: Option<f64>,
    /// What to show the service at the next visit.
    pub witness: Option<Vec<u8>>,
}

fn refused(refusal: &Refusal) -> CliError {
    CliError::failed(format!("the service is refused: {refusal}"), refusal.help())
}

fn lost(error: &dyn std::fmt::Display) -> CliError {
    CliError::failed(
        format!("the connection failed: {error}"),
        "connect again; images that were answered cost nothing again",
    )
}

impl Connection {
    /// Connects, verifies the certificate and a quote of this session, and names the client.
    pub fn open(service: &ServiceArgs, account: &[u8; 32], seen: Seen) -> Result<Self, CliError> {
        let policy = ClientPolicy::of(service)?;
        let verifier = Arc::new(policy.verifier(service.collateral.as_deref())?);
        let mut tls = handshake(service, &verifier)?;
        let verified =
            verifier.verify_peer(&tls.conn, Clock::System.now_unix_seconds()).map_err(|refusal| refused(&refusal))?;
        let promise = Promise::decode(&verified.promise)
            .map_err(|e| CliError::failed(format!("the service's promise: {e}"), "use a client of the same version"))?;
        policy.check(&promise)?;
        prove(&mut tls, &verifier, &verified)?;
        let Seen { generation, witness } = seen;
        let hello = ToService::Hello { version: VERSION, client: *account, generation, witness };
        let generation = match ask(&mut tls, &hello, &[])? {
            (FromService::Welcome { generation, .. }, _) => generation,
            (other, _) => return Err(unexpected(&other)),
        };
        let insecure_policy = policy.enclave.insecure();
        Ok(Self { stream: tls, verified, promise, insecure_policy, generation })
    }

    /// SHA-256 of the promise, in hex.
    pub fn promise_sha256(&self) -> String {
        sha256_hex(&self.verified.promise)
    }

    /// Asks about images: their pixels, one after another.
    pub fn classify(&mut self, pixels: &[u8]) -> Result<Reply, CliError> {
        let images = (pixels.len() / self.promise.input.len().max(1)) as u16;
        let (header, body) = ask(&mut self.stream, &ToService::Classify { images }, pixels)?;
        let FromService::Answers { outcomes, spent_epsilon, witness } = header else { return Err(unexpected(&header)) };
        let logits: Vec<f32> = body.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let answered = outcomes.iter().filter(|outcome| !matches!(outcome, Outcome::Refused(_))).count();
        if outcomes.len() != usize::from(images) || logits.len() != answered * self.promise.classes {
            return Err(lost(&"an answer of the wrong size"));
        }
        Ok(Reply { outcomes, logits, spent_epsilon, witness })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Says that nothing was cut off; a service that is gone need not hear it.
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }
}

fn handshake(
    service: &ServiceArgs,
    verifier: &Arc<Verifier>,
) -> Result<StreamOwned<ClientConnection, TcpStream>, CliError> {
    let unreachable = |e: io::Error| {
        let help = "start it with `asymflow-enclaved serve`, or name its address with --enclave";
        CliError::missing(format!("cannot connect to {}: {e}", service.enclave), help)
    };
    let mut tcp = dial(&service.enclave, Duration::from_secs(10)).map_err(unreachable)?;
    let address = tcp.peer_addr().map_err(unreachable)?;
    let set = tcp
        .set_nodelay(true)
        .and_then(|()| tcp.set_read_timeout(Some(service.patience())))
        .and_then(|()| tcp.set_write_timeout(Some(service.patience())));
    set.map_err(unreachable)?;
    let config = client_config(Arc::clone(verifier), Clock::System).map_err(|e| lost(&e))?;
    // Enclaves have no names: the quote says who they are.
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let mut tls = ClientConnection::new(config, name).map_err(|e| lost(&e))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match (inner.and_then(refusal_of), inner) {
                (Some(refusal), _) => refused(refusal),
                (None, Some(rustls::Error::InvalidMessage(_))) => refused(&Refusal::NoEvidence),
                _ => lost(&error),
            }
        })?;
    }
    Ok(StreamOwned::new(tls, tcp))
}

/// Has the service make a quote for this very session.
fn prove(
    tls: &mut StreamOwned<ClientConnection, TcpStream>,
    verifier: &Verifier,
    verified: &Verified,
) -> Result<(), CliError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|e| CliError::missing(format!("no randomness: {e}"), ""))?;
    let exporter = session_exporter(&tls.conn).map_err(|e| lost(&e))?;
    match ask(tls, &ToService::Prove { nonce }, &[])? {
        (FromService::Proof, quote) => verifier
            .verify_fresh(verified, &quote, &nonce, &exporter, Clock::System.now_unix_seconds())
            .map_err(|refusal| refused(&refusal)),
        (other, _) => Err(unexpected(&other)),
    }
}

fn ask(
    tls: &mut StreamOwned<ClientConnection, TcpStream>,
    header: &ToService,
    body: &[u8],
) -> Result<(FromService, Vec<u8>), CliError> {
    write_frame(&mut BufWriter::new(&mut *tls), header, body).map_err(|e| lost(&e))?;
    match read_frame(tls, LIMITS) {
        Ok(Frame { header, body }) => Ok((header, body)),
        Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(CliError::failed("the service did not answer in time", "ask again, or allow more with --timeout"))
        }
        Err(error) => Err(lost(&error)),
    }
}

fn unexpected(header: &FromService) -> CliError {
    match header {
        FromService::Refused(refusal) => {
            let help = match refusal.code {
                RefusalCode::RolledBack => {
                    "its budgets were put back, or it is another service at this address: if you know that it is, --forget-witness"
                }
                RefusalCode::Account => {
                    "for one that is closed --forget-witness opens another account, with a budget of its own; a token is given to \
                     you by the operator, or its hash to the operator by you"
                }
                RefusalCode::Message | RefusalCode::Budget | RefusalCode::Busy | RefusalCode::Failed => "",
            };
            CliError::failed(format!("the service refused: {}", refusal.detail), help)
        }
        other => lost(&format!("an answer out of turn: {other:?}")),
    }
}
