//! The frames.

use std::fmt;
use std::io::{BufWriter, Read, Write};

use asymflow_wire::{Frame, Limits, WireError, read_frame, write_frame};
use asymflow_zoo::data::{Normalization, Resize};
use asymflow_zoo::network::Shape;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::program::{ModelHash, Server};

/// Version of this protocol; both ends must speak the same.
pub const VERSION: u32 = 3;
/// Of all frames without a body.
pub const LIMITS: Limits = Limits { header_bytes: 1 << 12, body_bytes: 0 };
/// Of a server's welcome: class names in the header, the program in the body.
pub const PROGRAM_LIMITS: Limits = Limits { header_bytes: 1 << 18, body_bytes: 1 << 22 };
/// Of a dealer's certificate and quote.
pub const PROOF_LIMITS: Limits = Limits { header_bytes: 64, body_bytes: 1 << 19 };
/// Longest text of a refusal, in bytes.
const DETAIL_BYTES: usize = 1 << 10;

/// Which randomness a query uses: a number of one dealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QueryName {
    /// The dealing.
    pub session: [u8; 16],
    /// The number within it.
    pub number: u64,
}

/// What the first server gives one client for one query. Whoever has it may ask it, so only that client and both servers do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Which randomness to use.
    pub query: QueryName,
    /// Random.
    pub secret: [u8; 32],
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?}, ..)", self.query)
    }
}

impl Ticket {
    /// A fresh one.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random(query: QueryName) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self { query, secret })
    }

    /// What the servers know it by between each other.
    pub fn id(&self) -> TicketId {
        TicketId { query: self.query, secret_sha256: Sha256::digest(self.secret).into() }
    }
}

/// A ticket without its secret: it lets nobody ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TicketId {
    /// Which randomness it is for.
    pub query: QueryName,
    /// SHA-256 of its secret.
    pub secret_sha256: [u8; 32],
}

/// The first frame of whoever calls a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// A client with images.
    Client {
        /// [`VERSION`].
        version: u32,
    },
    /// The other server, known by its certificate, with its messages of one query.
    Peer {
        /// [`VERSION`].
        version: u32,
        /// Hash of its program.
        model: ModelHash,
        /// Of the client that asks.
        ticket: TicketId,
        /// Whether it needs the masked weights of this dealing.
        set_up: bool,
    },
    /// The dealer, which will prove what it is.
    Dealer {
        /// [`VERSION`].
        version: u32,
        /// Hash of its program.
        model: ModelHash,
        /// How many queries' randomness it brings.
        queries: u32,
    },
}

/// What a client sees of a model besides its program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Shape of an image.
    pub input: Shape,
    /// How images are normalised.
    pub normalization: Normalization,
    /// Names of the classes; none where they have none.
    pub class_names: Vec<String>,
    /// How an image is resized before it is asked about; stretched bilinearly to the shape without it.
    #[serde(default)]
    pub resize: Option<Resize>,
}

/// What a client says after its hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// Asks the first server for a ticket.
    Begin,
    /// A share of an input follows, as [`InputShare::write_to`](crate::client::InputShare::write_to) has it.
    Input {
        /// What the first server gave for it.
        ticket: Ticket,
    },
}

/// What a dealer says after its hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDealer {
    /// Certificate and quote of this session, one after the other in the body.
    Proof {
        /// Length of the certificate.
        certificate_bytes: u32,
    },
    /// The server's seed in the body; deals follow, as [`Deal::write_to`](crate::randomness::Deal::write_to) has them.
    Seed,
    /// Both servers have all of it: it may be used.
    Commit,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromServer {
    /// To a client. The program is in the body.
    Welcome {
        /// Which of the two it is.
        server: Server,
        /// The model.
        info: ModelInfo,
    },
    /// Randomness that no other client gets.
    Ticket(Ticket),
    /// A share of the logits follows.
    Output,
    /// To a dealer: prove what you are, with this nonce.
    Challenge {
        /// Random.
        nonce: [u8; 32],
        /// Which of the two servers this is.
        server: Server,
    },
    /// To a dealer that has proven it: send the seed.
    Proven,
    /// All deals are on disk.
    Stored,
    /// They are in use.
    Committed,
    /// To the other server: send messages.
    Linked,
    /// No, and the connection ends.
    Refused(Refusal),
}

/// Why a server refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people. It says nothing of shares.
    pub detail: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// Another version of the protocol.
    Version,
    /// Not what belongs here.
    Protocol,
    /// Too many sessions or queries at a time: come again.
    Busy,
    /// The caller is not who may say this.
    Identity,
    /// The dealer is no enclave that the policy accepts.
    Dealer,
    /// Programs differ.
    Model,
    /// No randomness is left: deal more.
    Exhausted,
    /// This randomness was used, or was never here.
    Reused,
    /// This randomness is too old.
    Expired,
    /// More randomness than there is room for.
    Full,
    /// The other server cannot be reached, or left or failed in the middle.
    Peer,
    /// Something here failed.
    Internal,
}

impl Refusal {
    /// With a text of at most 1 KiB.
    pub fn new(code: RefusalCode, detail: impl fmt::Display) -> Self {
        let mut detail = detail.to_string();
        let end = (0..=DETAIL_BYTES.min(detail.len())).rev().find(|&end| detail.is_char_boundary(end));
        detail.truncate(end.unwrap_or(0));
        Self { code, detail }
    }

    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        match self.code {
            RefusalCode::Version => "use programs of one release",
            RefusalCode::Protocol => "ask again; if it stays, use programs of one release",
            RefusalCode::Busy => "ask again later",
            RefusalCode::Identity => "compare the fingerprints that the servers print with those they were given",
            RefusalCode::Dealer => "check the server's policy against what the dealer is",
            RefusalCode::Model => "give both servers and the dealer what one `prepare-shares` wrote",
            RefusalCode::Exhausted => "deal more with `asymflow-enclaved deal`",
            RefusalCode::Reused | RefusalCode::Expired => {
                "ask again; if it stays, deal more with `asymflow-enclaved deal`"
            }
            RefusalCode::Full => "deal fewer queries, or allow more with --store-limit",
            RefusalCode::Peer => "see that both servers run and reach each other, and ask again",
            RefusalCode::Internal => "see what the server said",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Writes a frame in one piece.
///
/// # Errors
/// The connection failed.
pub fn write<H: Serialize>(stream: &mut impl Write, header: &H, body: &[u8]) -> Result<(), WireError> {
    write_frame(&mut BufWriter::new(stream), header, body).map(drop)
}

/// Reads a frame.
///
/// # Errors
/// The connection failed, or what came is no such frame or too long.
pub fn read<H: DeserializeOwned>(stream: &mut impl Read, limits: Limits) -> Result<Frame<H>, WireError> {
    read_frame(stream, limits)
}
