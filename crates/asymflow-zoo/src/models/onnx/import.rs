//! A graph as layers: paths from a fork, which a sum joins to a residual block.

use std::collections::HashMap;

use super::error::OnnxError;
use super::layers::{Builder, refused};
use super::proto::{Graph, Node};
use super::tensors::Tensors;
use crate::network::{Layer, output_of};
use crate::shape::Shape;
use crate::weights::Weights;

/// How a value is computed from the latest fork before it.
#[derive(Clone)]
struct Path<'a> {
    /// The value that is read more than once, or the input.
    fork: &'a str,
    layers: Vec<Layer>,
    shape: Shape,
}

struct Importer<'a> {
    builder: Builder<'a>,
    /// How often every value is read.
    readers: HashMap<&'a str, usize>,
    paths: HashMap<&'a str, Path<'a>>,
}

/// The layers of a graph, and their weights.
pub(super) fn layers<'a>(
    graph: &'a Graph,
    tensors: &'a Tensors<'a>,
    (input, shape): (&'a str, Shape),
) -> Result<(Vec<Layer>, Weights), OnnxError> {
    let mut readers = HashMap::new();
    let computing = graph.node.iter().filter(|node| node.op_type != "Shape");
    computing.flat_map(|node| &node.input).for_each(|name| *readers.entry(name.as_str()).or_default() += 1);
    let paths = HashMap::from([(input, Path { fork: input, layers: Vec::new(), shape })]);
    let mut importer = Importer { builder: Builder::new(tensors), readers, paths };
    for node in graph.node.iter().filter(|node| !node.output.iter().any(|name| tensors.has(name))) {
        importer.take(node)?;
    }
    let [output] = &graph.output[..] else {
        return Err(OnnxError::Format(format!("{} outputs, expected one, the logits", graph.output.len())));
    };
    match importer.paths.remove(output.name.as_str()) {
        Some(path) if path.fork == input => Ok((path.layers, importer.builder.weights)),
        _ => Err(OnnxError::Format(
            "the output is not computed from the input by a chain of layers and blocks".to_owned(),
        )),
    }
}

impl<'a> Importer<'a> {
    fn take(&mut self, node: &'a Node) -> Result<(), OnnxError> {
        let Some(output) = node.output.first() else { return Err(refused(node, "no output")) };
        if let Some(sides) = self.sides(node)? {
            self.builder.sides.insert(output, sides);
            return Ok(());
        }
        let computed: Vec<&str> =
            node.input.iter().map(String::as_str).filter(|name| self.paths.contains_key(name)).collect();
        let path = match (node.op_type.as_str(), &computed[..]) {
            ("Add", [a, b]) => self.join(node, a, b)?,
            ("Add", [a]) => {
                let path = self.from(a);
                let constant = node.input.iter().find(|name| name != a).map_or("", String::as_str);
                self.builder.add_bias(node, &path.layers, constant)?;
                path
            }
            (_, [one]) if node.input.first().is_some_and(|first| first == one) => {
                let mut path = self.from(one);
                let layers = self.builder.layers(node, path.shape)?;
                path.shape = output_of(&layers, path.shape)?;
                path.layers.extend(layers);
                path
            }
            (_, inputs) => {
                // What is not supported at all is said as such.
                let shape =
                    inputs.first().and_then(|name| self.paths.get(name)).map_or(Shape::new(1, 1, 1), |p| p.shape);
                let inputs = || refused(node, "its inputs are not the output of one node before it");
                return Err(self.builder.layers(node, shape).err().unwrap_or_else(inputs));
            }
        };
        self.paths.insert(output, path);
        Ok(())
    }

    /// What a node computes of sides of a value, as `x.view(x.size(0), -1)` has it done; none of another node. The number of samples
    /// is 0, which a reshape takes for the side that is there.
    fn sides(&self, node: &Node) -> Result<Option<Vec<i64>>, OnnxError> {
        let input = |index: usize| node.input.get(index).map_or("", String::as_str);
        let known = |name: &str| self.builder.sides.get(name).cloned();
        Ok(match node.op_type.as_str() {
            "Shape" => self.paths.get(input(0)).map(|path| {
                let Shape { channels, height, width } = path.shape;
                [0, channels, height, width].map(|side| side as i64).to_vec()
            }),
            "Gather" => match known(input(0)) {
                Some(sides) => {
                    let indices = self.builder.tensors.integers(input(1))?;
                    let side = |index: &i64| usize::try_from(*index).ok().and_then(|index| sides.get(index).copied());
                    indices.iter().map(side).collect()
                }
                None => None,
            },
            "Unsqueeze" | "Identity" | "Cast" => known(input(0)),
            "Mul" => match known(input(0)).zip(known(input(1))) {
                // Of the number of samples nothing is known that could be multiplied.
                Some((a, b)) => a.iter().zip(b).map(|(&a, b)| a.checked_mul(b).filter(|side| *side != 0)).collect(),
                None => None,
            },
            "Concat" if node.input.iter().any(|name| known(name).is_some()) => {
                let sides = |name: &String| known(name).map_or_else(|| self.builder.tensors.integers(name), Ok);
                Some(node.input.iter().map(sides).collect::<Result<Vec<_>, _>>()?.concat())
            }
            _ => None,
        })
    }

    /// The path that goes on from a value: a new one where others go on from it too.
    fn from(&mut self, name: &str) -> Path<'a> {
        let is_fork = self.readers.get(name).is_some_and(|readers| *readers > 1);
        match self.paths.get_key_value(name) {
            Some((fork, path)) if is_fork => Path { fork, layers: Vec::new(), shape: path.shape },
            Some((_, path)) => path.clone(),
            None => Path { fork: "", layers: Vec::new(), shape: Shape::new(0, 0, 0) },
        }
    }

    /// A sum of two paths from one fork.
    fn join(&mut self, node: &Node, a: &str, b: &str) -> Result<Path<'a>, OnnxError> {
        let (a, b) = (self.from(a), self.from(b));
        let before = self.paths.get(a.fork).filter(|_| a.fork == b.fork);
        let Some(before) = before else {
            return Err(refused(node, "the sum of branches that begin at different places"));
        };
        let (main, shortcut) = if a.layers.len() >= b.layers.len() { (a, b) } else { (b, a) };
        if main.layers.is_empty() {
            return Err(refused(node, "a value is added to itself"));
        }
        let block = Layer::Residual { main: main.layers, shortcut: shortcut.layers };
        let mut path = before.clone();
        path.shape = block.output(path.shape)?;
        path.layers.push(block);
        Ok(path)
    }
}
