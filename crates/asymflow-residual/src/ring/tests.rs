use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use asymflow_privacy::payload::Precision;

use super::*;

const LAYOUT: RingLayout = RingLayout { slots: 3, slot_bytes: 64 << 10, threshold_bytes: 16 };
const LIMIT: u64 = 1 << 20;

/// Worker and client.
fn pair() -> (Ring, Ring) {
    let (worker, _named, offer) = Ring::create(None, LAYOUT, LIMIT).unwrap();
    let client = Ring::open(&offer, LAYOUT).unwrap();
    (worker, client)
}

fn body(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn path(name: &RingName) -> PathBuf {
    PathBuf::from(name.to_string())
}

/// A fixed name of this test process.
fn fixed(what: &str) -> RingName {
    format!("asymflow-ring-unit-{what}-{}", std::process::id()).parse().unwrap()
}

impl Ring {
    /// All of a body.
    fn take(&mut self, place: Place) -> Result<Vec<u8>, RingError> {
        let located = self.locate(place)?;
        self.read(located)
    }
}

fn put(ring: &mut Ring, body: &[u8]) -> Option<Place> {
    // In two pieces, as numbers come.
    let (first, rest) = body.split_at(body.len() / 3);
    ring.put(body.len() as u64, [first, rest].into_iter())
}

#[test]
fn zeros_are_zeros_whatever_was_there_before() {
    let (mut worker, mut client) = pair();
    for (bytes, before) in [(4096, None), (8192, None), (100, None), (8192, Some(5000)), (4096, Some(64)), (9000, None)]
    {
        if let Some(before) = before {
            let place = put(&mut worker, &body(before, 3)).unwrap();
            assert_eq!(client.take(place).unwrap(), body(before, 3));
        }
        let place = worker.put_zeros(bytes).unwrap();
        assert_eq!(client.take(place).unwrap(), vec![0; bytes as usize]);
    }
}

#[test]
fn numbers_are_read_as_they_were_put() {
    let (mut worker, mut client) = pair();
    let values: Vec<f32> = (0..12_000).map(|i| i as f32 - 3.5).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let place = put(&mut client, &bytes).unwrap();
    let located = worker.locate(place).unwrap();
    let widen = |bytes: &[u8], to: &mut [f32]| crate::protocol::widen(bytes, Precision::F32, to);
    assert_eq!(worker.read_numbers(located, 0..bytes.len(), 4, widen).unwrap(), values);
    assert_eq!(worker.read_numbers(located, 8..bytes.len() - 4, 4, widen).unwrap(), values[2..11_999]);
    assert!(matches!(worker.read_numbers(located, 0..bytes.len() + 4, 4, widen), Err(RingError::Length { .. })));
}

#[test]
fn bodies_cross_in_both_directions() {
    let (mut worker, mut client) = pair();
    for (i, bytes) in [16, 17, 4095, 4096, 4097, 64 << 10, 16].into_iter().enumerate() {
        let (there, back) = (body(bytes, i as u8), body(bytes, 100 + i as u8));
        let place = put(&mut client, &there).unwrap();
        // Before either is taken: the directions do not share slots.
        let answer = put(&mut worker, &back).unwrap();
        assert_eq!(worker.take(place).unwrap(), there);
        assert_eq!(client.take(answer).unwrap(), back);
    }
}

#[test]
fn short_and_long_bodies_stay_on_the_connection() {
    let (mut worker, mut client) = pair();
    for bytes in [0, 15, (64 << 10) + 1] {
        assert_eq!(put(&mut client, &body(bytes, 1)), None, "{bytes}");
    }
    let place = put(&mut client, &body(16, 1)).unwrap();
    assert_eq!(place.sequence, 1);
    assert_eq!(worker.take(place).unwrap(), body(16, 1));
}

#[test]
fn a_false_place_is_named_and_the_true_one_still_works() {
    let (mut worker, mut client) = pair();
    let place = put(&mut client, &body(100, 1)).unwrap();
    let said = |worker: &mut Ring, place| worker.take(place).unwrap_err().to_string();
    assert_eq!(said(&mut worker, Place { slot: 3, ..place }), "slot 3 of a ring of 3");
    assert_eq!(said(&mut worker, Place { slot: u32::MAX, ..place }), "slot 4294967295 of a ring of 3");
    let long = Place { bytes: LAYOUT.slot_bytes + 1, ..place };
    assert_eq!(said(&mut worker, long), "a body of 65537 bytes in a slot of 65536");
    assert_eq!(said(&mut worker, Place { sequence: 2, ..place }), "slot sequence 2, expected 1");
    let other = Place { slot: 0, ..place };
    assert!(said(&mut worker, other).starts_with("a slot says sequence 0 and 0 bytes, its frame Place"));
    assert!(said(&mut worker, Place { bytes: 99, ..place }).starts_with("a slot says sequence 1 and 100 bytes"));
    assert_eq!(worker.take(place).unwrap(), body(100, 1));
    assert_eq!(said(&mut worker, place), "slot sequence 1, expected 2", "a body is taken once");
}

proptest! {
    #[test]
    fn no_place_panics_or_gives_more_than_a_slot(slot: u32, near in 0u32..5, sequence in 0u64..4, bytes: u64, low in 0u64..70_000) {
        let (mut worker, mut client) = pair();
        put(&mut client, &body(100, 1)).unwrap();
        for slot in [slot, near] {
            for bytes in [bytes, low, 100] {
                if let Ok(taken) = worker.take(Place { slot, sequence, bytes }) {
                    prop_assert_eq!((taken.len(), sequence), (100, 1));
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_ring_name_or_a_safe_one(text: String) {
        if let Ok(name) = text.parse::<RingName>() {
            prop_assert!(!name.to_string().contains(".."));
            prop_assert_eq!(name.to_string().matches('/').count(), 3);
        }
    }
}

/// What a writer does to a slot during the copy changes values and nothing else.
#[test]
fn a_scribbling_peer_changes_values_only() {
    let (mut worker, named, offer) = Ring::create(None, LAYOUT, LIMIT).unwrap();
    let mut client = Ring::open(&offer, LAYOUT).unwrap();
    let hostile = Ring::open(&offer, LAYOUT).unwrap();
    drop(named);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0u8;
            while !over.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                for slot in 0..LAYOUT.slots {
                    let at = LAYOUT.at(Direction::ToWorker, slot) + PAGE;
                    hostile.memory.write(at as usize, &vec![byte; LAYOUT.slot_bytes as usize]).unwrap();
                }
            }
        });
        let (mut changed, mut rounds, mut whole) = (0, 0u32, true);
        while changed < 10 && rounds < 1_000_000 && whole {
            rounds += 1;
            let sent = body(64 << 10, rounds as u8);
            let taken = put(&mut client, &sent).map(|place| worker.take(place));
            whole = matches!(&taken, Some(Ok(taken)) if taken.len() == sent.len());
            changed += u32::from(matches!(taken, Some(Ok(taken)) if taken != sent));
        }
        // Before anything can panic: the other thread waits for it.
        over.store(true, Ordering::Relaxed);
        assert!(whole, "round {rounds}");
        assert!(changed > 0, "the scribbler never met a copy: this shows nothing");
    });
}

/// The same for the numbers in the slot: they are compared, never followed.
#[test]
fn a_peer_that_rewrites_the_slots_own_numbers_is_refused() {
    let (mut worker, mut client) = pair();
    let place = put(&mut client, &body(100, 1)).unwrap();
    let at = LAYOUT.at(Direction::ToWorker, place.slot) as usize;
    client.memory.write(at + 8, &u64::MAX.to_le_bytes()).unwrap();
    let error = worker.take(place).unwrap_err();
    assert!(matches!(error, RingError::Disagrees { bytes: u64::MAX, .. }), "{error}");
}

#[test]
fn the_file_is_the_owners_alone_and_goes_with_its_name() {
    let name = fixed("mode");
    let (_ring, named, offer) = Ring::create(Some(&name), LAYOUT, LIMIT).unwrap();
    assert_eq!(offer.name, name);
    let about = std::fs::metadata(path(&name)).unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    assert_eq!(about.len(), LAYOUT.bytes().unwrap());
    drop(named);
    assert!(!path(&name).exists());
}

#[test]
fn a_stale_file_is_replaced() {
    let name = fixed("stale");
    std::fs::write(path(&name), b"left behind").unwrap();
    let (_ring, _named, offer) = Ring::create(Some(&name), LAYOUT, LIMIT).unwrap();
    Ring::open(&offer, LAYOUT).unwrap();
}

#[test]
fn what_cannot_be_made_is_named() {
    let name = fixed("folder");
    std::fs::create_dir(path(&name)).unwrap();
    let error = Ring::create(Some(&name), LAYOUT, LIMIT).unwrap_err();
    std::fs::remove_dir(path(&name)).unwrap();
    assert!(matches!(error, RingError::File(_)), "{error}");
    let error = Ring::create(None, LAYOUT, 1000).unwrap_err();
    assert_eq!(error.to_string(), "a ring of 421888 bytes exceeds the limit of 1000");
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = file::commit(&mut full, 5000).unwrap_err();
    assert!(error.to_string().starts_with("no 5000 bytes in /dev/shm: No space left"), "{error}");
    let good = LAYOUT;
    for (slots, slot_bytes) in [(0, 4096), (65, 4096), (1, 0), (1, 4095), (1, (1 << 30) + 4096), (1, u64::MAX)] {
        assert!(RingLayout { slots, slot_bytes, ..good }.bytes().is_err(), "{slots} {slot_bytes}");
    }
}

#[test]
fn a_false_file_is_refused_by_name_of_what_is_wrong() {
    let name = fixed("false");
    let whole = vec![7; LAYOUT.bytes().unwrap() as usize];
    let offer = Offer { name: name.clone(), slot_bytes: LAYOUT.slot_bytes, nonce: [7; NONCE_BYTES] };
    let refused = |offer: &Offer| Ring::open(offer, LAYOUT).map(|_| ()).unwrap_err();
    let mode = |mode| std::fs::set_permissions(path(&name), std::fs::Permissions::from_mode(mode)).unwrap();
    assert!(matches!(refused(&offer), RingError::File(_)));
    std::fs::write(path(&name), &whole).unwrap();
    mode(0o644);
    let open = refused(&offer);
    mode(0o600);
    let nonce = refused(&Offer { name: name.clone(), slot_bytes: LAYOUT.slot_bytes, nonce: [8; NONCE_BYTES] });
    let works = Ring::open(&offer, LAYOUT).is_ok();
    std::fs::write(path(&name), &whole[1..]).unwrap();
    let short = refused(&offer);
    std::fs::remove_file(path(&name)).unwrap();
    let target = fixed("target");
    std::fs::write(path(&target), &whole).unwrap();
    std::os::unix::fs::symlink(path(&target), path(&name)).unwrap();
    let link = refused(&offer);
    std::fs::remove_file(path(&name)).unwrap();
    std::fs::remove_file(path(&target)).unwrap();
    assert_eq!(open.to_string(), "the ring's file has mode 644, expected 600");
    assert!(matches!(nonce, RingError::Nonce), "{nonce}");
    assert!(works, "the right one is taken");
    assert_eq!(short.to_string(), "the ring's file has 421887 bytes, expected 421888");
    assert!(matches!(link, RingError::NoFile), "{link}");
}

#[test]
fn only_ring_names_are_names() {
    for good in ["/dev/shm/asymflow-ring-0", "asymflow-ring-0", "asymflow-ring-a_B-9"] {
        let name: RingName = good.parse().unwrap();
        assert!(name.to_string().starts_with("/dev/shm/asymflow-ring-"));
    }
    let long = format!("asymflow-ring-{}", "x".repeat(65));
    for bad in [
        "",
        "x",
        "asymflow-ring-",
        "/tmp/asymflow-ring-0",
        "asymflow-ring-../x",
        "asymflow-ring-a/b",
        "/dev/shm//asymflow-ring-0",
        &long,
    ] {
        assert!(bad.parse::<RingName>().is_err(), "{bad}");
    }
}
