//! Quadratics and shared decisions.

use asymflow_zoo::graph::Node;
use asymflow_zoo::ops::Op;
use asymflow_zoo::{
    network::Shape,
    ops::{Decision, Form, Gate, Quadratic, RangePenalty, SharedRelu},
};
use tch::{Device, Kind, Tensor};

use crate::pass::Nodes;

/// The groups of a layer as indices. Groups have as many places as the largest; smaller ones repeat their first voter there
/// with weight zero.
pub(crate) struct GroupTable {
    /// Voter in each place, groups × places.
    voters: Tensor,
    /// Place in the block of each voter.
    places: Tensor,
    /// 1/size of the group for each voter, 0 where there is none: groups × places.
    shares: Tensor,
    /// For each activation its group, or one of the two constants behind the groups: kept, dropped.
    gates: Tensor,
    /// For each activation its quadratic; 0 where it has none, which the second, a mask, then hides.
    quadratics: Option<(Tensor, Tensor)>,
    groups: i64,
    width: i64,
}

impl GroupTable {
    /// The table of a node that shares decisions.
    pub fn of(node: &Node, device: Device) -> Option<Self> {
        if let Op::SharedRelu(shared) = &node.op { Some(Self::new(shared, node.input, device)) } else { None }
    }

    fn new(shared: &SharedRelu, shape: Shape, device: Device) -> Self {
        let groups = shared.groups(shape);
        let count = groups.count() as i64;
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
            Gate::Keep => count,
            Gate::Drop | Gate::Quadratic(_) => count + 1,
        };
        let quadratic = |gate: &Gate| if let Gate::Quadratic(at) = gate { (i64::from(*at), 1.0f32) } else { (0, 0.0) };
        let (at, mask): (Vec<i64>, Vec<f32>) = groups.gates.iter().map(quadratic).unzip();
        let numbers = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let floats = |floats: &[f32]| Tensor::from_slice(floats).to_device(device);
        Self {
            voters: numbers(&voters),
            places: numbers(&places),
            shares: floats(&shares).view([count, width as i64]),
            gates: numbers(&groups.gates.iter().map(gate).collect::<Vec<_>>()),
            quadratics: (shared.quadratics() > 0).then(|| (numbers(&at), floats(&mask))),
            groups: count,
            width: width as i64,
        }
    }

    /// The vote of every group, samples × groups, of activations samples × values. Learned votes are sums weighted by `vote`.
    fn votes(&self, x: &Tensor, decision: Decision, vote: Option<&Tensor>) -> Tensor {
        let places = x.index_select(1, &self.voters).view([-1, self.groups, self.width]);
        let weighted = |weights: &Tensor| (&places * weights.unsqueeze(0)).sum_dim_intlist(2, false, Kind::Float);
        match (decision, vote) {
            (Decision::Largest, _) => {
                let (most, least) = (places.amax(2, false), places.amin(2, false));
                let is_most = (&most + &least).detach().gt(0.0).to_kind(Kind::Float);
                most * &is_most + least * (1.0 - &is_most)
            }
            (Decision::Learned, Some(vote)) => {
                let weights = vote.index_select(0, &self.places).view([self.groups, self.width]);
                weighted(&(weights * self.shares.gt(0.0).to_kind(Kind::Float)))
            }
            // Learned weights are always given.
            (Decision::Corner | Decision::Centre | Decision::Mean | Decision::Learned, _) => weighted(&self.shares),
        }
    }

    /// The decision at every activation, samples × values, of those of the groups.
    fn spread(&self, decisions: &Tensor) -> Tensor {
        let samples = decisions.size()[0];
        let constant = |value: f64| Tensor::full([samples, 1], value, (Kind::Float, decisions.device()));
        Tensor::cat(&[decisions, &constant(1.0), &constant(0.0)], 1).index_select(1, &self.gates)
    }
}

impl Nodes<'_> {
    pub(crate) fn quadratic(&mut self, layer: &Quadratic, first: usize, x: Tensor) -> Tensor {
        if let Some(range) = self.easing.range {
            self.penalties.push(penalty(range, &x));
        }
        let weight = self.param(first);
        let coefficient = |at: i64| weight.narrow(0, at, 1);
        match layer.form {
            Form::Kervolution { .. } => (x + coefficient(0)).square(),
            Form::Scaled { .. } => (x + coefficient(1)).square() * coefficient(0),
            Form::Free { .. } => (&x * coefficient(0) + coefficient(1)) * x + coefficient(2),
            Form::Hermite { .. } => self.hermite(layer, first, &x),
        }
    }

    fn hermite(&self, layer: &Quadratic, at: usize, x: &Tensor) -> Tensor {
        let bases = layer.form.bases().unwrap_or_default().map(f64::from);
        let second = (x.square() - 1.0) * std::f64::consts::FRAC_1_SQRT_2;
        let first = self.normalise(x, None, at + 2) * bases[0];
        let second = self.normalise(&second, None, at + 4) * bases[1];
        let by_channel = |at: usize| self.param(at).view([1, layer.channels as i64, 1, 1]);
        (first + second) * by_channel(at) + by_channel(at + 1)
    }

    /// The mean of the penalties of all quadratics.
    pub(crate) fn penalty(&mut self) -> Option<Tensor> {
        let count = self.penalties.len() as f64;
        let sum = self.penalties.drain(..).reduce(|sum, penalty| sum + penalty)?;
        Some(sum / count)
    }

    pub(crate) fn shared_relu(&mut self, layer: &SharedRelu, node: &Node, index: usize, x: Tensor) -> Tensor {
        // Made with the network, of the same nodes.
        let Some(table) = self.groups.get(index).and_then(Option::as_ref) else { return x };
        let mut params = node.params.clone();
        let mut next = |is_there: bool| if is_there { params.next().map(|at| self.param(at)) } else { None };
        let vote = next(layer.decision == Decision::Learned);
        let coefficients = next(layer.quadratics() > 0);
        let size = x.size();
        let flat = x.reshape([size[0], -1]);
        let passes_gradient = self.train && (self.easing.straight_through || vote.is_some());
        let decisions = if passes_gradient {
            let votes = table.votes(&flat, layer.decision, vote);
            let soft = (&votes * 0.5 + 0.5).clamp(0.0, 1.0);
            votes.detach().gt(0.0).to_kind(Kind::Float) - soft.detach() + soft
        } else {
            table.votes(&flat.detach(), layer.decision, vote).gt(0.0).to_kind(Kind::Float)
        };
        let mut y = &flat * table.spread(&decisions);
        if let (Some(coefficients), Some((at, mask))) = (coefficients, &table.quadratics) {
            let [a, b, c] = [0, 1, 2].map(|column| coefficients.select(1, column).index_select(0, at).unsqueeze(0));
            y += ((&flat * a + b) * &flat + c) * mask.unsqueeze(0);
        }
        let sharing = f64::from(self.easing.sharing);
        if self.train && sharing < 1.0 {
            y = y * sharing + flat.relu() * (1.0 - sharing);
        }
        y.reshape(size.as_slice())
    }
}

/// The penalty of one layer: the sum over values, the mean over samples. Its gradient is that of
/// [`RangePenalty::gradient`].
fn penalty(range: RangePenalty, x: &Tensor) -> Tensor {
    let samples = x.size()[0] as f64;
    let saturated = f64::from(RangePenalty::SATURATION);
    let ratio = x / f64::from(range.limit);
    // Linear beyond saturation, with the slope that it has there: weight · exponent · inside^(exponent − 1) · ratio.
    let slope = ratio.detach().clamp(-saturated, saturated).pow_tensor_scalar(i64::from(range.exponent) - 1);
    let factor = f64::from(range.exponent) * f64::from(range.weight) / samples;
    (slope * ratio).sum(Kind::Float) * factor
}
