//! What a client and a service say to each other, inside a channel that the client has verified.

use serde::{Deserialize, Serialize};

/// Version of these messages.
pub const VERSION: u16 = 2;
/// Most images of one message.
pub const MAX_IMAGES: u16 = 256;

/// From a client. Images come after [`ToService::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToService {
    /// Who the client is.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// The secret by which the client names itself.
        client: [u8; 32],
        /// What [`FromService::Welcome`] said when this account was opened; none opens one.
        generation: Option<u64>,
        /// What the client was last given in [`FromService::Answers`]: a service whose state is older refuses it.
        witness: Option<Vec<u8>>,
    },
    /// Asks for a quote of this moment and this connection.
    Prove {
        /// Drawn by the client for this purpose.
        nonce: [u8; 32],
    },
    /// Asks about images; the body is their pixels, one image after another.
    Classify {
        /// How many, at most [`MAX_IMAGES`].
        images: u16,
    },
}

/// To a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromService {
    /// It may ask.
    Welcome {
        /// [`VERSION`].
        version: u16,
        /// The generation in which the client's account was opened, to be shown at every later visit: it belongs to the account.
        generation: u64,
    },
    /// The body is a quote.
    Proof,
    /// An outcome for every image; the body holds the logits of those that were answered, f32 little-endian, in order.
    Answers {
        /// One an image.
        outcomes: Vec<Outcome>,
        /// ε that the client has lost so far; absent where nothing is released, infinite where there is no guarantee.
        spent_epsilon: Option<f64>,
        /// A witness of the state that these answers were charged to, for the next [`ToService::Hello`].
        witness: Option<Vec<u8>>,
    },
    /// The message was refused; the connection ends.
    Refused(Refusal),
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Answered.
    Answered,
    /// Answered as before, without a cost.
    Remembered,
    /// Not answered.
    Refused(Refusal),
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The message is not understood or out of turn.
    Message,
    /// The client's budget is spent.
    Budget,
    /// The client has no account and gets none: it is closed, not listed by the operator, or one of too many newcomers.
    Account,
    /// The service's state is older than what the client has seen.
    RolledBack,
    /// Too many clients or messages.
    Busy,
    /// The service failed.
    Failed,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// In words, from public facts.
    pub detail: String,
}
