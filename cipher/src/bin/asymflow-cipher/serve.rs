//! The server: computes on what clients encrypted, and keeps their evaluation keys.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use asymflow_cipher::messages::{EvaluationKeys, Query};
use asymflow_cipher::{Admitted, Server};
use asymflow_wire::tls::{Identity, Stream};
use asymflow_wire::{Limits, WireError};
use serde_json::json;

use crate::protocol::{Ask, Images, KeysName, LIMITS, ProtocolError, Refusal, Told, VERSION, hear, name_of, say};
use crate::source::{Prepared, Source};

/// Between two tries to accept, where the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// File with this server's key and certificate; made there where it is missing
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Clients whose evaluation keys are kept; beyond these the ones not used for longest go
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Conversations at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    sessions: u16,
    /// Seconds for each step of a conversation
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Exit when stdin closes, so that a killed parent leaves no orphan
    #[arg(long)]
    exit_with_parent: bool,
}

/// Evaluation keys by name, the ones used last behind.
type Kept = Vec<(KeysName, Arc<Admitted>)>;

struct Serving {
    server: Server,
    program: Vec<u8>,
    images: Images,
    keys: Mutex<Kept>,
    clients: usize,
    /// Held while a query is computed, which takes all threads and much memory.
    computing: Mutex<()>,
    sessions: AtomicUsize,
    most_sessions: usize,
    timeout: Duration,
}

/// A place among the conversations, given back when it is dropped.
struct Place(Arc<Serving>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let identity = Identity::load_or_create(&args.identity)?;
    let Prepared { network, model, normalization, split, .. } = args.source.read()?;
    let serving = Arc::new(Serving {
        server: Server::new(&model)?,
        program: model.program().to_bytes(),
        images: Images {
            shape: network.input,
            mean: normalization.mean,
            std: normalization.std,
            class_names: split.train.class_names().to_vec(),
        },
        keys: Mutex::default(),
        clients: args.clients.into(),
        computing: Mutex::new(()),
        sessions: AtomicUsize::new(0),
        most_sessions: args.sessions.into(),
        timeout: Duration::from_secs(args.timeout),
    });
    let tls = identity.server_config()?;
    let listener = TcpListener::bind(&args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    crate::print(&json!({
        "listening": listener.local_addr().context("cannot listen")?.to_string(),
        "fingerprint": identity.fingerprint().to_string(),
        "network": model.program().name,
    }))?;
    if args.exit_with_parent {
        std::thread::Builder::new().spawn(crate::exit_with_stdin).context("cannot watch stdin")?;
    }
    for tcp in listener.incoming() {
        let Ok(tcp) = tcp else {
            // The caller stays in the queue, and an error at once would come again at once.
            std::thread::sleep(PAUSE);
            continue;
        };
        let taken = serving.sessions.fetch_add(1, Ordering::AcqRel);
        let (place, tls) = (Place(Arc::clone(&serving)), Arc::clone(&tls));
        if taken >= 2 * serving.most_sessions {
            continue;
        }
        let spawned = std::thread::Builder::new().spawn(move || place.0.converse(tcp, tls, taken));
        if let Err(error) = spawned {
            crate::report(&format!("a caller was turned away: {error}"));
        }
    }
    Ok(())
}

impl Serving {
    /// One caller, from its handshake to its end.
    fn converse(&self, tcp: TcpStream, tls: Arc<rustls::ServerConfig>, taken: usize) {
        let who = tcp.peer_addr().map_or_else(|_| "a caller".to_owned(), |address| address.to_string());
        let accepted = Stream::server(tcp, tls).and_then(|mut stream| {
            stream.set_timeout(self.timeout);
            stream.handshake().map(|()| stream)
        });
        let mut stream = match accepted {
            Ok(stream) => stream,
            Err(error) => return crate::report(&format!("{who}: {error}")),
        };
        let most = self.most_sessions;
        let ended = if taken < most { self.answer_all(&mut stream) } else { Err(Refusal::Busy { most }.into()) };
        let refusal = match ended {
            Ok(()) => return stream.close(),
            Err(ProtocolError::Refused(refusal)) => refusal,
            Err(ProtocolError::Wire(WireError::Closed | WireError::Io(_))) => {
                return crate::report(&format!("{who}: gone"));
            }
            Err(error) => Refusal::Sent(error.to_string()),
        };
        crate::report(&format!("{who}: refused: {refusal}"));
        let _ = say(&mut stream, &Told::Refused(refusal), &[], self.timeout);
        // What the caller is still sending is read, so that it hears why.
        let _ = std::io::copy(&mut std::io::Read::take(&mut stream, 1 << 20), &mut std::io::sink());
        stream.close();
    }

    fn answer_all(&self, stream: &mut Stream) -> Result<(), ProtocolError> {
        match hear::<Ask>(stream, LIMITS, self.timeout)?.header {
            Ask::Hello { version: VERSION } => {}
            Ask::Hello { version } => return Err(Refusal::Version { got: version, expected: VERSION }.into()),
            Ask::Use { .. } | Ask::Keys | Ask::Query => return Err(Refusal::Order("a hello".to_owned()).into()),
        }
        say(stream, &Told::Served(self.images.clone()), &self.program, self.timeout)?;
        let program = self.server.program();
        let most = program.evaluation_key_bytes().max(program.query_bytes()) as u64;
        let limits = Limits { body_bytes: most, ..LIMITS };
        let mut keys: Option<Arc<Admitted>> = None;
        loop {
            let frame = match hear::<Ask>(stream, limits, self.timeout) {
                Err(ProtocolError::Wire(WireError::Closed)) => return Ok(()),
                frame => frame?,
            };
            let sent = |error: asymflow_cipher::CipherError| Refusal::Sent(error.to_string());
            match frame.header {
                Ask::Hello { .. } => return Err(Refusal::Order("keys or a query".to_owned()).into()),
                Ask::Use { keys: name } => {
                    keys = self.known(name);
                    let told = if keys.is_some() { Told::Admitted } else { Told::Unknown };
                    say(stream, &told, &[], self.timeout)?;
                }
                Ask::Keys => {
                    let read = EvaluationKeys::from_bytes(&frame.body).and_then(|keys| self.server.admit(&keys));
                    keys = Some(self.keep(name_of(&frame.body), read.map_err(sent)?));
                    say(stream, &Told::Admitted, &[], self.timeout)?;
                }
                Ask::Query => {
                    let Some(keys) = &keys else { return Err(Refusal::Order("keys".to_owned()).into()) };
                    let query = Query::from_bytes(&frame.body).map_err(sent)?;
                    let computing = self.computing.lock().unwrap_or_else(PoisonError::into_inner);
                    let answer = self.server.answer(keys, &query).map_err(sent)?;
                    drop(computing);
                    say(stream, &Told::Answer, &answer.to_bytes(), self.timeout)?;
                }
            }
        }
    }

    fn known(&self, name: KeysName) -> Option<Arc<Admitted>> {
        let mut kept = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| *known == name)?;
        let entry = kept.remove(at);
        kept.push(entry.clone());
        Some(entry.1)
    }

    fn keep(&self, name: KeysName, keys: Admitted) -> Arc<Admitted> {
        let keys = Arc::new(keys);
        let mut kept = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| *known != name);
        kept.push((name, Arc::clone(&keys)));
        let beyond = kept.len().saturating_sub(self.clients);
        kept.drain(..beyond);
        keys
    }
}
