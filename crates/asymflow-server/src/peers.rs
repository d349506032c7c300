//! The queries that are under way here, and the other server's connections to them.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use asymflow_shares::net::{QueryName, Stream, TicketId};

/// A connection that brings the other server's messages.
#[derive(Debug)]
pub struct Arrived {
    pub stream: Stream,
    /// Whether it needs the masked weights.
    pub set_up: bool,
}

/// What is known of a ticket.
#[derive(Debug)]
struct Known {
    is_expected: bool,
    /// The other server has named it.
    is_linked: bool,
    arrived: Option<Arrived>,
    at: Instant,
}

#[derive(Debug, Default)]
pub struct Peers {
    known: Mutex<HashMap<TicketId, Known>>,
    came: Condvar,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<TicketId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the client of a ticket is here.
    pub fn expect(&self, ticket: TicketId) {
        let new = Known { is_expected: true, is_linked: false, arrived: None, at: Instant::now() };
        self.lock().entry(ticket).or_insert(new).is_expected = true;
    }

    /// Forgets a ticket when its client has been answered or is gone; says whether the other server has named it.
    pub fn done(&self, ticket: &TicketId) -> bool {
        self.lock().remove(ticket).is_some_and(|known| known.is_linked)
    }

    /// Whether the client of some ticket for this query is here.
    pub fn is_under_way(&self, query: &QueryName) -> bool {
        self.lock().iter().any(|(ticket, known)| ticket.query == *query && known.is_expected)
    }

    /// Notes that the other server has named a ticket, whose client need not have come yet where `in_advance`. False where it
    /// must have, or where `most` wait for theirs already; those that waited longer than `patience` are dropped.
    pub fn link(&self, ticket: TicketId, in_advance: bool, most: usize, patience: Duration) -> bool {
        let mut known = self.lock();
        known.retain(|_, known| known.is_expected || known.at.elapsed() < patience);
        if let Some(known) = known.get_mut(&ticket).filter(|known| known.is_expected && !known.is_linked) {
            known.is_linked = true;
            return true;
        }
        let waiting = known.values().filter(|known| !known.is_expected).count();
        if !in_advance || waiting >= most || known.contains_key(&ticket) {
            return false;
        }
        let new = Known { is_expected: false, is_linked: true, arrived: None, at: Instant::now() };
        known.insert(ticket, new);
        true
    }

    /// Leaves the connection for a ticket that was linked.
    pub fn leave(&self, ticket: &TicketId, arrived: Arrived) {
        if let Some(known) = self.lock().get_mut(ticket) {
            known.arrived = Some(arrived);
        }
        self.came.notify_all();
    }

    /// Waits for the connection of a ticket.
    pub fn wait(&self, ticket: &TicketId, patience: Duration) -> Option<Arrived> {
        let missing = |known: &mut HashMap<TicketId, Known>| known.get(ticket).is_some_and(|k| k.arrived.is_none());
        let waited = self.came.wait_timeout_while(self.lock(), patience, missing);
        let (mut known, _) = waited.unwrap_or_else(PoisonError::into_inner);
        known.get_mut(ticket)?.arrived.take()
    }
}
