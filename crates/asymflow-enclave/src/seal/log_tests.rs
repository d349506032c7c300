use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::error::{SealError, WitnessError};
use super::log::{Durability, Replayed, SealedLog};
use super::store::{SealedStore, file_name};
use super::tests::{Place, World, key, store_on};

const LABEL: &str = "answers";
const CONTEXT: [u8; 32] = [5; 32];
const BOTH: [Durability; 2] = [Durability::Relaxed, Durability::Strict];
/// Content of a block, its length and its tag.
const BLOCK_BYTES: usize = 21;
const SPARE_BYTES: u64 = BLOCK_BYTES as u64;
/// The latest blocks say everything.
const KEPT: usize = 3;

struct Opened {
    log: SealedLog,
    replayed: Replayed,
    /// What a process would remember: the latest blocks, in order.
    held: Vec<u8>,
}

fn opened(store: &mut SealedStore, context: [u8; 32], durability: Durability) -> Result<Opened, SealError> {
    let mut held: Vec<u8> = Vec::new();
    let mut each = |block: &[u8]| {
        // A block that begins the file anew may be appended once more.
        if held.last() != block.first() {
            held.extend_from_slice(block);
        }
    };
    let (log, replayed) = SealedLog::open(store, LABEL, context, durability, SPARE_BYTES, &mut each)?;
    held.drain(..held.len().saturating_sub(KEPT));
    Ok(Opened { log, replayed, held })
}

impl Opened {
    fn append(&mut self, store: &mut SealedStore, block: u8) -> Result<(), SealError> {
        self.held.push(block);
        self.held.drain(..self.held.len().saturating_sub(KEPT));
        self.log.append(store, &[block], &mut self.held.clone().into_iter().map(|block| Ok(vec![block])))
    }
}

fn held(place: &Place, durability: Durability) -> (Vec<u8>, u64) {
    let opened = opened(&mut place.store(), CONTEXT, durability).unwrap();
    (opened.held, opened.replayed.lost_blocks)
}

/// Appends `blocks`, each of one byte, in one process.
fn append(place: &Place, durability: Durability, blocks: impl IntoIterator<Item = u8>) {
    let mut store = place.store();
    let mut opened = opened(&mut store, CONTEXT, durability).unwrap();
    blocks.into_iter().for_each(|block| opened.append(&mut store, block).unwrap());
}

fn files(place: &Place) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(place.folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    paths.sort();
    paths
}

#[test]
fn every_process_finds_what_the_ones_before_it_appended() {
    for durability in BOTH {
        let place = Place::new();
        assert_eq!(held(&place, durability), (vec![], 0));
        for end in 1_u8..8 {
            append(&place, durability, [end - 1]);
            assert_eq!(held(&place, durability), ((end.saturating_sub(3)..end).collect(), 0), "{end} processes");
        }
    }
}

#[test]
fn appending_writes_the_block_alone_and_the_folder_does_not_grow() {
    for durability in BOTH {
        let place = Place::new();
        let mut store = place.store();
        let mut opened = opened(&mut store, CONTEXT, durability).unwrap();
        let (mut begun, mut salt) = (0, None);
        for block in 0..200 {
            opened.append(&mut store, block).unwrap();
            let file = opened.log.file.unwrap();
            begun += usize::from(salt.replace(file.salt) != Some(file.salt));
            let bytes: u64 = files(&place).iter().map(|file| file.metadata().unwrap().len()).sum();
            assert!(bytes <= 2 * (6 + 1 + 1) * BLOCK_BYTES as u64, "{bytes} bytes");
        }
        assert!((30..=60).contains(&begun), "begun {begun} times");
        assert_eq!(held(&place, durability), ((197..200).collect(), 0));
        assert_eq!(files(&place).len(), 2);
    }
}

#[test]
fn blocks_of_another_context_are_not_told() {
    let place = Place::new();
    append(&place, Durability::Relaxed, 0..3);
    let mut store = place.store();
    let mut other = opened(&mut store, [6; 32], Durability::Relaxed).unwrap();
    assert_eq!((other.replayed, &other.held), (Replayed::default(), &vec![]));
    other.append(&mut store, 9).unwrap();
    assert!(held(&place, Durability::Relaxed).0.is_empty());
    assert_eq!(opened(&mut place.store(), [6; 32], Durability::Relaxed).unwrap().held, [9]);

    let place = Place::new();
    append(&place, Durability::Strict, 0..3);
    assert!(matches!(opened(&mut place.store(), [6; 32], Durability::Strict), Err(SealError::Malformed { .. })));
}

/// Every byte that a host changes or cuts off: a relaxed log ends there, and a strict one is refused.
#[test]
fn a_host_can_take_blocks_from_the_end_of_a_relaxed_log_and_none_of_a_strict_one() {
    for durability in BOTH {
        let place = Place::new();
        append(&place, durability, 0..2);
        let [file] = &files(&place)[..] else { panic!("{durability:?}: {:?}", files(&place)) };
        let good = std::fs::read(file).unwrap();
        assert_eq!(good.len(), 3 * BLOCK_BYTES, "the first block began the file and was appended");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x21;
            for bytes in [&bad[..], &good[..at]] {
                std::fs::write(file, bytes).unwrap();
                match durability {
                    Durability::Relaxed => {
                        let whole = (at / BLOCK_BYTES).saturating_sub(1) as u8;
                        let want = if at < BLOCK_BYTES { vec![] } else { (0..whole.max(1)).collect() };
                        assert_eq!(held(&place, durability).0, want, "byte {at}");
                    }
                    Durability::Strict => {
                        assert!(opened(&mut place.store(), CONTEXT, durability).is_err(), "byte {at}")
                    }
                }
            }
        }
        // What was lost stays lost, and nothing stands in the way of what comes.
        std::fs::write(file, if durability == Durability::Strict { &good } else { &good[..2 * BLOCK_BYTES] }).unwrap();
        append(&place, durability, [4]);
        let want = if durability == Durability::Strict { vec![0, 1, 4] } else { vec![0, 4] };
        assert_eq!(held(&place, durability).0, want);
    }
}

#[test]
fn what_a_host_puts_back_is_refused() {
    for durability in BOTH {
        let place = Place::new();
        append(&place, durability, 0..1);
        let index = place.folder().join(file_name(LABEL));
        let old = std::fs::read(&index).unwrap();
        append(&place, durability, 1..4);
        std::fs::write(&index, old).unwrap();
        assert!(matches!(opened(&mut place.store(), CONTEXT, durability), Err(SealError::RolledBack { .. })));
    }
    // A strict log is refused, too, where its file alone goes back, or all of it is gone.
    let place = Place::new();
    let mut store = place.store();
    let mut one = opened(&mut store, CONTEXT, Durability::Strict).unwrap();
    one.append(&mut store, 0).unwrap();
    let file = files(&place).remove(0);
    let old = std::fs::read(&file).unwrap();
    let early = one.log.witness(&store).unwrap();
    one.append(&mut store, 1).unwrap();
    let late = one.log.witness(&store).unwrap();
    let new = std::fs::read(&file).unwrap();
    std::fs::write(&file, &old).unwrap();
    let refused = |place: &Place| opened(&mut place.store(), CONTEXT, Durability::Strict).err();
    assert!(matches!(refused(&place), Some(SealError::RolledBack { found: 1, at_least: 2, .. })));
    std::fs::write(&file, new).unwrap();
    assert!(refused(&place).is_none());

    // Guard and folder together are what a client's witness is for.
    let guard = place.guard_of(&format!("{LABEL}.tail"));
    let record = std::fs::read(&guard).unwrap();
    append(&place, Durability::Strict, [2]);
    let newest = opened(&mut place.store(), CONTEXT, Durability::Strict).unwrap();
    for seen in [&early, &late] {
        newest.log.check_witness(&place.store(), seen).unwrap();
    }
    let later = newest.log.witness(&place.store()).unwrap();
    one.log.check_witness(&store, &late).unwrap();
    assert!(matches!(one.log.check_witness(&store, &later), Err(WitnessError::RolledBack { found: 2, seen: 3, .. })));
    std::fs::write(&guard, record).unwrap();
    assert!(refused(&place).is_none(), "one ahead of its guard is what a crash leaves");
    std::fs::remove_file(&guard).unwrap();
    assert!(matches!(refused(&place), Some(SealError::GuardBehind { found: 3, guard: 0, .. })));
}

#[test]
fn a_write_that_failed_is_followed_by_a_new_file() {
    for durability in BOTH {
        let place = Place::new();
        let mut store = place.store();
        let mut opened = opened(&mut store, CONTEXT, durability).unwrap();
        opened.append(&mut store, 0).unwrap();
        let salt = opened.log.file.unwrap().salt;
        let file = files(&place).remove(0);
        let whole = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(opened.append(&mut store, 1), Err(SealError::Io { .. })));
        std::fs::write(&file, [&whole[..], b"part of a block"].concat()).unwrap();
        opened.append(&mut store, 2).unwrap();
        assert_ne!(opened.log.file.unwrap().salt, salt);
        // What was to be written and was not belongs to what the process knows.
        assert_eq!(held(&place, durability), (vec![0, 1, 2], 0));
        let long = opened.log.append(&mut store, &vec![0; (1 << 20) + 1], &mut std::iter::empty());
        assert!(matches!(long, Err(SealError::TooLarge { .. })));
    }
}

#[test]
fn a_second_process_on_a_strict_log_is_noticed() {
    let place = Place::new();
    let (mut first, mut second) = (place.store(), place.store());
    let mut one = opened(&mut first, CONTEXT, Durability::Strict).unwrap();
    one.append(&mut first, 0).unwrap();
    let mut two = opened(&mut second, CONTEXT, Durability::Strict).unwrap();
    two.append(&mut second, 1).unwrap();
    assert!(matches!(one.append(&mut first, 2), Err(SealError::Overtaken { .. })));
    assert!(matches!(one.append(&mut first, 2), Err(SealError::Overtaken { .. })), "and it does not mend itself");
    assert_eq!(held(&place, Durability::Strict).0, [0, 1]);
}

/// Appends blocks 0, 1, … in several processes until the power is cut after `steps`, and gives how many were reported as
/// appended, and all that may be found: first what is there where only the process was killed.
fn cut_after(steps: usize, durability: Durability, lies: bool) -> (u8, Vec<BTreeMap<PathBuf, Vec<u8>>>) {
    let world = Arc::new(Mutex::new(World { steps_left: steps, lies, ..World::default() }));
    let mut appended = 0;
    let mut process = |blocks: u8| -> Result<(), SealError> {
        let mut store = store_on(&world, &key(1));
        let mut opened = opened(&mut store, CONTEXT, durability)?;
        for _ in 0..blocks {
            opened.append(&mut store, appended)?;
            appended += 1;
        }
        Ok(())
    };
    let _ = process(1).and_then(|()| process(2)).and_then(|()| process(5));
    let worlds = world.lock().unwrap().after_the_cut();
    (appended, worlds)
}

/// How often the log was refused after a cut at any byte; it never is on a disk that does what it says.
fn refused_after_every_cut(durability: Durability, lies: bool) -> usize {
    let mut refused = 0;
    for steps in 0.. {
        let (appended, worlds) = cut_after(steps, durability, lies);
        for (number, files) in worlds.into_iter().enumerate() {
            let world = World { steps_left: usize::MAX, seen: files.clone(), safe: files, ..World::default() };
            let world = Arc::new(Mutex::new(world));
            let mut store = store_on(&world, &key(1));
            let Ok(mut found) = opened(&mut store, CONTEXT, durability) else {
                refused += 1;
                continue;
            };
            let held = found.held.clone();
            assert!(held.is_sorted() && held.iter().all(|&block| block <= appended), "{held:?} of {appended}");
            // Only a power cut may take blocks, and only of a relaxed log.
            if number == 0 || durability == Durability::Strict {
                let last = held.last().copied();
                assert!(last == Some(appended) || last == appended.checked_sub(1), "{held:?} of {appended}");
            }
            found.append(&mut store, 100).unwrap();
            let later = opened(&mut store_on(&world, &key(1)), CONTEXT, durability).unwrap();
            assert_eq!(later.held, found.held);
        }
        if appended == 8 {
            assert!(steps > 500, "{steps} steps are fewer than the bytes that were written");
            return refused;
        }
    }
    unreachable!("appending ends");
}

#[test]
fn after_a_cut_at_any_byte_a_new_process_goes_on_with_what_was_appended() {
    for durability in BOTH {
        assert_eq!(refused_after_every_cut(durability, false), 0);
    }
}

#[test]
fn a_disk_that_syncs_nothing_is_caught_by_the_same_test() {
    assert!(refused_after_every_cut(Durability::Strict, true) > 0);
}

proptest! {
    #[test]
    fn any_bytes_are_no_index_and_no_blocks(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for durability in BOTH {
            let place = Place::new();
            append(&place, durability, [1]);
            std::fs::write(&files(&place)[0], &bytes).unwrap();
            let found = opened(&mut place.store(), CONTEXT, durability);
            prop_assert_eq!(found.is_ok(), durability == Durability::Relaxed);
            prop_assert!(found.map_or(Vec::new(), |found| found.held).is_empty());
            place.store().save(LABEL, &bytes).unwrap();
            let found = opened(&mut place.store(), CONTEXT, durability);
            prop_assert_eq!(found.is_ok(), durability == Durability::Relaxed);
        }
    }
}
