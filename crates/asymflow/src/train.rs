//! The training loop, the same for every mode.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use asymflow_privacy::{Accountant, AccountantError};
use asymflow_residual::{SgdStep, WorkerStats};
use asymflow_zoo::data::{Augment, Batch, Loader, Normalization, Split, epoch_order};
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, Position};
use crate::job::{EpochReport, FromTrusted, Notice, Schedule, Traffic, TrainReport, TrainSpec};
use crate::modes::{Mode, TrainBatch};
use crate::timing::Seconds;
use crate::trusted::{ExecError, ops};

/// Hears what a job has to say. An error ends the job: the host is gone.
pub trait Observer {
    /// Takes one message and its body.
    ///
    /// # Errors
    /// The host cannot be told.
    fn tell(&mut self, message: FromTrusted, body: &[u8]) -> Result<(), HostGone>;
}

/// The host cannot be told any more.
#[derive(Debug, Error)]
#[error("the host is gone: {0}")]
pub struct HostGone(pub String);

/// Why training ended early.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A batch could not be executed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A checkpoint could not be used or made.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No ε can be given.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// Nobody listens.
    #[error(transparent)]
    Host(#[from] HostGone),
}

/// Everything a training run is given.
#[derive(Debug)]
pub struct Training<'a> {
    /// How to train.
    pub spec: &'a TrainSpec,
    /// Random crops and flips.
    pub augment: bool,
    /// δ at which ε is reported.
    pub delta: f64,
    /// How long a lost worker is waited for.
    pub patience: Duration,
    /// Name of the network, for checkpoints.
    pub network: &'a str,
    /// Name of the mode, for checkpoints.
    pub mode_name: &'a str,
    /// The data.
    pub data: &'a Split,
    /// Set when the run is to end after the current step.
    pub stop: &'a AtomicBool,
}

/// Rate at `step` of `steps`.
fn learning_rate(spec: &TrainSpec, step: usize, steps: usize) -> f32 {
    match spec.schedule {
        Schedule::Constant => spec.learning_rate,
        Schedule::Cosine => {
            let progress = step as f32 / steps.max(1) as f32;
            spec.learning_rate * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
        }
    }
}

struct Progress {
    position: Position,
    report: TrainReport,
    epoch_seconds: f64,
}

impl Training<'_> {
    /// Trains `mode`, from the start or from a checkpoint, telling `observer` as it goes.
    ///
    /// # Errors
    /// A batch that cannot be executed, a foreign checkpoint, or a host that is gone.
    pub fn run(
        &self,
        mode: &mut dyn Mode,
        from: Option<Checkpoint>,
        observer: &mut dyn Observer,
    ) -> Result<TrainReport, TrainError> {
        let mut progress = self.start(mode, from)?;
        let normalization = Normalization::of(&self.data.train);
        let augment = if self.augment { Augment::STANDARD } else { Augment::NONE };
        let train = Loader::new(&self.data.train, &normalization, augment, self.spec.seed);
        let test = Loader::new(&self.data.test, &normalization, Augment::NONE, self.spec.seed);
        while progress.position.epoch < self.spec.epochs {
            let finished = self.epoch(mode, &train, &mut progress, observer)?;
            if !finished {
                progress.report.interrupted = true;
                self.checkpoint(mode, &progress.position, observer)?;
                break;
            }
            self.end_epoch(mode, &test, &mut progress, observer)?;
        }
        let mut report = progress.report;
        report.layers = mode.seconds().iter().map(|s| (String::new(), *s)).collect();
        for (_, seconds) in &report.layers {
            report.parts.add(seconds);
        }
        if let Some(worker) = mode.worker() {
            report.parts.worker = worker.busy_seconds;
            report.parts.transfer = worker.transfer_seconds;
        }
        report.epsilon = self.epsilon(mode)?;
        Ok(report)
    }

    fn start(&self, mode: &mut dyn Mode, from: Option<Checkpoint>) -> Result<Progress, TrainError> {
        let mut position =
            Position { network: self.network.to_owned(), mode: self.mode_name.to_owned(), ..Position::default() };
        if let Some(checkpoint) = from {
            checkpoint.belongs_to(self.network, self.mode_name)?;
            mode.restore(&checkpoint.state)?;
            position = checkpoint.position;
        }
        let report = TrainReport {
            interrupted: false,
            train_images: self.data.train.len(),
            test_images: self.data.test.len(),
            test_accuracy: None,
            loss: 0.0,
            epsilon: None,
            trained_samples: 0,
            inferred_samples: 0,
            train_traffic: Traffic::default(),
            inference_traffic: Traffic::default(),
            train_seconds: 0.0,
            inference_seconds: 0.0,
            parts: Seconds::default(),
            layers: Vec::new(),
            reopened: 0,
            plan: None,
        };
        Ok(Progress { position, report, epoch_seconds: 0.0 })
    }

    /// Runs the rest of the current epoch; false when it was stopped.
    fn epoch(
        &self,
        mode: &mut dyn Mode,
        loader: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let epoch = progress.position.epoch;
        let order = epoch_order(self.spec.seed, epoch as u64, self.data.train.len());
        let steps = order.len().div_ceil(self.spec.batch);
        let mut batch = Batch::default();
        let start = Instant::now();
        let traffic = mode.worker().unwrap_or_default();
        let mut finished = true;
        for (step, indices) in order.chunks(self.spec.batch).enumerate().skip(progress.position.step) {
            if self.stop.load(Ordering::Relaxed) {
                finished = false;
                break;
            }
            loader.gather(Some(epoch as u64), indices, &mut batch);
            let rate = learning_rate(self.spec, epoch * steps + step, self.spec.epochs * steps);
            let loss = self.step(mode, &batch, rate, progress, observer)?;
            observer.tell(FromTrusted::Step { epoch, step, loss }, &[])?;
            tell_ledger(mode, observer)?;
        }
        progress.epoch_seconds = start.elapsed().as_secs_f64();
        progress.report.train_seconds += progress.epoch_seconds;
        add_traffic(&mut progress.report.train_traffic, traffic, mode.worker().unwrap_or_default());
        Ok(finished)
    }

    fn step(
        &self,
        mode: &mut dyn Mode,
        batch: &Batch,
        learning_rate: f32,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<f64, TrainError> {
        let Position { epoch, step, .. } = progress.position;
        let records: Vec<usize> = batch.indices.iter().map(|&i| i as usize).collect();
        let sgd = SgdStep { learning_rate, momentum: self.spec.momentum, weight_decay: self.spec.weight_decay };
        let dropout_seed = self.spec.seed ^ ((epoch as u64) << 40) ^ ((step as u64) << 16) ^ 0xd209;
        let train = TrainBatch { images: &batch.images, labels: &batch.labels, records: &records, dropout_seed };
        let report = self.surviving(mode, progress, observer, |mode| mode.step(train, sgd))?;
        let samples = batch.labels.len();
        progress.position.step += 1;
        progress.position.loss_sum += report.loss * samples as f64;
        progress.position.correct += report.correct;
        progress.position.samples += samples;
        progress.report.trained_samples += samples as u64;
        Ok(report.loss)
    }

    /// Does `work`; when the worker is lost, opens it again and does the work again.
    fn surviving<T>(
        &self,
        mode: &mut dyn Mode,
        progress: &mut Progress,
        observer: &mut dyn Observer,
        mut work: impl FnMut(&mut dyn Mode) -> Result<T, ExecError>,
    ) -> Result<T, TrainError> {
        loop {
            match work(mode) {
                Err(lost) if lost.is_worker_lost() => {
                    mode.recover(self.patience)?;
                    progress.report.reopened += 1;
                    let Position { epoch, step, .. } = progress.position;
                    let notice = Notice::WorkerReopened { epoch, step, reason: lost.to_string() };
                    observer.tell(FromTrusted::Notice(notice), &[])?;
                }
                other => return Ok(other?),
            }
        }
    }

    fn end_epoch(
        &self,
        mode: &mut dyn Mode,
        test: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let done = progress.position.clone();
        progress.position.epoch += 1;
        progress.position.step = 0;
        progress.position.loss_sum = 0.0;
        progress.position.correct = 0;
        progress.position.samples = 0;
        let epoch = progress.position.epoch;
        let last = epoch == self.spec.epochs;
        let before = progress.report.inference_seconds;
        let mut test_accuracy = None;
        if last || epoch.is_multiple_of(self.spec.evaluate_every.max(1)) {
            test_accuracy = Some(self.evaluate(mode, test, progress, observer)?);
            progress.report.test_accuracy = test_accuracy;
        }
        let count = done.samples.max(1) as f64;
        progress.report.loss = done.loss_sum / count;
        observer.tell(
            FromTrusted::Epoch(EpochReport {
                epoch,
                epochs: self.spec.epochs,
                loss: progress.report.loss,
                train_accuracy: done.correct as f64 / count,
                test_accuracy,
                epsilon: self.epsilon(mode)?,
                train_seconds: progress.epoch_seconds,
                evaluate_seconds: progress.report.inference_seconds - before,
            }),
            &[],
        )?;
        self.checkpoint(mode, &progress.position, observer)
    }

    fn evaluate(
        &self,
        mode: &mut dyn Mode,
        test: &Loader<'_>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<f64, TrainError> {
        let start = Instant::now();
        let traffic = mode.worker().unwrap_or_default();
        let mut batches = test.in_order(self.spec.batch);
        let mut batch = Batch::default();
        let (mut correct, mut samples) = (0, 0);
        while batches.next_into(&mut batch) {
            // Test records are numbered after the training records.
            let first = self.data.train.len();
            let records: Vec<usize> = batch.indices.iter().map(|&i| first + i as usize).collect();
            let logits = self.surviving(mode, progress, observer, |mode| mode.infer(&batch.images, &records))?;
            let classes = logits.len() / batch.labels.len().max(1);
            let hits = logits.chunks_exact(classes.max(1)).zip(&batch.labels);
            correct += hits.filter(|(row, label)| ops::argmax(row) == **label as usize).count();
            samples += batch.labels.len();
            tell_ledger(mode, observer)?;
        }
        progress.report.inferred_samples += samples as u64;
        progress.report.inference_seconds += start.elapsed().as_secs_f64();
        add_traffic(&mut progress.report.inference_traffic, traffic, mode.worker().unwrap_or_default());
        Ok(correct as f64 / samples.max(1) as f64)
    }

    fn checkpoint(
        &self,
        mode: &mut dyn Mode,
        position: &Position,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let rho = mode.accountant().map(|a| a.rho().to_vec()).unwrap_or_default();
        let bytes = Checkpoint { state: mode.state()?, rho, position: position.clone() }.encode()?;
        let (epoch, step) = (position.epoch, position.step);
        Ok(observer.tell(FromTrusted::Checkpoint { epoch, step }, &bytes)?)
    }

    fn epsilon(&self, mode: &mut dyn Mode) -> Result<Option<f64>, AccountantError> {
        mode.accountant().map(|accountant| accountant.epsilon(self.delta)).transpose()
    }
}

fn tell_ledger(mode: &mut dyn Mode, observer: &mut dyn Observer) -> Result<(), HostGone> {
    match mode.accountant().map(crate::accounting::RecordAccountant::take_ledger) {
        Some(entries) if !entries.is_empty() => observer.tell(FromTrusted::Ledger(entries), &[]),
        _ => Ok(()),
    }
}

fn add_traffic(total: &mut Traffic, before: WorkerStats, after: WorkerStats) {
    total.to_worker += after.bytes_to_worker - before.bytes_to_worker;
    total.from_worker += after.bytes_from_worker - before.bytes_from_worker;
}
