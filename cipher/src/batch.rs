//! Thousands of images, one a slot.
//!
//! Every input value is a ciphertext of its own, in which slot n is that of image n, so that a map is products with constants and sums: no
//! turn, no key to turn with, and a constant makes noise grow by itself alone. Weights have few bits, so that few constants are kept. A
//! map's outputs are squared in chunks and added into the sums of the next map, so that never more ciphertexts are in memory than an input, a
//! chunk and the next map's outputs.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::affine::CompileError;
use crate::layout::{Arrange, Cost, Prepared, residue};
use crate::model::{Map, Model};
use crate::parameters::DEGREE;
use crate::scheme::{Scheme, SchemeError, Turn};

/// Outputs of a map that are squared at a time.
const CHUNK: usize = 64;
/// Most values of an image or a map: a ciphertext each.
const MOST_VALUES: usize = 8192;

/// Values of an image, outputs of each map, and how many weights of each map are not zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    inputs: usize,
    rows: Vec<usize>,
    weights: Vec<usize>,
    constants: usize,
}

impl Batch {
    pub(crate) fn new(inputs: usize, maps: &[Map]) -> Self {
        let weights = |map: &Map| map.rows.iter().map(Vec::len).sum();
        Self {
            inputs,
            rows: maps.iter().map(|map| map.offsets.len()).collect(),
            weights: maps.iter().map(weights).collect(),
            constants: constants(maps).count(),
        }
    }
}

fn constants(maps: &[Map]) -> impl Iterator<Item = i64> {
    let all = maps.iter().flat_map(|map| map.rows.iter().flatten()).map(|(_, weight)| *weight);
    all.chain([0]).collect::<std::collections::BTreeSet<_>>().into_iter()
}

fn everywhere(value: i128, modulus: u64) -> Vec<u64> {
    vec![residue(value, modulus); DEGREE]
}

impl Arrange for Batch {
    fn check(&self, inputs: usize) -> Result<(), CompileError> {
        for (index, &got) in self.rows.iter().chain([&self.inputs]).enumerate() {
            if !(1..=MOST_VALUES).contains(&got) {
                let hint = "a ciphertext each is too much; take a smaller map";
                return Err(CompileError::Size { map: index % self.rows.len().max(1), got, most: MOST_VALUES, hint });
            }
        }
        let fits = self.inputs == inputs && self.rows.len() == self.weights.len() && (2..=8).contains(&self.rows.len());
        let counted = self.constants <= 1 << 20 && self.weights.iter().all(|weights| *weights <= 1 << 26);
        if fits && counted { Ok(()) } else { Err(CompileError::Program("batch")) }
    }

    fn cost(&self) -> Cost {
        let squares = self.rows[..self.rows.len() - 1].iter().sum();
        let most = self.rows.windows(2).map(|pair| 3 * (CHUNK.min(pair[0]) + pair[1])).max().unwrap_or(0);
        let products: usize = self.weights.iter().sum();
        Cost {
            images: DEGREE,
            plain_products: products,
            polynomial_products: 3 * products - self.weights[0],
            squares,
            relinearisations: squares - self.rows[0],
            depth: self.rows.len() - 1,
            ciphertexts: self.inputs,
            answers: self.rows[self.rows.len() - 1],
            plaintexts: self.constants,
            polynomials: 2 * self.inputs + most,
            ..Cost::default()
        }
    }

    fn turns(&self) -> Vec<Turn> {
        Vec::new()
    }

    fn slots(&self, images: &[Vec<i64>], index: usize, modulus: u64) -> Vec<u64> {
        images.iter().map(|image| residue(image[index].into(), modulus)).collect()
    }

    fn outputs(&self, slots: &[Vec<u64>], images: usize, _: u64) -> Vec<Vec<u64>> {
        (0..images).map(|image| slots.iter().map(|output| output[image]).collect()).collect()
    }
}

/// A constant for every number that is a weight.
pub(crate) struct Weights<S: Scheme> {
    maps: Vec<Map>,
    constants: BTreeMap<i64, S::Factor>,
    zero: S::Factor,
    modulus: u64,
}

impl<S: Scheme> Weights<S> {
    pub(crate) fn new(_: &Batch, model: &Model, scheme: &S, modulus: u64) -> Result<Self, SchemeError> {
        let factor = |value: i64| scheme.factor(&everywhere(value.into(), modulus), 0);
        let constants = constants(&model.maps).map(|value| Ok((value, factor(value)?)));
        let constants = constants.collect::<Result<_, SchemeError>>()?;
        Ok(Self { maps: model.maps.clone(), constants, zero: factor(0)?, modulus })
    }

    /// Σ weight · value of the weights whose input is one of `values`, the first of which is input `first`.
    fn sum(
        &self,
        scheme: &S,
        row: &[(u32, i64)],
        values: &[S::Ciphertext],
        first: usize,
    ) -> Result<S::Ciphertext, SchemeError> {
        let from = row.partition_point(|(input, _)| (*input as usize) < first);
        let until = row.partition_point(|(input, _)| (*input as usize) < first + values.len());
        let term = |(input, weight): &(u32, i64)| {
            (&values[*input as usize - first], self.constants.get(weight).unwrap_or(&self.zero))
        };
        let mut terms: Vec<_> = row[from..until].iter().map(term).collect();
        if terms.is_empty() {
            terms.push((&values[0], &self.zero));
        }
        scheme.dot(&terms)
    }

    fn offset(&self, scheme: &S, sum: &mut S::Ciphertext, offset: i128) -> Result<(), SchemeError> {
        scheme.add_plain(sum, &scheme.summand(&everywhere(offset, self.modulus), 0)?);
        Ok(())
    }
}

impl<S: Scheme> Prepared<S> for Weights<S> {
    fn answer(&self, scheme: &S, query: &[S::Ciphertext]) -> Result<Vec<S::Ciphertext>, SchemeError> {
        // Of the first map they are computed when they are asked for; of the others they are what the one before added up.
        let mut sums: Vec<S::Ciphertext> = Vec::new();
        for (index, [map, next]) in self.maps.array_windows().enumerate() {
            let rows: Vec<usize> = (0..map.rows.len()).collect();
            let mut following: Vec<Option<S::Ciphertext>> = vec![None; next.rows.len()];
            for chunk in rows.chunks(CHUNK) {
                let square = |&row: &usize| {
                    let mut value = match index {
                        0 => self.sum(scheme, &map.rows[row], query, 0)?,
                        _ => {
                            let mut value = sums[row].clone();
                            scheme.relinearise(&mut value)?;
                            value
                        }
                    };
                    self.offset(scheme, &mut value, map.offsets[row])?;
                    Ok(scheme.square(&value))
                };
                let squares = chunk.par_iter().map(square).collect::<Result<Vec<_>, SchemeError>>()?;
                following.par_iter_mut().zip(&next.rows).try_for_each(|(sum, row)| {
                    let part = self.sum(scheme, row, &squares, chunk[0])?;
                    match sum {
                        Some(sum) => scheme.add(sum, &part),
                        None => *sum = Some(part),
                    }
                    Ok::<_, SchemeError>(())
                })?;
            }
            sums = following.into_iter().flatten().collect();
        }
        let last = &self.maps[self.maps.len() - 1];
        for (sum, offset) in sums.iter_mut().zip(&last.offsets) {
            self.offset(scheme, sum, *offset)?;
        }
        Ok(sums)
    }
}
