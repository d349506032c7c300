use proptest::prelude::*;

use super::*;

type Header = (u8, String, Vec<u32>);

proptest! {
    #[test]
    fn a_frame_survives_the_wire(a: u8, b: String, c: Vec<u32>, body: Vec<u8>) {
        let header: Header = (a, b, c);
        let mut bytes = Vec::new();
        let written = write_frame(&mut bytes, &header, &body).unwrap();
        prop_assert_eq!(written as usize, bytes.len());
        let frame = read_frame::<Header>(&mut bytes.as_slice(), Limits::default()).unwrap();
        prop_assert_eq!(frame, Frame { header, body });
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let limits = Limits { header_bytes: 1 << 10, body_bytes: 1 << 16 };
        let _ = read_frame::<Header>(&mut bytes.as_slice(), limits);
    }

    #[test]
    fn a_damaged_frame_never_panics(at in 0usize..64, flip in 1u8.., body: Vec<u8>) {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &(1u8, String::from("x"), vec![1u32, 2, 3]), &body).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let limits = Limits { header_bytes: 1 << 10, body_bytes: 1 << 16 };
        let _ = read_frame::<Header>(&mut bytes.as_slice(), limits);
    }
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &7u32, b"body").unwrap();
    assert!(matches!(read_frame::<u32>(&mut [].as_slice(), Limits::default()), Err(WireError::Closed)));
    for end in 1..bytes.len() {
        let cut = read_frame::<u32>(&mut &bytes[..end], Limits::default());
        assert!(matches!(cut, Err(WireError::Io(_))), "cut at {end}: {cut:?}");
    }
}

#[test]
fn a_lying_length_is_refused_before_allocation() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &7u32, b"body").unwrap();
    bytes[10..18].copy_from_slice(&u64::MAX.to_le_bytes());
    let result = read_frame::<u32>(&mut bytes.as_slice(), Limits::default());
    assert!(matches!(result, Err(WireError::TooLarge { part: "body", .. })));
}

#[test]
fn another_version_is_named() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &7u32, &[]).unwrap();
    bytes[4] = 9;
    let error = read_frame::<u32>(&mut bytes.as_slice(), Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), "frame version 9, expected 1");
}
