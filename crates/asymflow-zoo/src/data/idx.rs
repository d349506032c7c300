//! MNIST's IDX files (LeCun 1998), gzipped or not; also Fashion-MNIST's.

use crate::data::files::{Content, Files};
use crate::data::{DataError, Dataset, MAX_SIDE, Split};
use crate::shape::Shape;

const CLASSES: usize = 10;

/// The names under which the four files go about, without `.gz`.
fn name(part: &str, what: &str, files: &Files) -> Option<String> {
    let stems = [format!("{part}-{what}-ubyte"), format!("{part}-{}-ubyte", what.replace("-idx", ".idx"))];
    stems.into_iter().flat_map(|stem| [format!("{stem}.gz"), stem]).find(|name| files.has(name))
}

pub(super) fn is_in(files: &Files) -> bool {
    name("train", "images-idx3", files).is_some()
}

pub(super) fn load(files: &mut Files) -> Result<Split, DataError> {
    let train = part("train", files)?;
    let test = part("t10k", files)?;
    Ok(Split { train, test })
}

fn part(part: &str, files: &mut Files) -> Result<Dataset, DataError> {
    let mut take = |what: &str| {
        let name = name(part, what, files).unwrap_or_else(|| format!("{part}-{what}-ubyte"));
        files.take(&name)
    };
    let (shape, images) = parse_images(take("images-idx3")?)?;
    let file = take("labels-idx1")?;
    let path = file.path.clone();
    let labels = parse_labels(file)?;
    let count = images.len() / shape.len();
    if labels.len() != count {
        return Err(DataError::Count { path, images: count, labels: labels.len() });
    }
    Dataset::new(images, labels, shape, (0..CLASSES).map(|class| class.to_string()).collect())
}

/// The big-endian field at `offset`.
fn field(file: &Content, offset: usize) -> Result<u32, DataError> {
    match file.bytes.get(offset..offset + 4) {
        Some(bytes) => Ok(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))),
        None => {
            let missing = offset + 4 - file.bytes.len();
            Err(DataError::Truncated { path: file.path.clone(), offset: file.bytes.len(), missing })
        }
    }
}

/// Checks the magic number of an array of bytes with `dimensions` dimensions.
fn check_magic(file: &Content, dimensions: u32) -> Result<(), DataError> {
    let (expected, got) = (0x0800 + dimensions, field(file, 0)?);
    if got == expected {
        return Ok(());
    }
    let expected = expected.to_string();
    Err(DataError::Header { path: file.path.clone(), offset: 0, field: "magic number", expected, got })
}

/// Checks that the file ends `body` bytes after its header, and cuts the header off.
fn body(file: Content, header: usize, body: usize) -> Result<Vec<u8>, DataError> {
    let (end, len) = (header.saturating_add(body), file.bytes.len());
    if len < end {
        return Err(DataError::Truncated { path: file.path, offset: len, missing: end - len });
    }
    if len > end {
        return Err(DataError::Trailing { path: file.path, offset: end, extra: len - end });
    }
    if body == 0 {
        return Err(DataError::Empty { path: file.path });
    }
    let mut bytes = file.bytes;
    bytes.drain(..header);
    Ok(bytes)
}

/// Images N×1×H×W and their shape.
fn parse_images(file: Content) -> Result<(Shape, Vec<u8>), DataError> {
    check_magic(&file, 3)?;
    let count = field(&file, 4)?;
    let side = |offset, name| {
        let got = field(&file, offset)?;
        if (1..=MAX_SIDE).contains(&(got as usize)) {
            return Ok(got as usize);
        }
        let expected = format!("1 to {MAX_SIDE}");
        Err(DataError::Header { path: file.path.clone(), offset, field: name, expected, got })
    };
    let shape = Shape::new(1, side(8, "number of rows")?, side(12, "number of columns")?);
    let length = (count as usize).saturating_mul(shape.len());
    Ok((shape, body(file, 16, length)?))
}

fn parse_labels(file: Content) -> Result<Vec<u32>, DataError> {
    check_magic(&file, 1)?;
    let count = field(&file, 4)? as usize;
    let path = file.path.clone();
    let labels = body(file, 8, count)?;
    match labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        Some(index) => Err(DataError::Label { path, at: 8 + index, label: i64::from(labels[index]), classes: CLASSES }),
        None => Ok(labels.into_iter().map(u32::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(bytes: Vec<u8>) -> Content {
        Content { path: "x".into(), bytes }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), valid: bool) {
            if valid && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[0, 0, 8, 3]);
            }
            if let Ok((shape, images)) = parse_images(content(bytes.clone())) {
                prop_assert_eq!(images.len() % shape.len(), 0);
            }
            if valid && bytes.len() >= 4 {
                bytes[3] = 1;
            }
            if let Ok(labels) = parse_labels(content(bytes)) {
                prop_assert!(labels.iter().all(|&label| label < 10));
            }
        }
    }
}
