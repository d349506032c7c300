//! Answers given before: asked about the same image again, a client is told the same, and nothing is released.

use std::collections::{BTreeMap, VecDeque};

use sha2::{Digest, Sha256};

use super::Query;
use super::ledgers::ClientId;

/// A client and the digest of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asked {
    client: ClientId,
    image: [u8; 32],
}

impl Asked {
    /// Of a query. Other clients that ask about the same image are told apart: what one was answered says nothing to
    /// another, not even by its cost.
    pub fn of(query: &Query) -> Self {
        Self { client: query.client, image: Sha256::digest(&query.image).into() }
    }
}

/// The latest answers, up to a limit; the oldest goes first.
#[derive(Debug)]
pub struct Answers {
    /// A tree holds what is in it and no more; a hash table that answers come and go in grows to twice its size.
    logits: BTreeMap<Asked, Vec<f32>>,
    order: VecDeque<Asked>,
    limit: usize,
}

impl Answers {
    /// Nothing yet, and at most `limit` answers.
    pub fn new(limit: usize) -> Self {
        Self { logits: BTreeMap::new(), order: VecDeque::new(), limit }
    }

    /// What was answered, if it is remembered.
    pub fn get(&self, asked: &Asked) -> Option<&[f32]> {
        self.logits.get(asked).map(Vec::as_slice)
    }

    /// Remembers an answer.
    pub fn remember(&mut self, asked: Asked, logits: &[f32]) {
        if self.limit == 0 || self.logits.contains_key(&asked) {
            return;
        }
        while self.logits.len() >= self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.logits.remove(&oldest);
        }
        self.order.push_back(asked);
        self.logits.insert(asked, logits.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_answer_is_forgotten_first_and_clients_are_told_apart() {
        let query = |client: u8, image: u8| Query { client: ClientId::of(&[client; 32]), image: vec![image; 4] };
        let mut answers = Answers::new(2);
        for (i, q) in [query(1, 1), query(1, 2), query(1, 1), query(1, 3)].iter().enumerate() {
            answers.remember(Asked::of(q), &[i as f32]);
        }
        assert_eq!(answers.get(&Asked::of(&query(1, 1))), None);
        assert_eq!(answers.get(&Asked::of(&query(1, 2))), Some(&[1.0][..]));
        assert_eq!(answers.get(&Asked::of(&query(1, 3))), Some(&[3.0][..]));
        assert_eq!(answers.get(&Asked::of(&query(2, 3))), None);
        assert_eq!(answers.order.len(), 2);
    }
}
