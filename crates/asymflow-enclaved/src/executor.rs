//! The one thread that owns the network: it gathers the images of all clients into batches.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use asymflow::service::{AccountError, Answer, ClientId, Query, QueryError, Service, ServiceStats};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

pub struct Item {
    pub query: Query,
    pub reply: oneshot::Sender<Told>,
}

/// A client that names itself.
pub struct Hello {
    pub secret: [u8; 32],
    pub generation: Option<u64>,
    pub witness: Option<Vec<u8>>,
    pub reply: oneshot::Sender<Result<ClientId, NotAdmitted>>,
}

/// Why a client is not asked for images.
pub enum NotAdmitted {
    RolledBack(String),
    Account(AccountError),
}

pub enum Asked {
    Image(Item),
    Hello(Hello),
}

pub struct Told {
    pub answer: Result<Answer, QueryError>,
    pub spent_epsilon: Option<f64>,
    pub witness: Option<Vec<u8>>,
}

pub type SharedStats = Arc<Mutex<ServiceStats>>;

/// Starts the thread; it ends when every sender is gone. The queue holds a few batches: clients take turns in it, image by
/// image.
pub fn start(
    service: Service,
    batch: usize,
    linger: Duration,
    threads: rayon::ThreadPool,
) -> std::io::Result<(Sender<Asked>, SharedStats, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = channel(4 * batch);
    let stats = SharedStats::default();
    let shared = Arc::clone(&stats);
    let body = move || threads.install(|| run(service, receiver, batch, linger, &shared));
    let thread = std::thread::Builder::new().name("executor".to_owned()).spawn(body)?;
    Ok((sender, stats, thread))
}

fn run(mut service: Service, mut items: Receiver<Asked>, batch: usize, linger: Duration, stats: &SharedStats) {
    while let Some(first) = items.blocking_recv() {
        let mut gathered = Vec::with_capacity(batch);
        take(first, &mut service, &mut gathered);
        fill(&mut gathered, &mut service, &mut items, batch);
        if (1..batch).contains(&gathered.len()) && !linger.is_zero() {
            std::thread::sleep(linger);
            fill(&mut gathered, &mut service, &mut items, batch);
        }
        if gathered.is_empty() {
            continue;
        }
        let (queries, replies): (Vec<_>, Vec<_>) = gathered.into_iter().map(|item| (item.query, item.reply)).unzip();
        let answers = service.answer(&queries);
        let is_accounted = service.answer_epsilon().is_some();
        let witness = service.witness();
        // Before anybody hears: a client may be the last one, and its answer is then in the final counters.
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = service.stats();
        for ((answer, reply), query) in answers.into_iter().zip(replies).zip(&queries) {
            let spent_epsilon = is_accounted.then(|| service.spent_epsilon(&query.client));
            // A client that has gone hears nothing.
            let _ = reply.send(Told { answer, spent_epsilon, witness: witness.clone() });
        }
    }
}

fn fill(gathered: &mut Vec<Item>, service: &mut Service, items: &mut Receiver<Asked>, batch: usize) {
    while gathered.len() < batch {
        let Ok(asked) = items.try_recv() else { return };
        take(asked, service, gathered);
    }
}

/// Gathers an image; answers a hello at once.
fn take(asked: Asked, service: &mut Service, gathered: &mut Vec<Item>) {
    match asked {
        Asked::Image(item) => gathered.push(item),
        Asked::Hello(Hello { secret, generation, witness, reply }) => {
            let is_fresh = witness.map_or(Ok(()), |witness| service.check_witness(&witness));
            let admitted = is_fresh
                .map_err(NotAdmitted::RolledBack)
                .and_then(|()| service.admit(&secret, generation).map_err(NotAdmitted::Account));
            // A client that has gone hears nothing.
            let _ = reply.send(admitted);
        }
    }
}
