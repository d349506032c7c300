//! What outlives the process, sealed: the losses of clients, and what they were answered.

use std::io::{Write, stderr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use asymflow::job::VaultSpec;
use asymflow::serve::Vault;
use asymflow::service::{Answers, Asked, Keeper, Promise, Service, ServiceSettings};
use asymflow_enclave::{Binding, FileGuard, Replayed, SealError, SealedLog, SealedStore, SealingKey, Witness};

use crate::args::ServeArgs;
use crate::evidence::Evidence;

/// Label of the sealed ledgers.
const LEDGERS: &str = "ledgers";

/// Label of the sealed answers.
const ANSWERS: &str = "answers";
/// A quarter of the answers that are remembered is forgotten at a time.
const SEGMENTS: usize = 4;
/// Answers that are sealed in one block, at most.
const BLOCK_ANSWERS: usize = 64;

struct Sealed {
    store: SealedStore,
    /// Where answers are kept; `None` where they need not be, or could not.
    answers: Option<SealedLog>,
}

impl Sealed {
    fn append(&mut self, log: &mut SealedLog, answers: &[(Asked, Vec<f32>)]) -> Result<()> {
        for some in answers.chunks(BLOCK_ANSWERS) {
            log.append(&mut self.store, &Answers::encode(some)?)?;
        }
        Ok(())
    }
}

impl Keeper for Sealed {
    fn keep(&mut self, ledgers: &[u8]) -> Result<(), String> {
        self.store.save(LEDGERS, ledgers).map_err(|error| error.to_string())
    }

    fn remember(&mut self, answers: &[(Asked, Vec<f32>)]) {
        let Some(mut log) = self.answers.take() else { return };
        match self.append(&mut log, answers) {
            Ok(()) => self.answers = Some(log),
            Err(error) => {
                let what = "answers are sealed no more until the next start, and cost again after it";
                let _ = writeln!(stderr(), "warning: {what}: {error:#}");
            }
        }
    }

    fn witness(&mut self) -> Option<Vec<u8>> {
        Some(self.store.witness(LEDGERS).ok()??.to_bytes().to_vec())
    }

    fn check_witness(&mut self, witness: &[u8]) -> Result<(), String> {
        let witness = witness.try_into().map_err(|_| format!("a witness has {} bytes", Witness::BYTES))?;
        self.store.check_witness(LEDGERS, &Witness::from_bytes(witness)).map_err(|error| error.to_string())
    }
}

/// Label of the sealed checkpoint.
const CHECKPOINT: &str = "checkpoint";
/// The largest network of the zoo needs 1.2 GB.
const CHECKPOINT_LIMIT_BYTES: u64 = 4 << 30;

impl Vault for Sealed {
    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String> {
        self.store.save(CHECKPOINT, checkpoint).map_err(|error| error.to_string())
    }

    fn latest(&mut self) -> Result<Option<Vec<u8>>, String> {
        let kept = self.store.load(CHECKPOINT).map_err(|error| error.to_string())?;
        Ok(kept.map(|kept| kept.to_vec()))
    }
}

/// Opens the vault of a job.
pub fn open_vault(spec: &VaultSpec) -> Result<Box<dyn Vault>, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let evidence = Evidence::open().map_err(text)?;
    let store = store(&spec.folder, &spec.guard, &evidence, &mut Vec::new()).map_err(text)?;
    Ok(Box::new(Sealed { store: store.with_limit(CHECKPOINT_LIMIT_BYTES), answers: None }))
}

fn store(folder: &Path, guard: &Path, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<SealedStore> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let key = key(folder, evidence, insecure)?;
    let guard = FileGuard::open(guard, &key)?;
    Ok(SealedStore::open(folder, key, Box::new(guard))?)
}

/// Gives `service` the losses and the answers that an earlier process sealed, and a place to keep them in. Names in `promise`
/// what is insecure about it.
pub fn keep(
    mut service: Service,
    args: &ServeArgs,
    settings: &ServiceSettings,
    evidence: &Evidence,
    promise: &mut Promise,
) -> Result<Service> {
    let is_charged = service.answer_epsilon().is_some();
    let Some(folder) = &args.state else {
        if is_charged && !args.insecure_forgetful {
            bail!("losses of clients must outlive a restart: give --state, or --insecure-forgetful");
        }
        promise.insecure.extend(args.insecure_forgetful.then(|| "insecure_forgetful".to_owned()));
        return Ok(service);
    };
    let guard = args.guard.clone().unwrap_or_else(|| folder.join("guard"));
    let mut store = store(folder, &guard, evidence, &mut promise.insecure)?;
    let kept = store.load(LEDGERS).context("the losses of clients cannot be loaded")?;
    let mut answers = None;
    if is_charged {
        let (log, remembered) = recall(&mut store, settings, promise).context("the answers cannot be loaded")?;
        service = service.with_answers(remembered);
        answers = Some(log);
    }
    Ok(service.with_keeper(kept.as_ref().map(|kept| kept.as_slice()), Box::new(Sealed { store, answers }))?)
}

/// The answers that an earlier process sealed, of the same model in the same mode.
fn recall(
    store: &mut SealedStore,
    settings: &ServiceSettings,
    promise: &Promise,
) -> Result<(SealedLog, Answers), SealError> {
    let segment_bytes = settings.remembered.div_ceil(SEGMENTS) * Answers::encoded_bytes(1, promise.classes);
    let context = Answers::context(&promise.model_sha256, &promise.mode);
    let mut answers = Answers::new(settings.remembered);
    // Authentic, of this model and of another version of this program where it cannot be read: it costs again.
    let mut each = |block: &[u8]| drop(answers.recall(block));
    let (log, replayed) = SealedLog::open(store, ANSWERS, context, segment_bytes as u64, &mut each)?;
    let Replayed { lost_blocks, .. } = replayed;
    if lost_blocks > 0 {
        let what = "sealed answers are damaged or gone, and cost again";
        let _ = writeln!(stderr(), "warning: {what}: at least {lost_blocks} blocks of up to {BLOCK_ANSWERS}");
    }
    Ok((log, answers))
}

/// The signer's key, so that a newer enclave of the same signer goes on with the same budgets.
pub fn key(folder: &Path, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<SealingKey> {
    if evidence.is_enclave() {
        return Ok(SealingKey::gramine(Binding::Signer)?);
    }
    insecure.push("insecure_host_key".to_owned());
    Ok(SealingKey::insecure_host_file(&folder.join("host.key"))?)
}
