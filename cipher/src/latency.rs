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

use rand::Rng;

use crate::affine::CompileError;
use crate::model::{Map, Model, Program};
use crate::scheme::{Scheme, SchemeError, Turn};

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    slots: usize,
    /// Slots of a block: outputs of the first map, rounded up to a power of two.
    block: usize,
    /// Ciphertexts of an image.
    pub(crate) inputs: usize,
    /// Most weights of an output; the next position holds the constant that offsets multiply.
    reads: usize,
    /// Outputs of the map between two squares, and ciphertexts that they take.
    middle: Option<(usize, usize)>,
    outputs: usize,
}

/// What a query takes, by its structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Turns of a ciphertext.
    pub turns: usize,
    /// Products with slots in the clear.
    pub plain_products: usize,
    /// Squares.
    pub squares: usize,
    /// Squares that are followed by a turn or another square.
    pub relinearisations: usize,
    /// Squares one after the other.
    pub depth: usize,
    /// Ciphertexts of an image, all plaintext moduli together.
    pub ciphertexts: usize,
    /// Keys to turn with.
    pub turning_keys: usize,
}

impl Layout {
    pub(crate) fn new(program: &Program) -> Self {
        let slots = program.parameters.degree;
        let block = program.rows[0].next_power_of_two();
        let blocks = (slots / block).max(1);
        let reads = program.reads.iter().map(Vec::len).max().unwrap_or(0);
        let outputs = *program.rows.last().unwrap_or(&0);
        let middle = (program.rows.len() > 2).then(|| (program.rows[1], program.rows[1].div_ceil((blocks / 2).max(1))));
        Self { slots, block, inputs: (reads + 1).div_ceil(blocks), reads, middle, outputs }
    }

    /// Whether a program's maps fit the slots of degree 8192.
    pub(crate) fn check(program: &Program) -> Result<(), CompileError> {
        let row = 4096;
        let size = |map, got, most| if got <= most { Ok(()) } else { Err(CompileError::Size { map, got, most }) };
        size(0, program.rows[0], row)?;
        let block = program.rows[0].next_power_of_two();
        match program.rows.as_slice() {
            [_, last] => size(1, *last, 2 * row / block),
            [_, middle, last] => {
                // Two blocks a row of the map, within a row of slots.
                size(0, block, row / 2)?;
                size(1, *middle, 64 * row / block)?;
                size(2, *last, block)
            }
            _ => Ok(()),
        }
    }

    fn blocks(&self) -> usize {
        self.slots / self.block
    }

    /// Turns after the first map.
    fn across(&self) -> Vec<Turn> {
        let columns = (0..).map(|power| self.block << power).take_while(|places| *places < self.slots / 2);
        columns.map(Turn::Columns).chain([Turn::Rows]).collect()
    }

    /// Turns within two blocks.
    fn within(&self) -> Vec<Turn> {
        if self.middle.is_none() {
            return Vec::new();
        }
        (0..).map(|power| 1 << power).take_while(|places| *places < self.block).map(Turn::Columns).collect()
    }

    /// All that there must be a key for.
    pub(crate) fn turns(&self) -> Vec<Turn> {
        self.across().into_iter().chain(self.within()).collect()
    }

    pub(crate) fn cost(&self, moduli: usize) -> Cost {
        let groups = self.middle.map_or(0, |(_, groups)| groups);
        Cost {
            turns: moduli * (self.across().len() + groups * self.within().len()),
            plain_products: moduli * (self.inputs + 1.max(2 * groups)),
            squares: moduli * (1 + groups),
            relinearisations: moduli * usize::from(groups > 0),
            depth: 1 + usize::from(groups > 0),
            ciphertexts: moduli * self.inputs,
            turning_keys: self.turns().len(),
        }
    }

    /// The slots of an image's ciphertexts.
    pub(crate) fn image(&self, program: &Program, image: &[i64], modulus: u64) -> Vec<Vec<u64>> {
        let at = |position: usize, output: usize| {
            if position == self.reads {
                return 1;
            }
            let read = program.reads.get(output).and_then(|reads| reads.get(position));
            read.map_or(0, |&input| image[input as usize].rem_euclid(modulus as i64) as u64)
        };
        self.by_position(program.rows[0], at)
    }

    /// Slots of the first map, or of what it multiplies, by position and output.
    fn by_position(&self, outputs: usize, at: impl Fn(usize, usize) -> u64) -> Vec<Vec<u64>> {
        let one = |ciphertext: usize| {
            let mut slots = vec![0; self.slots];
            for block in 0..self.blocks() {
                let position = ciphertext * self.blocks() + block;
                if position <= self.reads {
                    let values = (0..outputs).map(|output| at(position, output));
                    slots[block * self.block..].iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
                }
            }
            slots
        };
        (0..self.inputs).map(one).collect()
    }

    /// The slots whose sum is an output.
    pub(crate) fn sums(&self) -> Vec<Vec<usize>> {
        let of = |output: usize| match self.middle {
            None => (0..self.block).map(|slot| output * self.block + slot).collect(),
            Some(_) => (0..self.blocks()).map(|block| block * self.block + output).collect(),
        };
        (0..self.outputs).map(of).collect()
    }
}

/// A model's weights as slots of one plaintext modulus.
pub(crate) struct Prepared<S: Scheme> {
    layout: Layout,
    first: Vec<S::Plaintext>,
    /// Weights and offsets of the map between two squares.
    middle: Vec<(S::Plaintext, S::Plaintext)>,
    last: Vec<S::Plaintext>,
    /// Of the last map, below the modulus.
    offsets: Vec<u64>,
    modulus: u64,
}

impl<S: Scheme> Prepared<S> {
    pub(crate) fn new(model: &Model, scheme: &S, modulus: u64) -> Result<Self, SchemeError> {
        let program = &model.program;
        let layout = Layout::new(program);
        let residue = |value: i128| value.rem_euclid(i128::from(modulus)) as u64;
        let map = &model.maps[0];
        let first = layout.by_position(program.rows[0], |position, output| {
            if position == layout.reads {
                return residue(map.offsets[output]);
            }
            let read = program.reads[output].get(position);
            read.map_or(0, |&input| residue(map.weights[output][input as usize].into()))
        });
        let block = layout.block;
        let spread = |rows: &mut dyn Iterator<Item = (usize, Vec<u64>)>| {
            let mut slots = vec![0; layout.slots];
            for (at, values) in rows {
                slots[at..][..values.len()].copy_from_slice(&values);
            }
            scheme.plain(&slots)
        };
        let residues = |row: &[i64]| -> Vec<u64> { row.iter().map(|&weight| residue(weight.into())).collect() };
        let last_map: &Map = &model.maps[model.maps.len() - 1];
        let offsets = last_map.offsets.iter().map(|&offset| residue(offset)).collect();
        let (mut middle, mut last) = (Vec::new(), Vec::new());
        match layout.middle {
            None => {
                let rows = last_map.weights.iter().enumerate();
                last.push(spread(&mut rows.map(|(row, weights)| (row * block, residues(weights))))?);
            }
            Some((rows, groups)) => {
                let map = &model.maps[1];
                let pairs = layout.blocks() / 2;
                for group in 0..groups {
                    let mine =
                        || (group * pairs..rows.min((group + 1) * pairs)).map(|row| (row, 2 * (row - group * pairs)));
                    let both = mine().flat_map(|(row, at)| {
                        [at, at + 1].map(|block_index| (block_index * block, residues(&map.weights[row])))
                    });
                    let weights = spread(&mut { both })?;
                    let offset = mine().map(|(row, at)| (at * block, vec![residue(map.offsets[row]); layout.outputs]));
                    middle.push((weights, spread(&mut { offset })?));
                    let column =
                        |row: usize| last_map.weights.iter().map(|weights| residue(weights[row].into())).collect();
                    last.push(spread(&mut mine().map(|(row, at)| (at * block, column(row))))?);
                }
            }
        }
        let first = first.iter().map(|slots| scheme.plain(slots)).collect::<Result<_, _>>()?;
        Ok(Self { layout, first, middle, last, offsets, modulus })
    }

    /// The last map's products, masked, in three parts.
    pub(crate) fn answer(&self, scheme: &S, image: &[S::Ciphertext]) -> Result<S::Ciphertext, SchemeError> {
        let terms: Vec<_> = image.iter().zip(&self.first).collect();
        let mut values = scheme.dot(&terms)?;
        self.sum(scheme, &mut values, &self.layout.across())?;
        let mut squares = scheme.square(&values);
        let mut answer = if self.middle.is_empty() {
            scheme.dot(&[(&squares, &self.last[0])])?
        } else {
            scheme.relinearise(&mut squares)?;
            let mut deep = Vec::with_capacity(self.middle.len());
            for (weights, offsets) in &self.middle {
                let mut sums = scheme.dot(&[(&squares, weights)])?;
                self.sum(scheme, &mut sums, &self.layout.within())?;
                scheme.add_plain(&mut sums, offsets);
                deep.push(scheme.square(&sums));
            }
            scheme.dot(&deep.iter().zip(&self.last).collect::<Vec<_>>())?
        };
        scheme.add_plain(&mut answer, &scheme.plain(&self.mask())?);
        Ok(answer)
    }

    fn sum(&self, scheme: &S, values: &mut S::Ciphertext, turns: &[Turn]) -> Result<(), SchemeError> {
        for turn in turns {
            let turned = scheme.turn(values, *turn)?;
            scheme.add(values, &turned);
        }
        Ok(())
    }

    /// Random slots; those of an output add up to its offset.
    fn mask(&self) -> Vec<u64> {
        let mut rng = rand::rng();
        let mut slots: Vec<u64> = (0..self.layout.slots).map(|_| rng.random_range(0..self.modulus)).collect();
        for (sum, offset) in self.layout.sums().iter().zip(&self.offsets) {
            let Some((&first, rest)) = sum.split_first() else { continue };
            let total = rest.iter().fold(0_u128, |total, &slot| total + u128::from(slots[slot]));
            let total = (total % u128::from(self.modulus)) as u64;
            slots[first] = (offset + self.modulus - total) % self.modulus;
        }
        slots
    }
}
