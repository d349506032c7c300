//! Integers in place of real numbers: what is computed exactly, and how large it can become.

use asymflow_zoo::{Network, Weights};

use crate::affine::{Affine, CompileError, maps};
use crate::batch::Batch;
use crate::blocks::Blocks;
use crate::grid::Grid;
use crate::layout::{Layout, Packing};
use crate::parameters::Parameters;
use crate::program::Program;

/// How to make integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Bits of an input value.
    pub input_bits: u32,
    /// Bits of a weight, sign included.
    pub weight_bits: u32,
    /// Bits of noise budget that must be left in answers when a model is compiled: others have up to three less, and a client asks for 1.
    pub least_budget_bits: u32,
    /// What a query is about.
    pub packing: Packing,
}

impl Default for Options {
    fn default() -> Self {
        Self { input_bits: 4, weight_bits: 6, least_budget_bits: 5, packing: Packing::Latency }
    }
}

/// An affine map of integers: of each output the weights that are not zero, by input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) rows: Vec<Vec<(u32, i64)>>,
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
    pub(crate) fn weight(&self, row: usize, input: u32) -> i64 {
        let row = &self.rows[row];
        row.binary_search_by_key(&input, |(input, _)| *input).map_or(0, |at| row[at].1)
    }

    fn row(&self, row: usize, x: &[i128]) -> i128 {
        let terms = self.rows[row].iter().map(|(input, weight)| i128::from(*weight) * x[*input as usize]);
        self.offsets[row] + terms.sum::<i128>()
    }

    /// What each output can be; `None` beyond 2^120.
    fn intervals(&self, x: &[Interval]) -> Option<Vec<Interval>> {
        let one = |(weights, offset): (&Vec<(u32, i64)>, &i128)| {
            let (mut low, mut high) = (*offset, *offset);
            for (input, weight) in weights {
                let (least, most) = x[*input as usize];
                let ends = [i128::from(*weight).checked_mul(least)?, i128::from(*weight).checked_mul(most)?];
                low = low.checked_add(ends[0].min(ends[1]))?;
                high = high.checked_add(ends[0].max(ends[1]))?;
            }
            (low.unsigned_abs().max(high.unsigned_abs()) < 1 << 120).then_some((low, high))
        };
        self.rows.iter().zip(&self.offsets).map(one).collect()
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
        let most = match options.packing {
            Packing::Latency => 2,
            Packing::Throughput => 3,
        };
        if !(1..=most).contains(&squares) {
            let hint = match (squares, options.packing) {
                (0, _) => "a linear network needs no encryption that multiplies",
                (3, Packing::Latency) => "the throughput packing takes three, with few bits; or keep two activations",
                (_, Packing::Latency) => "keep two activations",
                (_, Packing::Throughput) => "keep three activations",
            };
            return Err(CompileError::Depth { squares, most, hint });
        }
        let extremes = calibration.iter().fold((0.0_f32, 0.0_f32), |(low, high), x| (low.min(*x), high.max(*x)));
        let span = f64::from(extremes.1) - f64::from(extremes.0);
        if !(span.is_finite() && span > 0.0) {
            return Err(CompileError::Range("the images to calibrate with hold no two numbers".to_owned()));
        }
        if !((1..=12).contains(&options.input_bits) && (2..=12).contains(&options.weight_bits)) {
            let (input, weight) = (options.input_bits, options.weight_bits);
            let text = format!("{input} bits of an input and {weight} of a weight, expected 1 to 12 and 2 to 12");
            return Err(CompileError::Range(text));
        }
        let input_scale = f64::from((1_u32 << options.input_bits) - 1) / span;
        let [least, most] = [extremes.0, extremes.1].map(|end| (f64::from(end) * input_scale).round() as i64);
        let (maps, output_scale) = integers(&real, input_scale, options.weight_bits)?;
        let shapes: Vec<_> = real.iter().map(|map| map.shape).collect();
        let bound_bits = bound_bits(&maps, network.input.len(), (least, most))?;
        let program = Program {
            name: network.name.clone(),
            inputs: network.input.len(),
            input_scale,
            input_range: (least, most),
            layout: layout(&maps, &shapes, network.input.len(), options.packing)?,
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

    /// The cheapest parameters whose noise budget is enough, by trying each on extreme images under keys that are thrown away.
    fn fit(&mut self, least_budget_bits: u32) -> Result<(), CompileError> {
        let probe = match &self.program.layout {
            Layout::Blocks(_) | Layout::Grid(_) => self.clone(),
            Layout::Batch(_) => self.worst_path(),
        };
        let turns_slots = !matches!(self.program.layout, Layout::Batch(_));
        let mut best: Option<i64> = None;
        for parameters in Parameters::candidates(self.program.bound_bits) {
            if !parameters.may_hold(self.program.depth(), turns_slots, least_budget_bits) {
                continue;
            }
            let mut probe = probe.clone();
            probe.program.parameters = parameters.clone();
            let budgets = crate::server::budgets(&probe).map_err(|error| CompileError::Range(error.to_string()))?;
            best = best.max(budgets.first().copied());
            // A shorter answer has less room for the noise that it has anyway.
            let fits = |budget: &i64| *budget >= i64::from(least_budget_bits);
            if budgets.first().is_some_and(fits) {
                self.program.parameters = parameters;
                self.program.dropped_levels = budgets.iter().rposition(fits).unwrap_or(0);
                return Ok(());
            }
        }
        let (squares, bits) = (self.program.depth(), self.program.bound_bits);
        let left = best.map_or("too little".to_owned(), |best| format!("{best} bits"));
        Err(CompileError::Range(format!(
            "depth {squares} with integers of {bits} bits leaves {left} of noise budget at most, and {least_budget_bits} bits are asked for: \
             take fewer bits for inputs and weights, or one square less"
        )))
    }

    /// A model of one value a map, whose noise is at least that of any value here: the weights of a map's heaviest row, all on one value.
    fn worst_path(&self) -> Self {
        let weight = |row: &Vec<(u32, i64)>| row.iter().map(|(_, weight)| weight.abs()).sum::<i64>();
        let path = |map: &Map| {
            let heaviest = map.rows.iter().map(weight).max().unwrap_or(0);
            Map { rows: vec![vec![(0, heaviest)]], offsets: vec![0] }
        };
        let maps: Vec<Map> = self.maps.iter().map(path).collect();
        let mut program = Program { inputs: 1, ..self.program.clone() };
        program.layout = Layout::Batch(Batch::new(1, &maps));
        Self { program, maps }
    }
}

/// Where the maps lie: the packing of one image that fits.
fn layout(
    maps: &[Map],
    shapes: &[asymflow_zoo::network::Shape],
    inputs: usize,
    packing: Packing,
) -> Result<Layout, CompileError> {
    let checked = |layout: Layout| layout.arrange().check(inputs).map(|()| layout);
    match packing {
        Packing::Throughput => checked(Layout::Batch(Batch::new(inputs, maps))),
        Packing::Latency => checked(Layout::Blocks(Blocks::new(maps))).or_else(|refused| {
            let grid = Grid::new(maps, shapes).and_then(|grid| checked(Layout::Grid(grid)));
            // A network without a convolution in the middle is no grid, and its refusal would not help.
            if shapes.len() == 3 && shapes[1].height > 1 { grid } else { grid.map_err(|_| refused) }
        }),
    }
}

/// Bits of the largest value that any map can have, whatever the image.
fn bound_bits(maps: &[Map], inputs: usize, range: (i64, i64)) -> Result<u32, CompileError> {
    let mut bounds = vec![(i128::from(range.0), i128::from(range.1)); inputs];
    for (index, map) in maps.iter().enumerate() {
        let too_large = || CompileError::Range(format!("map {index}: integers of more than 120 bits"));
        bounds = map.intervals(&bounds).ok_or_else(too_large)?;
        if index + 1 < maps.len() {
            let square = |value: i128| value.checked_mul(value);
            let squared = |(low, high): (i128, i128)| Some((0, square(low)?.max(square(high)?)));
            bounds = bounds.into_iter().map(squared).collect::<Option<_>>().ok_or_else(too_large)?;
        }
    }
    let bound = bounds.iter().map(|(low, high)| low.unsigned_abs().max(high.unsigned_abs())).max().unwrap_or(0);
    Ok(128 - bound.leading_zeros())
}

/// Maps of integers, and by what the last one's outputs are scaled.
fn integers(real: &[Affine], input_scale: f64, weight_bits: u32) -> Result<(Vec<Map>, f64), CompileError> {
    let mut scale = input_scale;
    let mut maps = Vec::new();
    for (index, Affine { matrix, offset, .. }) in real.iter().enumerate() {
        let largest = matrix.iter().flatten().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        if !(largest.is_finite() && largest > 0.0) {
            return Err(CompileError::Range(format!("map {index}: the largest weight is {largest}")));
        }
        let unit = f64::from((1_u32 << (weight_bits - 1)) - 1) / largest;
        scale *= unit;
        let row = |row: &Vec<f64>| {
            let weights = (0_u32..).zip(row).map(|(input, value)| (input, (value * unit).round() as i64));
            weights.filter(|(_, weight)| *weight != 0).collect()
        };
        let offsets = offset.iter().map(|value| (value * scale).round() as i128).collect();
        maps.push(Map { rows: matrix.iter().map(row).collect(), offsets });
        if index + 1 < real.len() {
            scale *= scale;
        }
    }
    Ok((maps, scale))
}
