//! Answers given before: asked about the same image again, a client is told the same, and nothing is released.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Query;
use super::ledgers::{ClientId, LedgersError};

/// A client and the digest of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

    /// Remembers an answer. Whether it is a new one.
    pub fn remember(&mut self, asked: Asked, logits: &[f32]) -> bool {
        if self.limit == 0 || self.logits.contains_key(&asked) {
            return false;
        }
        while self.logits.len() >= self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.logits.remove(&oldest);
        }
        self.order.push_back(asked);
        self.logits.insert(asked, logits.to_vec());
        true
    }

    /// Heap of `answers` answers of `classes` logits, at most: nodes of the tree that may be half empty, a queue that may be
    /// twice as long as what is in it, and the logits with what the allocator adds.
    pub const fn held_bytes(answers: usize, classes: usize) -> usize {
        let node = 2 * (size_of::<Asked>() + size_of::<Vec<f32>>());
        answers * (node + 2 * size_of::<Asked>() + size_of::<f32>() * classes + ALLOCATION_BYTES)
    }

    /// What answers are of: the model file of that SHA-256, in one of the modes that it can be served in.
    pub fn context(model_sha256: &str, mode: &str) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"asymflow answers\0").chain_update(mode).chain_update(b"\0");
        hash.chain_update(model_sha256).finalize().into()
    }

    /// Bytes of answers, for a [`Keeper`](super::Keeper) to keep.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn encode(answers: &[(Asked, Vec<f32>)]) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(answers)
    }

    /// Bytes of [`Answers::encode`] for `answers` answers of `classes` logits, at most.
    pub const fn encoded_bytes(answers: usize, classes: usize) -> usize {
        LENGTH_BYTES + answers * (size_of::<Asked>() + LENGTH_BYTES + size_of::<f32>() * classes)
    }

    /// Remembers again what an earlier process kept, after what is remembered already.
    ///
    /// # Errors
    /// Not what [`Answers::encode`] writes.
    pub fn recall(&mut self, bytes: &[u8]) -> Result<(), LedgersError> {
        match postcard::take_from_bytes::<Vec<(Asked, Vec<f32>)>>(bytes) {
            Ok((answers, [])) => {
                for (asked, logits) in &answers {
                    self.remember(*asked, logits);
                }
                Ok(())
            }
            _ => Err(LedgersError::Malformed),
        }
    }
}

/// What an allocation takes beside its content.
const ALLOCATION_BYTES: usize = 16;
/// Most bytes of a length.
const LENGTH_BYTES: usize = 10;

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

    #[test]
    fn what_was_kept_is_recalled_up_to_the_limit() {
        let asked = |image: u8| Asked::of(&Query { client: ClientId::of(&[1; 32]), image: vec![image] });
        let kept: Vec<_> = (0..5).map(|image| (asked(image), vec![f32::from(image); 10])).collect();
        let bytes = Answers::encode(&kept).unwrap();
        assert!(bytes.len() <= Answers::encoded_bytes(5, 10), "{}", bytes.len());
        let mut answers = Answers::new(3);
        answers.recall(&bytes).unwrap();
        assert_eq!(answers.get(&asked(1)), None);
        assert_eq!(answers.get(&asked(2)), Some(&[2.0; 10][..]));
        for end in 0..bytes.len() {
            assert_eq!(answers.recall(&bytes[..end]), Err(LedgersError::Malformed), "cut at {end}");
        }
    }
}
