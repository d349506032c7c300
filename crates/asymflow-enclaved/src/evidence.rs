//! What the program can prove of itself, by where it runs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use asymflow::service::sha256_hex;
use asymflow_enclave::Assurance;
use asymflow_enclave::attest::{AttestedIdentity, GramineQuoter, Quoter};
use rustls::ServerConfig;

use crate::door::Prove;

/// Where Gramine has its attestation files.
const ATTESTATION: &str = "/dev/attestation";

pub const SIM: &str = "sim";
pub const SGX: &str = "gramine-sgx";

/// Which runtime this process runs under; Gramine shows its files to all that it runs.
pub fn runtime() -> &'static str {
    match Path::new(ATTESTATION) {
        folder if folder.join("attestation_type").exists() => SGX,
        folder if folder.exists() => "gramine-direct",
        _ => SIM,
    }
}

/// A quoter, and the runtime it belongs to.
pub struct Evidence {
    quoter: Arc<dyn Quoter>,
    runtime: &'static str,
}

/// The service's TLS identity with its quote.
pub struct Identity {
    identity: Arc<AttestedIdentity>,
    quoter: Arc<dyn Quoter>,
    promise_sha256: String,
}

impl Evidence {
    /// Quotes of the enclave where this is one, and otherwise simulated ones.
    pub fn open() -> Result<Self> {
        let runtime = runtime();
        if runtime != SGX {
            return Ok(Self { quoter: simulated()?, runtime });
        }
        let quoter = GramineQuoter::default();
        quoter.probe()?;
        Ok(Self { quoter: Arc::new(quoter), runtime })
    }

    pub const fn runtime(&self) -> &'static str {
        self.runtime
    }

    pub fn is_enclave(&self) -> bool {
        !self.quoter.is_simulated()
    }

    /// A fresh TLS key, vouched for together with the promise.
    pub fn identity(&self, promise: &[u8]) -> Result<Identity> {
        let identity = AttestedIdentity::new(&*self.quoter, promise).context("cannot make an attested identity")?;
        Ok(Identity {
            identity: Arc::new(identity),
            quoter: Arc::clone(&self.quoter),
            promise_sha256: sha256_hex(promise),
        })
    }
}

#[cfg(feature = "simulated")]
fn simulated() -> Result<Arc<dyn Quoter>> {
    use asymflow_enclave::attest::{SimulatedMeasurement, SimulatedQuoter};
    let program = std::env::current_exe().and_then(std::fs::read).context("cannot read this program")?;
    Ok(Arc::new(SimulatedQuoter::new(SimulatedMeasurement::of_program(&program))?))
}

#[cfg(not(feature = "simulated"))]
fn simulated() -> Result<Arc<dyn Quoter>> {
    anyhow::bail!("this is no enclave, and the program was built without simulated evidence")
}

impl Identity {
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.identity.server_config()
    }

    pub fn certificate(&self) -> &[u8] {
        self.identity.certificate()
    }

    /// Makes quotes for sessions.
    pub fn prover(&self) -> Prove {
        let (identity, quoter) = (Arc::clone(&self.identity), Arc::clone(&self.quoter));
        Arc::new(move |nonce, exporter| {
            identity.fresh_quote(&*quoter, nonce, exporter).map_err(|error| error.to_string())
        })
    }

    /// How far results can be trusted: an enclave proves itself to its clients, so here it is at most isolated.
    pub fn assurance(&self) -> Assurance {
        if self.quoter.is_simulated() { Assurance::Simulated } else { Assurance::Isolated }
    }

    /// SHA-256 of the promise, which clients may pin.
    pub fn promise_sha256(&self) -> &str {
        &self.promise_sha256
    }
}
