//! Integers in place of real numbers: what is computed exactly, and how large it can become.

use asymflow_zoo::{Network, Weights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::affine::{Affine, CompileError, maps};
use crate::latency::Layout;
use crate::parameters::Parameters;

/// How to make integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Bits of an input value.
    pub input_bits: u32,
    /// Bits of a weight, sign included.
    pub weight_bits: u32,
    /// Bits of noise budget that must be left in an answer.
    pub least_budget_bits: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { input_bits: 4, weight_bits: 6, least_budget_bits: 8 }
    }
}

/// What everybody may know: shapes, formats and parameters, and no weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name of the network.
    pub name: String,
    /// Values of an image.
    pub inputs: usize,
    /// Integers of an input value: value times `input_scale`, rounded, within `input_range`.
    pub input_scale: f64,
    /// Least and most.
    pub input_range: (i64, i64),
    /// Which inputs each value of the first map reads.
    pub(crate) reads: Vec<Vec<u32>>,
    /// Outputs of each map.
    pub(crate) rows: Vec<usize>,
    /// A logit is an integer divided by this.
    pub output_scale: f64,
    /// No logit's integer is larger in magnitude, whatever the image.
    pub bound_bits: u32,
    /// Of the scheme.
    pub parameters: Parameters,
    /// Levels that an answer drops, to be shorter.
    pub(crate) dropped_levels: usize,
}

impl Program {
    /// Identifies it in every message.
    pub fn hash(&self) -> [u8; 32] {
        // Nothing in a program can fail to encode.
        Sha256::digest(postcard::to_stdvec(self).unwrap_or_default()).into()
    }

    /// Squares one after the other.
    pub fn depth(&self) -> usize {
        self.rows.len() - 1
    }

    /// The integers of an image.
    ///
    /// # Errors
    /// It has another length, or a value is no number.
    pub fn integers(&self, image: &[f32]) -> Result<Vec<i64>, CompileError> {
        if image.len() != self.inputs || image.iter().any(|value| !value.is_finite()) {
            let got = image.len();
            return Err(CompileError::Range(format!("{got} values, expected {} finite ones", self.inputs)));
        }
        let (least, most) = self.input_range;
        let one = |value: &f32| ((f64::from(*value) * self.input_scale).round() as i64).clamp(least, most);
        Ok(image.iter().map(one).collect())
    }

    /// Logits of the integers of an answer.
    pub fn logits(&self, integers: &[i128]) -> Vec<f64> {
        integers.iter().map(|&value| value as f64 / self.output_scale).collect()
    }
}

/// An affine map of integers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) weights: Vec<Vec<i64>>,
    pub(crate) offsets: Vec<i128>,
}

/// A network as integers, at its owner.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) program: Program,
    pub(crate) maps: Vec<Map>,
}

/// Least and most that a value can be.
type Interval = (i128, i128);

impl Map {
    fn row(&self, row: usize, x: &[i128]) -> i128 {
        let terms = self.weights[row].iter().zip(x);
        terms.fold(self.offsets[row], |sum, (weight, x)| sum + i128::from(*weight) * x)
    }

    /// What each output can be; `None` beyond 2^120.
    fn intervals(&self, x: &[Interval]) -> Option<Vec<Interval>> {
        let one = |(weights, offset): (&Vec<i64>, &i128)| {
            let (mut low, mut high) = (*offset, *offset);
            for (weight, (least, most)) in weights.iter().zip(x) {
                let ends = [i128::from(*weight).checked_mul(*least)?, i128::from(*weight).checked_mul(*most)?];
                low = low.checked_add(ends[0].min(ends[1]))?;
                high = high.checked_add(ends[0].max(ends[1]))?;
            }
            (low.unsigned_abs().max(high.unsigned_abs()) < 1 << 120).then_some((low, high))
        };
        self.weights.iter().zip(&self.offsets).map(one).collect()
    }
}

impl Model {
    /// Compiles `network`. `calibration` are images (one after the other, normalised as those that will be asked): their least and largest
    /// value are those of all inputs.
    ///
    /// # Errors
    /// A layer that cannot be computed on ciphertexts, more squares than fit, or no parameters that leave the noise budget asked for.
    pub fn compile(
        network: &Network,
        weights: &Weights,
        calibration: &[f32],
        options: Options,
    ) -> Result<Self, CompileError> {
        let real = maps(network, weights)?;
        let squares = real.len() - 1;
        if !(1..=2).contains(&squares) {
            let hint = if squares == 0 {
                "a linear network needs no encryption that multiplies"
            } else {
                "replace all but two activations"
            };
            return Err(CompileError::Depth { squares, most: 2, hint });
        }
        let extremes = calibration.iter().fold((0.0_f32, 0.0_f32), |(low, high), x| (low.min(*x), high.max(*x)));
        let span = f64::from(extremes.1) - f64::from(extremes.0);
        if !(span.is_finite() && span > 0.0) {
            return Err(CompileError::Range("the images to calibrate with hold no two numbers".to_owned()));
        }
        let input_scale = f64::from((1_u32 << options.input_bits) - 1) / span;
        let [least, most] = [extremes.0, extremes.1].map(|end| (f64::from(end) * input_scale).round() as i64);
        let (maps, output_scale) = integers(&real, input_scale, options.weight_bits)?;
        let mut bounds = vec![(i128::from(least), i128::from(most)); network.input.len()];
        for (index, map) in maps.iter().enumerate() {
            let too_large = || CompileError::Range(format!("map {index}: integers of more than 120 bits"));
            bounds = map.intervals(&bounds).ok_or_else(too_large)?;
            if index < squares {
                bounds = bounds.into_iter().map(|(low, high)| (0, (low * low).max(high * high))).collect();
            }
        }
        let bound = bounds.iter().map(|(low, high)| low.unsigned_abs().max(high.unsigned_abs())).max().unwrap_or(0);
        let bound_bits = 128 - bound.leading_zeros();
        let reads = maps[0].weights.iter().map(|row| nonzero(row)).collect();
        let program = Program {
            name: network.name.clone(),
            inputs: network.input.len(),
            input_scale,
            input_range: (least, most),
            reads,
            rows: maps.iter().map(|map| map.offsets.len()).collect(),
            output_scale,
            bound_bits,
            parameters: Parameters::NONE,
            dropped_levels: 0,
        };
        let mut model = Self { program, maps };
        model.fit(options.least_budget_bits)?;
        Ok(model)
    }

    /// What a client needs.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Exactly what is computed on ciphertexts, in wide integers.
    pub fn reference(&self, image: &[i64]) -> Vec<i128> {
        let mut values: Vec<i128> = image.iter().map(|&value| value.into()).collect();
        for (index, map) in self.maps.iter().enumerate() {
            values = (0..map.offsets.len()).map(|row| map.row(row, &values)).collect();
            if index + 1 < self.maps.len() {
                values.iter_mut().for_each(|value| *value *= *value);
            }
        }
        values
    }

    /// The cheapest parameters whose noise budget is enough, by trying each on extreme images under a key that is thrown away.
    fn fit(&mut self, least_budget_bits: u32) -> Result<(), CompileError> {
        Layout::check(&self.program)?;
        let mut best: Option<i64> = None;
        for parameters in Parameters::candidates(self.program.bound_bits) {
            self.program.parameters = parameters;
            self.program.dropped_levels = 0;
            let fits = |budget: i64| budget >= i64::from(least_budget_bits);
            let budget = crate::party::budget(self).map_err(|error| CompileError::Range(error.to_string()))?;
            best = best.max(Some(budget));
            if !fits(budget) {
                continue;
            }
            // A shorter answer has less room for the noise that it has anyway.
            for dropped in (1..self.program.parameters.moduli_bits.len()).rev() {
                self.program.dropped_levels = dropped;
                if crate::party::budget(self).is_ok_and(fits) {
                    return Ok(());
                }
            }
            self.program.dropped_levels = 0;
            return Ok(());
        }
        let (squares, bits) = (self.program.depth(), self.program.bound_bits);
        Err(CompileError::Range(format!(
            "depth {squares} with integers of {bits} bits leaves {} bits of noise budget at most, and {least_budget_bits} are asked for: \
             take fewer bits for inputs and weights, or one square less",
            best.unwrap_or(i64::MIN)
        )))
    }
}

fn nonzero(row: &[i64]) -> Vec<u32> {
    (0_u32..).zip(row).filter(|(_, weight)| **weight != 0).map(|(index, _)| index).collect()
}

/// Maps of integers, and by what the last one's outputs are scaled.
fn integers(real: &[Affine], input_scale: f64, weight_bits: u32) -> Result<(Vec<Map>, f64), CompileError> {
    let mut scale = input_scale;
    let mut maps = Vec::new();
    for (index, Affine { matrix, offset }) in real.iter().enumerate() {
        let largest = matrix.iter().flatten().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        if !(largest.is_finite() && largest > 0.0) {
            return Err(CompileError::Range(format!("map {index}: the largest weight is {largest}")));
        }
        let unit = f64::from((1_u32 << (weight_bits - 1)) - 1) / largest;
        scale *= unit;
        let weights =
            matrix.iter().map(|row| row.iter().map(|value| (value * unit).round() as i64).collect()).collect();
        let offsets = offset.iter().map(|value| (value * scale).round() as i128).collect();
        maps.push(Map { weights, offsets });
        if index + 1 < real.len() {
            scale *= scale;
        }
    }
    Ok((maps, scale))
}
