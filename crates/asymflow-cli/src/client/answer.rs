//! How an answer is told.

use std::io::Write;

use crate::text::escaped;

/// One line on stderr; a closed one is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What is told of one answer.
pub fn answer(logits: &[f32], class_names: &[String], json: bool) -> String {
    let (class, probability) = best(logits);
    let name = class_names.get(class).cloned().unwrap_or_else(|| class.to_string());
    if json {
        serde_json::json!({ "class": class, "name": name, "probability": probability, "logits": logits }).to_string()
    } else {
        format!("{} ({:.1} %)", escaped(&name), 100.0 * probability)
    }
}

/// The largest logit and its softmax.
fn best(logits: &[f32]) -> (usize, f32) {
    let largest = logits.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let (class, top) = largest.unwrap_or((0, 0.0));
    (class, 1.0 / logits.iter().map(|logit| (logit - top).exp()).sum::<f32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_named_with_escape_codes_stays_on_its_line() {
        let names = ["cat\u{1b}[2J\n/etc/passwd: dog (99.0 %)".to_owned()];
        let shown = answer(&[1.0], &names, false);
        assert_eq!(shown, "cat\\u{1b}[2J\\n/etc/passwd: dog (99.0 %) (100.0 %)");
        let json: serde_json::Value = serde_json::from_str(&answer(&[1.0], &names, true)).unwrap();
        assert_eq!(json["name"], names[0].as_str());
    }
}
