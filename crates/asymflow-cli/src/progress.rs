//! What a run says while it goes: one greppable line an epoch on stderr, or JSON events.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use asymflow::job::{EpochReport, FromTrusted, Notice};

use crate::error::CliError;
use crate::folder::Folder;
use crate::text;

#[derive(Clone, Debug)]
pub struct Output {
    /// Events as JSON lines instead of text.
    pub json: bool,
}

impl Output {
    /// One line of text on stderr; a closed stderr is no reason to stop.
    pub fn say(&self, text: &str) {
        let line =
            if self.json { serde_json::json!({ "message": text }).to_string() } else { text::escaped_lines(text) };
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    /// A function that says, for other threads.
    pub fn teller(&self, folder: &Folder) -> crate::worker::Tell {
        let (output, folder) = (self.clone(), folder.clone());
        Arc::new(move |text| {
            output.say(text);
            let _ = folder.append_text("log.txt", &format!("{text}\n"));
        })
    }
}

/// The progress of one job.
#[derive(Debug)]
pub struct Progress {
    output: Output,
    /// Mode, and seed where there are several.
    label: String,
    delta: f64,
    start: Instant,
    first_epoch: Option<usize>,
}

impl Progress {
    /// Progress of a job called `label`.
    pub fn new(output: Output, label: String, delta: f64) -> Self {
        Self { output, label, delta, start: Instant::now(), first_epoch: None }
    }

    /// Takes one message of the job.
    pub fn hear(&mut self, message: &FromTrusted, folder: &Folder) -> Result<(), CliError> {
        if self.output.json {
            if !matches!(message, FromTrusted::Ledger(_) | FromTrusted::Step { .. } | FromTrusted::Ready) {
                let event = serde_json::json!({ "run": self.label, "event": message });
                let _ = writeln!(std::io::stderr(), "{event}");
            }
            return Ok(());
        }
        let text = match message {
            FromTrusted::Epoch(report) => self.epoch(report),
            FromTrusted::Planned { train_images, test_images, data, .. } => {
                format!("{}: {train_images} training and {test_images} test images of {data}", self.label)
            }
            FromTrusted::Notice(Notice::WorkerReopened { epoch, step, from, reason }) => {
                let again =
                    if from < step { format!("steps done again from {from}") } else { "step done again".into() };
                format!(
                    "{}: worker lost in epoch {}, step {step} ({reason}); opened again, weights sent, {again}",
                    self.label,
                    epoch + 1
                )
            }
            FromTrusted::Notice(Notice::HostDecides) => {
                format!("{}: no policy: this experiment alone decides what is released", self.label)
            }
            FromTrusted::Ready
            | FromTrusted::Step { .. }
            | FromTrusted::Ledger(_)
            | FromTrusted::Checkpoint { .. }
            | FromTrusted::Weights
            | FromTrusted::Done(_)
            | FromTrusted::Failed(_) => return Ok(()),
        };
        self.output.say(&text);
        folder.append_text("log.txt", &format!("{text}\n"))
    }

    fn epoch(&mut self, report: &EpochReport) -> String {
        let first = *self.first_epoch.get_or_insert(report.epoch);
        let done = (report.epoch + 1 - first) as f64;
        let eta = self.start.elapsed().as_secs_f64() / done * (report.epochs - report.epoch) as f64;
        let accuracy = report.test_accuracy.map_or_else(|| "  -  ".to_owned(), |a| format!("{:.1}%", 100.0 * a));
        format!(
            "{}  epoch {}/{}  loss {:.4}  acc {accuracy}  {}  {:.1} s  eta {}",
            self.label,
            report.epoch,
            report.epochs,
            report.loss,
            epsilon(report.epsilon, self.delta),
            report.train_seconds + report.evaluate_seconds,
            clock(eta)
        )
    }
}

fn epsilon(epsilon: Option<f64>, delta: f64) -> String {
    match epsilon {
        None => "ε 0 (nothing released)".to_owned(),
        Some(e) if e.is_finite() => format!("ε {} (δ {delta:e})", text::epsilon(e, 2)),
        Some(_) => "ε ∞ (no guarantee)".to_owned(),
    }
}

fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{:02}s", seconds / 60, seconds % 60) }
}
