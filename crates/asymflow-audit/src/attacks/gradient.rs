//! Labels from the gradient of the last split layer.

use asymflow_residual::backend::{Unit, UnitId};
use asymflow_zoo::Network;
use asymflow_zoo::graph::Graph;
use asymflow_zoo::ops::Op;

use crate::attack::{Attack, AuditError, Budget, Guess, Sight};
use crate::tape::Kind;

/// Guesses labels from the gradient of the last unit's output and the classifier's weights.
///
/// The loss' gradient is p − y, and that of the features before the classifier Wᵀ(p − y): at the label it points along −W of that
/// class, since p is below 1 there alone. Summed over pixels, what is sent correlates with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastGradient;

impl Attack for LastGradient {
    fn name(&self) -> &'static str {
        "labels from the last gradient"
    }

    fn guess(&self, sight: &Sight<'_>, _budget: Budget) -> Result<Guess, AuditError> {
        let missing = |why: &str| AuditError::NotApplicable { attack: self.name(), why: why.to_owned() };
        let last = sight.public.model.units.len().checked_sub(1).ok_or_else(|| missing("there is no unit"))?;
        let gradient = sight.tape.values(UnitId(last as u32), Kind::Gradient);
        if gradient.is_empty() {
            return Err(missing("no gradient was sent"));
        }
        let shape = match &sight.public.model.units[last] {
            Unit::Conv(conv) => conv.output(),
            // The gradient of the logits: p − y itself.
            Unit::Network(network) => return Ok(Guess::Labels(least_of_each(&gradient, network.classes))),
        };
        let classifier = classifier(sight.public.network).ok_or_else(|| missing("it does not end in a classifier"))?;
        let weights = sight.public.weights.flatten(sight.public.network).map_err(|e| missing(&e.to_string()))?;
        let weight = &weights[classifier.first..classifier.first + classifier.features * classifier.classes];
        if classifier.features != shape.channels {
            return Err(missing("the classifier reads something else than the channels' means"));
        }
        let features: Vec<f32> = gradient.chunks_exact(shape.pixels()).map(|map| map.iter().sum()).collect();
        let centred = |row: &[f32]| -> Vec<f32> {
            let mean = |j: usize| weight.iter().skip(j).step_by(row.len()).sum::<f32>() / classifier.classes as f32;
            row.iter().enumerate().map(|(j, w)| w - mean(j)).collect()
        };
        let directions: Vec<Vec<f32>> = weight.chunks_exact(classifier.features).map(centred).collect();
        let scores = features.chunks_exact(shape.channels).flat_map(|sample| {
            directions.iter().map(move |row| {
                let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
                row.iter().zip(sample).map(|(w, g)| w * g).sum::<f32>() / norm.max(f32::MIN_POSITIVE)
            })
        });
        Ok(Guess::Labels(least_of_each(&scores.collect::<Vec<_>>(), classifier.classes)))
    }
}

/// The class with the least value in every row.
fn least_of_each(scores: &[f32], classes: usize) -> Vec<u32> {
    let least = |row: &[f32]| (0..classes).min_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0) as u32;
    scores.chunks_exact(classes.max(1)).map(least).collect()
}

struct Classifier {
    /// Where its weights begin among all.
    first: usize,
    features: usize,
    classes: usize,
}

fn classifier(network: &Network) -> Option<Classifier> {
    let graph = Graph::new(network).ok()?;
    let node = graph.nodes.last()?;
    let Op::Linear(linear) = &node.op else { return None };
    let first = network.parameters().iter().take(node.params.start).map(asymflow_zoo::ops::ParamSpec::len).sum();
    Some(Classifier { first, features: linear.in_features, classes: linear.out_features })
}

/// Takes the labels that were released for what they are, and those of the last gradient else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasedLabels;

impl Attack for ReleasedLabels {
    fn name(&self) -> &'static str {
        "labels as released"
    }

    fn guess(&self, sight: &Sight<'_>, _budget: Budget) -> Result<Guess, AuditError> {
        let why = || AuditError::NotApplicable { attack: self.name(), why: "no label was released".to_owned() };
        let mut labels = Vec::new();
        for message in sight.tape.messages.iter().filter(|message| message.kind == Kind::Stored) {
            let told = message.labels.as_ref().ok_or_else(why)?;
            let first = message.records.first().copied().unwrap_or_default() as usize;
            labels.resize(labels.len().max(first + told.len()), 0);
            labels[first..first + told.len()].copy_from_slice(told);
        }
        if labels.is_empty() { Err(why()) } else { Ok(Guess::Labels(labels)) }
    }
}
