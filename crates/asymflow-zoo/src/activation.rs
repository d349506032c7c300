//! Activations made for secret shares and ciphertexts: trained quadratics in place of ReLU (Aremu and Nandakumar, SaTML
//! 2023; Aremu, arXiv 2312.15229), and groups of activations that share one sign decision (Helbitz and Avidan, arXiv
//! 2101.11835; Gorski, Jevnisek and Avidan, arXiv 2304.10442).

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::network::{NetworkError, ParamKind, ParamSpec, Shape};

/// ε of the normalisations of [`Form::Hermite`], as of every batch normalisation.
pub const HERMITE_EPSILON: f32 = 1e-5;

/// Initial a, b and c of [`Form::REACT`].
const REACT: [f32; 3] = [0.009, 0.5, 0.47];

/// A trained polynomial of degree two in place of a ReLU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quadratic {
    /// Parameter prefix.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// What is trained.
    pub form: Form,
}

/// How a [`Quadratic`] is parameterised; the numbers are initial values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// y = (x + c)²: after a convolution, the polynomial kervolution of PolyKervNets. Weight `\[c\]`.
    Kervolution {
        /// c_p.
        c: f32,
    },
    /// y = a (x + c)²: regularised kervolution (RPKN). Weight `\[a, c\]`.
    Scaled {
        /// a_p.
        a: f32,
        /// c_p.
        c: f32,
    },
    /// y = a x² + b x + c: the activation form (ReactPKN). Weight `\[a, b, c\]`.
    Free {
        /// a_p.
        a: f32,
        /// b_p.
        b: f32,
        /// c_p.
        c: f32,
    },
    /// y = γ (N₁(x) / 2 + s N₂((x² − 1) / √2) / √(4π)) + β for each channel, N₁ and N₂ batch normalisations without scale or
    /// shift: with s = 1 ReLU's expansion in Hermite polynomials to degree two, each basis normalised by itself (AESPA, 2022).
    /// The constant basis would be normalised to zero and is left out. Weight γ, bias β.
    Hermite {
        /// s. Below 1 the activation is nearer to linear, and fewer values outgrow the running statistics from layer to
        /// layer.
        second: f32,
    },
}

impl Form {
    /// R-PKN's activation as published: nearly x/2 at the start, which is what keeps deep networks stable.
    pub const REACT: Self = Self::Free { a: REACT[0], b: REACT[1], c: REACT[2] };
    /// The normalised Hermite expansion as published.
    pub const HERMITE: Self = Self::Hermite { second: 1.0 };
    /// The regularised kervolution as published.
    pub const RPKN: Self = Self::Scaled { a: 0.009, c: 0.47 };

    /// Initial values of the trained weight; none for [`Form::Hermite`], which starts at γ = 1, β = 0.
    pub fn initial(&self) -> Vec<f32> {
        match *self {
            Self::Kervolution { c } => vec![c],
            Self::Scaled { a, c } => vec![a, c],
            Self::Free { a, b, c } => vec![a, b, c],
            Self::Hermite { .. } => Vec::new(),
        }
    }

    /// What the two normalised bases of [`Form::Hermite`] are multiplied by: 1/2 and s/√(4π).
    pub const fn bases(self) -> Option<[f32; 2]> {
        match self {
            Self::Hermite { second } => Some([0.5, second * 0.282_094_8]),
            _ => None,
        }
    }
}

/// Coefficients of y = a x² + b x + c.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// Of x².
    pub a: f32,
    /// Of x.
    pub b: f32,
    /// Constant.
    pub c: f32,
}

impl Quadratic {
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if is_finite(&self.form.initial()) && self.form.bases().is_none_or(|bases| is_finite(&bases)) {
            Ok(())
        } else {
            Err(NetworkError::OutOfRange { layer: self.name.clone(), what: "initial coefficient" })
        }
    }

    pub(crate) fn parameters(&self, out: &mut Vec<ParamSpec>) {
        let name = &self.name;
        let spec = |suffix: &str, len, kind| ParamSpec { name: format!("{name}.{suffix}"), shape: vec![len], kind };
        match self.form {
            Form::Hermite { .. } => out.extend([
                spec("weight", self.channels, ParamKind::NormScale),
                spec("bias", self.channels, ParamKind::NormShift),
                spec("first_mean", self.channels, ParamKind::RunningMean),
                spec("first_var", self.channels, ParamKind::RunningVar),
                spec("second_mean", self.channels, ParamKind::RunningMean),
                spec("second_var", self.channels, ParamKind::RunningVar),
            ]),
            form => {
                let initial = form.initial();
                let mut values = [0.0; 3];
                values.iter_mut().zip(&initial).for_each(|(value, initial)| *value = *initial);
                out.push(spec("weight", initial.len(), ParamKind::Coefficient(values)));
            }
        }
    }

    /// Tensors of parameters that the layer has.
    pub const fn tensors(&self) -> usize {
        if matches!(self.form, Form::Hermite { .. }) { 6 } else { 1 }
    }

    /// What is computed in evaluation, for each channel, or once where all channels share it. `params` are the layer's tensors
    /// in the order of [`crate::Network::parameters`].
    pub fn coefficients(&self, params: &[&[f32]]) -> Vec<Coefficients> {
        match (self.form, params) {
            (Form::Kervolution { .. }, [[c]]) => vec![Coefficients { a: 1.0, b: 2.0 * c, c: c * c }],
            (Form::Scaled { .. }, [[a, c]]) => vec![Coefficients { a: *a, b: 2.0 * a * c, c: a * c * c }],
            (Form::Free { .. }, [[a, b, c]]) => vec![Coefficients { a: *a, b: *b, c: *c }],
            (Form::Hermite { .. }, [gamma, beta, first_mean, first_var, second_mean, second_var]) => (0..self.channels)
                .map(|i| {
                    let inverse = |variance: f32| 1.0 / (variance + HERMITE_EPSILON).sqrt();
                    let [first, second] = self.form.bases().unwrap_or_default();
                    let (first, second) = (first * inverse(first_var[i]), second * inverse(second_var[i]));
                    let half = std::f32::consts::FRAC_1_SQRT_2;
                    let constant = -first * first_mean[i] - second * (half + second_mean[i]);
                    Coefficients { a: gamma[i] * second * half, b: gamma[i] * first, c: beta[i] + gamma[i] * constant }
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

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
    pub(crate) fn check(&self, input: Shape) -> Result<(), NetworkError> {
        let out_of_range = |what| Err(NetworkError::OutOfRange { layer: self.name.clone(), what });
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
                if choices.len() != input.channels {
                    let (expected, got) = (choices.len(), input.channels);
                    return Err(NetworkError::Channels { layer: self.name.clone(), expected, got });
                }
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
                        _ => {}
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

    pub(crate) fn parameters(&self, out: &mut Vec<ParamSpec>) {
        if self.decision == Decision::Learned {
            let shape = vec![self.places()];
            out.push(ParamSpec { name: format!("{}.vote", self.name), shape, kind: ParamKind::Vote });
        }
        if self.quadratics() > 0 {
            let (name, shape) = (format!("{}.quadratic", self.name), vec![self.quadratics(), 3]);
            out.push(ParamSpec { name, shape, kind: ParamKind::Coefficient(REACT) });
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
                    _ => 0,
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

/// What eases the training of these activations. The default is the activation as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Easing {
    /// λ of annealed sharing: y = λ·(the layer) + (1 − λ)·ReLU, of [`SharedRelu`] layers; 1 in evaluation.
    pub sharing: f32,
    /// Whether a group's decision passes a gradient to its votes, as if it were clamp(vote/2 + 1/2, 0, 1). Published networks
    /// hold decisions constant.
    pub straight_through: bool,
    /// A penalty on large inputs of quadratics.
    pub range: Option<RangePenalty>,
}

impl Default for Easing {
    fn default() -> Self {
        Self { sharing: 1.0, straight_through: false, range: None }
    }
}

/// weight · Σ |x / limit|^exponent, the sum over the inputs of a [`Quadratic`], the mean over samples and layers: what keeps
/// activations where a quadratic is tame (after PILLAR, USENIX Security 2024).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangePenalty {
    /// Magnitude from which on it grows fast.
    pub limit: f32,
    /// Weight beside the loss.
    pub weight: f32,
    /// Even exponent.
    pub exponent: i32,
}

impl RangePenalty {
    /// Ratio x / limit beyond which the gradient stays as it is there, so that one outlier cannot overflow a step.
    pub const SATURATION: f32 = 4.0;

    /// The penalty's gradient with respect to x, before it is divided by samples and layers.
    pub fn gradient(&self, x: f32) -> f32 {
        let ratio = (x / self.limit).clamp(-Self::SATURATION, Self::SATURATION);
        self.weight * self.exponent as f32 * ratio.powi(self.exponent - 1) / self.limit
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

    #[test]
    fn hermite_folds_to_the_published_quadratic() {
        // For a channel that is N(0, 1): γ (x/2 + (x² − 1)/√(8π)) + β.
        let folded = |form| {
            let layer = Quadratic { name: "q".to_owned(), channels: 1, form };
            layer.coefficients(&[&[1.0], &[0.398_942_3], &[0.0], &[1.0], &[0.0], &[1.0]])[0]
        };
        let relu = Coefficients { a: 0.199_471, b: 0.5, c: 0.199_471 };
        let milder = Coefficients { a: 0.25 * 0.199_471, b: 0.5, c: 0.398_942 - 0.25 * 0.199_471 };
        for (form, relu) in [(Form::HERMITE, relu), (Form::Hermite { second: 0.25 }, milder)] {
            let got = folded(form);
            let off = [got.a - relu.a, got.b - relu.b, got.c - relu.c].map(f32::abs);
            assert!(off.iter().all(|&off| off < 1e-4), "{got:?}");
        }
    }
}
