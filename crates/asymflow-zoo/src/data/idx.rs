//! IDX files (LeCun 1998), gzipped or not: MNIST, and all that are published in its form.

use std::borrow::Cow;

use crate::data::array::{Array, Dtype};
use crate::data::files::{Content, Files};
use crate::data::{DataError, Split};
use crate::shape::Shape;

/// The four files of a set.
pub(super) struct Names {
    /// What stands before `train-images`: `emnist-letters-`, mostly nothing.
    pub prefix: String,
    files: [String; 4],
}

/// Every set among `files`: for each `PREFIXtrain-images-idx3-ubyte` the three others.
pub(super) fn sets_in(files: &Files) -> Vec<Names> {
    let plain = |name: &str| name.trim_end_matches(".gz").replace(".idx", "-idx");
    let of = |start: &str, what: &str| {
        let start = format!("{start}{what}-idx");
        files.names().find(|name| plain(name).starts_with(&start)).map(str::to_owned)
    };
    let prefix = |name: &str| Some(plain(name).split_once("train-images-idx")?.0.to_owned());
    let mut prefixes: Vec<String> = files.names().filter_map(prefix).collect();
    prefixes.dedup();
    let names = |prefix: String| {
        let part = |part: &str, what: &str| of(&format!("{prefix}{part}-"), what);
        let or_missing = |what: &str| part("t10k", what).or_else(|| part("test", what));
        let missing = |part: &str, what: &str| format!("{prefix}{part}-{what}-ubyte");
        let files = [
            part("train", "images").unwrap_or_default(),
            part("train", "labels").unwrap_or_else(|| missing("train", "labels-idx1")),
            or_missing("images").unwrap_or_else(|| missing("t10k", "images-idx3")),
            or_missing("labels").unwrap_or_else(|| missing("t10k", "labels-idx1")),
        ];
        Names { prefix, files }
    };
    prefixes.into_iter().map(names).collect()
}

pub(super) fn load(files: &mut Files, names: &Names) -> Result<Split, DataError> {
    let mut part = |images: &String, labels: &String| {
        let (shape, pixels) = parse_images(files.take(images)?)?;
        Ok::<_, DataError>((shape, pixels, parse_labels(files.take(labels)?)?))
    };
    let [a, b, c, d] = &names.files;
    let (train, test) = (part(a, b)?, part(c, d)?);
    Split::labelled(train, test, &files.origin)
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

/// The array in a file, which must have one of the numbers of dimensions.
fn parse<'a>(file: &'a Content, dimensions: &[u32]) -> Result<Array<'a>, DataError> {
    let got = field(file, 0)?;
    let header = |offset, name, expected: String, got| DataError::Header {
        path: file.path.clone(),
        offset,
        field: name,
        expected,
        got,
    };
    let dtype = match got >> 8 {
        0x08 => "|u1",
        0x09 => "|i1",
        0x0b => ">i2",
        0x0c => ">i4",
        0x0d => ">f4",
        0x0e => ">f8",
        _ => "",
    };
    let (Some(dtype), true) = (Dtype::parse(dtype), dimensions.contains(&(got & 0xff))) else {
        let expected: Vec<String> = dimensions.iter().map(|d| format!("{:#06x}", 0x0800 + d)).collect();
        return Err(header(0, "magic number", format!("one like {}", expected.join(" or ")), got));
    };
    let sides = (1..=got & 0xff).map(|dimension| field(file, 4 * dimension as usize));
    let shape: Vec<usize> = sides.map(|side| side.map(|side| side as usize)).collect::<Result<_, _>>()?;
    let (start, len) = (4 + 4 * shape.len(), file.bytes.len());
    let values = shape.iter().fold(1_usize, |product, &side| product.saturating_mul(side));
    let end = start.saturating_add(values.saturating_mul(dtype.bytes()));
    if len < end {
        return Err(DataError::Truncated { path: file.path.clone(), offset: len, missing: end - len });
    }
    if len > end {
        return Err(DataError::Trailing { path: file.path.clone(), offset: end, extra: len - end });
    }
    let body = Cow::Borrowed(file.bytes.get(start..).unwrap_or_default());
    if body.is_empty() {
        return Err(DataError::Empty { path: file.path.clone() });
    }
    Array::new(shape, dtype, false, body).ok_or_else(|| header(4, "shape", "that of the content".to_owned(), 0))
}

/// Images N×H×W, or with channels.
fn parse_images(file: Content) -> Result<(Shape, Vec<u8>), DataError> {
    let images = parse(&file, &[3, 4])?.images();
    images.map_err(|what| DataError::Array { path: file.path, what })
}

/// One number an image; of rows of numbers, as QMNIST has them, the first.
fn parse_labels(file: Content) -> Result<Vec<i64>, DataError> {
    let labels = parse(&file, &[1, 2])?.first_column();
    labels.map_err(|what| DataError::Array { path: file.path, what })
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
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_u8..16, dims in 0_u8..6) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[0, 0, kind, dims]);
            }
            if let Ok((shape, images)) = parse_images(content(bytes.clone())) {
                prop_assert_eq!(images.len() % shape.len(), 0);
            }
            let _ = parse_labels(content(bytes));
        }
    }
}
