//! Making images fit a network: channels and sides, pixel for pixel as Pillow and torchvision do.

use serde::{Deserialize, Serialize};

use crate::shape::Shape;

/// Longest side of an image, in pixels.
pub const MAX_SIDE: usize = 16_384;

/// What is done to every image before a network sees it: in training, in evaluation, and by whoever asks a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// Channels, 1 or 3: grey becomes three equal channels, colours become their luma of ITU-R BT.601 as Pillow's mode `L` has it.
    /// Without it images keep those that they have; in folders of photographs that is 3.
    pub channels: Option<usize>,
    /// Another size.
    pub resize: Option<Resize>,
}

/// Brings images to one size.
///
/// Equal to Pillow's `Image.resize`, and with `shorter` to torchvision's `Resize(shorter)` followed by
/// `CenterCrop((height, width))`, on 8-bit images, pixel for pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Rows, from 1 to [`MAX_SIDE`].
    pub height: usize,
    /// Columns, from 1 to [`MAX_SIDE`].
    pub width: usize,
    /// Pixels to which the shorter side is brought, keeping proportions, before the centre is cut out: at least `height` and `width`.
    /// Without it images are stretched.
    #[serde(default)]
    pub shorter: Option<usize>,
    /// How pixels in between are made.
    #[serde(default)]
    pub filter: Filter,
}

/// How [`Resize`] makes pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Takes the nearest pixel.
    Nearest,
    /// Interpolates linearly; when shrinking, over a window that grows with the factor.
    #[default]
    Bilinear,
    /// Interpolates by cubics (Keys 1981, a = −1/2), over such a window.
    Bicubic,
}

impl Preparation {
    /// Shape of images of shape `from` afterwards.
    pub(super) fn shape(self, from: Shape) -> Shape {
        let Shape { height, width, .. } = self.resize.map_or(from, |resize| resize.shape(from));
        Shape::new(self.channels.unwrap_or(from.channels), height, width)
    }

    /// One image of shape `from`, C×H×W, prepared.
    pub(super) fn apply(self, planes: Vec<u8>, from: Shape) -> Vec<u8> {
        let planes = match (from.channels, self.channels) {
            (3, Some(1)) => luma(&planes, from.pixels()),
            (1, Some(3)) => planes.repeat(3),
            _ => planes,
        };
        let pixels = from.pixels();
        match self.resize {
            Some(resize) => planes.chunks_exact(pixels).flat_map(|plane| resize.plane(plane, from)).collect(),
            None => planes,
        }
    }

    /// Whether images can be prepared like this.
    pub(super) fn is_valid(self) -> bool {
        let fits = |Resize { height, width, shorter, .. }: Resize| {
            let cut = shorter.is_none_or(|side| side >= height.max(width) && side <= MAX_SIDE);
            cut && [height, width].iter().all(|side| (1..=MAX_SIDE).contains(side))
        };
        self.resize.is_none_or(fits) && self.channels.is_none_or(|channels| channels == 1 || channels == 3)
    }
}

/// The luma of every pixel; weights are fractions of 16 bits, as Pillow has them.
fn luma(planes: &[u8], pixels: usize) -> Vec<u8> {
    let (red, rest) = planes.split_at(pixels);
    let (green, blue) = rest.split_at(pixels);
    let of = |((&r, &g), &b): ((&u8, &u8), &u8)| {
        ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
    };
    red.iter().zip(green).zip(blue).map(of).collect()
}

impl Resize {
    /// Shape of an image of shape `from` afterwards.
    fn shape(self, from: Shape) -> Shape {
        Shape::new(from.channels, self.height, self.width)
    }

    fn plane(self, plane: &[u8], from: Shape) -> Vec<u8> {
        let size = (from.height, from.width);
        let Some(shorter) = self.shorter else { return self.filter.scale(plane, size, (self.height, self.width)) };
        let long = |long: usize, short: usize| (shorter * long / short).clamp(1, 4 * MAX_SIDE);
        let scaled = if from.width <= from.height {
            (long(from.height, from.width), shorter)
        } else {
            (shorter, long(from.width, from.height))
        };
        let plane = self.filter.scale(plane, size, scaled);
        // Python's `round`, which halves go to even numbers of.
        let first = |of: usize, wanted: usize| (of.saturating_sub(wanted) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (first(scaled.0, self.height), first(scaled.1, self.width));
        let rows = plane.chunks_exact(scaled.1).skip(top).take(self.height);
        rows.flat_map(|row| row.iter().skip(left).take(self.width)).copied().collect()
    }
}

/// Bits behind the point in the weights of pixels.
const FRACTION_BITS: u32 = 22;

impl Filter {
    /// A plane of `from` rows and columns in `to` rows and columns: along rows first, each pass rounded to bytes.
    fn scale(self, plane: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
        let mut plane = plane.to_vec();
        if from.1 != to.1 {
            let taps = self.taps(from.1, to.1);
            plane = plane.chunks_exact(from.1).flat_map(|row| taps.iter().map(|tap| tap.sum(row.iter()))).collect();
        }
        if from.0 != to.0 {
            let column = |x: usize| plane.iter().skip(x).step_by(to.1);
            let taps = self.taps(from.0, to.0);
            plane = taps.iter().flat_map(|tap| (0..to.1).map(|x| tap.sum(column(x)))).collect();
        }
        plane
    }

    /// Half of the width of the window, in pixels of the coarser of both images.
    const fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Nearest => 1.0,
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }

    /// What each pixel of a line of `to` is made of in one of `from`.
    fn taps(self, from: usize, to: usize) -> Vec<Tap> {
        let scale = from as f64 / to as f64;
        if self == Self::Nearest {
            // By adding up, as Pillow does: products round otherwise.
            let at = std::iter::successors(Some(scale / 2.0), |at| Some(at + scale));
            let tap = |at: f64| Tap { start: (at as usize).min(from - 1), weights: vec![1 << FRACTION_BITS] };
            return at.take(to).map(tap).collect();
        }
        let stretch = scale.max(1.0);
        let inverse = 1.0 / stretch;
        let support = self.support() * stretch;
        let tap = |x: usize| {
            let centre = (x as f64 + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weight = |at: usize| self.weight((at as f64 - centre + 0.5) * inverse);
            let weights: Vec<f64> = (start..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let one = f64::from(1 << FRACTION_BITS);
            let fixed = |w: &f64| (w / sum * one + 0.5_f64.copysign(*w)) as i64;
            Tap { start, weights: weights.iter().map(fixed).collect() }
        };
        (0..to).map(tap).collect()
    }
}

/// A pixel as a weighted sum of pixels.
struct Tap {
    start: usize,
    weights: Vec<i64>,
}

impl Tap {
    fn sum<'a>(&self, line: impl Iterator<Item = &'a u8>) -> u8 {
        let terms = line.skip(self.start).zip(&self.weights).map(|(&pixel, weight)| i64::from(pixel) * weight);
        ((terms.sum::<i64>() + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).clamp(0, 255) as u8
    }
}
