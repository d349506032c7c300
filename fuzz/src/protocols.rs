//! Messages between host, enclave, worker and client.

use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use asymflow::job::{FromTrusted, ToTrusted};
use asymflow::modes::Registry;
use asymflow::serve::open_worker;
use asymflow::service::protocol::{FromService, ToService};
use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{PackedBits, Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{ConvUnit, Pass, ResidualModel, Unit, UnitId, Wanted},
    client::{Notify, Protection, Token, WorkerClient, WorkerConfig},
};
use asymflow_wire::{Limits, Prefix, decode_header, read_frame};
use asymflow_zoo::network::Shape;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// What host and enclave take from each other.
const JOB: Limits = Limits { header_bytes: 4 << 20, body_bytes: 4 << 30 };
/// What a client takes from a service; a service takes less.
const SERVICE: Limits = Limits { header_bytes: 1 << 20, body_bytes: 64 << 20 };

/// A frame between host and enclave, or the header of one.
pub fn job(mut input: &[u8]) {
    if let Some(prefix) = input.first_chunk() {
        let _ = black_box(Prefix::parse(*prefix, JOB));
    }
    let _ = black_box(read_frame::<FromTrusted>(&mut &*input, JOB));
    let _ = black_box(decode_header::<FromTrusted>(input));
    let header = decode_header(input).or_else(|_| read_frame(&mut input, JOB).map(|frame| frame.header));
    if let Ok(ToTrusted::Start(job, _)) = header {
        if let Ok(mode) = Registry::default().decode(&job.mode) {
            let _ = black_box((mode.stored_network(&job.network), job.terms.budget(&*mode)));
        }
        let _ = black_box(open_worker(&job, Precision::F32, Notify::new(|_| ())));
    }
}

/// A frame between client and service, or the header of one.
pub fn service(mut input: &[u8]) {
    let _ = black_box((decode_header::<ToService>(input), decode_header::<FromService>(input)));
    let _ = black_box(read_frame::<ToService>(&mut &*input, SERVICE));
    let _ = black_box(read_frame::<FromService>(&mut input, SERVICE));
}

/// Eight bytes of length, then bits.
pub fn bits(input: &[u8]) {
    let Some((len, bytes)) = input.split_first_chunk() else { return };
    let Ok(len) = usize::try_from(u64::from_le_bytes(*len)) else { return };
    if let Ok(bits) = PackedBits::from_bytes(bytes.to_vec(), len) {
        assert!(bits.get(len).is_none() && len <= 8 * bytes.len());
        assert_eq!(Payload::Bits(bits).into_f32().len(), len);
    }
}

/// A port at which nothing listens.
const NOBODY: &str = "127.0.0.1:1";

/// A model as a worker is sent it, or all that a worker says in one session.
pub fn worker(input: &[u8]) {
    if let Ok(model) = serde_json::from_slice::<ResidualModel>(input) {
        // Its sizes are checked before anything is dialled.
        let _ = black_box(client(NOBODY).open(&model).is_ok());
        return;
    }
    static LISTENER: LazyLock<TcpListener> = LazyLock::new(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener that does not block");
        listener
    });
    let address = LISTENER.local_addr().expect("its address").to_string();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&LISTENER, &is_over, input));
        let _ = black_box(talk(&address));
        is_over.store(true, Ordering::Relaxed);
    });
}

fn client(address: &str) -> WorkerClient {
    let mut config = WorkerConfig::new(address, Token::new(*b"0123456789abcdef"), Protection::InsecurePlaintext);
    config.connect_timeout = Duration::from_secs(5);
    config.answer_timeout = Duration::from_secs(5);
    WorkerClient::new(config)
}

/// Says `input` to whoever connects, whatever that one says.
fn answer(listener: &TcpListener, is_over: &AtomicBool, input: &[u8]) {
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !is_over.load(Ordering::Relaxed) => {
                std::thread::sleep(Duration::from_micros(20));
            }
            Err(_) => return,
        }
    };
    let _ = stream.set_nonblocking(false);
    let _ = stream.write_all(input).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut ignored = [0; 1024];
    while matches!(stream.read(&mut ignored), Ok(1..)) {}
}

/// Every kind of answer that a session of one convolution waits for.
fn talk(address: &str) -> Option<()> {
    let conv = ConvUnit { input: Shape::new(1, 2, 2), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    let mut session = client(address).open(&ResidualModel { units: vec![Unit::Conv(conv)] }).ok()?;
    let unit = UnitId(0);
    session.set_weights(unit, &[1.0]).ok()?;
    let outputs = session.submit(unit, values()?, Pass::Training).ok()?;
    let _ = black_box(session.collect(outputs));
    let gradients = session.submit_gradient(unit, values()?, Wanted { input: true, weights: true }).ok()?;
    let _ = black_box(session.collect(gradients));
    let _ = black_box(session.weights(unit));
    Some(())
}

fn values() -> Option<Released<Payload>> {
    let mut door = Door::new(RecordAccountant::new(1), StdRng::seed_from_u64(0));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).ok()?;
    let source = Source { layer: "unit", flow: Flow::Residual };
    Some(door.release(&gate, source, &[0], Private::new(vec![1.0; 4])).ok()?.encode(Precision::F32))
}
