//! The parameters of a network and how they are stepped.

use asymflow_residual::backend::SgdStep;
use asymflow_zoo::ops::{ParamSpec, rate_factors};
use tch::{Device, Kind, Tensor, no_grad_guard};

/// Values that a parameter is aligned to, so that kernels find each where they load fast.
const ALIGNED: usize = 16;

/// All parameters of a network in binary32. Those that are trained are parts of one tensor, so that a step is a few kernels;
/// weights of convolutions lie there as out × k × k × in.
pub(crate) struct Parameters {
    specs: Vec<ParamSpec>,
    device: Device,
    trained: Tensor,
    velocity: Option<Tensor>,
    /// In the order of the network, those that are trained as leaves of a graph.
    tensors: Vec<Tensor>,
}

impl Parameters {
    /// All zero.
    pub fn new(specs: &[ParamSpec], device: Device) -> Self {
        let (trained, velocity, tensors) = (Tensor::zeros([0], (Kind::Float, device)), None, Vec::new());
        let mut parameters = Self { specs: specs.to_vec(), device, trained, velocity, tensors };
        parameters.set(&vec![0.0; specs.iter().map(ParamSpec::len).sum()]);
        parameters
    }

    pub fn tensor(&self, at: usize) -> &Tensor {
        &self.tensors[at]
    }

    /// Those that a gradient is asked for.
    pub fn leaves(&self) -> Vec<Tensor> {
        let trained = self.tensors.iter().zip(&self.specs).filter(|(_, spec)| spec.kind.is_trained());
        trained.map(|(tensor, _)| tensor.shallow_clone()).collect()
    }

    /// Replaces all values. A graph that was built on the old ones keeps them.
    pub fn set(&mut self, flat: &[f32]) {
        let _no_graph = no_grad_guard();
        let flat = Tensor::from_slice(flat).to_device(self.device);
        let (mut at, mut rows, mut parts) = (0, Vec::new(), Vec::new());
        for spec in &self.specs {
            let values = flat.narrow(0, at, spec.len() as i64).view(shape(spec).as_slice());
            at += spec.len() as i64;
            if spec.kind.is_trained() {
                rows.push(self.row(&values));
            } else {
                parts.push(values.copy());
            }
        }
        self.trained =
            if rows.is_empty() { Tensor::zeros([0], (Kind::Float, self.device)) } else { Tensor::cat(&rows, 0) };
        let mut parts = parts.into_iter();
        let mut views = self.views(&self.trained).into_iter();
        let leaf = |view: Tensor| view.detach().set_requires_grad(true);
        let tensor = |spec: &ParamSpec| if spec.kind.is_trained() { views.next().map(leaf) } else { parts.next() };
        self.tensors = self.specs.iter().filter_map(tensor).collect();
    }

    /// All values, in the order of the network.
    pub fn flat(&self) -> Tensor {
        let _no_graph = no_grad_guard();
        let rows: Vec<Tensor> = self.tensors.iter().map(|tensor| tensor.reshape(-1)).collect();
        if rows.is_empty() { Tensor::zeros([0], (Kind::Float, self.device)) } else { Tensor::cat(&rows, 0) }
    }

    /// The momentum of all values; zero for what is not trained or has not been stepped.
    pub fn momentum(&self) -> Tensor {
        let Some(velocity) = &self.velocity else { return self.flat().zeros_like() };
        let mut views = self.views(velocity).into_iter();
        let mut view = |spec: &ParamSpec| if spec.kind.is_trained() { views.next() } else { None };
        let row = |spec: &ParamSpec| match view(spec) {
            Some(view) => view.reshape(-1),
            None => Tensor::zeros([spec.len() as i64], (Kind::Float, self.device)),
        };
        Tensor::cat(&self.specs.iter().map(row).collect::<Vec<_>>(), 0)
    }

    /// Replaces the momentum.
    pub fn set_momentum(&mut self, flat: &[f32]) {
        let flat = Tensor::from_slice(flat).to_device(self.device);
        let mut at = 0;
        let mut rows = Vec::new();
        for spec in &self.specs {
            let values = flat.narrow(0, at, spec.len() as i64).view(shape(spec).as_slice());
            at += spec.len() as i64;
            if spec.kind.is_trained() {
                rows.push(self.row(&values));
            }
        }
        self.velocity = (!rows.is_empty()).then(|| Tensor::cat(&rows, 0));
    }

    /// Gradients of [`Parameters::leaves`] as one row, laid out as the parameters are.
    pub fn gradient_row(&self, gradients: &[Tensor]) -> Tensor {
        let _no_graph = no_grad_guard();
        Tensor::cat(&gradients.iter().map(|gradient| self.row(gradient)).collect::<Vec<_>>(), 0)
    }

    /// Steps along `gradient`, a row.
    pub fn step(&mut self, mut gradient: Tensor, sgd: SgdStep) {
        let _no_graph = no_grad_guard();
        let number = |value: f32| Tensor::from_slice(&[value]).to_device(self.device);
        if sgd.clip_norm.is_finite() {
            let shrink =
                (gradient.norm().clamp_min(f64::MIN_POSITIVE).reciprocal() * f64::from(sgd.clip_norm)).clamp_max(1.0);
            gradient *= shrink;
        }
        if sgd.weight_decay != 0.0 {
            let _ = gradient.addcmul_(&self.trained, &number(sgd.weight_decay));
        }
        if sgd.momentum != 0.0 {
            gradient = match self.velocity.take() {
                Some(mut velocity) => {
                    velocity *= f64::from(sgd.momentum);
                    velocity += gradient;
                    velocity
                }
                None => gradient,
            };
        }
        let factors = rate_factors(&self.specs, sgd.coefficient_rate, sgd.first_layer_rate);
        let rates = if factors.iter().all(|factor| *factor == 1.0) {
            number(-sgd.learning_rate)
        } else {
            let trained = self.specs.iter().zip(factors).filter(|(spec, _)| spec.kind.is_trained());
            let rates = trained
                .flat_map(|(spec, factor)| std::iter::repeat_n(-sgd.learning_rate * factor, aligned(spec.len())));
            Tensor::from_slice(&rates.collect::<Vec<f32>>()).to_device(self.device)
        };
        let _ = self.trained.addcmul_(&gradient, &rates);
        if sgd.momentum != 0.0 {
            self.velocity = Some(gradient);
        }
    }

    /// Values of one parameter as part of a row.
    fn row(&self, values: &Tensor) -> Tensor {
        let row = if values.dim() == 4 { values.permute([0, 2, 3, 1]).reshape(-1) } else { values.reshape(-1) };
        let len = row.size().first().copied().unwrap_or(0) as usize;
        row.constant_pad_nd([0, (aligned(len) - len) as i64])
    }

    /// The parts of a row, each in the shape of its parameter.
    fn views(&self, row: &Tensor) -> Vec<Tensor> {
        let mut at = 0;
        let trained = self.specs.iter().filter(|spec| spec.kind.is_trained());
        let view = |spec: &ParamSpec| {
            let part = row.narrow(0, at, spec.len() as i64);
            at += aligned(spec.len()) as i64;
            match shape(spec).as_slice() {
                &[out, channels, height, width] => part.view([out, height, width, channels]).permute([0, 3, 1, 2]),
                other => part.view(other),
            }
        };
        trained.map(view).collect()
    }
}

fn shape(spec: &ParamSpec) -> Vec<i64> {
    spec.shape.iter().map(|side| *side as i64).collect()
}

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGNED)
}
