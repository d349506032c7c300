//! One image, as soon as possible.
//!
//! Slots are blocks, as many as fit; slot j of every block belongs to output j of the first map. Block b of ciphertext k holds, for each output,
//! the input that its (k·blocks + b)-th weight multiplies: the client knows which that is, since where weights lie is public, and lays its image
//! out so. One product with the weights and log₂(blocks) turns give every block all outputs. After the square
//! the last map takes one product, one block an output, and no turn: the server adds to each slot a random number, all of which add up
//! to the offset, and the client adds up the slots. So it learns the logits alone.
//!
//! With a second square the map in between has a row for every two blocks, so that log₂(slots of a block) turns within them give both the
//! row's sum in every slot of the first.

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

    /// Outputs of the map between two squares, and ciphertexts that they take.
    fn middle(&self) -> Option<(usize, usize)> {
        (self.rows.len() > 2).then(|| (self.rows[1], self.rows[1].div_ceil(self.blocks() / 2)))
    }

    /// Turns after the first map.
    fn across(&self) -> Vec<Turn> {
        let columns = (0..).map(|power| self.block() << power).take_while(|places| *places < ROW);
        columns.map(Turn::Columns).chain([Turn::Rows]).collect()
    }

    /// Turns within two blocks.
    fn within(&self) -> Vec<Turn> {
        if self.middle().is_none() {
            return Vec::new();
        }
        (0..).map(|power| 1 << power).take_while(|places| *places < self.block()).map(Turn::Columns).collect()
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
            Some(_) => (0..self.blocks()).map(|block| block * self.block() + output).collect(),
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
                // Two blocks a row of the map, within a row of slots.
                size(0, block, ROW / 2)?;
                size(1, *middle, 64 * ROW / block)?;
                size(2, *last, block)?;
            }
            _ => return Err(CompileError::Program("maps of blocks")),
        }
        let known = self.reads.iter().flatten().all(|input| (*input as usize) < inputs);
        let fits = self.rows[0] == self.reads.len() && known && self.positions() <= inputs;
        if fits { Ok(()) } else { Err(CompileError::Program("inputs of blocks")) }
    }

    fn cost(&self) -> Cost {
        let groups = self.middle().map_or(0, |(_, groups)| groups);
        let products = self.inputs() + 1.max(2 * groups);
        Cost {
            images: 1,
            turns: self.across().len() + groups * self.within().len(),
            plain_products: products,
            // What follows the last square.
            polynomial_products: 2 * products + 1.max(groups),
            squares: 1 + groups,
            relinearisations: usize::from(groups > 0),
            depth: 1 + usize::from(groups > 0),
            ciphertexts: self.inputs(),
            answers: 1,
            turning_keys: self.turns().len(),
            plaintexts: self.inputs() + 1.max(3 * groups),
            polynomials: 2 * self.inputs() + 3 * (1 + groups),
        }
    }

    fn turns(&self) -> Vec<Turn> {
        self.across().into_iter().chain(self.within()).collect()
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
    first: Vec<S::Plaintext>,
    /// Weights and offsets of the map between two squares.
    middle: Vec<(S::Plaintext, S::Plaintext)>,
    last: Vec<S::Plaintext>,
    /// Of the last map, below the modulus.
    offsets: Vec<u64>,
    modulus: u64,
}

impl<S: Scheme> Weights<S> {
    pub(crate) fn new(layout: &Blocks, model: &Model, scheme: &S, modulus: u64) -> Result<Self, SchemeError> {
        let map = &model.maps[0];
        let first = (0..layout.inputs()).map(|index| {
            scheme.plain(&layout.by_position(index, |position, output| {
                if position == layout.positions() {
                    return residue(map.offsets[output], modulus);
                }
                map.rows[output].get(position).map_or(0, |(_, weight)| residue((*weight).into(), modulus))
            }))
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
            scheme.plain(&slots)
        };
        let dense = |map: &Map, row: usize| {
            let mut values = vec![0; block];
            map.rows[row]
                .iter()
                .for_each(|(input, weight)| values[*input as usize] = residue((*weight).into(), modulus));
            values
        };
        let last_map = &model.maps[model.maps.len() - 1];
        let Some((rows, groups)) = self.layout.middle() else {
            let rows = 0..last_map.rows.len();
            self.last.push(spread(&mut rows.map(|row| (row * block, dense(last_map, row))))?);
            return Ok(self);
        };
        let (map, pairs, outputs) = (&model.maps[1], self.layout.blocks() / 2, last_map.rows.len());
        let mut columns = vec![vec![0; outputs]; rows];
        for (output, row) in last_map.rows.iter().enumerate() {
            row.iter()
                .for_each(|(input, weight)| columns[*input as usize][output] = residue((*weight).into(), modulus));
        }
        for group in 0..groups {
            let mine = || (group * pairs..rows.min((group + 1) * pairs)).map(|row| (row, 2 * (row - group * pairs)));
            let both = mine().flat_map(|(row, at)| [at, at + 1].map(|at| (at * block, dense(map, row))));
            let weights = spread(&mut { both })?;
            let offset = mine().map(|(row, at)| (at * block, vec![residue(map.offsets[row], modulus); outputs]));
            self.middle.push((weights, spread(&mut { offset })?));
            self.last.push(spread(&mut mine().map(|(row, at)| (at * block, columns[row].clone())))?);
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
            let within = self.layout.within();
            let deep = self.middle.par_iter().map(|(weights, offsets)| {
                let mut sums = scheme.dot(&[(&squares, weights)])?;
                self.sum(scheme, &mut sums, &within)?;
                scheme.add_plain(&mut sums, offsets);
                Ok(scheme.square(&sums))
            });
            let deep = deep.collect::<Result<Vec<_>, SchemeError>>()?;
            scheme.dot(&deep.iter().zip(&self.last).collect::<Vec<_>>())?
        };
        scheme.add_plain(&mut answer, &scheme.plain(&mask(&self.layout.sums(), &self.offsets, self.modulus))?);
        Ok(vec![answer])
    }
}
