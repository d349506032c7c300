//! Correlated randomness on disk: stored whole, used once, expired in time.
//!
//! `store/SESSION/` is one dealing: `seed`, how many were dealt and until when, and `N.deal` for each unused query. A dealing
//! is written in `store/incoming-SESSION/` and renamed when the dealer commits. A store is of one model at one server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use asymflow_shares::net::{QueryName, Refusal, RefusalCode};
use asymflow_shares::program::{ModelHash, Program, Server};
use asymflow_shares::randomness::{Deal, DealError, DealStore, SeedError, ServerSeed};
use asymflow_shares::server::{Party, PartyModel};
use thiserror::Error;

use crate::model::Ring;

/// Why there is no randomness.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("no randomness is left")]
    Exhausted,
    #[error("randomness {number} was used before, and is never used again")]
    Reused { number: u64 },
    /// Of a dealing that is not here.
    #[error("this server has no randomness of that dealing: it was never here, or all of it has expired")]
    Unknown,
    /// More than there is room for.
    #[error("{queries} queries take {bytes} bytes, and {room} of {limit} are free")]
    Full {
        queries: u32,
        bytes: u64,
        room: u64,
        /// What the store may take.
        limit: u64,
    },
    /// A dealing of the same name is here.
    #[error("this dealing is here already")]
    Twice,
    #[error(transparent)]
    Deal(#[from] DealError),
    /// A dealing of another model or server, which this store is not for.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Something that has the place of a dealing.
    #[error("{path} holds no dealing that this version reads")]
    Unreadable { path: PathBuf },
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
}

impl StoreError {
    /// For the client or dealer.
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Exhausted => RefusalCode::Exhausted,
            Self::Reused { .. } | Self::Unknown | Self::Deal(DealError::Reused { .. }) => RefusalCode::Reused,
            Self::Deal(DealError::Expired { .. }) => RefusalCode::Expired,
            Self::Full { .. } => RefusalCode::Full,
            Self::Seed(_) | Self::Deal(DealError::Seed(_)) => RefusalCode::Model,
            Self::Twice
            | Self::Deal(
                DealError::Session { .. }
                | DealError::Missing { .. }
                | DealError::Length { .. }
                | DealError::Order { .. }
                | DealError::Wire(_),
            ) => RefusalCode::Protocol,
            Self::File { .. } | Self::Unreadable { .. } => RefusalCode::Internal,
        };
        Refusal::new(code, self)
    }
}

/// What a query's file takes on disk beside its randomness.
const BLOCK_BYTES: u64 = 4096;

type Done<T> = Result<T, StoreError>;

fn at<T>(path: &Path, done: io::Result<T>) -> Done<T> {
    done.map_err(|error| StoreError::File { path: path.to_owned(), error })
}

/// Unused numbers of a dealing.
#[derive(Debug)]
struct Dealing {
    seed: ServerSeed,
    /// Numbers below this were dealt.
    dealt: u64,
    /// From when on all is refused, in seconds of Unix time.
    expires_seconds: u64,
    unused: BTreeSet<u64>,
    /// Promised to a client in this process.
    promised: BTreeSet<u64>,
    /// The number that was used last in this process.
    last: u64,
}

#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    model: ModelHash,
    server: Server,
    limit_bytes: u64,
    deal_bytes: u64,
    dealings: BTreeMap<[u8; 16], Dealing>,
}

impl Store {
    /// Opens the store of `program` at `server` in `folder`, and removes what was not committed or has expired.
    ///
    /// # Errors
    /// The disk failed, or something is here that was dealt for another model or server and has not expired.
    pub fn open(folder: &Path, program: &Program, server: Server, limit_bytes: u64, now: SystemTime) -> Done<Self> {
        at(folder, fs::create_dir_all(folder))?;
        let cost = program.cost();
        let mut store = Self {
            folder: folder.to_owned(),
            model: program.hash(),
            server,
            limit_bytes,
            deal_bytes: BLOCK_BYTES
                + match server {
                    Server::First => cost.dealer_bytes_first,
                    Server::Second => cost.dealer_bytes_second,
                },
            dealings: BTreeMap::new(),
        };
        for entry in at(folder, fs::read_dir(folder))? {
            let path = at(folder, entry)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("incoming-") {
                at(&path, fs::remove_dir_all(&path))?;
            } else if let Some(dealing) = read_dealing(&path)? {
                store.dealings.insert(dealing.seed.session(), dealing);
            }
        }
        store.purge(now)?;
        for dealing in store.dealings.values() {
            dealing.seed.check(store.model, server)?;
        }
        Ok(store)
    }

    /// How many queries can be answered.
    pub fn unused(&self) -> usize {
        self.dealings.values().map(|dealing| dealing.unused.len()).sum()
    }

    /// Whether there is room for a dealing.
    pub fn check_room(&self, queries: u32) -> Done<()> {
        let bytes = self.deal_bytes.saturating_mul(u64::from(queries));
        let room = self.limit_bytes.saturating_sub(self.deal_bytes * self.unused() as u64);
        if bytes > room {
            return Err(StoreError::Full { queries, bytes, room, limit: self.limit_bytes });
        }
        Ok(())
    }

    pub fn purge(&mut self, now: SystemTime) -> Done<()> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let has_expired = |dealing: &Dealing| now >= dealing.expires_seconds;
        let expired: Vec<_> =
            self.dealings.iter().filter(|(_, dealing)| has_expired(dealing)).map(|(&session, _)| session).collect();
        for session in expired {
            self.dealings.remove(&session);
            let path = self.folder.join(name_of(&session));
            at(&path, fs::remove_dir_all(&path))?;
        }
        Ok(())
    }

    /// A number that was given to nobody.
    pub fn promise(&mut self, now: SystemTime) -> Done<QueryName> {
        self.purge(now)?;
        for (session, dealing) in &mut self.dealings {
            if let Some(&number) = dealing.unused.difference(&dealing.promised).next() {
                dealing.promised.insert(number);
                return Ok(QueryName { session: *session, number });
            }
        }
        Err(StoreError::Exhausted)
    }

    /// Takes back a promise that nothing came of.
    pub fn forget(&mut self, query: QueryName) {
        if let Some(dealing) = self.dealings.get_mut(&query.session) {
            dealing.promised.remove(&query.number);
        }
    }

    /// The seed of an unused number.
    pub fn seed(&self, query: QueryName) -> Done<ServerSeed> {
        let dealing = self.dealings.get(&query.session).ok_or(StoreError::Unknown)?;
        if dealing.unused.contains(&query.number) {
            Ok(dealing.seed.clone())
        } else if query.number < dealing.dealt {
            Err(StoreError::Reused { number: query.number })
        } else {
            Err(DealError::Missing { query: query.number }.into())
        }
    }

    /// The number that is likely to be asked for next: the other server may have lost those before the last.
    pub fn next(&self) -> Option<QueryName> {
        let next = |(session, dealing): (&[u8; 16], &Dealing)| {
            let number = dealing.unused.range(dealing.last..).next().or_else(|| dealing.unused.first());
            number.map(|&number| QueryName { session: *session, number })
        };
        self.dealings.iter().find_map(next)
    }

    /// The randomness of an unused number, which stays unused.
    pub fn find(&self, query: QueryName) -> Done<Found> {
        let seed = self.seed(query)?;
        let path = self.path(query);
        let file = at(&path, File::open(&path))?;
        Ok(Found { seed, file })
    }

    /// The randomness of a number, which is used up. When this returns, a server that is killed and starts again does not have
    /// it any more.
    pub fn take(&mut self, query: QueryName, now: SystemTime) -> Done<Found> {
        let found = self.find(query)?;
        let path = self.path(query);
        let mut expires_seconds = 0;
        if let Some(dealing) = self.dealings.get_mut(&query.session) {
            dealing.unused.remove(&query.number);
            dealing.promised.remove(&query.number);
            dealing.last = query.number;
            expires_seconds = dealing.expires_seconds;
        }
        at(&path, fs::remove_file(&path))?;
        let folder = self.folder.join(name_of(&query.session));
        at(&folder, sync(&folder))?;
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        match seconds.checked_sub(expires_seconds) {
            Some(seconds) => Err(DealError::Expired { query: query.number, seconds }.into()),
            None => Ok(found),
        }
    }

    fn path(&self, query: QueryName) -> PathBuf {
        self.folder.join(name_of(&query.session)).join(format!("{}.deal", query.number))
    }

    /// A place for a dealing to be written to.
    pub fn incoming(&self, seed: ServerSeed, queries: u32) -> Done<Incoming> {
        seed.check(self.model, self.server)?;
        self.check_room(queries)?;
        let name = name_of(&seed.session());
        if self.dealings.contains_key(&seed.session()) {
            return Err(StoreError::Twice);
        }
        let folder = self.folder.join(format!("incoming-{name}"));
        at(&folder, fs::create_dir(&folder))?;
        let home = self.folder.join(name);
        Ok(Incoming { folder, home, seed, queries, expires_seconds: u64::MAX, is_committed: false })
    }

    /// Puts a dealing to use.
    pub fn commit(&mut self, mut incoming: Incoming) -> Done<()> {
        let mut bytes = incoming.seed.to_bytes().to_vec();
        bytes.extend(u64::from(incoming.queries).to_le_bytes());
        bytes.extend(incoming.expires_seconds.to_le_bytes());
        write_new(&incoming.folder.join("seed"), |file| file.write_all(&bytes))?;
        at(&incoming.folder, sync(&incoming.folder))?;
        at(&incoming.home, fs::rename(&incoming.folder, &incoming.home))?;
        at(&self.folder, sync(&self.folder))?;
        incoming.is_committed = true;
        let dealt = u64::from(incoming.queries);
        let (seed, expires_seconds, unused) = (incoming.seed.clone(), incoming.expires_seconds, (0..dealt).collect());
        let dealing = Dealing { seed, dealt, expires_seconds, unused, promised: BTreeSet::new(), last: 0 };
        self.dealings.insert(dealing.seed.session(), dealing);
        Ok(())
    }
}

/// One query's randomness on disk.
#[derive(Debug)]
pub struct Found {
    seed: ServerSeed,
    file: File,
}

impl Found {
    /// Reads it, and checks that it is for `program`.
    pub fn read(self, program: &Program) -> Done<StoredDeal> {
        let mut reader = BufReader::with_capacity(1 << 16, self.file);
        Ok(StoredDeal { deal: Deal::read_from(&mut reader, program, &self.seed)?, seed: self.seed })
    }
}

#[derive(Debug)]
pub struct StoredDeal {
    seed: ServerSeed,
    deal: Deal<Ring>,
}

impl StoredDeal {
    /// This server in the query, with all work done that needs no input. Nothing may leave before the number is spent.
    pub fn party(self, model: &Arc<PartyModel<Ring>>, now: SystemTime) -> Done<Party<Ring>> {
        let query = self.deal.query();
        let mut once = DealStore::new(Arc::clone(model), self.seed, query)?;
        once.insert(self.deal)?;
        Ok(once.party(query, now)?)
    }
}

/// A dealing on its way; dropped, it is removed.
#[derive(Debug)]
pub struct Incoming {
    folder: PathBuf,
    home: PathBuf,
    seed: ServerSeed,
    queries: u32,
    /// When the first of its deals expires.
    expires_seconds: u64,
    is_committed: bool,
}

impl Incoming {
    /// Reads the deal with this number from the dealer and writes it.
    pub fn receive(&mut self, number: u64, reader: &mut impl Read, program: &Program) -> Done<()> {
        let deal = Deal::<Ring>::read_from(reader, program, &self.seed)?;
        if deal.query() != number {
            return Err(DealError::Reused { query: deal.query() }.into());
        }
        self.expires_seconds = self.expires_seconds.min(deal.expires_seconds());
        let path = self.folder.join(format!("{number}.deal"));
        write_new(&path, |file| {
            let mut file = BufWriter::with_capacity(1 << 16, file);
            deal.write_to(&mut file).map_err(io::Error::other)?;
            file.flush()
        })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_committed {
            // What stays is removed when the store is opened again.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn write_new(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Done<()> {
    let mut file = at(path, OpenOptions::new().write(true).create_new(true).mode(0o600).open(path))?;
    at(path, write(&mut file).and_then(|()| file.sync_all()))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn name_of(session: &[u8; 16]) -> String {
    asymflow::service::hex(session)
}

/// A committed dealing; `None` for a file that is none of ours.
fn read_dealing(path: &Path) -> Done<Option<Dealing>> {
    let Ok(bytes) = fs::read(path.join("seed")) else { return Ok(None) };
    let read = || {
        let (seed, rest) = bytes.split_first_chunk::<{ ServerSeed::BYTES }>()?;
        let ([dealt, expires], []) = rest.as_chunks::<8>() else { return None };
        Some((ServerSeed::from_bytes(*seed)?, dealt, expires))
    };
    let (seed, dealt, expires) = read().ok_or_else(|| StoreError::Unreadable { path: path.to_owned() })?;
    let [dealt, expires_seconds] = [dealt, expires].map(|bytes| u64::from_le_bytes(*bytes));
    let mut unused = BTreeSet::new();
    for entry in at(path, fs::read_dir(path))? {
        let name = at(path, entry)?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".deal")).and_then(|name| name.parse().ok());
        unused.extend(number);
    }
    Ok(Some(Dealing { seed, dealt, expires_seconds, unused, promised: BTreeSet::new(), last: 0 }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use asymflow_shares::compile::{Options, compile};
    use asymflow_shares::program::WeightPolicy;
    use asymflow_shares::randomness::{Dealer, Seed};
    use asymflow_zoo::{Weights, by_name};

    use super::*;

    fn model(seed: u64) -> Arc<PartyModel<Ring>> {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let options = Options::new::<Ring>(WeightPolicy::Public);
        compile::<Ring>(&network, &Weights::init(&network, seed), &options).unwrap().publish(&[0.5; 3072]).unwrap()
    }

    fn open(folder: &Path, model: &PartyModel<Ring>, limit_bytes: u64, now: SystemTime) -> Done<Store> {
        Store::open(folder, model.program(), Server::First, limit_bytes, now)
    }

    /// A folder, the program, and a store with `queries` dealt at `now`, to be used within a minute.
    fn stored(queries: u32, now: SystemTime) -> (tempfile::TempDir, Arc<PartyModel<Ring>>, Store) {
        let folder = tempfile::tempdir().unwrap();
        let model = model(1);
        let mut store = open(folder.path(), &model, u64::MAX, now).unwrap();
        let lifetime = Duration::from_secs(60);
        let mut dealer = Dealer::<Ring>::new(model.program().clone(), &Seed::random().unwrap(), lifetime).unwrap();
        let mut incoming = store.incoming(dealer.seed(Server::First), queries).unwrap();
        for number in 0..u64::from(queries) {
            let (mut first, mut second) = (Vec::new(), std::io::sink());
            dealer.deal_to(now, &mut first, &mut second).unwrap();
            incoming.receive(number, &mut first.as_slice(), model.program()).unwrap();
        }
        store.commit(incoming).unwrap();
        (folder, model, store)
    }

    #[test]
    fn what_was_taken_is_gone_for_a_server_that_starts_again() {
        let now = SystemTime::now();
        let (folder, model, mut store) = stored(2, now);
        let query = store.promise(now).unwrap();
        assert_ne!(store.promise(now).unwrap(), query, "one number was given to two clients");
        assert!(matches!(store.promise(now), Err(StoreError::Exhausted)));
        // What was read ahead is still there.
        store.find(query).unwrap().read(model.program()).unwrap().party(&model, now).unwrap();
        assert_eq!((store.next(), open(folder.path(), &model, u64::MAX, now).unwrap().unused()), (Some(query), 2));
        let found = store.take(query, now).unwrap();
        assert!(matches!(store.take(query, now), Err(StoreError::Reused { number: 0 })));
        assert!(matches!(store.find(query), Err(StoreError::Reused { number: 0 })));
        // Who took it has it, and nobody else.
        found.read(model.program()).unwrap().party(&model, now).unwrap();
        drop(store);
        let mut again = open(folder.path(), &model, u64::MAX, now).unwrap();
        assert_eq!(again.unused(), 1);
        assert!(matches!(again.take(query, now), Err(StoreError::Reused { number: 0 })));
        let never = QueryName { number: 2, ..query };
        assert!(matches!(again.seed(never), Err(StoreError::Deal(DealError::Missing { query: 2 }))));
    }

    #[test]
    fn a_store_is_of_one_model_at_one_server() {
        let now = SystemTime::now();
        let (folder, one, store) = stored(1, now);
        drop(store);
        let other = model(2);
        let error = open(folder.path(), &other, u64::MAX, now).unwrap_err();
        assert!(matches!(&error, StoreError::Seed(SeedError::Model { .. })), "{error}");
        let error = Store::open(folder.path(), one.program(), Server::Second, u64::MAX, now).unwrap_err();
        assert!(matches!(&error, StoreError::Seed(SeedError::Server { .. })), "{error}");
        // Nor does it take what is dealt for another.
        let empty = tempfile::tempdir().unwrap();
        let store = open(empty.path(), &one, u64::MAX, now).unwrap();
        let dealer = Dealer::<Ring>::new(other.program().clone(), &Seed::random().unwrap(), Duration::from_secs(60));
        let refused = store.incoming(dealer.unwrap().seed(Server::First), 1).unwrap_err();
        assert_eq!(refused.refusal().code, RefusalCode::Model);
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
        // What cannot be read is not passed over: it may be what masks would be used twice of.
        let seed = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path().join("seed");
        fs::write(seed, [0; 65]).unwrap();
        assert!(matches!(open(folder.path(), &one, u64::MAX, now), Err(StoreError::Unreadable { .. })));
    }

    #[test]
    fn what_has_expired_is_removed_and_what_was_not_committed_never_counts() {
        let now = SystemTime::now();
        let (folder, model, mut store) = stored(1, now);
        let later = now + Duration::from_secs(61);
        let query = store.promise(now).unwrap();
        let dealt = store.find(query).unwrap().read(model.program()).unwrap();
        assert_eq!(dealt.party(&model, later).unwrap_err().refusal().code, RefusalCode::Expired);
        assert_eq!(store.take(query, later).unwrap_err().refusal().code, RefusalCode::Expired);
        assert_eq!(store.unused(), 0);
        let (other, _, mut second) = stored(1, now);
        assert!(matches!(second.promise(later), Err(StoreError::Exhausted)));
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        // What has expired is nobody's, and does not keep another model from its place.
        let (third, ..) = stored(1, now);
        assert_eq!(open(third.path(), &self::model(2), u64::MAX, later).unwrap().unused(), 0);
        // A server that is killed while it is dealt to.
        fs::create_dir(folder.path().join("incoming-00")).unwrap();
        fs::write(folder.path().join("incoming-00/0.deal"), "half a de").unwrap();
        assert_eq!(open(folder.path(), &model, u64::MAX, now).unwrap().unused(), 0);
        assert!(!folder.path().join("incoming-00").exists());
    }

    #[test]
    fn a_dealing_beyond_what_a_server_has_room_for_is_refused_before_it_is_sent() {
        let (now, model) = (SystemTime::now(), model(1));
        let mut dealer =
            Dealer::<Ring>::new(model.program().clone(), &Seed::random().unwrap(), Duration::from_secs(60)).unwrap();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        dealer.deal_to(now, &mut first, &mut second).unwrap();
        for (server, deal) in [(Server::First, first), (Server::Second, second)] {
            let folder = tempfile::tempdir().unwrap();
            let limit = 3 * (deal.len() as u64).next_multiple_of(BLOCK_BYTES);
            let mut store = Store::open(folder.path(), model.program(), server, limit, now).unwrap();
            let mut incoming = store.incoming(dealer.seed(server), 1).unwrap();
            incoming.receive(0, &mut deal.as_slice(), model.program()).unwrap();
            store.commit(incoming).unwrap();
            assert!(store.check_room(1).is_ok(), "{server:?}");
            assert_eq!(store.check_room(3).unwrap_err().refusal().code, RefusalCode::Full, "{server:?}");
        }
    }
}
