//! How numbers and names are shown: tables, ε, and names from elsewhere.

use std::fmt::Write;

/// A name from elsewhere on one line of a terminal: control characters are written as escapes.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Marks that turn the direction of what follows hide text too.
        if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Several lines, each [`escaped`].
pub fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// ε with `decimals` places, never below what it is; very small ones in scientific notation.
pub fn epsilon(epsilon: f64, decimals: usize) -> String {
    if epsilon.is_nan() || epsilon == f64::INFINITY {
        return "∞".to_owned();
    }
    if epsilon <= 0.0 {
        return "0".to_owned();
    }
    let step = 10_f64.powi(-(decimals as i32));
    if epsilon < step {
        return scientific(epsilon);
    }
    let nearest = format!("{epsilon:.decimals$}");
    if is_at_least(&nearest, epsilon) {
        return nearest;
    }
    let above = format!("{:.decimals$}", nearest.parse::<f64>().unwrap_or(epsilon) + step);
    // Beyond 2^53 steps there is nothing between the two.
    if is_at_least(&above, epsilon) { above } else { format!("{epsilon}") }
}

fn is_at_least(shown: &str, epsilon: f64) -> bool {
    shown.parse::<f64>().is_ok_and(|shown| shown >= epsilon)
}

/// One digit behind the point, rounded up.
fn scientific(epsilon: f64) -> String {
    let nearest = format!("{epsilon:.1e}");
    if is_at_least(&nearest, epsilon) {
        return nearest;
    }
    let (mantissa, exponent) = nearest.split_once('e').unwrap_or((&nearest, "0"));
    let above = format!("{:.1}e{exponent}", mantissa.parse::<f64>().unwrap_or(1.0) + 0.1);
    if is_at_least(&above, epsilon) { above } else { format!("{epsilon:e}") }
}

/// δ with what it leaves over `records` records: 1/δ has to be well above their number, as a mechanism that publishes one record in
/// 1/δ whole has the same δ.
pub fn delta(delta: f64, records: usize) -> String {
    let expected = delta * records as f64;
    let note = if expected > 0.1 { ": 1/δ is not well above the number of records" } else { "" };
    format!("δ = {delta:e}, n·δ = {} over {records} records{note}", epsilon(expected, 2))
}

/// The value in the middle, or the mean of the two there.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle.saturating_sub(1)..=middle) {
        Some([below, above]) if sorted.len().is_multiple_of(2) => f64::midpoint(*below, *above),
        _ => sorted.get(middle).copied().unwrap_or(f64::NAN),
    }
}

/// Rows of cells as an aligned Markdown table; the first row is its head.
///
/// ```
/// let rows = [["mode", "accuracy %"], ["clear", "92.8"]].map(|row| row.map(str::to_owned));
/// assert_eq!(asymflow_cli::markdown(&rows).lines().next(), Some("| mode  | accuracy % |"));
/// ```
pub fn markdown(rows: &[impl AsRef<[String]>]) -> String {
    let cell = |cell: &String| escaped(cell).replace('|', "\\|");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.as_ref().iter().map(cell).collect()).collect();
    let mut widths = vec![3; rows.first().map_or(0, Vec::len)];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            text += &if column == 0 { format!("| {cell}{pad} ") } else { format!("| {pad}{cell} ") };
        }
        text += "|\n";
        if i == 0 {
            for (column, width) in widths.iter().enumerate() {
                text += &if column == 0 {
                    format!("|{}", "-".repeat(width + 2))
                } else {
                    format!("|{}:", "-".repeat(width + 1))
                };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epsilon_is_never_shown_below_what_it_is() {
        for (value, shown) in [
            (9.004, "9.01"),
            (9.0, "9.00"),
            (8.999_999_999_999_929, "9.00"),
            (1.1, "1.10"),
            (13.000_000_01, "13.01"),
            (1e-7, "1.0e-7"),
            (1.04e-7, "1.1e-7"),
            (9.99e-5, "1.0e-4"),
            (0.0, "0"),
            (f64::INFINITY, "∞"),
            (f64::NAN, "∞"),
        ] {
            assert_eq!(epsilon(value, 2), shown, "{value}");
        }
        let mut value = 1e-12;
        while value < 1e12 {
            for decimals in [2, 3, 4] {
                let shown: f64 = epsilon(value, decimals).parse().unwrap();
                let step = 10_f64.powi(-(decimals as i32));
                assert!(shown >= value && shown <= (value * 1.11).max(value + 1.01 * step), "{value} as {shown}");
            }
            value *= 1.37;
        }
    }

    #[test]
    fn a_delta_that_is_too_large_for_its_records_says_so() {
        assert_eq!(delta(1e-5, 5000), "δ = 1e-5, n·δ = 0.05 over 5000 records");
        assert!(delta(1e-5, 60_000).ends_with("1/δ is not well above the number of records"));
    }

    #[test]
    fn names_from_elsewhere_stay_on_their_line_and_in_their_cell() {
        assert_eq!(escaped("cat\u{1b}[2J\n\u{202e}é"), "cat\\u{1b}[2J\\n\\u{202e}é");
        let table = markdown(&[["a|b".to_owned()], ["c\nd".to_owned()]]);
        assert!(table.starts_with("| a\\|b |\n") && table.lines().count() == 3, "{table}");
    }

    #[test]
    fn medians_lie_between_the_middle_ones() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }
}
