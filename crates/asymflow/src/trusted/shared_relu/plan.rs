//! Which activations of a sample share a decision, plane by plane.

use asymflow_zoo::{Choice, Decision, Grouping, Shape, SharedRelu};

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
        let blocks_of = |rows: usize, columns: usize| shape.height.div_ceil(rows) * shape.width.div_ceil(columns);
        let planes = match &layer.grouping {
            Grouping::Blocks { channels, rows, columns } => {
                let plane = |channel: usize| {
                    let first = channel / channels * blocks_of(*rows, *columns);
                    let depth = (*channels).min(shape.channels - channel / channels * channels);
                    Plane::Blocks(Blocks {
                        first,
                        rows: *rows,
                        columns: *columns,
                        place: Some(channel % channels),
                        depth,
                    })
                };
                (0..shape.channels).map(plane).collect()
            }
            Grouping::Choices(choices) => planes_of(choices, blocks_of),
        };
        Self { shape, decision: layer.decision, planes, groups: layer.decisions(shape) }
    }

    /// Votes kept for one sample: one for each group, and one where there is none.
    pub fn votes(&self) -> usize {
        self.groups.max(1)
    }

    /// Channels with blocks and their rows of values, of one sample.
    pub(super) fn blocks<'a>(&'a self, x: &'a [f32]) -> impl Iterator<Item = (Blocks, &'a [f32])> {
        self.planes.iter().zip(x.chunks_exact(self.shape.pixels())).filter_map(|(plane, x)| match plane {
            Plane::Blocks(blocks) => Some((*blocks, x)),
            _ => None,
        })
    }
}

fn planes_of(choices: &[Choice], blocks_of: impl Fn(usize, usize) -> usize) -> Vec<Plane> {
    let (mut groups, mut quadratics) = (0, 0);
    let mut planes: Vec<Plane> = choices
        .iter()
        .map(|choice| match *choice {
            Choice::Block { rows, columns } => {
                let first = groups;
                groups += blocks_of(rows, columns);
                Plane::Blocks(Blocks { first, rows, columns, place: Some(0), depth: 1 })
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
    /// The rows of blocks of a map: index of the first group of the row, and the rows of the map that it covers.
    pub fn bands(self, shape: Shape) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let across = shape.width.div_ceil(self.columns);
        (0..shape.height.div_ceil(self.rows)).map(move |band| {
            let top = band * self.rows;
            (self.first + band * across, top..shape.height.min(top + self.rows))
        })
    }

    /// Folds every band of a map to one row by `add`, which is given the row and the number of a row of the map, and that row
    /// to one value for each group by `join`.
    pub fn fold(
        self,
        shape: Shape,
        row: &mut [f32],
        groups: &mut [f32],
        add: impl Fn(&mut [f32], usize),
        join: impl Fn(f32, f32) -> f32,
    ) {
        let across = shape.width.div_ceil(self.columns);
        for (first, band) in self.bands(shape) {
            row.fill(0.0);
            band.for_each(|y| add(row, y));
            let groups = &mut groups[first..first + across];
            if self.columns == 1 {
                groups.iter_mut().zip(&*row).for_each(|(group, &value)| *group = join(*group, value));
            } else {
                for (group, values) in groups.iter_mut().zip(row.chunks(self.columns)) {
                    *group = values.iter().fold(*group, |sum, &value| join(sum, value));
                }
            }
        }
    }

    /// Spreads one value for each group over the columns of a row.
    pub fn spread(self, groups: &[f32], row: &mut [f32], of: impl Fn(f32) -> f32) {
        if self.columns == 1 {
            row.iter_mut().zip(groups).for_each(|(value, &group)| *value = of(group));
        } else {
            for (values, &group) in row.chunks_mut(self.columns).zip(groups) {
                values.fill(of(group));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::Gate;
    use proptest::prelude::*;

    use super::*;

    /// Gates and votes of every activation, as the plan has them.
    fn written_out(plan: &GroupPlan) -> (Vec<Gate>, Vec<Vec<u32>>) {
        let (shape, mut gates, mut voters) = (plan.shape, Vec::new(), vec![Vec::new(); plan.groups]);
        for plane in &plan.planes {
            match *plane {
                Plane::Blocks(blocks) => {
                    for (first, band) in blocks.bands(shape) {
                        for x in band.flat_map(|_| 0..shape.width) {
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
