//! What a network may be at most, so that one from outside can neither overflow a size nor exhaust memory unseen.

use std::cell::Cell;

use serde::{Deserialize, Deserializer, de::Error};

use crate::shape::{NetworkError, Shape};

/// Largest kernel, stride, padding or side of a layer, and number of channels of a convolution.
pub const MAX_SETTING: usize = 1 << 16;
/// Most values in one sample of an activation, and in all parameters: 2 GiB of f32, four times the largest network of the
/// zoo.
pub const MAX_VALUES: usize = 1 << 29;
/// Most layers, those in residual blocks included.
pub const MAX_LAYERS: usize = 4096;
/// Most residual blocks within one another that are read. Reading and walking them recurses.
pub const MAX_NESTING: usize = 8;

thread_local! {
    /// Blocks that are being read on this thread. Formats without an end to nesting, such as postcard, leave no other place to
    /// count them.
    static NESTING: Cell<usize> = const { Cell::new(0) };
}

/// One more block, until it is dropped.
struct Nested;

impl Nested {
    fn enter<E: Error>() -> Result<Self, E> {
        let nesting = NESTING.get();
        if nesting >= MAX_NESTING {
            return Err(E::custom(format_args!("residual blocks nest deeper than {MAX_NESTING}")));
        }
        NESTING.set(nesting + 1);
        Ok(Self)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        NESTING.set(NESTING.get().saturating_sub(1));
    }
}

/// Reads one branch of a residual block.
pub(crate) fn branch<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let _nested = Nested::enter()?;
    T::deserialize(deserializer)
}

/// Checks that a shape holds a value and not more than [`MAX_VALUES`].
pub(crate) fn check_shape(layer: &str, shape: Shape) -> Result<Shape, NetworkError> {
    match shape.checked_len() {
        Some(1..=MAX_VALUES) => Ok(shape),
        Some(0) => Err(NetworkError::out_of_range(layer, "number of values, zero,")),
        _ => Err(NetworkError::TooLarge { layer: layer.to_owned(), what: "values", limit: MAX_VALUES }),
    }
}

/// Checks that the numbers in a layer are no larger than any of use.
pub(crate) fn check_settings(layer: &str, settings: &[usize]) -> Result<(), NetworkError> {
    match settings.iter().copied().max() {
        Some(got) if got > MAX_SETTING => {
            Err(NetworkError::Setting { layer: layer.to_owned(), got, limit: MAX_SETTING })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Layer, Network};
    use crate::ops::{Conv, Linear};

    fn conv() -> Conv {
        let name = "conv".to_owned();
        Conv { name, in_channels: 1, out_channels: 1, kernel: 3, stride: 1, padding: 1, bias: false }
    }

    fn of(layers: Vec<Layer>) -> Network {
        Network { name: "n".to_owned(), input: Shape::new(1, 8, 8), classes: 64, layers }
    }

    fn refused(layers: Vec<Layer>) -> String {
        of(layers).validate().unwrap_err().to_string()
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        for huge in [MAX_SETTING + 1, usize::MAX / 2, usize::MAX] {
            let convs = [
                Conv { padding: huge, ..conv() },
                Conv { kernel: huge, ..conv() },
                Conv { stride: huge, ..conv() },
                Conv { out_channels: huge, ..conv() },
            ];
            for conv in convs {
                let expected = format!("layer conv: {huge} exceeds 65536, the limit of every setting");
                assert_eq!(refused(vec![Layer::Conv(conv)]), expected);
            }
            let pool = Layer::MaxPool { kernel: 2, stride: 1, padding: huge };
            assert!(refused(vec![pool]).starts_with(&format!("layer max-pool: {huge} exceeds")));
            assert!(
                refused(vec![Layer::AdaptiveAvgPool { out: huge }]).starts_with(&format!("layer avg-pool: {huge} "))
            );
            let linear = Linear { name: "fc".to_owned(), in_features: 64, out_features: huge };
            assert!(of(vec![Layer::Flatten, Layer::Linear(linear)]).validate().is_err());
            for input in [Shape::new(huge, huge, huge), Shape::new(1, huge, huge), Shape::new(huge, 1, 0)] {
                assert!(Network { input, ..of(vec![Layer::Relu]) }.validate().is_err(), "{input:?}");
            }
        }
    }

    #[test]
    fn zeros_are_refused() {
        for conv in [Conv { kernel: 0, ..conv() }, Conv { stride: 0, ..conv() }, Conv { out_channels: 0, ..conv() }] {
            assert!(of(vec![Layer::Conv(conv)]).validate().is_err());
        }
        let linear = Linear { name: "fc".to_owned(), in_features: 64, out_features: 0 };
        let network = Network { classes: 0, ..of(vec![Layer::Flatten, Layer::Linear(linear)]) };
        assert_eq!(network.validate().unwrap_err().to_string(), "layer fc: number of values, zero, is out of range");
    }

    #[test]
    fn a_map_that_grows_is_refused_where_it_is_too_large() {
        assert_eq!(of(vec![Layer::Flatten]).validate(), Ok(()));
        let grown = refused(vec![Layer::AdaptiveAvgPool { out: 1 << 15 }]);
        assert_eq!(grown, format!("layer avg-pool: more than {MAX_VALUES} values"));
        let padded = Conv { padding: MAX_SETTING, ..conv() };
        assert_eq!(refused(vec![Layer::Conv(padded)]), format!("layer conv: more than {MAX_VALUES} values"));
    }

    #[test]
    fn parameters_have_names_of_their_own_and_a_number() {
        let fc = |out_features| Layer::Linear(Linear { name: "fc".to_owned(), in_features: 64, out_features });
        assert_eq!(refused(vec![Layer::Flatten, fc(64), Layer::Relu, fc(64)]), "two parameters are named fc.weight");
        let large = Network { classes: 1 << 28, ..of(vec![Layer::Flatten, fc(1 << 28)]) };
        assert_eq!(large.validate().unwrap_err().to_string(), format!("layer n: more than {MAX_VALUES} parameters"));
        let many = of([vec![Layer::Relu; MAX_LAYERS], vec![Layer::Flatten]].concat());
        assert_eq!(many.validate().unwrap_err().to_string(), "layer n: more than 4096 layers");
    }

    #[test]
    fn nesting_ends_when_read() {
        let nested = |depth: usize| {
            let inner = "{\"Residual\":{\"main\":[".repeat(depth) + "\"Relu\"" + &"],\"shortcut\":[]}}".repeat(depth);
            serde_json::from_str::<Layer>(&inner)
        };
        assert!(nested(MAX_NESTING).is_ok());
        let error = nested(MAX_NESTING + 1).unwrap_err().to_string();
        assert!(error.starts_with("residual blocks nest deeper than 8"), "{error}");
        assert!(nested(MAX_NESTING).is_ok(), "a refusal leaves nothing behind");
    }
}
