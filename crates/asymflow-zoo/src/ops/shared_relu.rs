//! ReLUs whose sign decisions are shared by groups of activations (Helbitz and Avidan, arXiv 2101.11835; Gorski, Jevnisek and
//! Avidan, arXiv 2304.10442).

use serde::{Deserialize, Serialize};

use super::operation::{At, Gradient, OpCost, Operation};
use super::quadratic::REACT;
use super::rectifier::relu;
use crate::network::limits;
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

/// A ReLU whose sign decisions are made for groups of activations: y = D·x, D = 1 where the group's vote is positive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedRelu {
    /// Parameter prefix, and how a budget names the layer.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Which activations share a decision.
    pub grouping: Grouping,
    /// What a group's decision looks at.
    pub decision: Decision,
}

/// Which activations share a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// Blocks of channels × rows × columns; at the edges, what is left of them.
    Blocks {
        /// Channels of a block.
        channels: usize,
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        columns: usize,
    },
    /// One choice for each channel, as a budget makes them.
    Choices(Vec<Choice>),
}

/// What one channel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// One decision for each block of rows × columns; 1 × 1 is a plain ReLU.
    Block {
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        columns: usize,
    },
    /// The decisions of another channel, which must be a [`Choice::Block`]: its prototype.
    Copy {
        /// The prototype.
        of: usize,
    },
    /// a x² + b x + c with three trained coefficients.
    Quadratic,
    /// x.
    Identity,
    /// 0.
    Zero,
}

/// What a group's decision looks at. Its sign decides, and zero keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The first activation: the top left corner of the first channel.
    Corner,
    /// The activation in the middle of the block, in its first channel.
    Centre,
    /// The mean.
    Mean,
    /// The activation of largest magnitude. It takes comparisons to find it, so secret sharing refuses it.
    Largest,
    /// A weighted sum with one trained weight for each place of a block: channels × rows × columns. Only with
    /// [`Grouping::Blocks`]. It is trained with a straight-through gradient.
    Learned,
}

/// Where an activation finds its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// In this group of its sample.
    Group(u32),
    /// It is always kept.
    Keep,
    /// It is never kept.
    Drop,
    /// It goes through this quadratic, counted among the layer's quadratic channels.
    Quadratic(u32),
}

/// The groups of one sample of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The gate of each activation, channel by channel, row by row.
    pub gates: Vec<Gate>,
    /// Activations that vote in each group, and the place of each in its block.
    pub voters: Vec<Vec<(u32, u32)>>,
}

impl Groups {
    /// Sign decisions for one sample.
    pub const fn count(&self) -> usize {
        self.voters.len()
    }
}

impl SharedRelu {
    /// Checks the settings against the shape that reaches the layer.
    fn check(&self, input: Shape) -> Result<(), NetworkError> {
        let out_of_range = |what| Err(NetworkError::out_of_range(&self.name, what));
        let side = |side: usize| (1..=limits::MAX_SETTING).contains(&side);
        match &self.grouping {
            Grouping::Blocks { channels, rows, columns } => {
                if !(side(*channels) && side(*rows) && side(*columns)) {
                    return out_of_range("side of a block");
                }
                let size = channels.checked_mul(*rows).and_then(|size| size.checked_mul(*columns));
                if size.is_none_or(|size| size > limits::MAX_VALUES) {
                    return out_of_range("size of a block");
                }
            }
            Grouping::Choices(choices) => {
                NetworkError::expect(&self.name, choices.len(), input.channels)?;
                if self.decision == Decision::Learned {
                    return out_of_range("learned decision with a choice for each channel");
                }
                for choice in choices {
                    match *choice {
                        Choice::Block { rows, columns } if !(side(rows) && side(columns)) => {
                            return out_of_range("side of a block");
                        }
                        Choice::Copy { of } if !matches!(choices.get(of), Some(Choice::Block { .. })) => {
                            return out_of_range("prototype");
                        }
                        Choice::Block { .. }
                        | Choice::Copy { .. }
                        | Choice::Quadratic
                        | Choice::Identity
                        | Choice::Zero => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Channels that compute a quadratic.
    pub fn quadratics(&self) -> usize {
        match &self.grouping {
            Grouping::Blocks { .. } => 0,
            Grouping::Choices(choices) => choices.iter().filter(|choice| **choice == Choice::Quadratic).count(),
        }
    }

    /// Places of a block: what a learned decision has weights for.
    pub fn places(&self) -> usize {
        match self.grouping {
            Grouping::Blocks { channels, rows, columns } => channels * rows * columns,
            Grouping::Choices(_) => 0,
        }
    }

    /// Tensors of parameters that the layer has: votes, then coefficients, where there are any.
    pub fn tensors(&self) -> usize {
        usize::from(self.decision == Decision::Learned) + usize::from(self.quadratics() > 0)
    }

    /// Sign decisions for one sample of `shape`.
    pub fn decisions(&self, shape: Shape) -> usize {
        let blocks = |rows: usize, columns: usize| shape.height.div_ceil(rows) * shape.width.div_ceil(columns);
        match &self.grouping {
            Grouping::Blocks { channels, rows, columns } => {
                shape.channels.div_ceil(*channels) * blocks(*rows, *columns)
            }
            Grouping::Choices(choices) => choices
                .iter()
                .map(|choice| match *choice {
                    Choice::Block { rows, columns } => blocks(rows, columns),
                    Choice::Copy { .. } | Choice::Quadratic | Choice::Identity | Choice::Zero => 0,
                })
                .sum(),
        }
    }

    /// The groups of one sample of `shape`, which the layer has been checked against.
    pub fn groups(&self, shape: Shape) -> Groups {
        let mut groups = Groups { gates: Vec::with_capacity(shape.len()), voters: Vec::new() };
        match &self.grouping {
            Grouping::Blocks { channels, rows, columns } => {
                let per_plane = shape.height.div_ceil(*rows) * shape.width.div_ceil(*columns);
                groups.voters = vec![Vec::new(); self.decisions(shape)];
                for channel in 0..shape.channels {
                    let first = channel / channels * per_plane;
                    self.add_plane(&mut groups, shape, (*rows, *columns), first, Some(channel % channels));
                }
            }
            Grouping::Choices(choices) => self.add_choices(&mut groups, shape, choices),
        }
        groups
    }

    fn add_choices(&self, groups: &mut Groups, shape: Shape, choices: &[Choice]) {
        // Prototypes may follow their copies: where the groups of each channel begin is known first.
        let mut first = Vec::with_capacity(choices.len());
        let mut count = 0;
        for choice in choices {
            first.push(count);
            if let Choice::Block { rows, columns } = *choice {
                count += shape.height.div_ceil(rows) * shape.width.div_ceil(columns);
            }
        }
        groups.voters = vec![Vec::new(); count];
        let mut quadratics = 0;
        for (channel, choice) in choices.iter().enumerate() {
            let gate = match *choice {
                Choice::Block { rows, columns } => {
                    self.add_plane(groups, shape, (rows, columns), first[channel], Some(0));
                    continue;
                }
                Choice::Copy { of } => {
                    if let Some(Choice::Block { rows, columns }) = choices.get(of) {
                        self.add_plane(groups, shape, (*rows, *columns), first[of], None);
                    }
                    continue;
                }
                Choice::Quadratic => {
                    quadratics += 1;
                    Gate::Quadratic(quadratics - 1)
                }
                Choice::Identity => Gate::Keep,
                Choice::Zero => Gate::Drop,
            };
            groups.gates.resize(groups.gates.len() + shape.pixels(), gate);
        }
    }

    /// Adds the gates of one channel, whose groups begin at `first`, and its votes where it has any: `place` is its number
    /// within the block.
    fn add_plane(
        &self,
        groups: &mut Groups,
        shape: Shape,
        (rows, columns): (usize, usize),
        first: usize,
        place: Option<usize>,
    ) {
        let across = shape.width.div_ceil(columns);
        for y in 0..shape.height {
            for x in 0..shape.width {
                let group = first + y / rows * across + x / columns;
                let index = groups.gates.len() as u32;
                groups.gates.push(Gate::Group(group as u32));
                let Some(place) = place else { continue };
                // Blocks at the edge are smaller, and so their middle lies elsewhere.
                let (height, width) =
                    (rows.min(shape.height - y / rows * rows), columns.min(shape.width - x / columns * columns));
                let at = (place, y % rows, x % columns);
                let votes = match self.decision {
                    Decision::Corner => at == (0, 0, 0),
                    Decision::Centre => at == (0, height / 2, width / 2),
                    Decision::Mean | Decision::Largest | Decision::Learned => true,
                };
                if votes && let Some(voters) = groups.voters.get_mut(group) {
                    voters.push((index, ((place * rows + at.1) * columns + at.2) as u32));
                }
            }
        }
    }
}

/// What the reference knows of a batch.
struct Shared<'a> {
    layer: &'a SharedRelu,
    groups: Groups,
    /// Weights of a learned decision, and coefficients of quadratic channels.
    weights: &'a [f64],
    coefficients: &'a [f64],
    /// λ of annealed sharing.
    sharing: f64,
}

impl<'a> Shared<'a> {
    fn new(layer: &'a SharedRelu, at: &At<'a>) -> Self {
        let is_learned = usize::from(layer.decision == Decision::Learned);
        let tensor = |index: usize| at.params.get(index).map_or(&[][..], Vec::as_slice);
        Self {
            layer,
            groups: layer.groups(at.input),
            weights: if is_learned == 1 { tensor(0) } else { &[] },
            coefficients: tensor(is_learned),
            sharing: f64::from(at.easing.sharing),
        }
    }

    /// The vote of each group of a sample, and what each voter's value is multiplied by in it.
    fn votes(&self, x: &[f64]) -> Vec<(f64, Vec<f64>)> {
        let vote = |voters: &Vec<(u32, u32)>| {
            let values = || voters.iter().map(|(i, _)| x[*i as usize]);
            let shares: Vec<f64> = match self.layer.decision {
                // The one voter of a representative has the whole vote.
                Decision::Corner | Decision::Centre | Decision::Mean => vec![1.0 / voters.len() as f64; voters.len()],
                Decision::Learned => voters.iter().map(|(_, place)| self.weights[*place as usize]).collect(),
                Decision::Largest => {
                    let larger = |best: usize, i: usize| if at(voters, x, i) > at(voters, x, best) { i } else { best };
                    let most = (0..voters.len()).reduce(larger);
                    (0..voters.len()).map(|i| f64::from(u8::from(Some(i) == most))).collect()
                }
            };
            (values().zip(&shares).map(|(x, share)| x * share).sum(), shares)
        };
        fn at(voters: &[(u32, u32)], x: &[f64], i: usize) -> f64 {
            x[voters[i].0 as usize].abs()
        }
        self.groups.voters.iter().map(vote).collect()
    }

    fn triple(&self, quadratic: u32) -> [f64; 3] {
        std::array::from_fn(|i| self.coefficients[3 * quadratic as usize + i])
    }
}

impl Operation for SharedRelu {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        input.expect_channels(&self.name, self.channels)?;
        self.check(input).map(|()| input)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        let (places, quadratics) = (self.places(), self.quadratics());
        let mut specs = Vec::new();
        if self.decision == Decision::Learned {
            // The mean.
            let init = Init::constant(1.0 / places as f32);
            specs.push(ParamSpec::new(&self.name, "vote", vec![places], ParamKind::Vote, init));
        }
        if quadratics > 0 {
            let (kind, init) = (ParamKind::Coefficient, Init::Rows(REACT.to_vec()));
            specs.push(ParamSpec::new(&self.name, "quadratic", vec![quadratics, 3], kind, init));
        }
        specs
    }

    fn cost(&self, _: Shape, output: Shape) -> OpCost {
        let squares = self.quadratics() * output.pixels();
        OpCost { relus: self.decisions(output) as u64, squares: squares as u64, macs: 0 }
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let shared = Shared::new(self, at);
        let mut y = Vec::with_capacity(inputs[0].len());
        for x in inputs[0].chunks_exact(at.input.len()) {
            let votes = shared.votes(x);
            y.extend(x.iter().zip(&shared.groups.gates).map(|(&x, gate)| {
                let y = match *gate {
                    Gate::Group(group) => x * f64::from(u8::from(votes[group as usize].0 > 0.0)),
                    Gate::Keep => x,
                    Gate::Drop => x * 0.0,
                    Gate::Quadratic(at) => {
                        let [a, b, c] = shared.triple(at);
                        a * x * x + b * x + c
                    }
                };
                shared.sharing * y + (1.0 - shared.sharing) * relu(x)
            }));
        }
        y
    }

    /// Decisions are constants, unless they are learned or the pass is eased by a straight-through gradient: then as if each
    /// were clamp(vote/2 + 1/2, 0, 1).
    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let shared = Shared::new(self, at);
        let passes = at.easing.straight_through || self.decision == Decision::Learned;
        let (mut d_weights, mut d_coefficients) =
            (vec![0.0; shared.weights.len()], vec![0.0; shared.coefficients.len()]);
        let mut input = Vec::with_capacity(dy.len());
        for (x, dy) in inputs[0].chunks_exact(at.input.len()).zip(dy.chunks_exact(at.input.len())) {
            let votes = shared.votes(x);
            let mut d_votes = vec![0.0; votes.len()];
            let mut dx: Vec<f64> =
                dy.iter().zip(x).map(|(dy, &x)| if x > 0.0 { (1.0 - shared.sharing) * dy } else { 0.0 }).collect();
            for (i, gate) in shared.groups.gates.iter().enumerate() {
                let dy = shared.sharing * dy[i];
                match *gate {
                    Gate::Group(group) => {
                        let vote = votes[group as usize].0;
                        dx[i] += if vote > 0.0 { dy } else { 0.0 };
                        d_votes[group as usize] += if vote.abs() <= 1.0 { 0.5 * dy * x[i] } else { 0.0 };
                    }
                    Gate::Keep => dx[i] += dy,
                    Gate::Drop => {}
                    Gate::Quadratic(at) => {
                        let [a, b, _] = shared.triple(at);
                        dx[i] += (2.0 * a * x[i] + b) * dy;
                        let by = [x[i] * x[i], x[i], 1.0];
                        (0..3).for_each(|power| d_coefficients[3 * at as usize + power] += by[power] * dy);
                    }
                }
            }
            for ((voters, (_, shares)), d_vote) in
                shared.groups.voters.iter().zip(&votes).zip(d_votes).filter(|_| passes)
            {
                for ((index, place), share) in voters.iter().zip(shares) {
                    dx[*index as usize] += share * d_vote;
                    if let Some(weight) = d_weights.get_mut(*place as usize) {
                        *weight += x[*index as usize] * d_vote;
                    }
                }
            }
            input.extend(dx);
        }
        Gradient {
            inputs: vec![input],
            params: [d_weights, d_coefficients].into_iter().filter(|d| !d.is_empty()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(grouping: Grouping, decision: Decision) -> SharedRelu {
        SharedRelu { name: "r".to_owned(), channels: 2, grouping, decision }
    }

    #[test]
    fn groups_cover_a_ragged_map() {
        let shape = Shape::new(2, 3, 5);
        let shared = layer(Grouping::Blocks { channels: 1, rows: 2, columns: 2 }, Decision::Mean);
        let groups = shared.groups(shape);
        assert_eq!((groups.count(), shared.decisions(shape)), (12, 12));
        let of: Vec<u32> = groups.gates.iter().map(|g| if let Gate::Group(g) = g { *g } else { 99 }).collect();
        assert_eq!(&of[..16], [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6]);
        assert_eq!(groups.voters.iter().map(Vec::len).sum::<usize>(), shape.len());
        assert_eq!(groups.voters[0], [(0, 0), (1, 1), (5, 2), (6, 3)]);
    }

    #[test]
    fn every_group_has_one_representative() {
        for decision in [Decision::Corner, Decision::Centre] {
            let shared = layer(Grouping::Blocks { channels: 2, rows: 2, columns: 3 }, decision);
            assert!(shared.groups(Shape::new(2, 3, 5)).voters.iter().all(|voters| voters.len() == 1));
        }
    }

    #[test]
    fn choices_keep_copies_with_their_prototype() {
        let choices =
            vec![Choice::Copy { of: 1 }, Choice::Block { rows: 1, columns: 2 }, Choice::Quadratic, Choice::Zero];
        let shared = SharedRelu { channels: 4, ..layer(Grouping::Choices(choices), Decision::Mean) };
        let shape = Shape::new(4, 1, 2);
        assert_eq!(shared.check(shape), Ok(()));
        let groups = shared.groups(shape);
        let gates = [Gate::Group(0), Gate::Group(0), Gate::Group(0), Gate::Group(0)];
        assert_eq!(groups.gates[..4], gates);
        assert_eq!(groups.gates[4..], [Gate::Quadratic(0), Gate::Quadratic(0), Gate::Drop, Gate::Drop]);
        assert_eq!((groups.voters, shared.decisions(shape)), (vec![vec![(2, 0), (3, 1)]], 1));
        let wrong = layer(Grouping::Choices(vec![Choice::Copy { of: 1 }, Choice::Identity]), Decision::Mean);
        assert!(wrong.check(Shape::new(2, 1, 1)).is_err());
    }
}
