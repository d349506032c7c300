//! Single images: what a file is, its content says.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::data::files::{self, Content};
use crate::data::{DataError, Filter, MAX_SIDE, Preparation, Resize};
use crate::shape::Shape;

/// Most bytes a decoder may take for one image.
const DECODER_LIMIT_BYTES: u64 = 384 << 20;

/// Names that claim to be images. Others are looked into.
pub(super) const EXTENSIONS: [&str; 18] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm",
    "heic", "heif", "avif",
];

/// Whether a file begins as an image that is read.
pub(super) fn is_image(head: &[u8]) -> bool {
    image::guess_format(head).is_ok_and(|format| format.reading_enabled())
}

/// What a file is that is no image, and what to do about it.
fn kind(bytes: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).trim_start().to_ascii_lowercase();
    let known: [(bool, &str); 9] = [
        (bytes.is_empty(), "an empty file"),
        (text.starts_with("<!doctype html") || text.starts_with("<html"), "HTML, perhaps an error page of a download"),
        (text.starts_with("version https://git-lfs"), "a pointer of git-lfs: fetch the file with `git lfs pull`"),
        (bytes.get(4..8) == Some(b"ftyp"), "HEIC, AVIF or a film: convert it to JPEG or PNG"),
        (text.starts_with("<svg") || text.starts_with("<?xml"), "SVG or other XML: convert it to PNG"),
        (text.starts_with("%pdf"), "PDF: convert it to PNG"),
        (bytes.starts_with(b"PK"), "a zip archive: unpack it"),
        (bytes.starts_with(&[0xff, 0x0a]) || bytes.get(4..8) == Some(b"JXL "), "JPEG XL: convert it to JPEG or PNG"),
        (bytes.starts_with(&[0x1f, 0x8b]), "gzip: unpack it"),
    ];
    known.into_iter().find(|(is, _)| *is).map_or("of no format that is read", |(_, what)| what)
}

/// Whether a JPEG ends. Its decoder takes one that is cut short and makes up the rest; what cameras append after the end is theirs.
fn jpeg_ends(file: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker]) = file.get(at..at + 2).and_then(|pair| pair.first_chunk::<2>()) {
        match marker {
            0xd9 => return true,
            // Fill bytes, and markers without content.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(length) = file.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(length[0]) * 256 + usize::from(length[1]);
                if marker == 0xda {
                    // Coded pixels end at the next marker that is neither a stuffed byte nor a restart.
                    let coded = file.get(at..).unwrap_or_default().windows(2);
                    let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7 | 0xff);
                    match coded.into_iter().position(ends) {
                        Some(length) => at += length,
                        None => return false,
                    }
                }
            }
        }
    }
    false
}

fn is_complete(file: &[u8]) -> bool {
    if file.starts_with(&[0xff, 0xd8]) {
        return jpeg_ends(file);
    }
    // A PNG's last chunk; the other decoders refuse what is cut short.
    !file.starts_with(b"\x89PNG") || file.windows(8).any(|window| window == b"IEND\xae\x42\x60\x82")
}

/// The image in a file as C×H×W bytes, prepared. It is turned as its EXIF orientation says; of a film the first frame counts,
/// transparency does not.
pub(super) fn decode(file: &Content, prepare: Preparation) -> Result<(Shape, Vec<u8>), DataError> {
    let failed = |message: String| DataError::Image { path: file.path.clone(), message };
    let Ok(format) = image::guess_format(&file.bytes) else { return Err(failed(kind(&file.bytes).to_owned())) };
    if !format.reading_enabled() {
        return Err(failed(format!("{format:?}: convert it to JPEG or PNG")));
    }
    if !is_complete(&file.bytes) {
        return Err(failed(format!("no end marker before offset {}", file.bytes.len())));
    }
    let mut reader = ImageReader::with_format(Cursor::new(&file.bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(DECODER_LIMIT_BYTES);
    reader.limits(limits);
    let decoded = reader.into_decoder().and_then(|mut decoder| {
        let turned = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(turned);
        Ok(image)
    });
    let image = decoded.map_err(|error| failed(error.to_string()))?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    let (channels, interleaved) = match (image.color().has_color(), prepare.channels) {
        (false, Some(1)) => (1, image.into_luma8().into_raw()),
        (true | false, _) => (3, image.into_rgb8().into_raw()),
    };
    let shape = Shape::new(channels, height, width);
    if shape.is_empty() {
        return Err(failed("no pixel".to_owned()));
    }
    let plane = |channel: usize| interleaved.iter().skip(channel).step_by(channels).copied();
    let planes: Vec<u8> = (0..channels).flat_map(plane).collect();
    Ok((prepare.shape(shape), prepare.apply(planes, shape)))
}

/// One image as channels×H×W bytes of the given shape, prepared as the images that a network was trained on: resized as `resize`
/// says, and without it stretched bilinearly where it is of another size. `-` is standard input; pipes are read as files are.
///
/// # Errors
/// A file that cannot be read or decoded, or a shape with channels other than 1 and 3.
pub fn read_image(path: &Path, shape: Shape, resize: Option<Resize>) -> Result<Vec<u8>, DataError> {
    let file = if path == Path::new("-") {
        files::read(std::io::stdin().lock(), Path::new("standard input"))?
    } else {
        files::read_file(path)?
    };
    let Shape { channels, height, width } = shape;
    let stretch = Resize { height, width, shorter: None, filter: Filter::Bilinear };
    let prepare = Preparation { channels: Some(channels), resize: Some(resize.unwrap_or(stretch)) };
    if !prepare.is_valid() {
        return Err(DataError::Preparation { prepare, limit: MAX_SIDE });
    }
    let (got, planes) = decode(&file, prepare)?;
    if got == shape { Ok(planes) } else { Err(DataError::MixedSizes { path: file.path, expected: shape, got }) }
}

/// Writes one image of 1 or 3 channels as PNG.
///
/// # Errors
/// Pixels that do not fit the shape, other numbers of channels, or a file that cannot be written.
pub fn write_png(path: &Path, pixels: &[u8], shape: Shape) -> Result<(), DataError> {
    let failed = |message: String| DataError::Image { path: path.to_owned(), message };
    if pixels.len() != shape.len() || !matches!(shape.channels, 1 | 3) {
        return Err(failed(format!("{} values are no image of {shape}", pixels.len())));
    }
    let (height, width) = (shape.height as u32, shape.width as u32);
    let interleaved: Vec<u8> = (0..shape.pixels())
        .flat_map(|i| (0..shape.channels).map(move |channel| channel * shape.pixels() + i))
        .filter_map(|index| pixels.get(index).copied())
        .collect();
    let colour = if shape.channels == 3 { image::ExtendedColorType::Rgb8 } else { image::ExtendedColorType::L8 };
    image::save_buffer_with_format(path, &interleaved, width, height, colour, image::ImageFormat::Png)
        .map_err(|error| failed(error.to_string()))
}
