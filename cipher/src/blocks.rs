//! One image, as soon as possible.
//!
//! Slots are blocks, as many as fit; slot j of every block belongs to output j of the first map. Block b of ciphertext k holds, for each output,
//! the input that its (k·blocks + b)-th weight multiplies: the client knows which that is, since where weights lie is public, and lays its image
//! out so. One product with the weights and log₂(blocks) turns give every block all outputs. After the square
//! the last map takes one product, one block an output, and no turn: the server adds to each slot a random number, all of which add up
//! to the offset, and the client adds up the slots. So it learns the logits alone.
//!
//! With a second square, each row of the map in between takes two periods of slots. Since blocks repeat the values, a turn by a period brings
//! those of the next one to the same slots: a slot adds up the products with all values that are a multiple of the period apart, and log₂(period)
//! turns give every slot of a row's first period its sum.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::affine::CompileError;
use crate::layout::{Arrange, Cost, Prepared, mask, residue, total};
use crate::model::{Map, Model};
use crate::parameters::DEGREE;
use crate::scheme::{Scheme, SchemeError, Turn};

/// Slots of each of two rows.
const ROW: usize = DEGREE / 2;
/// What would do where a map is too large.
const HINT: &str = "take a smaller map, or a packing with thousands of images a query";

/// Which inputs each output of the first map reads, and the outputs of each map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blocks {
    reads: Vec<Vec<u32>>,
    rows: Vec<usize>,
}

/// Where the map between two squares is.
#[derive(Clone, Copy, Debug)]
struct Middle {
    /// Ciphertexts of its rows.
    groups: usize,
    group_rows: usize,
    row_slots: usize,
    period: usize,
}

impl Blocks {
    pub(crate) fn new(maps: &[Map]) -> Self {
        let reads = maps[0].rows.iter().map(|row| row.iter().map(|(input, _)| *input).collect()).collect();
        Self { reads, rows: maps.iter().map(|map| map.offsets.len()).collect() }
    }

    /// Slots of a block: outputs of the first map, rounded up to a power of two.
    fn block(&self) -> usize {
        self.reads.len().next_power_of_two()
    }

    fn blocks(&self) -> usize {
        DEGREE / self.block()
    }

    /// Most weights of an output; the next position holds the constant that offsets multiply.
    fn positions(&self) -> usize {
        self.reads.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Ciphertexts of an image.
    fn inputs(&self) -> usize {
        (self.positions() + 1).div_ceil(self.blocks())
    }

    /// How the map between two squares lies: as takes the fewest turns, where a square counts as five.
    fn middle(&self) -> Option<Middle> {
        let [_, rows, outputs] = self.rows.as_slice() else { return None };
        let with = |groups: usize| {
            let group_rows = rows.div_ceil(groups).next_power_of_two().max(DEGREE / ROW * 2);
            let row_slots = DEGREE / group_rows;
            Middle { groups, group_rows, row_slots, period: self.block().min(row_slots / 2) }
        };
        let fitting = (0..=6).map(|power| with(1 << power)).filter(|middle| middle.period >= *outputs);
        fitting.min_by_key(|middle| self.block() / middle.period + middle.groups * (middle.period.ilog2() as usize + 5))
    }

    /// Turns after the first map.
    fn across(&self) -> Vec<Turn> {
        let columns = (0..).map(|power| self.block() << power).take_while(|places| *places < ROW);
        columns.map(Turn::Columns).chain([Turn::Rows]).collect()
    }

    /// Turns that add up a row of the map between two squares.
    fn within(&self) -> Vec<Turn> {
        let powers = self.middle().map_or(0, |middle| middle.period.ilog2());
        (0..powers).map(|power| Turn::Columns(1 << power)).collect()
    }

    /// Slots of ciphertext `index` of what the first map multiplies, or multiplies with, by position and output.
    fn by_position(&self, index: usize, at: impl Fn(usize, usize) -> u64) -> Vec<u64> {
        let mut slots = vec![0; DEGREE];
        for block in 0..self.blocks() {
            let position = index * self.blocks() + block;
            if position <= self.positions() {
                let values = (0..self.reads.len()).map(|output| at(position, output));
                slots[block * self.block()..].iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
            }
        }
        slots
    }

    /// The slots whose sum is an output.
    fn sums(&self) -> Vec<Vec<usize>> {
        let of = |output: usize| match self.middle() {
            None => (0..self.block()).map(|slot| output * self.block() + slot).collect(),
            Some(middle) => (0..middle.group_rows).map(|row| row * middle.row_slots + output).collect(),
        };
        (0..self.rows[self.rows.len() - 1]).map(of).collect()
    }
}

impl Arrange for Blocks {
    fn check(&self, inputs: usize) -> Result<(), CompileError> {
        let size = |map, got, most| {
            if (1..=most).contains(&got) { Ok(()) } else { Err(CompileError::Size { map, got, most, hint: HINT }) }
        };
        size(0, self.reads.len(), ROW)?;
        let block = self.block();
        match self.rows.as_slice() {
            [_, last] => size(1, *last, DEGREE / block)?,
            [_, middle, last] => {
                size(0, block, ROW / 2)?;
                size(1, *middle, ROW)?;
                size(2, *last, block)?;
                // More outputs leave less room for rows.
                size(2, *last, self.middle().map_or(0, |middle| middle.period))?;
            }
            _ => return Err(CompileError::Program("maps of blocks")),
        }
        let known = self.reads.iter().flatten().all(|input| (*input as usize) < inputs);
        let fits = self.rows[0] == self.reads.len() && known && self.positions() <= inputs;
        if fits { Ok(()) } else { Err(CompileError::Program("inputs of blocks")) }
    }

    fn cost(&self) -> Cost {
        let groups = self.middle().map_or(0, |middle| middle.groups);
        let periods = self.middle().map_or(0, |middle| self.block() / middle.period);
        let products = self.inputs() + groups * periods;
        Cost {
            images: 1,
            turns: self.across().len() + periods.saturating_sub(1) + groups * self.within().len(),
            plain_products: products + 1.max(groups),
            // Three polynomials after the last square.
            polynomial_products: 2 * products + 3 * 1.max(groups),
            squares: 1 + groups,
            relinearisations: usize::from(groups > 0),
            depth: 1 + usize::from(groups > 0),
            ciphertexts: self.inputs(),
            answers: 1,
            turning_keys: self.turns().len(),
            plaintexts: products + 1.max(2 * groups),
            polynomials: 2 * (self.inputs() + periods) + 3 * (1 + groups),
        }
    }

    fn turns(&self) -> Vec<Turn> {
        let next = self.middle().filter(|middle| middle.period < self.block());
        let next = next.map(|middle| Turn::Columns(middle.period));
        self.across().into_iter().chain(self.within()).chain(next).collect()
    }

    fn slots(&self, images: &[Vec<i64>], index: usize, modulus: u64) -> Vec<u64> {
        let positions = self.positions();
        self.by_position(index, |position, output| {
            if position == positions {
                return 1;
            }
            self.reads[output].get(position).map_or(0, |&input| residue(images[0][input as usize].into(), modulus))
        })
    }

    fn outputs(&self, slots: &[Vec<u64>], _: usize, modulus: u64) -> Vec<Vec<u64>> {
        let sum = |sum: Vec<usize>| total(sum.into_iter().map(|slot| slots[0][slot]), modulus);
        vec![self.sums().into_iter().map(sum).collect()]
    }
}

/// A model's weights as slots of one plaintext modulus.
pub(crate) struct Weights<S: Scheme> {
    layout: Blocks,
    first: Vec<S::Factor>,
    /// Of each group of rows between two squares, weights by period, and offsets.
    middle: Vec<(Vec<S::Factor>, S::Summand)>,
    last: Vec<S::Factor>,
    /// Of the last map, below the modulus.
    offsets: Vec<u64>,
    modulus: u64,
}

impl<S: Scheme> Weights<S> {
    pub(crate) fn new(layout: &Blocks, model: &Model, scheme: &S, modulus: u64) -> Result<Self, SchemeError> {
        let map = &model.maps[0];
        let first = (0..layout.inputs()).map(|index| {
            let slots = layout.by_position(index, |position, output| {
                if position == layout.positions() {
                    return residue(map.offsets[output], modulus);
                }
                map.rows[output].get(position).map_or(0, |(_, weight)| residue((*weight).into(), modulus))
            });
            scheme.factor(&slots, 0)
        });
        let first = first.collect::<Result<_, _>>()?;
        let last_map = &model.maps[model.maps.len() - 1];
        let offsets = last_map.offsets.iter().map(|&offset| residue(offset, modulus)).collect();
        let weights = Self { layout: layout.clone(), first, middle: Vec::new(), last: Vec::new(), offsets, modulus };
        weights.with_last(model, scheme)
    }

    /// With what follows the first square.
    fn with_last(mut self, model: &Model, scheme: &S) -> Result<Self, SchemeError> {
        let (modulus, block) = (self.modulus, self.layout.block());
        let spread = |rows: &mut dyn Iterator<Item = (usize, Vec<u64>)>| {
            let mut slots = vec![0; DEGREE];
            for (at, values) in rows {
                slots[at..][..values.len()].copy_from_slice(&values);
            }
            slots
        };
        let dense = |map: &Map, row: usize| {
            let mut values = vec![0; block];
            map.rows[row]
                .iter()
                .for_each(|(input, weight)| values[*input as usize] = residue((*weight).into(), modulus));
            values
        };
        let last_map = &model.maps[model.maps.len() - 1];
        let Some(Middle { groups, group_rows, row_slots, period }) = self.layout.middle() else {
            let rows = 0..last_map.rows.len();
            self.last.push(scheme.factor(&spread(&mut rows.map(|row| (row * block, dense(last_map, row)))), 0)?);
            return Ok(self);
        };
        let (map, outputs) = (&model.maps[1], last_map.rows.len());
        let mut columns = vec![vec![0; outputs]; map.rows.len()];
        for (output, row) in last_map.rows.iter().enumerate() {
            row.iter()
                .for_each(|(input, weight)| columns[*input as usize][output] = residue((*weight).into(), modulus));
        }
        for group in 0..groups {
            let rows = (group * group_rows).min(map.rows.len())..((group + 1) * group_rows).min(map.rows.len());
            let mine = || rows.clone().enumerate().map(|(at, row)| (row, at * row_slots));
            let of_period = |index: usize| {
                let slots = spread(&mut mine().map(|(row, at)| {
                    let weights = dense(map, row);
                    (at, (0..2 * period).map(|slot| weights[(at + slot + index * period) % block]).collect())
                }));
                scheme.factor(&slots, 0)
            };
            let weights = (0..block / period).map(of_period).collect::<Result<_, _>>()?;
            let offset = mine().map(|(row, at)| (at, vec![residue(map.offsets[row], modulus); outputs]));
            self.middle.push((weights, scheme.summand(&spread(&mut { offset }), 0)?));
            let last = spread(&mut mine().map(|(row, at)| (at, columns[row].clone())));
            self.last.push(scheme.factor(&last, 0)?);
        }
        Ok(self)
    }

    fn sum(&self, scheme: &S, values: &mut S::Ciphertext, turns: &[Turn]) -> Result<(), SchemeError> {
        for turn in turns {
            let turned = scheme.turn(values, *turn)?;
            scheme.add(values, &turned);
        }
        Ok(())
    }
}

impl<S: Scheme> Prepared<S> for Weights<S> {
    /// The last map's products, masked, in three parts.
    fn answer(&self, scheme: &S, query: &[S::Ciphertext]) -> Result<Vec<S::Ciphertext>, SchemeError> {
        let terms: Vec<_> = query.iter().zip(&self.first).collect();
        let mut values = scheme.dot(&terms)?;
        self.sum(scheme, &mut values, &self.layout.across())?;
        let mut squares = scheme.square(&values);
        let mut answer = if self.middle.is_empty() {
            scheme.dot(&[(&squares, &self.last[0])])?
        } else {
            scheme.relinearise(&mut squares)?;
            let (within, periods) = (self.layout.within(), self.middle[0].0.len());
            let mut values = vec![squares];
            while values.len() < periods {
                let next = Turn::Columns(self.layout.block() / periods);
                values.push(scheme.turn(&values[values.len() - 1], next)?);
            }
            let deep = self.middle.par_iter().map(|(weights, offsets)| {
                let mut sums = scheme.dot(&values.iter().zip(weights).collect::<Vec<_>>())?;
                self.sum(scheme, &mut sums, &within)?;
                scheme.add_plain(&mut sums, offsets);
                Ok(scheme.square(&sums))
            });
            let deep = deep.collect::<Result<Vec<_>, SchemeError>>()?;
            scheme.dot(&deep.iter().zip(&self.last).collect::<Vec<_>>())?
        };
        scheme.add_plain(&mut answer, &scheme.summand(&mask(&self.layout.sums(), &self.offsets, self.modulus), 0)?);
        Ok(vec![answer])
    }
}
