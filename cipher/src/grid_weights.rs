//! The server's half of a grid: weights as slots, and the computation.

use asymflow_zoo::network::Shape;
use rayon::prelude::*;

use crate::grid::Grid;
use crate::layout::{Prepared, mask, residue};
use crate::model::{Map, Model};
use crate::parameters::DEGREE;
use crate::scheme::{Scheme, SchemeError};

/// Channel, row and column of a value.
pub(crate) const fn place(shape: Shape, index: usize) -> (usize, usize, usize) {
    (index / (shape.height * shape.width), index / shape.width % shape.height, index % shape.width)
}

/// Products of a turn by whole blocks: which ciphertext, with what.
type Terms<S> = Vec<(usize, <S as Scheme>::Factor)>;

/// A model's weights as slots of one plaintext modulus.
pub(crate) struct Weights<S: Scheme> {
    grid: Grid,
    /// For each turn.
    first: Vec<Terms<S>>,
    /// For each part and turn.
    second: Vec<Vec<Terms<S>>>,
    offsets: S::Summand,
    last: Vec<S::Factor>,
    last_offsets: Vec<u64>,
    /// Levels that are dropped before the last map.
    levels: usize,
    modulus: u64,
}

impl<S: Scheme> Weights<S> {
    pub(crate) fn new(grid: &Grid, model: &Model, scheme: &S, modulus: u64) -> Result<Self, SchemeError> {
        let [first, second, last] = model.maps.as_slice() else {
            return Err(SchemeError::Parameters(crate::parameters::ParametersError::Range("maps")));
        };
        let turns = || (0..grid.blocks()).into_par_iter();
        let first = turns()
            .map(|turn| terms(scheme, (0..grid.inputs()).map(|index| first_slots(grid, first, turn, index, modulus))));
        let parts = (0..grid.parts()).map(|part| {
            let of = |turn| terms(scheme, second_slots(grid, second, (part, turn), modulus).into_iter());
            turns().map(of).collect::<Result<_, _>>()
        });
        let levels = model.program.parameters.levels_before_last();
        let spread = |row: &mut dyn Iterator<Item = (usize, i128)>| {
            let mut slots = vec![0; DEGREE];
            for (index, value) in row {
                let (channel, y, x) = place(grid.second, index);
                slots[grid.second_slot(channel, y, x)] = residue(value, modulus);
            }
            slots
        };
        let row = |row: &Vec<(u32, i64)>| {
            let weights = row.iter().map(|(input, weight)| (*input as usize, i128::from(*weight)));
            scheme.factor(&spread(&mut { weights }), levels)
        };
        Ok(Self {
            grid: grid.clone(),
            first: first.collect::<Result<_, _>>()?,
            second: parts.collect::<Result<_, SchemeError>>()?,
            offsets: scheme.summand(&spread(&mut second.offsets.iter().copied().enumerate()), 0)?,
            last: last.rows.iter().map(row).collect::<Result<_, _>>()?,
            last_offsets: last.offsets.iter().map(|&offset| residue(offset, modulus)).collect(),
            levels,
            modulus,
        })
    }

    /// Every position of the window, turned to where outputs are.
    fn positions(&self, scheme: &S, values: S::Ciphertext) -> Result<Vec<S::Ciphertext>, SchemeError> {
        let [column, row] = self.grid.next();
        let start = self.grid.start().map(|turn| scheme.turn(&values, turn)).transpose()?;
        let starts = chain(scheme, start.unwrap_or(values), row, self.grid.rows.count)?;
        let rows = starts.into_par_iter().map(|start| chain(scheme, start, column, self.grid.columns.count));
        Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }
}

/// A ciphertext and what follows from it by turning again and again.
fn chain<S: Scheme>(
    scheme: &S,
    start: S::Ciphertext,
    turn: crate::scheme::Turn,
    count: usize,
) -> Result<Vec<S::Ciphertext>, SchemeError> {
    let mut all = vec![start];
    while all.len() < count {
        all.push(scheme.turn(&all[all.len() - 1], turn)?);
    }
    Ok(all)
}

/// Factors of slots that are not all zero, and of at least one.
fn terms<S: Scheme>(scheme: &S, slots: impl Iterator<Item = Vec<u64>>) -> Result<Terms<S>, SchemeError> {
    let of = |(index, slots): (usize, Vec<u64>)| {
        (index == 0 || slots.iter().any(|slot| *slot != 0)).then(|| Ok((index, scheme.factor(&slots, 0)?)))
    };
    slots.enumerate().filter_map(of).collect()
}

/// What ciphertext `index` of a query is multiplied with before a turn.
fn first_slots(grid: &Grid, map: &Map, turn: usize, index: usize, modulus: u64) -> Vec<u64> {
    let mut slots = vec![0; DEGREE];
    for block in 0..grid.blocks() {
        let (channel, position) = (grid.turned(block, turn), index * grid.blocks() + block);
        if channel >= grid.first.channels {
            continue;
        }
        for (at, reads) in grid.reads.iter().enumerate() {
            let row = channel * grid.reads.len() + at;
            let value = if position == grid.positions() {
                map.offsets[row]
            } else {
                reads.get(position).map_or(0, |input| map.weight(row, *input).into())
            };
            slots[block * grid.block + at / grid.first.width * grid.pitch + at % grid.first.width] =
                residue(value, modulus);
        }
    }
    slots
}

/// What each position of the window is multiplied with before a turn, for one part of the second map.
fn second_slots(grid: &Grid, map: &Map, (part, turn): (usize, usize), modulus: u64) -> Vec<Vec<u64>> {
    let mut all = vec![vec![0; DEGREE]; grid.rows.count * grid.columns.count];
    let along = |from: usize, at: usize, steps: crate::grid::Steps| {
        (from as i32 - (grid.stride * at) as i32 - steps.from) as usize / grid.pool
    };
    for block in 0..grid.first.channels {
        let channel = part * grid.blocks() + grid.turned(block, turn);
        if channel >= grid.second.channels {
            continue;
        }
        for pixel in 0..grid.second.pixels() {
            let (_, y, x) = place(grid.second, pixel);
            let row = &map.rows[channel * grid.second.pixels() + pixel];
            // Weights of the input channel that this block holds.
            let until =
                |channel: usize| row.partition_point(|(input, _)| (*input as usize) < channel * grid.first.pixels());
            for (input, weight) in &row[until(block)..until(block + 1)] {
                let (_, from_y, from_x) = place(grid.first, *input as usize);
                if from_y % grid.pool == 0 && from_x % grid.pool == 0 {
                    let position = along(from_y, y, grid.rows) * grid.columns.count + along(from_x, x, grid.columns);
                    all[position][block * grid.block + grid.stride * (y * grid.pitch + x)] =
                        residue((*weight).into(), modulus);
                }
            }
        }
    }
    all
}

impl<S: Scheme> Prepared<S> for Weights<S> {
    fn answer(&self, scheme: &S, query: &[S::Ciphertext]) -> Result<Vec<S::Ciphertext>, SchemeError> {
        let dot = |terms: &Terms<S>, of: &[S::Ciphertext]| {
            scheme.dot(&terms.iter().map(|(index, weights)| (&of[*index], weights)).collect::<Vec<_>>())
        };
        let squared = |values: &S::Ciphertext| {
            let mut square = scheme.square(values);
            scheme.relinearise(&mut square).map(|()| square)
        };
        let mut values = squared(&self.grid.gather(scheme, |turn| dot(&self.first[turn], query))?)?;
        for turn in self.grid.pooling() {
            let turned = scheme.turn(&values, turn)?;
            scheme.add(&mut values, &turned);
        }
        let positions = self.positions(scheme, values)?;
        let parts = self.second.par_iter().map(|terms| self.grid.gather(scheme, |turn| dot(&terms[turn], &positions)));
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?.into_iter().rev();
        let mut values =
            parts.next().ok_or(SchemeError::Parameters(crate::parameters::ParametersError::Range("parts")))?;
        for part in parts {
            values = scheme.turn(&values, Grid::beside())?;
            scheme.add(&mut values, &part);
        }
        scheme.add_plain(&mut values, &self.offsets);
        let mut values = squared(&values)?;
        scheme.shorten(&mut values, self.levels)?;
        let all = [(0..DEGREE).collect::<Vec<_>>()];
        let output = |(weights, offset): (&S::Factor, &u64)| {
            let mut output = scheme.dot(&[(&values, weights)])?;
            scheme.add_plain(&mut output, &scheme.summand(&mask(&all, &[*offset], self.modulus), self.levels)?);
            Ok(output)
        };
        self.last.par_iter().zip(&self.last_offsets).map(output).collect()
    }
}
