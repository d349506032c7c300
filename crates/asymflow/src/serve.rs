//! The trusted side of the conversation with the host: one job over two streams.

mod policy;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use asymflow_privacy::payload::Precision;
use asymflow_residual::{
    ResidualBackend,
    backend::OpenError,
    client::RingLayout,
    client::{Notify, Protection, Token, Transport, WorkerClient, WorkerConfig},
};
use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use thiserror::Error;

use crate::checkpoint::Checkpoint;
use crate::job::{
    Body, Failure, FailureCode, FromTrusted, JobSpec, Notice, Task, ToTrusted, VaultSpec, WorkerSpec, WorkerTransport,
};
use crate::modes::Registry;
use crate::run::run;
use crate::studies::{Speedup, Study};
use crate::train::{HostGone, Observer};

pub use policy::{JobPolicy, JobRefusal, JobRules};

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

/// Keeps a job's checkpoints where the host can neither read nor change them, nor, as far as a guard reaches, put back.
pub trait Vault: Send {
    /// Keeps one in place of the one before.
    ///
    /// # Errors
    /// It is not kept; in words for the host.
    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String>;

    /// The one that was kept last.
    ///
    /// # Errors
    /// It cannot be read, was changed, or is not the latest.
    fn latest(&mut self) -> Result<Option<Vec<u8>>, String>;
}

/// Opens the vault that a job names.
pub type OpenVault<'a> = &'a (dyn Fn(&VaultSpec) -> Result<Box<dyn Vault>, String> + Sync);

struct Host<W> {
    writer: W,
    vault: Option<Box<dyn Vault>>,
    /// What other threads have to say. Standard error is no place for it: Gramine writes that among the frames.
    said: Receiver<String>,
}

impl<W: Write> Observer for Host<W> {
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone> {
        for text in self.said.try_iter() {
            write_frame(&mut self.writer, &FromTrusted::Notice(Notice::Said(text)), &[])
                .map_err(|e| HostGone(e.to_string()))?;
        }
        let mut body = body;
        if let (FromTrusted::Checkpoint { .. }, Some(vault)) = (&message, &mut self.vault) {
            vault.keep(body).map_err(|e| HostGone(format!("the checkpoint cannot be sealed: {e}")))?;
            body = &[];
        }
        write_frame(&mut self.writer, &message, body).map(drop).map_err(|e| HostGone(e.to_string()))
    }
}

/// Serves one job that `rules` allow: reads it from `reader`, runs it on threads of its own and reports to `writer`.
///
/// `reader` is watched while the job runs: a [`ToTrusted::Stop`] ends it after the current step, and the
/// end of the stream, which means that the host is gone, ends it as well.
///
/// # Errors
/// A host that breaks the protocol or is gone. A job that fails is reported to the host, not here.
pub fn serve(
    mut reader: impl Read + Send + 'static,
    writer: impl Write + Send,
    registry: &Registry,
    rules: &JobRules,
    open_vault: OpenVault<'_>,
) -> Result<(), ServeError> {
    let (say, said) = channel();
    let mut host = Host { writer, vault: None, said };
    write_frame(&mut host.writer, &FromTrusted::Ready, &[])?;
    let Frame { header, body } = read_frame::<ToTrusted>(&mut reader, LIMITS)?;
    let ToTrusted::Start(mut job, kind) = header else { return Err(ServeError::Unexpected("a stop")) };
    if let Err(refusal) = rules.allow(&mut job, registry) {
        return Ok(report_failure(&mut host.writer, FailureCode::Job, refusal.to_string())?);
    }
    if *rules == JobRules::Host {
        write_frame(&mut host.writer, &FromTrusted::Notice(Notice::HostDecides), &[])?;
    }
    let body = match sealed(&job, kind, body, open_vault, &mut host.vault) {
        Ok(body) => body,
        Err(detail) => return Ok(report_failure(&mut host.writer, FailureCode::Checkpoint, detail)?),
    };
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
    let notify = Notify::new(move |text| drop(say.send(text.to_owned())));
    threads.install(|| run_one(&job, (kind, body), (registry, &notify), &stop, &mut host))
}

/// What the job starts with, its vault opened where it names one. A vault that holds a checkpoint is gone on from and never
/// begun anew, which would reset every budget.
fn sealed(
    job: &JobSpec,
    kind: Body,
    body: Vec<u8>,
    open_vault: OpenVault<'_>,
    vault: &mut Option<Box<dyn Vault>>,
) -> Result<Vec<u8>, String> {
    let Some(spec) = &job.vault else { return Ok(body) };
    let opened = vault.insert(open_vault(spec)?);
    match (kind, opened.latest()?) {
        (Body::Checkpoint, Some(latest)) if body.is_empty() => Ok(latest),
        (Body::Checkpoint, _) => Err("the vault holds no checkpoint, and takes none of the host's".to_owned()),
        (_, Some(_)) => Err("the vault holds a checkpoint: resume its job, or name another folder".to_owned()),
        (_, None) => Ok(body),
    }
}

/// Gives the host the weights, which are public, of a checkpoint that it cannot read.
fn tell_weights<W: Write>(host: &mut Host<W>) -> Result<(), ServeError> {
    let latest = host.vault.as_mut().and_then(|vault| vault.latest().ok().flatten());
    if let Some(checkpoint) = latest.and_then(|bytes| Checkpoint::decode(&bytes).ok()) {
        let weights: Vec<u8> = checkpoint.state.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        write_frame(&mut host.writer, &FromTrusted::Weights, &weights)?;
    }
    Ok(())
}

fn run_one<W: Write>(
    job: &JobSpec,
    start: (Body, Vec<u8>),
    (registry, notify): (&Registry, &Notify),
    stop: &AtomicBool,
    host: &mut Host<W>,
) -> Result<(), ServeError> {
    let open = |job: &JobSpec, precision| open_worker(job, precision, notify.clone());
    let message = match run(job, start, registry, &open, stop, host) {
        Ok(report) => {
            tell_weights(host)?;
            FromTrusted::Done(Box::new(report))
        }
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

/// A client for the worker that a job names, which says through `notify` what it does otherwise than it was asked to.
///
/// # Errors
/// No worker section, or a fingerprint that is none.
pub fn open_worker(job: &JobSpec, precision: Precision, notify: Notify) -> Result<Arc<dyn ResidualBackend>, OpenError> {
    let Some(worker) = &job.worker else {
        return Err(OpenError::Missing {
            what: format!("the worker that mode {} needs", job.mode.name),
            fix: "name one in the worker section".to_owned(),
        });
    };
    let takes_modelled = matches!(&job.task, Task::Study(study) if study.name == Speedup::NAME);
    let samples = match &job.task {
        Task::Train(train) => train.batch,
        Task::Study(study) => study.batch,
    };
    worker_client(worker, (precision, samples), takes_modelled, notify)
}

/// A client for a worker, which answers in `precision` for batches of so many samples at most; one that computes nothing is taken where only times are measured.
///
/// # Errors
/// A fingerprint that is none, or none where the connection is not in plaintext.
pub fn worker_client(
    worker: &WorkerSpec,
    (precision, samples): (Precision, usize),
    takes_modelled: bool,
    notify: Notify,
) -> Result<Arc<dyn ResidualBackend>, OpenError> {
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
    config.samples = Some(samples);
    config.takes_modelled = takes_modelled;
    config.transport = match transport {
        WorkerTransport::Tcp => Transport::Tcp,
        WorkerTransport::Shm => Transport::SharedMemory(RingLayout::default()),
    };
    config.notify = Some(notify);
    config.answer_timeout = Duration::from_secs(*timeout_seconds);
    Ok(Arc::new(WorkerClient::new(config)))
}
