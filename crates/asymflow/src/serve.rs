//! The trusted side of the conversation with the host: one job over two streams.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use asymflow_privacy::Precision;
use asymflow_residual::{
    Notify, OpenError, Protection, ResidualBackend, RingLayout, Token, Transport, WorkerClient, WorkerConfig,
};
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use thiserror::Error;

use crate::job::{Body, Failure, FailureCode, FromTrusted, JobSpec, ToTrusted, WorkerSpec, WorkerTransport};
use crate::run::run;
use crate::train::{HostGone, Observer};

/// Why the conversation ended badly.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The host said something else than a start.
    #[error("expected a job to start, got {0}")]
    Unexpected(&'static str),
    /// The streams failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The threads cannot be made.
    #[error("cannot make {threads} threads: {reason}")]
    Threads {
        /// How many.
        threads: usize,
        /// Why.
        reason: String,
    },
}

/// A checkpoint holds weights, momentum and a loss a record; the largest network of the zoo needs 1.2 GB.
const LIMITS: Limits = Limits { header_bytes: 4 << 20, body_bytes: 4 << 30 };

struct Host<W> {
    writer: W,
}

impl<W: Write> Observer for Host<W> {
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone> {
        write_frame(&mut self.writer, &message, body).map(drop).map_err(|e| HostGone(e.to_string()))
    }
}

/// Serves one job: reads it from `reader`, runs it on threads of its own and reports to `writer`.
///
/// `reader` is watched while the job runs: a [`ToTrusted::Stop`] ends it after the current step, and the
/// end of the stream, which means that the host is gone, ends it as well.
///
/// # Errors
/// A host that breaks the protocol or is gone. A job that fails is reported to the host, not here.
pub fn serve(mut reader: impl Read + Send + 'static, writer: impl Write + Send) -> Result<(), ServeError> {
    let mut host = Host { writer };
    write_frame(&mut host.writer, &FromTrusted::Ready, &[])?;
    let Frame { header, body } = read_frame::<ToTrusted>(&mut reader, LIMITS)?;
    let ToTrusted::Start(job, kind) = header else { return Err(ServeError::Unexpected("a stop")) };
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Whatever comes next, a stop or the end of the stream, means that the job is to end.
        let _ = read_frame::<ToTrusted>(&mut reader, LIMITS);
        watched.store(true, Ordering::Relaxed);
    });
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(job.threads.max(1))
        .build()
        .map_err(|e| ServeError::Threads { threads: job.threads, reason: e.to_string() })?;
    threads.install(|| run_one(&job, kind, body, &stop, &mut host))
}

fn run_one<W: Write>(
    job: &JobSpec,
    kind: Body,
    body: Vec<u8>,
    stop: &AtomicBool,
    host: &mut Host<W>,
) -> Result<(), ServeError> {
    let message = match run(job, kind, body, &open_worker, stop, host) {
        Ok(report) => FromTrusted::Done(Box::new(report)),
        Err(error) => FromTrusted::Failed(error.failure()),
    };
    write_frame(&mut host.writer, &message, &[])?;
    Ok(())
}

/// Reports a failure that happened before a job could start.
///
/// # Errors
/// The host is gone.
pub fn report_failure(writer: &mut impl Write, code: FailureCode, detail: String) -> Result<(), WireError> {
    write_frame(writer, &FromTrusted::Failed(Failure { code, detail }), &[]).map(drop)
}

/// A client for the worker that a job names.
///
/// # Errors
/// No worker section, or a fingerprint that is none.
pub fn open_worker(job: &JobSpec) -> Result<Arc<dyn ResidualBackend>, OpenError> {
    let Some(worker) = &job.worker else {
        return Err(OpenError::Missing {
            what: format!("the worker that mode {} needs", job.mode.name()),
            fix: "name one in the worker section".to_owned(),
        });
    };
    worker_client(worker, job.precision)
}

/// A client for a worker, which answers in `precision`.
///
/// # Errors
/// A fingerprint that is none, or none where the connection is not in plaintext.
pub fn worker_client(worker: &WorkerSpec, precision: Precision) -> Result<Arc<dyn ResidualBackend>, OpenError> {
    let WorkerSpec { address, fingerprint, token, insecure_plaintext, transport, timeout_seconds, .. } = worker;
    let unreachable = |reason: String| OpenError::Unreachable { address: address.clone(), reason };
    let protection = match (fingerprint, insecure_plaintext) {
        (_, true) => Protection::InsecurePlaintext,
        (Some(fingerprint), false) => Protection::Pinned(fingerprint.parse().map_err(|e| unreachable(format!("{e}")))?),
        (None, false) => {
            let reason = "no fingerprint to pin its certificate, and insecure_plaintext is not set".to_owned();
            return Err(unreachable(reason));
        }
    };
    let mut config = WorkerConfig::new(address.clone(), Token::new(token.as_bytes()), protection);
    config.answers = precision;
    config.transport = match transport {
        WorkerTransport::Tcp => Transport::Tcp,
        WorkerTransport::Shm => Transport::SharedMemory(RingLayout::default()),
    };
    // A closed stderr is no reason to stop.
    config.notify = Some(Notify::new(|text| drop(writeln!(std::io::stderr(), "notice: {text}"))));
    config.answer_timeout = Duration::from_secs(*timeout_seconds);
    Ok(Arc::new(WorkerClient::new(config)))
}
