//! One request to a worker process that answers with the body it was sent: shared memory beside plain TCP and TLS.
//!
//! `cargo bench -p asymflow-benches --bench transport` prints a table, then runs criterion. Times are of rounds in which
//! the transports take turns, all in one run. A round trip is all that a session does between submission and collected
//! outputs: numbers to bytes, frame, the worker's checks, and the same back. `ASYMFLOW_BENCH_REPEATS` sets the rounds.
#![expect(clippy::print_stdout, reason = "the table is the product")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, ReleaseError, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{
        Availability, Batch, CollectError, ConvUnit, OpenError, Pass, ResidualModel, ResidualSession, ResidualTraining,
        SgdStep, SubmitError, Ticket, Unit, UnitId, Wanted, WorkerStats,
    },
    client::RingLayout,
    client::{Notify, Protection, Token, Transport, WorkerClient, WorkerConfig},
    serve::{ServeConfig, ServeLimits, Worker},
};
use asymflow_zoo::network::Shape;
use criterion::{BatchSize, Criterion};
use rand::SeedableRng;
use rand::rngs::StdRng;

type Failure = Box<dyn std::error::Error>;

const SIZES: [(&str, usize); 5] =
    [("64 B", 64), ("8 KiB", 8 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("8 MiB", 8 << 20)];
/// Set for the process that is the worker, to `tls` or `plain`.
const ROLE: &str = "ASYMFLOW_BENCH_WORKER";
/// Everything through the ring, so that its worth shows at every size.
const RING: RingLayout = RingLayout { slots: 1, slot_bytes: 16 << 20, threshold_bytes: 1 };

/// A device that returns its input.
#[derive(Debug)]
struct Echo;

#[derive(Default)]
struct EchoSession {
    next: u64,
    results: HashMap<u64, Vec<f32>>,
}

fn only_echoes<T>() -> Result<T, SubmitError> {
    Err(SubmitError::Unsupported { unit: 0, what: "this worker echoes" })
}

impl ResidualBackend for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn probe(&self) -> Availability {
        Availability::Ready { device: "echo".to_owned() }
    }

    fn open(&self, _model: &ResidualModel) -> Result<Box<dyn ResidualTraining>, OpenError> {
        Ok(Box::new(EchoSession::default()))
    }
}

impl ResidualSession for EchoSession {
    fn submit(&mut self, _unit: UnitId, x: Released<Payload>, _pass: Pass) -> Result<Ticket, SubmitError> {
        self.next += 1;
        self.results.insert(self.next, x.into_inner().into_f32());
        Ok(Ticket(self.next))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Batch, CollectError> {
        self.results.remove(&ticket.0).map(Batch::Outputs).ok_or(CollectError::Ticket(ticket))
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats::default()
    }
}

impl ResidualTraining for EchoSession {
    fn submit_gradient(&mut self, _: UnitId, _: Released<Payload>, _: Wanted) -> Result<Ticket, SubmitError> {
        only_echoes()
    }

    fn set_weights(&mut self, _: UnitId, _: &[f32]) -> Result<(), SubmitError> {
        only_echoes()
    }

    fn add_weights(&mut self, _: UnitId, _: Payload) -> Result<(), SubmitError> {
        only_echoes()
    }

    fn step(&mut self, _: UnitId, _: SgdStep) -> Result<(), SubmitError> {
        only_echoes()
    }

    fn weights(&mut self, _: UnitId) -> Result<Vec<f32>, CollectError> {
        Ok(Vec::new())
    }

    fn reset(&mut self) -> Result<(), SubmitError> {
        Ok(())
    }
}

/// The other process: serves until its stdin closes.
fn serve(plaintext: bool) -> Result<(), Failure> {
    let config = ServeConfig {
        token: Token::new("bench"),
        insecure_plaintext: plaintext,
        identity: None,
        ring_name: None,
        limits: ServeLimits::default(),
    };
    let worker = Worker::bind("127.0.0.1:0", Arc::new(Echo), config)?.start()?;
    println!("{} {}", worker.address(), worker.fingerprint().map_or_else(String::new, |f| f.to_string()));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A worker process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str) -> Result<(Process, WorkerConfig), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let (address, fingerprint) =
        line.trim_end_matches('\n').split_once(' ').ok_or("the worker process did not start")?;
    let protection = match fingerprint {
        "" => Protection::InsecurePlaintext,
        pin => Protection::Pinned(pin.parse()?),
    };
    Ok((Process(child), WorkerConfig::new(address, Token::new("bench"), protection)))
}

fn released(values: usize) -> Result<Released<Payload>, ReleaseError> {
    let values = (0..values).map(|i| i as f32).collect();
    let mut door = Door::new(RecordAccountant::new(1), StdRng::seed_from_u64(1));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove)?;
    let source = Source { layer: "echo", flow: Flow::Residual };
    Ok(door.release(&gate, source, &[0], Private::new(values))?.encode(Precision::F32))
}

/// Sends a body and takes it back.
fn round_trip(session: &mut dyn ResidualTraining, x: Released<Payload>) -> Result<Batch, Failure> {
    let ticket = session.submit(UnitId(0), x, Pass::Inference)?;
    Ok(session.collect(ticket)?)
}

struct Session {
    name: &'static str,
    session: Box<dyn ResidualTraining>,
}

fn open(name: &'static str, config: &WorkerConfig, ring: bool) -> Result<Session, Failure> {
    let unit = ConvUnit { input: Shape::new(1, 1, 1), out_channels: 1, kernel: 1, stride: 1, padding: 0 };
    let model = ResidualModel { units: vec![Unit::Conv(unit)] };
    let transport = if ring { Transport::SharedMemory(RING) } else { Transport::Tcp };
    let notify = Some(Notify::new(|text| println!("THIS IS NO MEASUREMENT OF SHARED MEMORY: {text}")));
    let session = WorkerClient::new(WorkerConfig { transport, notify, ..config.clone() }).open(&model)?;
    Ok(Session { name, session })
}

fn at(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

fn rounds(bytes: usize) -> usize {
    let asked = std::env::var("ASYMFLOW_BENCH_REPEATS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(if bytes < 1 << 20 { 1000 } else { 200 })
}

fn table(sessions: &mut [Session]) -> Result<(), Failure> {
    println!("| body | transport | n | min µs | quartile | median | quartile | TCP / this, medians |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for (size, bytes) in SIZES {
        let mut times = vec![Vec::new(); sessions.len()];
        for round in 0..rounds(bytes) + 5 {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                let x = released(bytes / 4)?;
                let start = Instant::now();
                let back = round_trip(session.session.as_mut(), x)?;
                // The first rounds warm up.
                if round >= 5 {
                    times.push(start.elapsed());
                }
                if !matches!(back, Batch::Outputs(y) if y.len() == bytes / 4) {
                    return Err("the echo is wrong".into());
                }
            }
        }
        times.iter_mut().for_each(|times| times.sort());
        let tcp = sessions.iter().zip(&times).find(|(s, _)| s.name == "TCP").map_or(f64::NAN, |(_, t)| at(t, 0.5));
        for (session, times) in sessions.iter().zip(&times) {
            let [min, low, median, high] = [0.0, 0.25, 0.5, 0.75].map(|share| at(times, share));
            println!(
                "| {size} | {} | {} | {min:.1} | {low:.1} | {median:.1} | {high:.1} | {:.2} |",
                session.name,
                times.len(),
                tcp / median
            );
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    if let Ok(role) = std::env::var(ROLE) {
        return serve(role == "plain");
    }
    let (_plain, plain) = start("plain")?;
    let (_tls, tls) = start("tls")?;
    let mut sessions = [
        open("shared memory, TCP doorbell", &plain, true)?,
        open("shared memory, TLS doorbell", &tls, true)?,
        open("TCP", &plain, false)?,
        open("TLS", &tls, false)?,
    ];
    // `cargo test --benches` only checks that everything runs.
    if std::env::args().any(|argument| argument == "--bench") {
        table(&mut sessions)?;
    }
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for (size, bytes) in SIZES {
        for session in &mut sessions {
            criterion.bench_function(&format!("transport/{size}/{}", session.name), |b| {
                let mut trip = |x| round_trip(session.session.as_mut(), x).map_err(|e| e.to_string());
                b.iter_batched(|| released(bytes / 4), |x| x.map(&mut trip), BatchSize::LargeInput);
            });
        }
    }
    criterion.final_summary();
    Ok(())
}
