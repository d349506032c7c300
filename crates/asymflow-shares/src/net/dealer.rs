//! The dealer: connects to both servers, proves to each what it is, deals, and leaves.

use std::io::BufWriter;
use std::time::{Duration, SystemTime};

use asymflow_wire::tls::client_config;
use serde::{Deserialize, Serialize};

use super::client::ServerAt;
use super::protocol::{FromDealer, FromServer, Hello, LIMITS, VERSION, read, write};
use super::stream::{NetError, Stream, connect};
use crate::dealer::Dealer;
use crate::prg::Seed;
use crate::program::{ModelHash, Program, Server};
use crate::ring::Ring;

const BUFFER_BYTES: usize = 1 << 16;

/// What a dealer promises, in the claims that its quote vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DealerPromise {
    /// Always `shares-dealer`: no other program's promise is one of a dealer.
    pub role: String,
    /// Hash of the program that is dealt for, in hexadecimal.
    pub program_sha256: String,
    /// Fingerprints of the servers that get the randomness, and nobody else does; sorted.
    pub servers: [String; 2],
}

impl DealerPromise {
    /// Of a dealer for the program with the hash `program`, between these two servers.
    pub fn new(program: &ModelHash, servers: [String; 2]) -> Self {
        use std::fmt::Write as _;
        let program_sha256 = program.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let mut servers = servers;
        servers.sort();
        Self { role: "shares-dealer".to_owned(), program_sha256, servers }
    }
}

/// Certificate (DER) and a quote over a nonce and an exporter.
pub type Proof = (Vec<u8>, Vec<u8>);
/// Makes a proof for a nonce and the exporter of a session.
pub type Prove<'a> = dyn Fn(&[u8; 32], &[u8; 32]) -> Result<Proof, String> + 'a;

/// Deals `queries` queries' randomness, to be used within `lifetime`, to the two servers. Returns the bytes sent to the first
/// and to the second. `prove` makes a proof for a nonce and the exporter of the session under `label`. Each server has
/// `timeout` for an answer, and for each deal.
///
/// # Errors
/// A server cannot be reached, is another than its fingerprint says, or refuses; then neither may use anything.
pub fn deal<R: Ring>(
    program: Program,
    servers: &[ServerAt; 2],
    queries: u32,
    lifetime: Duration,
    timeout: Duration,
    label: &[u8],
    prove: &Prove<'_>,
) -> Result<[u64; 2], NetError> {
    if servers[0].fingerprint == servers[1].fingerprint {
        return Err(NetError::Pair("one fingerprint was given twice, and one server with both seeds sees everything"));
    }
    let model = program.hash();
    let mut dealer = Dealer::<R>::new(program, &Seed::random()?, lifetime)?;
    let mut called = Vec::new();
    for server in servers {
        let mut stream = connect(&server.address, client_config(server.fingerprint)?, timeout)?;
        let who = server.address.clone();
        say(&mut stream, &who, &Hello::Dealer { version: VERSION, model, queries }, &[])?;
        let (nonce, server) = match hear(&mut stream, &who)? {
            FromServer::Challenge { nonce, server } => (nonce, server),
            other => return Err(NetError::unexpected(&who, other)),
        };
        let (certificate, quote) = prove(&nonce, &stream.exporter(label)?).map_err(NetError::Proof)?;
        let header = FromDealer::Proof { certificate_bytes: certificate.len() as u32 };
        say(&mut stream, &who, &header, &[certificate, quote].concat())?;
        expect(&mut stream, &who, &FromServer::Proven)?;
        called.push((server, stream, who));
    }
    called.sort_by_key(|(server, ..)| server.index());
    let [(Server::First, first, at_first), (Server::Second, second, at_second)] = called.as_mut_slice() else {
        return Err(NetError::Pair("both say that they are the same of the two"));
    };
    say(first, at_first, &FromDealer::Seed, &dealer.seed(Server::First).to_bytes())?;
    say(second, at_second, &FromDealer::Seed, &dealer.seed(Server::Second).to_bytes())?;
    let mut bytes = [0; 2];
    for _ in 0..queries {
        first.set_timeout(timeout);
        second.set_timeout(timeout);
        let mut left = BufWriter::with_capacity(BUFFER_BYTES, &mut *first);
        let mut right = BufWriter::with_capacity(BUFFER_BYTES, &mut *second);
        let dealt = dealer.deal_to(SystemTime::now(), &mut left, &mut right);
        let (_, sent) =
            dealt.map_err(|error| refusal_behind(&mut [left.into_parts().0, right.into_parts().0], error))?;
        bytes = [bytes[0] + sent[0], bytes[1] + sent[1]];
    }
    for answer in [FromServer::Stored, FromServer::Committed] {
        // The first server gives out numbers, so it commits last.
        for (_, stream, who) in called.iter_mut().rev() {
            stream.set_timeout(timeout);
            if answer == FromServer::Committed {
                say(stream, who, &FromDealer::Commit, &[])?;
            }
            expect(stream, who, &answer)?;
        }
    }
    called.into_iter().for_each(|(_, stream, _)| stream.close());
    Ok(bytes)
}

/// A server that ends the connection in the middle has said why, if it could.
fn refusal_behind(streams: &mut [&mut Stream; 2], error: asymflow_wire::WireError) -> NetError {
    let who = "a server".to_owned();
    for stream in streams {
        stream.set_timeout(Duration::from_millis(200));
        if let Ok(frame) = read::<FromServer>(*stream, LIMITS)
            && let FromServer::Refused(refusal) = frame.header
        {
            return NetError::Refused { who, refusal };
        }
    }
    NetError::Wire { who, error }
}

fn say<H: Serialize>(stream: &mut Stream, who: &str, header: &H, body: &[u8]) -> Result<(), NetError> {
    write(stream, header, body).map_err(|error| NetError::Wire { who: who.to_owned(), error })
}

fn hear(stream: &mut Stream, who: &str) -> Result<FromServer, NetError> {
    let frame = read(stream, LIMITS).map_err(|error| NetError::Wire { who: who.to_owned(), error })?;
    Ok(frame.header)
}

fn expect(stream: &mut Stream, who: &str, answer: &FromServer) -> Result<(), NetError> {
    let got = hear(stream, who)?;
    if got == *answer { Ok(()) } else { Err(NetError::unexpected(who, got)) }
}
