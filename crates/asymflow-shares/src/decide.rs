//! Sign decisions about opened values x̂ = x + r: the sign of x is msb(x̂) ⊕ msb(r) ⊕ 1{x̂ < r below the top bit}, the last by
//! [keys](crate::compare) or by [tables](crate::tables).

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::compare;
use crate::prg::Purpose;
use crate::program::{Compare, DealSize, Method};
use crate::ring::Ring;
use crate::source::{OpDeal, Source, pack_bits, unpack_bits};
use crate::tables::{self, Layout, Run, TableShare};

impl Compare {
    /// The window's sign bit and what is below it.
    fn split<R: Ring>(self, value: R) -> (u8, u64) {
        let window = value.shifted_right(self.dropped).to_u64();
        let below = self.width - 1;
        ((window >> below & 1) as u8, window & ((1 << below) - 1))
    }

    /// What has to stay below half of the window for a value of this magnitude: what is dropped may carry into it.
    pub(crate) fn reach(self, magnitude: f64) -> f64 {
        magnitude + 2_f64.powi(self.dropped as i32)
    }

    /// Exchanges of masked bits, that of the decisions included.
    pub(crate) fn rounds(self) -> u32 {
        match self.method {
            Method::Keys => 1,
            Method::Tables => 1 + Layout::new(self.width - 1).levels() as u32,
        }
    }

    /// What the dealer sends to compare, beyond shares of each decision's mask.
    pub(crate) fn deal_size(self, decisions: usize) -> DealSize {
        match self.method {
            Method::Keys => DealSize { common: decisions * compare::key_blocks(self.width - 1), ..DealSize::default() },
            Method::Tables => {
                let planes = Layout::new(self.width - 1).dealt_planes();
                DealSize { bytes: planes * decisions.div_ceil(8), ..DealSize::default() }
            }
        }
    }

    /// Bytes of masked bits that each server sends.
    pub(crate) fn online_bytes(self, decisions: usize) -> usize {
        let planes = match self.method {
            Method::Keys => 1,
            Method::Tables => 1 + Layout::new(self.width - 1).opened_planes(),
        };
        planes * decisions.div_ceil(8)
    }
}

impl Source<'_> {
    /// The key of the permutation of this operation's trees: public, and of no other dealing, query or operation.
    fn tree_key(&self) -> u128 {
        let digest = Sha256::new()
            .chain_update(b"asymflow-shares trees v2")
            .chain_update(self.seed.session)
            .chain_update(self.seed.model)
            .chain_update(self.query.to_le_bytes())
            .chain_update(self.op.to_le_bytes())
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        u128::from_le_bytes(key)
    }

    /// Masks of decisions, one bit each.
    fn decision_masks(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count.div_ceil(8)];
        self.stream(Purpose::DecisionMask).fill(&mut bytes);
        bytes
    }
}

/// What the dealer sends for decisions about values with the masks `about`, and u, the bits that take the masks off the decisions.
pub(crate) fn deal<R: Ring>(sources: [Source<'_>; 2], compare: Compare, about: &[R]) -> (OpDeal<R>, Vec<u8>) {
    let (signs, alphas): (Vec<u8>, Vec<u64>) = about.iter().map(|&r| compare.split(r)).unzip();
    let deal = match compare.method {
        Method::Keys => {
            let roots = sources.map(|source| source.stream(Purpose::Root).blocks(alphas.len()));
            let below = compare.width - 1;
            let keys = compare::generate(sources[0].tree_key(), below, &alphas, [&roots[0], &roots[1]]);
            OpDeal { common: Arc::new(keys), ..OpDeal::default() }
        }
        Method::Tables => {
            let bytes = tables::deal(&Layout::new(compare.width - 1), sources, &alphas);
            OpDeal { bytes, ..OpDeal::default() }
        }
    };
    let [left, right] = sources.map(|source| unpack_bits(&source.decision_masks(alphas.len()), alphas.len()));
    let flips = signs.iter().zip(&left).zip(&right).map(|((a, b), c)| a ^ b ^ c).collect();
    (deal, flips)
}

/// A server's randomness of an operation's decisions.
pub(crate) struct DecisionShare {
    compare: Compare,
    is_first: bool,
    /// Of decisions, packed as they are sent.
    masks: Vec<u8>,
    by: By,
}

enum By {
    Keys { tree_key: u128, roots: Vec<u128>, words: Arc<Vec<u128>> },
    Tables(TableShare),
}

/// Gates whose masked inputs are on their way.
pub(crate) struct Gates {
    run: Run,
    /// The public part of the decisions, at the first server.
    public: Vec<u8>,
}

/// Masked bits to open: those of gates, or of the decisions where there are none.
pub(crate) type Masked = (Vec<u8>, Option<Gates>);

impl DecisionShare {
    /// `deal` is of the right size.
    pub(crate) fn expand<R>(
        source: Source<'_>,
        deal: &OpDeal<R>,
        compare: Compare,
        is_first: bool,
        count: usize,
    ) -> Self {
        let by = match compare.method {
            Method::Keys => By::Keys {
                tree_key: source.tree_key(),
                roots: source.stream(Purpose::Root).blocks(count),
                words: Arc::clone(&deal.common),
            },
            Method::Tables => {
                let bytes = compare.deal_size(count).bytes;
                let dealt = (!is_first).then(|| &deal.bytes[..bytes]);
                By::Tables(TableShare::expand(Layout::new(compare.width - 1), source, dealt, count))
            }
        };
        Self { compare, is_first, masks: source.decision_masks(count), by }
    }

    /// Roots of trees, or masks of gates.
    #[cfg(test)]
    pub(crate) fn secrets(&self) -> Vec<u128> {
        match &self.by {
            By::Keys { roots, .. } => roots.clone(),
            By::Tables(share) => share.masks().iter().map(|&mask| mask.into()).collect(),
        }
    }

    /// Begins with what was opened.
    pub(crate) fn begin<R: Ring>(&self, about: &[R]) -> Masked {
        let (signs, points): (Vec<u8>, Vec<u64>) = about.iter().map(|&x| self.compare.split(x)).unzip();
        // 1 ⊕ msb(x̂) is public, and the first server's.
        let public = if self.is_first { pack_bits(&signs).iter().map(|byte| !byte).collect() } else { Vec::new() };
        match &self.by {
            By::Keys { tree_key, roots, words } => {
                let (party, below) = (usize::from(!self.is_first), self.compare.width - 1);
                let shares = compare::evaluate(party, *tree_key, below, words, roots, &points);
                (self.masked(pack_bits(&shares), &public), None)
            }
            By::Tables(share) => self.next(share, Gates { run: share.look_up(&points), public }),
        }
    }

    /// Goes on with the bits of gates that were opened.
    pub(crate) fn go_on(&self, mut gates: Gates, opened: &[u8]) -> Masked {
        match &self.by {
            By::Keys { .. } => (Vec::new(), None),
            By::Tables(share) => {
                share.join(&mut gates.run, opened);
                self.next(share, gates)
            }
        }
    }

    fn next(&self, share: &TableShare, gates: Gates) -> Masked {
        match share.result(&gates.run) {
            Some(shares) => (self.masked(shares, &gates.public), None),
            None => (share.opening(&gates.run), Some(gates)),
        }
    }

    fn masked(&self, mut shares: Vec<u8>, public: &[u8]) -> Vec<u8> {
        shares.iter_mut().zip(&self.masks).for_each(|(share, mask)| *share ^= mask);
        shares.iter_mut().zip(public).for_each(|(share, public)| *share ^= public);
        shares
    }
}
