//! A network and its weights as an ONNX file, opset 17, that onnxruntime runs.

use prost::Message;

use super::error::OnnxError;
use super::proto::{Attribute, Dimension, Graph, Model, Node, Opset, Tensor, TensorShape, TensorType, Type, Value};
use crate::graph;
use crate::network::Network;
use crate::ops::{NORM_EPSILON, Op};
use crate::param::ParamKind;
use crate::weights::Weights;

const OPSET: i64 = 17;
/// Version of the format that came with that opset.
const IR_VERSION: i64 = 8;

/// The bytes of a file: one input `images` (N×C×H×W), one output `logits`.
///
/// # Errors
/// Weights that are not those of the network, and layers that ONNX has not: activations for secret shares, and average pooling
/// whose windows are of several sizes.
pub fn encode(network: &Network, weights: &Weights) -> Result<Vec<u8>, OnnxError> {
    weights.fit(network)?;
    let lowered = graph::Graph::new(network)?;
    let nodes: Result<Vec<Option<Node>>, OnnxError> =
        lowered.nodes.iter().enumerate().map(|(index, node)| of_node(&lowered, index, node)).collect();
    let mut node: Vec<Node> = nodes?.into_iter().flatten().collect();
    let last = node.last_mut().ok_or_else(|| OnnxError::Format("no layer".to_owned()))?;
    last.output = vec!["logits".to_owned()];
    let initializer = lowered.params.iter().filter_map(|spec| {
        let tensor = weights.tensors.get(&spec.name)?;
        // Slopes are spread over rows and columns.
        let sides = if spec.kind == ParamKind::Slope { &[1, 1][..] } else { &[] };
        Some(Tensor {
            dims: tensor.shape.iter().chain(sides).map(|side| *side as i64).collect(),
            data_type: 1,
            name: spec.name.clone(),
            raw_data: tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ..Tensor::default()
        })
    });
    let shape = [1, network.input.channels, network.input.height, network.input.width];
    let graph = Graph {
        node,
        name: network.name.clone(),
        initializer: initializer.collect(),
        input: vec![value("images", &shape)],
        output: vec![value("logits", &[1, network.classes])],
    };
    let opset_import = vec![Opset { domain: String::new(), version: OPSET }];
    let producer_name = "asymflow".to_owned();
    Ok(Model { ir_version: IR_VERSION, producer_name, graph: Some(graph), opset_import }.encode_to_vec())
}

fn value(name: &str, sides: &[usize]) -> Value {
    let dim = sides.iter().map(|side| Dimension { dim_value: *side as i64 }).collect();
    let tensor_type = Some(TensorType { elem_type: 1, shape: Some(TensorShape { dim }) });
    Value { name: name.to_owned(), r#type: Some(Type { tensor_type }) }
}

fn integers(name: &str, values: &[usize]) -> Attribute {
    let ints = values.iter().map(|value| *value as i64).collect();
    Attribute { name: name.to_owned(), ints, kind: 7, ..Attribute::default() }
}

/// Name of a value. What a dropout makes is what it reads.
fn name_of(graph: &graph::Graph, value: usize) -> String {
    match value.checked_sub(1) {
        None => "images".to_owned(),
        Some(node) if matches!(graph.nodes[node].op, Op::Dropout(_)) => name_of(graph, graph.nodes[node].inputs[0]),
        Some(_) => format!("value{value}"),
    }
}

fn of_node(graph: &graph::Graph, index: usize, node: &graph::Node) -> Result<Option<Node>, OnnxError> {
    let refused = |reason: &str| {
        Err(OnnxError::Node { node: node.name.clone(), op: node.op.label().to_owned(), reason: reason.to_owned() })
    };
    let windows = |kernel, stride, padding| {
        vec![integers("kernel_shape", &[kernel; 2]), integers("strides", &[stride; 2]), integers("pads", &[padding; 4])]
    };
    let (op_type, attribute) = match &node.op {
        Op::Conv(conv) => ("Conv", windows(conv.kernel, conv.stride, conv.padding)),
        Op::Norm(_) => {
            let epsilon = Attribute { name: "epsilon".to_owned(), f: NORM_EPSILON, kind: 1, ..Attribute::default() };
            ("BatchNormalization", vec![epsilon])
        }
        Op::Relu => ("Relu", Vec::new()),
        Op::PRelu(_) => ("PRelu", Vec::new()),
        Op::MaxPool(pool) => ("MaxPool", windows(pool.kernel, pool.stride, pool.padding)),
        Op::AvgPool(pool) if pool.out == 1 => ("GlobalAveragePool", Vec::new()),
        Op::AvgPool(pool) => {
            let kernel = node.input.height / pool.out;
            if node.input.height != node.input.width || kernel * pool.out != node.input.height {
                return refused("its windows are of several sizes");
            }
            ("AveragePool", windows(kernel, kernel, 0))
        }
        Op::Flatten => ("Flatten", Vec::new()),
        Op::Linear(_) => ("Gemm", vec![Attribute { name: "transB".to_owned(), i: 1, kind: 2, ..Attribute::default() }]),
        Op::Add => ("Add", Vec::new()),
        Op::Dropout(_) => return Ok(None),
        Op::Quadratic(_) | Op::SharedRelu(_) => return refused("ONNX has no such activation"),
        Op::GroupNorm(_) => return refused("it is of a later version of ONNX than is written"),
        Op::Pointwise(_) => return refused("fixed functions are not exported yet"),
    };
    let computed = node.inputs.iter().map(|input| name_of(graph, *input));
    let constants = graph.params[node.params.clone()].iter().map(|spec| spec.name.clone());
    Ok(Some(Node {
        input: computed.chain(constants).collect(),
        output: vec![format!("value{}", index + 1)],
        name: node.name.clone(),
        op_type: op_type.to_owned(),
        attribute,
        domain: String::new(),
    }))
}
