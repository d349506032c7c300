//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in the official forms: binary, and python pickles.

use crate::data::files::{Content, Files};
use crate::data::pickle::Pickle;
use crate::data::{DataError, Dataset, Split};
use crate::models::CIFAR;

/// One of the four forms in which CIFAR is published.
#[derive(Debug)]
pub(super) struct Form {
    /// What it is called.
    pub name: &'static str,
    classes: usize,
    train: &'static [&'static str],
    test: &'static str,
    /// File with the names of the classes, which may be absent.
    names: &'static str,
    encoding: Encoding,
}

#[derive(Debug)]
enum Encoding {
    /// Records of so many label bytes, the last of which counts, and an image.
    Binary { label_bytes: usize },
    /// Dictionaries with the labels, and in the file of names the names, under these keys.
    Pickle { labels: &'static str, names: &'static str },
}

const FORMS: [Form; 4] = [
    Form {
        name: "CIFAR-10, binary",
        classes: 10,
        train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        test: "test_batch.bin",
        names: "batches.meta.txt",
        encoding: Encoding::Binary { label_bytes: 1 },
    },
    Form {
        name: "CIFAR-100, binary",
        classes: 100,
        train: &["train.bin"],
        test: "test.bin",
        names: "fine_label_names.txt",
        encoding: Encoding::Binary { label_bytes: 2 },
    },
    Form {
        name: "CIFAR-10, pickled",
        classes: 10,
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        names: "batches.meta",
        encoding: Encoding::Pickle { labels: "labels", names: "label_names" },
    },
    Form {
        name: "CIFAR-100, pickled",
        classes: 100,
        train: &["train"],
        test: "test",
        names: "meta",
        encoding: Encoding::Pickle { labels: "fine_labels", names: "fine_label_names" },
    },
];

/// Whether a file called `name` belongs to any form.
pub(super) fn is_wanted(name: &str) -> bool {
    FORMS.iter().any(|form| form.train.contains(&name) || [form.test, form.names].contains(&name))
}

/// The forms of which `files` holds at least one data file.
pub(super) fn forms_in(files: &Files) -> impl Iterator<Item = &'static Form> {
    FORMS.iter().filter(|form| form.train.iter().chain([&form.test]).any(|name| files.has(name)))
}

pub(super) fn load(form: &Form, files: &mut Files) -> Result<Split, DataError> {
    let names = class_names(form, files)?;
    let train = part(form, form.train, &names, files)?;
    let test = part(form, &[form.test], &names, files)?;
    Ok(Split { train, test })
}

fn part(form: &Form, parts: &[&str], names: &[String], files: &mut Files) -> Result<Dataset, DataError> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for name in parts {
        let file = files.take(name)?;
        if file.bytes.is_empty() {
            return Err(DataError::Empty { path: file.path });
        }
        match form.encoding {
            Encoding::Binary { label_bytes } => binary(&file, label_bytes, form.classes, &mut images, &mut labels)?,
            Encoding::Pickle { labels: key, .. } => pickled(&file, key, form.classes, &mut images, &mut labels)?,
        }
    }
    Dataset::new(images, labels, CIFAR, names.to_vec())
}

/// The published names; numbers where the file of names is absent.
fn class_names(form: &Form, files: &mut Files) -> Result<Vec<String>, DataError> {
    if !files.has(form.names) {
        return Ok((0..form.classes).map(|class| class.to_string()).collect());
    }
    let file = files.take(form.names)?;
    let names: Vec<String> = match form.encoding {
        Encoding::Binary { .. } => {
            let text = String::from_utf8_lossy(&file.bytes);
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        Encoding::Pickle { names, .. } => {
            read_pickle(&file)?.strings(names).ok_or_else(|| wrong(&file, "no list of class names"))?
        }
    };
    if names.len() != form.classes {
        let got = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let expected = form.classes.to_string();
        return Err(DataError::Header { path: file.path, offset: 0, field: "number of class names", expected, got });
    }
    Ok(names)
}

fn check_label(file: &Content, at: usize, label: i64, classes: usize) -> Result<u32, DataError> {
    match u32::try_from(label) {
        Ok(valid) if (valid as usize) < classes => Ok(valid),
        _ => Err(DataError::Label { path: file.path.clone(), at, label, classes }),
    }
}

fn binary(
    file: &Content,
    label_bytes: usize,
    classes: usize,
    images: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<(), DataError> {
    let record = label_bytes + CIFAR.len();
    let records = file.bytes.chunks_exact(record);
    let rest = records.remainder().len();
    if rest > 0 {
        return Err(DataError::Truncated { path: file.path.clone(), offset: file.bytes.len(), missing: record - rest });
    }
    for (index, bytes) in records.enumerate() {
        let (label, image) = bytes.split_at(label_bytes);
        let label = label.last().copied().unwrap_or_default();
        labels.push(check_label(file, index * record + label_bytes - 1, i64::from(label), classes)?);
        images.extend_from_slice(image);
    }
    Ok(())
}

fn read_pickle(file: &Content) -> Result<Pickle<'_>, DataError> {
    Pickle::read(&file.bytes).map_err(|error| DataError::Pickle {
        path: file.path.clone(),
        offset: error.offset,
        what: error.what,
    })
}

fn wrong(file: &Content, what: &'static str) -> DataError {
    DataError::Pickle { path: file.path.clone(), offset: file.bytes.len(), what }
}

fn pickled(
    file: &Content,
    key: &str,
    classes: usize,
    images: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<(), DataError> {
    let pickle = read_pickle(file)?;
    let array = pickle.array("data").ok_or_else(|| wrong(file, "\"data\" is no numpy array"))?;
    let data = match array.shape[..] {
        [_, columns] if columns == CIFAR.len() => array.pixels().ok(),
        _ => array.images().ok().filter(|(shape, _)| *shape == CIFAR).map(|(_, pixels)| pixels),
    };
    let data = data.ok_or_else(|| wrong(file, "\"data\" holds no images of 3x32x32 bytes"))?;
    let rows = data.len() / CIFAR.len();
    let list = pickle.integers(key).ok_or_else(|| wrong(file, "no list of labels"))?;
    if list.len() != rows {
        return Err(DataError::Count { path: file.path.clone(), images: rows, labels: list.len() });
    }
    for (index, &label) in list.iter().enumerate() {
        labels.push(check_label(file, index, label, classes)?);
    }
    images.extend_from_slice(&data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_records_never_panic(seed: u8, len in 0_usize..10_000, label_bytes in 1_usize..=2) {
            let bytes = (0..len).map(|i| (i as u8).wrapping_mul(seed)).collect();
            let file = Content { path: "x".into(), bytes };
            let (mut images, mut labels) = (Vec::new(), Vec::new());
            if binary(&file, label_bytes, 10, &mut images, &mut labels).is_ok() {
                prop_assert_eq!(images.len(), labels.len() * CIFAR.len());
                prop_assert_eq!(len % (CIFAR.len() + label_bytes), 0);
            }
        }
    }
}
