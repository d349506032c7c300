//! What outlives the process, sealed: the losses of clients, and what they were answered.

use std::io::{Write, stderr};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use asymflow::job::VaultSpec;
use asymflow::serve::Vault;
use asymflow::service::{Answers, Asked, ClientId, Keeper, Ledgers, Promise, Service, ServiceSettings};
use asymflow_enclave::manifest::FOLDERS;
use asymflow_enclave::seal::{
    Binding, Durability, FileGuard, Replayed, SealError, SealedLog, SealedStore, SealingKey, Witness,
};

use crate::args::ServeArgs;
use crate::evidence::{Evidence, SIM};

const LEDGERS: &str = "ledgers";
const ANSWERS: &str = "answers";
/// A log is written anew when this much more than twice what it stands for has been appended.
const SPARE_BYTES: u64 = 1 << 20;

struct Sealed {
    store: SealedStore,
    ledgers: SealedLog,
    /// Where answers are kept; `None` where they need not be, or could not.
    answers: Option<SealedLog>,
}

/// Blocks as a log is written anew with them.
fn sealable<E: ToString>(block: Result<Vec<u8>, E>) -> Result<Vec<u8>, SealError> {
    block.map_err(|error| SealError::Content(error.to_string()))
}

impl Sealed {
    fn append_answers(&mut self, log: &mut SealedLog, answers: &Answers, new: &[Asked]) -> Result<(), SealError> {
        for block in answers.blocks_of(new).map(sealable) {
            log.append(&mut self.store, &block?, &mut answers.blocks().map(sealable))?;
        }
        Ok(())
    }
}

impl Keeper for Sealed {
    fn keep(&mut self, ledgers: &Ledgers, charged: &[ClientId]) -> Result<(), String> {
        let appended = sealable(ledgers.encode(charged))
            .and_then(|block| self.ledgers.append(&mut self.store, &block, &mut ledgers.blocks().map(sealable)));
        appended.map_err(|error| error.to_string())
    }

    fn remember(&mut self, answers: &Answers, new: &[Asked]) {
        let Some(mut log) = self.answers.take() else { return };
        match self.append_answers(&mut log, answers, new) {
            Ok(()) => self.answers = Some(log),
            Err(error) => {
                let what = "answers are sealed no more until the next start, and cost again after it";
                let _ = writeln!(stderr(), "warning: {what}: {error:#}");
            }
        }
    }

    fn witness(&mut self) -> Option<Vec<u8>> {
        Some(self.ledgers.witness(&self.store)?.to_bytes().to_vec())
    }

    fn check_witness(&mut self, witness: &[u8]) -> Result<(), String> {
        let witness = witness.try_into().map_err(|_| format!("a witness has {} bytes", Witness::BYTES))?;
        let checked = self.ledgers.check_witness(&self.store, &Witness::from_bytes(witness));
        checked.map_err(|error| error.to_string())
    }
}

const CHECKPOINT: &str = "checkpoint";
/// The largest network of the zoo needs 1.2 GB.
const CHECKPOINT_LIMIT_BYTES: u64 = 4 << 30;

struct SealedCheckpoint(SealedStore);

impl Vault for SealedCheckpoint {
    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String> {
        self.0.save(CHECKPOINT, checkpoint).map_err(|error| error.to_string())
    }

    fn latest(&mut self) -> Result<Option<Vec<u8>>, String> {
        let kept = self.0.load(CHECKPOINT).map_err(|error| error.to_string())?;
        Ok(kept.map(|kept| kept.to_vec()))
    }
}

/// Opens the vault of a job.
pub fn open_vault(spec: &VaultSpec) -> Result<Box<dyn Vault>, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let evidence = Evidence::open().map_err(text)?;
    let store = store(&spec.folder, &spec.guard, &evidence, &mut Vec::new()).map_err(text)?;
    Ok(Box::new(SealedCheckpoint(store.with_limit(CHECKPOINT_LIMIT_BYTES))))
}

/// Refuses a folder that goes with the enclave, as everything does that its manifest does not mount.
pub fn outlives(folder: &Path, evidence: &Evidence) -> Result<()> {
    let mounted = std::env::var(FOLDERS).unwrap_or_default();
    let is_within = |mount: &str| !mount.is_empty() && folder.starts_with(mount);
    let climbs = folder.components().any(|part| part == Component::ParentDir);
    if evidence.runtime() != SIM && (climbs || !mounted.split(':').any(is_within)) {
        bail!("{} goes with the enclave: its manifest mounts {mounted:?} for what is to outlive it", folder.display());
    }
    Ok(())
}

fn store(folder: &Path, guard: &Path, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<SealedStore> {
    outlives(folder, evidence)?;
    outlives(guard, evidence)?;
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
    let mut ledgers = accounts(args, settings)?;
    let is_charged = service.answer_epsilon().is_some();
    let Some(folder) = &args.state else {
        if is_charged && !args.insecure_forgetful {
            bail!("losses of clients must outlive a restart: give --state, or --insecure-forgetful");
        }
        promise.insecure.extend(args.insecure_forgetful.then(|| "insecure_forgetful".to_owned()));
        return Ok(service.with_ledgers(ledgers));
    };
    let guard = args.guard.clone().unwrap_or_else(|| folder.join("guard"));
    let mut store = store(folder, &guard, evidence, &mut promise.insecure)?;
    let mut unread = None;
    let mut each = |block: &[u8]| unread = unread.take().or(ledgers.recall(block).err());
    let opened = SealedLog::open(&mut store, LEDGERS, [0; 32], Durability::Strict, SPARE_BYTES, &mut each);
    let (log, _) = opened.context("the losses of clients cannot be loaded")?;
    if let Some(error) = unread {
        bail!(error);
    }
    let mut sealed = Sealed { store, ledgers: log, answers: None };
    if is_charged {
        let (log, remembered) = recall(&mut sealed.store, settings, promise).context("the answers cannot be loaded")?;
        service = service.with_answers(remembered);
        sealed.answers = Some(log);
    }
    Ok(service.with_ledgers(ledgers).with_keeper(Box::new(sealed)))
}

/// Who may have an account; nobody has one yet.
fn accounts(args: &ServeArgs, settings: &ServiceSettings) -> Result<Ledgers> {
    let ledgers = Ledgers::new(settings.accounts);
    let Some(path) = &args.client_tokens else { return Ok(ledgers) };
    let named = || path.display().to_string();
    let tokens = std::fs::read_to_string(path).with_context(named)?;
    ledgers.with_tokens(&tokens).with_context(named)
}

/// The answers that an earlier process sealed, of the same model in the same mode.
fn recall(
    store: &mut SealedStore,
    settings: &ServiceSettings,
    promise: &Promise,
) -> Result<(SealedLog, Answers), SealError> {
    let context = Answers::context(&promise.model_sha256, &promise.mode);
    let mut answers = Answers::new(settings.remembered);
    // Authentic, of this model and of another version of this program where it cannot be read: it costs again.
    let mut each = |block: &[u8]| drop(answers.recall(block));
    let (log, replayed) = SealedLog::open(store, ANSWERS, context, Durability::Relaxed, SPARE_BYTES, &mut each)?;
    let Replayed { lost_blocks, .. } = replayed;
    if lost_blocks > 0 {
        let what = "sealed answers are damaged or gone, and cost again";
        let _ = writeln!(stderr(), "warning: {what}: at least {lost_blocks} blocks of them");
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
