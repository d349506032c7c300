use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn payloads_survive_the_wire(values: Vec<f32>) {
        for precision in [Precision::F32, Precision::F16] {
            let payload = Payload::encode(values.clone(), precision);
            let numbers = Numbers::of(&payload);
            let bytes: Vec<u8> = numbers.pieces().flat_map(Cow::into_owned).collect();
            prop_assert_eq!(bytes.len(), payload.bytes());
            prop_assert_eq!(bytes.len() as u64, numbers.bytes());
            let mut back = vec![0.0; values.len()];
            widen(&bytes, precision, &mut back);
            // Compared as bits: NaN is not equal to itself.
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&payload.clone().into_f32()));
            if precision == Precision::F16 {
                // What it cannot hold is refused before it is sent.
                let held: Vec<f32> = values.iter().map(|v| v.clamp(-65504.0, 65504.0)).collect();
                let narrowed: Vec<u8> = Numbers::Narrow(&held).pieces().flat_map(Cow::into_owned).collect();
                prop_assert_eq!(narrowed, bytes, "encoded as it is sent, or before");
            }
        }
    }

    #[test]
    fn text_from_the_other_side_is_bounded_and_printable(raw: String) {
        let text = text(&raw);
        prop_assert!(text.chars().count() <= MAX_TEXT);
        prop_assert!(!text.chars().any(char::is_control));
    }

    #[test]
    fn only_the_token_itself_matches(a: Vec<u8>, b: Vec<u8>) {
        let matches = Token::new(a.clone()).matches(&Token::new(b.clone()));
        prop_assert_eq!(matches, a == b && !a.is_empty());
        prop_assert_eq!(Token::new(a.clone()).matches(&Token::new(a.clone())), !a.is_empty());
    }
}

#[test]
fn the_longest_text_fits_into_a_header() {
    let longest = text(&"\u{10ffff}".repeat(MAX_TEXT + 1));
    let mut bytes = Vec::new();
    let missing = Welcome::Missing { what: longest.clone(), fix: longest };
    let written = asymflow_wire::write_frame(&mut bytes, &missing, &[]).unwrap();
    assert!(written < u64::from(BARE.header_bytes), "{written}");
}
