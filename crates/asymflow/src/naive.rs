//! The naive control: noise on the images themselves, and everything else in the clear.

use asymflow_privacy::{DiscreteGaussian, Private, Relation, Sensitivity, release};
use asymflow_zoo::Dataset;
use asymflow_zoo::data::{DataError, Normalization, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use thiserror::Error;

use crate::accounting::{RecordAccountant, Released};
use crate::delta::DoorError;
use crate::release::{clip_records, zcdp_sigma};

/// Why images could not be noised. Nothing left.
#[derive(Debug, Error)]
pub enum NaiveError {
    /// The settings or the images do not pass the door.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The noised images make no data set.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// What guards the images.
#[derive(Clone, Copy, Debug)]
pub struct NaiveSpec {
    /// ε of one record, whose image is released once.
    pub epsilon: f64,
    /// δ of that ε.
    pub delta: f64,
    /// l2 norm to which a normalised image is clipped.
    pub clip: f64,
    /// Which inputs count as neighbours.
    pub relation: Relation,
}

/// Bytes span so many standard deviations of what is released on either side of zero.
const SPAN: f64 = 4.0;

/// The data with every image normalised, clipped and noised by the discrete Gaussian mechanism, then written as bytes again,
/// which releases nothing more; and the standard deviation of the noise. Test records are numbered after the training records.
///
/// # Errors
/// Settings out of range; then nothing leaves.
pub fn noised(data: &Split, spec: NaiveSpec, accountant: &mut RecordAccountant) -> Result<(Split, f64), NaiveError> {
    let sensitivity = Sensitivity::of_clipped(spec.clip, spec.relation);
    let sigma = zcdp_sigma(spec.epsilon, spec.delta, sensitivity.l2()).map_err(DoorError::from)?;
    let mechanism = DiscreteGaussian::fine(sigma).map_err(DoorError::from)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| DoorError::Randomness(e.to_string()))?;
    let mut rng = ChaCha20Rng::from_seed(seed);
    let normalization = Normalization::of(&data.train);
    let mut part = |data: &Dataset, first: usize| -> Result<Dataset, NaiveError> {
        let (shape, values) = (data.shape(), data.shape().len());
        let spread = SPAN * (sigma * sigma + spec.clip * spec.clip / values as f64).sqrt();
        let mut bytes = Vec::with_capacity(data.images().len());
        for (record, image) in data.images().chunks_exact(values).enumerate() {
            let normal = |(i, &pixel): (usize, &u8)| {
                let channel = i / shape.pixels();
                (f32::from(pixel) / 255.0 - normalization.mean[channel]) / normalization.std[channel]
            };
            let mut pixels: Vec<f32> = image.iter().enumerate().map(normal).collect();
            clip_records(&mut pixels, 1, spec.clip).map_err(DoorError::from)?;
            let released = release(Private::new(pixels), sensitivity, &mechanism, &mut rng);
            let (noised, receipt) = released.map_err(DoorError::from)?;
            accountant.begin([first + record]);
            accountant.absorb_for("image", Released::Residual, receipt);
            bytes.extend(noised.get().iter().map(|&v| (127.5 + 127.5 * f64::from(v) / spread) as u8));
        }
        Ok(Dataset::new(bytes, data.labels().to_vec(), shape, data.class_names().to_vec())?)
    };
    let (train, test) = (part(&data.train, 0)?, part(&data.test, data.train.len())?);
    Ok((Split { train, test }, sigma))
}
