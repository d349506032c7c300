//! Fully connected layers.

use serde::{Deserialize, Serialize};

use super::operation::{At, Gradient, OpCost, Operation};
use crate::param::{Init, ParamKind, ParamSpec};
use crate::shape::{NetworkError, Shape};

/// A fully connected layer; weight `out × in`, with bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Parameter prefix, e.g. `fc`.
    pub name: String,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
}

impl Operation for Linear {
    fn label(&self) -> &str {
        &self.name
    }

    fn output(&self, input: Shape) -> Result<Shape, NetworkError> {
        NetworkError::expect(&self.name, self.in_features, input.len())?;
        Ok(Shape::new(self.out_features, 1, 1))
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        let (rows, columns) = (self.out_features, self.in_features);
        // As PyTorch: uniform in ±1/√fan-in, the bias as well.
        let init = || Init::Uniform { bound: 1.0 / (columns as f32).sqrt() };
        vec![
            ParamSpec::new(&self.name, "weight", vec![rows, columns], ParamKind::LinearWeight, init()),
            ParamSpec::new(&self.name, "bias", vec![rows], ParamKind::Bias, init()),
        ]
    }

    fn cost(&self, _: Shape, _: Shape) -> OpCost {
        OpCost { macs: (self.in_features * self.out_features) as u64, ..OpCost::default() }
    }

    fn forward(&self, at: &At<'_>, inputs: &[&[f64]]) -> Vec<f64> {
        let [weight, bias] = at.params else { return Vec::new() };
        let row = |x: &[f64], o: usize| {
            let weight = &weight[o * self.in_features..][..self.in_features];
            weight.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias[o]
        };
        let samples = inputs[0].chunks_exact(self.in_features);
        samples.flat_map(|x| (0..self.out_features).map(move |o| row(x, o))).collect()
    }

    fn backward(&self, at: &At<'_>, inputs: &[&[f64]], dy: &[f64]) -> Gradient {
        let mut dx = vec![0.0; inputs[0].len()];
        let (mut d_weight, mut d_bias) =
            (vec![0.0; self.in_features * self.out_features], vec![0.0; self.out_features]);
        for (n, dy) in dy.chunks_exact(self.out_features).enumerate() {
            for (o, &dy) in dy.iter().enumerate() {
                d_bias[o] += dy;
                for i in 0..self.in_features {
                    let (x, w) = (n * self.in_features + i, o * self.in_features + i);
                    dx[x] += dy * at.params[0][w];
                    d_weight[w] += dy * inputs[0][x];
                }
            }
        }
        Gradient { inputs: vec![dx], params: vec![d_weight, d_bias] }
    }
}
