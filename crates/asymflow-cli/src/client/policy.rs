//! What this client accepts: which enclave, and which promise.

use std::path::Path;

use asymflow::service::Promise;
use asymflow_enclave::attest::{Collateral, Policy, Verifier};
use serde::Deserialize;

use super::service::ServiceArgs;
use crate::error::CliError;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientPolicy {
    pub enclave: Policy,
    pub promise: PromisePolicy,
}

/// Which promises are accepted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromisePolicy {
    /// SHA-256 of the only one, in hexadecimal.
    pub sha256: Option<String>,
    /// The largest ε of one answer.
    pub max_answer_epsilon: Option<f64>,
    /// The largest ε of all answers to this client.
    pub max_client_epsilon: Option<f64>,
    /// Insecure settings that are accepted, by name.
    pub accept_insecure: Vec<String>,
}

impl ClientPolicy {
    /// The policy of `service`: a file, or the strictest; simulated evidence only where it was asked for.
    pub fn of(service: &ServiceArgs) -> Result<Self, CliError> {
        let mut policy = match &service.policy {
            None => Self::default(),
            Some(path) => {
                let unusable = |e: String| {
                    CliError::usage(format!("{}: {e}", path.display()), "`asymflow client inspect` prints what to pin")
                };
                let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
                toml::from_str(&text).map_err(|e| unusable(e.to_string()))?
            }
        };
        policy.enclave.insecure_accept_simulated = service.insecure_accept_simulated;
        Ok(policy)
    }

    /// The verifier of this policy.
    pub fn verifier(&self, collateral: Option<&Path>) -> Result<Verifier, CliError> {
        let collateral = match collateral {
            Some(path) => {
                let unusable = |e: String| {
                    let help = "docs/how-to/run-on-sgx.md tells where collateral comes from";
                    CliError::usage(format!("{}: {e}", path.display()), help)
                };
                let bytes = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
                Collateral::from_json(&bytes).map_err(|e| unusable(e.to_string()))?
            }
            None if self.enclave.insecure_accept_simulated => simulated()?,
            None => {
                return Err(CliError::usage(
                    "no collateral to verify the service's quote with",
                    "give --collateral (docs/how-to/run-on-sgx.md), or for a trial --insecure-accept-simulated",
                ));
            }
        };
        let help = "`asymflow client inspect` prints what to pin with --policy";
        let verifier =
            Verifier::new(self.enclave.clone(), collateral).map_err(|e| CliError::usage(e.to_string(), help))?;
        let Some(text) = &self.promise.sha256 else { return Ok(verifier) };
        let hash = parse_hash(text)
            .ok_or_else(|| CliError::usage(format!("promise.sha256 is not 64 hexadecimal digits: {text:?}"), help))?;
        Ok(verifier.with_promise(hash))
    }

    /// Whether a promise will do. A client that accepts simulated services accepts what is insecure about them.
    pub fn check(&self, promise: &Promise) -> Result<(), CliError> {
        let refused = |what: String| {
            let help = "read the promise with `asymflow client inspect`, and accept it in [promise] of the policy if it will do";
            Err(CliError::failed(format!("the service is refused: {what}"), help))
        };
        let is_accepted = |name: &String| self.promise.accept_insecure.contains(name);
        if let Some(name) = promise.insecure.iter().find(|&name| !is_accepted(name))
            && !self.enclave.insecure_accept_simulated
        {
            return refused(format!("it runs with {name}, which the policy does not accept"));
        }
        let Some(release) = &promise.release else { return Ok(()) };
        for (what, most, promised) in [
            ("an answer", self.promise.max_answer_epsilon, release.answer_epsilon),
            ("all answers", self.promise.max_client_epsilon, release.client_epsilon),
        ] {
            if let Some(most) = most
                && promised.is_none_or(|promised| promised > most)
            {
                let promised = promised.map_or("no limit".to_owned(), |epsilon| format!("epsilon {epsilon}"));
                return refused(format!("it promises {promised} for {what}, the policy allows epsilon {most}"));
            }
        }
        Ok(())
    }
}

/// Collateral under the published simulated root, valid now.
fn simulated() -> Result<Collateral, CliError> {
    use asymflow_enclave::attest::{Clock, simulated_collateral};
    simulated_collateral(Clock::System.now_unix_seconds()).map_err(|e| CliError::failed(e.to_string(), ""))
}

/// 32 bytes in hexadecimal.
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let pairs: &[[u8; 2]; 32] = pairs.try_into().ok()?;
    let digit = |d: u8| char::from(d).to_digit(16);
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(*high)? * 16 + digit(*low)?) as u8;
    }
    Some(bytes)
}
