//! The conversation with the enclave process: one job, its messages, and what they leave in the run folder.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use asymflow::job::{Body, Failure, FailureCode, FromTrusted, JobReport, JobSpec, ToTrusted};
use asymflow::memory::MemoryPlan;
use asymflow::modes::Registry;
use asymflow_enclave::runtime::{Availability, EnclaveSpec, Gramine, LaunchError, Sim, TrustedRuntime, TrustedSession};
use asymflow_wire::{Limits, WireError, read_frame, write_frame};

use crate::error::CliError;
use crate::experiment::TrustedSection;
use crate::folder::Folder;
use crate::machine::KEPT_PAGES;
use crate::progress::Progress;
use crate::run::Interrupt;

const LIMITS: Limits = Limits { header_bytes: 4 << 20, body_bytes: 4 << 30 };

/// Says that the latest checkpoint is sealed, where the trusted part keeps it.
pub const SEALED: &str = "checkpoints/sealed";
/// Weights of a job whose checkpoints are sealed.
pub const WEIGHTS: &str = "checkpoints/weights.f32";

/// The stream on which a job can be told to stop.
pub type Stopper = Arc<Mutex<Option<Box<dyn Write + Send>>>>;

/// Tells the running job, if there is one, to finish its step and end.
pub fn stop(stopper: &Stopper) {
    if let Some(stream) = stopper.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        // A job that has ended cannot be told any more.
        let _ = write_frame(stream, &ToTrusted::Stop, &[]);
    }
}

/// The runtime of a section.
pub fn runtime(section: &TrustedSection) -> Result<Box<dyn TrustedRuntime>, CliError> {
    let runtime: Box<dyn TrustedRuntime> = match section.runtime.as_str() {
        "sim" => Box::new(Sim),
        "gramine-direct" => Box::new(Gramine::direct(&section.app)),
        "gramine-sgx" => Box::new(Gramine::sgx(&section.app)),
        other => {
            let help = "there are \"sim\", \"gramine-direct\" and \"gramine-sgx\"";
            return Err(CliError::usage(format!("unknown trusted.runtime {other:?}"), help));
        }
    };
    match runtime.probe() {
        Availability::Ready => Ok(runtime),
        Availability::Missing { what, fix } => Err(CliError::missing(what, fix)),
    }
}

/// Why the enclave program does not run, and what would help.
pub fn not_launched(error: LaunchError) -> CliError {
    let help = match &error {
        LaunchError::Missing { fix, .. } | LaunchError::Runtime { fix, .. } => fix.clone(),
        LaunchError::Start { .. } => "build it: cargo build --release -p asymflow-enclaved".to_owned(),
        LaunchError::TooSmall { .. } => {
            "write its manifest for more memory (--peak-mib); `asymflow explain memory` prints the plan".to_owned()
        }
        LaunchError::OtherProgram { .. } => "docs/how-to/run-on-sgx.md tells how an enclave is prepared".to_owned(),
        LaunchError::Measured { .. } => {
            "start the service with `cargo xtask enclave run -- serve …` and ask it with `asymflow client load`, or take \
             trusted.runtime = \"sim\""
                .to_owned()
        }
    };
    CliError::missing(error.to_string(), help)
}

/// Runs one job in a fresh enclave process and writes what it says into `folder`.
pub fn run_job(
    runtime: &dyn TrustedRuntime,
    program: &Path,
    job: JobSpec,
    start: (Body, &[u8]),
    folder: &Folder,
    progress: &mut Progress,
    interrupt: &Interrupt,
    registry: &Registry,
) -> Result<JobReport, CliError> {
    let mut spec = EnclaveSpec::new(program);
    spec.peak_bytes = MemoryPlan::of_job(&job, registry).ok().map(|plan| plan.peak_bytes);
    // The environment of an enclave is in its manifest.
    if runtime.name() == Sim.name() {
        spec.environment.extend(KEPT_PAGES.map(|(name, value)| (name.into(), value.into())));
    }
    let mut session = runtime.launch(&spec).map_err(not_launched)?;
    let Some((to, mut from)) = session.streams() else {
        return Err(CliError::failed("the enclave process has no streams", ""));
    };
    let mut to = to;
    write_frame(&mut to, &ToTrusted::Start(Box::new(job), start.0), start.1)
        .map_err(|e| CliError::failed(format!("cannot start the job: {e}"), ""))?;
    *interrupt.stopper.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
    // A Ctrl-C while the program was starting found nobody to tell.
    if interrupt.asked.load(Ordering::Relaxed) {
        stop(&interrupt.stopper);
    }
    let result = converse(&mut *session, &mut from, folder, progress);
    *interrupt.stopper.lock().unwrap_or_else(PoisonError::into_inner) = None;
    result
}

fn converse(
    session: &mut dyn TrustedSession,
    from: &mut dyn std::io::Read,
    folder: &Folder,
    progress: &mut Progress,
) -> Result<JobReport, CliError> {
    let mut from = from;
    loop {
        let frame = match read_frame::<FromTrusted>(&mut from, LIMITS) {
            Ok(frame) => frame,
            Err(WireError::Closed) => {
                if let Some(failure) = session.failure() {
                    return Err(not_launched(failure));
                }
                let status = session.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                let message = format!("the enclave process ended without an answer: {status}");
                return Err(CliError::failed(message, "its own message, if any, stands above"));
            }
            Err(error) => return Err(CliError::failed(format!("the enclave process: {error}"), "")),
        };
        match &frame.header {
            FromTrusted::Done(report) => return Ok((**report).clone()),
            FromTrusted::Failed(failure) => return Err(failed(failure)),
            FromTrusted::Checkpoint { .. } if frame.body.is_empty() => folder.replace(SEALED, &[])?,
            FromTrusted::Weights => folder.replace(WEIGHTS, &frame.body)?,
            FromTrusted::Checkpoint { .. } => folder.replace("checkpoints/latest.safetensors", &frame.body)?,
            FromTrusted::Ledger(entries) => {
                for entry in entries {
                    folder.append("ledger.jsonl", entry)?;
                }
            }
            FromTrusted::Step { .. } | FromTrusted::Epoch(_) => folder.append("metrics.jsonl", &frame.header)?,
            FromTrusted::Ready | FromTrusted::Planned { .. } | FromTrusted::Notice(_) => {}
        }
        progress.hear(&frame.header, folder)?;
    }
}

fn failed(failure: &Failure) -> CliError {
    let help = match failure.code {
        FailureCode::Job => "mend the experiment; `asymflow show` prints it resolved",
        FailureCode::Data => "mend the files, or [data] of the experiment: path, reader, train, test, resize",
        FailureCode::NonFinite => {
            "look for broken images or weights; where training diverges, lower train.learning_rate or set train.clip_norm"
        }
        FailureCode::Worker => {
            "look at the worker's messages above; `asymflow resume` goes on from the last checkpoint"
        }
        FailureCode::Release => "check the privacy section",
        FailureCode::Checkpoint => "resume another run, or start afresh with `asymflow run`",
        FailureCode::Host => "",
    };
    let message = failure.detail.clone();
    match failure.code {
        FailureCode::Job | FailureCode::Data => CliError::usage(message, help),
        FailureCode::NonFinite
        | FailureCode::Worker
        | FailureCode::Release
        | FailureCode::Checkpoint
        | FailureCode::Host => CliError::failed(message, help),
    }
}
