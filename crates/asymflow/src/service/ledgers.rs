//! What every client has lost, charged before anything of it is released.

use std::collections::BTreeMap;

use asymflow_privacy::{Budget, BudgetError, Loss, RecordLedger};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::QueryError;

/// SHA-256 of the secret by which a client names itself.
///
/// The budget protects the client from the worker. Whoever knows the secret can spend it; a client that takes a new secret
/// has a fresh budget and gives up the protection of the old one, for itself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId([u8; 32]);

impl ClientId {
    /// Of a client's secret.
    pub fn of(secret: &[u8; 32]) -> Self {
        Self(Sha256::new().chain_update(b"asymflow client\0").chain_update(secret).finalize().into())
    }
}

/// Losses that were kept cannot be read, so no budget can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgersError {
    /// Not what [`Ledgers::encode`] writes.
    #[error("the kept losses of clients cannot be read")]
    Malformed,
    /// More clients than the limit.
    #[error("losses of {got} clients were kept, the limit is {limit}")]
    TooMany {
        /// How many.
        got: usize,
        /// The limit.
        limit: usize,
    },
}

/// Losses by client.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledgers {
    spent: BTreeMap<ClientId, RecordLedger>,
    limit: usize,
}

impl Ledgers {
    /// Nobody yet, and at most `limit` clients.
    pub const fn new(limit: usize) -> Self {
        Self { spent: BTreeMap::new(), limit }
    }

    /// What a client has lost.
    pub fn spent(&self, client: &ClientId) -> RecordLedger {
        self.spent.get(client).copied().unwrap_or_default()
    }

    /// Charges one answer.
    ///
    /// # Errors
    /// It exceeds the budget, or there is no room for another client. Nothing has changed, and nothing may be released.
    pub fn charge(&mut self, client: ClientId, losses: &[Loss], budget: Option<Budget>) -> Result<(), QueryError> {
        if losses.is_empty() {
            return Ok(());
        }
        if !self.spent.contains_key(&client) && self.spent.len() >= self.limit {
            return Err(QueryError::Full { limit: self.limit });
        }
        let spent = self.spent(&client);
        let mut after = spent;
        losses.iter().for_each(|&loss| after.add(loss));
        if let Some(Budget { epsilon: limit, delta }) = budget {
            let no_budget = |_| BudgetError::Budget { epsilon: limit, delta };
            let asked = after.epsilon(delta).map_err(no_budget)?;
            if asked.is_nan() || asked > limit {
                let spent = spent.epsilon(delta).map_err(no_budget)?;
                return Err(BudgetError::Exhausted { spent, asked, limit, delta }.into());
            }
        }
        self.spent.insert(client, after);
        Ok(())
    }

    /// Bytes to keep.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(&self.spent)
    }

    /// Inverse of [`Ledgers::encode`].
    ///
    /// # Errors
    /// Anything else, or more clients than `limit`.
    pub fn decode(bytes: &[u8], limit: usize) -> Result<Self, LedgersError> {
        let Ok((spent, [])) = postcard::take_from_bytes::<BTreeMap<ClientId, RecordLedger>>(bytes) else {
            return Err(LedgersError::Malformed);
        };
        if spent.len() > limit {
            return Err(LedgersError::TooMany { got: spent.len(), limit });
        }
        Ok(Self { spent, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Option<Budget> = Some(Budget { epsilon: 2.5, delta: 1e-5 });
    const LOSS: [Loss; 1] = [Loss::Pure { epsilon: 1.0 }];

    #[test]
    fn a_client_is_refused_when_its_budget_is_spent_and_a_restart_does_not_help() {
        let (one, two) = (ClientId::of(&[1; 32]), ClientId::of(&[2; 32]));
        let mut ledgers = Ledgers::new(2);
        assert!(ledgers.charge(one, &LOSS, BUDGET).is_ok());
        assert!(ledgers.charge(one, &LOSS, BUDGET).is_ok());
        let before = ledgers.clone();
        assert!(matches!(ledgers.charge(one, &LOSS, BUDGET), Err(QueryError::Budget(BudgetError::Exhausted { .. }))));
        assert_eq!(ledgers, before, "a refusal charges nothing");
        assert!(ledgers.charge(two, &LOSS, BUDGET).is_ok());
        let mut again = Ledgers::decode(&ledgers.encode().unwrap(), 2).unwrap();
        assert!(again.charge(one, &LOSS, BUDGET).is_err());
        assert_eq!(again.charge(ClientId::of(&[3; 32]), &LOSS, BUDGET), Err(QueryError::Full { limit: 2 }));
    }

    #[test]
    fn what_costs_nothing_leaves_no_trace_of_a_client() {
        let mut ledgers = Ledgers::new(0);
        assert!(ledgers.charge(ClientId::of(&[1; 32]), &[], None).is_ok());
        assert!(ledgers.spent.is_empty());
    }

    #[test]
    fn what_was_not_written_by_us_is_refused() {
        let mut ledgers = Ledgers::new(3);
        ledgers.charge(ClientId::of(&[1; 32]), &LOSS, None).unwrap();
        let bytes = ledgers.encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Ledgers::decode(&bytes[..end], 3).is_err(), "cut at {end}");
        }
        assert_eq!(Ledgers::decode(&bytes, 0), Err(LedgersError::TooMany { got: 1, limit: 0 }));
    }
}
