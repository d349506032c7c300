//! The parameters of a network inside the trusted part, with their gradients and momentum.

use asymflow_zoo::ops::NORM_MOMENTUM;
use asymflow_zoo::{
    Network, Weights,
    ops::{ParamSpec, rate_factors},
    weights::{SgdStep, WeightsError},
};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::error::EngineError;
use crate::streamed::is_streamed;

/// Values of a tensor that a task steps.
const PIECE: usize = 1 << 12;

/// Values, gradients and optimiser state, indexed as [`Network::parameters`]. Gradients and momentum are there from the
/// first training pass on: inference has no use for them, and they take twice the memory of the weights.
#[derive(Clone, Debug)]
pub struct Params {
    specs: Vec<ParamSpec>,
    values: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    momentum: Vec<Vec<f32>>,
}

impl Params {
    /// Parameters with the given weights, not yet trained.
    ///
    /// # Errors
    /// Weights that do not fit the network.
    pub fn new(network: &Network, weights: &Weights) -> Result<Self, WeightsError> {
        weights.validate(network)?;
        let specs = network.parameters();
        let values: Vec<_> = specs.iter().map(|spec| weights.tensors[&spec.name].data.clone()).collect();
        Ok(Self { specs, values, gradients: Vec::new(), momentum: Vec::new() })
    }

    /// As [`Params::new`], without a copy of the weights.
    ///
    /// # Errors
    /// Weights that do not fit the network.
    pub fn moved(network: &Network, mut weights: Weights) -> Result<Self, WeightsError> {
        weights.validate(network)?;
        Ok(Self::take(network, &mut weights))
    }

    /// As [`Params::moved`], for weights of which those that are streamed are not there.
    ///
    /// # Errors
    /// One that is not streamed is missing or does not fit.
    pub fn kept(network: &Network, mut weights: Weights) -> Result<Self, WeightsError> {
        network.parameters().iter().filter(|p| !is_streamed(p.kind)).try_for_each(|p| weights.validate_one(p))?;
        Ok(Self::take(network, &mut weights))
    }

    pub(crate) fn absent(network: &Network) -> Self {
        Self::take(network, &mut Weights::default())
    }

    fn take(network: &Network, weights: &mut Weights) -> Self {
        let specs = network.parameters();
        let values = specs.iter().map(|p| weights.tensors.remove(&p.name).map_or_else(Vec::new, |t| t.data)).collect();
        Self { specs, values, gradients: Vec::new(), momentum: Vec::new() }
    }

    /// Makes gradients and momentum, all zero, unless they are there.
    pub fn train(&mut self) {
        if self.gradients.is_empty() {
            let zeros = || self.values.iter().map(|v| vec![0.0; v.len()]).collect();
            (self.gradients, self.momentum) = (zeros(), zeros());
        }
    }

    /// Names, shapes and kinds.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Values of parameter `index`, row-major; none where there is no such parameter, or it is streamed.
    pub fn values(&self, index: usize) -> &[f32] {
        self.values.get(index).map_or(&[], Vec::as_slice)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self, index: usize) -> &mut [f32] {
        self.values.get_mut(index).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Gradient of parameter `index` in the latest backward pass; none before [`Params::train`].
    pub fn gradient(&self, index: usize) -> &[f32] {
        self.gradients.get(index).map_or(&[], Vec::as_slice)
    }

    /// Every parameter with its values and its gradient, to be added to.
    pub fn gradients_mut(&mut self) -> impl Iterator<Item = (&ParamSpec, &[f32], &mut [f32])> {
        let tensors = self.specs.iter().zip(&self.values).zip(&mut self.gradients);
        tensors.map(|((spec, values), gradient)| (spec, values.as_slice(), gradient.as_mut_slice()))
    }

    /// Values and gradient of one parameter.
    pub(crate) fn pair(&mut self, index: usize) -> (&[f32], &mut [f32]) {
        (
            self.values.get(index).map_or(&[], Vec::as_slice),
            self.gradients.get_mut(index).map_or(&mut [], Vec::as_mut_slice),
        )
    }

    /// Weights of a fully connected layer from `index` on, and both its gradients.
    pub(crate) fn layer(&mut self, index: usize) -> (&[f32], [&mut [f32]; 2]) {
        let gradients = match self.gradients.get_mut(index..index + 2) {
            Some([weight, bias]) => [weight.as_mut_slice(), bias.as_mut_slice()],
            _ => [&mut [][..], &mut [][..]],
        };
        (self.values.get(index).map_or(&[], Vec::as_slice), gradients)
    }

    /// Replaces the gradients of the parameters from `first` on.
    pub(crate) fn set_gradients<const N: usize>(&mut self, first: usize, gradients: [Vec<f32>; N]) {
        self.gradients.iter_mut().skip(first).zip(gradients).for_each(|(old, new)| *old = new);
    }

    /// Moves running statistics towards those of a batch.
    pub(crate) fn move_running(&mut self, index: usize, batch: &[f32]) {
        for (running, &batch) in self.values_mut(index).iter_mut().zip(batch) {
            *running += NORM_MOMENTUM * (batch - *running);
        }
    }

    /// Brings in a parameter that is streamed.
    pub(crate) fn bring_in(&mut self, index: usize, values: Vec<f32>) -> Result<(), EngineError> {
        let expected = self.specs.get(index).map_or(0, ParamSpec::len);
        if values.len() != expected {
            return Err(EngineError::Length { what: "streamed weights", got: values.len(), expected });
        }
        self.values[index] = values;
        Ok(())
    }

    /// Lets a parameter that is streamed go again.
    pub(crate) fn let_go(&mut self, index: usize) {
        self.values[index] = Vec::new();
    }

    /// All values in the order of [`Network::parameters`].
    pub fn flat_values(&self) -> Vec<f32> {
        self.values.concat()
    }

    /// Replaces all values by flattened ones.
    ///
    /// # Errors
    /// Another number than that of all parameters, or a value that none can have; then nothing is replaced.
    pub fn set_flat_values(&mut self, flat: &[f32]) -> Result<(), WeightsError> {
        let expected = self.specs.iter().map(ParamSpec::len).sum();
        if flat.len() != expected {
            return Err(WeightsError::Length { expected, got: flat.len() });
        }
        let mut rest = flat;
        let parts: Vec<&[f32]> = self.specs.iter().filter_map(|spec| rest.split_off(..spec.len())).collect();
        self.specs.iter().zip(&parts).try_for_each(|(spec, part)| spec.check_values(part))?;
        self.values.iter_mut().zip(parts).for_each(|(values, part)| *values = part.to_vec());
        Ok(())
    }

    /// All momentum in the same order, zero before any training.
    pub fn flat_momentum(&self) -> Vec<f32> {
        if self.momentum.is_empty() {
            vec![0.0; self.values.iter().map(Vec::len).sum()]
        } else {
            self.momentum.concat()
        }
    }

    /// Replaces all momentum by flattened ones; by zero where there is none.
    ///
    /// # Errors
    /// Another number than that of all parameters; then nothing is replaced.
    pub fn set_flat_momentum(&mut self, flat: &[f32]) -> Result<(), WeightsError> {
        let expected = self.values.iter().map(Vec::len).sum();
        if !flat.is_empty() && flat.len() != expected {
            return Err(WeightsError::Length { expected, got: flat.len() });
        }
        self.train();
        let mut rest = flat;
        for momentum in &mut self.momentum {
            match rest.split_off(..momentum.len()) {
                Some(part) => momentum.copy_from_slice(part),
                None => momentum.fill(0.0),
            }
        }
        Ok(())
    }

    /// One step of SGD as [`SgdStep`] defines it, over every trained tensor.
    pub fn step(&mut self, sgd: SgdStep) {
        self.step_in_f16(sgd, &[]);
    }

    /// As [`Params::step`]; the tensors `rounded` move by their step rounded to binary16, which is returned in their order, so that
    /// whoever adds it holds the same numbers.
    pub fn step_in_f16(&mut self, sgd: SgdStep, rounded: &[usize]) -> Vec<Vec<f16>> {
        let shrink = self.shrinking(sgd.clip_norm);
        let factors = rate_factors(&self.specs, sgd.coefficient_rate, sgd.first_layer_rate);
        let mut steps: Vec<Vec<f16>> = rounded.iter().map(|&i| vec![f16::ZERO; self.values(i).len()]).collect();
        let tensors = self.specs.iter().zip(factors).zip(&mut self.values).zip(&self.gradients).zip(&mut self.momentum);
        for (index, ((((spec, factor), values), gradients), momentum)) in tensors.enumerate() {
            if !spec.kind.is_trained() {
                continue;
            }
            let learning_rate = sgd.learning_rate * factor;
            let moved = |m: f32, g: f32, w: f32| sgd.momentum * m + (g * shrink + sgd.weight_decay * w);
            let chunks =
                values.par_chunks_mut(PIECE).zip(gradients.par_chunks(PIECE)).zip(momentum.par_chunks_mut(PIECE));
            match rounded.iter().position(|&of| of == index).and_then(|at| steps.get_mut(at)) {
                None => chunks.for_each(|((w, g), m)| {
                    for ((w, &g), m) in w.iter_mut().zip(g).zip(m) {
                        *m = moved(*m, g, *w);
                        *w -= learning_rate * *m;
                    }
                }),
                Some(steps) => chunks.zip(steps.par_chunks_mut(PIECE)).for_each(|(((w, g), m), step)| {
                    let mut exact = [0.0; PIECE];
                    for (((w, &g), m), exact) in w.iter_mut().zip(g).zip(m).zip(&mut exact) {
                        *m = moved(*m, g, *w);
                        *exact = (-learning_rate * *m).clamp(-65504.0, 65504.0);
                    }
                    let exact = exact.get_mut(..step.len()).unwrap_or_default();
                    step.convert_from_f32_slice(exact);
                    step.convert_to_f32_slice(exact);
                    w.iter_mut().zip(exact).for_each(|(w, exact)| *w += *exact);
                }),
            }
        }
        steps
    }

    /// What brings the norm of all gradients together down to `limit`.
    fn shrinking(&self, limit: f32) -> f32 {
        if limit.is_infinite() {
            return 1.0;
        }
        let trained = self.specs.iter().zip(&self.gradients).filter(|(spec, _)| spec.kind.is_trained());
        let square = |values: &Vec<f32>| values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let norm = trained.map(|(_, gradients)| square(gradients)).sum::<f64>().sqrt() as f32;
        if norm > limit { limit / norm } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use asymflow_zoo::{by_name, models::replace::replace_activations, ops::ParamKind};

    use super::*;

    /// Every gradient is 1: how far each parameter moves at a learning rate of 1.
    fn moves(sgd: SgdStep) -> Vec<(ParamSpec, f32)> {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let network = replace_activations(&network, &"react".parse().unwrap()).unwrap();
        let mut params = Params::new(&network, &Weights::init(&network, 1)).unwrap();
        params.train();
        params.gradients.iter_mut().for_each(|gradient| gradient.fill(1.0));
        let before = params.values.clone();
        params.step(sgd);
        let moved = params.values.iter().zip(&before).map(|(after, before)| before[0] - after[0]);
        params.specs.into_iter().zip(moved).collect()
    }

    fn is_near(got: f32, expected: f32) -> bool {
        (got - expected).abs() < 1e-3 * expected.abs().max(1e-3)
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_is_not() {
        let plain = SgdStep::plain(1.0, 0.0, 0.0);
        let values: usize =
            moves(plain).iter().filter(|(spec, _)| spec.kind.is_trained()).map(|(spec, _)| spec.len()).sum();
        let norm = (values as f32).sqrt();
        for (limit, expected) in [(f32::INFINITY, 1.0), (2.0 * norm, 1.0), (norm / 4.0, 0.25)] {
            for (spec, moved) in moves(SgdStep { clip_norm: limit, ..plain }) {
                let expected = if spec.kind.is_trained() { expected } else { 0.0 };
                assert!(is_near(moved, expected), "{}, limit {limit}: {moved}", spec.name);
            }
        }
    }

    #[test]
    fn coefficients_and_layers_have_rates_of_their_own() {
        let sgd = SgdStep { coefficient_rate: 0.5, first_layer_rate: 0.01, ..SgdStep::plain(1.0, 0.0, 0.0) };
        let moves = moves(sgd);
        let of = |name: &str| moves.iter().find(|(spec, _)| spec.name == name).map(|(_, moved)| *moved).unwrap();
        assert!(is_near(of("conv1.weight"), 0.01) && is_near(of("fc.weight"), 1.0), "{moves:?}");
        let weights = moves.iter().filter(|(spec, _)| spec.kind == ParamKind::ConvWeight).map(|(_, moved)| *moved);
        assert!(weights.is_sorted_by(|before, after| before < after), "{moves:?}");
        let (before, between, after) =
            (of("layer3.0.conv1.weight"), of("layer3.0.conv1.act.weight"), of("layer3.0.conv2.weight"));
        assert!(before < 2.0 * between && 2.0 * between < after, "{before}, {between}, {after}");
    }

    #[test]
    fn a_rounded_step_leads_exactly_where_whoever_adds_it_arrives() {
        let network = by_name("resnet8-cifar", 10, None).unwrap();
        let mut exact = Params::new(&network, &Weights::init(&network, 1)).unwrap();
        exact.train();
        for (gradient, scale) in exact.gradients.iter_mut().zip([1.0, 1e-3, 1e5].into_iter().cycle()) {
            gradient.iter_mut().zip(0..).for_each(|(g, i)| *g = scale * ((i * 37 % 101) as f32 - 50.0) / 50.0);
        }
        let (mut rounded, before) = (exact.clone(), exact.values.clone());
        let some: Vec<usize> =
            (0..exact.specs.len()).filter(|&i| exact.specs[i].kind.is_trained()).step_by(2).collect();
        let sgd = SgdStep::plain(0.1, 0.9, 5e-4);
        let steps = rounded.step_in_f16(sgd, &some);
        exact.step(sgd);
        assert_eq!(rounded.momentum, exact.momentum);
        for (i, (rounded, exact)) in rounded.values.iter().zip(&exact.values).enumerate() {
            let Some(at) = some.iter().position(|&of| of == i) else {
                assert_eq!(rounded, exact, "{}", exact.len());
                continue;
            };
            for (((rounded, exact), before), step) in rounded.iter().zip(exact).zip(&before[i]).zip(&steps[at]) {
                assert_eq!(*rounded, before + step.to_f32());
                let off = (rounded - exact).abs();
                assert!(off <= (exact - before).abs() / 1024.0 + 1e-6, "{before} to {exact}, {rounded}");
            }
        }
    }
}
