//! What a client may say, and what it hears.

use std::sync::Arc;

use asymflow::service::protocol::{FromService, MAX_IMAGES, Outcome, Refusal, RefusalCode, ToService, VERSION};
use asymflow::service::{ChargeError, ClientId, Query, QueryError};
use asymflow_enclave::channel::{Handler, Reply, Session};
use asymflow_wire::WireError;
use tokio::sync::{mpsc, oneshot};

use crate::executor::{Asked, Hello, Item, NotAdmitted, Told};

/// Makes a quote over a client's nonce and its session's exporter.
pub type Prove = Arc<dyn Fn(&[u8; 32], &[u8; 32]) -> Result<Vec<u8>, String> + Send + Sync>;

/// Passes images to the executor.
pub struct Door {
    pub queue: mpsc::Sender<Asked>,
    pub image_bytes: usize,
    pub prove: Prove,
}

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
            (ToService::Hello { version, client, generation, witness }, None) if body.is_empty() => {
                if version != VERSION {
                    return last(RefusalCode::Message, format!("protocol version {version}, expected {VERSION}"));
                }
                match self.admit(client, generation, witness).await {
                    Ok(client) => {
                        // One hello a session, and so at most one new account.
                        session.state.client = Some(client);
                        let generation = client.generation();
                        Reply::Send(FromService::Welcome { version: VERSION, generation }, Vec::new())
                    }
                    Err(reply) => reply,
                }
            }
            (ToService::Prove { nonce }, _) if body.is_empty() => {
                // A quote takes long; one a session is what a client needs.
                if std::mem::replace(&mut session.state.has_proven, true) {
                    return last(RefusalCode::Busy, "a session is given one fresh quote");
                }
                let (prove, exporter) = (Arc::clone(&self.prove), session.exporter);
                // On a thread of its own: nobody else waits for it.
                match tokio::task::spawn_blocking(move || prove(&nonce, &exporter)).await {
                    Ok(Ok(quote)) => Reply::Send(FromService::Proof, quote),
                    Ok(Err(_)) | Err(_) => last(RefusalCode::Failed, "no quote can be made"),
                }
            }
            (ToService::Classify { images }, Some(client)) => self.classify(client, images, body).await,
            (ToService::Hello { .. } | ToService::Prove { .. } | ToService::Classify { .. }, _) => {
                last(RefusalCode::Message, "a message out of turn: images come after one hello")
            }
        }
    }

    fn malformed(&self, error: &WireError) -> FromService {
        FromService::Refused(refusal(RefusalCode::Message, error.to_string()))
    }
}

impl Door {
    async fn admit(
        &self,
        secret: [u8; 32],
        generation: Option<u64>,
        witness: Option<Vec<u8>>,
    ) -> Result<ClientId, Reply<FromService>> {
        let ending = || last(RefusalCode::Failed, "the service is ending");
        let (reply, told) = oneshot::channel();
        let hello = Asked::Hello(Hello { secret, generation, witness, reply });
        self.queue.send(hello).await.map_err(|_| ending())?;
        told.await.map_err(|_| ending())?.map_err(|refused| match refused {
            NotAdmitted::RolledBack(detail) => last(RefusalCode::RolledBack, detail),
            NotAdmitted::Account(error) => last(RefusalCode::Account, error.to_string()),
        })
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
        QueryError::Charge(ChargeError::Budget(_)) => RefusalCode::Budget,
        QueryError::Charge(ChargeError::Account(_)) => RefusalCode::Account,
        QueryError::Unkept | QueryError::Failed(_) => RefusalCode::Failed,
    };
    refusal(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A quote that takes as long as it likes keeps nobody waiting.
    #[test]
    fn a_quote_keeps_nobody_else_waiting() {
        let (queue, mut asked) = mpsc::channel(4);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let prove: Prove = Arc::new(move |_: &[u8; 32], _: &[u8; 32]| {
            let _ = held.lock().map(|held| held.recv_timeout(Duration::from_secs(60)));
            Ok(vec![1])
        });
        let door = Arc::new(Door { queue, image_bytes: 1, prove });
        std::thread::spawn(move || {
            while let Some(Asked::Hello(hello)) = asked.blocking_recv() {
                let _ = hello.reply.send(Ok(ClientId::of(&hello.secret)));
            }
        });
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
        let session = || Session { exporter: [0; 32], state: Known::default() };
        let hello = ToService::Hello { version: VERSION, client: [3; 32], generation: None, witness: None };
        runtime.block_on(async {
            let proving = Arc::clone(&door);
            let proof = tokio::spawn(async move {
                proving.handle(&mut session(), ToService::Prove { nonce: [0; 32] }, Vec::new()).await
            });
            tokio::task::yield_now().await;
            let mut friend = session();
            let welcome = door.handle(&mut friend, hello, Vec::new());
            let welcome = tokio::time::timeout(Duration::from_secs(30), welcome).await.unwrap();
            assert!(matches!(welcome, Reply::Send(FromService::Welcome { .. }, _)), "{welcome:?}");
            assert!(!proof.is_finished());
            // A session opens one account and no other.
            let other = ToService::Hello { version: VERSION, client: [4; 32], generation: None, witness: None };
            let refused = door.handle(&mut friend, other, Vec::new()).await;
            assert!(matches!(refused, Reply::Last(FromService::Refused(_), _)), "{refused:?}");
            let_go.send(()).unwrap();
            assert!(matches!(proof.await.unwrap(), Reply::Send(FromService::Proof, quote) if quote == [1]));
        });
    }
}
