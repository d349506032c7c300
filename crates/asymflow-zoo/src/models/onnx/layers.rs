//! One node of a graph as layers.

use std::collections::{BTreeSet, HashMap};

use super::error::OnnxError;
use super::proto::{Attribute, Node};
use super::tensors::Tensors;
use crate::network::Layer;
use crate::ops::{Conv, Linear, NORM_EPSILON};
use crate::shape::Shape;
use crate::weights::{WeightTensor, Weights};

/// What is made of nodes, and the names given to their parameters.
pub(super) struct Builder<'a> {
    pub tensors: &'a Tensors<'a>,
    pub weights: Weights,
    /// Sides that nodes compute, by name.
    pub sides: HashMap<&'a str, Vec<i64>>,
    names: BTreeSet<String>,
}

/// An error at a node.
pub(super) fn refused(node: &Node, reason: impl Into<String>) -> OnnxError {
    let output = || node.output.first().cloned().unwrap_or_default();
    let name = if node.name.is_empty() { output() } else { node.name.clone() };
    OnnxError::Node { node: name, op: node.op_type.clone(), reason: reason.into() }
}

fn attribute<'n>(node: &'n Node, name: &str) -> Option<&'n Attribute> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn integer(node: &Node, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i)
}

fn float(node: &Node, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |attribute| attribute.f)
}

fn integers<'n>(node: &'n Node, name: &str) -> &'n [i64] {
    attribute(node, name).map_or(&[], |attribute| &attribute.ints)
}

/// Whether a tensor of so many numbers, spread over N×C×H×W, is one for each channel: C stands alone, or third from the end.
fn is_of_channels(shape: &[usize], channels: usize) -> bool {
    let at = shape.iter().position(|&side| side == channels);
    shape.len() == 1 || at.is_some_and(|at| shape.len() - at == 3)
}

/// A window that is the same in both directions.
struct Window {
    kernel: usize,
    stride: usize,
    padding: usize,
}

fn window(node: &Node, kernel: &[i64]) -> Result<Window, OnnxError> {
    let auto = attribute(node, "auto_pad").map_or(&b""[..], |attribute| &attribute.s);
    if !matches!(auto, b"" | b"NOTSET" | b"VALID") {
        return Err(refused(node, "auto_pad: export explicit pads"));
    }
    let one = |what: &str, values: &[i64], default: i64| {
        let first = values.first().copied().unwrap_or(default);
        match usize::try_from(first) {
            Ok(value) if values.iter().all(|&value| value == first) => Ok(value),
            _ => Err(refused(node, format!("{what} {values:?}: expected one number for all sides"))),
        }
    };
    if one("dilations", integers(node, "dilations"), 1)? != 1 {
        return Err(refused(node, "dilated windows are not supported"));
    }
    let [stride, padding] = [one("strides", integers(node, "strides"), 1)?, one("pads", integers(node, "pads"), 0)?];
    if kernel.len() != 2 {
        return Err(refused(node, "only two-dimensional windows are supported"));
    }
    Ok(Window { kernel: one("kernel_shape", kernel, 0)?, stride, padding })
}

impl<'a> Builder<'a> {
    pub fn new(tensors: &'a Tensors<'a>) -> Self {
        Self { tensors, weights: Weights::default(), names: BTreeSet::new(), sides: HashMap::new() }
    }

    /// A name of its own: that of the weight, as PyTorch has it, or else of the kind and a number.
    fn name(&mut self, node: &Node, kind: &str) -> String {
        let weight = node.input.get(1).and_then(|name| name.strip_suffix(".weight"));
        let usable =
            weight.filter(|name| !name.is_empty() && !name.contains([':', '/']) && !self.names.contains(*name));
        let name = usable.map_or_else(
            || (1..).map(|n| format!("{kind}{n}")).find(|name| !self.names.contains(name)).unwrap_or_default(),
            str::to_owned,
        );
        self.names.insert(name.clone());
        name
    }

    fn keep(&mut self, name: &str, part: &str, shape: Vec<usize>, data: Vec<f32>) {
        self.weights.tensors.insert(format!("{name}.{part}"), WeightTensor { shape, data });
    }

    fn constant(&self, node: &Node, index: usize) -> Result<Option<WeightTensor>, OnnxError> {
        let name = node.input.get(index).filter(|name| !name.is_empty());
        name.map(|name| self.tensors.floats(name)).transpose()
    }

    fn needed(&self, node: &Node, index: usize) -> Result<WeightTensor, OnnxError> {
        self.constant(node, index)?.ok_or_else(|| refused(node, format!("input {index} is missing")))
    }

    /// The layers of a node of one input, which has the shape `shape`.
    pub fn layers(&mut self, node: &Node, shape: Shape) -> Result<Vec<Layer>, OnnxError> {
        Ok(match node.op_type.as_str() {
            "Conv" => vec![self.conv(node)?],
            "BatchNormalization" => vec![self.norm(node)?],
            "Relu" => vec![Layer::Relu],
            "PRelu" => vec![self.prelu(node, shape)?],
            "MaxPool" => vec![max_pool(node, shape)?],
            "AveragePool" => vec![average_pool(node, shape)?],
            "GlobalAveragePool" => vec![Layer::AdaptiveAvgPool { out: 1 }],
            "ReduceMean" => self.mean(node)?,
            "Flatten" if integer(node, "axis", 1) == 1 => vec![Layer::Flatten],
            "Reshape" => self.reshape(node, shape)?,
            "Gemm" => vec![self.gemm(node)?],
            "MatMul" => vec![self.matmul(node)?],
            "Squeeze" if shape.height * shape.width == 1 => vec![Layer::Flatten],
            // Of inference these are nothing.
            "Identity" | "Dropout" => Vec::new(),
            // PyTorch before 2.0 has one before each average.
            "Pad" => match self.tensors.integers(node.input.get(1).map_or("", String::as_str))? {
                pads if pads.iter().all(|pad| *pad == 0) => Vec::new(),
                pads => return Err(refused(node, format!("padding by {pads:?} outside of a window is not supported"))),
            },
            "Concat" => return Err(refused(node, "concatenations (as in DenseNet, Inception) are not supported")),
            "Mul" => return Err(refused(node, "products (as in squeeze-and-excitation) are not supported")),
            _ => {
                let known = "Conv, BatchNormalization, Relu, PRelu, MaxPool, AveragePool, GlobalAveragePool, Add, Gemm, Flatten";
                return Err(refused(node, format!("not supported; there are {known}")));
            }
        })
    }

    fn conv(&mut self, node: &Node) -> Result<Layer, OnnxError> {
        let groups = integer(node, "group", 1);
        if groups != 1 {
            return Err(refused(node, format!("convolutions in {groups} groups are not supported")));
        }
        let weight = self.needed(node, 1)?;
        let &[out_channels, in_channels, kernel, _] = &weight.shape[..] else {
            return Err(refused(node, format!("weight of shape {:?}", weight.shape)));
        };
        let sides: Vec<i64> = weight.shape[2..].iter().map(|side| *side as i64).collect();
        let Window { stride, padding, .. } = window(node, &sides)?;
        let bias = self.constant(node, 2)?;
        let name = self.name(node, "conv");
        let has_bias = bias.is_some();
        self.keep(&name, "weight", weight.shape, weight.data);
        if let Some(bias) = bias {
            self.keep(&name, "bias", bias.shape, bias.data);
        }
        Ok(Layer::Conv(Conv { name, in_channels, out_channels, kernel, stride, padding, bias: has_bias }))
    }

    fn norm(&mut self, node: &Node) -> Result<Layer, OnnxError> {
        if integer(node, "training_mode", 0) != 0 {
            return Err(refused(node, "exported in training: call model.eval() first"));
        }
        // Another ε than ours is the same as another variance.
        let shift = float(node, "epsilon", 1e-5) - NORM_EPSILON;
        let [scale, bias, mean, mut variance] =
            [self.needed(node, 1)?, self.needed(node, 2)?, self.needed(node, 3)?, self.needed(node, 4)?];
        variance.data.iter_mut().for_each(|v| *v += shift);
        let name = self.name(node, "norm");
        let channels = scale.data.len();
        for (part, tensor) in [("weight", scale), ("bias", bias), ("running_mean", mean), ("running_var", variance)] {
            self.keep(&name, part, tensor.shape, tensor.data);
        }
        Ok(Layer::BatchNorm { name, channels })
    }

    fn prelu(&mut self, node: &Node, shape: Shape) -> Result<Layer, OnnxError> {
        let slope = self.needed(node, 1)?;
        let channels = shape.channels;
        let data = match slope.data[..] {
            [one] => vec![one; channels],
            _ if slope.data.len() == channels && is_of_channels(&slope.shape, channels) => slope.data,
            _ => return Err(refused(node, format!("slopes of shape {:?}", slope.shape))),
        };
        let name = self.name(node, "prelu");
        self.keep(&name, "weight", vec![channels], data);
        Ok(Layer::PRelu { name, channels })
    }

    /// A mean over rows and columns.
    fn mean(&self, node: &Node) -> Result<Vec<Layer>, OnnxError> {
        let axes = match node.input.get(1).filter(|name| !name.is_empty()) {
            Some(name) => self.tensors.integers(name)?,
            None => integers(node, "axes").to_vec(),
        };
        let mut axes: Vec<i64> = axes.into_iter().map(|axis| axis.rem_euclid(4)).collect();
        axes.sort_unstable();
        if axes != [2, 3] {
            return Err(refused(node, "only means over rows and columns are supported"));
        }
        let flat = (integer(node, "keepdims", 1) == 0).then_some(Layer::Flatten);
        Ok([Layer::AdaptiveAvgPool { out: 1 }].into_iter().chain(flat).collect())
    }

    /// A reshape that only flattens. Computed sides begin with the number of samples, or leave it open.
    fn reshape(&self, node: &Node, shape: Shape) -> Result<Vec<Layer>, OnnxError> {
        let name = node.input.get(1).map_or("", String::as_str);
        let computed = self.sides.get(name);
        let sides = computed.map_or_else(|| self.tensors.integers(name), |sides| Ok(sides.clone()))?;
        let features = shape.len() as i64;
        match sides[..] {
            [samples, last]
                if (last == -1 || last == features) && (computed.is_none() || matches!(samples, 0 | -1)) =>
            {
                Ok(vec![Layer::Flatten])
            }
            _ => Err(refused(node, format!("to {sides:?}: only flattening is supported"))),
        }
    }

    fn linear(&mut self, node: &Node, weight: WeightTensor, bias: Vec<f32>, turn: bool) -> Result<Layer, OnnxError> {
        let &[rows, columns] = &weight.shape[..] else {
            return Err(refused(node, format!("weight of shape {:?}", weight.shape)));
        };
        let (out_features, in_features) = if turn { (columns, rows) } else { (rows, columns) };
        let mut data = weight.data;
        if turn {
            data = (0..columns).flat_map(|column| data.iter().skip(column).step_by(columns).copied()).collect();
        }
        let bias = if bias.is_empty() { vec![0.0; out_features] } else { bias };
        let name = self.name(node, "fc");
        self.keep(&name, "weight", vec![out_features, in_features], data);
        self.keep(&name, "bias", vec![bias.len()], bias);
        Ok(Layer::Linear(Linear { name, in_features, out_features }))
    }

    fn gemm(&mut self, node: &Node) -> Result<Layer, OnnxError> {
        if float(node, "alpha", 1.0) != 1.0 || float(node, "beta", 1.0) != 1.0 || integer(node, "transA", 0) != 0 {
            return Err(refused(node, "alpha, beta or transA is set"));
        }
        let bias = self.constant(node, 2)?.map(|bias| bias.data).unwrap_or_default();
        let weight = self.needed(node, 1)?;
        self.linear(node, weight, bias, integer(node, "transB", 0) == 0)
    }

    fn matmul(&mut self, node: &Node) -> Result<Layer, OnnxError> {
        let weight = self.needed(node, 1)?;
        self.linear(node, weight, Vec::new(), true)
    }

    /// A constant added to the output of a fully connected layer, which is its bias.
    pub fn add_bias(&mut self, node: &Node, layers: &[Layer], constant: &str) -> Result<(), OnnxError> {
        let Some(Layer::Linear(linear)) = layers.last() else {
            return Err(refused(node, "a constant is added to something else than a fully connected layer"));
        };
        let added = self.tensors.floats(constant)?;
        match self.weights.tensors.get_mut(&format!("{}.bias", linear.name)) {
            Some(bias) if bias.data.len() == added.data.len() => {
                bias.data.iter_mut().zip(added.data).for_each(|(bias, added)| *bias += added);
                Ok(())
            }
            _ => Err(refused(node, format!("a constant of shape {:?} is added", added.shape))),
        }
    }
}

fn max_pool(node: &Node, shape: Shape) -> Result<Layer, OnnxError> {
    let Window { kernel, stride, padding } = window(node, integers(node, "kernel_shape"))?;
    let exact =
        |side: usize| stride > 0 && (side + 2 * padding).checked_sub(kernel).is_some_and(|rest| rest % stride == 0);
    if integer(node, "ceil_mode", 0) != 0 && !(exact(shape.height) && exact(shape.width)) {
        return Err(refused(node, "ceil_mode with windows that go beyond the edge is not supported"));
    }
    if node.output.get(1).is_some_and(|indices| !indices.is_empty()) {
        return Err(refused(node, "indices are not supported"));
    }
    Ok(Layer::MaxPool { kernel, stride, padding })
}

/// An average over windows that tile a square.
fn average_pool(node: &Node, shape: Shape) -> Result<Layer, OnnxError> {
    let Window { kernel, stride, padding } = window(node, integers(node, "kernel_shape"))?;
    let tiles = kernel > 0 && shape.height == shape.width && shape.height.is_multiple_of(kernel);
    if padding == 0 && tiles && (stride == kernel || kernel == shape.height) {
        return Ok(Layer::AdaptiveAvgPool { out: shape.height / kernel });
    }
    Err(refused(node, format!("windows of {kernel} with stride {stride} and padding {padding} do not tile {shape}")))
}
