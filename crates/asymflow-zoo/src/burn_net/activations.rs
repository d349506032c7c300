//! Fixed functions, quadratics and shared decisions on a burn device.

use burn::tensor::activation::{relu, silu, tanh};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{BurnNetError, Pass};
use crate::graph::Node;
use crate::ops::{Decision, Form, Gate, Op, Pointwise, Quadratic, RangePenalty, SharedRelu};
use crate::shape::Shape;

/// The groups of a layer as indices. Groups have as many places as the largest; smaller ones repeat their first voter there
/// with weight zero.
#[derive(Debug)]
pub(super) struct GroupTable {
    /// Voter in each place, groups × places.
    voters: Tensor<1, Int>,
    /// Place in the block of each voter.
    places: Tensor<1, Int>,
    /// 1/size of the group for each voter, 0 where there is none: groups × places.
    shares: Tensor<2>,
    /// For each activation its group, or one of the two constants behind the groups: kept, dropped.
    gates: Tensor<1, Int>,
    /// For each activation its quadratic; 0 where it has none, which `dropped` then masks.
    quadratics: Option<(Tensor<1, Int>, Tensor<1>)>,
    groups: usize,
    width: usize,
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

impl GroupTable {
    /// The table of a node that shares decisions.
    pub(super) fn of(node: &Node, device: &Device) -> Option<Self> {
        if let Op::SharedRelu(shared) = &node.op { Some(Self::new(shared, node.input, device)) } else { None }
    }

    fn new(shared: &SharedRelu, shape: Shape, device: &Device) -> Self {
        let groups = shared.groups(shape);
        let count = groups.count();
        let width = groups.voters.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let (mut voters, mut places, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for group in &groups.voters {
            let first = group.first().copied().unwrap_or_default();
            for at in 0..width {
                let (voter, place) = group.get(at).copied().unwrap_or(first);
                voters.push(i64::from(voter));
                places.push(i64::from(place));
                shares.push(if at < group.len() { 1.0 / group.len() as f32 } else { 0.0 });
            }
        }
        let gate = |gate: &Gate| match gate {
            Gate::Group(group) => i64::from(*group),
            Gate::Keep => count as i64,
            Gate::Drop | Gate::Quadratic(_) => count as i64 + 1,
        };
        let quadratic = |gate: &Gate| if let Gate::Quadratic(at) = gate { (i64::from(*at), 1.0) } else { (0, 0.0) };
        let quadratics = (shared.quadratics() > 0).then(|| {
            let (at, mask): (Vec<i64>, Vec<f32>) = groups.gates.iter().map(quadratic).unzip();
            let len = mask.len();
            (indices(at, device), Tensor::from_data(TensorData::new(mask, [len]), device))
        });
        Self {
            voters: indices(voters, device),
            places: indices(places, device),
            shares: Tensor::from_data(TensorData::new(shares, [count, width]), device),
            gates: indices(groups.gates.iter().map(gate).collect(), device),
            quadratics,
            groups: count,
            width,
        }
    }

    /// The vote of every group, samples × groups, of activations samples × values. Learned votes are sums weighted by `vote`.
    fn votes(&self, x: Tensor<2>, decision: Decision, vote: Option<Tensor<1>>) -> Tensor<2> {
        let samples = x.dims()[0];
        let places = x.select(1, self.voters.clone()).reshape([samples, self.groups, self.width]);
        let weighted = |weights: Tensor<2>| (places.clone() * weights.unsqueeze::<3>()).sum_dim(2);
        let votes = match (decision, vote) {
            (Decision::Largest, _) => {
                let (most, least) = (places.clone().max_dim(2), places.clone().min_dim(2));
                let is_most = (most.clone() + least.clone()).greater_elem(0.0).float().detach();
                most * is_most.clone() + least * (-is_most + 1.0)
            }
            (Decision::Learned, Some(vote)) => {
                let weights = vote.select(0, self.places.clone()).reshape([self.groups, self.width]);
                weighted(weights * self.shares.clone().greater_elem(0.0).float())
            }
            // Learned weights are always given.
            (Decision::Corner | Decision::Centre | Decision::Mean | Decision::Learned, _) => {
                weighted(self.shares.clone())
            }
        };
        votes.reshape([samples, self.groups])
    }

    /// The decision at every activation, samples × values, of those of the groups.
    fn spread(&self, decisions: Tensor<2>) -> Tensor<2> {
        let samples = decisions.dims()[0];
        let device = decisions.device();
        let constants = Tensor::cat(vec![Tensor::ones([samples, 1], &device), Tensor::zeros([samples, 1], &device)], 1);
        Tensor::cat(vec![decisions, constants], 1).select(1, self.gates.clone())
    }
}

pub(super) fn pointwise(function: Pointwise, x: Tensor<4>) -> Tensor<4> {
    match function {
        Pointwise::Silu => silu(x),
        Pointwise::Tanh => tanh(x),
    }
}

impl Pass<'_> {
    pub(super) fn quadratic(
        &mut self,
        layer: &Quadratic,
        first: usize,
        x: Tensor<4>,
    ) -> Result<Tensor<4>, BurnNetError> {
        if let Some(range) = self.easing.range {
            self.penalties.push(penalty(range, x.clone()));
        }
        let weight = self.param::<1>(first)?;
        let coefficient = |at: usize| weight.clone().narrow(0, at, 1).reshape([1, 1, 1, 1]);
        let square = |x: Tensor<4>| x.clone() * x;
        Ok(match layer.form {
            Form::Kervolution { .. } => square(x + coefficient(0)),
            Form::Scaled { .. } => square(x + coefficient(1)) * coefficient(0),
            Form::Free { .. } => (x.clone() * coefficient(0) + coefficient(1)) * x + coefficient(2),
            Form::Hermite { .. } => {
                let bases = layer.form.bases().unwrap_or_default();
                self.hermite(layer, bases, first, x)?
            }
        })
    }

    fn hermite(
        &mut self,
        layer: &Quadratic,
        bases: [f32; 2],
        at: usize,
        x: Tensor<4>,
    ) -> Result<Tensor<4>, BurnNetError> {
        let channels = layer.channels;
        let (scale, shift) = (self.param::<1>(at)?, self.param::<1>(at + 1)?);
        let second = (x.clone() * x.clone() - 1.0) * std::f32::consts::FRAC_1_SQRT_2;
        let device = x.device();
        let plain = || (Tensor::<1>::ones([channels], &device), Tensor::<1>::zeros([channels], &device));
        let (one, zero) = plain();
        let first = self.normalise(&layer.name, x, one, zero, at + 2)? * bases[0];
        let (one, zero) = plain();
        let second = self.normalise(&layer.name, second, one, zero, at + 4)? * bases[1];
        let by_channel = |tensor: Tensor<1>| tensor.reshape([1, channels, 1, 1]);
        Ok((first + second) * by_channel(scale) + by_channel(shift))
    }

    /// The mean of the penalties of all quadratics.
    pub(super) fn penalty(&self) -> Option<Tensor<1>> {
        let sum = self.penalties.iter().cloned().reduce(|sum, penalty| sum + penalty)?;
        Some(sum / self.penalties.len() as f64)
    }

    pub(super) fn shared_relu(&self, layer: &SharedRelu, node: usize, x: Tensor<4>) -> Result<Tensor<4>, BurnNetError> {
        let missing = || BurnNetError::Device(format!("layer {} has no groups", layer.name));
        let table = self.groups.get(node).and_then(Option::as_ref).ok_or_else(missing)?;
        let mut params = self.graph.nodes[node].params.clone();
        let mut next = |is_there: bool| if is_there { params.next() } else { None };
        let vote = next(layer.decision == Decision::Learned).map(|at| self.param::<1>(at)).transpose()?;
        let coefficients = next(layer.quadratics() > 0).map(|at| self.param::<2>(at)).transpose()?;
        let [samples, channels, height, width] = x.dims();
        let flat = x.reshape([samples, channels * height * width]);
        let passes_gradient = self.train && (self.easing.straight_through || vote.is_some());
        let decisions = if passes_gradient {
            let votes = table.votes(flat.clone(), layer.decision, vote);
            let soft = (votes.clone() * 0.5 + 0.5).clamp(0.0, 1.0);
            let hard = votes.greater_elem(0.0).float().detach();
            hard - soft.clone().detach() + soft
        } else {
            table.votes(flat.clone().detach(), layer.decision, vote).greater_elem(0.0).float()
        };
        let mut y = flat.clone() * table.spread(decisions);
        if let (Some(coefficients), Some((at, mask))) = (coefficients, &table.quadratics) {
            let [a, b, c] = [0, 1, 2].map(|column| {
                let values = coefficients.clone().narrow(1, column, 1).reshape([layer.quadratics()]);
                values.select(0, at.clone()).reshape([1, channels * height * width])
            });
            let quadratic = (flat.clone() * a + b) * flat.clone() + c;
            y = y + quadratic * mask.clone().reshape([1, channels * height * width]);
        }
        let sharing = f64::from(self.easing.sharing);
        if self.train && sharing < 1.0 {
            y = y * sharing + relu(flat) * (1.0 - sharing);
        }
        Ok(y.reshape([samples, channels, height, width]))
    }
}

/// The penalty of one layer: the sum over values, the mean over samples. Its gradient is that of
/// [`RangePenalty::gradient`].
fn penalty(range: RangePenalty, x: Tensor<4>) -> Tensor<1> {
    let samples = x.dims()[0] as f64;
    let limit = f64::from(range.limit);
    let saturated = f64::from(RangePenalty::SATURATION);
    let ratio = x.clone() / limit;
    let inside = ratio.clone().detach().clamp(-saturated, saturated);
    // Linear beyond saturation, with the slope that it has there: weight · exponent · inside^(exponent − 1) · ratio.
    let slope = inside.powi_scalar(range.exponent - 1) * f64::from(range.exponent) * f64::from(range.weight);
    (slope * ratio).sum() / samples
}
