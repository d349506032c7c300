//! What a client may say, and what it hears.

use std::sync::Arc;

use asymflow::service::protocol::{FromService, MAX_IMAGES, Outcome, Refusal, RefusalCode, ToService, VERSION};
use asymflow::service::{ClientId, Query, QueryError};
use asymflow_enclave::channel::{Handler, Reply, Session};
use asymflow_wire::WireError;
use tokio::sync::{mpsc, oneshot};

use crate::executor::{Asked, Item, Told};

/// Makes a quote over a client's nonce and its session's exporter.
pub type Prove = Arc<dyn Fn(&[u8; 32], &[u8; 32]) -> Result<Vec<u8>, String> + Send + Sync>;

/// Passes images to the executor.
pub struct Door {
    pub queue: mpsc::Sender<Asked>,
    pub image_bytes: usize,
    pub prove: Prove,
}

/// What is kept of a session.
#[derive(Debug, Default)]
pub struct Known {
    client: Option<ClientId>,
    has_proven: bool,
}

fn refusal(code: RefusalCode, detail: impl Into<String>) -> Refusal {
    Refusal { code, detail: detail.into() }
}

fn last(code: RefusalCode, detail: impl Into<String>) -> Reply<FromService> {
    Reply::Last(FromService::Refused(refusal(code, detail)), Vec::new())
}

impl Handler for Door {
    type Request = ToService;
    type Response = FromService;
    type State = Known;

    async fn handle(&self, session: &mut Session<Known>, request: ToService, body: Vec<u8>) -> Reply<FromService> {
        match (request, session.state.client) {
            (ToService::Hello { version, client, witness }, None) if body.is_empty() => {
                if version != VERSION {
                    return last(RefusalCode::Message, format!("protocol version {version}, expected {VERSION}"));
                }
                if let Err(reply) = self.check(witness).await {
                    return reply;
                }
                session.state.client = Some(ClientId::of(&client));
                Reply::Send(FromService::Welcome { version: VERSION }, Vec::new())
            }
            (ToService::Prove { nonce }, _) if body.is_empty() => {
                // A quote takes long; one a session is what a client needs.
                if std::mem::replace(&mut session.state.has_proven, true) {
                    return last(RefusalCode::Busy, "a session is given one fresh quote");
                }
                match (self.prove)(&nonce, &session.exporter) {
                    Ok(quote) => Reply::Send(FromService::Proof, quote),
                    Err(_) => last(RefusalCode::Failed, "no quote can be made"),
                }
            }
            (ToService::Classify { images }, Some(client)) => self.classify(client, images, body).await,
            _ => last(RefusalCode::Message, "a message out of turn: images come after one hello"),
        }
    }

    fn malformed(&self, error: &WireError) -> FromService {
        FromService::Refused(refusal(RefusalCode::Message, error.to_string()))
    }
}

impl Door {
    /// Whether the service's state is at least as new as what the client has seen.
    async fn check(&self, witness: Option<Vec<u8>>) -> Result<(), Reply<FromService>> {
        let Some(witness) = witness else { return Ok(()) };
        let ending = || last(RefusalCode::Failed, "the service is ending");
        let (reply, told) = oneshot::channel();
        self.queue.send(Asked::Witness(witness, reply)).await.map_err(|_| ending())?;
        told.await.map_err(|_| ending())?.map_err(|detail| last(RefusalCode::RolledBack, detail))
    }

    async fn classify(&self, client: ClientId, images: u16, body: Vec<u8>) -> Reply<FromService> {
        let expected = usize::from(images) * self.image_bytes;
        if images == 0 || images > MAX_IMAGES {
            return last(RefusalCode::Message, format!("{images} images in a message, expected 1 to {MAX_IMAGES}"));
        }
        if body.len() != expected {
            let detail = format!("{images} images have {expected} bytes, got {}", body.len());
            return last(RefusalCode::Message, detail);
        }
        let mut waiting = Vec::with_capacity(usize::from(images));
        for image in body.chunks_exact(self.image_bytes) {
            let (reply, told) = oneshot::channel();
            let query = Query { client, image: image.to_vec() };
            if self.queue.send(Asked::Image(Item { query, reply })).await.is_err() {
                return last(RefusalCode::Failed, "the service is ending");
            }
            waiting.push(told);
        }
        let (mut outcomes, mut logits) = (Vec::with_capacity(waiting.len()), Vec::new());
        let (mut spent, mut latest) = (None, None);
        for told in waiting {
            let Ok(Told { answer, spent_epsilon, witness }) = told.await else {
                return last(RefusalCode::Failed, "the service is ending");
            };
            (spent, latest) = (spent_epsilon, witness);
            outcomes.push(match answer {
                Ok(answer) => {
                    logits.extend(answer.logits.iter().flat_map(|v| v.to_le_bytes()));
                    if answer.is_remembered { Outcome::Remembered } else { Outcome::Answered }
                }
                Err(error) => Outcome::Refused(refused(&error)),
            });
        }
        Reply::Send(FromService::Answers { outcomes, spent_epsilon: spent, witness: latest }, logits)
    }
}

fn refused(error: &QueryError) -> Refusal {
    let code = match error {
        QueryError::Image { .. } => RefusalCode::Message,
        QueryError::Budget(_) => RefusalCode::Budget,
        QueryError::Full { .. } => RefusalCode::Busy,
        QueryError::Unkept | QueryError::Failed(_) => RefusalCode::Failed,
    };
    refusal(code, error.to_string())
}
