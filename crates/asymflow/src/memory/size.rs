//! Sizes as people write them.

use thiserror::Error;

/// Units of 1024, and their bytes.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no size; write \"2GiB\", \"512MiB\" or a number of bytes")]
pub struct SizeError {
    /// The text.
    pub text: String,
}

/// Bytes of a size such as `2GiB`, `1.5 GiB`, `512MiB` or `1048576`.
///
/// # Errors
/// Anything else, zero, and what does not fit 2⁶³ bytes.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let refused = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let unit = UNITS.iter().find_map(|(name, bytes)| Some((trimmed.strip_suffix(name)?, *bytes)));
    let (number, unit) = unit.unwrap_or((trimmed, 1));
    let number: f64 = number.trim().parse().map_err(|_| refused())?;
    let bytes = number * unit as f64;
    if bytes >= 1.0 && bytes < (1_u64 << 63) as f64 { Ok(bytes as u64) } else { Err(refused()) }
}

/// A size in the largest unit that it fills, with one decimal.
pub fn show_bytes(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nothing_else() {
        for (text, bytes) in [("2GiB", 2 << 30), ("1.5 GiB", 3 << 29), (" 512MiB ", 512 << 20), ("4096", 4096)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "0", "-1MiB", "nan", "1e30", "inf TiB", "2GB", "two"] {
            assert_eq!(parse_bytes(text), Err(SizeError { text: text.to_owned() }), "{text}");
        }
        assert_eq!(show_bytes(3 << 29), "1.5 GiB");
        assert_eq!(show_bytes(1023), "1023 B");
    }
}
