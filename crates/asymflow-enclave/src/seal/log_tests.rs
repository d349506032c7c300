use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::tests::{Place, World, key, store_on};
use super::*;

const LABEL: &str = "answers";
const CONTEXT: [u8; 32] = [5; 32];
/// Two blocks of one byte fill it.
const SEGMENT_BYTES: u64 = 42;

fn opened(store: &mut SealedStore, context: [u8; 32]) -> Result<(SealedLog, Replayed, Vec<u8>), SealError> {
    let mut held = Vec::new();
    let mut each = |block: &[u8]| held.extend_from_slice(block);
    let (log, replayed) = SealedLog::open(store, LABEL, context, SEGMENT_BYTES, &mut each)?;
    Ok((log, replayed, held))
}

fn held(place: &Place) -> (Vec<u8>, u64) {
    let (_, replayed, held) = opened(&mut place.store(), CONTEXT).unwrap();
    (held, replayed.lost_blocks)
}

/// Appends `blocks`, each of one byte, in one process.
fn append(place: &Place, blocks: impl IntoIterator<Item = u8>) {
    let mut store = place.store();
    let (mut log, ..) = opened(&mut store, CONTEXT).unwrap();
    blocks.into_iter().for_each(|block| log.append(&mut store, &[block]).unwrap());
}

fn files(place: &Place) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(place.folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    paths.sort();
    paths
}

#[test]
fn every_process_finds_what_the_ones_before_it_appended() {
    let place = Place::new();
    assert_eq!(held(&place), (vec![], 0));
    for end in 1..8 {
        append(&place, [end - 1]);
        assert_eq!(held(&place), ((0..end).collect(), 0), "after {end} processes");
    }
}

#[test]
fn the_oldest_go_first_and_the_folder_does_not_grow() {
    let place = Place::new();
    append(&place, 0..5);
    append(&place, 5..200);
    let (blocks, lost) = held(&place);
    assert!((8..=10).contains(&blocks.len()), "{} blocks", blocks.len());
    assert_eq!(blocks, (200 - blocks.len() as u8..200).collect::<Vec<_>>());
    assert_eq!(lost, 0);
    let files = files(&place);
    assert_eq!(files.len(), 6);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= SEGMENT_BYTES));
}

#[test]
fn blocks_of_another_context_are_not_told() {
    let place = Place::new();
    append(&place, 0..3);
    let (mut log, replayed, held) = opened(&mut place.store(), [6; 32]).unwrap();
    assert_eq!((replayed, held), (Replayed::default(), vec![]));
    log.append(&mut place.store(), &[9]).unwrap();
    assert!(opened(&mut place.store(), CONTEXT).unwrap().2.is_empty());
    assert_eq!(opened(&mut place.store(), [6; 32]).unwrap().2, [9]);
}

#[test]
fn a_host_can_only_take_blocks_from_the_end_of_a_segment() {
    let place = Place::new();
    append(&place, 0..4);
    let files = files(&place);
    for (file, name) in files.iter().enumerate() {
        let good = std::fs::read(name).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x21;
            for bytes in [&bad[..], &good[..at]] {
                std::fs::write(name, bytes).unwrap();
                let first = 2 * file as u8;
                let mut want: Vec<u8> = (0..4).collect();
                want.retain(|&block| block != first + 1 && (at >= 21 || block != first));
                assert_eq!(held(&place).0, want, "file {file}, byte {at}");
            }
        }
        std::fs::write(name, good).unwrap();
    }
    // One in place of the other, and blocks in another order.
    let (one, two) = (std::fs::read(&files[0]).unwrap(), std::fs::read(&files[1]).unwrap());
    std::fs::write(&files[0], &two).unwrap();
    assert_eq!(held(&place), (vec![2, 3], 2));
    std::fs::write(&files[0], [&one[21..], &one[..21]].concat()).unwrap();
    assert_eq!(held(&place), (vec![2, 3], 2));
    // What was lost stays lost, and nothing stands in the way of what comes.
    append(&place, [4]);
    assert_eq!(held(&place).0, [2, 3, 4]);
}

#[test]
fn an_index_that_was_put_back_is_refused() {
    let place = Place::new();
    append(&place, 0..1);
    let index = place.folder().join(file_name(LABEL));
    let old = std::fs::read(&index).unwrap();
    append(&place, 1..4);
    std::fs::write(&index, old).unwrap();
    assert!(matches!(opened(&mut place.store(), CONTEXT), Err(SealError::RolledBack { .. })));
}

#[test]
fn a_write_that_failed_is_followed_by_a_new_segment() {
    let place = Place::new();
    let mut store = place.store();
    let (mut log, ..) = opened(&mut store, CONTEXT).unwrap();
    log.append(&mut store, &[0]).unwrap();
    let segment = log.segments[0];
    let file = files(&place).remove(0);
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(log.append(&mut store, &[1]), Err(SealError::Io { .. })));
    std::fs::write(&file, [&whole[..], b"part of a block"].concat()).unwrap();
    log.append(&mut store, &[2]).unwrap();
    assert_ne!(log.segments[0].salt, segment.salt);
    assert_eq!(held(&place), (vec![0, 2], 0));
    assert!(matches!(log.append(&mut store, &vec![0; (1 << 20) + 1]), Err(SealError::TooLarge { .. })));
}

/// Appends blocks 0, 1, … in several processes until the power is cut after `steps`, and gives how many were reported as
/// appended, and all that may be found: first what is there where only the process was killed.
fn cut_after(steps: usize) -> (u8, Vec<std::collections::BTreeMap<PathBuf, Vec<u8>>>) {
    let world = Arc::new(Mutex::new(World { steps_left: steps, ..World::default() }));
    let mut appended = 0;
    let mut process = |blocks: u8| -> Result<(), SealError> {
        let mut store = store_on(&world, &key(1));
        let (mut log, ..) = opened(&mut store, CONTEXT)?;
        for _ in 0..blocks {
            log.append(&mut store, &[appended])?;
            appended += 1;
        }
        Ok(())
    };
    let _ = process(3).and_then(|()| process(2)).and_then(|()| process(6));
    let worlds = world.lock().unwrap().after_the_cut();
    (appended, worlds)
}

#[test]
fn after_a_cut_at_any_byte_a_new_process_goes_on_with_blocks_that_were_appended() {
    let mut killed_with = 0;
    for steps in 0.. {
        let (appended, worlds) = cut_after(steps);
        for (number, files) in worlds.into_iter().enumerate() {
            let world = World { steps_left: usize::MAX, seen: files.clone(), safe: files, ..World::default() };
            let world = Arc::new(Mutex::new(world));
            let mut store = store_on(&world, &key(1));
            let (mut log, _, held) = opened(&mut store, CONTEXT).unwrap();
            assert!(held.is_sorted() && held.iter().all(|&block| block <= appended), "{held:?} of {appended}");
            if number == 0 {
                let want = (appended.saturating_sub(8)..appended).collect::<Vec<_>>();
                assert!(want.iter().all(|block| held.contains(block)), "killed: {held:?} of {appended}");
                killed_with = killed_with.max(held.len());
            }
            log.append(&mut store, &[100]).unwrap();
            let later = opened(&mut store_on(&world, &key(1)), CONTEXT).unwrap().2;
            assert_eq!(later.last(), Some(&100));
        }
        if appended == 11 {
            assert!(steps > 500 && killed_with >= 8, "{steps} steps, {killed_with} blocks");
            return;
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_no_index_and_no_blocks(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let place = Place::new();
        append(&place, [1]);
        std::fs::write(&files(&place)[0], &bytes).unwrap();
        prop_assert_eq!(held(&place), (vec![], 0));
        place.store().save(LABEL, &bytes).unwrap();
        let is_index = bytes.len() >= 32 && (bytes.len() - 32) % 41 == 0 && bytes.len() <= 32 + 5 * 41;
        prop_assert_eq!(opened(&mut place.store(), CONTEXT).is_ok(), is_index);
    }
}
