use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn payloads_survive_the_wire(values: Vec<f32>) {
        for precision in [Precision::F32, Precision::F16] {
            let payload = Payload::encode(values.clone(), precision);
            let bytes = put_payload(&payload);
            prop_assert_eq!(bytes.len(), payload.bytes());
            // Compared as bytes: NaN is not equal to itself.
            let back = take_payload(&bytes, precision).unwrap();
            prop_assert_eq!(put_payload(&back), bytes);
            prop_assert_eq!(back.len(), payload.len());
        }
    }

    #[test]
    fn a_body_of_no_whole_numbers_is_refused(bytes: Vec<u8>) {
        prop_assert_eq!(take_payload(&bytes, Precision::F32).is_some(), bytes.len() % 4 == 0);
        prop_assert_eq!(take_payload(&bytes, Precision::F16).is_some(), bytes.len() % 2 == 0);
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
