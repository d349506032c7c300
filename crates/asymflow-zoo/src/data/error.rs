//! What can go wrong with data.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::data::Preparation;
use crate::shape::Shape;

/// Why there is no data set. Offsets are in bytes of the decompressed file, as far as it was read.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file or folder that must be there is not.
    #[error("{}: not found", path.display())]
    Missing {
        /// The file or folder.
        path: PathBuf,
    },
    /// The path holds none of the known formats.
    #[error(
        "{}: no known data set{found} (expected CIFAR .bin files or pickles, in a folder or tar.gz; idx files; image folders \
         train/<class> and test/<class>; arrays x_train, y_train, x_test, y_test as .npz or .npy; or tables train.csv \
         and test.csv of a label and the pixels of a grey square)",
        path.display()
    )]
    Unrecognised {
        /// The path.
        path: PathBuf,
        /// What lies there instead, after a colon.
        found: String,
    },
    /// A file or folder holds no sample.
    #[error("{}: empty", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// Reading or decompressing failed.
    #[error("{}: cannot be read after offset {offset}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Bytes read before.
        offset: usize,
        /// What the system or the decompressor says.
        source: io::Error,
    },
    /// A file ends too early.
    #[error("{}: truncated at offset {offset}, {missing} bytes missing", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        offset: usize,
        /// How many more are needed.
        missing: usize,
    },
    /// A file does not end where it should.
    #[error("{}: {extra} bytes too many from offset {offset} on", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Where it should end.
        offset: usize,
        /// How many there are after that.
        extra: usize,
    },
    /// A header field has another value than it must have.
    #[error("{}: {field} at offset {offset} is {got}, expected {expected}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Where the field stands.
        offset: usize,
        /// Which field.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: u32,
    },
    /// A pickle that is damaged or holds something else than a CIFAR batch.
    #[error("{}: pickle, offset {offset}: {what}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// An image file that does not decode.
    #[error("{}: not an image: {message}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        message: String,
    },
    /// Images of different shapes.
    #[error("{}: image of {got:?} among images of {expected:?} (data.resize brings all to one size)", path.display())]
    MixedSizes {
        /// The file.
        path: PathBuf,
        /// Shape of the images before.
        expected: Shape,
        /// Shape of this one.
        got: Shape,
    },
    /// More data than the reader takes.
    #[error("{}: more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// The limit, with its unit.
        limit: String,
    },
    /// No images can be prepared like this.
    #[error(
        "data.resize: {prepare:?}: sides are from 1 to {limit}, the shorter at least as long as both, channels 1 or 3"
    )]
    Preparation {
        /// What was asked for.
        prepare: Preparation,
        /// Longest side allowed.
        limit: usize,
    },
    /// More than one set lies there.
    #[error("{}: several data sets: {}; name the folder of one of them", path.display(), sets.join("; "))]
    Several {
        /// The folder.
        path: PathBuf,
        /// What they are and where.
        sets: Vec<String>,
    },
    /// Images without folders of classes.
    #[error(
        "{}: {images} images and no folder of a class: sort them into {}/<class>/", path.display(), path.display()
    )]
    Flat {
        /// The folder.
        path: PathBuf,
        /// How many.
        images: usize,
    },
    /// A training set without a test set.
    #[error("{}: no test set: move images of every class into {}/test/<class>/", path.display(), path.display())]
    NoTest {
        /// The folder.
        path: PathBuf,
    },
    /// An array or table that holds no images or labels.
    #[error("{}: {what}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A number of samples that is too large.
    #[error("{wanted} samples wanted, at most {available} can be had")]
    TooFew {
        /// Samples wanted.
        wanted: usize,
        /// Samples there.
        available: usize,
    },
    /// The test set has a class that the training set lacks.
    #[error("{}: no such class in the training set", path.display())]
    Class {
        /// Folder of the class.
        path: PathBuf,
    },
    /// A label that names no class.
    #[error("{}: label {label} at {at} is not below the number of classes, {classes}", path.display())]
    Label {
        /// The file; empty for data made in memory.
        path: PathBuf,
        /// Byte offset; the index of the label in a pickle and in memory.
        at: usize,
        /// The label.
        label: i64,
        /// Number of classes.
        classes: usize,
    },
    /// Different numbers of images and labels.
    #[error("{}: {labels} labels for {images} images", path.display())]
    Count {
        /// The file of the labels.
        path: PathBuf,
        /// Number of images.
        images: usize,
        /// Number of labels.
        labels: usize,
    },
    /// Training and test images of different shapes.
    #[error("training images are {train:?}, test images {test:?}")]
    SplitShapes {
        /// Shape of the training images.
        train: Shape,
        /// Shape of the test images.
        test: Shape,
    },
    /// Images and labels in memory that do not belong together.
    #[error("{bytes} bytes of images and {labels} labels do not make samples of {shape}")]
    Length {
        /// Bytes of all images.
        bytes: usize,
        /// Number of labels.
        labels: usize,
        /// Shape of one image.
        shape: Shape,
    },
}
