//! The one thread that owns the network: it gathers the images of all clients into batches.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use asymflow::service::{Answer, Query, QueryError, Service, ServiceStats};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// One image and who waits for it.
pub struct Item {
    pub query: Query,
    pub reply: oneshot::Sender<Told>,
}

/// What a waiting client hears.
pub struct Told {
    pub answer: Result<Answer, QueryError>,
    /// ε that the client has lost so far.
    pub spent_epsilon: Option<f64>,
}

/// The latest counters of the service.
pub type SharedStats = Arc<Mutex<ServiceStats>>;

/// Starts the thread; it ends when every sender is gone. The queue holds a few batches: clients take turns in it, image by
/// image.
pub fn start(
    service: Service,
    batch: usize,
    linger: Duration,
    threads: rayon::ThreadPool,
) -> std::io::Result<(Sender<Item>, SharedStats, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = channel(4 * batch);
    let stats = SharedStats::default();
    let shared = Arc::clone(&stats);
    let body = move || threads.install(|| run(service, receiver, batch, linger, &shared));
    let thread = std::thread::Builder::new().name("executor".to_owned()).spawn(body)?;
    Ok((sender, stats, thread))
}

fn run(mut service: Service, mut items: Receiver<Item>, batch: usize, linger: Duration, stats: &SharedStats) {
    while let Some(first) = items.blocking_recv() {
        let mut gathered = vec![first];
        fill(&mut gathered, &mut items, batch);
        if gathered.len() < batch && !linger.is_zero() {
            std::thread::sleep(linger);
            fill(&mut gathered, &mut items, batch);
        }
        let (queries, replies): (Vec<_>, Vec<_>) = gathered.into_iter().map(|item| (item.query, item.reply)).unzip();
        let answers = service.answer(&queries);
        let is_accounted = service.answer_epsilon().is_some();
        for ((answer, reply), query) in answers.into_iter().zip(replies).zip(&queries) {
            let spent_epsilon = is_accounted.then(|| service.spent_epsilon(&query.client));
            // A client that has gone hears nothing.
            let _ = reply.send(Told { answer, spent_epsilon });
        }
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = service.stats();
    }
}

fn fill(gathered: &mut Vec<Item>, items: &mut Receiver<Item>, batch: usize) {
    while gathered.len() < batch {
        let Ok(item) = items.try_recv() else { return };
        gathered.push(item);
    }
}
