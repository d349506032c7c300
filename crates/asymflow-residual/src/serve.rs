//! The worker: serves a backend to clients, one connection a session, one thread a connection.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use asymflow_wire::WireError;
use asymflow_wire::tls::{Fingerprint, Identity, IdentityError, Stream};
use thiserror::Error;

use crate::backend::{Availability, ResidualBackend};
use crate::connection::{Connection, ExchangeError};
use crate::protocol::{BARE, Hello, PROTOCOL_VERSION, Token, Welcome, text};
pub use crate::ring::{RingName, RingNameError};
use crate::serve_session::serve_session;

/// Connections that may be shaking hands beside the sessions; further ones are dropped.
const HANDSHAKES: usize = 64;

/// Bounds on what clients can make a worker do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Sessions at a time.
    pub sessions: u32,
    /// Largest body of one request or answer.
    pub body_bytes: u64,
    /// Estimated memory of one session: weights, kept passes and the batch at hand.
    pub session_bytes: u64,
    /// Largest ring of one session, taken from `/dev/shm`; with 0 no session has one.
    pub ring_bytes: u64,
    /// Longest wait for the handshake and the first message.
    pub hello_timeout: Duration,
    /// Longest wait for a request, and for a client to take its answer.
    pub idle_timeout: Duration,
}

impl Default for ServeLimits {
    /// 16 sessions, 1 GiB a message, 16 GiB a session, 1 GiB a ring, 10 s for the handshake, an hour between
    /// requests.
    fn default() -> Self {
        Self {
            sessions: 16,
            body_bytes: 1 << 30,
            session_bytes: 16 << 30,
            ring_bytes: 1 << 30,
            hello_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}

/// How a worker is served.
#[derive(Debug)]
pub struct ServeConfig {
    /// What clients must show.
    pub token: Token,
    /// No TLS; see [`Protection::InsecurePlaintext`](crate::client::Protection::InsecurePlaintext).
    pub insecure_plaintext: bool,
    /// Key and certificate; a fresh one without it.
    pub identity: Option<Identity>,
    /// Name of every ring, for clients whose sandbox lets them open no other; without it each has a random one.
    pub ring_name: Option<RingName>,
    /// Bounds.
    pub limits: ServeLimits,
}

/// Why a worker cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The token is empty.
    #[error("the token is empty")]
    Token,
    /// The address cannot be listened on.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// No usable key and certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

struct Shared {
    backend: Arc<dyn ResidualBackend>,
    config: ServeConfig,
    tls: Option<Arc<rustls::ServerConfig>>,
    stopping: AtomicBool,
    next: AtomicU64,
    sessions: AtomicU32,
    ring_name: Option<Mutex<RingName>>,
    /// Open connections, so that stopping can end them.
    open: Mutex<BTreeMap<u64, TcpStream>>,
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker bound to an address, with its certificate.
pub struct Worker {
    listener: TcpListener,
    address: SocketAddr,
    fingerprint: Option<Fingerprint>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Worker {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// An empty token, an address that cannot be bound, or no certificate.
    pub fn bind(
        address: impl ToSocketAddrs,
        backend: Arc<dyn ResidualBackend>,
        mut config: ServeConfig,
    ) -> Result<Self, ServeError> {
        if config.token.is_empty() {
            return Err(ServeError::Token);
        }
        let (tls, fingerprint) = if config.insecure_plaintext {
            (None, None)
        } else {
            let identity = match config.identity.take() {
                Some(identity) => identity,
                None => Identity::generate()?,
            };
            (Some(identity.server_config()?), Some(identity.fingerprint()))
        };
        let ring_name = config.ring_name.take().map(Mutex::new);
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            backend,
            config,
            tls,
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
            ring_name,
            open: Mutex::new(BTreeMap::new()),
        });
        Ok(Self { listener, address, fingerprint, shared })
    }

    /// The address bound.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Fingerprint of the certificate; none in plaintext.
    pub const fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Serves on this thread until the process ends.
    pub fn run(self) {
        accept(&self.listener, &self.shared);
    }

    /// Serves on a thread of its own until the handle is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(self) -> io::Result<WorkerHandle> {
        let Self { listener, address, fingerprint, shared } = self;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("residual-accept".to_owned())
            .spawn(move || accept(&listener, &serving))?;
        Ok(WorkerHandle { address, fingerprint, shared, thread: Some(thread) })
    }
}

/// A running worker; dropping it ends every session at once.
pub struct WorkerHandle {
    address: SocketAddr,
    fingerprint: Option<Fingerprint>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl WorkerHandle {
    /// The address bound.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Fingerprint of the certificate; none in plaintext.
    pub const fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // A connection wakes the accept call, which then sees the flag.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok();
        for stream in self.shared.open().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of file descriptors, most likely: give sessions time to end.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let Ok(handle) = stream.try_clone() else { continue };
        if shared.open().len() >= shared.config.limits.sessions as usize + HANDSHAKES {
            continue;
        }
        shared.open().insert(number, handle);
        let serving = Arc::clone(shared);
        let spawned = std::thread::Builder::new().name("residual-worker".to_owned()).spawn(move || {
            let _ = serve_connection(stream, &serving);
            serving.open().remove(&number);
        });
        if spawned.is_err() {
            shared.open().remove(&number);
        }
    }
}

fn serve_connection(stream: TcpStream, shared: &Shared) -> Result<(), ExchangeError> {
    let stream = match &shared.tls {
        None => Stream::insecure_plaintext(stream),
        Some(config) => Stream::server(stream, Arc::clone(config)),
    };
    let limits = shared.config.limits;
    let mut connection = Connection::new(stream.map_err(WireError::Io)?, None);
    connection.set_timeout(limits.hello_timeout);
    let (hello, _) = connection.receive::<Hello>(BARE)?;
    let welcome = if !shared.config.token.matches(&hello.token) {
        Welcome::Token
    } else if hello.version != PROTOCOL_VERSION {
        Welcome::Version { expected: PROTOCOL_VERSION }
    } else {
        match shared.backend.probe() {
            Availability::Ready { device } => {
                Welcome::Ready { device: text(&device), modelled: shared.backend.is_modelled() }
            }
            Availability::Missing { what, fix } => Welcome::Missing { what: text(&what), fix: text(&fix) },
        }
    };
    connection.send(&welcome, &[])?;
    match welcome {
        Welcome::Ready { .. } => {
            let (sessions, ring_name) = (&shared.sessions, shared.ring_name.as_ref());
            serve_session(&mut connection, shared.backend.as_ref(), &limits, sessions, ring_name)
        }
        Welcome::Missing { .. } | Welcome::Token | Welcome::Version { .. } => Ok(()),
    }
}
