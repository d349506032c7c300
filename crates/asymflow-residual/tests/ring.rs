//! Bodies through shared memory: the same answers, everything in sight of the tap, and hostile peers refused.
#![expect(clippy::type_complexity, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::conformance::{Part, check};
use asymflow_residual::{
    ResidualBackend,
    backend::{Batch, CollectError, ConvUnit, Pass, ResidualModel, ResidualTraining, Unit, UnitId},
    burn_backend::{BurnBackend, DeviceChoice},
    client::RingLayout,
    client::{Notify, PROTOCOL_VERSION, Protection, Tap, Token, Transport, WorkerClient, WorkerConfig},
    serve::RingName,
    serve::{ServeConfig, ServeLimits, Worker, WorkerHandle},
};
use asymflow_wire::{Frame, Limits, read_frame, write_frame};
use asymflow_zoo::network::Shape;
use rand::SeedableRng;

const ID: UnitId = UnitId(0);
/// Every body that is not empty takes a slot.
const LAYOUT: RingLayout = RingLayout { slots: 2, slot_bytes: 1 << 20, threshold_bytes: 1 };
/// Where the bodies of slot 0 to the worker and to the client stand.
const TO_WORKER: u64 = 4096;
const TO_CLIENT: u64 = 4096 + 2 * (4096 + (1 << 20));

#[derive(Clone, Default)]
struct Seen {
    bytes: Arc<Mutex<Vec<u8>>>,
    notices: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    /// `config` with bodies through a ring, watched.
    fn on(&self, config: WorkerConfig) -> WorkerConfig {
        let (bytes, notices) = (Arc::clone(&self.bytes), Arc::clone(&self.notices));
        WorkerConfig {
            transport: Transport::SharedMemory(LAYOUT),
            tap: Some(Tap::new(move |run| bytes.lock().unwrap().extend_from_slice(run))),
            notify: Some(Notify::new(move |text| notices.lock().unwrap().push(text.to_owned()))),
            ..config
        }
    }

    /// Header and body of every frame that the tap saw.
    fn frames(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let bytes = self.bytes.lock().unwrap();
        let (mut frames, mut rest) = (Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let header = u32::from_le_bytes(rest[6..10].try_into().unwrap()) as usize;
            let body = u64::from_le_bytes(rest[10..18].try_into().unwrap()) as usize;
            frames.push((rest[18..18 + header].to_vec(), rest[18 + header..18 + header + body].to_vec()));
            rest = &rest[18 + header + body..];
        }
        frames
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.frames().into_iter().map(|(_, body)| body).filter(|body| !body.is_empty()).collect()
    }

    fn notices(&self) -> Vec<String> {
        self.notices.lock().unwrap().clone()
    }
}

fn start(plaintext: bool, ring_name: Option<RingName>, limits: ServeLimits) -> WorkerHandle {
    let backend = Arc::new(BurnBackend::new(DeviceChoice::Flex));
    let config =
        ServeConfig { token: Token::new("right"), insecure_plaintext: plaintext, identity: None, ring_name, limits };
    Worker::bind("127.0.0.1:0", backend, config).unwrap().start().unwrap()
}

fn config(worker: &WorkerHandle) -> WorkerConfig {
    let protection = worker.fingerprint().map_or(Protection::InsecurePlaintext, Protection::Pinned);
    WorkerConfig::new(worker.address().to_string(), Token::new("right"), protection)
}

fn fixed(what: &str) -> RingName {
    format!("asymflow-ring-test-{what}-{}", std::process::id()).parse().unwrap()
}

fn path(name: &RingName) -> PathBuf {
    PathBuf::from(name.to_string())
}

fn model() -> ResidualModel {
    let unit = ConvUnit { input: Shape::new(1, 4, 4), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    ResidualModel { units: vec![Unit::Conv(unit)] }
}

fn released(values: Vec<f32>) -> Released<Payload> {
    let mut door = Door::new(RecordAccountant::new(1), rand::rngs::StdRng::seed_from_u64(1));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).unwrap();
    let source = Source { layer: "unit", flow: Flow::Residual };
    door.release(&gate, source, &[0], Private::new(values)).unwrap().encode(Precision::F32)
}

/// One forward pass of an identity convolution.
fn works(session: &mut dyn ResidualTraining) {
    session.set_weights(ID, &[1.0]).unwrap();
    let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let ticket = session.submit(ID, released(x.clone()), Pass::Inference).unwrap();
    assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(x));
}

fn opened(config: WorkerConfig) -> Box<dyn ResidualTraining> {
    WorkerClient::new(config).open(&model()).unwrap()
}

#[test]
fn a_worker_behind_a_ring_conforms() {
    for plaintext in [false, true] {
        let worker = start(plaintext, None, ServeLimits::default());
        let seen = Seen::default();
        let client = WorkerClient::new(seen.on(config(&worker)));
        check(&client, &Part::ALL).unwrap();
        assert!(seen.notices().is_empty());
    }
}

#[test]
fn counters_mean_the_same_with_a_ring_and_without() {
    let worker = start(true, None, ServeLimits::default());
    let cost = |config| {
        let mut session = opened(config);
        for _ in 0..3 {
            works(session.as_mut());
        }
        let stats = session.stats();
        (stats.bytes_to_worker, stats.bytes_from_worker)
    };
    let ((tcp_to, tcp_from), (to, from)) = (cost(config(&worker)), cost(Seen::default().on(config(&worker))));
    // The bodies and a few bytes more a frame, which say where each lies.
    assert!(tcp_to < to && to < tcp_to + 6 * 8, "{tcp_to} {to}");
    assert!(tcp_from < from && from < tcp_from + 6 * 8, "{tcp_from} {from}");
}

/// More requests than slots, and bodies that do and do not fit into one.
#[test]
fn requests_under_way_are_answered_each_with_its_own() {
    let worker = start(true, None, ServeLimits::default());
    let layout = RingLayout { slot_bytes: 4096, ..LAYOUT };
    let transport = Transport::SharedMemory(layout);
    let mut session = opened(WorkerConfig { transport, ..config(&worker) });
    session.set_weights(ID, &[2.0]).unwrap();
    let x = |i: usize| -> Vec<f32> { (0..16 * [1, 64, 65, 4096][i % 4]).map(|k| (i * 7 + k % 101) as f32).collect() };
    let mut tickets: Vec<_> =
        (0..12).map(|i| (i, session.submit(ID, released(x(i)), Pass::Inference).unwrap())).collect();
    tickets.rotate_left(5);
    for (i, ticket) in tickets {
        let expected = x(i).into_iter().map(|v| 2.0 * v).collect();
        assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(expected), "{i}");
    }
}

#[test]
fn as_many_requests_are_under_way_as_the_ring_has_slots() {
    let (config, thread) = by_hand(fixed("under-way"), 0o600, |mut hand, mapped| {
        assert!(mapped);
        // The second comes before the first is answered, and the third does not.
        assert!(hand.request().is_some() && hand.request().is_some());
        hand.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(hand.stream.peek(&mut [0]).is_err());
        hand.stream.set_read_timeout(None).unwrap();
        hand.answer(Some((1, 1, 64)), (1, 64), &[]);
        assert!(hand.request().is_some());
        let values: Vec<u8> = (0..16).flat_map(|_| 2.0f32.to_le_bytes()).collect();
        hand.answer(None, (0, 0), &values);
        hand.answer(None, (0, 0), &values);
    });
    let mut session = opened(Seen::default().on(config));
    let mut submit = || session.submit(ID, released(vec![1.0; 16]), Pass::Inference).unwrap();
    let tickets = [submit(), submit(), submit()];
    for ticket in tickets {
        assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(vec![2.0; 16]));
    }
    drop(session);
    thread.join().unwrap();
}

/// A worker written here, which reads the ring through its file: what it got is what the tap saw, to the byte.
struct ByHand {
    stream: TcpStream,
    ring: File,
}

impl ByHand {
    /// Greets, opens, and offers a ring that the client is expected to take or to refuse.
    fn accept(listener: &TcpListener, name: &RingName, mode: u32) -> (Self, bool) {
        let (mut stream, _) = listener.accept().unwrap();
        let _: Frame<(u16, Vec<u8>)> = read_frame(&mut stream, Limits::default()).unwrap();
        write_frame(&mut stream, &(0u32, "by hand", false), &[]).unwrap();
        let open: Frame<(u32, Option<(u32, u64, u64)>)> = read_frame(&mut stream, Limits::default()).unwrap();
        assert_eq!(open.header.1, Some((LAYOUT.slots, LAYOUT.slot_bytes, LAYOUT.threshold_bytes)));
        let mut options = OpenOptions::new();
        let ring = options.read(true).write(true).create_new(true).mode(mode).open(path(name)).unwrap();
        ring.set_len(LAYOUT.bytes().unwrap()).unwrap();
        ring.write_at(&[9; 32], 0).unwrap();
        write_frame(&mut stream, &(4u32, name.clone(), LAYOUT.slot_bytes, [9u8; 32]), &[]).unwrap();
        let mapped: Frame<bool> = read_frame(&mut stream, Limits::default()).unwrap();
        fs::remove_file(path(name)).unwrap();
        (Self { stream, ring }, mapped.header)
    }

    /// Header behind the place, and the body wherever it was.
    fn request(&mut self) -> Option<(u32, Vec<u8>)> {
        let frame: Frame<(Option<(u32, u64, u64)>, u32)> = read_frame(&mut self.stream, Limits::default()).ok()?;
        let (place, kind) = frame.header;
        let Some((slot, _, bytes)) = place else { return Some((kind, frame.body)) };
        assert!(frame.body.is_empty());
        let mut body = vec![0; bytes as usize];
        let at = TO_WORKER + u64::from(slot) * (4096 + LAYOUT.slot_bytes) + 4096;
        self.ring.read_exact_at(&mut body, at).unwrap();
        Some((kind, body))
    }

    /// `Done` with 16 values in f32, in slot `place.0` as the slot says `sequence` and `bytes`.
    fn answer(&mut self, place: Option<(u32, u64, u64)>, said: (u64, u64), inline: &[u8]) {
        let values: Vec<u8> = (0..16).flat_map(|_| 2.0f32.to_le_bytes()).collect();
        for slot in 0..u64::from(LAYOUT.slots) {
            let at = TO_CLIENT + slot * (4096 + LAYOUT.slot_bytes);
            self.ring.write_at(&said.0.to_le_bytes(), at).unwrap();
            self.ring.write_at(&said.1.to_le_bytes(), at + 8).unwrap();
            self.ring.write_at(&values, at + 4096).unwrap();
        }
        write_frame(&mut self.stream, &(place, (0u32, 0.0f64, 16u64, 0u32)), inline).unwrap();
    }
}

fn by_hand<T: Send + 'static>(
    name: RingName,
    mode: u32,
    play: impl FnOnce(ByHand, bool) -> T + Send + 'static,
) -> (WorkerConfig, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (hand, mapped) = ByHand::accept(&listener, &name, mode);
        play(hand, mapped)
    });
    let mut config = WorkerConfig::new(address, Token::new("right"), Protection::InsecurePlaintext);
    config.answer_timeout = Duration::from_secs(5);
    (config, thread)
}

#[test]
fn the_tap_sees_every_body_in_the_ring() {
    let seen = Seen::default();
    let (config, thread) = by_hand(fixed("tap"), 0o600, |mut hand, mapped| {
        assert!(mapped);
        let mut got = Vec::new();
        while let Some((kind, body)) = hand.request() {
            got.push(body);
            let n = got.len() as u64;
            match kind {
                0 => hand.answer(Some((1, 1, 64)), (1, 64), &[]),
                _ => drop(write_frame(&mut hand.stream, &(None::<u32>, (0u32, 0.0f64, 0u64, 0u32)), &[]).unwrap()),
            }
            assert!(n < 100);
        }
        got
    });
    let mut session = opened(seen.on(config));
    let x: Vec<f32> = (0..16).map(|i| i as f32 + 0.5).collect();
    session.set_weights(ID, &[1.5]).unwrap();
    let ticket = session.submit(ID, released(x.clone()), Pass::Inference).unwrap();
    assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(vec![2.0; 16]));
    drop(session);
    let got = thread.join().unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(got, [bytes(&[1.5]), bytes(&x)], "the bodies came through the ring");
    let frames = seen.frames();
    // Hello; the model; whether it is mapped; then each body before the frame that announces it.
    let bodies: Vec<&[u8]> = frames.iter().skip(3).map(|(_, body)| body.as_slice()).collect();
    assert_eq!(bodies, [&got[0][..], &[], &got[1], &[]]);
    assert_eq!(frames[3].0, [1, 1, 4], "slot, sequence and length of the first");
    assert_eq!(&frames[4].0[..4], [1, 1, 1, 4], "and the same in the frame that announces it");
}

/// The same computation sends the same bodies, whichever way they go.
#[test]
fn with_a_ring_the_tap_sees_what_it_sees_without() {
    let worker = start(false, None, ServeLimits::default());
    let [ring, tcp] = [Seen::default(), Seen::default()];
    check(&WorkerClient::new(ring.on(config(&worker))), &[Part::Convolutions]).unwrap();
    check(
        &WorkerClient::new(WorkerConfig { transport: Transport::Tcp, ..tcp.on(config(&worker)) }),
        &[Part::Convolutions],
    )
    .unwrap();
    assert!(tcp.bodies().len() > 10);
    assert_eq!(ring.bodies(), tcp.bodies());
    assert!(ring.frames().len() > tcp.frames().len(), "the ring was used");
}

#[test]
fn a_hostile_worker_is_malformed() {
    let cases: [(&str, (u32, u64, u64), (u64, u64), &[u8], &str); 7] = [
        ("slot", (2, 1, 64), (1, 64), &[], "slot 2 of a ring of 2"),
        ("slots", (u32::MAX, 1, 64), (1, 64), &[], "slot 4294967295 of a ring of 2"),
        ("length", (1, 1, u64::MAX), (1, u64::MAX), &[], "exceeds the limit of 64"),
        ("sequence", (1, 7, 64), (7, 64), &[], "slot sequence 7, expected 1"),
        ("slot's sequence", (1, 1, 64), (2, 64), &[], "a slot says sequence 2 and 64 bytes"),
        ("slot's length", (1, 1, 64), (1, 1 << 60), &[], "a slot says sequence 1 and 1152921504606846976 bytes"),
        ("both", (1, 1, 64), (1, 64), &[0; 64], "a body of 64 bytes beside one in a slot"),
    ];
    for (i, (what, place, said, inline, reason)) in cases.into_iter().enumerate() {
        let (config, thread) = by_hand(fixed(&format!("false-{i}")), 0o600, move |mut hand, _| {
            hand.request().unwrap();
            hand.answer(Some(place), said, inline);
            let _ = hand.request();
        });
        let mut session = opened(Seen::default().on(config));
        let ticket = session.submit(ID, released(vec![0.0; 16]), Pass::Inference).unwrap();
        let error = session.collect(ticket).unwrap_err();
        assert!(matches!(error, CollectError::Malformed { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
        drop(session);
        thread.join().unwrap();
    }
}

/// A session opened by hand up to its ring, which is mapped through its file.
fn raw(worker: &WorkerHandle, name: &RingName) -> (TcpStream, File) {
    let mut stream = TcpStream::connect(worker.address()).unwrap();
    write_frame(&mut stream, &(PROTOCOL_VERSION, b"right".to_vec()), &[]).unwrap();
    let _: Frame<u32> = read_frame(&mut stream, Limits::default()).unwrap();
    let wish = (LAYOUT.slots, LAYOUT.slot_bytes, LAYOUT.threshold_bytes);
    write_frame(&mut stream, &(0u32, Some(wish)), &serde_json::to_vec(&model()).unwrap()).unwrap();
    let offer: Frame<(u32, String)> = read_frame(&mut stream, Limits::default()).unwrap();
    assert_eq!(offer.header.0, 4);
    let ring = OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
    write_frame(&mut stream, &true, &[]).unwrap();
    (stream, ring)
}

#[test]
fn a_hostile_client_is_told_and_the_worker_lives() {
    let name = fixed("hostile");
    let worker = start(true, Some(name.clone()), ServeLimits::default());
    let cases: [((u32, u64, u64), (u64, u64), &[u8], &str); 6] = [
        ((2, 1, 4), (1, 4), &[], "slot 2 of a ring of 2"),
        ((0, 1, (1 << 20) + 1), (1, (1 << 20) + 1), &[], "a body of 1048577 bytes in a slot of 1048576"),
        ((0, 0, 4), (0, 4), &[], "slot sequence 0, expected 1"),
        ((0, u64::MAX, 4), (u64::MAX, 4), &[], "slot sequence 18446744073709551615, expected 1"),
        ((0, 1, 4), (1, 5), &[], "a slot says sequence 1 and 5 bytes"),
        ((0, 1, 4), (1, 4), &[0; 4], "a body of 4 bytes beside one in a slot"),
    ];
    for (place, said, inline, reason) in cases {
        let (mut stream, ring) = raw(&worker, &name);
        ring.write_at(&said.0.to_le_bytes(), TO_WORKER).unwrap();
        ring.write_at(&said.1.to_le_bytes(), TO_WORKER + 8).unwrap();
        // SetWeights of unit 0.
        write_frame(&mut stream, &(Some(place), (2u32, 0u32)), inline).unwrap();
        let answer: Frame<(Option<u32>, u32, String)> = read_frame(&mut stream, Limits::default()).unwrap();
        assert_eq!((answer.header.0, answer.header.1), (None, 2), "lost");
        assert!(answer.header.2.starts_with(reason), "{}", answer.header.2);
        works(opened(Seen::default().on(config(&worker))).as_mut());
    }
    // A length beyond every limit ends the session like one on the connection.
    let (mut stream, _ring) = raw(&worker, &name);
    write_frame(&mut stream, &(Some((0u32, 1u64, u64::MAX)), (2u32, 0u32)), &[]).unwrap();
    assert!(read_frame::<u32>(&mut stream, Limits::default()).is_err());
    // A client that leaves in the middle of the opening blocks no other.
    let mut stream = TcpStream::connect(worker.address()).unwrap();
    write_frame(&mut stream, &(PROTOCOL_VERSION, b"right".to_vec()), &[]).unwrap();
    let wish = Some((LAYOUT.slots, LAYOUT.slot_bytes, LAYOUT.threshold_bytes));
    write_frame(&mut stream, &(0u32, wish), &serde_json::to_vec(&model()).unwrap()).unwrap();
    drop(stream);
    let seen = Seen::default();
    works(opened(seen.on(config(&worker))).as_mut());
    assert!(seen.notices().is_empty());
    // The ring of the one who left may be made last; it goes when his end is seen.
    let is_gone = |_| {
        std::thread::sleep(Duration::from_millis(10));
        !path(&name).exists()
    };
    assert!((0..500).any(is_gone));
}

#[test]
fn a_killed_worker_is_lost_and_a_new_session_has_a_new_ring() {
    let name = fixed("killed");
    let worker = start(false, Some(name.clone()), ServeLimits::default());
    let mut session = opened(Seen::default().on(config(&worker)));
    works(session.as_mut());
    drop(worker);
    let lost = match session.submit(ID, released(vec![0.0; 16]), Pass::Inference) {
        Ok(ticket) => matches!(session.collect(ticket), Err(CollectError::Lost { .. })),
        Err(_) => true,
    };
    assert!(lost);
    // One that was killed in the middle of an opening leaves its file.
    fs::write(path(&name), b"left behind").unwrap();
    let worker = start(false, Some(name.clone()), ServeLimits::default());
    let seen = Seen::default();
    let mut sessions = [opened(seen.on(config(&worker))), opened(seen.on(config(&worker)))];
    sessions.iter_mut().for_each(|session| works(session.as_mut()));
    assert!(seen.notices().is_empty(), "one name serves several sessions");
    assert!(seen.frames().iter().any(|(header, _)| header == &[1, 1, 4]), "the ring was used");
    assert!(!path(&name).exists());
}

#[test]
fn without_a_ring_the_session_goes_on_and_says_why() {
    let seen = Seen::default();
    let worker = start(false, None, ServeLimits { ring_bytes: 0, ..ServeLimits::default() });
    works(opened(seen.on(config(&worker))).as_mut());
    let [notice] = &seen.notices()[..] else { unreachable!("one notice") };
    assert!(notice.ends_with("bodies go over TCP: a ring of 4214784 bytes exceeds the limit of 0"), "{notice}");

    // Somebody else may read this one.
    let seen = Seen::default();
    let (config, thread) = by_hand(fixed("mode"), 0o644, |mut hand, mapped| {
        assert!(!mapped);
        let frame: Frame<u32> = read_frame(&mut hand.stream, Limits::default()).unwrap();
        frame.body
    });
    let mut session = opened(seen.on(config));
    session.set_weights(ID, &[1.5]).unwrap();
    assert_eq!(thread.join().unwrap(), 1.5f32.to_le_bytes(), "the body came on the connection");
    assert!(seen.notices()[0].ends_with("the ring's file has mode 644, expected 600"), "{:?}", seen.notices());
}

#[test]
fn a_ring_that_was_not_asked_for_is_refused() {
    let name = fixed("unasked");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _: Frame<(u16, Vec<u8>)> = read_frame(&mut stream, Limits::default()).unwrap();
        write_frame(&mut stream, &(0u32, "by hand", false), &[]).unwrap();
        let _: Frame<u32> = read_frame(&mut stream, Limits::default()).unwrap();
        write_frame(&mut stream, &(4u32, name, LAYOUT.slot_bytes, [9u8; 32]), &[]).unwrap();
    });
    let config = WorkerConfig::new(address, Token::new("right"), Protection::InsecurePlaintext);
    let error = WorkerClient::new(config).open(&model()).map(|_| ()).unwrap_err();
    assert!(error.to_string().ends_with("it answers what was not asked"), "{error}");
    thread.join().unwrap();
}
