//! What every client has lost, charged before anything of it is released.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use asymflow_privacy::{
    Loss,
    records::{Budget, BudgetError, RecordLedger},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::hex::hex;

/// The generation of clients whose tokens the operator has listed. It never closes.
const LISTED: u64 = u64::MAX;
/// In how much time [`AccountLimits::new_each_hour`] accounts may be opened.
const HOUR: Duration = Duration::from_secs(3600);
/// Accounts in one block of [`Ledgers::blocks`]: about 60 bytes each.
const BLOCK_ACCOUNTS: usize = 4096;

/// A client's account: the generation in which it was opened, and SHA-256 of the secret by which the client names itself.
///
/// The budget protects the client from the worker. Whoever knows the secret can spend it; a client that opens another account
/// has a fresh budget and gives up the protection of the old one, for itself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId {
    generation: u64,
    secret_sha256: [u8; 32],
}

impl ClientId {
    /// Of a client's secret, opened in the first generation.
    pub fn of(secret: &[u8; 32]) -> Self {
        Self::opened_in(0, secret)
    }

    fn opened_in(generation: u64, secret: &[u8; 32]) -> Self {
        let hash = Sha256::new().chain_update(b"asymflow client\0").chain_update(secret);
        Self { generation, secret_sha256: hash.finalize().into() }
    }

    /// The generation in which the account was opened, for the client to show at its next visit.
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

/// How many accounts there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountLimits {
    /// Accounts that are kept. Where half as many have been opened in one generation the next one begins, and the
    /// generation before both is closed: nobody can lock newcomers out for good, and no account ever gets a second budget.
    pub accounts: usize,
    /// Accounts that may be opened in an hour.
    pub new_each_hour: usize,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self { accounts: 100_000, new_each_hour: 1000 }
    }
}

/// Why a client has no account.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AccountError {
    /// Clients need tokens here.
    #[error("the operator answers clients with a token alone, and {sha256} is the hash of none")]
    Unlisted {
        /// SHA-256 of the secret that the client has shown, as the operator would list it.
        sha256: String,
    },
    /// Enough have been opened since.
    #[error("the account of generation {generation} is closed (the current one is {current}): open another")]
    Closed {
        /// When the client says that it was opened.
        generation: u64,
        /// The generation in which accounts are opened now.
        current: u64,
    },
    /// Too many newcomers.
    #[error("{limit} accounts were opened in this hour, and no more are: ask again later")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// A list of tokens that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokensError {
    /// A line that is no hash.
    #[error("line {line} is not 64 hexadecimal digits: {found:?}")]
    Line {
        /// From 1.
        line: usize,
        /// What stands there, up to 80 characters.
        found: String,
    },
}

/// Why an answer was not charged. Nothing has changed, and nothing may be released.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ChargeError {
    /// The client has no account and gets none.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Its budget does not allow it.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

/// Losses that were kept cannot be read, so no budget can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("what was kept of clients cannot be read")]
pub struct Malformed;

/// Losses by client.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledgers {
    spent: BTreeMap<ClientId, RecordLedger>,
    counts: BTreeMap<u64, usize>,
    /// The generation in which accounts are opened.
    current: u64,
    limits: AccountLimits,
    /// Hashes of the only secrets that have accounts.
    listed: Option<BTreeSet<[u8; 32]>>,
    /// When the present hour began, and how many were opened in it.
    opened: Option<(Instant, usize)>,
}

impl Ledgers {
    /// Nobody yet.
    pub const fn new(limits: AccountLimits) -> Self {
        Self { spent: BTreeMap::new(), counts: BTreeMap::new(), current: 0, limits, listed: None, opened: None }
    }

    /// Gives accounts to those clients alone whose secret's hash stands in `tokens`, one a line; without a limit in time.
    ///
    /// # Errors
    /// A line that is no hash.
    pub fn with_tokens(mut self, tokens: &str) -> Result<Self, TokensError> {
        let parse = |(number, text): (usize, &str)| {
            let found = || text.chars().take(80).collect();
            parse_hash(text).ok_or_else(|| TokensError::Line { line: number + 1, found: found() })
        };
        let lines = tokens.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
        self.listed = Some(lines.map(parse).collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// The account of a client that shows `secret`, which it was told to have opened in `generation`; without one, where its
    /// account would be opened now. Nothing is kept before the first charge.
    ///
    /// # Errors
    /// It has none and gets none.
    pub fn admit(&mut self, secret: &[u8; 32], generation: Option<u64>) -> Result<ClientId, AccountError> {
        if self.listed.is_some() {
            let client = ClientId::opened_in(LISTED, secret);
            return self.check_open(&client).map(|()| client);
        }
        if self.is_full(self.current) {
            self.current += 1;
            self.close();
        }
        let client = ClientId::opened_in(generation.unwrap_or(self.current), secret);
        self.check_open(&client).map(|()| client)
    }

    /// Whether accounts of the client's generation are open.
    fn check_open(&self, client: &ClientId) -> Result<(), AccountError> {
        let (generation, current) = (client.generation, self.current);
        match &self.listed {
            Some(listed) if generation == LISTED && listed.contains(&client.secret_sha256) => Ok(()),
            Some(_) => Err(AccountError::Unlisted { sha256: hex(&client.secret_sha256) }),
            None if generation <= current && generation.saturating_add(1) >= current => Ok(()),
            None => Err(AccountError::Closed { generation, current }),
        }
    }

    fn is_full(&self, generation: u64) -> bool {
        self.counts.get(&generation).is_some_and(|&count| count >= self.limits.accounts.div_ceil(2))
    }

    /// Opens an account, within the limits.
    fn open(&mut self, client: &ClientId, now: Instant) -> Result<(), AccountError> {
        self.check_open(client)?;
        if self.listed.is_none() {
            if self.is_full(client.generation) {
                return Err(AccountError::Closed { generation: client.generation, current: self.current });
            }
            let (began, count) =
                self.opened.filter(|(began, _)| now.saturating_duration_since(*began) < HOUR).unwrap_or((now, 0));
            if count >= self.limits.new_each_hour {
                return Err(AccountError::TooMany { limit: self.limits.new_each_hour });
            }
            self.opened = Some((began, count + 1));
        }
        Ok(())
    }

    /// Forgets the accounts that are closed.
    fn close(&mut self) {
        let oldest = self.current.saturating_sub(1);
        self.spent = self.spent.split_off(&ClientId { generation: oldest, secret_sha256: [0; 32] });
        self.counts = self.counts.split_off(&oldest);
    }

    /// What a client has lost.
    pub fn spent(&self, client: &ClientId) -> RecordLedger {
        self.spent.get(client).copied().unwrap_or_default()
    }

    /// Charges one answer, and opens the client's account for it where it has none.
    ///
    /// # Errors
    /// It exceeds the budget, or there is no account. Nothing has changed, and nothing may be released.
    pub fn charge(
        &mut self,
        client: ClientId,
        losses: &[Loss],
        budget: Option<Budget>,
        now: Instant,
    ) -> Result<(), ChargeError> {
        if losses.is_empty() {
            return Ok(());
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
        if self.spent.contains_key(&client) {
            self.check_open(&client)?;
        } else {
            self.open(&client, now)?;
        }
        self.put(client, after);
        Ok(())
    }

    fn put(&mut self, client: ClientId, spent: RecordLedger) {
        if self.spent.insert(client, spent).is_none() {
            *self.counts.entry(client.generation).or_default() += 1;
        }
    }

    /// Bytes that say what these clients have lost so far, for a [`Keeper`](super::Keeper) to append.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(&self, clients: &[ClientId]) -> Result<Vec<u8>, postcard::Error> {
        let spent: Vec<(ClientId, RecordLedger)> = clients.iter().map(|client| (*client, self.spent(client))).collect();
        postcard::to_stdvec(&spent)
    }

    /// What all clients have lost, in blocks as of [`Ledgers::encode`].
    pub fn blocks(&self) -> impl Iterator<Item = Result<Vec<u8>, postcard::Error>> {
        let mut rest = self.spent.keys().copied().peekable();
        std::iter::from_fn(move || {
            rest.peek()?;
            Some(self.encode(&rest.by_ref().take(BLOCK_ACCOUNTS).collect::<Vec<_>>()))
        })
    }

    /// Goes on from a block that an earlier process kept, in the order in which they were kept.
    ///
    /// # Errors
    /// Not what [`Ledgers::encode`] writes.
    pub fn recall(&mut self, block: &[u8]) -> Result<(), Malformed> {
        let Ok((spent, [])) = postcard::take_from_bytes::<Vec<(ClientId, RecordLedger)>>(block) else {
            return Err(Malformed);
        };
        for (client, spent) in spent {
            self.put(client, spent);
            if client.generation != LISTED {
                self.current = self.current.max(client.generation);
            }
        }
        self.close();
        Ok(())
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let pairs: &[[u8; 2]; 32] = pairs.try_into().ok()?;
    let digit = |d: u8| char::from(d).to_digit(16);
    let mut hash = [0; 32];
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        *byte = (digit(*high)? * 16 + digit(*low)?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Option<Budget> = Some(Budget { epsilon: 2.5, delta: 1e-5 });
    const LOSS: [Loss; 1] = [Loss::Pure { epsilon: 1.0 }];

    fn limits(accounts: usize, new_each_hour: usize) -> AccountLimits {
        AccountLimits { accounts, new_each_hour }
    }

    /// A process that was started again.
    fn restarted(ledgers: &Ledgers) -> Ledgers {
        let mut again = Ledgers { listed: ledgers.listed.clone(), ..Ledgers::new(ledgers.limits) };
        ledgers.blocks().for_each(|block| again.recall(&block.unwrap()).unwrap());
        again
    }

    fn secret(number: u64) -> [u8; 32] {
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&number.to_le_bytes());
        secret
    }

    #[test]
    fn a_client_is_refused_when_its_budget_is_spent_and_a_restart_does_not_help() {
        let now = Instant::now();
        let (one, two) = (ClientId::of(&[1; 32]), ClientId::of(&[2; 32]));
        let mut ledgers = Ledgers::new(limits(9, 9));
        assert!(ledgers.charge(one, &LOSS, BUDGET, now).is_ok());
        assert!(ledgers.charge(one, &LOSS, BUDGET, now).is_ok());
        let before = ledgers.clone();
        let refused = ledgers.charge(one, &LOSS, BUDGET, now);
        assert!(matches!(refused, Err(ChargeError::Budget(BudgetError::Exhausted { .. }))), "{refused:?}");
        assert_eq!(ledgers, before, "a refusal charges nothing");
        assert!(ledgers.charge(two, &LOSS, BUDGET, now).is_ok());
        let mut again = restarted(&ledgers);
        assert!(again.charge(one, &LOSS, BUDGET, now).is_err());
        // Only what has changed is kept with a charge, and it stands for what was kept before.
        let mut from_changes = Ledgers::new(limits(9, 9));
        for block in [before.encode(&[one]), ledgers.encode(&[two]), ledgers.encode(&[one])] {
            from_changes.recall(&block.unwrap()).unwrap();
        }
        assert_eq!(from_changes.spent, ledgers.spent);
        assert_eq!(from_changes.counts, ledgers.counts);
    }

    #[test]
    fn what_costs_nothing_leaves_no_trace_of_a_client() {
        let mut ledgers = Ledgers::new(limits(0, 0));
        assert!(ledgers.charge(ClientId::of(&[1; 32]), &[], None, Instant::now()).is_ok());
        assert!(ledgers.admit(&[2; 32], None).is_ok());
        assert!(ledgers.spent.is_empty());
    }

    /// 100,000 free accounts, and as many again and again: memory stays bounded, newcomers wait an hour at most, and no
    /// account that was closed ever gets a second budget, in this process or a later one.
    #[test]
    fn a_flood_of_accounts_locks_nobody_out_and_gives_no_account_a_second_budget() {
        let limits = AccountLimits { new_each_hour: 60_000, ..AccountLimits::default() };
        let (mut ledgers, start) = (Ledgers::new(limits), Instant::now());
        let old = ledgers.admit(&secret(0), None).unwrap();
        ledgers.charge(old, &LOSS, BUDGET, start).unwrap();
        let mut hour = start;
        for number in 1..300_000 {
            let client = ledgers.admit(&secret(number), None).unwrap();
            match ledgers.charge(client, &LOSS, BUDGET, hour) {
                Ok(()) => {}
                Err(ChargeError::Account(AccountError::TooMany { .. })) => {
                    hour += HOUR;
                    ledgers.charge(client, &LOSS, BUDGET, hour).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
            assert!(ledgers.spent.len() <= limits.accounts, "{} accounts", ledgers.spent.len());
        }
        assert!(hour.duration_since(start) <= 5 * HOUR, "{hour:?}");
        // A newcomer is answered now.
        let newcomer = ledgers.admit(&secret(1 << 40), None).unwrap();
        ledgers.charge(newcomer, &LOSS, BUDGET, hour + HOUR).unwrap();
        for mut ledgers in [restarted(&ledgers), ledgers] {
            let refused = ledgers.admit(&secret(0), Some(old.generation()));
            assert!(matches!(refused, Err(AccountError::Closed { generation: 0, .. })), "{refused:?}");
            assert!(ledgers.charge(old, &LOSS, BUDGET, hour + HOUR).is_err());
            // Whoever lies about its generation has another account, and one that will be is none.
            assert!(ledgers.admit(&secret(0), Some(ledgers.current + 1)).is_err());
            assert!(ledgers.admit(&secret(0), Some(LISTED)).is_err());
            assert_eq!(ledgers.admit(&secret(1 << 40), Some(newcomer.generation())), Ok(newcomer));
            assert!(ledgers.spent(&newcomer) != RecordLedger::default());
        }
    }

    #[test]
    fn accounts_are_opened_at_a_rate_and_those_that_are_open_are_answered_at_any() {
        let (mut ledgers, now) = (Ledgers::new(limits(100, 2)), Instant::now());
        let clients: Vec<_> = (0..3).map(|number| ledgers.admit(&secret(number), None).unwrap()).collect();
        assert!(clients[..2].iter().all(|client| ledgers.charge(*client, &LOSS, None, now).is_ok()));
        let late = now + HOUR - Duration::from_secs(1);
        let refused = ledgers.charge(clients[2], &LOSS, None, late);
        assert_eq!(refused, Err(AccountError::TooMany { limit: 2 }.into()));
        assert!(ledgers.charge(clients[0], &LOSS, None, late).is_ok());
        assert!(ledgers.charge(clients[2], &LOSS, None, now + HOUR).is_ok());
    }

    #[test]
    fn clients_with_tokens_have_accounts_and_no_others() {
        let (mut free, now) = (Ledgers::new(limits(4, 0)), Instant::now());
        let unlisted = free.clone().with_tokens("").unwrap().admit(&[1; 32], None).unwrap_err();
        let AccountError::Unlisted { sha256 } = unlisted else { panic!("{unlisted}") };
        let mut ledgers = free.clone().with_tokens(&format!("\n  {sha256}\n{}\n", "AB".repeat(32))).unwrap();
        // Neither a flood nor a generation stands in the way of a token.
        let client = ledgers.admit(&[1; 32], Some(5)).unwrap();
        ledgers.charge(client, &LOSS, BUDGET, now).unwrap();
        assert!(matches!(ledgers.admit(&[2; 32], None), Err(AccountError::Unlisted { .. })));
        let without = ledgers.charge(ClientId::of(&[1; 32]), &LOSS, BUDGET, now);
        assert!(matches!(without, Err(ChargeError::Account(AccountError::Unlisted { .. }))), "{without:?}");
        assert_ne!(restarted(&ledgers).spent(&client), RecordLedger::default());
        // An operator that goes back to free accounts and then again to tokens resets no budget.
        free.limits.new_each_hour = 100;
        ledgers.blocks().for_each(|block| free.recall(&block.unwrap()).unwrap());
        for number in 0..20 {
            let client = free.admit(&secret(number), None).unwrap();
            free.charge(client, &LOSS, BUDGET, now).unwrap();
        }
        assert_ne!(restarted(&free).spent(&client), RecordLedger::default());

        let error = Ledgers::new(limits(4, 4)).with_tokens("\nxy").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not 64 hexadecimal digits: \"xy\"");
    }

    #[test]
    fn what_was_not_written_by_us_is_refused() {
        let mut ledgers = Ledgers::new(limits(3, 3));
        ledgers.charge(ClientId::of(&[1; 32]), &LOSS, None, Instant::now()).unwrap();
        let bytes = ledgers.blocks().next().unwrap().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(Ledgers::new(limits(3, 3)).recall(&bytes[..end]), Err(Malformed), "cut at {end}");
        }
    }
}
