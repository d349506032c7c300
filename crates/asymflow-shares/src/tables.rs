//! Comparison by one-time tables: two parties get shares of 1{x < α} for a public x, where the dealer alone knows α.
//!
//! α is cut into blocks. For each the dealer shares the *one-hot table* of the block of α, that is a one-time truth table of equality
//! (Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky, "On the Power of Correlated Randomness in Secure Computation",
//! TCC 2013, section 3; Beaver, "One-Time Tables for Two-Party Computation", COCOON 1998), without entry 0, which is one minus the
//! others. As x is public, looking it up is local, and so is x < α: the parity of the entries above x (the prefix parity of
//! Storrier, Vadapalli, Lyons, Henry, "Grotto", CCS 2023). From the highest block that differs,
//! lt = lt₃ ⊕ eq₃·lt₂ ⊕ eq₃·eq₂·lt₁ ⊕ …: products of up to [`FAN_IN`] equalities and one lt, each by one opening of its masked
//! factors, for which the dealer shares all products of their masks (multi-input gates of Patra, Schneider, Suresh,
//! Yalame, "ABY2.0", USENIX Security 2021, section 3). What is opened is one-time padded: it is uniform whatever x and α.
//!
//! Everything is done on planes, 64 instances a word.

use crate::planes::{self, words};
use crate::prg::Purpose;
use crate::source::Source;

/// Blocks that a gate joins.
const FAN_IN: usize = 4;
/// Bits of a block. Tables of five are longer than what they save.
const BLOCK_BITS: std::ops::RangeInclusive<u32> = 2..=4;
/// Sets of wires of a gate: bit j is the equality of element j, bit `FAN_IN` + j its lt.
type Wires = u8;

/// Where the bits of a comparison go; public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of each block, the lowest first.
    blocks: Vec<u32>,
    levels: Vec<Vec<Gate>>,
}

/// Joins neighbouring elements, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gate {
    size: usize,
    /// The factors that are opened under a mask.
    wires: Vec<u32>,
    /// Products whose sum is lt, but for the lt of the highest element.
    less: Vec<Wires>,
    /// The product that is equality, where something below is compared with it.
    equal: Option<Wires>,
    /// Products of masks that the dealer shares.
    products: Vec<Wires>,
}

impl Gate {
    fn new(size: usize, is_lowest: bool) -> Self {
        let equalities = |from: usize| (from..size).fold(0, |set: Wires, j| set | 1 << j);
        let less: Vec<Wires> = (0..size - 1).map(|j| 1 << (FAN_IN + j) | equalities(j + 1)).collect();
        let equal = (!is_lowest && size > 1).then(|| equalities(0));
        let terms = || less.iter().copied().chain(equal);
        let used = terms().fold(0, |all, term| all | term);
        let is_product = |set: &Wires| set.count_ones() > 1 && terms().any(|term| set & !term == 0);
        let products = (0..=Wires::MAX).filter(is_product).collect();
        Self { size, wires: (0..Wires::BITS).filter(|wire| used >> wire & 1 == 1).collect(), less, equal, products }
    }
}

impl Layout {
    /// For values of `bits` bits: of the layouts with the fewest levels, that with the fewest bits dealt and opened.
    pub(crate) fn new(bits: u32) -> Self {
        let layouts = BLOCK_BITS.map(|size| Self::of_blocks(bits, size));
        let cost = |layout: &Self| (layout.levels.len(), layout.dealt_planes() + 2 * layout.opened_planes());
        layouts.min_by_key(cost).unwrap_or_else(|| Self::of_blocks(bits, 1))
    }

    fn of_blocks(bits: u32, size: u32) -> Self {
        let blocks: Vec<u32> = (0..bits.div_ceil(size)).map(|block| size.min(bits - block * size)).collect();
        let (mut levels, mut elements) = (Vec::new(), blocks.len());
        while elements > 1 {
            let gates = elements.div_ceil(FAN_IN);
            // The lowest gate is the cheapest, and has the most.
            let size = |gate: usize| elements / gates + usize::from(gate < elements % gates);
            levels.push((0..gates).map(|gate| Gate::new(size(gate), gate == 0)).collect());
            elements = gates;
        }
        Self { blocks, levels }
    }

    /// Exchanges before the result is shared.
    pub(crate) fn levels(&self) -> usize {
        self.levels.len()
    }

    fn table_planes(&self) -> usize {
        self.blocks.iter().map(|&bits| (1 << bits) - 1).sum()
    }

    /// Bits that the dealer sends for an instance.
    pub(crate) fn dealt_planes(&self) -> usize {
        self.table_planes() + self.levels.iter().flatten().map(|gate| gate.products.len()).sum::<usize>()
    }

    /// Bits that each party sends for an instance.
    pub(crate) fn opened_planes(&self) -> usize {
        self.levels.iter().flatten().map(|gate| gate.wires.len()).sum()
    }
}

/// The second party's shares of tables and products for `alphas`, as bytes.
pub(crate) fn deal(layout: &Layout, sources: [Source<'_>; 2], alphas: &[u64]) -> Vec<u8> {
    let len = words(alphas.len());
    let mut shares: Vec<u64> = sources[0].stream(Purpose::Table).words(layout.dealt_planes() * len);
    let (tables, products) = shares.split_at_mut(layout.table_planes() * len);
    let alphas_planes = planes::of_values(alphas, layout.blocks.iter().sum());
    let (mut rest, mut below) = (tables, alphas_planes.as_slice());
    for &bits in &layout.blocks {
        let (table, others) = rest.split_at_mut(((1 << bits) - 1) * len);
        let (block, above) = below.split_at(bits as usize * len);
        (rest, below) = (others, above);
        for word in 0..len {
            let is = minterms(bits, |bit| block[bit * len + word]);
            for (entry, is) in is[1..1 << bits].iter().enumerate() {
                table[entry * len + word] ^= is;
            }
        }
    }
    let [left, right] =
        sources.map(|source| source.stream(Purpose::GateMask).words::<u64>(layout.opened_planes() * len));
    let masks: Vec<u64> = left.iter().zip(&right).map(|(a, b)| a ^ b).collect();
    let (mut mask_at, mut product_at) = (0, 0);
    for gate in layout.levels.iter().flatten() {
        for set in &gate.products {
            let product = &mut products[product_at * len..][..len];
            for (word, product) in product.iter_mut().enumerate() {
                let factors = gate.wires.iter().enumerate().filter(|(_, wire)| set >> **wire & 1 == 1);
                *product ^= factors.fold(u64::MAX, |all, (at, _)| all & masks[(mask_at + at) * len + word]);
            }
            product_at += 1;
        }
        mask_at += gate.wires.len();
    }
    planes::to_bytes(&shares, alphas.len())
}

/// For each value of a block, the lanes that have it.
fn minterms(bits: u32, block: impl Fn(usize) -> u64) -> [u64; 1 << *BLOCK_BITS.end()] {
    let mut is = [0; 1 << *BLOCK_BITS.end()];
    is[0] = u64::MAX;
    for bit in 0..bits as usize {
        let lanes = block(bit);
        for value in 0..1 << bit {
            (is[value], is[value | 1 << bit]) = (is[value] & !lanes, is[value] & lanes);
        }
    }
    is
}

/// One party's half of what was dealt, with the masks of its seed.
pub(crate) struct TableShare {
    layout: Layout,
    /// All ones at the first party, which has what is public.
    public: u64,
    count: usize,
    /// Planes of tables, then of products of masks.
    dealt: Vec<u64>,
    /// Planes of the masks of what is opened.
    masks: Vec<u64>,
}

/// How far a comparison has come.
pub(crate) struct Run {
    elements: Vec<Element>,
    level: usize,
    /// Planes of masks and of products used.
    mask_at: usize,
    product_at: usize,
}

/// Shares of lt and equality of neighbouring blocks.
#[derive(Default)]
struct Element {
    less: Vec<u64>,
    equal: Vec<u64>,
}

impl TableShare {
    /// `dealt` is what the dealer sent for `count` instances, which the second party alone gets.
    pub(crate) fn expand(layout: Layout, source: Source<'_>, dealt: Option<&[u8]>, count: usize) -> Self {
        let masks = source.stream(Purpose::GateMask).words(layout.opened_planes() * words(count));
        let (public, dealt) = match dealt {
            Some(bytes) => (0, planes::from_bytes(bytes, count)),
            None => {
                let planes = layout.dealt_planes() * words(count);
                (u64::MAX, source.stream(Purpose::Table).words(planes))
            }
        };
        Self { layout, public, count, dealt, masks }
    }

    #[cfg(test)]
    pub(crate) fn masks(&self) -> &[u64] {
        &self.masks
    }

    /// Begins with `points`, the public values, one look-up in each block.
    pub(crate) fn look_up(&self, points: &[u64]) -> Run {
        let len = words(self.count);
        let points = planes::of_values(points, self.layout.blocks.iter().sum());
        let (mut tables, mut points) = (self.dealt.as_slice(), points.as_slice());
        let mut elements = Vec::new();
        for &bits in &self.layout.blocks {
            let (table, others) = tables.split_at(((1 << bits) - 1) * len);
            let (block, above) = points.split_at(bits as usize * len);
            (tables, points) = (others, above);
            let mut element = Element { less: Vec::with_capacity(len), equal: Vec::with_capacity(len) };
            for word in 0..len {
                let is = minterms(bits, |bit| block[bit * len + word]);
                // Of the present entry: whether x is below it.
                let (mut below, mut less, mut equal, mut sum) = (0, 0, 0, self.public);
                for entry in 1..1 << bits {
                    let share = table[(entry - 1) * len + word];
                    below ^= is[entry - 1];
                    less ^= share & below;
                    equal ^= share & is[entry];
                    sum ^= share;
                }
                element.less.push(less);
                element.equal.push(equal ^ (sum & is[0]));
            }
            elements.push(element);
        }
        Run { elements, level: 0, mask_at: 0, product_at: self.layout.table_planes() }
    }

    /// This party's shares of the result, once all gates are joined.
    pub(crate) fn result(&self, run: &Run) -> Option<Vec<u8>> {
        let is_done = run.level == self.layout.levels();
        let [Element { less, .. }] = run.elements.as_slice() else { return None };
        is_done.then(|| planes::to_bytes(less, self.count))
    }

    /// This party's part of what is opened next.
    pub(crate) fn opening(&self, run: &Run) -> Vec<u8> {
        let len = words(self.count);
        let Some(gates) = self.layout.levels.get(run.level) else { return Vec::new() };
        let mut masks = self.masks[run.mask_at * len..].chunks_exact(len.max(1));
        let mut opened = Vec::new();
        let mut elements = run.elements.as_slice();
        for gate in gates {
            let (own, others) = elements.split_at(gate.size);
            elements = others;
            for &wire in &gate.wires {
                let plane = match wire as usize {
                    wire if wire < FAN_IN => &own[wire].equal,
                    wire => &own[wire - FAN_IN].less,
                };
                opened.extend(plane.iter().zip(masks.next().unwrap_or_default()).map(|(share, mask)| share ^ mask));
            }
        }
        planes::to_bytes(&opened, self.count)
    }

    /// Goes on with both parties' parts together.
    pub(crate) fn join(&self, run: &mut Run, opened: &[u8]) {
        let len = words(self.count);
        let opened = planes::from_bytes(opened, self.count);
        let Some(gates) = self.layout.levels.get(run.level) else { return };
        let mut opened_at = 0;
        let mut elements = std::mem::take(&mut run.elements).into_iter();
        for gate in gates {
            let highest = elements.by_ref().take(gate.size).last().unwrap_or_default();
            if gate.size == 1 {
                run.elements.push(highest);
                continue;
            }
            let mut element = Element { less: highest.less, equal: vec![0; len] };
            for word in 0..len {
                let plane = |planes: &[u64], at: usize| planes[at * len + word];
                // Of sets of wires: the product of what was opened, and shares of the product of the masks.
                let (mut public, mut mask) = ([u64::MAX; 1 << (2 * FAN_IN - 1)], [self.public; 1 << (2 * FAN_IN - 1)]);
                for (at, wire) in gate.wires.iter().enumerate() {
                    public[1 << wire] = plane(&opened, opened_at + at);
                    mask[1 << wire] = plane(&self.masks, run.mask_at + at);
                }
                for (at, &set) in gate.products.iter().enumerate() {
                    let set = usize::from(set);
                    public[set] = public[set & (set - 1)] & public[set & set.wrapping_neg()];
                    mask[set] = plane(&self.dealt, run.product_at + at);
                }
                let product = |term: Wires| {
                    let term = usize::from(term);
                    let (mut sum, mut set) = (public[term] & mask[0], term);
                    while set != 0 {
                        sum ^= public[term & !set] & mask[set];
                        set = (set - 1) & term;
                    }
                    sum
                };
                element.less[word] ^= gate.less.iter().fold(0, |sum, &term| sum ^ product(term));
                element.equal[word] = gate.equal.map_or(0, product);
            }
            opened_at += gate.wires.len();
            run.mask_at += gate.wires.len();
            run.product_at += gate.products.len();
            run.elements.push(element);
        }
        run.level += 1;
    }
}

#[cfg(test)]
mod tests;
