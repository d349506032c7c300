//! The resizing of images.

use image::GrayImage;
use image::imageops::{self, FilterType};

use crate::shape::Shape;

/// Longest side of an image, in pixels.
pub const MAX_SIDE: usize = 8192;

/// Stretches or shrinks images to one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Rows, from 1 to [`MAX_SIDE`].
    pub height: usize,
    /// Columns, from 1 to [`MAX_SIDE`].
    pub width: usize,
    /// How pixels in between are made.
    pub filter: Filter,
}

/// How [`Resize`] makes pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Takes the nearest pixel.
    Nearest,
    /// Interpolates linearly; when shrinking, over a window that grows with the factor.
    Bilinear,
}

impl Resize {
    /// Shape of an image of shape `from` afterwards.
    pub(super) fn shape(self, from: Shape) -> Shape {
        Shape::new(from.channels, self.height, self.width)
    }

    /// The planes of shape `from`, each resized.
    pub(super) fn apply(self, planes: &[u8], from: Shape) -> Vec<u8> {
        if self.shape(from) == from {
            return planes.to_vec();
        }
        let filter = match self.filter {
            Filter::Nearest => FilterType::Nearest,
            Filter::Bilinear => FilterType::Triangle,
        };
        let resize = |plane: &[u8]| {
            let image = GrayImage::from_raw(from.width as u32, from.height as u32, plane.to_vec())?;
            Some(imageops::resize(&image, self.width as u32, self.height as u32, filter).into_raw())
        };
        planes.chunks_exact(from.pixels()).filter_map(resize).flatten().collect()
    }
}
