//! What outlives the process: the losses of clients, sealed.

use std::path::Path;

use anyhow::{Context, Result, bail};
use asymflow::job::VaultSpec;
use asymflow::serve::Vault;
use asymflow::service::{Keeper, Service};
use asymflow_enclave::{Binding, FileGuard, SealedStore, SealingKey, Witness};

use crate::args::ServeArgs;
use crate::evidence::Evidence;

/// Label of the sealed ledgers.
const LEDGERS: &str = "ledgers";

struct Sealed {
    store: SealedStore,
}

impl Keeper for Sealed {
    fn keep(&mut self, ledgers: &[u8]) -> Result<(), String> {
        self.store.save(LEDGERS, ledgers).map_err(|error| error.to_string())
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
    Ok(Box::new(Sealed { store: store.with_limit(CHECKPOINT_LIMIT_BYTES) }))
}

fn store(folder: &Path, guard: &Path, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<SealedStore> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let key = key(folder, evidence, insecure)?;
    let guard = FileGuard::open(guard, &key)?;
    Ok(SealedStore::open(folder, key, Box::new(guard))?)
}

/// Gives `service` the losses that an earlier process sealed, and a place to keep them in. Names what is insecure about it.
pub fn keep(service: Service, args: &ServeArgs, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<Service> {
    let Some(folder) = &args.state else {
        if service.answer_epsilon().is_some() && !args.insecure_forgetful {
            bail!("losses of clients must outlive a restart: give --state, or --insecure-forgetful");
        }
        insecure.extend(args.insecure_forgetful.then(|| "insecure_forgetful".to_owned()));
        return Ok(service);
    };
    let guard = args.guard.clone().unwrap_or_else(|| folder.join("guard"));
    let mut store = store(folder, &guard, evidence, insecure)?;
    let kept = store.load(LEDGERS).context("the losses of clients cannot be loaded")?;
    Ok(service.with_keeper(kept.as_ref().map(|kept| kept.as_slice()), Box::new(Sealed { store }))?)
}

/// The signer's key, so that a newer enclave of the same signer goes on with the same budgets.
fn key(folder: &Path, evidence: &Evidence, insecure: &mut Vec<String>) -> Result<SealingKey> {
    if evidence.is_enclave() {
        return Ok(SealingKey::gramine(Binding::Signer)?);
    }
    insecure.push("insecure_host_key".to_owned());
    Ok(SealingKey::insecure_host_file(&folder.join("host.key"))?)
}
