//! One image, through a convolution between two squares.
//!
//! A block of slots holds one channel, its map in a grid of `pitch` columns. The client lays out, block by block, which input each place of the
//! first map reads at each position of its window. Products with a channel's weights, turned by whole blocks and added up, are the first
//! map. After the square, average pooling is a sum of neighbours (equal weights of them say so), and every position of the second map's window
//! one turned copy; products with the copies, again turned by blocks, are its channels, in as many ciphertexts as it takes, which
//! lie beside each other in the places that the stride leaves free. The last map is one masked product an output, whose slots the client sums.
//!
//! Turns follow each other by one step, so that a handful of keys serves all of them.

use std::collections::BTreeSet;

use asymflow_zoo::network::Shape;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::affine::CompileError;
use crate::grid_weights::place;
use crate::layout::{Arrange, Cost, residue, total};
use crate::model::Map;
use crate::parameters::DEGREE;
use crate::scheme::{Scheme, SchemeError, Turn};

pub(crate) use crate::grid_weights::Weights;

/// Slots of each of two rows.
pub(crate) const ROW: usize = DEGREE / 2;
/// Most positions of the second map's window, and most outputs of the last one.
const MOST: usize = 128;
/// What would do where a map is too large.
const HINT: &str = "take smaller maps or fewer channels, or a packing with thousands of images a query";

/// Steps from an output's place to the inputs that it reads, along one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Steps {
    pub(crate) from: i32,
    pub(crate) count: usize,
}

/// Where three maps with two squares between them lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grid {
    /// Places of a row of the grid, a power of two.
    pub(crate) pitch: usize,
    /// Slots of a block, a power of two.
    pub(crate) block: usize,
    /// The inputs that each place of the first map reads.
    pub(crate) reads: Vec<Vec<u32>>,
    pub(crate) first: Shape,
    /// Side of a pooling window.
    pub(crate) pool: usize,
    pub(crate) second: Shape,
    /// Places between neighbouring outputs of the second map.
    pub(crate) stride: usize,
    pub(crate) rows: Steps,
    pub(crate) columns: Steps,
    pub(crate) outputs: usize,
}

impl Grid {
    pub(crate) fn new(maps: &[Map], shapes: &[Shape]) -> Result<Self, CompileError> {
        let ([first_map, second_map, last], [first, second, _]) = (maps, shapes) else {
            return Err(CompileError::Size { map: 0, got: maps[0].rows.len(), most: ROW, hint: HINT });
        };
        let (first, second) = (*first, *second);
        let union = |at: usize| {
            let rows = (0..first.channels).flat_map(|channel| &first_map.rows[channel * first.pixels() + at]);
            rows.map(|(input, _)| *input).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let pitch = first.width.next_power_of_two();
        let pool = [8, 4, 2].into_iter().find(|&side| is_pooled(second_map, first, side)).unwrap_or(1);
        let [stride, rows, columns] = steps(second_map, first, second, pool);
        let grid = Self {
            pitch,
            block: pitch * first.height.next_power_of_two(),
            reads: (0..first.pixels()).map(union).collect(),
            first,
            pool,
            second,
            stride: stride.count,
            rows,
            columns,
            outputs: last.rows.len(),
        };
        Ok(grid)
    }

    pub(crate) const fn blocks(&self) -> usize {
        DEGREE / self.block
    }

    /// Blocks of a row.
    pub(crate) const fn across(&self) -> usize {
        ROW / self.block
    }

    /// Most reads of a place; the next position holds the constant that offsets multiply.
    pub(crate) fn positions(&self) -> usize {
        self.reads.iter().map(Vec::len).max().unwrap_or(0)
    }

    pub(crate) fn inputs(&self) -> usize {
        (self.positions() + 1).div_ceil(self.blocks())
    }

    /// Ciphertexts of the second map before they are laid beside each other.
    pub(crate) const fn parts(&self) -> usize {
        self.second.channels.div_ceil(self.blocks())
    }

    /// Where block `from` is after a turn by `turn` blocks: by `turn` modulo a row's to the left, and in the other row from a row's on.
    pub(crate) const fn turned(&self, from: usize, turn: usize) -> usize {
        let across = self.across();
        (from / across + turn / across) % 2 * across + (from % across + across - turn % across) % across
    }

    /// The slot of a value of the second map.
    pub(crate) fn second_slot(&self, channel: usize, y: usize, x: usize) -> usize {
        let place = self.stride * (y * self.pitch + x) + channel / self.blocks();
        channel % self.blocks() * self.block + place
    }

    /// The turns that add up a pooling window.
    pub(crate) fn pooling(&self) -> Vec<Turn> {
        let halves = (0..self.pool.ilog2()).map(|power| 1 << power);
        halves.flat_map(|places| [Turn::Columns(places), Turn::Columns(places * self.pitch)]).collect()
    }

    /// The turn to the first position of the window.
    pub(crate) fn start(&self) -> Option<Turn> {
        let places = self.rows.from * self.pitch as i32 + self.columns.from;
        (places != 0).then(|| Turn::Columns(places.rem_euclid(ROW as i32) as usize))
    }

    /// The turns to the next column and to the next row of the window.
    pub(crate) const fn next(&self) -> [Turn; 2] {
        [Turn::Columns(self.pool), Turn::Columns(self.pool * self.pitch)]
    }

    /// The turn that lays a part beside another.
    pub(crate) const fn beside() -> Turn {
        Turn::Columns(ROW - 1)
    }

    /// Σ over turns by whole blocks of what `part` gives for each.
    pub(crate) fn gather<S: Scheme>(
        &self,
        scheme: &S,
        part: impl Fn(usize) -> Result<S::Ciphertext, SchemeError> + Send + Sync,
    ) -> Result<S::Ciphertext, SchemeError> {
        let parts = (0..self.blocks()).into_par_iter().map(part).collect::<Result<Vec<_>, SchemeError>>()?;
        let row = |parts: &[S::Ciphertext]| {
            let mut reversed = parts.iter().rev();
            let mut sum = reversed.next().cloned();
            for part in reversed {
                let mut turned = sum.map(|sum| scheme.turn(&sum, Turn::Columns(self.block))).transpose()?;
                turned.iter_mut().for_each(|turned| scheme.add(turned, part));
                sum = turned;
            }
            Ok::<_, SchemeError>(sum)
        };
        let (own, other) = parts.split_at(self.across());
        let (own, other) = rayon::join(|| row(own), || row(other));
        let (mut own, other) = (own?, other?);
        if let (Some(own), Some(other)) = (&mut own, other) {
            scheme.add(own, &scheme.turn(&other, Turn::Rows)?);
        }
        own.ok_or(SchemeError::Parameters(crate::parameters::ParametersError::Range("blocks")))
    }
}

/// Whether the values of each window of `side` places have the same weights.
fn is_pooled(map: &Map, input: Shape, side: usize) -> bool {
    let divides = |length: usize| length.is_multiple_of(side);
    divides(input.height) && divides(input.width) && {
        map.rows.par_iter().all(|row| {
            let mut dense = vec![0; input.len()];
            row.iter().for_each(|(input, weight)| dense[*input as usize] = *weight);
            (0..input.len()).all(|index| {
                let (channel, y, x) = place(input, index);
                dense[index] == dense[(channel * input.height + y / side * side) * input.width + x / side * side]
            })
        })
    }
}

/// The stride (as a count) for which the window has the fewest positions, and the steps of its rows and columns.
fn steps(map: &Map, input: Shape, output: Shape, pool: usize) -> [Steps; 3] {
    let of = |stride: usize| {
        let mut ends = [(i32::MAX, i32::MIN); 2];
        for (row, weights) in map.rows.iter().enumerate() {
            let (_, y, x) = place(output, row);
            for (index, _) in weights {
                let (_, from_y, from_x) = place(input, *index as usize);
                if from_y.is_multiple_of(pool) && from_x.is_multiple_of(pool) {
                    for (ends, (from, at)) in ends.iter_mut().zip([(from_y, y), (from_x, x)]) {
                        let step = from as i32 - (stride * at) as i32;
                        *ends = (ends.0.min(step), ends.1.max(step));
                    }
                }
            }
        }
        ends.map(|(from, to)| if from > to { (0, 0) } else { (from, to) })
    };
    let found = (1..=4).map(|times| (times * pool, of(times * pool)));
    let positions = |ends: &[(i32, i32); 2]| ends.iter().map(|(from, to)| i64::from(to - from) + 1).product::<i64>();
    let (stride, ends) = found.min_by_key(|(_, ends)| positions(ends)).unwrap_or((pool, [(0, 0); 2]));
    let [rows, columns] = ends.map(|(from, to)| Steps { from, count: (to - from) as usize / pool + 1 });
    [Steps { from: 0, count: stride }, rows, columns]
}

impl Arrange for Grid {
    fn check(&self, inputs: usize) -> Result<(), CompileError> {
        let size = |map, got, most| {
            if (1..=most).contains(&got) { Ok(()) } else { Err(CompileError::Size { map, got, most, hint: HINT }) }
        };
        let is_power = |value: usize| value.is_power_of_two() && value <= ROW;
        if !(is_power(self.pitch) && is_power(self.block) && self.pitch <= self.block && is_power(self.pool)) {
            let hint = HINT;
            return Err(CompileError::Size { map: 0, got: self.first.len(), most: ROW, hint });
        }
        let rows = self.block / self.pitch;
        size(0, self.first.channels, self.blocks())?;
        size(0, self.first.width, self.pitch)?;
        size(0, self.first.height, rows)?;
        size(1, self.stride, self.pitch)?;
        size(1, self.second.channels, self.blocks() * self.stride)?;
        // The last output's place, and beside it one for each part.
        size(1, self.second.height, 1 + (rows - 1) / self.stride)?;
        size(1, self.second.width, 1 + (self.pitch - self.parts()) / self.stride)?;
        let positions = self.rows.count.saturating_mul(self.columns.count);
        size(1, positions, MOST)?;
        size(2, self.outputs, MOST)?;
        let near = |steps: Steps| steps.from.unsigned_abs() as usize <= self.pitch;
        let known = self.reads.iter().flatten().all(|input| (*input as usize) < inputs) && self.positions() <= inputs;
        let fits = self.reads.len() == self.first.height * self.first.width && self.pool <= self.pitch;
        if fits && known && near(self.rows) && near(self.columns) { Ok(()) } else { Err(CompileError::Program("grid")) }
    }

    fn cost(&self) -> Cost {
        let (positions, parts, blocks) = (self.rows.count * self.columns.count, self.parts(), self.blocks());
        let gather = 2 * (self.across() - 1) + 1;
        let products = blocks * (self.inputs() + parts * positions) + self.outputs;
        Cost {
            images: 1,
            turns: gather * (1 + parts) + self.pooling().len() + usize::from(self.start().is_some()) + positions - 1
                + (parts - 1),
            plain_products: products,
            polynomial_products: 2 * products,
            squares: 2,
            relinearisations: 2,
            depth: 2,
            ciphertexts: self.inputs(),
            answers: self.outputs,
            turning_keys: self.turns().len(),
            plaintexts: products + 1,
            polynomials: 2 * (self.inputs() + positions + parts * blocks),
        }
    }

    fn turns(&self) -> Vec<Turn> {
        let [column, row] = self.next();
        let mut turns = BTreeSet::from([Turn::Rows]);
        turns.extend(self.pooling().into_iter().chain(self.start()));
        turns.extend((self.across() > 1).then_some(Turn::Columns(self.block)));
        turns.extend((self.columns.count > 1).then_some(column));
        turns.extend((self.rows.count > 1).then_some(row));
        turns.extend((self.parts() > 1).then_some(Self::beside()));
        turns.into_iter().collect()
    }

    fn slots(&self, images: &[Vec<i64>], index: usize, modulus: u64) -> Vec<u64> {
        let mut slots = vec![0; DEGREE];
        let positions = self.positions();
        for block in 0..self.blocks() {
            let position = index * self.blocks() + block;
            for (at, reads) in self.reads.iter().enumerate() {
                let slot = block * self.block + at / self.first.width * self.pitch + at % self.first.width;
                if position == positions {
                    slots[slot] = 1;
                } else if let Some(input) = reads.get(position) {
                    slots[slot] = residue(images[0][*input as usize].into(), modulus);
                }
            }
        }
        slots
    }

    fn outputs(&self, slots: &[Vec<u64>], _: usize, modulus: u64) -> Vec<Vec<u64>> {
        vec![slots.iter().map(|slots| total(slots.iter().copied(), modulus)).collect()]
    }
}
