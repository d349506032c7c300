//! Sets of arrays: `.npz` archives, folders of `.npy` files, and CSV tables of flattened images.

use std::borrow::Cow;
use std::io::{Cursor, Read};

use crate::data::array::{Array, Dtype};
use crate::data::dataset::Numbered;
use crate::data::files::{Content, Files};
use crate::data::{DataError, Split};

/// Fewest pixels of a row that is taken for a flattened image.
const MIN_PIXELS: usize = 16;
/// Most bytes of one array.
const LIMIT_BYTES: u64 = 4 << 30;
/// What columns of labels are called; without any the first is it.
const LABEL_COLUMNS: [&str; 6] = ["label", "labels", "class", "target", "y", "digit"];

fn wrong(file: &Content, what: impl Into<String>) -> DataError {
    DataError::Array { path: file.path.clone(), what: what.into() }
}

/// The words of an array's name, e.g. `x_train` or `train_images`.
fn words(name: &str) -> Vec<String> {
    let stem = name.trim_end_matches(".npy").to_ascii_lowercase();
    stem.split(['_', '-', '.', ' ']).map(str::to_owned).collect()
}

/// The names of images and labels of training and test.
fn roles<'a>(names: impl Iterator<Item = &'a str>) -> Option<[&'a str; 4]> {
    let mut roles = [None; 4];
    for name in names {
        let words = words(name);
        let any = |of: &[&str]| words.iter().any(|word| of.contains(&word.as_str()));
        let part = if any(&["train", "training"]) {
            0
        } else if any(&["test"]) {
            2
        } else {
            continue;
        };
        let what = if any(&["x", "images", "image", "data"]) { 0 } else { 1 };
        if what == 0 || any(&["y", "labels", "label", "targets"]) {
            roles[part + what].get_or_insert(name);
        }
    }
    let [Some(a), Some(b), Some(c), Some(d)] = roles else { return None };
    Some([a, b, c, d])
}

/// The names of four `.npy` files that make a set.
pub(super) fn arrays_in(files: &Files) -> Option<[String; 4]> {
    roles(files.names().filter(|name| name.ends_with(".npy"))).map(|names| names.map(str::to_owned))
}

pub(super) fn load_arrays(files: &mut Files, names: &[String; 4]) -> Result<Split, DataError> {
    let mut part = |images: &String, labels: &String| {
        let images = files.take(images)?;
        parts(&images, &files.take(labels)?)
    };
    let (train, test) = (part(&names[0], &names[1])?, part(&names[2], &names[3])?);
    Split::labelled(train, test, &files.origin)
}

/// An archive of `.npy` files.
pub(super) fn load_npz(file: &Content) -> Result<Split, DataError> {
    let failed = |error: zip::result::ZipError| wrong(file, error.to_string());
    let mut archive = zip::ZipArchive::new(Cursor::new(&file.bytes)).map_err(failed)?;
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let Some(roles) = roles(names.iter().map(String::as_str)) else {
        let what =
            format!("arrays {names:?}: expected x_train, y_train, x_test, y_test or train_images, train_labels, …");
        return Err(wrong(file, what));
    };
    let mut take = |name: &str| {
        let member = archive.by_name(name).map_err(failed)?;
        let path = file.path.join(name);
        let mut bytes = Vec::new();
        let read = member.take(LIMIT_BYTES).read_to_end(&mut bytes);
        read.map_err(|source| DataError::Read { path: path.clone(), offset: 0, source })?;
        Ok::<_, DataError>(Content { path, bytes })
    };
    let train = parts(&take(roles[0])?, &take(roles[1])?)?;
    let test = parts(&take(roles[2])?, &take(roles[3])?)?;
    Split::labelled(train, test, &file.path)
}

fn parts(images: &Content, labels: &Content) -> Result<Numbered, DataError> {
    let array = |file| Array::of_npy(&<&Content>::clone(&file).bytes).map_err(|what| wrong(file, what));
    let (shape, pixels) = array(images)?.images().map_err(|what| wrong(images, what))?;
    let numbers = array(labels)?.labels().map_err(|what| wrong(labels, what))?;
    Ok((shape, pixels, numbers))
}

/// The names of two tables that make a set.
pub(super) fn csv_in(files: &Files) -> Option<[String; 2]> {
    let is_csv = |name: &&str| name.ends_with(".csv") || name.ends_with(".csv.gz");
    let find = |part: &str| files.names().filter(is_csv).find(|name| name.to_ascii_lowercase().contains(part));
    Some([find("train")?.to_owned(), find("test")?.to_owned()])
}

pub(super) fn load_csv(files: &mut Files, names: &[String; 2]) -> Result<Split, DataError> {
    let (train, test) = (table(&files.take(&names[0])?)?, table(&files.take(&names[1])?)?);
    Split::labelled(train, test, &files.origin)
}

/// Whether the columns of a first line are a label and the pixels of a grey square.
pub(super) fn is_table(head: &str) -> bool {
    let pixels = head.lines().next().unwrap_or_default().split(',').count().saturating_sub(1);
    pixels >= MIN_PIXELS && pixels.isqrt().pow(2) == pixels
}

/// A label and the pixels of a grey square in each row, with or without a line of names.
fn table(file: &Content) -> Result<Numbered, DataError> {
    let text = std::str::from_utf8(&file.bytes).map_err(|error| wrong(file, error.to_string()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let field = |field: &str| field.trim().trim_matches('"').to_owned();
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
    let first: Vec<String> = lines.peek().map(|(_, line)| line.split(',').map(field).collect()).unwrap_or_default();
    let has_names = first.iter().any(|field| field.parse::<f64>().is_err());
    let label_column = first.iter().position(|name| LABEL_COLUMNS.contains(&name.to_ascii_lowercase().as_str()));
    let label_column = if has_names { label_column.ok_or_else(|| wrong(file, "no column called label"))? } else { 0 };
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for (number, line) in lines.skip(usize::from(has_names)) {
        let mut count = 0;
        for (column, text) in line.split(',').enumerate() {
            let value: f64 = field(text).parse().map_err(|_| wrong(file, format!("line {}: {text:?}", number + 1)))?;
            if column == label_column {
                labels.push(value)
            } else {
                values.push(value)
            }
            count += 1;
        }
        if count != first.len() {
            return Err(wrong(file, format!("line {}: {count} columns, expected {}", number + 1, first.len())));
        }
    }
    let array = |shape: Vec<usize>, values: &[f64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dtype = Dtype::parse("<f8")?;
        Array::new(shape, dtype, false, Cow::Owned(bytes))
    };
    let rows = labels.len();
    let (Some(images), Some(labels)) =
        (array(vec![rows, first.len().saturating_sub(1)], &values), array(vec![rows], &labels))
    else {
        return Err(wrong(file, "no table"));
    };
    let (shape, pixels) = images.images().map_err(|what| wrong(file, what))?;
    Ok((shape, pixels, labels.labels().map_err(|what| wrong(file, what))?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_tables_never_panic(text in "[a-z0-9,.\"\n-]{0,200}") {
            let _ = table(&Content { path: "x".into(), bytes: text.into_bytes() });
        }

        #[test]
        fn arbitrary_archives_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [b"PK\x03\x04".to_vec(), bytes].concat();
            let file = Content { path: "x".into(), bytes };
            prop_assert!(load_npz(&file).is_err());
        }
    }
}
