//! The channel with hostile clients: what they may cost, and that others are answered meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use asymflow_enclave::attest::{
    AttestedIdentity, Clock, Policy, SimulatedMeasurement, SimulatedQuoter, Verifier, client_config,
    simulated_collateral,
};
use asymflow_enclave::channel::{Channel, ChannelLimits, ChannelStats, Handler, Reply, Session};
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

const NOW: u64 = 1_800_000_000;

/// Says how many bytes came, and how many messages before.
struct Counter;

impl Handler for Counter {
    type Request = String;
    type Response = String;
    type State = u32;

    async fn handle(&self, session: &mut Session<u32>, request: String, body: Vec<u8>) -> Reply<String> {
        session.state += 1;
        let said = format!("{request} {} {}", body.len(), session.state);
        if request == "bye" { Reply::Last(said, Vec::new()) } else { Reply::Send(said, body) }
    }

    fn malformed(&self, error: &WireError) -> String {
        format!("refused: {error}")
    }
}

struct Server {
    address: SocketAddr,
    stats: Arc<ChannelStats>,
    verifier: Arc<Verifier>,
}

fn limits() -> ChannelLimits {
    ChannelLimits {
        message: Limits { header_bytes: 256, body_bytes: 1 << 20 },
        handshake: Duration::from_secs(5),
        transfer: Duration::from_millis(700),
        ..ChannelLimits::default()
    }
}

/// A channel on a thread of its own, for as long as the test runs.
fn serve(limits: ChannelLimits) -> Server {
    let quoter = SimulatedQuoter::new(SimulatedMeasurement::of_program(b"counter")).unwrap();
    let identity = AttestedIdentity::new(&quoter, b"counts").unwrap();
    let policy = Policy { insecure_accept_simulated: true, ..Policy::default() };
    let verifier = Arc::new(Verifier::new(policy, simulated_collateral(NOW).unwrap()).unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = Channel::bind("127.0.0.1:0", identity.server_config(), limits, Counter).await.unwrap();
            sender.send((channel.address().unwrap(), channel.stats())).unwrap();
            channel.run().await;
        });
    });
    let (address, stats) = receiver.recv().unwrap();
    Server { address, stats, verifier }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Server {
    fn connect(&self) -> Tls {
        let config = client_config(Arc::clone(&self.verifier), Clock::Fixed(NOW)).unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        StreamOwned::new(ClientConnection::new(config, name).unwrap(), tcp)
    }

    /// Waits until so many sessions have failed.
    fn await_failed(&self, failed: u64) {
        for _ in 0..2000 {
            if self.stats.failed() >= failed {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.stats.failed(), failed);
    }
}

fn ask(tls: &mut Tls, what: &str, body: &[u8]) -> Frame<String> {
    write_frame(tls, &what.to_owned(), body).unwrap();
    read_frame(tls, Limits::default()).unwrap()
}

/// The bytes of a frame.
fn frame(what: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &what.to_owned(), body).unwrap();
    bytes
}

#[test]
fn a_session_goes_from_message_to_message_and_ends_cleanly() {
    let server = serve(limits());
    let mut tls = server.connect();
    assert_eq!(ask(&mut tls, "one", &[7; 3]), Frame { header: "one 3 1".to_owned(), body: vec![7; 3] });
    assert_eq!(ask(&mut tls, "two", &vec![1; 1 << 20]).header, "two 1048576 2");
    assert_eq!(ask(&mut tls, "bye", &[]).header, "bye 0 3");
    assert_eq!(tls.read(&mut [0; 8]).unwrap(), 0, "a clean end of TLS");
    assert_eq!((server.stats.sessions(), server.stats.failed()), (1, 0));
}

#[test]
fn what_is_no_message_is_refused_in_words_and_ends_the_session() {
    let server = serve(limits());
    let refusal = |bytes: &[u8]| {
        let mut tls = server.connect();
        tls.write_all(bytes).unwrap();
        let said = read_frame::<String>(&mut tls, Limits::default()).unwrap().header;
        assert_eq!(tls.read(&mut [0; 8]).unwrap(), 0);
        said
    };
    assert!(refusal(b"GET / HTTP/1.1\r\nHost: enclave\r\n\r\n").contains("not a frame"));
    // Announced only: the refusal comes before a byte of the body.
    let mut huge = frame("huge", &[]);
    huge[10..18].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(refusal(&huge).contains("frame body of 1099511627776 bytes exceeds the limit of 1048576"));
    assert!(refusal(&frame(&"x".repeat(300), &[])).contains("frame header of"));
    let mut other = frame("version", &[]);
    other[4] = 9;
    assert!(refusal(&other).contains("frame version 9, expected 1"));
}

#[test]
fn who_is_slow_or_hangs_up_loses_its_session_and_nobody_elses() {
    let server = serve(limits());
    let mut friend = server.connect();
    assert_eq!(ask(&mut friend, "before", &[]).header, "before 0 1");
    let whole = frame("slow", &[5; 1000]);
    let mut slow = Vec::new();
    for part in [1, 10, 20, 500] {
        let mut tls = server.connect();
        tls.write_all(&whole[..part]).unwrap();
        slow.push(tls);
    }
    for part in [1, 10, 20, 500] {
        let mut tls = server.connect();
        tls.write_all(&whole[..part]).unwrap();
        // The connection is gone in the middle of a message.
        drop(tls);
    }
    assert_eq!(ask(&mut friend, "meanwhile", &[]).header, "meanwhile 0 2");
    server.await_failed(8);
    for mut tls in slow {
        assert!(tls.read(&mut [0; 8]).is_err() || tls.read(&mut [0; 8]).unwrap() == 0, "shown out");
    }
    assert_eq!(ask(&mut friend, "after", &[]).header, "after 0 3");
}

#[test]
fn more_sessions_than_allowed_are_closed_at_once() {
    let server = serve(ChannelLimits { sessions: 2, ..limits() });
    let (mut one, mut two) = (server.connect(), server.connect());
    assert_eq!((ask(&mut one, "a", &[]).header, ask(&mut two, "b", &[]).header), ("a 0 1".into(), "b 0 1".into()));
    let mut three = server.connect();
    assert!(three.write_all(b"x").is_err() || three.read(&mut [0; 8]).is_err());
    assert_eq!(server.stats.refused(), 1);
    drop(one);
    server.await_failed(1);
    assert_eq!(ask(&mut server.connect(), "c", &[]).header, "c 0 1");
}

/// Bodies held in memory have a limit over all sessions. Who announces much and sends little holds little of it.
#[test]
fn announcements_hold_no_memory_and_bodies_at_most_their_share() {
    let patient = Duration::from_secs(4);
    let server = serve(ChannelLimits { held_bytes: 1 << 20, transfer: patient, ..limits() });
    let mut announced = Vec::new();
    for _ in 0..8 {
        let mut tls = server.connect();
        // A mebibyte announced, a kibibyte sent.
        let whole = frame("much", &vec![0; 1 << 20]);
        tls.write_all(&whole[..1024]).unwrap();
        announced.push(tls);
    }
    let mut friend = server.connect();
    assert_eq!(ask(&mut friend, "whole", &vec![0; 900 << 10]).header, "whole 921600 1");
    assert_eq!(server.stats.failed(), 0, "they were still there");
    server.await_failed(8);
    // Held to the limit by two that send nearly all; a third waits for its share, and they are shown out.
    let mut heavy: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for tls in &mut heavy {
        tls.write_all(&frame("heavy", &vec![0; 600 << 10])[..520 << 10]).unwrap();
    }
    server.await_failed(10);
    assert_eq!(ask(&mut friend, "again", &vec![0; 900 << 10]).header, "again 921600 2");
}

/// Who sends nearly all of a body and stops holds its memory only for as long as nobody else needs it.
#[test]
fn bodies_that_do_not_come_whole_keep_nobody_waiting() {
    let patient = Duration::from_secs(60);
    let server = serve(ChannelLimits { held_bytes: 2 << 20, transfer: patient, ..limits() });
    let mut heavy: Vec<_> = (0..6).map(|_| server.connect()).collect();
    for tls in &mut heavy {
        // All but the last byte of a mebibyte: two of them hold all there is.
        let whole = frame("heavy", &vec![0; 1 << 20]);
        tls.write_all(&whole[..whole.len() - 1]).unwrap();
    }
    let start = std::time::Instant::now();
    let mut friend = server.connect();
    for count in 1..=20 {
        assert_eq!(ask(&mut friend, "whole", &vec![0; 1 << 20]).header, format!("whole 1048576 {count}"));
    }
    assert!(start.elapsed() < patient / 2, "{:?}", start.elapsed());
    assert!(server.stats.failed() >= 4, "the oldest were shown out: {}", server.stats.failed());
    // The last to come was in nobody's way, and is answered when it is done.
    let mut last = heavy.pop().unwrap();
    last.write_all(&[0]).unwrap();
    let answered = read_frame::<String>(&mut last, Limits::default()).map(|frame| frame.header);
    assert!(answered.is_ok_and(|header| header == "heavy 1048576 1") || server.stats.failed() == 6);
}
