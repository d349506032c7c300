//! Image folders, `train/<class>/…` and `test/<class>/…`, and single images.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageReader, Limits};
use rayon::prelude::*;

use crate::data::{DataError, Dataset, Filter, MAX_SIDE, Resize, Split, files};
use crate::shape::Shape;

/// Most bytes of decoded images in one part of a split.
const LIMIT_BYTES: usize = 16 << 30;
/// Most bytes a decoder may take for one image.
const DECODER_LIMIT_BYTES: u64 = 256 << 20;

pub(super) fn is_in(folder: &Path) -> bool {
    folder.join("train").is_dir()
}

pub(super) fn load(folder: &Path, resize: Option<Resize>) -> Result<Split, DataError> {
    let train_folder = folder.join("train");
    let names: Vec<String> = subfolders(&train_folder)?.into_iter().map(|(name, _)| name).collect();
    if names.is_empty() {
        return Err(DataError::Empty { path: train_folder });
    }
    let train = part(&train_folder, &names, resize)?;
    let mut test_folder = folder.join("test");
    if !test_folder.is_dir() && folder.join("val").is_dir() {
        test_folder = folder.join("val");
    }
    let test = part(&test_folder, &names, resize)?;
    Ok(Split { train, test })
}

fn subfolders(folder: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    Ok(files::entries(folder)?.into_iter().filter(|(name, path)| !name.starts_with('.') && path.is_dir()).collect())
}

fn part(folder: &Path, names: &[String], resize: Option<Resize>) -> Result<Dataset, DataError> {
    let (mut paths, mut labels) = (Vec::new(), Vec::new());
    for (name, path) in subfolders(folder)? {
        let Ok(label) = names.binary_search(&name) else { return Err(DataError::Class { path }) };
        let before = paths.len();
        paths.extend(files::entries(&path)?.into_iter().filter(|(name, _)| is_image(name)).map(|(_, path)| path));
        if paths.len() == before {
            return Err(DataError::Empty { path });
        }
        labels.resize(paths.len(), label as u32);
    }
    let Some(first) = paths.first() else { return Err(DataError::Empty { path: folder.to_owned() }) };
    let (shape, _) = decode(first, resize)?;
    let bytes = paths.len().saturating_mul(shape.len());
    if bytes > LIMIT_BYTES {
        return Err(DataError::TooLarge { path: folder.to_owned(), limit: format!("{LIMIT_BYTES} bytes of pixels") });
    }
    let mut images = vec![0; bytes];
    images.par_chunks_exact_mut(shape.len()).zip(&paths).try_for_each(|(image, path)| {
        let (got, pixels) = decode(path, resize)?;
        if got != shape {
            return Err(DataError::MixedSizes { path: path.clone(), expected: shape, got });
        }
        image.copy_from_slice(&pixels);
        Ok(())
    })?;
    Dataset::new(images, labels, shape, names.to_vec())
}

fn is_image(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    !name.starts_with('.') && matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// Whether a file ends as JPEG or PNG does. The decoders take a JPEG cut short and make up the rest.
fn is_complete(file: &[u8]) -> bool {
    // Cameras and editors append a little.
    let tail = file.get(file.len().saturating_sub(4096)..).unwrap_or_default();
    let end: &[u8] = if file.starts_with(&[0xff, 0xd8]) { b"\xff\xd9" } else { b"IEND\xae\x42\x60\x82" };
    tail.windows(end.len()).any(|window| window == end)
}

/// The image as 3×H×W bytes; greys become equal channels.
fn decode(path: &Path, resize: Option<Resize>) -> Result<(Shape, Vec<u8>), DataError> {
    let failed = |message: String| DataError::Image { path: path.to_owned(), message };
    let file = files::read_file(path)?;
    if !is_complete(&file.bytes) {
        return Err(failed(format!("no end marker before offset {}", file.bytes.len())));
    }
    let mut reader = ImageReader::new(Cursor::new(&file.bytes))
        .with_guessed_format()
        .map_err(|source| DataError::Read { path: path.to_owned(), offset: 0, source })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(DECODER_LIMIT_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| failed(error.to_string()))?.into_rgb8();
    let (width, height) = image.dimensions();
    let shape = Shape::new(3, height as usize, width as usize);
    if shape.is_empty() {
        return Err(failed("no pixel".to_owned()));
    }
    let planes: Vec<u8> = (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect();
    Ok(match resize {
        Some(resize) => (resize.shape(shape), resize.apply(&planes, shape)),
        None => (shape, planes),
    })
}

/// One JPEG or PNG image as channels×H×W bytes of the given shape: resized bilinearly where it is of another size, and
/// turned grey for one channel.
///
/// # Errors
/// A file that cannot be read or decoded, or a shape with channels other than 1 and 3.
pub fn read_image(path: &Path, shape: Shape) -> Result<Vec<u8>, DataError> {
    let resize = Resize { height: shape.height, width: shape.width, filter: Filter::Bilinear };
    let (got, planes) = decode(path, Some(resize))?;
    match shape.channels {
        3 => Ok(planes),
        // Luma of ITU-R BT.601.
        1 => Ok((0..got.pixels())
            .map(|i| {
                let of = |channel: usize| f32::from(planes.get(channel * got.pixels() + i).copied().unwrap_or(0));
                (0.299 * of(0) + 0.587 * of(1) + 0.114 * of(2)).round() as u8
            })
            .collect()),
        _ => Err(DataError::MixedSizes { path: path.to_owned(), expected: shape, got }),
    }
}

/// Writes one image of 1 or 3 channels as PNG.
///
/// # Errors
/// Pixels that do not fit the shape, other numbers of channels, or a file that cannot be written.
pub fn write_png(path: &Path, pixels: &[u8], shape: Shape) -> Result<(), DataError> {
    let failed = |message: String| DataError::Image { path: path.to_owned(), message };
    if pixels.len() != shape.len() || !matches!(shape.channels, 1 | 3) {
        return Err(failed(format!("{} values are no image of shape {shape:?}", pixels.len())));
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
