//! What goes wrong is the right error, at once, and the worker lives on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualModel, ResidualTraining, SubmitError,
        Unit, UnitId,
    },
    burn_backend::{BurnBackend, DeviceChoice},
    client::{PROTOCOL_VERSION, Protection, Tap, Token, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker, WorkerHandle},
};
use asymflow_wire::tls::Fingerprint;
use asymflow_wire::{Frame, Limits, read_frame, write_frame};
use asymflow_zoo::{
    Network,
    network::{Layer, Shape},
};
use rand::SeedableRng;

const ID: UnitId = UnitId(0);

fn start(limits: ServeLimits, plaintext: bool) -> WorkerHandle {
    let config = ServeConfig {
        token: Token::new("right"),
        insecure_plaintext: plaintext,
        identity: None,
        ring_name: None,
        limits,
    };
    let backend = Arc::new(BurnBackend::new(DeviceChoice::Flex));
    Worker::bind("127.0.0.1:0", backend, config).unwrap().start().unwrap()
}

fn config(worker: &WorkerHandle) -> WorkerConfig {
    let protection = worker.fingerprint().map_or(Protection::InsecurePlaintext, Protection::Pinned);
    WorkerConfig::new(worker.address().to_string(), Token::new("right"), protection)
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

fn opened(config: WorkerConfig) -> Result<Box<dyn ResidualTraining>, OpenError> {
    WorkerClient::new(config).open(&model())
}

#[test]
fn a_killed_worker_is_lost_and_a_new_session_works() {
    for plaintext in [false, true] {
        let worker = start(ServeLimits::default(), plaintext);
        let mut session = opened(config(&worker)).unwrap();
        works(session.as_mut());
        drop(worker);
        // The loss shows at the submission or at the collection, whichever comes first after it.
        let lost = match session.submit(ID, released(vec![0.0; 16]), Pass::Inference) {
            Ok(ticket) => matches!(session.collect(ticket), Err(CollectError::Lost { .. })),
            Err(error) => matches!(error, SubmitError::Lost { .. }),
        };
        assert!(lost);
        let again = session.submit(ID, released(vec![0.0; 16]), Pass::Inference);
        assert!(matches!(again, Err(SubmitError::Lost { .. })), "{again:?}");
        assert!(matches!(session.weights(ID), Err(CollectError::Lost { .. })));
        let worker = start(ServeLimits::default(), plaintext);
        works(opened(config(&worker)).unwrap().as_mut());
    }
}

#[test]
fn a_wrong_token_is_refused() {
    let worker = start(ServeLimits::default(), false);
    for wrong in ["wrong", "", "righ", "right!"] {
        let config = WorkerConfig { token: Token::new(wrong), ..config(&worker) };
        let refused = opened(config.clone()).map(|_| ()).unwrap_err();
        assert!(matches!(refused, OpenError::Token { .. }), "{refused:?}");
        assert!(matches!(WorkerClient::new(config).probe(), Availability::Missing { .. }));
    }
    works(opened(config(&worker)).unwrap().as_mut());
}

#[test]
fn a_token_does_not_show() {
    let worker = start(ServeLimits::default(), false);
    assert!(!format!("{:?}", config(&worker)).contains("right"));
}

#[test]
fn another_certificate_is_refused_before_the_token_is_sent() {
    let worker = start(ServeLimits::default(), false);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let protection = Protection::Pinned(Fingerprint::of(b"another"));
    let tap = Some(Tap::new(move |bytes| sink.lock().unwrap().extend_from_slice(bytes)));
    let refused = opened(WorkerConfig { protection, ..config(&worker) }).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenError::Certificate { .. }), "{refused:?}");
    works(opened(WorkerConfig { tap, ..config(&worker) }).unwrap().as_mut());
    let seen = seen.lock().unwrap();
    assert!(seen.windows(5).any(|window| window == b"right"), "the tap sees plaintext");
    let number = 7.0f32.to_le_bytes();
    assert!(seen.windows(4).any(|window| window == number), "the tap sees tensors");
}

#[test]
fn plaintext_and_tls_do_not_talk() {
    let plain = start(ServeLimits { hello_timeout: Duration::from_millis(300), ..ServeLimits::default() }, true);
    let pinned = Protection::Pinned(Fingerprint::of(b"any"));
    assert!(opened(WorkerConfig { protection: pinned, ..config(&plain) }).is_err());
    let tls = start(ServeLimits { hello_timeout: Duration::from_millis(300), ..ServeLimits::default() }, false);
    assert!(opened(WorkerConfig { protection: Protection::InsecurePlaintext, ..config(&tls) }).is_err());
    works(opened(config(&tls)).unwrap().as_mut());
}

#[test]
fn nobody_there_is_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [free.to_string(), "no colon".to_owned(), "127.0.0.1:99999".to_owned()] {
        let config = WorkerConfig::new(address, Token::new("right"), Protection::InsecurePlaintext);
        let error = opened(config).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error:?}");
    }
}

#[test]
fn all_sessions_taken_is_said() {
    let worker = start(ServeLimits { sessions: 1, ..ServeLimits::default() }, false);
    let mut first = opened(config(&worker)).unwrap();
    let second = opened(config(&worker)).map(|_| ()).unwrap_err();
    assert!(second.to_string().contains("sessions are taken"), "{second}");
    works(first.as_mut());
}

/// What a false worker answers after the handshake.
enum Fake {
    Silence,
    Bytes(Vec<u8>),
}

/// A worker that greets, opens, and then answers the first request in its own way. Field orders and variant
/// numbers are those of the protocol, written out so that a change of the protocol is noticed here.
fn fake(answer: Fake) -> WorkerConfig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _: Frame<(u16, Vec<u8>)> = read_frame(&mut stream, Limits::default()).unwrap();
        write_frame(&mut stream, &(0u32, "fake", false), &[]).unwrap();
        let _: Frame<u32> = read_frame(&mut stream, Limits::default()).unwrap();
        write_frame(&mut stream, &0u32, &[]).unwrap();
        let _: Frame<u32> = read_frame(&mut stream, Limits::default()).unwrap();
        if let Fake::Bytes(bytes) = answer {
            stream.write_all(&bytes).unwrap();
        }
        // Stays until the client hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut config = WorkerConfig::new(address.to_string(), Token::new("right"), Protection::InsecurePlaintext);
    config.answer_timeout = Duration::from_millis(500);
    config
}

/// `Done` with these busy seconds, this number of values in f32, and a body.
fn done(busy_seconds: f64, values: u64, body: &[f32]) -> Vec<u8> {
    let body: Vec<u8> = body.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &(0u32, busy_seconds, values, 0u32), &body).unwrap();
    bytes
}

fn collected(answer: Fake) -> Result<Batch, CollectError> {
    let mut session = opened(fake(answer)).unwrap();
    let ticket = session.submit(ID, released(vec![0.0; 16]), Pass::Inference).unwrap();
    session.collect(ticket)
}

#[test]
fn silence_is_a_timeout() {
    let start = Instant::now();
    let error = collected(Fake::Silence).unwrap_err();
    assert!(matches!(&error, CollectError::Lost { reason } if reason == "no answer within 0.5 s"), "{error:?}");
    assert!(start.elapsed() >= Duration::from_millis(500));
}

#[test]
fn the_false_worker_is_believed_when_it_answers_well() {
    assert_eq!(collected(Fake::Bytes(done(0.25, 16, &[2.0; 16]))).unwrap(), Batch::Outputs(vec![2.0; 16]));
}

#[test]
fn malformed_answers_are_malformed() {
    let mut flipped = done(0.0, 16, &[0.0; 16]);
    flipped[0] ^= 1;
    let mut unknown = Vec::new();
    write_frame(&mut unknown, &77u32, &[]).unwrap();
    let answers = [
        ("fewer values", done(0.0, 15, &[0.0; 15])),
        ("more values", done(0.0, 17, &[0.0; 16])),
        ("a short body", done(0.0, 16, &[0.0; 15])),
        ("an oversized body", done(0.0, 16, &[0.0; 17])),
        ("busy seconds not finite", done(f64::NAN, 16, &[0.0; 16])),
        ("negative busy seconds", done(-1.0, 16, &[0.0; 16])),
        ("no frame", flipped),
        ("no known header", unknown),
    ];
    for (what, bytes) in answers {
        let error = collected(Fake::Bytes(bytes)).unwrap_err();
        assert!(matches!(error, CollectError::Malformed { .. }), "{what}: {error:?}");
    }
}

#[test]
fn a_failure_is_told_and_a_lost_device_ends_the_session() {
    for (variant, expected) in [(1u32, "Failed"), (2, "Lost"), (3, "NonFinite")] {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &(variant, "out of\nmemory"), &[]).unwrap();
        let error = collected(Fake::Bytes(bytes)).unwrap_err();
        assert_eq!(format!("{error:?}"), format!("{expected} {{ reason: \"out of memory\" }}"));
    }
}

#[test]
fn garbage_does_not_end_the_worker() {
    for plaintext in [false, true] {
        let worker = start(ServeLimits::default(), plaintext);
        let mut whole = Vec::new();
        write_frame(&mut whole, &(PROTOCOL_VERSION, b"right".to_vec()), &[]).unwrap();
        let mut lying = whole.clone();
        lying[10..18].copy_from_slice(&u64::MAX.to_le_bytes());
        let oversize = [whole.clone(), whole.clone()].concat();
        let garbage: [&[u8]; 6] = [&[], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &whole[..9], &lying, &oversize];
        for bytes in garbage {
            let mut stream = TcpStream::connect(worker.address()).unwrap();
            // The worker may hang up in the middle.
            let _ = stream.write_all(bytes);
        }
        works(opened(config(&worker)).unwrap().as_mut());
    }
}

/// Opens a session by hand and returns the worker's answer to `model`.
fn raw_open(worker: &WorkerHandle, model: &[u8]) -> Option<u32> {
    let mut stream = TcpStream::connect(worker.address()).unwrap();
    write_frame(&mut stream, &(PROTOCOL_VERSION, b"right".to_vec()), &[]).unwrap();
    let _: Frame<u32> = read_frame(&mut stream, Limits::default()).unwrap();
    write_frame(&mut stream, &(0u32, None::<u32>), model).ok()?;
    read_frame(&mut stream, Limits::default()).ok().map(|frame: Frame<u32>| frame.header)
}

#[test]
fn hostile_models_are_refused() {
    let worker = start(ServeLimits::default(), true);
    let nested = |depth: usize| {
        let open = r#"{"Residual":{"main":["#.repeat(depth);
        let close = r#"],"shortcut":[]}}"#.repeat(depth);
        let network = format!(
            r#"{{"name":"","input":{{"channels":1,"height":1,"width":1}},"classes":1,"layers":[{open}"Relu"{close}]}}"#
        );
        format!(r#"{{"units":[{{"Network":{network}}}]}}"#)
    };
    assert_eq!(raw_open(&worker, nested(2).as_bytes()), Some(0), "the form of the model is right");
    assert_eq!(raw_open(&worker, nested(10_000).as_bytes()), Some(2), "deep nesting");
    assert_eq!(raw_open(&worker, b"{"), Some(2));
    let convolutions = |channels: &str, units: usize| {
        let unit = format!(
            r#"{{"Conv":{{"input":{{"channels":{channels},"height":1,"width":1}},"out_channels":25000,"kernel":1,"stride":1,"padding":0}}}}"#
        );
        raw_open(&worker, format!(r#"{{"units":[{}]}}"#, vec![unit; units].join(",")).as_bytes())
    };
    assert_eq!(convolutions("18446744073709551615", 1), Some(1));
    assert_eq!(convolutions("60000", 1), Some(1), "weights beyond the limits of a network");
    assert_eq!(convolutions("20000", 3), Some(2), "weights beyond the session's memory");
    assert_eq!(raw_open(&worker, &vec![b' '; 2 << 20]), None, "a model of 2 MiB");
    works(opened(config(&worker)).unwrap().as_mut());
}

#[test]
fn a_request_beyond_the_limits_fails_and_the_session_lives() {
    let worker = start(ServeLimits { session_bytes: 4096, ..ServeLimits::default() }, false);
    let mut session = opened(config(&worker)).unwrap();
    let ticket = session.submit(ID, released(vec![0.0; 16 * 1000]), Pass::Training).unwrap();
    let error = session.collect(ticket).unwrap_err();
    assert!(matches!(&error, CollectError::Failed { reason } if reason.contains("may hold 4096")), "{error:?}");
    works(session.as_mut());
}

#[test]
fn a_failed_computation_is_an_error_and_the_session_lives() {
    // One sample of one value a channel has no variance.
    let layers = vec![Layer::BatchNorm { name: "norm".to_owned(), channels: 2 }, Layer::Flatten];
    let network = Network { name: "norm".to_owned(), input: Shape::new(2, 1, 1), classes: 2, layers };
    let model = ResidualModel { units: vec![Unit::Network(network)] };
    let worker = start(ServeLimits::default(), false);
    let mut session = WorkerClient::new(config(&worker)).open(&model).unwrap();
    let ticket = session.submit(ID, released(vec![1.0, 2.0]), Pass::Training).unwrap();
    let error = session.collect(ticket).unwrap_err();
    assert!(matches!(&error, CollectError::Failed { reason } if reason.contains("no variance")), "{error:?}");
    let ticket = session.submit(ID, released(vec![1.0, 2.0, 3.0, 4.0]), Pass::Training).unwrap();
    session.collect(ticket).unwrap();
}

#[test]
fn an_overflow_is_told_from_other_failures() {
    let worker = start(ServeLimits::default(), false);
    let mut session = opened(config(&worker)).unwrap();
    session.set_weights(ID, &[f32::MAX]).unwrap();
    let ticket = session.submit(ID, released(vec![10.0; 16]), Pass::Inference).unwrap();
    let error = session.collect(ticket).unwrap_err();
    assert_eq!(error, CollectError::NonFinite { reason: "number 0 of the values".to_owned() });
    // A worker that sends such numbers itself is told no more.
    let mut nan = [0.0; 16];
    nan[3] = f32::NAN;
    let error = collected(Fake::Bytes(done(0.0, 16, &nan))).unwrap_err();
    assert_eq!(error, CollectError::NonFinite { reason: "number 3 of the values".to_owned() });
}

#[test]
fn answers_in_f16_halve_the_way_back_and_never_saturate() {
    let worker = start(ServeLimits::default(), true);
    let bytes = |answers| {
        let mut session = opened(WorkerConfig { answers, ..config(&worker) }).unwrap();
        session.set_weights(ID, &[1.0]).unwrap();
        let ticket = session.submit(ID, released(vec![0.5; 16 * 64]), Pass::Inference).unwrap();
        assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(vec![0.5; 16 * 64]));
        session.stats().bytes_from_worker
    };
    assert_eq!(bytes(Precision::F32) - bytes(Precision::F16), 16 * 64 * 2);
    let mut session = opened(WorkerConfig { answers: Precision::F16, ..config(&worker) }).unwrap();
    session.set_weights(ID, &[1.0]).unwrap();
    let ticket = session.submit(ID, released(vec![70_000.0; 16]), Pass::Inference).unwrap();
    let error = session.collect(ticket).unwrap_err();
    assert!(matches!(&error, CollectError::Failed { reason } if reason.contains("binary16")), "{error:?}");
}

#[test]
fn a_dropped_session_ends_while_its_worker_is_silent() {
    let mut config = fake(Fake::Silence);
    config.answer_timeout = Duration::from_secs(3600);
    let mut session = opened(config).unwrap();
    session.submit(ID, released(vec![0.0; 16]), Pass::Inference).unwrap();
    // Returning at all is the test: the drop joins the session's thread.
    drop(session);
}
