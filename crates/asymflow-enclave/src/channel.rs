//! The door to clients: TLS sessions that are bounded in number, size, rate and time.
//!
//! Whoever can reach the port can knock. A session that sends slowly, sends too much, or hangs costs its own time and a
//! small, fixed amount of memory, and no other session waits for it.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use asymflow_wire::{Limits, PREFIX_BYTES, Prefix, WireError, decode_header, write_frame};
use rustls::ServerConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::attest::session_exporter;

/// Memory for a body grows by this much at a time.
const CHUNK_BYTES: usize = 1 << 16;

/// What a channel allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelLimits {
    /// Sessions at a time; more are closed at once.
    pub sessions: usize,
    /// Largest header and body of a message.
    pub message: Limits,
    /// Bytes of message bodies held at a time, over all sessions. Beyond them a message waits, up to `transfer`, for those that are
    /// being answered, and whoever has begun to send longest ago and is not done loses its session.
    pub held_bytes: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest silence between two messages.
    pub idle: Duration,
    /// Longest time for one message to come in or go out whole.
    pub transfer: Duration,
    /// Longest session.
    pub session: Duration,
    /// Messages a second of one session, on average.
    pub messages_per_second: f64,
    /// Messages of one session that may come at once.
    pub burst: f64,
}

impl Default for ChannelLimits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            message: Limits { header_bytes: 1 << 10, body_bytes: 4 << 20 },
            held_bytes: 256 << 20,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            transfer: Duration::from_secs(15),
            session: Duration::from_secs(3600),
            messages_per_second: 1000.0,
            burst: 100.0,
        }
    }
}

/// One client's session, as a handler sees it.
#[derive(Clone, Debug)]
pub struct Session<S> {
    /// A secret that both ends of this TLS session know and nobody else.
    pub exporter: [u8; 32],
    /// What the handler keeps from message to message.
    pub state: S,
}

/// What becomes of a session after a message.
#[derive(Debug)]
pub enum Reply<H> {
    /// It goes on.
    Send(H, Vec<u8>),
    /// It ends with this.
    Last(H, Vec<u8>),
}

/// Answers messages. One handler serves all sessions.
pub trait Handler: Send + Sync + 'static {
    /// Header of what clients send.
    type Request: DeserializeOwned + Send;
    /// Header of what they are sent.
    type Response: Serialize + Send + Sync;
    /// What is kept of a session.
    type State: Default + Send;

    /// Answers one message.
    fn handle(
        &self,
        session: &mut Session<Self::State>,
        request: Self::Request,
        body: Vec<u8>,
    ) -> impl Future<Output = Reply<Self::Response>> + Send;

    /// What a client is told whose message is not one.
    fn malformed(&self, error: &WireError) -> Self::Response;
}

/// What a channel has seen.
#[derive(Debug, Default)]
pub struct ChannelStats {
    sessions: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl ChannelStats {
    /// Sessions that were accepted.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Connections that were closed because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Sessions that ended by a failed handshake, a missed deadline or a malformed message.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// A listening channel.
pub struct Channel<H> {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared<H>>,
}

struct Shared<H> {
    handler: H,
    limits: ChannelLimits,
    sessions: Arc<Semaphore>,
    held_bytes: Semaphore,
    partial: PartialBodies,
    stats: Arc<ChannelStats>,
}

impl<H> Debug for Channel<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl<H: Handler> Channel<H> {
    /// Listens on `address`. Needs a tokio runtime with IO and time.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(
        address: &str,
        tls: Arc<ServerConfig>,
        limits: ChannelLimits,
        handler: H,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let shared = Shared {
            handler,
            limits,
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            held_bytes: Semaphore::new(limits.held_bytes),
            partial: PartialBodies::default(),
            stats: Arc::default(),
        };
        Ok(Self { listener, acceptor: TlsAcceptor::from(tls), shared: Arc::new(shared) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system cannot say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What it has seen.
    pub fn stats(&self) -> Arc<ChannelStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Serves clients until it is dropped, and every session with it.
    pub async fn run(self) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let accepted = self.listener.accept().await;
            while tasks.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: sessions that end give some back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&self.shared.sessions).try_acquire_owned() else {
                self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (shared, acceptor) = (Arc::clone(&self.shared), self.acceptor.clone());
            tasks.spawn(async move {
                shared.stats.sessions.fetch_add(1, Ordering::Relaxed);
                let end = tokio::time::Instant::now() + shared.limits.session;
                let ended = timeout_at(end, shared.serve(stream, acceptor)).await;
                if !matches!(ended, Ok(Ok(()))) {
                    shared.stats.failed.fetch_add(1, Ordering::Relaxed);
                }
                drop(permit);
            });
        }
    }
}

/// Why a session ended early; told to nobody but counted.
struct Ended;

impl<H: Handler> Shared<H> {
    async fn serve(&self, stream: TcpStream, acceptor: TlsAcceptor) -> Result<(), Ended> {
        stream.set_nodelay(true).map_err(|_| Ended)?;
        let mut stream = within(self.limits.handshake, acceptor.accept(stream)).await?;
        let exporter = session_exporter(stream.get_ref().1).map_err(|_| Ended)?;
        let mut session = Session { exporter, state: H::State::default() };
        let mut rate = Rate::new(self.limits.messages_per_second, self.limits.burst);
        loop {
            tokio::time::sleep(rate.wait(Instant::now())).await;
            let Some(prefix) = self.prefix(&mut stream).await? else {
                // A client that is done.
                let _ = within(self.limits.transfer, stream.shutdown()).await;
                return Ok(());
            };
            match self.message(&mut stream, &mut session, prefix).await? {
                Reply::Send(header, body) => self.send(&mut stream, &header, &body).await?,
                Reply::Last(header, body) => {
                    self.send(&mut stream, &header, &body).await?;
                    let _ = within(self.limits.transfer, stream.shutdown()).await;
                    return Ok(());
                }
            }
        }
    }

    /// The bytes before a message; `None` at a clean end.
    async fn prefix(&self, stream: &mut TlsStream<TcpStream>) -> Result<Option<[u8; PREFIX_BYTES]>, Ended> {
        let mut prefix = [0; PREFIX_BYTES];
        let Ok(first) = timeout(self.limits.idle, stream.read(&mut prefix)).await else { return Err(Ended) };
        let read = first.map_err(|_| Ended)?;
        if read == 0 {
            return Ok(None);
        }
        let rest = prefix.get_mut(read..).unwrap_or_default();
        within(self.limits.transfer, stream.read_exact(rest)).await?;
        Ok(Some(prefix))
    }

    async fn message(
        &self,
        stream: &mut TlsStream<TcpStream>,
        session: &mut Session<H::State>,
        prefix: [u8; PREFIX_BYTES],
    ) -> Result<Reply<H::Response>, Ended> {
        let refuse = |error: &WireError| Reply::Last(self.handler.malformed(error), Vec::new());
        let prefix = match Prefix::parse(prefix, self.limits.message) {
            Ok(prefix) => prefix,
            Err(error) => return Ok(refuse(&error)),
        };
        let mut header = vec![0; prefix.header_bytes as usize];
        let (body, held) = within(self.limits.transfer, async {
            stream.read_exact(&mut header).await?;
            self.body(stream, prefix.body_bytes).await
        })
        .await?;
        let reply = match decode_header(&header) {
            Ok(request) => self.handler.handle(session, request, body).await,
            Err(error) => refuse(&error),
        };
        drop(held);
        Ok(reply)
    }

    /// Reads a body. Its share of the memory for bodies grows with the bytes that came, not with those announced: who
    /// sends slowly holds little, and not for longer than others can do without.
    async fn body(
        &self,
        stream: &mut TlsStream<TcpStream>,
        body_bytes: u64,
    ) -> std::io::Result<(Vec<u8>, Option<SemaphorePermit<'_>>)> {
        let partial = self.partial.begin();
        let body = self.body_of(stream, body_bytes, &partial);
        unless(body, partial.end.notified()).await.unwrap_or_else(|| Err(ErrorKind::OutOfMemory.into()))
    }

    async fn body_of<'a>(
        &'a self,
        stream: &mut TlsStream<TcpStream>,
        body_bytes: u64,
        partial: &PartialBody<'_>,
    ) -> std::io::Result<(Vec<u8>, Option<SemaphorePermit<'a>>)> {
        let mut body = Vec::new();
        let mut held: Option<SemaphorePermit<'_>> = None;
        let mut from = stream.take(body_bytes);
        while (body.len() as u64) < body_bytes {
            body.reserve(CHUNK_BYTES.min(body_bytes as usize - body.len()));
            let read = from.read_buf(&mut body).await?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let share = match self.held_bytes.try_acquire_many(read as u32) {
                Ok(share) => share,
                Err(_) => {
                    partial.make_room(read);
                    self.held_bytes.acquire_many(read as u32).await.map_err(std::io::Error::other)?
                }
            };
            match &mut held {
                Some(held) => held.merge(share),
                None => held = Some(share),
            }
            partial.holds(body.len());
        }
        Ok((body, held))
    }

    async fn send(&self, stream: &mut TlsStream<TcpStream>, header: &H::Response, body: &[u8]) -> Result<(), Ended> {
        let mut frame = Vec::with_capacity(body.len() + 256);
        write_frame(&mut frame, header, body).map_err(|_| Ended)?;
        within(self.limits.transfer, async {
            stream.write_all(&frame).await?;
            stream.flush().await
        })
        .await
    }
}

/// Bodies that have come in part, in the order in which they began, with what they hold and what ends them.
#[derive(Debug, Default)]
struct PartialBodies {
    begun: AtomicU64,
    bodies: Mutex<BTreeMap<u64, (usize, Arc<Notify>)>>,
}

/// One of them, until it is dropped.
struct PartialBody<'a> {
    all: &'a PartialBodies,
    number: u64,
    end: Arc<Notify>,
}

impl PartialBodies {
    fn begin(&self) -> PartialBody<'_> {
        let (number, end) = (self.begun.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        self.lock().insert(number, (0, Arc::clone(&end)));
        PartialBody { all: self, number, end }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (usize, Arc<Notify>)>> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialBody<'_> {
    fn holds(&self, bytes: usize) {
        self.all.lock().entry(self.number).and_modify(|(held, _)| *held = bytes);
    }

    /// Ends the oldest of the others, until they have held `bytes`.
    fn make_room(&self, bytes: usize) {
        let (mut bodies, mut freed) = (self.all.lock(), 0);
        bodies.retain(|&number, (held, end)| {
            let ends = freed < bytes && *held > 0 && number != self.number;
            if ends {
                freed += *held;
                end.notify_one();
            }
            !ends
        });
    }
}

impl Drop for PartialBody<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

/// What `work` gives, or `None` where `end` comes first.
async fn unless<T>(work: impl Future<Output = T>, end: impl Future<Output = ()>) -> Option<T> {
    let (mut work, mut end) = (pin!(work), pin!(end));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}

async fn within<T>(limit: Duration, work: impl Future<Output = std::io::Result<T>>) -> Result<T, Ended> {
    match timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        _ => Err(Ended),
    }
}

#[derive(Debug)]
struct Rate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Option<Instant>,
}

impl Rate {
    const fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, tokens: burst, at: None }
    }

    /// Takes a token; how long to wait until it is there.
    fn wait(&mut self, now: Instant) -> Duration {
        if let Some(at) = self.at {
            let gained = now.saturating_duration_since(at).as_secs_f64() * self.per_second;
            self.tokens = (self.tokens + gained).min(self.burst);
        }
        self.at = Some(now);
        self.tokens -= 1.0;
        let seconds = (-self.tokens / self.per_second).max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_may_burst_and_then_keeps_to_its_rate() {
        let (start, mut rate) = (Instant::now(), Rate::new(10.0, 3.0));
        let waits: Vec<_> = (0..5).map(|_| rate.wait(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        assert_eq!(rate.wait(start + Duration::from_secs(9)).as_millis(), 0);
        // Silence earns no more than a burst.
        let waits: Vec<_> = (0..4).map(|_| rate.wait(start + Duration::from_secs(100)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }
}
