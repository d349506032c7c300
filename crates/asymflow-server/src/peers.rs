//! Where the other server's connections wait for the query that they belong to.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use asymflow_shares::net::{QueryName, Stream};

/// A connection that brings the other server's messages.
#[derive(Debug)]
pub struct Arrived {
    pub stream: Stream,
    /// Whether it needs the masked weights.
    pub set_up: bool,
    at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Peers {
    waiting: Mutex<HashMap<QueryName, Arrived>>,
    came: Condvar,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<QueryName, Arrived>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a connection for its query. False where `most` wait already, or one for this query does; those that waited
    /// longer than `patience` are dropped.
    pub fn leave(&self, query: QueryName, stream: Stream, set_up: bool, most: usize, patience: Duration) -> bool {
        let mut waiting = self.lock();
        waiting.retain(|_, arrived| arrived.at.elapsed() < patience);
        if waiting.len() >= most || waiting.contains_key(&query) {
            return false;
        }
        waiting.insert(query, Arrived { stream, set_up, at: Instant::now() });
        self.came.notify_all();
        true
    }

    /// Waits for the connection of a query.
    pub fn wait(&self, query: &QueryName, patience: Duration) -> Option<Arrived> {
        let waiting = self.lock();
        let missing = |waiting: &mut HashMap<_, _>| !waiting.contains_key(query);
        let (mut waiting, _) =
            self.came.wait_timeout_while(waiting, patience, missing).unwrap_or_else(PoisonError::into_inner);
        waiting.remove(query)
    }
}
