//! Which activations share one sign decision, and what it is made from.

use asymflow_zoo::Shape;
use serde::{Deserialize, Serialize};

/// What the decision of a group looks at (Helbitz and Avidan, 2021; Gorski, Jevnisek and Avidan, 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The first activation: the top left corner of the first channel.
    Corner,
    /// The activation in the middle of the block, in its first channel.
    Centre,
    /// The mean.
    Mean,
    /// A weighted sum with one weight for each place of a group: channels × rows × columns, row-major. Weights are
    /// public and rounded to eight fraction bits.
    Weights(Vec<f32>),
}

/// Groups of a layer, with weights as integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grouping {
    /// Each activation decides for itself.
    Each,
    /// Blocks of channels × rows × columns; at the edges, what is left of them.
    Blocks { channels: usize, rows: usize, columns: usize, decision: Vote },
}

/// [`Decision`] with integer weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Vote {
    Corner,
    Centre,
    Sum,
    Weights(Vec<i64>),
}

/// The groups of one sample.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Group of each activation.
    pub(crate) of: Vec<u32>,
    /// What each activation contributes to the decision.
    pub(crate) weight: Vec<i64>,
    pub(crate) count: usize,
}

impl Grouping {
    /// Decisions for one sample.
    pub(crate) const fn count(&self, shape: Shape) -> usize {
        match self {
            Self::Each => shape.len(),
            Self::Blocks { channels, rows, columns, .. } => {
                shape.channels.div_ceil(*channels) * shape.height.div_ceil(*rows) * shape.width.div_ceil(*columns)
            }
        }
    }

    /// The groups of one sample of `shape`; `None` where each activation decides for itself.
    pub(crate) fn groups(&self, shape: Shape) -> Option<Groups> {
        let Self::Blocks { channels, rows, columns, decision } = self else { return None };
        let (across, down) = (shape.width.div_ceil(*columns), shape.height.div_ceil(*rows));
        let mut groups = Groups { of: Vec::new(), weight: Vec::new(), count: self.count(shape) };
        for c in 0..shape.channels {
            for y in 0..shape.height {
                for x in 0..shape.width {
                    groups.of.push((((c / channels) * down + y / rows) * across + x / columns) as u32);
                    let place = (c % channels, y % rows, x % columns);
                    // Blocks at the edge are smaller, and so their middle lies elsewhere.
                    let height = (*rows).min(shape.height - y / rows * rows);
                    let width = (*columns).min(shape.width - x / columns * columns);
                    groups.weight.push(match decision {
                        Vote::Corner => i64::from(place == (0, 0, 0)),
                        Vote::Centre => i64::from(place == (0, height / 2, width / 2)),
                        Vote::Sum => 1,
                        Vote::Weights(w) => {
                            w.get((place.0 * rows + place.1) * columns + place.2).copied().unwrap_or_default()
                        }
                    });
                }
            }
        }
        Some(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(channels: usize, rows: usize, columns: usize, decision: Vote) -> Groups {
        Grouping::Blocks { channels, rows, columns, decision }.groups(Shape::new(2, 3, 5)).unwrap()
    }

    #[test]
    fn groups_cover_a_ragged_map() {
        let groups = blocks(1, 2, 2, Vote::Sum);
        assert_eq!(groups.count, 2 * 2 * 3);
        assert_eq!(&groups.of[..15], [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5]);
        assert_eq!(groups.of[15], 6);
        assert_eq!(blocks(2, 3, 5, Vote::Sum).count, 1);
    }

    #[test]
    fn every_group_has_one_representative() {
        for vote in [Vote::Corner, Vote::Centre] {
            let groups = blocks(2, 2, 3, vote);
            let mut votes = vec![0; groups.count];
            for (group, weight) in groups.of.iter().zip(&groups.weight) {
                votes[*group as usize] += weight;
            }
            assert_eq!(votes, vec![1; groups.count]);
        }
    }
}
