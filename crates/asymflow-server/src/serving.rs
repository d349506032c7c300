//! Whoever calls, and what is answered.

use std::io::{BufWriter, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use asymflow_enclave::attest::{Clock, EXPORTER_LABEL, Verifier};
use asymflow_shares::client::{InputShare, OutputShare};
use asymflow_shares::link::{DuplexLink, LinkError, Profile};
use asymflow_shares::net::{
    DealerPromise, FromDealer, FromServer, Hello, LIMITS, NetError, PROOF_LIMITS, QueryName, Refusal, RefusalCode,
    ServerAt, Stream, Ticket, TicketId, ToServer, VERSION, accept, connect, read, write,
};
use asymflow_shares::program::{ModelHash, Server};
use asymflow_shares::randomness::ServerSeed;
use asymflow_shares::server::{Party, RunError, run};
use asymflow_wire::tls::{Fingerprint, Identity};
use asymflow_wire::{Limits, WireError};

use crate::ahead::Ahead;
use crate::model::{Model, Ring};
use crate::peers::{Arrived, Peers};
use crate::store::{Store, StoreError, StoredDeal};

/// Callers at a time beyond all sessions that are told so; more are dropped.
const TURNED_AWAY: usize = 8;
/// Between two tries to accept, where the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);
/// Most queries of one dealing.
const QUERIES_LIMIT: u32 = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub sessions: usize,
    /// For each step of a conversation, and for a whole query.
    pub timeout: Duration,
    /// How long a client may stay silent between two images.
    pub idle: Duration,
    /// Queries begun in a minute.
    pub queries_a_minute: u32,
}

/// One of the two servers.
pub struct Serving {
    pub model: Model,
    pub store: Mutex<Store>,
    pub identity: Identity,
    pub peer: ServerAt,
    /// `None`: no dealer is accepted.
    pub dealers: Option<Verifier>,
    pub bounds: Bounds,
    pub peers: Peers,
    pub ahead: Ahead,
    pub sessions: AtomicUsize,
    /// When the present minute began, and how many queries began in it.
    pub rate: Mutex<(Instant, u32)>,
}

enum End {
    /// The other end has gone or was told enough.
    Gone(String),
    Refused(Refusal),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed | WireError::Io(_) => Self::Gone(error.to_string()),
            malformed => Self::Refused(Refusal::new(RefusalCode::Protocol, malformed)),
        }
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.refusal())
    }
}

fn refused<T>(code: RefusalCode, detail: impl std::fmt::Display) -> Result<T, End> {
    Err(End::Refused(Refusal::new(code, detail)))
}

fn internal(error: &dyn std::fmt::Display) -> End {
    End::Refused(Refusal::new(RefusalCode::Internal, error))
}

/// A client's ticket, from when it is known here until the client was answered or is gone.
struct UnderWay<'a> {
    serving: &'a Serving,
    ticket: Ticket,
}

impl<'a> UnderWay<'a> {
    fn new(serving: &'a Serving, ticket: Ticket) -> Self {
        serving.peers.expect(ticket.id());
        Self { serving, ticket }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let is_linked = self.serving.peers.done(&self.ticket.id());
        let mut store = self.serving.store();
        if is_linked {
            // The other server has spent it. Where it was spent here as well, there is nothing left to do.
            let _ = store.take(self.ticket.query, SystemTime::now());
        } else {
            store.forget(self.ticket.query);
        }
    }
}

/// What was dealt for a query.
enum Dealt {
    /// As a party that was made ahead.
    Prepared(Party<Ring>),
    Read(StoredDeal),
}

/// A place among the conversations, given back when it is dropped.
struct Place(Arc<Serving>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers everybody, each on a thread of its own.
pub fn serve(serving: &Arc<Serving>, listener: &TcpListener) -> anyhow::Result<()> {
    let tls = serving.identity.mutual_server_config()?;
    let preparing = Arc::clone(serving);
    std::thread::Builder::new().spawn(move || preparing.ahead.work(|query| preparing.prepare(query)))?;
    serving.prepare_next();
    for tcp in listener.incoming() {
        let Ok(tcp) = tcp else {
            // The caller stays in the queue, and an error at once would come again at once.
            std::thread::sleep(PAUSE);
            continue;
        };
        let taken = serving.sessions.fetch_add(1, Ordering::AcqRel);
        let (place, tls) = (Place(Arc::clone(serving)), Arc::clone(&tls));
        if taken >= serving.bounds.sessions.saturating_add(TURNED_AWAY) {
            continue;
        }
        let has_room = taken < serving.bounds.sessions;
        let spawned = std::thread::Builder::new().spawn(move || place.0.converse(tcp, tls, has_room));
        if let Err(error) = spawned {
            crate::report(&format!("a caller was turned away: {error}"));
        }
    }
    Ok(())
}

impl Serving {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One caller, from its handshake to its end.
    fn converse(&self, tcp: TcpStream, tls: Arc<rustls::ServerConfig>, has_room: bool) {
        let who = tcp.peer_addr().map_or_else(|_| "a caller".to_owned(), |address| address.to_string());
        let mut stream = match accept(tcp, tls, self.bounds.timeout) {
            Ok(stream) => stream,
            Err(error) => return crate::report(&error.to_string()),
        };
        let heard = if has_room {
            self.hear(&mut stream)
        } else {
            let most = self.bounds.sessions;
            refused(RefusalCode::Busy, format_args!("{most} conversations at a time, the most allowed, are going on"))
        };
        match heard {
            Ok(None) => stream.close(),
            // The query's thread has it from here on.
            Ok(Some((ticket, set_up))) => self.peers.leave(&ticket, Arrived { stream, set_up }),
            Err(End::Gone(what)) => crate::report(&format!("{who}: {what}")),
            Err(End::Refused(refusal)) => {
                crate::report(&format!("{who}: refused: {refusal}"));
                let _ = write(&mut stream, &FromServer::Refused(refusal), &[]);
                drain(stream);
            }
        }
    }

    /// A caller's hello and what follows; for the other server, which ticket it is about, and whether it needs masked weights.
    fn hear(&self, stream: &mut Stream) -> Result<Option<(TicketId, bool)>, End> {
        let hello = match read::<Hello>(stream, LIMITS) {
            Err(WireError::Closed) => return Ok(None),
            hello => hello?.header,
        };
        let (Hello::Client { version } | Hello::Peer { version, .. } | Hello::Dealer { version, .. }) = hello;
        if version != VERSION {
            return refused(RefusalCode::Version, format_args!("version {version}, expected {VERSION}"));
        }
        match hello {
            Hello::Client { .. } => self.client(stream).map(|()| None),
            Hello::Peer { model, ticket, set_up, .. } => {
                if stream.peer() != Some(self.peer.fingerprint) {
                    return refused(RefusalCode::Identity, "the caller is not the other server that is pinned here");
                }
                self.check_model(&model, "the other server")?;
                self.check_ticket(ticket)?;
                write(stream, &FromServer::Linked, &[])?;
                Ok(Some((ticket, set_up)))
            }
            Hello::Dealer { model, queries, .. } => self.dealer(stream, &model, queries).map(|()| None),
        }
    }

    /// Whether the other server may begin with a ticket: the first server has given it, and the second takes it while its number
    /// is unused.
    fn check_ticket(&self, ticket: TicketId) -> Result<(), End> {
        let Bounds { sessions, timeout, .. } = self.bounds;
        let unused = self.store().seed(ticket.query);
        let in_advance = self.model.server == Server::Second && unused.is_ok();
        if self.peers.link(ticket, in_advance, sessions, timeout) {
            return Ok(());
        }
        // A number whose client is here is not lost, whatever somebody else says about it.
        if !self.peers.is_under_way(&ticket.query) {
            unused?;
        }
        refused(RefusalCode::Identity, "no client here has this ticket")
    }

    fn check_model(&self, hash: &ModelHash, who: &str) -> Result<(), End> {
        if *hash == self.model.hash {
            return Ok(());
        }
        let hex = asymflow::service::hex;
        let (theirs, ours) = (hex(hash), hex(&self.model.hash));
        refused(RefusalCode::Model, format_args!("{who} has program {theirs}, this server {ours}"))
    }

    /// A client, until it leaves or a query fails.
    fn client(&self, stream: &mut Stream) -> Result<(), End> {
        let welcome = FromServer::Welcome { server: self.model.server, info: self.model.info.clone() };
        write(stream, &welcome, &self.model.program.to_bytes())?;
        let done = self.talk(stream);
        self.prepare_next();
        done
    }

    fn talk(&self, stream: &mut Stream) -> Result<(), End> {
        let mut given: Option<UnderWay<'_>> = None;
        loop {
            stream.set_timeout(self.bounds.idle);
            let said = match read::<ToServer>(stream, LIMITS) {
                Err(WireError::Closed) => return Ok(()),
                said => said?.header,
            };
            stream.set_timeout(self.bounds.timeout);
            match said {
                ToServer::Begin if given.is_some() => {
                    return refused(RefusalCode::Protocol, "a ticket was given and not used");
                }
                ToServer::Begin => {
                    self.check_rate()?;
                    if self.model.server == Server::Second {
                        return refused(RefusalCode::Protocol, "the first server gives tickets, this is the second");
                    }
                    let query = self.store().promise(SystemTime::now())?;
                    let under_way = UnderWay::new(self, Ticket::random(query).map_err(|e| internal(&e))?);
                    write(stream, &FromServer::Ticket(under_way.ticket.clone()), &[])?;
                    given = Some(under_way);
                }
                ToServer::Input { ticket } => {
                    let under_way = match given.take() {
                        Some(under_way) if under_way.ticket == ticket => under_way,
                        None if self.model.server == Server::Second => {
                            self.check_rate()?;
                            self.store().seed(ticket.query)?;
                            UnderWay::new(self, ticket)
                        }
                        _ => return refused(RefusalCode::Reused, "a ticket that was not given to this client"),
                    };
                    let share = match InputShare::<Ring>::read_from(stream, &self.model.program) {
                        Ok(share) => share,
                        Err(asymflow_shares::client::TransferError::Wire(error)) => return Err(error.into()),
                        Err(error) => return refused(RefusalCode::Protocol, error),
                    };
                    let output = self.answer(&under_way.ticket.id(), share)?;
                    stream.set_timeout(self.bounds.timeout);
                    write(stream, &FromServer::Output, &[])?;
                    output.write_to(&mut BufWriter::new(&mut *stream))?;
                    self.prepare_next();
                }
            }
        }
    }

    fn check_rate(&self) -> Result<(), End> {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.0.elapsed() >= Duration::from_secs(60) {
            *rate = (Instant::now(), 0);
        }
        if rate.1 >= self.bounds.queries_a_minute {
            let most = self.bounds.queries_a_minute;
            return refused(RefusalCode::Busy, format_args!("{most} queries began in this minute, the most allowed"));
        }
        rate.1 += 1;
        Ok(())
    }

    /// One query with the other server. Its number is spent before anything leaves that depends on it: at the first server now
    /// that the input is here, at the second one when the first has said that it gave the ticket.
    fn answer(&self, ticket: &TicketId, share: InputShare<Ring>) -> Result<OutputShare<Ring>, End> {
        let query = ticket.query;
        let seed = self.store().seed(query)?;
        let needed = self.model.opened(&query.session).is_none();
        let (outgoing, dealt) = match self.model.server {
            Server::First => {
                let dealt = self.take(query)?;
                (self.call(ticket, needed), dealt)
            }
            Server::Second => match self.call(ticket, needed) {
                Ok(outgoing) => (Ok(outgoing), self.take(query)?),
                Err(error) => {
                    // A number that is spent there is of no use here.
                    if matches!(&error, NetError::Refused { refusal, .. } if refusal.code == RefusalCode::Reused) {
                        self.store().take(query, SystemTime::now())?;
                    }
                    return Err(End::Refused(of_peer(&error)));
                }
            },
        };
        let outgoing = outgoing.map_err(|error| End::Refused(of_peer(&error)))?;
        let Some(Arrived { stream: mut incoming, set_up }) = self.peers.wait(ticket, self.bounds.timeout) else {
            return refused(RefusalCode::Peer, "the other server did not come to this query in time");
        };
        incoming.set_timeout(self.bounds.timeout);
        let mut link = DuplexLink::new(incoming, BufWriter::new(outgoing), Profile::LOOPBACK);
        let model = self.model.ready(&seed, needed || set_up, &mut link);
        let model = model.map_err(|error| End::Refused(of_peer(&error)))?;
        let party = match dealt {
            Dealt::Prepared(party) => party,
            Dealt::Read(dealt) => dealt.party(&model, SystemTime::now())?,
        };
        match run(party, share, &self.model.program, &mut link) {
            Ok((output, _)) => Ok(output),
            Err(error) => Err(End::Refused(of_peer(&NetError::Run(error)))),
        }
    }

    /// Spends a number. What was dealt for it is read and checked before anything is opened with it.
    fn take(&self, query: QueryName) -> Result<Dealt, End> {
        let found = self.store().take(query, SystemTime::now())?;
        Ok(match self.ahead.take(query, self.bounds.timeout) {
            Some(party) => Dealt::Prepared(party),
            None => Dealt::Read(found.read(&self.model.program)?),
        })
    }

    /// The next query's work that needs no input, where it can be done now.
    fn prepare(&self, query: QueryName) -> Option<Party<Ring>> {
        let model = self.model.opened(&query.session)?;
        let found = self.store().find(query).ok()?;
        found.read(&self.model.program).ok()?.party(&model, SystemTime::now()).ok()
    }

    fn prepare_next(&self) {
        let next = self.store().next();
        self.ahead.want(next);
    }

    /// A connection for this server's messages of a query.
    fn call(&self, ticket: &TicketId, set_up: bool) -> Result<Stream, NetError> {
        let config = self.identity.client_config(self.peer.fingerprint);
        let config = config.map_err(|error| NetError::Setup(error.to_string()))?;
        let mut stream = connect(&self.peer.address, config, self.bounds.timeout)?;
        let who = "the other server";
        let lost = |error| NetError::Wire { who: who.to_owned(), error };
        let hello = Hello::Peer { version: VERSION, model: self.model.hash, ticket: *ticket, set_up };
        write(&mut stream, &hello, &[]).map_err(lost)?;
        match read(&mut stream, LIMITS).map_err(lost)?.header {
            FromServer::Linked => Ok(stream),
            other => Err(NetError::unexpected(who, other)),
        }
    }

    /// A dealer, from its proof to its last deal.
    fn dealer(&self, stream: &mut Stream, model: &ModelHash, queries: u32) -> Result<(), End> {
        self.check_model(model, "the dealer")?;
        if queries == 0 || queries > QUERIES_LIMIT {
            let detail = format!("{queries} queries in one dealing, expected 1 to {QUERIES_LIMIT}");
            return refused(RefusalCode::Protocol, detail);
        }
        self.store().purge(SystemTime::now())?;
        self.store().check_room(queries)?;
        self.verify_dealer(stream)?;
        write(stream, &FromServer::Proven, &[])?;

        let limits = Limits { body_bytes: ServerSeed::BYTES as u64, ..LIMITS };
        let frame = read::<FromDealer>(stream, limits)?;
        let bytes = <[u8; ServerSeed::BYTES]>::try_from(frame.body).ok().filter(|_| frame.header == FromDealer::Seed);
        let Some(seed) = bytes.and_then(ServerSeed::from_bytes) else {
            return refused(RefusalCode::Protocol, "no seed");
        };
        let mut incoming = self.store().incoming(seed, queries)?;
        for number in 0..u64::from(queries) {
            stream.set_timeout(self.bounds.timeout);
            incoming.receive(number, stream, &self.model.program)?;
        }
        write(stream, &FromServer::Stored, &[])?;
        // The dealer waits for the other server.
        stream.set_timeout(self.bounds.timeout);
        if read::<FromDealer>(stream, LIMITS)?.header != FromDealer::Commit {
            return refused(RefusalCode::Protocol, "the dealer did not commit");
        }
        self.store().commit(incoming)?;
        write(stream, &FromServer::Committed, &[])?;
        self.prepare_next();
        crate::report(&format!("{queries} queries were dealt; {} can be answered", self.store().unused()));
        Ok(())
    }

    /// Has the dealer prove that it is an enclave that the policy accepts, at the other end of this very session, dealing for
    /// this program to this pair of servers.
    fn verify_dealer(&self, stream: &mut Stream) -> Result<(), End> {
        let Some(verifier) = &self.dealers else {
            return refused(RefusalCode::Dealer, "this server accepts no dealer");
        };
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| internal(&error))?;
        write(stream, &FromServer::Challenge { nonce, server: self.model.server }, &[])?;
        let frame = read::<FromDealer>(stream, PROOF_LIMITS)?;
        let FromDealer::Proof { certificate_bytes } = frame.header else {
            return refused(RefusalCode::Protocol, "no proof of a dealer");
        };
        let Some((certificate, quote)) = frame.body.split_at_checked(certificate_bytes as usize) else {
            return refused(RefusalCode::Protocol, "a proof that ends early");
        };
        let exporter = stream.exporter(EXPORTER_LABEL).map_err(|error| internal(&error))?;
        let now = Clock::System.now_unix_seconds();
        let unverified = |refusal| End::Refused(Refusal::new(RefusalCode::Dealer, refusal));
        let verified = verifier.verify_certificate(certificate, now).map_err(unverified)?;
        verifier.verify_fresh(&verified, quote, &nonce, &exporter, now).map_err(unverified)?;
        let pair: [Fingerprint; 2] = [self.identity.fingerprint(), self.peer.fingerprint];
        let expected = DealerPromise::new(&self.model.hash, pair.map(|fingerprint| fingerprint.to_string()));
        match serde_json::from_slice::<DealerPromise>(&verified.promise) {
            Ok(promise) if promise == expected => Ok(()),
            Ok(_) => refused(RefusalCode::Dealer, "the dealer deals for another program or another pair of servers"),
            Err(_) => refused(RefusalCode::Dealer, "the enclave is no dealer"),
        }
    }
}

/// What a client is told of a failure between the servers.
fn of_peer(error: &NetError) -> Refusal {
    match error {
        NetError::Refused { refusal, .. } => {
            let Refusal { code, detail } = refusal;
            Refusal::new(*code, format_args!("the other server refused: {detail}"))
        }
        NetError::Fingerprint { .. } => Refusal::new(RefusalCode::Identity, error),
        // It is there, and says what it must not.
        NetError::Run(RunError::Party(_) | RunError::Message(_)) => {
            Refusal::new(RefusalCode::Protocol, format_args!("the other server: {error}"))
        }
        NetError::Run(RunError::Link(LinkError::Wire(wire)))
            if !matches!(wire, WireError::Closed | WireError::Io(_)) =>
        {
            Refusal::new(RefusalCode::Protocol, format_args!("the other server: {error}"))
        }
        NetError::Unreachable { .. }
        | NetError::Handshake { .. }
        | NetError::Wire { .. }
        | NetError::Pair(_)
        | NetError::Run(RunError::Link(_))
        | NetError::Tls(_)
        | NetError::Unexpected { .. }
        | NetError::Program(_)
        | NetError::Ring(_)
        | NetError::Client(_)
        | NetError::Transfer(_)
        | NetError::Deal(_)
        | NetError::Random(_)
        | NetError::Proof(_)
        | NetError::Setup(_) => Refusal::new(RefusalCode::Peer, format_args!("the other server: {error}")),
    }
}

/// Reads what is still on its way, within a second: closing with unread bytes would cut off the refusal.
fn drain(mut stream: Stream) {
    stream.set_timeout(Duration::from_secs(1));
    let mut rest = [0; 4096];
    let mut left = 1_u32 << 20;
    while let Ok(read @ 1..) = stream.read(&mut rest) {
        left = left.saturating_sub(read as u32);
        if left == 0 {
            break;
        }
    }
    stream.close();
}
