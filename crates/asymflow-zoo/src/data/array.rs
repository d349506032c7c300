//! Arrays of numbers as numpy keeps them, in `.npy` files and in pickles, and what images and labels they are.

use std::borrow::Cow;

use crate::data::MAX_SIDE;
use crate::shape::Shape;

/// Most dimensions that are looked at.
const MAX_DIMENSIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Unsigned,
    Signed,
    Float,
}

/// The type of an array's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dtype {
    kind: Kind,
    bytes: usize,
    pub big_endian: bool,
}

impl Dtype {
    /// As numpy writes it: `|u1`, `<i8`, `>f4`.
    pub fn parse(text: &str) -> Option<Self> {
        let big_endian = text.starts_with('>');
        let text = text.trim_start_matches(['<', '>', '|', '=']);
        let bytes = text.get(1..)?.parse().ok()?;
        let kind = match (text.get(..1)?, bytes) {
            ("u" | "b", 1) | ("u", 2 | 4 | 8) => Kind::Unsigned,
            ("i", 1 | 2 | 4 | 8) => Kind::Signed,
            ("f", 4 | 8) => Kind::Float,
            _ => return None,
        };
        Some(Self { kind, bytes, big_endian })
    }

    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// One number.
    pub fn number(self, bytes: &[u8]) -> f64 {
        let big = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
        let bits = if self.big_endian { bytes.iter().fold(0, big) } else { bytes.iter().rev().fold(0, big) };
        let unused = 64 - 8 * self.bytes.min(8) as u32;
        match self.kind {
            Kind::Unsigned => bits as f64,
            Kind::Signed => ((bits << unused) as i64 >> unused) as f64,
            Kind::Float if self.bytes == 4 => f64::from(f32::from_bits(bits as u32)),
            Kind::Float => f64::from_bits(bits),
        }
    }
}

/// An array of as many numbers as its shape says.
#[derive(Debug)]
pub(super) struct Array<'a> {
    pub shape: Vec<usize>,
    dtype: Dtype,
    column_major: bool,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    pub fn new(shape: Vec<usize>, dtype: Dtype, column_major: bool, bytes: Cow<'a, [u8]>) -> Option<Self> {
        let values = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side))?;
        let fits = values.checked_mul(dtype.bytes) == Some(bytes.len()) && shape.len() <= MAX_DIMENSIONS;
        fits.then_some(Self { shape, dtype, column_major, bytes })
    }

    /// The content of a `.npy` file.
    pub fn of_npy(file: &'a [u8]) -> Result<Self, &'static str> {
        let rest = file.strip_prefix(b"\x93NUMPY").ok_or("no .npy file")?;
        let (header, body) = match rest {
            [1, _, a, b, rest @ ..] => rest.split_at_checked(usize::from(u16::from_le_bytes([*a, *b]))),
            [2 | 3, _, a, b, c, d, rest @ ..] => rest.split_at_checked(u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            _ => None,
        }
        .ok_or("header cut short")?;
        let header = String::from_utf8_lossy(header);
        let field = |name: &str| {
            let at = header.find(&format!("'{name}'"))? + name.len() + 2;
            Some(header[at..].trim_start().strip_prefix(':')?.trim_start())
        };
        let descr = field("descr").and_then(|text| text.strip_prefix('\'')?.split('\'').next());
        let dtype = descr.and_then(Dtype::parse).ok_or("numbers of a type that is not read")?;
        let sides = field("shape").and_then(|text| text.strip_prefix('(')?.split(')').next()).ok_or("no shape")?;
        let sides = sides.split(',').map(str::trim).filter(|side| !side.is_empty());
        let shape: Result<Vec<usize>, _> = sides.map(|side| side.trim_end_matches('L').parse()).collect();
        let column_major = field("fortran_order").is_some_and(|text| text.starts_with("True"));
        let shape = shape.map_err(|_| "no shape")?;
        Self::new(shape, dtype, column_major, Cow::Borrowed(body)).ok_or("another length than its shape says")
    }

    /// All numbers, the last dimension running fastest.
    fn numbers(&self) -> Vec<f64> {
        let mut numbers: Vec<f64> = self.bytes.chunks_exact(self.dtype.bytes).map(|c| self.dtype.number(c)).collect();
        if self.column_major && self.shape.len() > 1 {
            let sorted = numbers;
            numbers = vec![0.0; sorted.len()];
            for (at, value) in sorted.into_iter().enumerate() {
                let mut rest = at;
                let place = |(place, stride): (usize, usize), side: &usize| {
                    let index = rest % side;
                    rest /= side;
                    let stride = stride / side;
                    (place + index * stride, stride)
                };
                let (place, _) = self.shape.iter().fold((0, self.bytes.len() / self.dtype.bytes), place);
                numbers[place] = value;
            }
        }
        numbers
    }

    /// Whole numbers of one dimension, or of two of which the second is 1.
    pub fn labels(&self) -> Result<Vec<i64>, String> {
        if !matches!(self.shape[..], [_] | [_, 1]) {
            return Err(format!("labels of shape {:?}, expected one number an image", self.shape));
        }
        let whole = |value: f64| (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64);
        self.numbers()
            .into_iter()
            .map(whole)
            .collect::<Option<_>>()
            .ok_or_else(|| "labels that are not whole".to_owned())
    }

    /// The labels of rows of one number or more, of which the first is it.
    pub fn first_column(mut self) -> Result<Vec<i64>, String> {
        if let [rows, columns] = self.shape[..]
            && columns > 1
        {
            let row = columns * self.dtype.bytes;
            let first = self.bytes.chunks_exact(row).flat_map(|row| &row[..self.dtype.bytes]).copied().collect();
            (self.shape, self.bytes) = (vec![rows], Cow::Owned(first));
        }
        self.labels()
    }

    /// Bytes: whole numbers from 0 to 255, or fractions from 0 to 1 of floats.
    pub fn pixels(&self) -> Result<Vec<u8>, String> {
        if self.dtype.bytes == 1 && self.dtype.kind == Kind::Unsigned && !self.column_major {
            return Ok(self.bytes.to_vec());
        }
        let numbers = self.numbers();
        let unit = self.dtype.kind == Kind::Float && numbers.iter().all(|value| (0.0..=1.0).contains(value));
        let scale = if unit { 255.0 } else { 1.0 };
        let byte = |value: f64| {
            let scaled = value * scale;
            ((unit || scaled.fract() == 0.0) && (0.0..=255.0).contains(&scaled)).then_some(scaled.round() as u8)
        };
        numbers
            .into_iter()
            .map(byte)
            .collect::<Option<_>>()
            .ok_or_else(|| "pixels that are neither whole numbers from 0 to 255 nor fractions from 0 to 1".to_owned())
    }

    /// Images N×H×W, N×H×W×C, N×C×H×W, or flattened grey squares N×(H·H), as N×C×H×W bytes.
    pub fn images(&self) -> Result<(Shape, Vec<u8>), String> {
        let side = |pixels: usize| Some(pixels.isqrt()).filter(|side| side * side == pixels);
        let (shape, channels_last) = match self.shape[..] {
            [_, height, width] => (Shape::new(1, height, width), false),
            [_, height, width, channels @ (1 | 3)] if !matches!(height, 1 | 3) => {
                (Shape::new(channels, height, width), true)
            }
            [_, channels @ (1 | 3), height, width] if !matches!(width, 1 | 3) => {
                (Shape::new(channels, height, width), false)
            }
            [_, pixels] if side(pixels).is_some() => {
                let side = side(pixels).unwrap_or_default();
                (Shape::new(1, side, side), false)
            }
            _ => return Err(format!("{:?} is no shape of images: write N×H×W or N×H×W×3", self.shape)),
        };
        if shape.is_empty() || shape.height > MAX_SIDE || shape.width > MAX_SIDE {
            return Err(format!("{:?} is no shape of images: sides are from 1 to {MAX_SIDE}", self.shape));
        }
        let pixels = self.pixels()?;
        Ok((shape, if channels_last { planes(&pixels, shape) } else { pixels }))
    }
}

/// Images with channels last as images with channels first.
fn planes(pixels: &[u8], shape: Shape) -> Vec<u8> {
    let image = |image: &[u8]| {
        let channel = |channel: usize| image.iter().skip(channel).step_by(shape.channels).copied().collect::<Vec<u8>>();
        (0..shape.channels).flat_map(channel).collect::<Vec<u8>>()
    };
    pixels.chunks_exact(shape.len()).flat_map(image).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn npy(header: &str, body: &[u8]) -> Vec<u8> {
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), body].concat()
    }

    #[test]
    fn column_major_arrays_are_turned() {
        let file = npy("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }", &[1, 4, 2, 5, 3, 6]);
        assert_eq!(Array::of_npy(&file).unwrap().pixels().unwrap(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn numbers_of_every_type() {
        let of = |text: &str, bytes: &[u8]| Dtype::parse(text).unwrap().number(bytes);
        assert_eq!(of("<i2", &[0xfe, 0xff]), -2.0);
        assert_eq!(of(">i4", &[0xff, 0xff, 0xff, 0xfe]), -2.0);
        assert_eq!(of(">u2", &[1, 0]), 256.0);
        assert_eq!(of("<f4", &1.5_f32.to_le_bytes()), 1.5);
        assert_eq!(of("<i8", &(-7_i64).to_le_bytes()), -7.0);
        assert!(Dtype::parse("|O8").is_none() && Dtype::parse("<f2").is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(header in "[{}'(),:a-z0-9<>| ]{0,80}", body in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(array) = Array::of_npy(&npy(&header, &body)) {
                let _ = (array.images(), array.labels());
            }
        }

        #[test]
        fn arbitrary_shapes_never_panic(shape in prop::collection::vec(0_usize..5, 0..6), major: bool) {
            let bytes = vec![1; shape.iter().product()];
            if let Some(array) = Array::new(shape, Dtype::parse("|u1").unwrap(), major, Cow::Owned(bytes)) {
                let _ = (array.images(), array.labels());
            }
        }
    }
}
