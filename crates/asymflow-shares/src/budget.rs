//! Which channel computes what, within a budget: a multiple-choice knapsack over the channels of shared decisions
//! (Gorski, Jevnisek and Avidan, arXiv 2304.10442), by the lower convex hull of each channel and one price of cost
//! (Sinha and Zoltners, Operations Research 27(3), 1979).
//!
//! Every channel is a class of items, each a choice with the distortion that it causes and what it costs in the backend.
//! Distortions are taken to add up. Costs do add up, but for two things: bits of decisions are packed into bytes for a
//! whole layer (up to seven eighths of a byte), and rounds are a layer's and not a channel's: a layer pays for the rounds of
//! decisions once it has any block, and for that of squares once it has any. The solver spreads no rounds over channels. It is
//! given a budget for what is additive; [`price`] gives layers' rounds beside it, to be subtracted from the budget by whoever
//! wants them paid for.
//!
//! With Copy, a channel costs nothing but its activations and follows a prototype that must be a block. Items say so
//! ([`Item::needs`]): they are considered after the others, once prototypes are known, and only where they help.

use asymflow_zoo::{network::Shape, ops::Choice};
use thiserror::Error;

mod exact;
mod hull;

pub use exact::exact;
pub use hull::solve;

use crate::program::{Compare, Method, Server, narrow_bytes};

/// What a unit of each cost is worth, in a currency of the caller's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// For a byte that either server sends to the other in a query.
    pub online_byte: f64,
    /// For a byte that the dealer sends to either server.
    pub dealer_byte: f64,
    /// For an exchange.
    pub round: f64,
}

impl Prices {
    /// Bytes between the servers alone.
    pub const ONLINE: Self = Self { online_byte: 1.0, dealer_byte: 0.0, round: 0.0 };
    /// All bytes alike.
    pub const BYTES: Self = Self { online_byte: 1.0, dealer_byte: 1.0, round: 0.0 };
}

/// What decisions and values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Bits of the ring: 32, 48 or 64.
    pub ring_bits: u32,
    /// Bits that a comparison looks at, the sign included.
    pub window_bits: u32,
    /// Bits that are truncated.
    pub truncated_bits: u32,
    /// How signs are decided about.
    pub method: Method,
}

/// Bytes and rounds of a channel, or of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChoiceCost {
    /// Bytes that both servers send online. A decision is a bit each.
    pub online_bytes: f64,
    /// Bytes that the dealer sends to both.
    pub dealer_bytes: f64,
    /// Rounds of a layer that has the choice in any channel.
    pub rounds: u32,
}

impl ChoiceCost {
    /// In the caller's currency, rounds left out.
    pub fn bytes_priced(&self, prices: Prices) -> f64 {
        self.online_bytes * prices.online_byte + self.dealer_bytes * prices.dealer_byte
    }
}

/// Cost of one channel of `shape`'s size with `choice`, as [`Program::cost`](crate::program::Program::cost) counts it, in a query of one sample.
pub fn price(choice: Choice, shape: Shape, backend: Backend) -> ChoiceCost {
    let word = f64::from(backend.ring_bits / 8);
    let values = shape.pixels() as f64;
    let Backend { window_bits: width, truncated_bits, method, .. } = backend;
    let compare = Compare { dropped: 0, width, method };
    // Of eight decisions, which fill a byte.
    let eighth = |bytes: usize| bytes as f64 / 8.0;
    let rounds = 1 + compare.rounds();
    // Shares of ρ and of its product with what it is multiplied by.
    let dealt = values * (2.0 * word + narrow_bytes(2, truncated_bits, 1) as f64);
    match choice {
        Choice::Block { rows, columns } => {
            let decisions = (shape.height.div_ceil(rows) * shape.width.div_ceil(columns)) as f64;
            let size = compare.deal_size(8);
            let both = eighth(size.of(Server::First).total(0) + size.of(Server::Second).total(0));
            ChoiceCost {
                online_bytes: 2.0 * (word * values + decisions * eighth(compare.online_bytes(8))),
                dealer_bytes: decisions * (both + word) + dealt,
                rounds,
            }
        }
        Choice::Copy { .. } => ChoiceCost { online_bytes: 2.0 * word * values, dealer_bytes: dealt, rounds },
        Choice::Quadratic => ChoiceCost { online_bytes: 2.0 * word * values, dealer_bytes: dealt, rounds: 1 },
        Choice::Identity | Choice::Zero => ChoiceCost::default(),
    }
}

/// Block sizes worth trying on a map of `height` × `width`: sides of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 and the map's own, the
/// ratio of sides at most four.
pub fn block_sizes(height: usize, width: usize) -> Vec<(usize, usize)> {
    let sides = |most: usize| {
        let mut sides: Vec<usize> =
            [1, 2, 3, 4, 6, 8, 12, 16, 24, 32].into_iter().filter(|&side| side < most).collect();
        sides.push(most);
        sides
    };
    let mut sizes = Vec::new();
    for rows in sides(height.max(1)) {
        sizes.extend(
            sides(width.max(1))
                .into_iter()
                .filter(|&columns| rows.max(columns) <= 4 * rows.min(columns))
                .map(|columns| (rows, columns)),
        );
    }
    sizes
}

/// One choice of one channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// What it is; the solver hands it back.
    pub choice: Choice,
    /// Cost, not negative.
    pub cost: f64,
    /// Distortion.
    pub distortion: f64,
    /// Class that must be a [`Choice::Block`], for a [`Choice::Copy`].
    pub needs: Option<usize>,
}

/// A selection, one item of each class.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Index of the item of each class.
    pub items: Vec<usize>,
    /// Cost of all.
    pub cost: f64,
    /// Distortion of all.
    pub distortion: f64,
    /// No selection within the budget has less: the bound of the Lagrangian. It leaves nothing out where items that need
    /// others are allowed without them.
    pub bound: f64,
}

impl Solution {
    /// How far from the best it may be, at most.
    pub fn gap(&self) -> f64 {
        (self.distortion - self.bound).max(0.0)
    }
}

/// Why there is no selection.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum BudgetError {
    /// The cheapest selection costs more.
    #[error("the cheapest selection costs {least}, more than the budget of {budget}")]
    TooSmall {
        /// Its cost.
        least: f64,
        /// The budget.
        budget: f64,
    },
    /// A class without an item that stands by itself.
    #[error("class {class} has no item that needs no other class")]
    Empty {
        /// Its index.
        class: usize,
    },
    /// A number that is none, or negative where it must not be.
    #[error("class {class}, item {item}: {what} of {value} is out of range")]
    Number {
        /// Index of the class.
        class: usize,
        /// Index of the item.
        item: usize,
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// An item that needs a class that is not there, or its own.
    #[error("class {class}, item {item}: there is no other class {needs} to follow")]
    Needs {
        /// Index of the class.
        class: usize,
        /// Index of the item.
        item: usize,
        /// What it needs.
        needs: usize,
    },
    /// Too much for an exact solution.
    #[error("an exact solution over {states} states is more than the limit of {limit}")]
    States {
        /// Budget times items.
        states: u64,
        /// The limit.
        limit: u64,
    },
}

fn check(classes: &[Vec<Item>]) -> Result<(), BudgetError> {
    for (class, items) in classes.iter().enumerate() {
        if items.iter().all(|item| item.needs.is_some()) {
            return Err(BudgetError::Empty { class });
        }
        for (index, item) in items.iter().enumerate() {
            let number = |what, value| BudgetError::Number { class, item: index, what, value };
            if !(item.cost.is_finite() && item.cost >= 0.0) {
                return Err(number("cost", item.cost));
            }
            if !item.distortion.is_finite() {
                return Err(number("distortion", item.distortion));
            }
            if let Some(needs) = item.needs
                && (needs == class || needs >= classes.len())
            {
                return Err(BudgetError::Needs { class, item: index, needs });
            }
        }
    }
    Ok(())
}

fn totals(classes: &[Vec<Item>], items: &[usize]) -> (f64, f64) {
    let chosen = classes.iter().zip(items).map(|(class, &item)| class[item]);
    chosen.fold((0.0, 0.0), |(cost, distortion), item| (cost + item.cost, distortion + item.distortion))
}

#[cfg(test)]
mod tests;
