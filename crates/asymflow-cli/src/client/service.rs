//! Which service is asked.

use std::path::PathBuf;
use std::time::Duration;

/// Which service, and what is accepted of it.
#[derive(Clone, Debug, clap::Args)]
pub struct ServiceArgs {
    /// Address of the service
    #[arg(long, default_value = "127.0.0.1:7800")]
    pub enclave: String,
    /// What to accept: a TOML file with [enclave] and [promise]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Intel's collateral for the service's platform, as JSON
    #[arg(long, value_name = "FILE")]
    pub collateral: Option<PathBuf>,
    /// The secret by which this client names itself, and so its budget; made there where it is missing
    #[arg(long, value_name = "FILE")]
    pub account: Option<PathBuf>,
    /// Accept a service that is no enclave: whoever owns its machine sees every image
    #[arg(long)]
    pub insecure_accept_simulated: bool,
    /// Take this service for a new one: forget what was seen of the state of a service at this address
    #[arg(long)]
    pub forget_witness: bool,
    /// Longest wait for an answer, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

impl ServiceArgs {
    /// A service of this machine that proves nothing and does not have to.
    pub fn trial(address: &str) -> Self {
        Self {
            enclave: address.to_owned(),
            policy: None,
            collateral: None,
            account: None,
            insecure_accept_simulated: true,
            forget_witness: true,
            timeout: 60,
        }
    }

    /// A service's answers have to come within this.
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}
