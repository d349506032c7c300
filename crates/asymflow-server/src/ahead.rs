//! The next query's work that needs no input, done before anybody asks.
//!
//! Randomness that is read ahead stays unused on disk: a query spends it, whoever read it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use asymflow_shares::net::QueryName;
use asymflow_shares::server::Party;

use crate::model::Ring;

/// See the module. One query at a time.
#[derive(Debug, Default)]
pub struct Ahead {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Idle,
    Wanted(QueryName),
    Making(QueryName),
    Ready(QueryName, Box<Party<Ring>>),
}

impl Slot {
    const fn name(&self) -> Option<QueryName> {
        match self {
            Self::Idle => None,
            Self::Wanted(query) | Self::Making(query) | Self::Ready(query, _) => Some(*query),
        }
    }
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `next` prepared, in place of what is prepared.
    pub fn want(&self, next: Option<QueryName>) {
        let mut slot = self.lock();
        if slot.name() != next && !matches!(*slot, Slot::Making(_)) {
            *slot = next.map_or(Slot::Idle, Slot::Wanted);
            self.changed.notify_all();
        }
    }

    /// What was prepared for a query; waits where that is going on.
    pub fn take(&self, query: QueryName, patience: Duration) -> Option<Party<Ring>> {
        let making = |slot: &mut Slot| matches!(slot, Slot::Making(name) if *name == query);
        let waited = self.changed.wait_timeout_while(self.lock(), patience, making);
        let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *slot) {
            Slot::Ready(name, party) if name == query => Some(*party),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Prepares whatever is wanted, for as long as the process lives.
    pub fn work(&self, prepare: impl Fn(QueryName) -> Option<Party<Ring>>) -> ! {
        loop {
            let idle = |slot: &mut Slot| !matches!(slot, Slot::Wanted(_));
            let mut slot = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            let Some(query) = slot.name() else { continue };
            *slot = Slot::Making(query);
            drop(slot);
            let made = prepare(query);
            *self.lock() = made.map_or(Slot::Idle, |party| Slot::Ready(query, Box::new(party)));
            self.changed.notify_all();
        }
    }
}
