//! What a run says while it goes: one greppable line an epoch on stderr, or JSON events.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use asymflow::job::{EpochReport, FromTrusted, Notice};

use crate::error::CliError;
use crate::folder::Folder;
use crate::text::{self, escaped};

/// Between two lines within an epoch, where there is no terminal to move a bar on.
const EVERY: Duration = Duration::from_secs(5);
/// The same on a terminal, where the bar moves.
const FRAME: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR: usize = 20;

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
    /// Samples of a step.
    batch: usize,
    /// Steps of an epoch.
    steps: usize,
    /// When the last line came.
    said: Instant,
    /// Whether a bar moves with every step, as on a terminal.
    is_seen: bool,
}

impl Progress {
    /// Progress of a job called `label`, in steps of `batch` samples.
    pub fn new(output: Output, label: String, delta: f64, batch: usize) -> Self {
        let is_seen = !output.json && std::io::stderr().is_terminal();
        let (start, first_epoch) = (Instant::now(), None);
        Self { output, label, delta, start, first_epoch, batch, steps: 0, said: start, is_seen }
    }

    /// Shows how far an epoch is, where nobody has heard anything for a while.
    fn step(&mut self, epoch: usize, step: usize, loss: f64) {
        if self.said.elapsed() < if self.is_seen { FRAME } else { EVERY } {
            return;
        }
        self.said = Instant::now();
        let (step, steps) = (step + 1, self.steps.max(step + 1));
        let text = format!("{}  epoch {}  step {step}/{steps}  loss {loss:.4}", escaped(&self.label), epoch + 1);
        if self.is_seen {
            let done = BAR * step / steps;
            let _ = write!(std::io::stderr(), "\r{:━<done$}{:╌<left$} {text}\x1b[K\r", "", "", left = BAR - done);
        } else {
            self.output.say(&text);
        }
    }

    /// Takes one message of the job.
    pub fn hear(&mut self, message: &FromTrusted, folder: &Folder) -> Result<(), CliError> {
        if let FromTrusted::Planned { train_images, .. } = message {
            self.steps = train_images.div_ceil(self.batch.max(1));
        }
        if let FromTrusted::Step { epoch, step, loss, .. } = message {
            self.step(*epoch, *step, *loss);
            return Ok(());
        }
        if self.output.json {
            if !matches!(message, FromTrusted::Ledger(_) | FromTrusted::Ready) {
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
            FromTrusted::Notice(Notice::Said(text)) => format!("{}: {text}", self.label),
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
        self.said = Instant::now();
        if self.is_seen {
            // In place of the bar.
            let _ = write!(std::io::stderr(), "\x1b[K");
        }
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
