//! How an answer is told.

use std::io::Write;
use std::path::Path;

use crate::error::CliError;
use crate::output::print;
use crate::text::escaped;

/// One line on stderr; a closed one is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A path as it is printed.
pub fn shown(path: &Path) -> String {
    escaped(&path.display().to_string())
}

/// The line that tells the answer about one file.
pub fn answer(path: &Path, logits: &[f32], class_names: &[String], json: bool) -> String {
    let (class, probability) = best(logits);
    let name = class_names.get(class).cloned().unwrap_or_else(|| class.to_string());
    if json {
        let file = path.to_string_lossy();
        let told = serde_json::json!({ "file": file, "class": class, "name": name, "probability": probability, "logits": logits });
        format!("{told}\n")
    } else {
        format!("{}: {} ({:.1} %)\n", shown(path), escaped(&name), 100.0 * probability)
    }
}

/// Says that one file has no answer: on standard error, and among the lines of JSON.
pub fn unanswered(path: &Path, why: &str, json: bool) -> Result<(), CliError> {
    say(&format!("{}: not answered: {}", shown(path), escaped(why)));
    let line = serde_json::json!({ "file": path.to_string_lossy(), "error": why });
    if json { print(&format!("{line}\n")) } else { Ok(()) }
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
        let file = Path::new("a\nb.png");
        let shown = answer(file, &[1.0], &names, false);
        assert_eq!(shown, "a\\nb.png: cat\\u{1b}[2J\\n/etc/passwd: dog (99.0 %) (100.0 %)\n");
        let json: serde_json::Value = serde_json::from_str(&answer(file, &[1.0], &names, true)).unwrap();
        assert_eq!((json["name"].as_str(), json["file"].as_str()), (Some(names[0].as_str()), Some("a\nb.png")));
    }
}
