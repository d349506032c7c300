//! Which activations of a sample share a decision, plane by plane.

use asymflow_zoo::{
    network::Shape,
    ops::{Choice, Decision, Grouping, SharedRelu},
};

/// What the activations of one channel go through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plane {
    /// The decisions of blocks.
    Blocks(Blocks),
    /// Nothing: they are kept.
    Keep,
    /// Nothing: they are dropped.
    Drop,
    /// A quadratic, counted among those of the layer.
    Quadratic(usize),
}

/// The blocks of one channel. Their groups are consecutive, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// The first group.
    pub first: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub columns: usize,
    /// Number of the channel within its block; none where it takes the decisions of another.
    pub place: Option<usize>,
    /// Channels that vote in these groups.
    pub depth: usize,
    /// Rows and columns of the map; where blocks are single activations, it is one long row.
    pub map: (usize, usize),
}

/// The groups of one sample of a layer.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    pub(super) shape: Shape,
    pub(super) decision: Decision,
    pub(super) planes: Vec<Plane>,
    groups: usize,
}

impl GroupPlan {
    /// The groups of `layer`, which has been checked against `shape`.
    pub fn new(layer: &SharedRelu, shape: Shape) -> Self {
        let planes = match &layer.grouping {
            Grouping::Blocks { channels, rows, columns } => {
                let plane = |channel: usize| {
                    let blocks = Blocks::new(shape, *rows, *columns);
                    let number = channel / channels;
                    let depth = (*channels).min(shape.channels - number * channels);
                    let (first, place) = (number * blocks.groups(), Some(channel % channels));
                    Plane::Blocks(Blocks { first, place, depth, ..blocks })
                };
                (0..shape.channels).map(plane).collect()
            }
            Grouping::Choices(choices) => planes_of(choices, shape),
        };
        Self { shape, decision: layer.decision, planes, groups: layer.decisions(shape) }
    }

    /// Votes kept for one sample: one for each group, and one where there is none.
    pub fn votes(&self) -> usize {
        self.groups.max(1)
    }

    /// The longest row that is folded or spread.
    pub(super) fn row(&self) -> usize {
        let width = |plane: &Plane| if let Plane::Blocks(blocks) = plane { blocks.map.1 } else { 0 };
        self.planes.iter().map(width).max().unwrap_or_default()
    }

    /// Channels with blocks and their rows of values, of one sample.
    pub(super) fn blocks<'a>(&'a self, x: &'a [f32]) -> impl Iterator<Item = (Blocks, &'a [f32])> {
        self.planes.iter().zip(x.chunks_exact(self.shape.pixels())).filter_map(|(plane, x)| match plane {
            Plane::Blocks(blocks) => Some((*blocks, x)),
            Plane::Keep | Plane::Drop | Plane::Quadratic(_) => None,
        })
    }
}

fn planes_of(choices: &[Choice], shape: Shape) -> Vec<Plane> {
    let (mut groups, mut quadratics) = (0, 0);
    let mut planes: Vec<Plane> = choices
        .iter()
        .map(|choice| match *choice {
            Choice::Block { rows, columns } => {
                let blocks = Blocks { first: groups, ..Blocks::new(shape, rows, columns) };
                groups += blocks.groups();
                Plane::Blocks(blocks)
            }
            Choice::Quadratic => {
                quadratics += 1;
                Plane::Quadratic(quadratics - 1)
            }
            Choice::Identity => Plane::Keep,
            Choice::Zero | Choice::Copy { .. } => Plane::Drop,
        })
        .collect();
    // Prototypes may follow their copies.
    for (channel, choice) in choices.iter().enumerate() {
        if let Choice::Copy { of } = *choice
            && let Some(Plane::Blocks(blocks)) = planes.get(of).copied()
        {
            planes[channel] = Plane::Blocks(Blocks { place: None, ..blocks });
        }
    }
    planes
}

impl Blocks {
    /// Blocks of one channel, counted from 0.
    const fn new(shape: Shape, rows: usize, columns: usize) -> Self {
        let map = if rows == 1 && columns == 1 { (1, shape.pixels()) } else { (shape.height, shape.width) };
        Self { first: 0, rows, columns, place: Some(0), depth: 1, map }
    }

    /// Groups of one row of blocks.
    pub const fn across(self) -> usize {
        self.map.1.div_ceil(self.columns)
    }

    /// Groups of the map.
    const fn groups(self) -> usize {
        self.map.0.div_ceil(self.rows) * self.across()
    }

    /// Rows of a block that the map has.
    pub fn band_rows(self) -> usize {
        self.rows.min(self.map.0)
    }

    /// Row `y` of a map.
    pub fn row(self, x: &[f32], y: usize) -> &[f32] {
        &x[y * self.map.1..][..self.map.1]
    }

    /// The weights of row `y` of a map in the channel `place` of its block, among those of [`GroupPlan::widen`].
    pub fn wide_row(self, weights: &[f32], place: usize, y: usize) -> &[f32] {
        self.row(weights, place * self.band_rows() + y % self.rows)
    }

    /// The rows of blocks: index of the first group of each, and the rows of the map that it covers.
    pub fn bands(self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        (0..self.map.0.div_ceil(self.rows)).map(move |band| {
            let top = band * self.rows;
            (self.first + band * self.across(), top..self.map.0.min(top + self.rows))
        })
    }

    /// Folds every band of a map to one row by `add`, which is given the row and the number of a row of the map, and that row
    /// to one value for each group by `join`.
    pub fn fold(
        self,
        row: &mut [f32],
        groups: &mut [f32],
        add: impl Fn(&mut [f32], usize),
        join: impl Fn(f32, f32) -> f32,
    ) {
        let row = &mut row[..self.map.1];
        for (first, band) in self.bands() {
            row.fill(0.0);
            band.for_each(|y| add(row, y));
            let groups = &mut groups[first..first + self.across()];
            match self.columns {
                1 => fold_columns::<1>(row, groups, &join),
                2 => fold_columns::<2>(row, groups, &join),
                4 => fold_columns::<4>(row, groups, &join),
                8 => fold_columns::<8>(row, groups, &join),
                columns => {
                    for (group, values) in groups.iter_mut().zip(row.chunks(columns)) {
                        *group = values.iter().fold(*group, |sum, &value| join(sum, value));
                    }
                }
            }
        }
    }

    /// Spreads one value for each group over the columns of a row.
    pub fn spread(self, groups: &[f32], row: &mut [f32], of: impl Fn(f32) -> f32) {
        let row = &mut row[..self.map.1];
        match self.columns {
            1 => spread_columns::<1>(groups, row, of),
            2 => spread_columns::<2>(groups, row, of),
            4 => spread_columns::<4>(groups, row, of),
            8 => spread_columns::<8>(groups, row, of),
            columns => {
                for (values, &group) in row.chunks_mut(columns).zip(groups) {
                    values.fill(of(group));
                }
            }
        }
    }
}

/// Blocks of a width that the compiler knows; the last may be narrower.
fn fold_columns<const N: usize>(row: &[f32], groups: &mut [f32], join: impl Fn(f32, f32) -> f32) {
    let (whole, rest) = row.as_chunks::<N>();
    for (group, values) in groups.iter_mut().zip(whole) {
        *group = values.iter().fold(*group, |sum, &value| join(sum, value));
    }
    if let Some(group) = groups.get_mut(whole.len()) {
        *group = rest.iter().fold(*group, |sum, &value| join(sum, value));
    }
}

fn spread_columns<const N: usize>(groups: &[f32], row: &mut [f32], of: impl Fn(f32) -> f32) {
    let (whole, rest) = row.as_chunks_mut::<N>();
    for (values, &group) in whole.iter_mut().zip(groups) {
        *values = [of(group); N];
    }
    if let Some(&group) = groups.get(whole.len()) {
        rest.fill(of(group));
    }
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::ops::Gate;
    use proptest::prelude::*;

    use super::*;

    /// Gates and votes of every activation, as the plan has them.
    fn written_out(plan: &GroupPlan) -> (Vec<Gate>, Vec<Vec<u32>>) {
        let (shape, mut gates, mut voters) = (plan.shape, Vec::new(), vec![Vec::new(); plan.groups]);
        for plane in &plan.planes {
            match *plane {
                Plane::Blocks(blocks) => {
                    for (first, band) in blocks.bands() {
                        for x in band.flat_map(|_| 0..blocks.map.1) {
                            let group = first + x / blocks.columns;
                            if blocks.place.is_some() {
                                voters[group].push(gates.len() as u32);
                            }
                            gates.push(Gate::Group(group as u32));
                        }
                    }
                }
                Plane::Keep => gates.extend(vec![Gate::Keep; shape.pixels()]),
                Plane::Drop => gates.extend(vec![Gate::Drop; shape.pixels()]),
                Plane::Quadratic(at) => gates.extend(vec![Gate::Quadratic(at as u32); shape.pixels()]),
            }
        }
        (gates, voters)
    }

    /// Settings of a grouping for any number of channels.
    fn grouping(channels: usize) -> impl Strategy<Value = Grouping> {
        let blocks = (1_usize..7, 1_usize..7, 1_usize..7).prop_map(|(channels, rows, columns)| Grouping::Blocks {
            channels,
            rows,
            columns,
        });
        let choice = (0_usize..5, 1_usize..5, 1_usize..5, 0..channels);
        let choices = prop::collection::vec(choice, channels).prop_map(|picks| {
            let is_block = |at: usize| matches!(picks[at].0, 0 | 1);
            let choice = |&(kind, rows, columns, of): &(usize, usize, usize, usize)| match kind {
                0 | 1 => Choice::Block { rows, columns },
                2 if is_block(of) => Choice::Copy { of },
                2 => Choice::Zero,
                3 => Choice::Quadratic,
                _ => Choice::Identity,
            };
            Grouping::Choices(picks.iter().map(choice).collect())
        });
        prop_oneof![blocks, choices]
    }

    proptest! {
        /// Against the table that is written out activation by activation.
        #[test]
        fn planes_are_the_table(
            ((channels, grouping), height, width) in
                ((1_usize..7).prop_flat_map(|c| (Just(c), grouping(c))), 1_usize..9, 1_usize..9)
        ) {
            let shape = Shape::new(channels, height, width);
            let layer = SharedRelu { name: "s".to_owned(), channels, grouping, decision: Decision::Mean };
            let (plan, table) = (GroupPlan::new(&layer, shape), layer.groups(shape));
            let (gates, voters) = written_out(&plan);
            prop_assert_eq!(plan.votes(), table.count().max(1));
            prop_assert_eq!(gates, table.gates);
            let expected: Vec<Vec<u32>> =
                table.voters.iter().map(|voters| voters.iter().map(|(index, _)| *index).collect()).collect();
            prop_assert_eq!(voters, expected);
        }
    }
}
