//! Ways to exchange messages with the other server.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use asymflow_wire::WireError;
use thiserror::Error;

use crate::message::{Header, Message, PROBE};
use crate::program::Server;

/// Pairs of exchanges of each size that measure a link, and the bytes of the larger.
const PROBES: usize = 5;
const PROBE_BYTES: usize = 1 << 20;

/// Why an exchange failed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The other server has gone.
    #[error("the other server is gone")]
    Gone,
    /// A stream failed, or what came is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A connection to the other server.
pub trait Link {
    /// Sends a message and receives the other server's. Both are of one length in every exchange of the protocol, so
    /// nothing longer than `message` is received from a stream.
    ///
    /// # Errors
    /// The connection failed, or what came is no message or too long.
    fn exchange(&mut self, message: Message) -> Result<Message, LinkError>;
}

/// Delay and bandwidth of an emulated network, each way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Time from the last byte out to the first byte in.
    pub latency: Duration,
    /// Bytes a second, positive; infinity for no limit.
    pub bytes_per_second: f64,
}

impl Profile {
    /// No delay.
    pub const LOOPBACK: Self = Self { latency: Duration::ZERO, bytes_per_second: f64::INFINITY };
    /// 10 Gbit/s, 0.2 ms there and back.
    pub const LAN: Self = Self { latency: Duration::from_micros(100), bytes_per_second: 1.25e9 };
    /// 100 Mbit/s, 40 ms there and back.
    pub const WAN: Self = Self { latency: Duration::from_millis(20), bytes_per_second: 12.5e6 };
}

impl Profile {
    /// Measures `link` with messages of its own; both ends do it at once, before any query.
    ///
    /// # Errors
    /// The connection failed.
    pub fn measured(link: &mut impl Link, from: Server) -> Result<Self, LinkError> {
        let mut exchange = |bytes: usize| {
            let header = Header { session: [0; 16], model: [0; 32], query: 0, step: PROBE, from };
            link.exchange(Message { header, body: vec![0; bytes] }).map(drop)
        };
        // The end that began later waits less in one exchange and more in the next: two together take two latencies, at either end. The
        // first waits for the other end to begin.
        exchange(1)?;
        let mut seconds = |bytes: usize| {
            let started = Instant::now();
            exchange(bytes)?;
            exchange(bytes)?;
            Ok::<_, LinkError>(started.elapsed().as_secs_f64() / 2.0)
        };
        let mut least = |bytes: usize| {
            let mut times = (0..PROBES).map(|_| seconds(bytes));
            times.try_fold(f64::INFINITY, |least, next| Ok::<_, LinkError>(least.min(next?)))
        };
        let latency = least(1)?;
        let transfer = (least(PROBE_BYTES)? - latency).max(f64::MIN_POSITIVE);
        let latency = Duration::try_from_secs_f64(latency).unwrap_or_default();
        Ok(Self { latency, bytes_per_second: PROBE_BYTES as f64 / transfer })
    }
}

/// When messages arrive over a [`Profile`].
#[derive(Debug)]
struct Wire {
    profile: Profile,
    free_at: Instant,
}

impl Wire {
    fn new(profile: Profile) -> Self {
        Self { profile, free_at: Instant::now() }
    }

    /// When a message of `bytes` arrives that is sent at `now`: after those before it, at the link's bandwidth.
    fn arrival(&mut self, now: Instant, bytes: usize) -> Instant {
        let busy = Duration::try_from_secs_f64(bytes as f64 / self.profile.bytes_per_second).unwrap_or_default();
        self.free_at = self.free_at.max(now) + busy;
        self.free_at + self.profile.latency
    }
}

fn wait_until(time: Instant) {
    let left = time.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        sleep(left);
    }
}

/// A link within one process.
#[derive(Debug)]
pub struct ChannelLink {
    sender: Sender<(Instant, Message)>,
    receiver: Receiver<(Instant, Message)>,
    wire: Wire,
}

/// Two ends of a link within one process, over an emulated network.
pub fn channel_links(profile: Profile) -> [ChannelLink; 2] {
    let ((to_second, at_second), (to_first, at_first)) = (channel(), channel());
    [(to_second, at_first), (to_first, at_second)].map(|(sender, receiver)| ChannelLink {
        sender,
        receiver,
        wire: Wire::new(profile),
    })
}

impl Link for ChannelLink {
    fn exchange(&mut self, message: Message) -> Result<Message, LinkError> {
        let arrival = self.wire.arrival(Instant::now(), message.body_bytes());
        self.sender.send((arrival, message)).map_err(|_| LinkError::Gone)?;
        let (arrival, message) = self.receiver.recv().map_err(|_| LinkError::Gone)?;
        wait_until(arrival);
        Ok(message)
    }
}

/// A link over two halves of a stream, for instance of a `TcpStream` and its clone: both directions at once. A thread
/// writes, so that two servers that send much at once do not block each other. Dropping the link waits until what is
/// queued is written: set timeouts on the stream where the other server may hang.
#[derive(Debug)]
pub struct DuplexLink<S> {
    reader: S,
    /// `None` only while dropping.
    queue: Option<Sender<(Instant, Message)>>,
    writer: Option<JoinHandle<Result<(), WireError>>>,
    wire: Wire,
}

impl<S: Read> DuplexLink<S> {
    /// Reads from `reader` and writes to `writer`, over an emulated network on top of the real one.
    pub fn new(reader: S, mut writer: impl Write + Send + 'static, profile: Profile) -> Self {
        let (queue, messages) = channel::<(Instant, Message)>();
        let work = move || {
            for (arrival, message) in messages {
                wait_until(arrival);
                message.write_to(&mut writer)?;
            }
            Ok(())
        };
        Self { reader, queue: Some(queue), writer: Some(spawn(work)), wire: Wire::new(profile) }
    }
}

impl<S: Read> Link for DuplexLink<S> {
    fn exchange(&mut self, message: Message) -> Result<Message, LinkError> {
        let bytes = message.body_bytes();
        let arrival = self.wire.arrival(Instant::now(), bytes);
        self.queue.as_ref().and_then(|queue| queue.send((arrival, message)).ok()).ok_or(LinkError::Gone)?;
        Ok(Message::read_from(&mut self.reader, bytes as u64)?)
    }
}

impl<S> Drop for DuplexLink<S> {
    fn drop(&mut self) {
        // What is queued is still written: the other server may be waiting for the last message.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

/// A link over a stream that cannot be split, a TLS session for instance: one direction after the other, so that an
/// exchange takes a whole round trip.
#[derive(Debug)]
pub struct HalfDuplexLink<S> {
    stream: S,
    speaks_first: bool,
}

impl<S: Read + Write> HalfDuplexLink<S> {
    /// Exactly one of both ends speaks first.
    pub const fn new(stream: S, speaks_first: bool) -> Self {
        Self { stream, speaks_first }
    }
}

impl<S: Read + Write> Link for HalfDuplexLink<S> {
    fn exchange(&mut self, message: Message) -> Result<Message, LinkError> {
        if self.speaks_first {
            message.write_to(&mut self.stream)?;
        }
        let received = Message::read_from(&mut self.stream, message.body_bytes() as u64)?;
        if !self.speaks_first {
            message.write_to(&mut self.stream)?;
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_measured_from_both_ends() {
        let profile = Profile { latency: Duration::from_millis(8), bytes_per_second: 50e6 };
        let [mut left, mut right] = channel_links(profile);
        let (near, far) = std::thread::scope(|scope| {
            let far = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(3));
                Profile::measured(&mut right, Server::Second).unwrap()
            });
            (Profile::measured(&mut left, Server::First).unwrap(), far.join().unwrap())
        });
        for found in [near, far] {
            assert!((Duration::from_millis(8)..Duration::from_millis(20)).contains(&found.latency), "{found:?}");
            assert!((10e6..60e6).contains(&found.bytes_per_second), "{found:?}");
        }
    }

    #[test]
    fn messages_arrive_one_after_the_other() {
        let profile = Profile { latency: Duration::from_millis(5), bytes_per_second: 1e6 };
        let mut wire = Wire::new(profile);
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(wire.arrival(start, 3000), after(3 + 5));
        assert_eq!(wire.arrival(after(1), 2000), after(3 + 2 + 5), "the link is busy until then");
        assert_eq!(wire.arrival(after(20), 1000), after(20 + 1 + 5));
        assert_eq!(Wire::new(Profile::LOOPBACK).arrival(after(9), 1 << 30), after(9));
    }
}
