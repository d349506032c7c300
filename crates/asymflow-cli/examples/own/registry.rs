//! What the command and its trusted part both know by a name.

use std::path::Path;

use asymflow::modes::Registry;
use asymflow_zoo::data::{Dataset, Split};
use asymflow_zoo::network::Shape;

/// Modes, mechanisms and decompositions are added alike.
pub fn registry() -> Registry {
    Registry::default().with_data("csv", read_csv)
}

/// Reads `train.csv` and `test.csv` in a folder: a label, and the pixels of a square grey image, a line.
fn read_csv(folder: &Path) -> Result<Split, String> {
    Ok(Split { train: read_lines(&folder.join("train.csv"))?, test: read_lines(&folder.join("test.csv"))? })
}

fn read_lines(path: &Path) -> Result<Dataset, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let mut numbers = line.split(',').map(|word| word.trim().parse::<u8>());
        // The number of the line is no secret, what stands in it is.
        let mut next = || numbers.next().transpose().map_err(|_| format!("line {}: no number up to 255", number + 1));
        labels.push(u32::from(next()?.unwrap_or_default()));
        while let Some(pixel) = next()? {
            images.push(pixel);
        }
    }
    let side = (images.len() / labels.len().max(1)).isqrt();
    let names = (0..=labels.iter().copied().max().unwrap_or_default()).map(|class| class.to_string()).collect();
    Dataset::new(images, labels, Shape::new(1, side, side), names).map_err(|e| e.to_string())
}
