//! What sizes and counts on the wire say of the data.

use std::collections::HashMap;
use std::hash::Hash;

use crate::tape::Tape;

/// The shape of what crossed: unit, kind, bytes and count of every message, and nothing of the values.
pub fn shape_of(tape: &Tape) -> Vec<String> {
    let of = |message: &crate::tape::Message| {
        format!("{}/{:?}/{}/{}", message.unit.0, message.kind, message.values.bytes(), message.records.len())
    };
    tape.messages.iter().map(of).collect()
}

/// Mutual information of what was seen and the class, in bits, as the counts say; 0 where what is seen is always the same.
pub fn mutual_information<S: Eq + Hash>(seen: &[S], classes: &[u32]) -> f64 {
    let n = seen.len().min(classes.len()) as f64;
    let (mut joint, mut of_seen, mut of_class) = (HashMap::new(), HashMap::new(), HashMap::new());
    for (seen, class) in seen.iter().zip(classes) {
        *joint.entry((seen, class)).or_insert(0.0) += 1.0;
        *of_seen.entry(seen).or_insert(0.0) += 1.0;
        *of_class.entry(class).or_insert(0.0) += 1.0;
    }
    let term = |(&(seen, class), &count): (&(&S, &u32), &f64)| {
        let independent: f64 = of_seen[seen] * of_class[class] / n;
        count / n * (count / independent).log2()
    };
    joint.iter().map(term).sum::<f64>().max(0.0)
}
