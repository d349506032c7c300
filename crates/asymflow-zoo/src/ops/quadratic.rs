//! Trained quadratics in place of ReLU (Aremu and Nandakumar, SaTML 2023; Aremu, arXiv 2312.15229; AESPA, 2022).

use std::f64::consts::{PI, SQRT_2};

use serde::{Deserialize, Serialize};

use super::easing::RangePenalty;
use super::norm::{NORM_EPSILON, Normal, affine, running, scale_shift, scale_shift_backward};
use super::operation::{At, Gradient, OpCost, Operation};
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

/// Initial a, b and c of [`Form::REACT`].
pub(super) const REACT: [f32; 3] = [0.009, 0.5, 0.47];

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
            Self::Kervolution { .. } | Self::Scaled { .. } | Self::Free { .. } => None,
        }
    }
}

/// Coefficients of y = a x² + b x + c.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// Of x².
    pub a: f32,
    /// Of x.
    pub b: f32,
    /// Constant.
    pub c: f32,
}

impl Quadratic {
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
                    let inverse = |variance: f32| 1.0 / (variance + NORM_EPSILON).sqrt();
                    let [first, second] = self.form.bases().unwrap_or_default();
                    let (first, second) = (first * inverse(first_var[i]), second * inverse(second_var[i]));
                    let half = std::f32::consts::FRAC_1_SQRT_2;
                    let constant = -first * first_mean[i] - second * (half + second_mean[i]);
                    Coefficients { a: gamma[i] * second * half, b: gamma[i] * first, c: beta[i] + gamma[i] * constant }
                })
                .collect(),
            (Form::Kervolution { .. } | Form::Scaled { .. } | Form::Free { .. } | Form::Hermite { .. }, _) => {
                Vec::new()
            }
        }
    }
}

/// Value, derivative by x, and derivatives by each trained weight.
fn point(form: Form, weight: &[f64], x: f64) -> (f64, f64, Vec<f64>) {
    match (form, weight) {
        (Form::Kervolution { .. }, &[c]) => ((x + c).powi(2), 2.0 * (x + c), vec![2.0 * (x + c)]),
        (Form::Scaled { .. }, &[a, c]) => {
            (a * (x + c).powi(2), 2.0 * a * (x + c), vec![(x + c).powi(2), 2.0 * a * (x + c)])
        }
        (Form::Free { .. }, &[a, b, c]) => (a * x * x + b * x + c, 2.0 * a * x + b, vec![x * x, x, 1.0]),
        (Form::Kervolution { .. } | Form::Scaled { .. } | Form::Free { .. } | Form::Hermite { .. }, _) => {
            (f64::NAN, f64::NAN, vec![f64::NAN; weight.len()])
        }
    }
}

/// Both bases of [`Form::Hermite`] normalised, and what each is multiplied by.
struct Expansion {
    bases: [Normal; 2],
    gains: [f64; 2],
}

impl Expansion {
    fn new(at: &At<'_>, second: f32, x: &[f64]) -> Self {
        let square: Vec<f64> = x.iter().map(|x| (x * x - 1.0) / SQRT_2).collect();
        let bases = [Normal::new(at, x, &at.params[2..4]), Normal::new(at, &square, &at.params[4..6])];
        Self { bases, gains: [0.5, f64::from(second) / (4.0 * PI).sqrt()] }
    }

    fn sum(&self) -> Vec<f64> {
        let [first, second] = &self.bases;
        let pairs = first.values.iter().zip(&second.values);
        pairs.map(|(first, second)| self.gains[0] * first + self.gains[1] * second).collect()
    }

    /// Gradient of x, of that of the sum.
    fn backward(&self, at: &At<'_>, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let of = |i: usize| {
            let dy: Vec<f64> = dy.iter().map(|dy| self.gains[i] * dy).collect();
            self.bases[i].backward(at, &dy)
        };
        let (first, second) = (of(0), of(1));
        first.iter().zip(&second).zip(x).map(|((first, second), x)| first + SQRT_2 * x * second).collect()
    }
}

/// Gradient of a penalty on `x`, before it is averaged.
fn penalty_gradient(range: RangePenalty, x: f64) -> f64 {
    let (limit, saturation) = (f64::from(range.limit), f64::from(RangePenalty::SATURATION));
    let ratio = (x / limit).clamp(-saturation, saturation);
    f64::from(range.weight) * f64::from(range.exponent) * ratio.powi(range.exponent - 1) / limit
}

impl Operation for Quadratic {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !is_finite(&self.form.initial()) || self.form.bases().is_some_and(|bases| !is_finite(&bases)) {
            return Err(NetworkError::out_of_range(&self.name, "initial coefficient"));
        }
        input.expect_channels(&self.name, self.channels)
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        let initial = self.form.initial();
        if let Form::Hermite { .. } = self.form {
            let first = running(&self.name, ["first_mean", "first_var"], self.channels);
            let second = running(&self.name, ["second_mean", "second_var"], self.channels);
            return affine(&self.name, self.channels).into_iter().chain(first).chain(second).collect();
        }
        let shape = vec![initial.len()];
        vec![ParamSpec::new(&self.name, "weight", shape, ParamKind::Coefficient, Init::Rows(initial))]
    }

    fn cost(&self, _: Shape, output: Shape) -> OpCost {
        OpCost { squares: output.len() as u64, ..OpCost::default() }
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        match self.form {
            Form::Hermite { second } => scale_shift(at, &Expansion::new(at, second, inputs[0]).sum()),
            form => inputs[0].iter().map(|&x| point(form, &at.params[0], x).0).collect(),
        }
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let x = inputs[0];
        let (mut dx, params) = match self.form {
            Form::Hermite { second } => {
                let expansion = Expansion::new(at, second, x);
                let (dx, [scale, shift]) = scale_shift_backward(at, &expansion.sum(), dy);
                let none = || Vec::new();
                (expansion.backward(at, x, &dx), vec![scale, shift, none(), none(), none(), none()])
            }
            form => {
                let mut weight = vec![0.0; at.params[0].len()];
                let one = |(&x, &dy): (&f64, &f64)| {
                    let (_, by_x, by_weight) = point(form, &at.params[0], x);
                    weight.iter_mut().zip(by_weight).for_each(|(sum, by)| *sum += by * dy);
                    by_x * dy
                };
                (x.iter().zip(dy).map(one).collect::<Vec<f64>>(), vec![weight])
            }
        };
        if let Some(range) = at.easing.range {
            let share = (at.samples * at.quadratics) as f64;
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx += penalty_gradient(range, x) / share);
        }
        Gradient { inputs: vec![dx], params }
    }

    fn statistics(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<(usize, Vec<f64>)> {
        let Form::Hermite { second } = self.form else { return Vec::new() };
        let [first, second] = Expansion::new(at, second, inputs[0]).bases;
        let [first, second] = [first.moved(&at.params[2..4]), second.moved(&at.params[4..6])];
        first.into_iter().chain(second).enumerate().map(|(i, values)| (i + 2, values)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
