//! "Did you mean": the known name that is closest to what was typed.

/// The candidate with the smallest edit distance to `typed`, if it is close enough to be meant.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = typed.chars().count().div_ceil(2);
    candidates
        .into_iter()
        .map(|candidate| (distance(typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit || (typed.len() > 2 && candidate.contains(typed)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["asymml-demo", "asymml-mnist", "delta-cifar10"];

    #[test]
    fn distances_of_textbook_pairs() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("flaw", "lawn"), 2);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn a_typo_finds_its_name() {
        assert_eq!(nearest("asyml-demo", KNOWN), Some("asymml-demo"));
        assert_eq!(nearest("delta-cifar", KNOWN), Some("delta-cifar10"));
    }

    #[test]
    fn a_part_of_a_name_finds_it() {
        assert_eq!(nearest("mnist", KNOWN), Some("asymml-mnist"));
    }

    #[test]
    fn nothing_close_finds_nothing() {
        assert_eq!(nearest("zzzz", KNOWN), None);
        assert_eq!(nearest("", KNOWN), None);
    }
}
