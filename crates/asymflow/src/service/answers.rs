//! Answers given before: asked about the same image again, a client is told the same, and nothing is released.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ledgers::{ClientId, Malformed};

/// Answers in one block of [`Answers::blocks`].
const BLOCK_ANSWERS: usize = 64;

/// An image that a client asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Who asks.
    pub client: ClientId,
    /// Channels × height × width bytes, as in a data set.
    pub image: Vec<u8>,
}

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

/// Answers, up to a limit. Beyond it the client of which most are remembered gives one up, drawn by its hash; so a client with
/// no more than its share keeps all of them, whatever others ask.
#[derive(Debug)]
pub struct Answers {
    /// A tree holds what is in it and no more; a hash table that answers come and go in grows to twice its size.
    logits: BTreeMap<Asked, Vec<f32>>,
    counts: BTreeMap<ClientId, usize>,
    /// The same, by count.
    by_count: BTreeSet<(usize, ClientId)>,
    limit: usize,
}

impl Answers {
    /// Nothing yet, and at most `limit` answers.
    pub const fn new(limit: usize) -> Self {
        Self { logits: BTreeMap::new(), counts: BTreeMap::new(), by_count: BTreeSet::new(), limit }
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
        while self.logits.len() >= self.limit && self.forget_one(&asked) {}
        self.logits.insert(asked, logits.to_vec());
        self.count(asked.client, 1);
        true
    }

    /// Makes room for an answer; whether there was anything to forget.
    fn forget_one(&mut self, asked: &Asked) -> bool {
        let Some(&(most, largest)) = self.by_count.last() else { return false };
        let own = self.counts.get(&asked.client).copied().unwrap_or_default();
        let client = if own >= most { asked.client } else { largest };
        // The new image's digest draws one of the client's: the next in order, or the first.
        let of_client = |image| Asked { client, image };
        let mut after =
            self.logits.range((Bound::Excluded(of_client(asked.image)), Bound::Included(of_client([255; 32]))));
        let mut all = self.logits.range(of_client([0; 32])..=of_client([255; 32]));
        let Some(forgotten) = after.next().or_else(|| all.next()).map(|(asked, _)| *asked) else { return false };
        self.logits.remove(&forgotten);
        self.count(client, -1);
        true
    }

    fn count(&mut self, client: ClientId, change: isize) {
        let before = self.counts.remove(&client).unwrap_or_default();
        self.by_count.remove(&(before, client));
        let after = before.saturating_add_signed(change);
        if after > 0 {
            self.counts.insert(client, after);
            self.by_count.insert((after, client));
        }
    }

    /// Heap of `answers` answers of `classes` logits, at most: nodes of trees that may be half empty, each client with one
    /// answer, and the logits with what the allocator adds.
    pub const fn held_bytes(answers: usize, classes: usize) -> usize {
        let entries = size_of::<Asked>() + size_of::<Vec<f32>>() + 2 * (size_of::<ClientId>() + size_of::<usize>());
        answers * (2 * entries + size_of::<f32>() * classes + ALLOCATION_BYTES)
    }

    /// What answers are of: the model file of that SHA-256, in one of the modes that it can be served in.
    pub fn context(model_sha256: &str, mode: &str) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"asymflow answers\0").chain_update(mode).chain_update(b"\0");
        hash.chain_update(model_sha256).finalize().into()
    }

    fn encode(&self, asked: &[Asked]) -> Result<Vec<u8>, postcard::Error> {
        let remembered = asked.iter().filter_map(|asked| Some((*asked, self.logits.get(asked)?)));
        postcard::to_stdvec(&remembered.collect::<Vec<_>>())
    }

    /// Those of these answers that are remembered, for a [`Keeper`](super::Keeper) to append.
    pub fn blocks_of(&self, asked: &[Asked]) -> impl Iterator<Item = Result<Vec<u8>, postcard::Error>> {
        asked.chunks(BLOCK_ANSWERS).map(|some| self.encode(some))
    }

    /// All of them, in such blocks.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Vec<u8>, postcard::Error>> {
        let mut rest = self.logits.keys().copied().peekable();
        std::iter::from_fn(move || {
            rest.peek()?;
            Some(self.encode(&rest.by_ref().take(BLOCK_ANSWERS).collect::<Vec<_>>()))
        })
    }

    /// Remembers again what an earlier process kept.
    ///
    /// # Errors
    /// No such block.
    pub fn recall(&mut self, block: &[u8]) -> Result<(), Malformed> {
        let Ok((answers, [])) = postcard::take_from_bytes::<Vec<(Asked, Vec<f32>)>>(block) else {
            return Err(Malformed);
        };
        for (asked, logits) in &answers {
            self.remember(*asked, logits);
        }
        Ok(())
    }
}

/// What an allocation takes beside its content.
const ALLOCATION_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(client: u8, image: u32) -> Asked {
        Asked::of(&Query { client: ClientId::of(&[client; 32]), image: image.to_le_bytes().to_vec() })
    }

    fn remembered(answers: &Answers, client: u8, images: u32) -> usize {
        (0..images).filter(|&image| answers.get(&asked(client, image)).is_some()).count()
    }

    #[test]
    fn the_same_question_is_remembered_once_and_clients_are_told_apart() {
        let mut answers = Answers::new(10);
        assert!(answers.remember(asked(1, 1), &[1.0]));
        assert!(!answers.remember(asked(1, 1), &[2.0]));
        assert_eq!(answers.get(&asked(1, 1)), Some(&[1.0][..]));
        assert_eq!(answers.get(&asked(2, 1)), None);
        assert!(!Answers::new(0).remember(asked(1, 1), &[1.0]));
    }

    /// Whatever one client or ten ask, another that has no more than its share loses none of its answers.
    #[test]
    fn a_flood_of_answers_pushes_out_the_floods_own() {
        let mut answers = Answers::new(100);
        for image in 0..9 {
            answers.remember(asked(0, image), &[0.0; 10]);
        }
        for image in 0..1000 {
            answers.remember(asked(1, image), &[0.0; 10]);
        }
        assert_eq!((remembered(&answers, 0, 9), remembered(&answers, 1, 1000)), (9, 91));
        assert!(answers.get(&asked(1, 999)).is_some(), "the latest is there");
        for image in 0..1000 {
            for client in 1..11 {
                answers.remember(asked(client, image), &[0.0; 10]);
            }
        }
        assert_eq!(remembered(&answers, 0, 9), 9);
        for client in 1..11 {
            assert!((9..=10).contains(&remembered(&answers, client, 1000)), "client {client}");
        }
        assert_eq!((answers.logits.len(), answers.by_count.len(), answers.counts.len()), (100, 11, 11));
        // A single client beyond its limit loses its own, and any of them.
        let mut alone = Answers::new(100);
        for image in 0..1000 {
            alone.remember(asked(1, image), &[]);
        }
        let latest = (900..1000).filter(|&image| alone.get(&asked(1, image)).is_some()).count();
        assert!((40..90).contains(&latest), "{latest} of the latest 100");
    }

    #[test]
    fn what_was_kept_is_recalled_up_to_the_limit() {
        let mut before = Answers::new(200);
        for image in 0..150 {
            before.remember(asked(1, image), &[image as f32; 10]);
        }
        let blocks: Vec<_> = before.blocks().map(Result::unwrap).collect();
        assert_eq!(blocks.len(), 3);
        for (limit, want) in [(200, 150), (120, 120)] {
            let mut answers = Answers::new(limit);
            blocks.iter().for_each(|block| answers.recall(block).unwrap());
            assert_eq!(remembered(&answers, 1, 150), want);
        }
        let mut answers = Answers::new(3);
        for end in 0..blocks[2].len() {
            assert_eq!(answers.recall(&blocks[2][..end]), Err(Malformed), "cut at {end}");
        }
        assert_eq!(before.encode(&[asked(1, 7), asked(1, 900)]).unwrap()[0], 1, "what is not remembered is left out");
    }
}
